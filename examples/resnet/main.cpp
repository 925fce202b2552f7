// ResNet-50: speed with random weights.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <string>

#include "../support/levels.hpp"
#include "benchmark.hpp"

int main(int argc, char** argv) {
  resnet::BenchmarkOptions options;
  std::string levels = examples::paper_levels;
  bool benchmark = false;
  CLI::App app{"ResNet-50 at nested sparse levels."};
  app.add_flag("--benchmark", benchmark, "time random weights, dense and at every level")->required();
  app.add_option("--level", options.levels, "dense or a level, may be repeated (all)");
  app.add_option("--size", options.size, "height and width of the picture")
      ->check(CLI::Range(32, 4096))
      ->capture_default_str();
  app.add_option("--batch", options.batch, "pictures a run")->check(CLI::Range(1, 1024))->capture_default_str();
  app.add_option("--threads", options.threads, "of the library")->check(CLI::Range(1, 256))->capture_default_str();
  app.add_option("--seed", options.seed, "of weights and input")->capture_default_str();
  app.add_option("--seconds", options.seconds, "to measure, all models together")
      ->check(CLI::Range(0.0, 86400.0))
      ->capture_default_str();
  app.add_option("--levels", levels, "weights:flops of each level as fractions, sparsest first")->capture_default_str();
  app.add_flag("--uniform", options.uniform, "uniform density at the weight budgets; FLOP budgets do not bind");
  app.add_option("--report", options.report, "file for the table as JSON");
  app.add_option(
      "--save-masked", options.save_masked,
      "directory for the same weights: PyTorch state_dicts with zeros (dense.safetensors, level0.safetensors, "
      "...), model.safetensors, and reference.safetensors with an input and all logits");
  CLI11_PARSE(app, argc, argv);
  try {
    options.budgets = examples::parse_levels(levels);
    resnet::run_benchmark(options);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "resnet50: %s\n", error.what());
    return 1;
  }
  return 0;
}
