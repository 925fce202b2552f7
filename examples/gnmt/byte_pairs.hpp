// Byte-pair encoding (Sennrich et al., arXiv 1508.07909) over characters: which neighbours to merge is learnt from
// counted words, and words are cut into pieces by the merges that were learnt. Symbols are numbers here; what they
// spell is the vocabulary's business.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <queue>
#include <span>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

namespace gnmt {

using Symbol = std::int32_t;

/// A word as symbols and how often it occurs.
struct CountedWord {
  std::vector<Symbol> symbols;
  std::int64_t count = 0;
};

struct Merge {
  Symbol left = 0;
  Symbol right = 0;
  Symbol result = 0;
  friend bool operator==(const Merge&, const Merge&) = default;
};

namespace detail {

[[nodiscard]] constexpr std::uint64_t pair_key(Symbol left, Symbol right) noexcept {
  return static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32U | static_cast<std::uint32_t>(right);
}

/// Replaces `left right` by `result` from left to right.
inline void replace_pair(std::vector<Symbol>& symbols, const Merge& merge) {
  std::size_t kept = 0;
  for (std::size_t i = 0; i < symbols.size(); ++kept) {
    const bool here = i + 1 < symbols.size() && symbols[i] == merge.left && symbols[i + 1] == merge.right;
    symbols[kept] = here ? merge.result : symbols[i];
    i += here ? 2 : 1;
  }
  symbols.resize(kept);
}

}  // namespace detail

/// Learns up to `most` merges, each that of the most frequent pair of neighbours; of equally frequent ones the pair of
/// lowest numbers. Ends early when no pair occurs `least_count` times. `result_of(left, right)` names the symbol a
/// merge makes. `words` are left as the merges cut them.
template <class ResultOf>
[[nodiscard]] std::vector<Merge> learn_merges(std::vector<CountedWord>& words, std::size_t most,
                                              std::int64_t least_count, ResultOf&& result_of) {
  struct Pair {
    std::int64_t count = 0;
    std::vector<std::uint32_t> words;  ///< those that held it at some time, perhaps more than once
  };
  std::unordered_map<std::uint64_t, Pair> pairs;
  for (std::size_t w = 0; w < words.size(); ++w)
    for (std::size_t i = 1; i < words[w].symbols.size(); ++i) {
      Pair& pair = pairs[detail::pair_key(words[w].symbols[i - 1], words[w].symbols[i])];
      pair.count += words[w].count;
      if (pair.words.empty() || pair.words.back() != w) pair.words.push_back(static_cast<std::uint32_t>(w));
    }
  // Highest count first, then lowest key. Entries are not removed when counts fall but looked at again when they come.
  using Entry = std::pair<std::int64_t, std::uint64_t>;
  const auto later = [](const Entry& a, const Entry& b) {
    return a.first != b.first ? a.first < b.first : a.second > b.second;
  };
  std::priority_queue<Entry, std::vector<Entry>, decltype(later)> queue(later);
  for (const auto& [key, pair] : pairs) queue.emplace(pair.count, key);
  std::vector<Merge> merges;
  std::vector<std::uint64_t> touched;
  while (merges.size() < most && !queue.empty()) {
    const auto [count, key] = queue.top();
    queue.pop();
    const std::int64_t now = pairs[key].count;
    if (now < least_count) continue;
    if (now != count) {
      queue.emplace(now, key);
      continue;
    }
    Merge merge{static_cast<Symbol>(key >> 32U), static_cast<Symbol>(key & 0xFFFFFFFFU), 0};
    merge.result = result_of(merge.left, merge.right);
    merges.push_back(merge);
    const std::vector<std::uint32_t> holders = std::move(pairs[key].words);
    pairs[key].words.clear();
    touched.clear();
    for (const std::uint32_t w : holders) {
      std::vector<Symbol>& symbols = words[w].symbols;
      const std::size_t before = symbols.size();
      const auto add = [&](std::int64_t change, bool note) {
        for (std::size_t i = 1; i < symbols.size(); ++i) {
          const std::uint64_t other = detail::pair_key(symbols[i - 1], symbols[i]);
          Pair& pair = pairs[other];
          pair.count += change;
          if (!note || (symbols[i - 1] != merge.result && symbols[i] != merge.result)) continue;
          pair.words.push_back(w);
          touched.push_back(other);
        }
      };
      add(-words[w].count, false);
      detail::replace_pair(symbols, merge);
      add(words[w].count, symbols.size() != before);
    }
    std::sort(touched.begin(), touched.end());
    touched.erase(std::unique(touched.begin(), touched.end()), touched.end());
    for (const std::uint64_t other : touched) queue.emplace(pairs[other].count, other);
  }
  return merges;
}

/// Cuts words by merges: always the pair that was learnt first, of its places the leftmost.
class Merger {
 public:
  Merger() = default;
  explicit Merger(std::span<const Merge> merges) {
    ranks_.reserve(merges.size());
    for (std::size_t rank = 0; rank < merges.size(); ++rank)
      ranks_.emplace(detail::pair_key(merges[rank].left, merges[rank].right), std::pair(rank, merges[rank].result));
  }

  /// Merges neighbours in `symbols` until no learnt pair is left. Time: n log n for n symbols.
  void apply(std::vector<Symbol>& symbols) const {
    if (symbols.size() < 2) return;
    constexpr std::size_t none = static_cast<std::size_t>(-1);
    struct Link {
      std::size_t before, after;
    };
    struct Candidate {
      std::size_t rank, at;
      Symbol left, right;
      bool operator>(const Candidate& other) const { return std::tie(rank, at) > std::tie(other.rank, other.at); }
    };
    std::vector<Link> links(symbols.size());
    std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue;
    const auto consider = [&](std::size_t at) {
      const std::size_t next = at == none ? none : links[at].after;
      if (next == none) return;
      const auto found = ranks_.find(detail::pair_key(symbols[at], symbols[next]));
      if (found != ranks_.end()) queue.push({found->second.first, at, symbols[at], symbols[next]});
    };
    for (std::size_t i = 0; i < symbols.size(); ++i)
      links[i] = {i == 0 ? none : i - 1, i + 1 < symbols.size() ? i + 1 : none};
    for (std::size_t i = 0; i < symbols.size(); ++i) consider(i);
    while (!queue.empty()) {
      const Candidate best = queue.top();
      queue.pop();
      const std::size_t next = links[best.at].after;
      // What was merged away since has the symbol `gone`, so that it fits no candidate.
      if (next == none || symbols[best.at] != best.left || symbols[next] != best.right) continue;
      symbols[best.at] = ranks_.find(detail::pair_key(best.left, best.right))->second.second;
      symbols[next] = gone;
      links[best.at].after = links[next].after;
      if (links[next].after != none) links[links[next].after].before = best.at;
      consider(links[best.at].before);
      consider(best.at);
    }
    std::erase(symbols, gone);
  }

 private:
  static constexpr Symbol gone = -1;
  std::unordered_map<std::uint64_t, std::pair<std::size_t, Symbol>> ranks_;
};

}  // namespace gnmt
