// Latency of a ResNet with random weights: dense and every level in turns within one run, since machines drift.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include <strata/strata.hpp>
#include <strata/train/allocation.hpp>
#include <strata/train/prune.hpp>
#include <strata/train/state_dict.hpp>

#include "../support/table.hpp"
#include "network.hpp"
#include "random_model.hpp"

namespace resnet {

struct BenchmarkOptions {
  std::vector<std::string> levels;  ///< "dense" or a number; empty: all
  index_t size = 224;               ///< of the square picture
  index_t batch = 1;
  int threads = 1;
  std::uint64_t seed = 1;
  double seconds = 10;  ///< for all models together
  std::vector<strata::LevelBudget> budgets;
  bool uniform = false;       ///< uniform masks at the weight budgets, whatever the FLOPs
  bool choose_paths = false;  ///< sparse or dense, by measurement
  std::string report;         ///< JSON file; empty: none
  std::string save_masked;    ///< directory for the weights that were run; empty: none
};

namespace detail {

struct Contender {
  std::string name;  ///< "dense" or "0", "1", ...
  strata::Session<strata::Model<ResNet>>* session = nullptr;
  strata::Level level;
  strata::LevelCount count;
  std::vector<double> seconds;  ///< of each run
};

/// What peers need to compute the same: a state_dict with zeros per model, and the model files.
inline void save_masked(const BenchmarkOptions& options, TrainingNet& dense, TrainingNet& nested,
                        const strata::Archive& archive) {
  namespace train = strata::train;
  std::filesystem::create_directories(options.save_masked);
  const std::string directory = options.save_masked + "/";
  (void)train::write_state_dict(train::to_state_dict(dense, strata::Level{0}), directory + "dense.safetensors").value();
  for (int level = 0; level < archive.levels(); ++level)
    (void)train::write_state_dict(train::to_state_dict(nested, strata::Level{level}),
                                  directory + "level" + std::to_string(level) + ".safetensors")
        .value();
  (void)strata::io::write_model(archive, directory + "model.safetensors").value();
  (void)strata::io::write_model(strata::to_archive(dense, 1), directory + "dense_model.safetensors").value();
}

/// The input and every model's logits, by which a peer can tell that it computes the same.
inline void save_reference(const BenchmarkOptions& options, const std::vector<Contender>& contenders) {
  strata::Archive archive;
  for (const Contender& contender : contenders) {
    const auto input = contender.session->input();
    archive.add<float>("input", {options.batch, 3, options.size, options.size}, 0, input);  // the same for all
    const auto logits = contender.session->forward(contender.level);
    archive.add<float>("logits." + contender.name, {options.batch, static_cast<index_t>(logits.size()) / options.batch},
                       0, logits);
  }
  (void)strata::train::write_state_dict(archive, options.save_masked + "/reference.safetensors").value();
}

/// Prints what was measured.
inline void choose_paths(strata::Session<strata::Model<ResNet>>& session) {
  examples::Table table({"layer", "level", "density", "sparse us", "dense us", "path"});
  for (const strata::LayerPath& path : session.choose_paths())
    table.add({path.layer, std::to_string(path.level.index), examples::percent(path.density, 1),
               examples::fixed(path.sparse_seconds * 1e6, 1), examples::fixed(path.dense_seconds * 1e6, 1),
               path.dense ? "dense" : "sparse"});
  std::printf("%s\n", table.text().c_str());
}

}  // namespace detail

/// Builds the models, times them, prints a table and writes what `options` ask for. Raises: options out of range, files
/// that cannot be written.
inline void run_benchmark(const BenchmarkOptions& options) {
  using Clock = std::chrono::steady_clock;
  using Model = strata::Model<ResNet>;
  namespace train = strata::train;
  const auto levels = static_cast<int>(options.budgets.size());

  TrainingNet dense_network(resnet50(options.size));
  randomise(dense_network, options.seed);
  strata::train::count_uses(dense_network);
  TrainingNet network = dense_network;
  mask_randomly(network, options.budgets, !options.uniform);
  const auto counts = train::count_layers<float>(network, levels);
  const strata::Archive archive = strata::to_archive(network, levels);
  const Model nested = Model::from_archive(archive).value();
  const Model dense = Model::from_archive(strata::to_archive(dense_network, 1)).value();
  if (!options.save_masked.empty()) detail::save_masked(options, dense_network, network, archive);

  strata::ThreadPool pool(options.threads);
  const strata::SessionOptions session_options{.batch = options.batch, .executor = &pool};
  strata::Session<Model> dense_session(dense, session_options);
  strata::Session<Model> nested_session(nested, session_options);
  if (options.choose_paths) detail::choose_paths(nested_session);
  std::mt19937_64 random(options.seed);
  std::normal_distribution<float> normal;
  for (float& value : dense_session.input()) value = normal(random);
  std::ranges::copy(dense_session.input(), nested_session.input().begin());

  std::vector<detail::Contender> contenders;
  const auto wanted = [&](const std::string& name) {
    return options.levels.empty() || std::ranges::find(options.levels, name) != options.levels.end();
  };
  for (const std::string& name : options.levels) {
    bool known = name == "dense";
    for (int level = 0; level < levels; ++level) known = known || name == std::to_string(level);
    if (!known) strata::raise(strata::Error("--level", "dense or 0 to " + std::to_string(levels - 1), name));
  }
  if (wanted("dense")) {
    const auto all = strata::count_level(train::count_layers<float>(dense_network, 1), strata::Level{0});
    contenders.push_back({"dense", &dense_session, strata::Level{0}, all, {}});
  }
  for (int level = levels - 1; level >= 0; --level)
    if (wanted(std::to_string(level)))
      contenders.push_back({std::to_string(level),
                            &nested_session,
                            strata::Level{level},
                            strata::count_level(counts, strata::Level{level}),
                            {}});

  if (!options.save_masked.empty()) detail::save_reference(options, contenders);

  constexpr std::size_t least_rounds = 5;
  const auto start = Clock::now();
  const auto since = [](Clock::time_point then) { return std::chrono::duration<double>(Clock::now() - then).count(); };
  for (std::size_t round = 0; round < least_rounds || since(start) < options.seconds; ++round)
    for (auto& contender : contenders) {
      const auto before = Clock::now();
      contender.session->forward(contender.level);
      contender.seconds.push_back(since(before));
    }

  examples::Table table(
      {"model", "weights", "FLOPs", "MiB", "bytes a weight", "median ms", "least ms", "GFLOP/s", "speed-up"});
  nlohmann::json rows = nlohmann::json::array();
  double dense_seconds = 0;
  for (auto& contender : contenders) {
    std::ranges::sort(contender.seconds);
    const double pictures = static_cast<double>(options.batch);
    const double median = contender.seconds[contender.seconds.size() / 2] / pictures;
    const double least = contender.seconds.front() / pictures;
    const bool is_dense = contender.name == "dense";
    if (is_dense) dense_seconds = median;
    const double gflops = static_cast<double>(contender.count.flops) / median / 1e9;
    const auto bytes = static_cast<double>((is_dense ? dense : nested).bytes(contender.level));
    table.add({is_dense ? "dense" : "level " + contender.name, examples::percent(contender.count.weight_share(), 2),
               examples::percent(contender.count.flop_share(), 2), examples::fixed(bytes / 1048576, 1),
               examples::fixed(bytes / static_cast<double>((is_dense ? dense : nested).nnz(contender.level)), 2),
               examples::fixed(median * 1e3, 2), examples::fixed(least * 1e3, 2), examples::fixed(gflops, 1),
               dense_seconds > 0 ? examples::fixed(dense_seconds / median, 2) + "x" : ""});
    nlohmann::json row = {{"engine", "strata"},
                          {"precision", "fp32"},
                          {"level", contender.name},
                          {"cores", options.threads},
                          {"batch", options.batch},
                          {"median_ms", median * 1e3},
                          {"min_ms", least * 1e3},
                          {"gflops", gflops},
                          {"bytes", bytes},
                          {"weights", contender.count.weight_share()},
                          {"flops", contender.count.flop_share()}};
    if (!is_dense) row["level"] = contender.level.index;
    rows.push_back(std::move(row));
  }
  std::printf("ResNet-50, %td x %td, batch %td, %d threads; milliseconds a picture, median and least of %zu runs\n%s",
              options.size, options.size, options.batch, options.threads, contenders.front().seconds.size(),
              table.text().c_str());
  if (!options.report.empty()) {
    const std::string text = rows.dump(2) + "\n";
    (void)strata::io::write_atomically(options.report, {std::as_bytes(std::span(text))}).value();
  }
}

}  // namespace resnet
