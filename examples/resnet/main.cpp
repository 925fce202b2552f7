// ResNet at nested levels: classifies pictures with a model file, or times ResNet-50 with random weights.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <string>

#include "../support/levels.hpp"
#include "benchmark.hpp"
#include "classify.hpp"

int main(int argc, char** argv) {
  resnet::BenchmarkOptions timing;
  resnet::ClassifyOptions pictures;
  std::string levels = examples::paper_levels;
  bool benchmark = false;
  int threads = 1;
  CLI::App app{
      "Prints the best classes of pictures at every level of a model file, and the time each took.\n"
      "With --benchmark: times ResNet-50 with random weights and nested masks instead."};
  app.add_option("model", pictures.model, "model file of resnet_convert or resnet_train");
  app.add_option("pictures", pictures.pictures, "JPEG or PNG files");
  auto* const flag = app.add_flag("--benchmark", benchmark, "time random weights, dense and at every level");
  app.add_option("--top", pictures.top, "classes to print")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str()
      ->excludes(flag);
  app.add_option("--runs", pictures.runs, "of each level; their median time is printed")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str()
      ->excludes(flag);
  app.add_option("--threads", threads, "of the library")->check(CLI::Range(1, 256))->capture_default_str();

  app.add_option("--level", timing.levels, "benchmark: dense or a level, may be repeated (all)")->needs(flag);
  app.add_option("--size", timing.size, "benchmark: height and width of the picture")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str()
      ->needs(flag);
  app.add_option("--batch", timing.batch, "benchmark: pictures a run")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str()
      ->needs(flag);
  app.add_option("--seed", timing.seed, "benchmark: of weights and input")->capture_default_str()->needs(flag);
  app.add_option("--seconds", timing.seconds, "benchmark: to measure, all models together")
      ->check(CLI::Range(0.0, 86400.0))
      ->capture_default_str()
      ->needs(flag);
  app.add_option("--levels", levels, "benchmark: weights:flops of each level as fractions, sparsest first")
      ->capture_default_str()
      ->needs(flag);
  app.add_flag("--uniform", timing.uniform, "benchmark: uniform density at the weight budgets, whatever the FLOPs")
      ->needs(flag);
  app.add_flag("--choose-paths", timing.choose_paths,
               "benchmark: let dense copies of nearly dense layers be tried, and tell what was chosen")
      ->needs(flag);
  app.add_option("--report", timing.report, "benchmark: file for the table as JSON")->needs(flag);
  app.add_option("--save-masked", timing.save_masked,
                 "benchmark: directory for the same weights: PyTorch state_dicts with zeros (dense.safetensors, "
                 "level0.safetensors, ...), the model files model.safetensors and dense_model.safetensors, and "
                 "reference.safetensors with an input and all logits")
      ->needs(flag);
  CLI11_PARSE(app, argc, argv);
  try {
    if (benchmark) {
      if (!pictures.model.empty())
        strata::raise(strata::Error("--benchmark", "no model file", "\"" + pictures.model + "\""));
      timing.threads = threads;
      timing.budgets = examples::parse_levels(levels);
      resnet::run_benchmark(timing);
    } else {
      if (pictures.pictures.empty())
        strata::raise(strata::Error("arguments", "a model file and pictures, or --benchmark (--help tells more)",
                                    pictures.model.empty() ? "none" : "a model file only"));
      pictures.threads = threads;
      resnet::classify(pictures);
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "resnet50: %s\n", error.what());
    return 1;
  }
  return 0;
}
