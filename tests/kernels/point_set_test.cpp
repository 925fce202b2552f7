// The kernels of point sets against their scalar twins. Coordinates on a grid make every distance exact, with many
// ties; random ones are judged by what the results have to fulfil.
#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include <strata/kernels/point_set.hpp>

#include "support/catch.hpp"

namespace {

using strata::index_t;
using strata::kernels::PointIndex;
using strata::kernels::PointView;

/// A cloud with the room behind it that kernels may read, filled with what must not matter.
template <class Scalar>
struct Cloud {
  index_t dimensions, pitch, count;
  std::vector<Scalar> numbers;

  Cloud(index_t dims, index_t points)
      : dimensions(dims),
        pitch(points + 3),
        count(points),
        numbers(static_cast<std::size_t>(dims * pitch + 16), std::numeric_limits<Scalar>::quiet_NaN()) {}
  Scalar& at(index_t d, index_t i) { return numbers[static_cast<std::size_t>(d * pitch + i)]; }
  [[nodiscard]] PointView<Scalar> view() const { return {numbers.data(), pitch, count}; }
};

/// Points on a grid of `cells` steps per dimension: distances are exact whatever the order of operations.
template <class Scalar>
Cloud<Scalar> grid_cloud(index_t dimensions, index_t points, unsigned seed, int cells) {
  Cloud<Scalar> cloud(dimensions, points);
  std::mt19937 random(seed);
  for (index_t i = 0; i < points; ++i)
    for (index_t d = 0; d < dimensions; ++d)
      cloud.at(d, i) = static_cast<Scalar>(static_cast<int>(random() % static_cast<unsigned>(cells))) / 16 - 1;
  return cloud;
}

template <class Scalar>
Cloud<Scalar> random_cloud(index_t dimensions, index_t points, unsigned seed) {
  Cloud<Scalar> cloud(dimensions, points);
  std::mt19937 random(seed);
  std::uniform_real_distribution<Scalar> uniform(-1, 1);
  for (index_t i = 0; i < points; ++i)
    for (index_t d = 0; d < dimensions; ++d) cloud.at(d, i) = uniform(random);
  return cloud;
}

template <class Scalar>
std::vector<PointIndex> sample(const Cloud<Scalar>& cloud, index_t samples) {
  std::vector<Scalar> distances(static_cast<std::size_t>(cloud.count + 64));
  std::vector<PointIndex> indices(static_cast<std::size_t>(samples), -1);
  strata::kernels::farthest_point_sampling<xsimd::default_arch>(cloud.dimensions, cloud.view(), samples,
                                                                distances.data(), indices.data());
  return indices;
}

template <class Scalar>
std::vector<PointIndex> sample_reference(const Cloud<Scalar>& cloud, index_t samples) {
  std::vector<Scalar> distances(static_cast<std::size_t>(cloud.count));
  std::vector<PointIndex> indices(static_cast<std::size_t>(samples), -1);
  strata::kernels::farthest_point_sampling_reference(cloud.dimensions, cloud.view(), samples, distances.data(),
                                                     indices.data());
  return indices;
}

template <class Scalar>
std::vector<PointIndex> query(const Cloud<Scalar>& points, const Cloud<Scalar>& centroids, Scalar radius,
                              index_t samples, bool reference) {
  const index_t pitch = centroids.count + 1;
  std::vector<PointIndex> indices(static_cast<std::size_t>(pitch * samples), -7);
  std::vector<PointIndex> found(
      static_cast<std::size_t>(strata::kernels::ball_query_scratch<xsimd::default_arch, Scalar>(samples)));
  if (reference) {
    strata::kernels::ball_query_reference(points.dimensions, points.view(), centroids.view(), 0, centroids.count,
                                          radius, samples, indices.data(), pitch);
  } else {  // in two parts, as threads do
    for (const index_t half : {index_t{0}, index_t{1}})
      strata::kernels::ball_query<xsimd::default_arch>(
          points.dimensions, points.view(), centroids.view(), half * (centroids.count / 2),
          half == 0 ? centroids.count / 2 : centroids.count, radius, samples, found.data(), indices.data(), pitch);
  }
  return indices;
}

constexpr index_t counts[] = {1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 64, 100, 257};

template <class Scalar>
void compare_sampling() {
  for (const index_t dimensions : {2, 3})
    for (const index_t points : counts)
      for (const index_t samples : {1, 2, 5, 16, 40, 300})
        for (const int cells : {1, 2, 5, 32}) {
          INFO(dimensions << " dimensions, " << points << " points, " << samples << " samples, " << cells << " cells");
          const auto cloud = grid_cloud<Scalar>(dimensions, points, static_cast<unsigned>(points), cells);
          CHECK(sample(cloud, samples) == sample_reference(cloud, samples));
        }
}

template <class Scalar>
void compare_query() {
  for (const index_t dimensions : {2, 3})
    for (const index_t points : counts)
      for (const index_t centroids : {1, 2, 9})
        for (const index_t samples : {1, 2, 7, 16, 33})
          for (const Scalar radius : {Scalar(0.0625), Scalar(0.25), Scalar(0.3), Scalar(4)}) {
            INFO(dimensions << " dimensions, " << points << " points, " << centroids << " centroids, " << samples
                            << " samples, radius " << radius);
            const auto cloud = grid_cloud<Scalar>(dimensions, points, 5, 16);
            const auto centres = grid_cloud<Scalar>(dimensions, centroids, 6, 16);
            CHECK(query(cloud, centres, radius, samples, false) == query(cloud, centres, radius, samples, true));
          }
}

}  // namespace

TEST_CASE("farthest point sampling agrees with its scalar twin, ties included") {
  compare_sampling<float>();
  compare_sampling<double>();
}

TEST_CASE("every sampled point is the farthest from those before it") {
  for (const index_t dimensions : {2, 3})
    for (const index_t points : counts) {
      const auto cloud = random_cloud<float>(dimensions, points, 3);
      const auto chosen = sample(cloud, points);
      CHECK(chosen[0] == 0);
      CHECK(std::set<PointIndex>(chosen.begin(), chosen.end()).size() == static_cast<std::size_t>(points));
      std::vector<double> nearest(static_cast<std::size_t>(points), std::numeric_limits<double>::infinity());
      for (std::size_t s = 0; s + 1 < chosen.size(); ++s) {
        double farthest = 0;
        for (index_t i = 0; i < points; ++i) {
          double sum = 0;
          for (index_t d = 0; d < dimensions; ++d)
            sum += std::pow(static_cast<double>(cloud.view().dimension(d)[i]) -
                                static_cast<double>(cloud.view().dimension(d)[chosen[s]]),
                            2);
          auto& least = nearest[static_cast<std::size_t>(i)];
          least = std::min(least, sum);
          farthest = std::max(farthest, least);
        }
        CHECK(nearest[static_cast<std::size_t>(chosen[s + 1])] >= farthest * (1 - 1e-5));
      }
    }
}

TEST_CASE("a cloud of fewer points than samples gives all its points, then the first again") {
  const auto cloud = random_cloud<float>(3, 5, 4);
  const auto chosen = sample(cloud, 40);
  CHECK(std::set<PointIndex>(chosen.begin(), chosen.begin() + 5).size() == 5);
  for (std::size_t s = 5; s < chosen.size(); ++s) CHECK(chosen[s] == 0);
}

TEST_CASE("of points that lie on each other sampling takes each place once") {
  auto cloud = random_cloud<float>(3, 48, 5);
  for (index_t i = 4; i < 48; ++i)
    for (index_t d = 0; d < 3; ++d) cloud.at(d, i) = cloud.at(d, i % 4);
  const auto chosen = sample(cloud, 10);
  CHECK(std::set<PointIndex>(chosen.begin(), chosen.begin() + 4) == std::set<PointIndex>{0, 1, 2, 3});
  for (std::size_t s = 4; s < chosen.size(); ++s) CHECK(chosen[s] == 0);
}

TEST_CASE("coordinates that are not finite never lead outside the cloud") {
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                          -std::numeric_limits<float>::infinity(), std::numeric_limits<float>::max()})
    for (const index_t where : {0, 3, 18}) {
      auto cloud = random_cloud<float>(3, 19, 6);
      cloud.at(1, where) = bad;
      for (const PointIndex i : sample(cloud, 30)) CHECK((i >= 0 && i < 19));
      for (const auto& [points, centres] :
           {std::pair(cloud, random_cloud<float>(3, 4, 7)), std::pair(random_cloud<float>(3, 4, 7), cloud)}) {
        const auto found = query<float>(points, centres, 0.5F, 3, false);
        CHECK(found == query<float>(points, centres, 0.5F, 3, true));
        for (std::size_t i = 0; i < found.size(); ++i)
          if (static_cast<index_t>(i) % (centres.count + 1) < centres.count)
            CHECK((found[i] >= 0 && found[i] < points.count));
      }
    }
}

TEST_CASE("the ball query agrees with its scalar twin") {
  compare_query<float>();
  compare_query<double>();
}

TEST_CASE("a ball is open, holds its first points and repeats the first of them") {
  Cloud<float> line(2, 6);
  for (index_t i = 0; i < 6; ++i) {
    line.at(0, i) = static_cast<float>(i) / 4;
    line.at(1, i) = 0;
  }
  Cloud<float> centre(2, 1);
  centre.at(0, 0) = 0.75F;
  centre.at(1, 0) = 0;
  const auto found = [&](float radius, index_t samples) {
    const auto all = query(line, centre, radius, samples, false);
    std::vector<PointIndex> members;
    for (index_t s = 0; s < samples; ++s) members.push_back(all[static_cast<std::size_t>(2 * s)]);
    return members;
  };
  CHECK(found(0.5F, 5) == std::vector<PointIndex>{2, 3, 4, 2, 2});
  CHECK(found(0.501F, 5) == std::vector<PointIndex>{1, 2, 3, 4, 5});
  CHECK(found(0.501F, 2) == std::vector<PointIndex>{1, 2});
  centre.at(1, 0) = 9;
  CHECK(found(0.5F, 2) == std::vector<PointIndex>{0, 0});  // an empty ball
}

TEMPLATE_TEST_CASE("grouping agrees with its scalar twin and writes nothing beyond", "", float, double) {
  using Scalar = TestType;
  std::mt19937 random(8);
  std::uniform_real_distribution<Scalar> uniform(-1, 1);
  for (const index_t points : {1, 3, 4, 5, 17})
    for (const index_t first : {0, 2, 3})
      for (const index_t channels : {1, 2, 3, 4, 5, 8, 13}) {
        const index_t all = first + channels;
        const index_t step = strata::kernels::point_pitch(all);
        const index_t source_pitch = points + 1;
        std::vector<Scalar> source(static_cast<std::size_t>(channels * source_pitch));
        for (Scalar& x : source) x = uniform(random);
        std::vector<Scalar> by_point(static_cast<std::size_t>(points * step), 7);
        strata::kernels::points_from_channels(source.data(), source_pitch, channels, points, first, all,
                                              by_point.data());
        bool same = true;
        for (index_t i = 0; i < points; ++i)
          for (index_t c = 0; c < step; ++c) {
            const bool inside = c >= first && c < all;
            const Scalar expected = inside ? source[static_cast<std::size_t>((c - first) * source_pitch + i)] : 7;
            same = same && by_point[static_cast<std::size_t>(i * step + c)] == expected;
          }
        INFO(points << " points, " << first << " + " << channels << " channels");
        CHECK(same);
        for (const index_t count : {0, 1, 3, 4, 7, 8, 16, 17}) {
          std::vector<PointIndex> indices(static_cast<std::size_t>(count));
          for (auto& i : indices) i = static_cast<PointIndex>(random() % static_cast<unsigned>(points));
          const index_t pitch = count + 1;
          std::vector<Scalar> found(static_cast<std::size_t>((all + 1) * pitch), 42);
          std::vector<Scalar> expected = found;
          strata::kernels::group_points(by_point.data(), all, indices.data(), count, found.data(), pitch);
          strata::kernels::group_points_reference(by_point.data(), all, indices.data(), count, expected.data(), pitch);
          INFO(count << " groups");
          CHECK(found == expected);
        }
      }
}

TEST_CASE("maxima agree with their scalar twins") {
  std::mt19937 random(9);
  std::uniform_real_distribution<float> uniform(-2, -1);
  std::vector<float> source(9 * 103);
  for (float& x : source) x = uniform(random);
  for (const index_t count : {0, 1, 3, 4, 7, 8, 15, 16, 17, 33, 100})
    for (const index_t rows : {0, 1, 2, 9}) {
      INFO(count << " x " << rows);
      std::vector<float> found(static_cast<std::size_t>(count + 1), -1.5F);
      std::vector<float> expected = found;
      strata::kernels::max_rows<xsimd::default_arch>(source.data(), rows, 103, count, found.data());
      strata::kernels::max_rows_reference(source.data(), rows, 103, count, expected.data());
      CHECK(found == expected);
      if (count > 0)
        CHECK(strata::kernels::max_of<xsimd::default_arch>(source.data(), count) ==
              *std::max_element(source.begin(), source.begin() + count));
    }
}
