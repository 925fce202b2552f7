// The options that the programs which train levels have in common.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "run_plan.hpp"

namespace examples {

/// Where programs differ in these options.
struct RunHelp {
  const char* single_level = "--single-level";
  const char* whose_single_level = "the level whose budget the single arm has; default: the top one";
  bool dropout = true;  ///< the network has some: --level-dropout
  const char* switches = "judge paths that drop to a lower level at each stage as well";
};

/// Adds the options of a run, whose values so far are the defaults; gives the flag --one-cosine, for others that it
/// excludes.
inline CLI::Option* add_run_options(CLI::App& app, RunOptions& options, const PhaseShares& shares,
                                    const RunHelp& help = {}) {
  const auto percent = [](double share) { return std::to_string(static_cast<int>(100 * share + 0.5)) + " %"; };
  app.add_option("--arm", options.arm, "dense, joint, bottom-up, or single: one level trained by itself")
      ->check(CLI::IsMember({"dense", "joint", "bottom-up", "single"}))
      ->capture_default_str();
  app.add_option("--levels", options.levels, "budgets weights:flops,... as fractions, the sparsest first")
      ->capture_default_str();
  app.add_option(help.single_level, options.single_level, help.whose_single_level)->check(CLI::NonNegativeNumber);
  app.add_option("--epochs", options.epochs, "of the whole run, all phases together")
      ->check(CLI::Range(0.001, 10000.0))
      ->capture_default_str();
  app.add_option("--dense-epochs", options.dense_epochs,
                 "of them on the dense model that the sparse arms start from; 0: " + percent(shares.dense) +
                     ", with --one-cosine " + percent(one_cosine_shares.dense))
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--distillation", options.distillation, "share of distillation in the loss of levels")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  auto* const one_cosine = app.add_flag(
      "--one-cosine", options.one_cosine,
      "joint and single: the rate falls along one cosine over all phases, as in the dense arm, a fifth of the epochs "
      "is dense, and --distillation is from the step's top level, not from the dense model, whose training is not "
      "finished; the single arm, which has one level, learns from labels alone");
  app.add_flag("--in-turn", options.in_turn,
               "joint: a step runs one of its paths, each in its turn, and there are as many more epochs as that saves")
      ->excludes(one_cosine);
  if (help.dropout)
    app.add_option("--level-dropout", options.level_dropout,
                   "dropout while a level trains, for each level, sparsest first; default: that of the dense model")
        ->delimiter(',');
  app.add_option("--paths", options.paths, "joint: paths with a random switch of level in every step")
      ->check(CLI::Range(0, 16))
      ->capture_default_str();
  app.add_flag("--switches", options.switches, help.switches);
  app.add_option("--seed", options.seed, "of weights, batches and variations")->capture_default_str();
  app.add_flag("--bfloat16", options.bfloat16,
               "keep activations of convolutions and round operands of large products as bfloat16 while training, "
               "where the machine multiplies such numbers");
  app.add_option("--out", options.out, "directory for the checkpoint and the models")->capture_default_str();
  app.add_option("--report", options.report, "file for the rows of the table as JSON");
  app.add_flag("--resume", options.resume, "go on from the checkpoint in --out");
  app.add_option("--dense-from", options.dense_from,
                 "checkpoint of another arm of the same seed: its dense model is taken instead of training it again");
  app.add_option("--stop-after", options.stop_after, "seconds after which to save and stop; 0: never")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  return one_cosine;
}

}  // namespace examples
