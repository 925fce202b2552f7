// Reads a labelled graph from a directory of four text files, the format of examples/gat/data. Whatever is wrong with
// them is an error that names file and line.
#pragma once

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <strata/core/error.hpp>
#include <strata/io/mapped_file.hpp>
#include <strata/sparse/graph.hpp>
#include <strata/train/node_classification.hpp>

namespace gat {

namespace detail {

/// Most features, so that a stray number cannot ask for all memory.
constexpr std::int64_t most_features = 10'000'000;

/// A text file with the place of the line that is being read, for messages.
class Lines {
 public:
  /// Error: the file cannot be read (names it).
  [[nodiscard]] static strata::Result<Lines> open(const std::string& path) {
    // Read, not mapped: a disk that fails is an error then, not a signal.
    auto file = strata::io::MappedFile::open(path, false);
    if (!file) return file.error();
    return Lines(path, std::move(file).value());
  }

  /// The next line without its end ("\n" or "\r\n"); false at the end of the file.
  [[nodiscard]] bool next(std::string_view& line) {
    if (at_ >= text_.size()) return false;
    const std::size_t end = std::min(text_.find('\n', at_), text_.size());
    line = text_.substr(at_, end - at_);
    if (line.ends_with('\r')) line.remove_suffix(1);
    at_ = end + 1;
    ++number_;
    return true;
  }

  [[nodiscard]] std::size_t number() const noexcept { return number_; }
  [[nodiscard]] std::string place() const { return path_ + ":" + std::to_string(number_); }
  [[nodiscard]] strata::Error error(std::string expected, std::string_view found) const {
    std::string shown(found.substr(0, 40));
    for (char& c : shown)
      if (static_cast<unsigned char>(c) < 32 || static_cast<unsigned char>(c) > 126) c = '?';
    return {place(), std::move(expected), "\"" + shown + (found.size() > 40 ? "..." : "") + "\""};
  }

 private:
  Lines(std::string path, std::shared_ptr<const strata::io::MappedFile> file)
      : path_(std::move(path)),
        file_(std::move(file)),
        text_(reinterpret_cast<const char*>(file_->bytes().data()), file_->bytes().size()) {}

  std::string path_;
  std::shared_ptr<const strata::io::MappedFile> file_;
  std::string_view text_;  ///< of the file
  std::size_t at_ = 0;
  std::size_t number_ = 0;
};

/// Takes the next word of `line`, parted by spaces and tabs; empty at its end.
[[nodiscard]] inline std::string_view take_word(std::string_view& line) {
  const std::size_t first = std::min(line.find_first_not_of(" \t"), line.size());
  line.remove_prefix(first);
  const std::size_t end = std::min(line.find_first_of(" \t"), line.size());
  const std::string_view word = line.substr(0, end);
  line.remove_prefix(end);
  return word;
}

/// A whole number from 0 to `most`. Error: anything else (names the line).
[[nodiscard]] inline strata::Result<std::int64_t> number_of(std::string_view word, std::int64_t most, const char* what,
                                                            const Lines& lines) {
  std::int64_t value = -1;
  const auto [end, code] = std::from_chars(word.data(), word.data() + word.size(), value);
  if (word.empty() || code != std::errc() || end != word.data() + word.size() || value < 0 || value > most)
    return lines.error(std::string(what) + " from 0 to " + std::to_string(most), word);
  return value;
}

}  // namespace detail

/// The graph in `directory`:
///   labels.txt    a line for each node: its class, 0 .. 255
///   features.txt  a line for each node: the indices of the features that are 1, possibly none
///   edges.txt     a line for each undirected edge: two nodes; an edge stands there once
///   split.txt     lines "train", "val" and "test" with the nodes of each part
/// Every node gets a self-loop, features are divided by their number in the row. Errors: a file missing or malformed
/// (names file and line), files that do not fit together.
[[nodiscard]] inline strata::Result<strata::train::LabelledGraph> read_graph(const std::string& directory) {
  using detail::Lines;
  using strata::Error;
  using strata::GraphIndex;
  constexpr std::int64_t most_nodes = std::numeric_limits<GraphIndex>::max() / 4;
  strata::train::LabelledGraph data;
  std::string_view line;

  auto labels = Lines::open(directory + "/labels.txt");
  if (!labels) return labels.error();
  while (labels.value().next(line)) {
    const auto label = detail::number_of(detail::take_word(line), 255, "a class", labels.value());
    if (!label) return label.error();
    if (const auto rest = detail::take_word(line); !rest.empty())
      return labels.value().error("one class and the end of the line", rest);
    data.labels.push_back(static_cast<std::uint8_t>(label.value()));
    data.classes = std::max<strata::index_t>(data.classes, label.value() + 1);
    if (static_cast<std::int64_t>(data.labels.size()) > most_nodes)
      return labels.value().error("at most " + std::to_string(most_nodes) + " nodes", "more");
  }
  const auto nodes = static_cast<std::int64_t>(data.labels.size());
  if (nodes == 0) return Error(directory + "/labels.txt", "a line for each node", "no line");

  auto features = Lines::open(directory + "/features.txt");
  if (!features) return features.error();
  std::vector<GraphIndex> offsets = {0};
  std::vector<GraphIndex> indices;
  std::int64_t width = 0;
  while (features.value().next(line)) {
    if (static_cast<std::int64_t>(offsets.size()) > nodes)
      return features.value().error("no more lines than the " + std::to_string(nodes) + " of labels.txt", line);
    const auto first = static_cast<std::ptrdiff_t>(indices.size());
    for (auto word = detail::take_word(line); !word.empty(); word = detail::take_word(line)) {
      const auto index = detail::number_of(word, detail::most_features - 1, "a feature", features.value());
      if (!index) return index.error();
      indices.push_back(static_cast<GraphIndex>(index.value()));
      width = std::max(width, index.value() + 1);
    }
    std::sort(indices.begin() + first, indices.end());
    if (const auto again = std::adjacent_find(indices.begin() + first, indices.end()); again != indices.end())
      return features.value().error("each feature once", std::to_string(*again));
    offsets.push_back(static_cast<GraphIndex>(indices.size()));
  }
  if (static_cast<std::int64_t>(offsets.size()) - 1 != nodes)
    return Error(features.value().place(), "as many lines as the " + std::to_string(nodes) + " of labels.txt",
                 "the end of the file");
  if (width == 0) return Error(directory + "/features.txt", "at least one feature", "none");
  auto matrix = strata::SparseFeatures::try_from_csr(width, std::move(offsets), std::move(indices));
  if (!matrix) return matrix.error().within(directory + "/features.txt");
  data.input.features = matrix.value().row_normalised();

  auto edge_lines = Lines::open(directory + "/edges.txt");
  if (!edge_lines) return edge_lines.error();
  std::vector<strata::GraphEdge> edges;
  std::map<std::pair<std::int64_t, std::int64_t>, std::size_t> seen;
  while (edge_lines.value().next(line)) {
    std::int64_t ends[2] = {0, 0};
    for (std::int64_t& end : ends) {
      const auto node = detail::number_of(detail::take_word(line), nodes - 1, "two nodes", edge_lines.value());
      if (!node) return node.error();
      end = node.value();
    }
    if (const auto rest = detail::take_word(line); !rest.empty())
      return edge_lines.value().error("two nodes and the end of the line", rest);
    const auto [before, fresh] = seen.emplace(std::minmax(ends[0], ends[1]), edge_lines.value().number());
    if (!fresh)
      return Error(edge_lines.value().place(), "an edge that is not listed yet",
                   std::to_string(ends[0]) + " " + std::to_string(ends[1]) + ", which is line " +
                       std::to_string(before->second));
    edges.push_back({static_cast<GraphIndex>(ends[0]), static_cast<GraphIndex>(ends[1])});
  }
  auto graph = strata::Graph::try_from_edges(nodes, edges, {.undirected = true, .add_self_loops = true});
  if (!graph) return graph.error().within(directory + "/edges.txt");
  data.input.graph = std::move(graph).value();

  auto split = Lines::open(directory + "/split.txt");
  if (!split) return split.error();
  std::vector<std::size_t> part_of(static_cast<std::size_t>(nodes), 0);  // the line that names the node
  std::map<std::string_view, std::pair<std::vector<GraphIndex>*, std::size_t>> parts = {
      {"train", {&data.train, 0}}, {"val", {&data.val, 0}}, {"test", {&data.test, 0}}};
  while (split.value().next(line)) {
    const auto word = detail::take_word(line);
    const auto part = parts.find(word);
    if (part == parts.end()) return split.value().error("train, val or test", word);
    if (part->second.second != 0) return split.value().error("each part once", std::string(word) + " again");
    part->second.second = split.value().number();
    for (auto text = detail::take_word(line); !text.empty(); text = detail::take_word(line)) {
      const auto node = detail::number_of(text, nodes - 1, "a node", split.value());
      if (!node) return node.error();
      std::size_t& place = part_of[static_cast<std::size_t>(node.value())];
      if (place != 0)
        return Error(split.value().place(), "each node once",
                     "node " + std::to_string(node.value()) + ", which line " + std::to_string(place) + " has");
      place = split.value().number();
      part->second.first->push_back(static_cast<GraphIndex>(node.value()));
    }
  }
  for (const auto& [name, part] : parts)
    if (part.first->empty())
      return Error(directory + "/split.txt", "at least one node after \"" + std::string(name) + "\"", "none");
  if (strata::Status status = data.check(); !status) return status.error().within(directory);
  return data;
}

}  // namespace gat
