// The weights that training begins with.
#pragma once

#include <cstdint>

#include <strata/train/training.hpp>

namespace gnmt {

/// `strata::train::initialise` with larger embeddings: uniform in [-1, 1). The [-0.1, 0.1) of GNMT suits 1024 features;
/// the cells of a narrow network would hear almost nothing of the words at first, and it would long write the same
/// sentence whatever the source is.
template <class Network>
void initialise(Network& network, std::uint64_t seed) {
  strata::train::initialise(network, seed);
  network.encoder.embedder.weight().value *= 10;
  network.decoder.embedder.weight().value *= 10;
}

}  // namespace gnmt
