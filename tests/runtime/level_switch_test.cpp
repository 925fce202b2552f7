// Switching the level of a model: free of allocation, the same weights in the same place, the same results as a session
// that never switched, and sessions at different levels side by side.
#include <algorithm>
#include <atomic>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include <strata/runtime/session.hpp>

#include "support/allocations.hpp"
#include "support/catch.hpp"
#include "support/small_net.hpp"

namespace {

using strata::index_t;
using strata::Level;
using test::SmallModel;
using Session = strata::Session<SmallModel>;

constexpr int levels = 3;

/// The small network with random weights at three levels and a norm of its own for each.
strata::Archive three_levels() {
  std::mt19937 random(8);
  std::uniform_real_distribution<float> uniform(-1, 1);
  strata::Archive archive;
  archive.set_levels(levels);
  archive.metadata()["architecture"] = "small";
  archive.metadata()["config.width"] = "20";
  strata::ParameterSink sink(archive);
  const auto matrix = [&]<class Index>(Index, index_t rows, index_t columns, index_t block) {
    std::vector<float> weights(static_cast<std::size_t>(rows * columns));
    std::vector<std::uint8_t> strata(weights.size());
    for (std::size_t i = 0; i < weights.size(); ++i) {
      weights[i] = uniform(random);
      strata[i] = i % 5 < 3 ? static_cast<std::uint8_t>(i % 5) : strata::StratumMap::absent;
    }
    return strata::LeveledCsr<float, Index>::from_dense(
        weights, strata::StratumMap::from_strata(rows, columns, levels, strata).value(), block);
  };
  sink.leveled_csr("conv.weight", matrix(strata::ConvIndex{}, 20, 9, strata::conv_block_columns(9, 1)));
  sink.leveled_csr("fc.weight", matrix(strata::LinearIndex{}, 5, 20, strata::linear_block_columns(20)));
  const auto numbers = [&](std::size_t count) {
    std::vector<float> result(count);
    for (float& number : result) number = uniform(random);
    return result;
  };
  for (int level = 0; level < levels; ++level) {
    sink.per_level<float>("bn.scale", level, numbers(20));
    sink.per_level<float>("bn.bias", level, numbers(20));
  }
  sink.array<float>("fc.bias", {5}, 0, numbers(5));
  return archive;
}

std::vector<float> pictures(index_t batch) {
  std::vector<float> input(static_cast<std::size_t>(batch * 81));
  for (std::size_t i = 0; i < input.size(); ++i) input[i] = static_cast<float>(i % 17) / 17.0F;
  return input;
}

/// The output of a session that runs nothing else.
std::vector<float> fresh(const SmallModel& model, const std::vector<float>& input, index_t batch, Level level) {
  Session session(model, {.threads = 1, .batch = batch});
  const auto output = session.run(input, level);
  return {output.begin(), output.end()};
}

}  // namespace

TEST_CASE("levels that alternate on one session allocate nothing and keep both buffers") {
  const auto model = SmallModel::from_archive(three_levels()).value();
  for (const int threads : {1, 2})
    for (const index_t batch : {1, 3, 7}) {
      INFO("threads " << threads << " batch " << batch);
      Session session(model, {.threads = threads, .batch = batch});
      const std::vector<float> input = pictures(batch);
      std::copy(input.begin(), input.end(), session.input().begin());
      const float* const in = session.input().data();
      const float* const out = session.output().data();
      bool same_buffers = true;
      const long before = allocations();
      for (int i = 0; i < 60; ++i) {
        const auto ran = session.run(input, Level{i % levels});
        const auto forwarded = session.forward(Level{(i * 7 + 1) % levels});
        same_buffers = same_buffers && ran.data() == out && forwarded.data() == out && session.output().data() == out &&
                       session.input().data() == in;
      }
      CHECK(allocations() == before);
      CHECK(same_buffers);
      CHECK(std::equal(input.begin(), input.end(), session.input().begin()));
    }
}

TEST_CASE("a session gives the results of a fresh one whatever levels it ran before") {
  const auto model = SmallModel::from_archive(three_levels()).value();
  for (const int threads : {1, 2})
    for (const index_t batch : {1, 3}) {
      const std::vector<float> input = pictures(batch);
      std::vector<std::vector<float>> expected;
      for (int level = 0; level < levels; ++level) expected.push_back(fresh(model, input, batch, Level{level}));
      CHECK(expected[0] != expected[1]);
      CHECK(expected[1] != expected[2]);
      Session session(model, {.threads = threads, .batch = batch});
      std::mt19937 random(3);
      for (int i = 0; i < 60; ++i) {
        const int level = static_cast<int>(random() % static_cast<unsigned>(levels));
        const auto output = session.run(input, Level{level});
        INFO("threads " << threads << " batch " << batch << " run " << i << " level " << level);
        REQUIRE(std::vector<float>(output.begin(), output.end()) == expected[static_cast<std::size_t>(level)]);
      }
    }
}

TEST_CASE("every level starts with the very weights of level 0") {
  const strata::Archive archive = three_levels();
  const auto model = SmallModel::from_archive(archive).value();
  Session session(model);
  Session other(model, {.threads = 2, .batch = 3});
  // Sessions do not copy the network.
  REQUIRE(&session.model().network() == &model.network());
  REQUIRE(&other.model().network() == &model.network());
  const auto check = [&](const auto& weights, const std::string& name) {
    REQUIRE(weights.is_sparse());
    const auto& matrix = weights.sparse();
    const auto* const values = matrix.stratum(0).values.data();
    const auto* const indices = matrix.stratum(0).indices.data();
    // Views of the archive, not copies.
    CHECK(values == archive.find(name + ".values.0")->template as<float>().data());
    index_t nnz = 0;
    for (int level = 0; level < levels; ++level) {
      INFO(name << " level " << level);
      (void)session.run(pictures(1), Level{level});
      (void)other.run(pictures(3), Level{levels - 1 - level});
      const auto cursors = strata::kernels::cursors_at(matrix, Level{level}, 0, 0);  // what the kernels read
      CHECK(cursors[0].values == values);
      CHECK(cursors[0].indices == indices);
      for (int s = 0; s <= level; ++s)
        CHECK(cursors[static_cast<std::size_t>(s)].values ==
              archive.find(name + ".values." + std::to_string(s))->template as<float>().data());
      CHECK(matrix.truncated(Level{level}).stratum(0).values.data() == values);
      nnz += static_cast<index_t>(matrix.stratum(level).values.size());
      CHECK(weights.nnz(Level{level}) == nnz);
      if (level > 0) CHECK(weights.bytes(Level{level}) > weights.bytes(Level{level - 1}));
    }
  };
  check(model.network().conv.weights(), "conv.weight");
  check(model.network().fc.weights(), "fc.weight");
}

TEST_CASE("sessions at different levels on threads of their own give the serial results") {
  const auto model = SmallModel::from_archive(three_levels()).value();
  for (const index_t batch : {1, 3}) {
    INFO("batch " << batch);
    const std::vector<float> input = pictures(batch);
    std::vector<std::vector<float>> expected;
    for (int level = 0; level < levels; ++level) expected.push_back(fresh(model, input, batch, Level{level}));
    std::atomic<int> wrong{0};
    std::atomic<int> ready{0};
    std::vector<std::thread> hosts;
    for (int host = 0; host < 2; ++host)
      hosts.emplace_back([&, host] {
        Session session(model, {.threads = 1 + host, .batch = batch});
        ++ready;
        while (ready < 2) std::this_thread::yield();  // both at once
        for (int i = 0; i < 300; ++i) {
          // First each at a level of its own, then changing, never both at the same one.
          const int level = i < 100 ? host : (i + host) % levels;
          const auto output = session.run(input, Level{level});
          const auto& right = expected[static_cast<std::size_t>(level)];
          if (!std::equal(output.begin(), output.end(), right.begin(), right.end())) ++wrong;
        }
      });
    for (std::thread& host : hosts) host.join();
    CHECK(wrong == 0);
  }
}

TEST_CASE("a model outlives its archive and the sessions that ran it") {
  auto archive = std::make_unique<strata::Archive>(three_levels());
  auto model = std::make_unique<SmallModel>(SmallModel::from_archive(*archive).value());
  archive.reset();
  const std::vector<float> input = pictures(1);
  const auto expected = fresh(*model, input, 1, Level{2});
  const SmallModel copy = *model;
  model.reset();
  CHECK(fresh(copy, input, 1, Level{2}) == expected);
}

TEST_CASE("a level that changes at a stage holds for the layers after it") {
  using Context = SmallModel::Family::Context;
  const auto model = SmallModel::from_archive(three_levels()).value();
  const auto& network = model.network();
  strata::SerialExecutor executor;
  Context context(executor);
  const std::vector<float> input = pictures(3);
  const auto rows = [](const auto& tensor) {
    std::vector<float> result(static_cast<std::size_t>(tensor.batch() * tensor.shape().size()));
    strata::write_rows(tensor, result.data());
    return result;
  };
  const auto read = [&] {
    auto x = context.make(3, network.input_shape());
    strata::read_rows(input.data(), x);
    return x;
  };
  Level drop{0};
  for (const int from : {0, 1, 2})
    for (const int to : {0, 1, 2}) {
      INFO("from level " << from << " to level " << to);
      drop = Level{to};
      context.set_level(Level{from});
      context.set_stage_hook(
          [](void* object, std::string_view stage, Level level) noexcept {
            return stage == "head" ? *static_cast<Level*>(object) : level;
          },
          &drop);
      const auto found = rows(network(context, read()));
      CHECK(context.level() == Level{to});
      context.set_stage_hook(nullptr, nullptr);
      context.set_level(Level{from});
      const auto features = network.average(context, network.pool(context, network.conv(context, read())));
      context.set_level(Level{to});
      CHECK(rows(network.fc(context, network.flatten(context, features))) == found);
    }
}
