// What is counted of a stored model, level by level.
#include "support/parameters.hpp"

#include <cstdint>
#include <vector>

#include "support/catch.hpp"
#include "support/small_net.hpp"

using strata::index_t;
using strata::Level;

TEST_CASE("the numbers of a stored model are counted by kind and level") {
  strata::Archive archive = test::small_archive();
  const std::vector<float> words(7 * 3, 0.5F);
  const std::vector<float> gain(4, 1.0F);
  REQUIRE(archive.add<float>("decoder.embedder.weight", {7, 3}, 0, words));
  REQUIRE(archive.add<float>("attention.gain", {4}, 0, gain));
  REQUIRE(archive.add<float>("bn.transition.1.0.scale", {4}, 1, gain));
  REQUIRE(archive.add<float>("self_check.input", {7, 3}, 0, words));
  const auto counts = examples::stored_parameters(archive);
  const auto model = test::SmallModel::from_archive(test::small_archive()).value();
  REQUIRE(counts.levels.size() == 2);
  CHECK(counts.dense.weights == 8 * 9 + 5 * 8);
  for (const int level : {0, 1})
    CHECK(counts.levels[static_cast<std::size_t>(level)].weights == model.nnz(Level{level}));
  for (const auto& count : {counts.dense, counts.levels[0], counts.levels[1]}) {
    CHECK(count.embeddings == 21);
    CHECK(count.norms == 2 * 8);
    CHECK(count.others == 5 + 4);
    CHECK(count.total() == count.weights + 21 + 16 + 9);
  }
}
