// Archives: named arrays in order, memory kept alive by owners; and parameters in and out of them with checks.
#include <cstdint>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <strata/core/archive.hpp>
#include <strata/layers/parameters.hpp>

#include "support/catch.hpp"

namespace {

using strata::Archive;
using strata::ArrayView;
using strata::DataType;
using strata::index_t;
using strata::Level;
using strata::ParameterSink;
using strata::ParameterSource;
using strata::StratumMap;

template <class T>
std::span<const T> view(const std::vector<T>& values) {
  return values;
}

template <class T>
std::vector<T> copy(std::span<const T> values) {
  return {values.begin(), values.end()};
}

}  // namespace

TEST_CASE("data types have the sizes and names of safetensors") {
  const std::tuple<DataType, index_t, std::string> expected[] = {
      {DataType::u8, 1, "U8"},   {DataType::u16, 2, "U16"}, {DataType::u32, 4, "U32"}, {DataType::i32, 4, "I32"},
      {DataType::i64, 8, "I64"}, {DataType::f32, 4, "F32"}, {DataType::f64, 8, "F64"}};
  for (const auto& [type, size, name] : expected) {
    INFO(name);
    CHECK(strata::size_of(type) == size);
    CHECK(strata::name_of(type) == name);
  }
}

TEMPLATE_TEST_CASE("arrays of every element type come back as they went in", "", std::uint8_t, std::uint16_t,
                   std::uint32_t, std::int32_t, std::int64_t, float, double) {
  for (const index_t size : {0, 1, 3, 17, 1000}) {
    INFO(size << " elements");
    std::vector<TestType> values(static_cast<std::size_t>(size));
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<TestType>(i * 3);
    Archive archive;
    REQUIRE(archive.add("values", {size}, 2, view(values)));
    const std::vector<TestType> expected = values;
    values.assign(values.size(), TestType{0});  // the archive has a copy
    const ArrayView* found = archive.find("values");
    REQUIRE(found != nullptr);
    CHECK(found->type == strata::data_type_of<TestType>());
    CHECK(strata::size_of(found->type) == static_cast<index_t>(sizeof(TestType)));
    CHECK(found->stratum == 2);
    CHECK(found->shape == std::vector<index_t>{size});
    CHECK(found->size() == size);
    CHECK(found->bytes.size() == expected.size() * sizeof(TestType));
    CHECK(copy(found->as<TestType>()) == expected);
    if (size > 0) CHECK(reinterpret_cast<std::uintptr_t>(found->bytes.data()) % alignof(TestType) == 0);
  }
}

TEST_CASE("the size of an array is the product of its extents") {
  ArrayView array;
  CHECK(array.size() == 1);  // no extents: one number
  array.shape = {3, 4, 5};
  CHECK(array.size() == 60);
  array.shape = {3, 0, 5};
  CHECK(array.size() == 0);
}

TEST_CASE("an archive keeps the order of its arrays and refuses a name twice") {
  Archive archive;
  CHECK(archive.levels() == 1);
  CHECK(archive.find("a") == nullptr);
  const std::vector<float> one = {1};
  const std::vector<float> two = {2};
  for (const char* name : {"c", "a", "b", ""}) REQUIRE(archive.add(name, {1}, 0, view(one)));
  const std::size_t owners = archive.owners().size();
  CHECK_FALSE(archive.add("a", {1}, 1, view(two)));
  CHECK_FALSE(archive.add_view(ArrayView{"a", DataType::u8, {0}, 1, {}}));
  CHECK(archive.owners().size() == owners);
  std::string order;
  for (const ArrayView& array : archive.arrays()) order += array.name + ",";
  CHECK(order == "c,a,b,,");
  CHECK(archive.find("a")->as<float>()[0] == 1);
  CHECK(archive.find("a")->stratum == 0);
  CHECK(archive.find("aa") == nullptr);
  archive.set_levels(3);
  CHECK(archive.levels() == 3);
  archive.metadata()["key"] = "value";
  CHECK(std::as_const(archive).metadata().at("key") == "value");
}

TEST_CASE("owners live as long as an archive, its copies and what was read from it") {
  auto numbers = std::make_shared<std::vector<float>>(std::vector<float>{1, 2, 3});
  const std::weak_ptr<std::vector<float>> alive = numbers;
  auto archive = std::make_unique<Archive>();
  const auto bytes = std::as_bytes(std::span<const float>(*numbers));
  REQUIRE(archive->add_view(ArrayView{"numbers", DataType::f32, {3}, 0, bytes}));
  archive->keep(std::move(numbers));
  auto other = std::make_unique<Archive>(*archive);
  CHECK(other->find("numbers")->bytes.data() == bytes.data());
  archive.reset();
  CHECK_FALSE(alive.expired());
  auto moved = std::make_unique<Archive>(std::move(*other));
  other.reset();
  CHECK(moved->find("numbers")->as<float>()[2] == 3);
  std::shared_ptr<const void> owner;
  {
    ParameterSource source(*moved);
    CHECK(source.array<float>("numbers", {3}).data() == reinterpret_cast<const float*>(bytes.data()));
    owner = source.owner();
  }
  moved.reset();
  CHECK_FALSE(alive.expired());
  owner.reset();
  CHECK(alive.expired());
}

TEST_CASE("parameters per level have a name and a stratum each") {
  Archive archive;
  archive.set_levels(3);
  ParameterSink sink(archive);
  CHECK(sink.levels() == 3);
  for (int level = 0; level < 3; ++level) {
    const std::vector<float> values(4, static_cast<float>(level));
    sink.per_level("bn.scale", level, view(values));
  }
  CHECK(archive.find("bn.scale.2")->stratum == 2);
  ParameterSource source(archive);
  const auto views = source.per_level<float>("bn.scale", 4);
  REQUIRE(source.finish("").ok());
  REQUIRE(views.size() == 3);
  for (std::size_t level = 0; level < 3; ++level) {
    CHECK(copy(views[level]) == std::vector<float>(4, static_cast<float>(level)));
    CHECK(views[level].data() == archive.find("bn.scale." + std::to_string(level))->as<float>().data());
  }
  CHECK_THROWS_AS(sink.per_level("bn.scale", 2, view(std::vector<float>{1})), strata::Error);
}

TEST_CASE("level-sorted matrices come back as views with every level") {
  std::mt19937 random(21);
  for (const int levels : {1, 2, 3})
    for (const auto& [rows, columns] :
         {std::pair<index_t, index_t>{1, 1}, {5, 3}, {17, 40}, {33, 300}, {16, 0}, {0, 16}})
      for (const index_t block : {1, 7, 64, 255})
        for (const int keep : {0, 3, 10}) {  // tenths of the weights
          INFO(levels << " levels, " << rows << " x " << columns << ", blocks of " << block << ", tenths " << keep);
          std::vector<float> weights(static_cast<std::size_t>(rows * columns));
          std::vector<std::uint8_t> strata(weights.size(), StratumMap::absent);
          for (std::size_t i = 0; i < weights.size(); ++i) {
            weights[i] = static_cast<float>(i + 1);
            if (static_cast<int>(random() % 10) < keep)
              strata[i] = static_cast<std::uint8_t>(random() % static_cast<unsigned>(levels));
          }
          const auto map = StratumMap::from_strata(rows, columns, levels, strata).value();
          const auto matrix = strata::LeveledCsr<float, strata::ConvIndex>::from_dense(weights, map, block);
          Archive archive;
          archive.set_levels(levels);
          ParameterSink(archive).leveled_csr("w", matrix);
          ParameterSource source(archive);
          const auto found = source.leveled_csr<float, strata::ConvIndex>("w", rows, columns);
          REQUIRE(source.finish("").ok());
          REQUIRE(found.levels() == levels);
          REQUIRE(found.block_columns() == block);
          for (int level = 0; level < levels; ++level) {
            const std::string name = "w.values." + std::to_string(level);
            REQUIRE(archive.find(name)->stratum == level);
            REQUIRE(found.stratum(level).values.data() == archive.find(name)->as<float>().data());
            REQUIRE(found.nnz(Level{level}) == map.nnz(Level{level}));
            std::vector<float> expected = weights;
            for (std::size_t i = 0; i < expected.size(); ++i)
              if (!map.contains(static_cast<index_t>(i), Level{level})) expected[i] = 0;
            REQUIRE(found.to_dense(Level{level}) == expected);
          }
        }
}

TEST_CASE("reading a parameter that is missing, of another type or shape is an error with its name") {
  Archive archive;
  archive.set_levels(2);
  ParameterSink sink(archive);
  const std::vector<float> six(6, 1.0F);
  sink.array("weight", {2, 3}, 0, view(six));
  const auto error = [&](auto&& read) {
    ParameterSource source(archive);
    read(source);
    const strata::Status status = source.status();
    return status ? std::string("none") : std::string(status.error().what());
  };
  CHECK(error([](auto& s) { return s.template array<float>("weight", {2, 3}).size(); }) == "none");
  CHECK(error([](auto& s) { return s.template array<float>("bias", {2}).size(); }) ==
        "bias: expected a parameter of that name, found none");
  CHECK(error([](auto& s) {
          return s.template array<double>("weight", {2, 3}).size();
        }) == "weight: expected type F64, found F32");
  CHECK(error([](auto& s) {
          return s.template array<float>("weight", {3, 2}).size();
        }) == "weight: expected shape [3, 2], found [2, 3]");
  CHECK(error([](auto& s) { return s.template array<float>("weight", {6}).size(); }) ==
        "weight: expected shape [6], found [2, 3]");
  CHECK(error([](auto& s) { return s.template per_level<float>("scale", 2).size(); }) ==
        "scale.0: expected a parameter of that name, found none");
  CHECK(error([](auto& s) { return s.template leveled_csr<float, strata::ConvIndex>("weight", 2, 3).rows(); }) ==
        "weight.shape: expected a parameter of that name, found none");
}

TEST_CASE("the first error of a source stays, and what is read after it is empty") {
  Archive archive;
  const std::vector<float> two = {1, 2};
  ParameterSink(archive).array("there", {2}, 0, view(two));
  ParameterSource source(archive);
  CHECK(source.has("there"));
  CHECK_FALSE(source.has("missing"));
  CHECK(source.array<float>("missing", {2}).empty());
  CHECK(source.array<float>("there", {2}).empty());
  source.fail(strata::Error("later", "nothing", "something"));
  CHECK(source.status().error().where() == "missing");
  CHECK(source.finish("").error().where() == "missing");
}

TEST_CASE("arrays that nobody asked for are errors unless their names are reserved") {
  Archive archive;
  const std::vector<float> two = {1, 2};
  ParameterSink sink(archive);
  sink.array("used", {2}, 0, view(two));
  sink.array("check.input", {2}, 0, view(two));
  ParameterSource source(archive);
  (void)source.array<float>("used", {2});
  CHECK(source.status().ok());
  CHECK(source.finish("check.").ok());
  CHECK(source.finish("other.").error().where() == "check.input");
}

TEST_CASE("a stored matrix whose arrays do not fit together is refused by name") {
  const std::vector<float> weights(12, 1.0F);
  const auto map = StratumMap::from_strata(3, 4, 2, {0, 1, 0, 255, 255, 255, 255, 255, 1, 1, 0, 0}).value();
  const auto matrix = strata::LeveledCsr<float, strata::ConvIndex>::from_dense(weights, map, 4);
  const auto where = [](const Archive& archive, index_t rows, index_t columns) {
    ParameterSource source(archive);
    (void)source.leveled_csr<float, strata::ConvIndex>("w", rows, columns);
    const strata::Status status = source.status();
    return status ? std::string("nowhere") : status.error().where();
  };
  Archive good;
  good.set_levels(2);
  ParameterSink(good).leveled_csr("w", matrix);
  CHECK(where(good, 3, 4) == "nowhere");
  CHECK(where(good, 4, 3) == "w");
  Archive missing_level = good;
  missing_level.set_levels(3);
  CHECK(where(missing_level, 3, 4) == "w.values.2");
  // The same arrays with one of them replaced.
  const auto with = [&](const std::string& name, auto values, std::vector<index_t> shape) {
    Archive archive;
    archive.set_levels(2);
    for (const auto& owner : good.owners()) archive.keep(owner);
    for (const ArrayView& array : good.arrays())
      if (array.name != name) archive.add_view(array);
    using T = typename decltype(values)::value_type;
    archive.add<T>(name, std::move(shape), 0, values);
    return archive;
  };
  using Bytes = std::vector<std::uint8_t>;
  CHECK(where(with("w.shape", std::vector<std::int64_t>{3, 4, 0, 64}, {4}), 3, 4) == "w");
  CHECK(where(with("w.shape", std::vector<std::int64_t>{3, 4, 256, 64}, {4}), 3, 4) == "w");
  CHECK(where(with("w.lengths.0", Bytes{2, 0, 1}, {1, 3}), 3, 4) == "w: stratum 0 lengths");
  CHECK(where(with("w.lengths.0", Bytes{2, 0}, {1, 2}), 3, 4) == "w.lengths.0");
  CHECK(where(with("w.indices.0", Bytes{0, 2, 2}, {3}), 3, 4) == "w.indices.0");
  CHECK(where(with("w.indices.0", Bytes{0, 4, 2, 3}, {4}), 3, 4) == "w: stratum 0 row 0 indices");
  CHECK(where(with("w.indices.0", Bytes{2, 0, 2, 3}, {4}), 3, 4) == "w: stratum 0 row 0 indices");
  CHECK(where(with("w.indices.1", Bytes{2, 0, 1}, {3}), 3, 4) == "w: stratum 1 row 0 indices");  // in stratum 0
}
