// A network with its parameters, ready to run: immutable, shared between sessions and threads.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include <strata/core/archive.hpp>
#include <strata/core/error.hpp>
#include <strata/layers/exchange.hpp>
#include <strata/layers/inference.hpp>
#include <strata/layers/module.hpp>
#include <strata/runtime/residency.hpp>

namespace strata {

/// The nested models of one network. Copies share the parameters.
template <template <class> class Net, class Family_ = Inference<>>
class Model {
 public:
  using Family = Family_;
  using Network = Net<Family>;
  using Config = typename Network::Config;

  /// Builds the network that `archive` describes and fills it with views of the archive's arrays, which it keeps alive.
  /// Errors: another architecture or config, parameters missing, left over or invalid. (In a build without exceptions a
  /// config that the network's constructor refuses ends the program.)
  [[nodiscard]] STRATA_COLD static Result<Model> from_archive(const Archive& archive) {
    Result<Config> config = config_of<Network>(archive);
    if (!config) return config.error();
    // Constructors of layers raise; a stored config that describes no layer is an error of the file all the same.
    using Made = Result<std::shared_ptr<Network>>;
    Made made = returning_errors([&]() -> Made { return std::make_shared<Network>(config.value()); });
    if (!made) return made.error().within("config");
    return returning_errors([&]() -> Result<Model> {
      std::shared_ptr<Network> network = std::move(made).value();
      if (Status status = strata::from_archive(*network, archive); !status) return status.error();
      return Model(std::move(network), archive);
    });
  }

  /// Nested models; levels are 0 .. levels()-1.
  [[nodiscard]] int levels() const noexcept { return levels_; }
  [[nodiscard]] const Network& network() const noexcept { return *network_; }
  [[nodiscard]] Shape input_shape() const { return network_->input_shape(); }

  /// The text entries of the file or archive: what the program that made it wrote beside the weights.
  [[nodiscard]] const std::map<std::string, std::string>& metadata() const noexcept { return *metadata_; }

  /// Tells this model from others of the same levels: architecture, config and level 0's parameters. The same for the
  /// archive, the file written from it and every prefix of that file.
  [[nodiscard]] std::uint64_t fingerprint() const noexcept { return fingerprint_; }

  /// The highest level whose memory is there; the fullest one unless `release_above` was called. A run at a higher
  /// level, in any session, runs this one.
  [[nodiscard]] Level present() const noexcept { return residency_->present(); }
  /// Gives the memory of all strata above `level` back to the system: waits for runs above `level` that are under way,
  /// then returns the bytes given back. Others may run the model meanwhile. Not for a real-time thread. Raises: no such
  /// level, a model that is not mapped from a file.
  index_t release_above(Level level) const {  // NOLINT(modernize-use-nodiscard): the bytes are for who asks
    return residency_->release_above(level).value();
  }
  /// Starts to read the strata up to `level` from the file again, on a thread of its own; `present()` follows, and
  /// `wait_restored` waits. One under way that goes as far or further goes on. Raises: no such level, a thread that
  /// cannot be started.
  void restore(Level level) const { (void)residency_->restore(level).value(); }
  void wait_restored() const { residency_->wait(); }
  /// The ledger of what is present, for sessions.
  [[nodiscard]] Residency& residency() const noexcept { return *residency_; }

  /// Weights (of convolutions and linear layers) that `level` holds; beyond the fullest level: that one's.
  [[nodiscard]] index_t nnz(Level level) const {
    index_t count = 0;
    for_each_layer(*network_, [&](const std::string&, const std::string&, const auto& layer) {
      if constexpr (requires { layer.weights().nnz(level); }) count += layer.weights().nnz(level);
    });
    return count;
  }

  /// Bytes of parameters that a run at `level` reads; beyond the fullest level: that one's.
  [[nodiscard]] index_t bytes(Level level) const {
    index_t count = 0;
    for_each_layer(*network_, [&](const std::string&, const std::string&, const auto& layer) {
      if constexpr (requires { layer.weights().bytes(level); }) count += layer.weights().bytes(level);
    });
    return count;
  }

 private:
  Model(std::shared_ptr<const Network> network, const Archive& archive)
      : network_(std::move(network)),
        residency_(std::make_shared<Residency>(archive)),
        metadata_(std::make_shared<const std::map<std::string, std::string>>(archive.metadata())),
        fingerprint_(fingerprint_of(archive)),
        levels_(archive.levels()) {}

  std::shared_ptr<const Network> network_;
  std::shared_ptr<Residency> residency_;
  std::shared_ptr<const std::map<std::string, std::string>> metadata_;
  std::uint64_t fingerprint_ = 0;
  int levels_ = 1;
};

}  // namespace strata
