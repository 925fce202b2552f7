// The kernels of point sets beside their scalar twins, at the sizes of PointNet++'s two set abstractions.
#include <cmath>
#include <random>
#include <vector>

#include <benchmark/benchmark.h>

#include <strata/kernels/point_set.hpp>

namespace {

using strata::index_t;
using strata::kernels::PointIndex;
using strata::kernels::PointView;
using Arch = xsimd::default_arch;

/// Points on the unit sphere and everything the kernels need.
struct Setup {
  explicit Setup(const benchmark::State& state)
      : count(state.range(0)), centroids(state.range(1)), samples(state.range(2)), channels(state.range(3)) {
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    const index_t pitch = strata::round_up(count, 64);
    cloud.resize(static_cast<std::size_t>(3 * pitch + 64));
    for (index_t i = 0; i < count; ++i) {
      float numbers[3];
      float square = 0;
      for (float& x : numbers) {
        x = normal(random);
        square += x * x;
      }
      for (index_t d = 0; d < 3; ++d) cloud[static_cast<std::size_t>(d * pitch + i)] = numbers[d] / std::sqrt(square);
    }
    points = {cloud.data(), pitch, count};
    centres = {cloud.data(), pitch, centroids};
    distances.resize(static_cast<std::size_t>(pitch));
    found.resize(static_cast<std::size_t>(strata::kernels::ball_query_scratch<Arch, float>(samples)));
    indices.resize(static_cast<std::size_t>(centroids * samples));
    by_point.resize(static_cast<std::size_t>(count * strata::kernels::point_pitch(channels)));
    groups.resize(static_cast<std::size_t>(16 * samples * channels));
  }

  index_t count, centroids, samples, channels;
  std::vector<float> cloud, distances, by_point, groups;
  std::vector<PointIndex> found, indices;
  PointView<float> points, centres;
};

void farthest_point_sampling(benchmark::State& state) {
  Setup s(state);
  for (auto _ : state) {
    strata::kernels::farthest_point_sampling<Arch>(3, s.points, s.centroids, s.distances.data(), s.indices.data());
    benchmark::ClobberMemory();
  }
}

void farthest_point_sampling_reference(benchmark::State& state) {
  Setup s(state);
  for (auto _ : state) {
    strata::kernels::farthest_point_sampling_reference(3, s.points, s.centroids, s.distances.data(), s.indices.data());
    benchmark::ClobberMemory();
  }
}

constexpr float radius = 0.3F;

void ball_query(benchmark::State& state) {
  Setup s(state);
  for (auto _ : state) {
    strata::kernels::ball_query<Arch>(3, s.points, s.centres, 0, s.centroids, radius, s.samples, s.found.data(),
                                      s.indices.data(), s.centroids);
    benchmark::ClobberMemory();
  }
}

void ball_query_reference(benchmark::State& state) {
  Setup s(state);
  for (auto _ : state) {
    strata::kernels::ball_query_reference(3, s.points, s.centres, 0, s.centroids, radius, s.samples, s.indices.data(),
                                          s.centroids);
    benchmark::ClobberMemory();
  }
}

/// All groups, 16 centroids at a time as the layer does.
template <class Group>
void all_groups(benchmark::State& state, Group&& group) {
  Setup s(state);
  strata::kernels::ball_query<Arch>(3, s.points, s.centres, 0, s.centroids, radius, s.samples, s.found.data(),
                                    s.indices.data(), s.centroids);
  const index_t pitch = 16 * s.samples;
  for (auto _ : state) {
    for (index_t first = 0; first < s.centroids; first += 16)
      for (index_t sample = 0; sample < s.samples; ++sample)
        group(s.by_point.data(), s.channels, s.indices.data() + sample * s.centroids + first, index_t{16},
              s.groups.data() + sample * 16, pitch);
    benchmark::ClobberMemory();
  }
}

void group_points(benchmark::State& state) {
  all_groups(state, [](auto... arguments) { strata::kernels::group_points(arguments...); });
}

void group_points_reference(benchmark::State& state) {
  all_groups(state, [](auto... arguments) { strata::kernels::group_points_reference(arguments...); });
}

/// Points, centroids, samples, channels of the groups.
void abstractions(benchmark::internal::Benchmark* benchmark) {
  benchmark->ArgNames({"points", "centroids", "samples", "channels"})
      ->Args({1024, 512, 32, 3})
      ->Args({512, 128, 64, 131})
      ->Unit(benchmark::kMicrosecond);
}

BENCHMARK(farthest_point_sampling)->Apply(abstractions);
BENCHMARK(farthest_point_sampling_reference)->Apply(abstractions);
BENCHMARK(ball_query)->Apply(abstractions);
BENCHMARK(ball_query_reference)->Apply(abstractions);
BENCHMARK(group_points)->Apply(abstractions);
BENCHMARK(group_points_reference)->Apply(abstractions);

}  // namespace

BENCHMARK_MAIN();
