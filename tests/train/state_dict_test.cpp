#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <strata/runtime/session.hpp>
#include <strata/train/state_dict.hpp>

#include "../../examples/gnmt/network.hpp"
#include "support/catch.hpp"
#include "support/small_net.hpp"

namespace {

using strata::Archive;
using strata::index_t;
using strata::Level;
namespace train = strata::train;
using Net = test::SmallNet<train::Training<float>>;

/// A network whose every number is its own.
Net make_net() {
  Net net({});
  train::initialise(net, 5);
  float next = 0.25F;
  for (auto* parameter : train::parameters<float>(net))
    if (parameter->shape.size() == 1)
      for (auto& value : parameter->value) value = next += 0.125F;
  for (auto& norm : net.conv.norms())
    for (int c = 0; c < 8; ++c) {
      norm.running_mean[c] = 0.5F + static_cast<float>(c);
      norm.running_variance[c] = 1.5F + static_cast<float>(c);
    }
  return net;
}

/// A copy of `archive` in which `change` may rename, reshape, drop (empty name) or rewrite arrays.
template <class F>
Archive changed(const Archive& archive, F&& change) {
  Archive result;
  for (const auto& view : archive.arrays()) {
    std::string name = view.name;
    auto shape = view.shape;
    std::vector<float> values(view.as<float>().begin(), view.as<float>().end());
    change(name, shape, values);
    if (!name.empty()) result.add<float>(name, shape, 0, values);
  }
  return result;
}

std::string error_of(const Archive& archive, const std::function<std::string(const std::string&)>& rename = {}) {
  Net net = make_net();
  const auto before = net.conv.weight().value;
  const auto status = train::from_state_dict(net, archive, rename);
  REQUIRE_FALSE(status.ok());
  CHECK((net.conv.weight().value == before).all());  // nothing is changed by an error
  return status.error().what();
}

bool holds(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("a state_dict has PyTorch's names and gives the network back") {
  Net net = make_net();
  const Archive archive = train::to_state_dict(net, Level{0});
  std::vector<std::string> names;
  for (const auto& view : archive.arrays()) names.push_back(view.name);
  CHECK(names == std::vector<std::string>{"conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var",
                                          "fc.weight", "fc.bias"});
  CHECK(archive.find("conv.weight")->shape == std::vector<strata::index_t>{8, 1, 3, 3});
  CHECK(archive.find("fc.weight")->shape == std::vector<strata::index_t>{5, 8});

  const auto path = (std::filesystem::temp_directory_path() / "strata_state_dict_test.safetensors").string();
  REQUIRE(train::write_state_dict(archive, path).ok());
  const auto read = train::read_state_dict(path);
  REQUIRE(read.ok());
  Net other({});
  REQUIRE(train::from_state_dict(other, read.value()).ok());
  const auto a = train::parameters<float>(net);
  const auto b = train::parameters<float>(other);
  REQUIRE(a.size() == b.size());
  for (std::size_t i = 0; i < a.size(); ++i) CHECK((a[i]->value == b[i]->value).all());
  CHECK((net.conv.norms()[0].running_mean == other.conv.norms()[0].running_mean).all());
  CHECK((net.conv.norms()[0].running_variance == other.conv.norms()[0].running_variance).all());
  std::filesystem::remove(path);
}

TEST_CASE("a level's state_dict has zeros where the level has no weights, and its own norms") {
  Net net = make_net();
  train::set_levels(net, 2);
  net.conv.norms()[1].gamma.value[3] = 77;
  auto& weight = net.conv.weight();
  weight.strata.assign(72, strata::StratumMap::absent);
  weight.strata[5] = 0;
  weight.strata[7] = 1;
  for (int level = 0; level < 2; ++level) {
    const Archive archive = train::to_state_dict(net, Level{level});
    const auto values = archive.find("conv.weight")->as<float>();
    for (std::size_t i = 0; i < values.size(); ++i) CHECK((values[i] != 0) == (i == 5 || (i == 7 && level == 1)));
    CHECK((archive.find("bn.weight")->as<float>()[3] == 77) == (level == 1));
  }
}

TEST_CASE("state_dicts that do not fit are refused by name") {
  Net net = make_net();
  const Archive good = train::to_state_dict(net, Level{0});
  const auto on = [&](const std::string& target, auto&& what) {
    return changed(good, [&](std::string& name, auto& shape, auto& values) {
      if (name == target) what(name, shape, values);
    });
  };
  CHECK(holds(error_of(on("bn.running_var", [](auto& name, auto&, auto&) { name.clear(); })),
              "bn.running_var: expected a parameter of shape [8], found none"));
  CHECK(holds(error_of(on("fc.bias",
                          [](auto&, auto& shape, auto&) {
                            shape = {1, 5};
                          })),
              "fc.bias: expected shape [5]"));
  CHECK(holds(error_of(on("fc.weight",
                          [](auto&, auto&, auto& values) { values[3] = std::numeric_limits<float>::quiet_NaN(); })),
              "fc.weight, number 3"));
  CHECK(holds(error_of(on("bn.running_var", [](auto&, auto&, auto& values) { values[7] = -1; })),
              "bn.running_var, number 7"));
  Archive extra = changed(good, [](auto&, auto&, auto&) {});
  const std::vector<float> one(1);
  extra.add<float>("layer9.weight", {1}, 0, one);
  CHECK(holds(error_of(extra), "layer9.weight: expected no such parameter"));
  Archive integers;
  for (const auto& view : good.arrays())
    if (view.name != "fc.bias") integers.add_view(view);
  integers.add<std::int64_t>("fc.bias", {5}, 0, std::vector<std::int64_t>(5));
  CHECK(holds(error_of(integers), "fc.bias: expected type F32, F64, F16 or BF16, found I64"));
  CHECK(holds(error_of(good, [](const std::string& name) { return name == "bn.bias" ? "bn.weight" : name; }),
              "one array for the parameter bn.weight"));
  CHECK(holds(error_of(Archive()), "conv.weight"));
}

TEST_CASE("a state_dict may be renamed, in double precision, and have batch counters") {
  Net net = make_net();
  Archive archive;
  const Archive good = train::to_state_dict(net, Level{0});
  for (const auto& view : good.arrays()) {
    std::vector<double> values;
    for (const float value : view.as<float>()) values.push_back(static_cast<double>(value));
    archive.add<double>("module." + view.name, view.shape, 0, values);
  }
  archive.add<std::int64_t>("module.bn.num_batches_tracked", {}, 0, std::vector<std::int64_t>(1));
  const auto rename = [](const std::string& name) { return name.substr(7); };
  Net other({});
  REQUIRE(train::from_state_dict(other, archive, rename).ok());
  CHECK((other.conv.weight().value == net.conv.weight().value).all());
  archive.add<std::int64_t>("module.fc.num_batches_tracked", {}, 0, std::vector<std::int64_t>(1));
  CHECK_FALSE(train::from_state_dict(other, archive, rename).ok());  // fc has no norm
}

TEST_CASE("a state_dict may have numbers of 16 bits") {
  const Net net = make_net();
  const Archive good = train::to_state_dict(net, Level{0});
  // 1.5, the largest, the least normal and the least subnormal number, minus zero; the same 1.5 first in both formats.
  const std::vector<std::pair<strata::DataType, std::vector<std::uint16_t>>> kinds = {
      {strata::DataType::f16, {0x3E00, 0x7BFF, 0x0400, 0x0001, 0x8000}},
      {strata::DataType::bf16, {0x3FC0, 0x7F7F, 0x0080, 0x0001, 0x8000}}};
  const std::vector<std::vector<float>> expected = {{1.5F, 65504, 6.103515625e-05F, 5.9604644775390625e-08F, -0.0F},
                                                    {1.5F, 0x1.FEp127F, 0x1p-126F, 0x1p-133F, -0.0F}};
  for (std::size_t kind = 0; kind < kinds.size(); ++kind) {
    auto numbers = kinds[kind].second;
    const auto archive = [&] {
      Archive result;
      for (const auto& view : good.arrays())
        if (view.name != "fc.bias") result.add_view(view);
      result.add_view({"fc.bias", kinds[kind].first, {5}, 0, std::as_bytes(std::span(numbers))});
      return result;
    };
    Net other({});
    REQUIRE(train::from_state_dict(other, archive()).ok());
    for (index_t i = 0; i < 5; ++i) {
      CHECK(other.fc.bias()->value[i] == expected[kind][static_cast<std::size_t>(i)]);
      CHECK(std::signbit(other.fc.bias()->value[i]) == (i == 4));
    }
    numbers[2] = kind == 0 ? 0xFC00 : 0xFF80;  // minus infinity
    CHECK(holds(error_of(archive()), "fc.bias, number 2: expected a finite number, found -inf"));
    numbers[2] = kind == 0 ? 0x7C01 : 0x7F81;
    CHECK(holds(error_of(archive()), "fc.bias, number 2: expected a finite number, found nan"));
  }
}

TEST_CASE("a level that the network was not made ready for has no state_dict") {
  Net net = make_net();
  train::set_levels(net, 2);
  CHECK_NOTHROW(train::to_state_dict(net, Level{1}));
  CHECK_THROWS_WITH(train::to_state_dict(net, Level{2}), "bn: expected a level of 0 to 1, found 2");
  CHECK_THROWS_WITH(train::to_state_dict(net, Level{-1}), "level: expected 0 or more, found -1");
}

TEST_CASE("strata that are not as many as the weights are an error wherever they would be used") {
  Net net = make_net();
  train::set_levels(net, 2);
  auto& weight = net.conv.weight();
  const auto size = static_cast<std::size_t>(weight.value.size());
  strata::SerialExecutor executor;
  train::Context<float> context(executor);
  context.checking = true;
  (void)train::parameters<float>(net);  // names them
  for (const std::size_t count : {std::size_t{3}, size - 1, size + 1, size}) {
    INFO(count);
    weight.strata.assign(count, 0);
    const bool good = count == size;
    const auto refused = [&](auto use) {
      try {
        use();
      } catch (const strata::Error& error) {
        return error.where() == weight.name && error.expected() == std::to_string(size) + " strata or none";
      }
      return false;
    };
    CHECK(refused([&] { (void)train::to_state_dict(net, Level{1}); }) != good);
    CHECK(refused([&] { (void)strata::to_archive(net, 2); }) != good);
    CHECK(refused([&] {
            context.begin(Level{0});
            auto x = context.make(1, net.input_shape(), false);
            x.value().setZero();
            (void)net(context, x);
          }) != good);
  }
}

TEST_CASE("a network is made ready for 1 to 16 levels and stored with as many") {
  Net net = make_net();
  for (const int levels : {-1, 0, 17}) {
    CHECK_THROWS_WITH(train::set_levels(net, levels), "levels: expected 1 to 16, found " + std::to_string(levels));
    CHECK_THROWS_WITH(strata::to_archive(net, levels), "levels: expected 1 to 16, found " + std::to_string(levels));
  }
  CHECK(net.conv.norms().size() == 1);
  train::set_levels(net, 16);
  CHECK(net.conv.norms().size() == 16);
}

TEST_CASE("layers of several matrices pass through a state_dict under PyTorch's names") {
  using Gnmt = gnmt::Gnmt<train::Training<float>>;
  const Gnmt::Config config{
      .source_words = 9, .target_words = 8, .width = 5, .encoder_layers = 2, .decoder_layers = 2, .dropout = 0};
  Gnmt network(config);
  train::initialise(network, 3);
  for (auto* parameter : train::parameters<float>(network)) {
    if (!parameter->levelled) continue;
    for (index_t i = 0; i < parameter->value.size(); ++i) parameter->strata.push_back(static_cast<std::uint8_t>(i % 2));
  }
  const Archive dict = train::to_state_dict(network, Level{0});
  for (const char* name :
       {"encoder.embedder.weight", "encoder.rnn_layers.0.weight_ih_l0", "encoder.rnn_layers.0.bias_hh_l0_reverse",
        "encoder.rnn_layers.1.weight_hh_l0", "decoder.att_rnn.rnn.weight_ih_l0", "decoder.att_rnn.attn.linear_q.weight",
        "decoder.att_rnn.attn.linear_k.weight", "decoder.att_rnn.attn.linear_att",
        "decoder.att_rnn.attn.normalize_scalar", "decoder.att_rnn.attn.normalize_bias",
        "decoder.rnn_layers.0.weight_ih_l0", "decoder.classifier.classifier.weight",
        "decoder.classifier.classifier.bias"}) {
    INFO(name);
    CHECK(dict.find(name) != nullptr);
  }
  CHECK(dict.find("encoder.rnn_layers.0.weight_ih_l0")->as<float>()[1] == 0);  // of level 1
  Gnmt other(config);
  CHECK(train::from_state_dict(other, dict));
  const Archive again = train::to_state_dict(other, Level{0});
  REQUIRE(again.arrays().size() == dict.arrays().size());
  for (const auto& view : dict.arrays()) {
    const auto found = again.find(view.name)->as<float>();
    CHECK(std::equal(found.begin(), found.end(), view.as<float>().begin(), view.as<float>().end()));
  }
}

namespace {

template <class Family>
struct BiasedNet {
  struct Config {
    template <class V>
    void visit(V&&) {}
  };
  explicit BiasedNet(const Config& config)
      : config_(config), fc({.in_features = 1, .out_features = 1, .bias = true, .norm = true}) {}
  [[nodiscard]] const Config& config() const { return config_; }
  [[nodiscard]] strata::Shape input_shape() const { return {1, 1, 1}; }
  auto operator()(typename Family::Context& context, const typename Family::Tensor& x) const { return fc(context, x); }
  template <class V>
  void visit(V&& v) {
    v("fc", fc, "bn");
  }
  static constexpr std::string_view architecture = "biased";
  Config config_;
  typename Family::Linear fc;
};

}  // namespace

TEST_CASE("a bias comes before the normalisation, as in torch.nn.Linear + BatchNorm1d") {
  Archive state_dict;
  for (const auto& [name, value] : std::vector<std::pair<std::string, float>>{
           {"fc.bias", 1}, {"bn.weight", 3}, {"bn.bias", 0.5F}, {"bn.running_mean", 2}, {"bn.running_var", 4}})
    state_dict.add<float>(name, {1}, 0, std::vector<float>{value});
  state_dict.add<float>("fc.weight", {1, 1}, 0, std::vector<float>{1});
  BiasedNet<train::Training<float>> net({});
  REQUIRE(train::from_state_dict(net, state_dict).ok());
  strata::SerialExecutor executor;
  train::Context<float> context(executor);
  const auto run = [&](bool training, const std::vector<float>& values) {
    context.training = training;
    context.begin(Level{0});
    const auto x = context.make(static_cast<index_t>(values.size()), {1, 1, 1}, false);
    for (std::size_t i = 0; i < values.size(); ++i) x.matrix()(0, static_cast<index_t>(i)) = values[i];
    return net(context, x).value()[0];
  };
  const float expected = 3 * (5 + 1 - 2) / 2.0F + 0.5F;
  CHECK(std::abs(run(false, {5}) - expected) < 1e-4F);

  strata::Session<strata::Model<BiasedNet>> session(
      strata::Model<BiasedNet>::from_archive(strata::to_archive(net, 1)).value());
  CHECK(std::abs(session.run(std::vector<float>{5}, Level{0})[0] - expected) < 1e-4F);

  // The running mean is that of what is normalised: the inputs' mean of 3 and the bias.
  context.norm_momentum = 1;
  (void)run(true, {2, 4});
  CHECK(net.fc.norms()[0].running_mean[0] == 4);
}
