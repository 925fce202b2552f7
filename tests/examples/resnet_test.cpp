// The family of ResNets: names and sizes against torchvision's by rule, training against inference, the converter, the
// stored model.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <limits>
#include <map>
#include <random>
#include <string>
#include <unistd.h>
#include <utility>
#include <vector>

#include <strata/strata.hpp>

#include "resnet/convert.hpp"
#include "resnet/network.hpp"
#include "resnet/random_model.hpp"
#include "support/accuracy.hpp"
#include "support/catch.hpp"
#include "support/cifar.hpp"

namespace {

using resnet::Config;
using resnet::TrainingNet;
using strata::index_t;
using strata::Level;
namespace train = strata::train;
using Extents = std::vector<index_t>;
using Model = strata::Model<resnet::ResNet>;

/// torchvision's state_dict without the counters of batches, from its rules.
std::map<std::string, Extents> expected_parameters(const std::vector<index_t>& blocks, index_t width, bool bottleneck,
                                                   index_t stem_kernel, index_t classes) {
  std::map<std::string, Extents> result;
  const auto norm = [&](const std::string& name, index_t channels) {
    for (const char* part : {".weight", ".bias", ".running_mean", ".running_var"}) result[name + part] = {channels};
  };
  const auto convolution = [&](const std::string& name, const std::string& norm_name, index_t in, index_t out,
                               index_t kernel) {
    result[name + ".weight"] = {out, in, kernel, kernel};
    norm(norm_name, out);
  };
  convolution("conv1", "bn1", 3, width, stem_kernel);
  index_t in = width;
  for (std::size_t stage = 0; stage < blocks.size(); ++stage)
    for (index_t b = 0; b < blocks[stage]; ++b) {
      const std::string name = "layer" + std::to_string(stage + 1) + "." + std::to_string(b) + ".";
      const index_t planes = width << stage;
      const index_t out = bottleneck ? 4 * planes : planes;
      convolution(name + "conv1", name + "bn1", in, planes, bottleneck ? 1 : 3);
      convolution(name + "conv2", name + "bn2", planes, planes, 3);
      if (bottleneck) convolution(name + "conv3", name + "bn3", planes, out, 1);
      if (b == 0 && (in != out || stage > 0)) convolution(name + "downsample.0", name + "downsample.1", in, out, 1);
      in = out;
    }
  result["fc.weight"] = {classes, in};
  result["fc.bias"] = {classes};
  return result;
}

void check_parameters(const Config& config, const std::map<std::string, Extents>& expected, std::int64_t count) {
  TrainingNet network(config);
  const auto archive = train::to_state_dict(network, Level{0});
  std::map<std::string, Extents> found;
  std::int64_t trainable = 0;
  for (const auto& view : archive.arrays()) {
    found[view.name] = view.shape;
    if (view.name.find("running") == std::string::npos) trainable += view.size();
  }
  CHECK(found == expected);
  CHECK(trainable == count);
}

/// Largest difference of inference and training outputs at every level, relative to the largest output.
double difference(const Config& config, const std::vector<strata::LevelBudget>& budgets, index_t batch) {
  TrainingNet network(config);
  resnet::randomise(network, 3);
  train::count_uses(network);
  resnet::mask_randomly(network, budgets, true);
  const auto levels = static_cast<int>(budgets.size());
  strata::Session<Model> session(Model::from_archive(strata::to_archive(network, levels)).value(),
                                 {.threads = 2, .batch = batch});
  std::mt19937 random(4);
  std::normal_distribution<float> normal;
  for (float& value : session.input()) value = normal(random);
  strata::SerialExecutor executor;
  train::Context<float> context(executor);
  context.training = false;
  double worst = 0;
  for (int level = 0; level < levels; ++level) {
    context.begin(Level{level});
    const auto expected =
        network(context, train::input_tensor(context, session.input().data(), batch, network.input_shape()));
    const auto found = session.forward(Level{level});
    REQUIRE(static_cast<index_t>(found.size()) == expected.value().size());
    const double scale = static_cast<double>(expected.value().abs().maxCoeff());
    REQUIRE(scale > 1e-3);
    for (std::size_t i = 0; i < found.size(); ++i)
      worst =
          std::max(worst, std::abs(static_cast<double>(found[i] - expected.value()[static_cast<index_t>(i)])) / scale);
  }
  return worst;
}

const std::vector<strata::LevelBudget> paper = {{0.0538, 0.0447}, {0.1338, 0.1497}};

/// A checkpoint of a small member of the family.
strata::Archive checkpoint(const std::string& name = "resnet20") {
  TrainingNet network(resnet::config_named(name, 10, {3, 32, 32}).value());
  resnet::randomise(network, 8);
  return train::to_state_dict(network, Level{0});
}

bool holds(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("parameters have torchvision's names, shapes and number") {
  // The numbers are those that torchvision's documentation gives for its models.
  check_parameters(resnet::resnet50(), expected_parameters({3, 4, 6, 3}, 64, true, 7, 1000), 25557032);
  check_parameters(resnet::config_named("resnet18", 1000, {3, 224, 224}).value(),
                   expected_parameters({2, 2, 2, 2}, 64, false, 7, 1000), 11689512);
  check_parameters(resnet::resnet50_small(), expected_parameters({3, 4, 6, 3}, 64, true, 3, 10), 23520842);
  check_parameters(resnet::resnet20(), expected_parameters({3, 3, 3}, 16, false, 3, 10), 272474);
  check_parameters(resnet::resnet56(), expected_parameters({9, 9, 9}, 16, false, 3, 10), 855770);
}

TEST_CASE("ResNet-50 of version 1.5 has its stride in the 3x3") {
  TrainingNet network(resnet::resnet50());
  train::count_uses(network);
  std::map<std::string, index_t> uses;
  std::int64_t multiply_adds = 0;
  for (const auto* parameter : train::parameters<float>(network)) {
    uses[parameter->name] = parameter->uses;
    if (parameter->shape.size() > 1) multiply_adds += parameter->uses * parameter->value.size();
  }
  CHECK(uses["conv1.weight"] == 112 * 112);
  CHECK(uses["layer2.0.conv1.weight"] == 56 * 56);
  CHECK(uses["layer2.0.conv2.weight"] == 28 * 28);
  CHECK(uses["layer4.2.conv3.weight"] == 7 * 7);
  CHECK(uses["fc.weight"] == 1);
  CHECK(multiply_adds == 4089184256);  // 4.09 G, as torchvision states
}

TEST_CASE("the halving stem makes a quarter of the work of the small one") {
  const auto multiply_adds = [](const std::string& name) {
    TrainingNet network(resnet::config_named(name, 10, {3, 32, 32}).value());
    train::count_uses(network);
    std::int64_t sum = 0;
    for (const auto* parameter : train::parameters<float>(network))
      if (parameter->shape.size() > 1 && parameter->name != "fc.weight")
        sum += parameter->uses * parameter->value.size();
    return sum;
  };
  CHECK(multiply_adds("resnet50-small") == 4 * multiply_adds("resnet50-halving"));
}

TEST_CASE("inference and training compute the same") {
  CHECK(difference(resnet::resnet50(64, 20), paper, 2) < 2e-5);
  CHECK(difference(resnet::resnet20(), paper, 3) < 2e-5);
  CHECK(difference(resnet::resnet20(7, {1, 28, 28}), {{0.2, 0.2}, {0.4, 0.4}, {1, 1}}, 1) < 2e-5);
  CHECK(difference(resnet::config_named("resnet18-small", 10, {3, 32, 32}).value(), paper, 1) < 2e-5);
  CHECK(difference(resnet::config_named("resnet50-halving", 10, {3, 32, 32}).value(), paper, 1) < 2e-5);
}

TEST_CASE("random masks are nested and hold both budgets") {
  for (const bool hold_flops : {true, false}) {
    TrainingNet network(resnet::resnet50(224));
    train::count_uses(network);
    resnet::mask_randomly(network, paper, hold_flops);
    const auto counts = train::count_layers<float>(network, 2);
    const auto low = strata::count_level(counts, Level{0});
    const auto high = strata::count_level(counts, Level{1});
    CHECK(low.weight_share() <= 0.0538);
    CHECK(low.weight_share() > 0.0537);
    CHECK(high.weight_share() <= 0.1338);
    CHECK(high.weight_share() > 0.1337);
    CHECK((low.flop_share() <= 0.0447) == hold_flops);
    CHECK(high.flop_share() <= 0.1497);
    const auto& stem = counts.front();
    CHECK(std::abs(static_cast<double>(stem.nnz[1]) - 3 * 0.1338 * 9408) < 0.05 * 9408);
  }
}

TEST_CASE("a model file comes back through the converter's path") {
  auto network = resnet::network_from(checkpoint(), "resnet20", 32, 32);
  REQUIRE(network.ok());
  REQUIRE(resnet::prune(network.value(), paper, 0.01, 0.05).ok());
  const auto counts = train::count_layers<float>(network.value(), 2);
  CHECK(strata::check_within(counts, paper).ok());
  CHECK(strata::count_level(counts, Level{1}).weight_share() > 0.13);

  // Recomputed statistics are those of the level: the mean of what its first convolution gives.
  std::vector<std::vector<float>> pictures(5, std::vector<float>(3072));
  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  for (auto& picture : pictures)
    for (float& value : picture) value = normal(random);
  strata::SerialExecutor executor;
  resnet::recalibrate(network.value(), 2, pictures, executor, 5);
  const auto& norms = network.value().conv1.norms();
  CHECK((norms[0].running_mean != norms[1].running_mean).any());

  const auto path =
      (std::filesystem::temp_directory_path() / ("strata_resnet_test" + std::to_string(::getpid()))).string();
  strata::save(network.value(), 2, path);
  const auto model = strata::try_load<resnet::ResNet>(path, {.self_check = true});
  REQUIRE(model.ok());
  CHECK(model.value().nnz(Level{1}) == strata::count_level(counts, Level{1}).weights);
  CHECK(model.value().network().config().blocks == resnet::resnet20().blocks);
  std::filesystem::remove(path);

  // A sparse checkpoint stays as it is where the budget allows it: its zeros belong to no level.
  const auto sparse = train::to_state_dict(network.value(), Level{1});
  auto again = resnet::network_from(sparse, "resnet20", 32, 32);
  REQUIRE(again.ok());
  REQUIRE(resnet::prune(again.value(), {{1, 1}}, 0, 0).ok());
  const auto kept = train::count_layers<float>(again.value(), 1);
  for (std::size_t l = 0; l < kept.size(); ++l) CHECK(kept[l].nnz[0] == counts[l].nnz[1]);
}

TEST_CASE("the converter knows other definitions' names and refuses what does not fit") {
  CHECK(resnet::torchvision_name("module.layer2.0.shortcut.1.running_var") == "layer2.0.downsample.1.running_var");
  CHECK(resnet::torchvision_name("linear.bias") == "fc.bias");
  CHECK(resnet::torchvision_name("layer1.0.conv1.weight") == "layer1.0.conv1.weight");

  const auto error_of = [](const strata::Archive& archive, const std::string& name) {
    const auto network = resnet::network_from(archive, name, 32, 32);
    REQUIRE_FALSE(network.ok());
    return std::string(network.error().what());
  };
  const auto good = checkpoint();
  CHECK(holds(error_of(good, "resnet21"), "one of resnet18"));
  CHECK(holds(error_of(good, "resnet56"), "layer1.3.conv1.weight: expected a parameter of shape [16, 16, 3, 3]"));
  CHECK(holds(error_of(checkpoint("resnet32"), "resnet20"), "no such parameter in this network"));
  CHECK(holds(error_of(good, "resnet50-small"), "conv1.weight: expected shape [64, 3, 3, 3], found [16, 3, 3, 3]"));
  CHECK(holds(error_of(strata::Archive(), "resnet20"), "fc.weight"));

  TrainingNet network(resnet::resnet20());
  const auto status = resnet::prune(network, paper, 0.5, 0.5);  // floors beyond the budget
  REQUIRE_FALSE(status.ok());
  CHECK(holds(status.error().what(), "budget of level 0"));
}

TEST_CASE("shortcuts without parameters are loaded as layers that compute the same") {
  const auto whole = checkpoint();
  const auto without = [&](const std::string& part) {
    strata::Archive archive;
    for (const auto& view : whole.arrays())
      if (!holds(view.name, part)) archive.add_view(view);
    return archive;
  };
  const strata::Archive option_a = without(".downsample.");
  REQUIRE(option_a.arrays().size() == whole.arrays().size() - 10);
  const auto loaded = resnet::network_from(option_a, "resnet20", 32, 32);
  REQUIRE(loaded.ok());

  // The rest is the checkpoint's.
  const auto again = train::to_state_dict(loaded.value(), Level{0});
  CHECK(again.arrays().size() == whole.arrays().size());
  for (const auto& view : option_a.arrays()) {
    const auto* found = again.find(view.name);
    REQUIRE(found != nullptr);
    CHECK(std::ranges::equal(found->as<float>(), view.as<float>()));
  }

  // x[:, :, ::2, ::2] between zeros for a quarter of the new channels on either side, of pictures of an odd height.
  strata::SerialExecutor executor;
  train::Context<float> context(executor);
  context.training = false;
  context.begin(Level{0});
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  for (const std::size_t stage : {1U, 2U}) {
    const auto& block = loaded.value().stages[stage].front();
    const index_t in = index_t{8} << stage;
    const strata::Shape shape{in, 7, 4};
    constexpr index_t batch = 3;
    std::vector<float> x(static_cast<std::size_t>(batch * shape.size()));
    for (float& value : x) value = normal(random);
    REQUIRE(block.downsample.has_value());
    const auto y = (*block.downsample)(context, train::input_tensor(context, x.data(), batch, shape));
    REQUIRE(y.batch() == batch);
    REQUIRE(y.shape() == strata::Shape{2 * in, 4, 2});
    double worst = 0;
    for (index_t image = 0; image < batch; ++image)
      for (index_t channel = 0; channel < 2 * in; ++channel)
        for (index_t row = 0; row < 4; ++row)
          for (index_t column = 0; column < 2; ++column) {
            const index_t source = channel - in / 2;
            float expected = 0;
            if (source >= 0 && source < in)
              expected = x[static_cast<std::size_t>(((image * in + source) * 7 + 2 * row) * 4 + 2 * column)];
            const float found = y.value()[((image * 4 + row) * 2 + column) * 2 * in + channel];  // channels last
            worst = std::max(worst, static_cast<double>(std::abs(found - expected)));
          }
    CHECK(worst < 1e-6);
  }

  // Levels keep them as they are, whatever is measured.
  auto pruned = loaded.value();
  REQUIRE(resnet::prune(pruned, paper, 0.01, 0.05).ok());
  std::vector<std::vector<float>> pictures(3, std::vector<float>(3072));
  for (auto& picture : pictures)
    for (float& value : picture) value = normal(random);
  resnet::recalibrate(pruned, 2, pictures, executor);
  for (const std::size_t stage : {1U, 2U}) {
    const auto& path = *pruned.stages[stage].front().downsample;
    const index_t in = index_t{8} << stage;
    index_t ones = 0;
    for (index_t i = 0; i < path.weight().value.size(); ++i) ones += path.weight().contains(i, Level{0}) ? 1 : 0;
    CHECK(ones == in);
    auto copy = path;
    REQUIRE(copy.norms().size() == 2);
    for (const auto& norm : copy.norms()) {
      CHECK((norm.running_mean == 0).all());
      CHECK((norm.running_variance == static_cast<float>(1 - train::norm_epsilon)).all());
    }
  }
  CHECK((pruned.conv1.norms()[0].running_mean != pruned.conv1.norms()[1].running_mean).any());

  // Some of the paths, and those of bottlenecks, are missing parameters.
  const auto error_of = [](const strata::Archive& archive, const std::string& name) {
    const auto network = resnet::network_from(archive, name, 32, 32);
    REQUIRE_FALSE(network.ok());
    return std::string(network.error().what());
  };
  CHECK(holds(error_of(without("layer3.0.downsample."), "resnet20"),
              "layer3.0.downsample.0.weight: expected a parameter of shape [64, 32, 1, 1], found none"));
  strata::Archive one_more = option_a;
  const std::vector<float> ones(32, 1);
  one_more.add<float>("module.layer2.0.shortcut.1.weight", {32}, 0, ones);
  CHECK(holds(error_of(one_more, "resnet20"), "layer2.0.downsample.0.weight: expected a parameter"));
  const auto bottlenecks = checkpoint("resnet50-small");
  strata::Archive bottlenecks_without;
  for (const auto& view : bottlenecks.arrays())
    if (!holds(view.name, ".downsample.")) bottlenecks_without.add_view(view);
  CHECK(holds(error_of(bottlenecks_without, "resnet50-small"), "layer1.0.downsample.0.weight: expected a parameter"));
}

TEST_CASE("configs that describe no network are refused") {
  const auto refused = [](auto&& change) {
    Config config = resnet::resnet20();
    change(config);
    if (config.check().ok()) return false;
    // The same through a model file, whose numbers anyone may have written.
    strata::Archive archive = strata::to_archive(TrainingNet(resnet::resnet20()), 1);
    config.visit([&](const char* name, auto& value) {
      archive.metadata()[std::string("config.") + name] = strata::detail::number_text(value);
    });
    return !Model::from_archive(archive).ok();
  };
  CHECK_FALSE(refused([](Config&) {}));
  CHECK(refused([](Config& c) { c.blocks = {0, 0, 0, 0}; }));
  CHECK(refused([](Config& c) { c.blocks = {1, 0, 1, 0}; }));
  CHECK(refused([](Config& c) { c.blocks[1] = std::numeric_limits<index_t>::max(); }));
  CHECK(refused([](Config& c) { c.blocks[2] = -1; }));
  CHECK(refused([](Config& c) { c.width = 0; }));
  CHECK(refused([](Config& c) { c.width = index_t{1} << 40; }));
  CHECK(refused([](Config& c) { c.stem = static_cast<resnet::Stem>(7); }));
  CHECK(refused([](Config& c) { c.classes = 0; }));
  CHECK(refused([](Config& c) { c.picture_channels = -3; }));
  CHECK(refused([](Config& c) { c.picture_height = index_t{1} << 50; }));
  CHECK(refused([](Config& c) { c.picture_width = 0; }));
}

TEST_CASE("the stored ResNet-20s hold their budgets and compute what they computed when they were stored") {
  // The files have an input and all levels' logits, which loading compares.
  const auto check = [](const char* name, const std::vector<strata::LevelBudget>& budgets) {
    const auto model = strata::load<resnet::ResNet>(std::string(STRATA_SOURCE_DIR "/examples/resnet/models/") + name,
                                                    {.self_check = true});
    REQUIRE(model.levels() == static_cast<int>(budgets.size()));
    TrainingNet network(model.network().config());
    train::count_uses(network);
    std::map<std::string, double> uses;
    double all_flops = 0;
    for (const auto* parameter : train::parameters<float>(network)) {
      uses[parameter->name] = static_cast<double>(parameter->uses);
      if (train::is_budgeted(*parameter))
        all_flops += uses[parameter->name] * static_cast<double>(parameter->value.size());
    }
    for (int level = 0; level < model.levels(); ++level) {
      INFO(name << ", level " << level);
      const strata::LevelBudget& budget = budgets[static_cast<std::size_t>(level)];
      CHECK(model.nnz(Level{level}) <= static_cast<index_t>(budget.weights * 270896));
      double flops = 0;
      strata::for_each_layer(
          model.network(), [&](const std::string& layer_name, const std::string&, const auto& layer) {
            if constexpr (requires { layer.weights().nnz(Level{0}); })
              flops += uses.at(layer_name + ".weight") * static_cast<double>(layer.weights().nnz(Level{level}));
          });
      CHECK(flops > 0.5 * budget.flops * all_flops);
      CHECK(flops <= budget.flops * all_flops);
    }
  };
  check("resnet20-cifar10.safetensors", {{0.0538, 0.0447}, {0.1338, 0.1497}});
  check("resnet20-cifar10-four.safetensors", {{0.025, 0.03}, {0.0538, 0.0447}, {0.1338, 0.1497}, {0.4, 0.4}});
}

TEST_CASE("the stored ResNet-20s keep their accuracy on every tenth test picture", "[cifar10]") {
  const char* const directory = std::getenv("STRATA_CIFAR10");
  if (directory == nullptr) {
    WARN("left out: no CIFAR-10, whose licence does not let it be shipped; STRATA_CIFAR10 names its directory");
    return;
  }
  if (std::filesystem::exists(std::string(directory) + "/test_batch.bin")) {
    WARN("left out: the accuracies are those on the JPEG copies, folders of pictures");
    return;
  }
  const auto data = std::move(examples::read_cifar(directory)).value().split.test;
  train::Dataset part{data.shape, data.classes, {}, {}, data.mean, data.deviation};
  for (index_t i = 0; i < data.size(); i += 10) {
    const auto first = data.pixels.begin() + i * data.shape.size();
    part.pixels.insert(part.pixels.end(), first, first + data.shape.size());
    part.labels.push_back(data.labels[static_cast<std::size_t>(i)]);
  }
  const auto check = [&](const char* name, const std::vector<double>& accuracies) {
    const auto model = strata::load<resnet::ResNet>(std::string(STRATA_SOURCE_DIR "/examples/resnet/models/") + name);
    // Instruction sets round differently: a picture or two may lie on the edge between classes.
    for (int level = 0; level < model.levels(); ++level) {
      INFO(name << ", level " << level);
      CHECK(std::abs(examples::accuracy(model, part, Level{level}, 2) - accuracies[static_cast<std::size_t>(level)]) <
            0.003);
    }
  };
  check("resnet20-cifar10.safetensors", {0.844, 0.868});
  check("resnet20-cifar10-four.safetensors", {0.781, 0.806, 0.842, 0.860});
}
