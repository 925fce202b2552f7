// Pictures through a model file: the best classes at every level, and how long each took.
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <numeric>
#include <span>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include <strata/strata.hpp>

#include "../support/picture.hpp"
#include "../support/table.hpp"
#include "network.hpp"

namespace resnet {

struct ClassifyOptions {
  std::string model;
  std::vector<std::string> pictures;
  int threads = 1;
  int top = 5;
  int runs = 10;  ///< of each level; the table shows their median
};

/// The `top` largest of `logits` with their softmax, largest first; ties go to the smaller index.
[[nodiscard]] inline std::vector<std::pair<std::size_t, double>> best_classes(std::span<const float> logits,
                                                                              std::size_t top) {
  std::vector<std::size_t> order(logits.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  const std::size_t count = std::min(top, order.size());
  std::partial_sort(
      order.begin(), order.begin() + static_cast<std::ptrdiff_t>(count), order.end(),
      [&](std::size_t a, std::size_t b) { return logits[a] != logits[b] ? logits[a] > logits[b] : a < b; });
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - static_cast<double>(logits[order[0]]));
  std::vector<std::pair<std::size_t, double>> best;
  for (std::size_t i = 0; i < count; ++i)
    best.emplace_back(order[i],
                      std::exp(static_cast<double>(logits[order[i]]) - static_cast<double>(logits[order[0]])) / sum);
  return best;
}

/// Names of classes: the lines of a model file's metadata "labels", or numbers. Errors: another number of lines.
[[nodiscard]] inline strata::Result<std::vector<std::string>> class_names(const strata::Archive& archive,
                                                                          index_t classes) {
  std::vector<std::string> names;
  if (const auto found = archive.metadata().find("labels"); found != archive.metadata().end()) {
    std::istringstream lines(found->second);
    for (std::string line; std::getline(lines, line);) names.push_back(line);
    if (static_cast<index_t>(names.size()) != classes)
      return strata::Error("metadata labels", std::to_string(classes) + " lines", std::to_string(names.size()));
  } else {
    for (index_t c = 0; c < classes; ++c) names.push_back("class " + std::to_string(c));
  }
  return names;
}

/// Prints a table for every picture. Raises: a model or picture that cannot be read (names the file).
inline void classify(const ClassifyOptions& options) {
  using Clock = std::chrono::steady_clock;
  const strata::Archive archive = strata::io::read_model(options.model).value();
  auto model = strata::Model<ResNet>::from_archive(archive);
  if (!model) strata::raise(model.error().within(options.model));
  const strata::Shape shape = model.value().input_shape();
  if (shape.channels != 1 && shape.channels != 3)
    strata::raise(strata::Error(options.model, "pictures of 1 or 3 channels", std::to_string(shape.channels)));
  const auto preparation = examples::Preparation::from(archive.metadata(), shape.channels);
  if (!preparation) strata::raise(preparation.error().within(options.model));
  const auto names = class_names(archive, model.value().network().config().classes);
  if (!names) strata::raise(names.error().within(options.model));
  strata::Session session(model.value(), {.threads = options.threads});

  for (const std::string& path : options.pictures) {
    const examples::Picture picture = examples::read_picture(path, shape.channels).value();
    std::ranges::copy(preparation.value()(picture, shape), session.input().begin());
    std::printf("%s, %td x %td\n", path.c_str(), picture.shape.height, picture.shape.width);
    examples::Table table({"level", "class", "probability", "ms"});
    for (int level = model.value().levels() - 1; level >= 0; --level) {
      std::vector<double> times;
      for (int run = 0; run < options.runs; ++run) {
        const auto start = Clock::now();
        session.forward(strata::Level{level});
        times.push_back(std::chrono::duration<double, std::milli>(Clock::now() - start).count());
      }
      std::ranges::sort(times);
      bool first = true;
      for (const auto& [index, probability] : best_classes(session.output(), static_cast<std::size_t>(options.top))) {
        table.add({first ? std::to_string(level) : "", names.value()[index], examples::percent(probability, 2),
                   first ? examples::fixed(times[times.size() / 2], 2) : ""});
        first = false;
      }
    }
    std::printf("%s\n", table.text().c_str());
  }
}

}  // namespace resnet
