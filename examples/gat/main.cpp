// The graph attention experiment: trains dense networks and nested levels on a citation graph over several seeds,
// writes a row for each model and prints tables of what came of it.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <exception>
#include <string>
#include <tuple>

#include "../support/rows_report.hpp"
#include "../support/training_run.hpp"
#include "arms.hpp"

int main(int argc, char** argv) {
  gat::ExperimentOptions options;
  std::string plot;
  CLI::App app{"Trains nested sparse levels of a graph attention network and compares them with dense ones."};
  app.add_option("--data", options.data, "directory with labels.txt, features.txt, edges.txt and split.txt")
      ->capture_default_str();
  app.add_option("--arms", options.arms,
                 "dense, joint, bottom-up, single, four-levels, no-distillation, no-paths, no-freezing, no-floors")
      ->delimiter(',')
      ->capture_default_str();
  app.add_option("--seeds", options.seeds, "runs of each arm")->check(CLI::Range(1, 100000))->capture_default_str();
  app.add_option("--first-seed", options.first_seed, "the others follow")->check(CLI::Range(0, 1000000));
  app.add_option("--threads", options.threads, "the result does not depend on them")->check(CLI::Range(1, 256));
  app.add_option("--report", options.report,
                 "JSON file of rows; arms and seeds that it has are not run again, so a stopped run goes on");
  app.add_option("--checkpoint", options.checkpoint,
                 "file that the network in training is saved to every 30 s; an interrupt or a signal to end saves it "
                 "and ends the program with exit code 3");
  app.add_flag("--resume", options.resume, "go on from --checkpoint");
  app.add_option("--models", options.models, "directory for the trained models");
  app.add_option("--plot", plot, "SVG file");
  app.add_flag("--test", options.test, "measure the test nodes too: once, when all choices are made");
  app.add_flag("--table", options.table_only, "only print the tables of --report");
  app.add_option("--dense-epochs", options.settings.dense_epochs, "of the teacher")->capture_default_str();
  app.add_option("--prune-epochs", options.settings.prune_epochs)->capture_default_str();
  app.add_option("--fixed-epochs", options.settings.fixed_epochs)->capture_default_str();
  app.add_option("--tune-epochs", options.settings.tune_epochs)->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  try {
    if (options.table_only) options.arms.clear();
    std::string command = "gat";
    if (options.data != gat::cora) command += " --data DIR";
    const gat::Settings usual;
    for (const auto& [name, value, other] :
         {std::tuple("--dense-epochs", options.settings.dense_epochs, usual.dense_epochs),
          std::tuple("--prune-epochs", options.settings.prune_epochs, usual.prune_epochs),
          std::tuple("--fixed-epochs", options.settings.fixed_epochs, usual.fixed_epochs),
          std::tuple("--tune-epochs", options.settings.tune_epochs, usual.tune_epochs)})
      if (value != other) command += " " + std::string(name) + " " + std::to_string(value);
    gat::Experiment experiment(options, command);
    if (!experiment.run()) {
      std::fprintf(stderr, "\ngat: stopped: --resume\n");
      return examples::unfinished;
    }
    std::printf("validation nodes\n");
    std::printf("%s\n", examples::rows_table(experiment.rows(), "validation", true).text().c_str());
    const bool tested = std::any_of(experiment.rows().begin(), experiment.rows().end(),
                                    [](const auto& row) { return row.at("accuracy").is_number(); });
    if (tested) {
      std::printf("test nodes\n");
      std::printf("%s\n", examples::rows_table(experiment.rows(), "accuracy", true).text().c_str());
    }
    if (!plot.empty())
      (void)examples::write_svg(
          examples::rows_plot(experiment.rows(), tested ? "accuracy" : "validation",
                              "GAT on " + (options.data == gat::cora ? "Cora" : examples::data_name(options.data)) +
                                  ": accuracy against FLOPs, means over seeds",
                              "accuracy, %"),
          plot)
          .value();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "gat: %s\n", error.what());
    return 1;
  }
  return 0;
}
