// The graph attention network on a whole graph, one thread: `gat_benchmark DIR inference [MODEL]` prints the median
// milliseconds of a run of each level, dense last; `gat_benchmark DIR training` the seconds of 200 epochs.
// benchmarks/peers/gat compares them with PyTorch.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <string>
#include <vector>

#include <strata/io/model_file.hpp>
#include <strata/runtime/graph_session.hpp>
#include <strata/train/fit.hpp>

#include "../examples/gat/graph_text.hpp"
#include "../examples/gat/network.hpp"

namespace {

using Clock = std::chrono::steady_clock;
using Model = strata::Model<gat::GraphAttentionNet>;
namespace train = strata::train;
using Net = gat::GraphAttentionNet<train::Training<float>>;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

Model random_dense(const train::LabelledGraph& data) {
  Net network({.features = data.input.features.features(), .classes = data.classes});
  train::initialise(network, 1);
  return Model::from_archive(strata::to_archive(network, 1)).value();
}

Model stored(const char* path) {
  return Model::from_archive(std::move(strata::io::read_model(path)).value()).value();
}

void inference(const train::LabelledGraph& data, const char* path) {
  strata::GraphSession<Model> dense(random_dense(data), data.input);
  strata::GraphSession<Model> nested(path == nullptr ? random_dense(data) : stored(path), data.input);
  const int levels = path == nullptr ? 0 : nested.model().levels();
  std::vector<std::vector<double>> times(static_cast<std::size_t>(levels) + 1);
  for (int i = 0; i < 300; ++i)
    for (int level = 0; level <= levels; ++level) {
      const auto start = Clock::now();
      if (level < levels) {
        nested.forward(strata::Level{level});
      } else {
        dense.forward(strata::Level{0});
      }
      times[static_cast<std::size_t>(level)].push_back(seconds_since(start));
    }
  for (auto& list : times) {
    std::sort(list.begin(), list.end());
    std::printf("%.4f ", 1000 * list[list.size() / 2]);
  }
  std::printf("\n");
}

void training(const train::LabelledGraph& data) {
  Net network({.features = data.input.features.features(), .classes = data.classes});
  train::initialise(network, 1);
  train::NodeClassification<float> task(data);
  train::Recipe recipe;
  recipe.batch = 1;
  recipe.dense_epochs = 20;  // of ten passes over the graph
  recipe.dense_rate = 0.005;
  recipe.warm_up_epochs = 0;
  recipe.adamw = recipe.coupled_decay = true;
  strata::SerialExecutor executor;
  train::Trainer<Net, train::NodeClassification<float>> trainer(network, task, recipe, executor);
  const auto start = Clock::now();
  while (!trainer.done()) trainer.step();
  std::printf("%.4f\n", seconds_since(start));
}

}  // namespace

int main(int argc, char** argv) {
  const std::string what = argc > 2 ? argv[2] : "";
  if (what != "inference" && what != "training") {
    std::fprintf(stderr, "usage: gat_benchmark DIR inference [MODEL] | gat_benchmark DIR training\n");
    return 2;
  }
  try {
    const auto data = std::move(gat::read_graph(argv[1])).value();
    if (what == "training") {
      training(data);
    } else {
      inference(data, argc > 3 ? argv[3] : nullptr);
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "gat_benchmark: %s\n", error.what());
    return 1;
  }
  return 0;
}
