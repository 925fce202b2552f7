// GNMT of full size (4 + 4 layers of 1,024): milliseconds for reading a sentence of 25 words, and for a decoder step (4
// cells, attention over those words, 32,000 words to choose from), at batch 1 for the dense model and both levels, and
// the share of time of each kind of layer. Weights are random at the usual budgets. `--make DIR` writes the models, and
// a memory with logits for benchmarks/peers/gnmt, once; `--models DIR` times them (`--times`: one line of medians only,
// three of steps and three of sentences; `--threads N`). `--training` times a step of the small network (2 + 2 layers,
// `--width N`, 256; 8,000 words, batch 64, length 20) on all cores; with `--level 0` or `1` one of a path at that
// level, as in the phases with fixed masks.
#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include <strata/runtime/sequence_session.hpp>
#include <strata/strata.hpp>
#include <strata/train/optimiser.hpp>
#include <strata/train/training.hpp>
#include <strata/train/translation.hpp>

#include "../examples/gnmt/network.hpp"

namespace {

using strata::index_t;
using strata::Level;
using strata::TokenId;
namespace train = strata::train;
using Clock = std::chrono::steady_clock;
using TrainingNet = gnmt::Gnmt<train::Training<float>>;
using Model = strata::Model<gnmt::Gnmt>;

double since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// Time per kind of layer.
enum Kind : std::size_t { lstm, attention, output, other, kinds };
constexpr std::array<const char*, kinds> kind_names = {"LSTM cells", "attention", "output projection",
                                                       "embedding + concatenation"};
std::array<double, kinds> seconds_of{};

/// A layer of the inference family that is timed.
template <class Layer, Kind kind>
struct Timed : Layer {
  using Layer::Layer;
  template <class... Arguments>
  auto operator()(Arguments&&... arguments) const {
    const auto start = Clock::now();
    auto result = Layer::operator()(std::forward<Arguments>(arguments)...);
    seconds_of[kind] += since(start);
    return result;
  }
};

struct TimedInference : strata::Inference<float> {
  using Base = strata::Inference<float>;
  using Lstm = Timed<Base::Lstm, lstm>;
  using BahdanauAttention = Timed<Base::BahdanauAttention, attention>;
  using Linear = Timed<Base::Linear, output>;
  using Embedding = Timed<Base::Embedding, other>;
  using Concatenate = Timed<Base::Concatenate, other>;
};
using TimedModel = strata::Model<gnmt::Gnmt, TimedInference>;

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2), values.end());
  return values[values.size() / 2];
}

std::vector<TokenId> make_source() {
  std::vector<TokenId> source;
  for (TokenId i = 0; i < 25; ++i) source.push_back(4 + i * 37 % 900);
  return source;
}

void save_numbers(const std::string& path, std::span<const float> numbers) {
  (void)strata::io::write_atomically(path, {std::as_bytes(numbers)}).value();
}

/// Random masks of both levels.
void draw_levels(TrainingNet& network) {
  std::mt19937_64 random(2);
  for (auto* parameter : train::parameters<float>(network)) {
    if (!parameter->levelled) continue;
    parameter->strata.resize(static_cast<std::size_t>(parameter->value.size()));
    for (auto& stratum : parameter->strata) {
      const double draw = static_cast<double>(random() >> 11U) * 0x1p-53;
      stratum = draw < 0.0538 ? std::uint8_t{0} : (draw < 0.1338 ? std::uint8_t{1} : strata::StratumMap::absent);
    }
  }
}

void make_models(const std::string& directory) {
  TrainingNet network(TrainingNet::Config{});  // the full one
  train::initialise(network, 1);
  {
    const strata::Archive archive = strata::to_archive(network, 1);
    (void)strata::io::write_model(archive, directory + "/dense.safetensors").value();
    const Model model = Model::from_archive(archive).value();
    strata::SerialExecutor executor;
    Model::Network::Context context(executor);
    const std::vector<TokenId> source = make_source();
    const strata::SequenceShape shape{static_cast<index_t>(source.size()), 1, {}};
    const auto encoded = model.network().encoder(context, source, shape);
    std::vector<float> memory;
    for (index_t s = 0; s < shape.steps; ++s)
      for (index_t f = 0; f < encoded.shape().channels; ++f) memory.push_back(*encoded.row(s, f, 0));
    save_numbers(directory + "/memory.f32", memory);
    strata::SequenceSession<Model> session(model);
    session.encode(source);
    std::vector<float> logits;  // of two words one after the other
    for (const TokenId word : {strata::begin_token, TokenId{77}}) {
      const auto found = session.step(std::span(&word, 1), {});
      logits.insert(logits.end(), found.begin(), found.end());
    }
    save_numbers(directory + "/logits.f32", logits);
  }
  draw_levels(network);
  (void)strata::io::write_model(strata::to_archive(network, 2), directory + "/levels.safetensors").value();
}

void time_models(const std::string& directory, int threads, int rounds, bool times_only) {
  const strata::Archive dense_archive = strata::io::read_model(directory + "/dense.safetensors").value();
  const strata::Archive level_archive = strata::io::read_model(directory + "/levels.safetensors").value();
  const std::vector<TokenId> source = make_source();
  constexpr int steps = 8;  // of one sentence, as they follow each other in use
  constexpr std::array<const char*, 3> names = {"dense", "level 1", "level 0"};
  struct Times {
    std::vector<double> step, sentence;
  };
  /// What a run does after its sentence and after each step, with the milliseconds of it.
  struct Nothing {
    void operator()(double /*milliseconds*/) const {}
  };
  const auto run = [&](auto& session, Level level, auto&& after_sentence, auto&& after_step) {
    session.set_level(level);
    seconds_of = {};
    const auto begin = Clock::now();
    session.encode(source);
    after_sentence(1e3 * since(begin));
    TokenId word = strata::begin_token;
    for (int step = 0; step < steps; ++step) {
      seconds_of = {};
      const auto start = Clock::now();
      const auto logits = session.step(std::span(&word, 1), {});
      if (step > 1) after_step(1e3 * since(start));
      word = static_cast<TokenId>(std::max_element(logits.begin(), logits.end()) - logits.begin());
    }
  };
  std::array<Times, 3> times;
  {
    strata::SequenceSession<Model> dense(Model::from_archive(dense_archive).value(), {.threads = threads});
    strata::SequenceSession<Model> levels(Model::from_archive(level_archive).value(), {.threads = threads});
    for (int round = -1; round < rounds; ++round)  // one that is not counted: the session learns the sentence's size
      for (std::size_t r = 0; r < 3; ++r) {
        const auto note = [&](std::vector<double>& milliseconds) {
          return [&milliseconds, round](double value) {
            if (round >= 0) milliseconds.push_back(value);
          };
        };
        run(r == 0 ? dense : levels, Level{r == 1 ? 1 : 0}, note(times[r].sentence), note(times[r].step));
      }
  }
  if (times_only) {
    for (const Times& of : times) std::printf("%.4f ", median(of.step));
    std::printf("%.4f %.4f %.4f\n", median(times[0].sentence), median(times[1].sentence), median(times[2].sentence));
    return;
  }
  strata::SequenceSession<TimedModel> dense(TimedModel::from_archive(dense_archive).value(), {.threads = threads});
  strata::SequenceSession<TimedModel> levels(TimedModel::from_archive(level_archive).value(), {.threads = threads});
  for (const bool sentence : {false, true}) {
    std::printf("%-8s %8s", sentence ? "sentence" : "step", "ms");
    for (const char* name : kind_names) std::printf("  %s", name);
    std::printf("\n");
    for (std::size_t r = 0; r < 3; ++r) {
      std::array<std::vector<double>, kinds> parts;
      const auto note = [&](double /*milliseconds*/) {
        for (std::size_t k = 0; k < kinds; ++k) parts[k].push_back(1e3 * seconds_of[k]);
      };
      for (int round = 0; round < rounds; ++round) {
        auto& session = r == 0 ? dense : levels;
        const Level level{r == 1 ? 1 : 0};
        if (sentence) {
          run(session, level, note, Nothing());
        } else {
          run(session, level, Nothing(), note);
        }
      }
      double sum = 0;
      for (auto& part : parts) sum += median(part);
      std::printf("%-8s %8.3f", names[r], median(sentence ? times[r].sentence : times[r].step));
      for (std::size_t k = 0; k < kinds; ++k)
        std::printf("  %*.3f (%2.0f %%)", static_cast<int>(std::strlen(kind_names[k])) - 7, median(parts[k]),
                    100 * median(parts[k]) / sum);
      std::printf("\n");
    }
  }
}

/// `level` below 0: dense.
void time_training(int threads, int steps, index_t width, int level, bool times_only) {
  TrainingNet network(
      {.source_words = 8000, .target_words = 8000, .width = width, .encoder_layers = 2, .decoder_layers = 2});
  train::initialise(network, 1);
  if (level >= 0) draw_levels(network);
  train::SentencePairs data{{}, {}, 8000, 8000};
  std::mt19937 random(1);
  for (int i = 0; i < 64; ++i) {
    data.source.emplace_back();
    data.target.emplace_back();
    for (int t = 0; t < 20; ++t) data.source.back().push_back(static_cast<TokenId>(4 + random() % 7996));
    for (int t = 0; t < 19; ++t) data.target.back().push_back(static_cast<TokenId>(4 + random() % 7996));
  }
  train::Translation<float> task(data, {.step_multiple = 1});
  std::vector<std::uint32_t> indices(64);
  for (std::uint32_t i = 0; i < 64; ++i) indices[i] = i;
  task.load(indices);
  strata::ThreadPool pool(threads);
  train::Context<float> context(pool);
  const auto parameters = train::parameters<float>(network);
  train::AdamW<float> optimiser(parameters, {});
  std::vector<double> forward, backward, update;
  for (int step = 0; step < steps; ++step) {
    context.step = static_cast<std::uint64_t>(step);
    const auto start = Clock::now();
    train::clear_gradients(context, parameters);
    context.begin(Level{std::max(level, 0)});
    const auto logits = task.run(network, context);
    (void)task.loss(logits, {}, 0, 1, 1);
    const double after_loss = since(start);
    context.backward();
    const double after_backward = since(start);
    (void)train::clip_gradients(context, parameters, 5.0);
    optimiser.step(context, 1e-3);
    const double whole = since(start);
    forward.push_back(1e3 * after_loss);
    backward.push_back(1e3 * (after_backward - after_loss));
    update.push_back(1e3 * (whole - after_backward));
  }
  if (times_only) {
    std::printf("%.2f %.2f\n", median(forward) + median(backward), median(update));
  } else {
    std::printf("forward with loss %.1f ms, backward %.1f ms, together %.1f ms; clipping and AdamW %.1f ms\n",
                median(forward), median(backward), median(forward) + median(backward), median(update));
  }
}

}  // namespace

int main(int argc, char** argv) {
  bool times_only = false;
  bool training = false;
  std::string make, models;
  int rounds = 10;
  int threads = 0;
  int width = 256;
  int level = -1;
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    if (argument == "--times") {
      times_only = true;
    } else if (argument == "--training") {
      training = true;
    } else if (argument == "--make" && i + 1 < argc) {
      make = argv[++i];
    } else if (argument == "--models" && i + 1 < argc) {
      models = argv[++i];
    } else if (argument == "--rounds" && i + 1 < argc) {
      rounds = std::max(1, std::atoi(argv[++i]));
    } else if (argument == "--threads" && i + 1 < argc) {
      threads = std::max(1, std::atoi(argv[++i]));
    } else if (argument == "--width" && i + 1 < argc) {
      width = std::max(2, std::atoi(argv[++i]));
    } else if (argument == "--level" && i + 1 < argc) {
      level = std::clamp(std::atoi(argv[++i]), 0, 1);
    } else {
      std::fprintf(stderr,
                   "usage: gnmt_latency --make DIR | --models DIR | --training [--width N] [--level 0|1] [--times] "
                   "[--rounds N] [--threads N]\n");
      return 2;
    }
  }
  if (!make.empty()) make_models(make);
  if (!models.empty()) time_models(models, threads == 0 ? 1 : threads, rounds, times_only);
  if (training)
    time_training(threads == 0 ? static_cast<int>(std::thread::hardware_concurrency()) : threads, rounds, width, level,
                  times_only);
  return 0;
}
