// A small input for any network and what each of its levels makes of it: what self-checks of model files store and
// replay (io/model_file.hpp). Here for networks of pictures and vectors; those of sequences and of graphs have theirs
// beside their sessions.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include <strata/core/error.hpp>
#include <strata/core/types.hpp>
#include <strata/runtime/session.hpp>

namespace strata {

/// Fills `numbers` with the same numbers on every machine, in [-1, 1).
template <class Scalar>
void sample_numbers(std::vector<Scalar>& numbers) {
  std::uint32_t state = 1;
  for (Scalar& number : numbers) {
    state = state * 1664525U + 1013904223U;
    number = static_cast<Scalar>(static_cast<std::int32_t>(state) / 2147483648.0);
  }
}

/// A session with a small input of its own.
template <class Model>
class SampleRun {
 public:
  using Scalar = typename Model::Family::Scalar;

  explicit SampleRun(Model model) : session_(std::move(model)), input_(session_.input().size()) {
    sample_numbers(input_);
  }

  /// Calls `f(name, vector of numbers)` for each array of the input. `f` may change numbers, but not how many.
  template <class F>
  void visit_input(F&& f) {
    f("input", input_);
  }

  /// What the model makes of the input at `level`; valid until the next run. Errors: numbers that are no input.
  /// Precondition: a level of the model.
  [[nodiscard]] Result<std::span<const Scalar>> run(Level level) {
    if (Status status = session_.check_input(input_); !status) return status.error();
    return session_.run(input_, level);
  }

 private:
  Session<Model> session_;
  std::vector<Scalar> input_;
};

}  // namespace strata
