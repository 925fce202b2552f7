// Machine translation with a multi-level sparse GNMT: trains it on parallel text with nested levels or as one of the
// baselines it is judged by, translates with it and reports BLEU, weights and FLOPs of every level.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include <strata/io/atomic_file.hpp>
#include <strata/runtime/thread_pool.hpp>
#include <strata/train/fit.hpp>
#include <strata/train/translation.hpp>

#include "../support/command.hpp"
#include "../support/levels.hpp"
#include "../support/rows.hpp"
#include "../support/run_options.hpp"
#include "../support/table.hpp"
#include "../support/training_run.hpp"
#include "bleu.hpp"
#include "corpus.hpp"
#include "initialise.hpp"
#include "network.hpp"
#include "pairs.hpp"
#include "translator.hpp"
#include "vocabulary.hpp"

namespace {

using gnmt::index_t;
using strata::Level;
namespace train = strata::train;
using TrainingNet = gnmt::Gnmt<train::Training<float>>;
using Clock = std::chrono::steady_clock;

struct DataOptions {
  std::string directory;
  std::string source = "de";
  std::string target = "en";
  bool test = false;
};

struct SearchOptions {
  gnmt::BeamOptions beam;
  index_t longest_source = 500;
  int threads = static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
};

/// Epochs of the phases: 60 % dense; of the rest a quarter on pruning, an eighth on tuning.
constexpr examples::PhaseShares shares{.dense = 0.6, .prune = 0.25, .tune = 0.125};

struct TrainOptions : examples::RunOptions {
  DataOptions data;
  SearchOptions search;
  gnmt::VocabularyOptions words{.merges = 4000};
  bool joint = false;
  index_t longest = 80;
  index_t limit = 0;
  TrainingNet::Config network{.width = 256, .encoder_layers = 2, .decoder_layers = 2, .dropout = 0.3};
  index_t batch = 64;
  double rate = 1e-3;
  double decay = 1e-4;
  double smoothing = 0.1;
  double clip = 5;
};

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

train::Recipe recipe_for(const TrainOptions& options) {
  train::Recipe recipe;
  recipe.batch = options.batch;
  recipe.adamw = true;
  recipe.decay = options.decay;
  recipe.clip = options.clip;
  recipe.dense_rate = options.rate;
  recipe.sparse_rate = options.rate;
  recipe.tune_rate = options.rate / 3;
  recipe.warm_up_epochs = options.epochs / 40;
  recipe.temperature = 1;
  recipe.recalibration_batches = 0;  // nothing is normalised by batches
  examples::plan_run(recipe, options, shares, options.network.dropout);
  if (!recipe.levels.empty()) recipe.floor = 0.02;
  return recipe;
}

gnmt::Vocabularies learn_words(const TrainOptions& options, const gnmt::ParallelText& text) {
  const std::span<const std::string> source(text.source);
  const std::span<const std::string> target(text.target);
  if (!options.joint)
    return {gnmt::Vocabulary::learn({&source, 1}, options.words), gnmt::Vocabulary::learn({&target, 1}, options.words)};
  const std::span<const std::string> both[] = {source, target};
  const auto words = gnmt::Vocabulary::learn(both, options.words);
  return {words, words};
}

/// Sources of `lines` as the network reads them; says on the error stream which of them are cut.
std::vector<std::vector<std::int32_t>> sources_of(std::span<const std::string> lines,
                                                  const gnmt::Vocabulary& vocabulary, index_t longest) {
  std::vector<std::vector<std::int32_t>> sources;
  for (const std::string& line : lines) {
    bool cut = false;
    sources.push_back(gnmt::source_of(vocabulary, line, longest, &cut));
    if (cut)
      std::fprintf(stderr, "gnmt: line %zu is cut to %lld words (--longest-source)\n", sources.size(),
                   static_cast<long long>(longest));
  }
  return sources;
}

struct Judgement {
  gnmt::BleuScore bleu;
  std::string signature;
  double seconds = 0;  ///< of translating
};

/// BLEU of `level`, or of a `drop` from it, on `text`. A model that writes lower case is compared in lower case.
Judgement judge(const gnmt::Translator& translator, Level level, const std::optional<gnmt::LevelDrop>& drop,
                const gnmt::ParallelText& text, const SearchOptions& options) {
  const auto sources = sources_of(text.source, translator.words.source, options.longest_source);
  const auto start = Clock::now();
  const auto translations = gnmt::translate_all(translator.model, level, sources, options.beam, options.threads, drop);
  Judgement judgement;
  judgement.seconds = seconds_since(start);
  gnmt::Bleu bleu(translator.words.target.lower_case());
  for (std::size_t i = 0; i < translations.size(); ++i)
    bleu.add(translator.words.target.decode(translations[i]), text.target[i]);
  judgement.bleu = bleu.score();
  judgement.signature = bleu.signature();
  return judgement;
}

/// "multi30k de-en".
std::string name_of(const DataOptions& data) {
  return examples::data_name(data.directory) + " " + data.source + "-" + data.target;
}

void write_text(const std::string& path, const std::string& text) {
  (void)strata::io::write_atomically(path, {std::as_bytes(std::span(text))}).value();
}

/// The validation text and, if it is asked for, the test text; none otherwise.
struct JudgedTexts {
  gnmt::ParallelText validation, test;
};

JudgedTexts read_judged(const DataOptions& data) {
  JudgedTexts texts;
  texts.validation = std::move(gnmt::read_parallel(data.directory, "val", data.source, data.target)).value();
  if (data.test)
    texts.test = std::move(gnmt::read_parallel(data.directory, "test_2016_flickr", data.source, data.target)).value();
  return texts;
}

/// Rows of a report and the table of what they say.
class Report {
 public:
  Report(const DataOptions& data, const SearchOptions& search)
      : data_(data), search_(search), texts_(read_judged(data)) {}

  /// Judges `level`, or a `drop` from it; `row` has what is known of it besides, `cells` are the first ones of its
  /// line, which is told on the error stream too: to judge takes longer than a terminal should be silent.
  void add(const gnmt::Translator& translator, Level level, nlohmann::json row, std::vector<std::string> cells,
           const std::optional<gnmt::LevelDrop>& drop = {}) {
    const Judgement validation = judge(translator, level, drop, texts_.validation, search_);
    std::fprintf(stderr, "judged: %s, BLEU %.2f (val)\n", cells.front().c_str(), validation.bleu.score);
    cells.push_back(examples::fixed(validation.bleu.score, 2));
    signature_ = validation.signature;
    row["network"] = "gnmt";
    row["data"] = name_of(data_);
    row["split"] = data_.test ? "test" : "validation";
    row["validation"] = validation.bleu.score;
    row["metric"] = "BLEU";
    row["accuracy"] = row["bleu"] = nullptr;
    if (data_.test) {
      const Judgement test = judge(translator, level, drop, texts_.test, search_);
      cells.push_back(examples::fixed(test.bleu.score, 2));
      row["bleu"] = test.bleu.score;
      row["accuracy"] = test.bleu.score / 100;
      row["brevity_penalty"] = test.bleu.brevity_penalty;
    }
    const double milliseconds = 1e3 * validation.seconds / static_cast<double>(texts_.validation.source.size());
    cells.push_back(examples::fixed(milliseconds, 1));
    row["ms_per_sentence"] = milliseconds;
    row["threads"] = search_.threads;
    row["beam"] = search_.beam.beam;
    row["length_penalty"] = search_.beam.length_penalty;
    row["coverage_penalty"] = search_.beam.coverage_penalty;
    row["signature"] = signature_;
    rows_.push_back(std::move(row));
    lines_.push_back(std::move(cells));
  }

  /// Prints the table below `columns`, names of the first cells, and writes the rows to `path` if there is one.
  void finish(std::vector<std::string> columns, const std::string& path) const {
    columns.emplace_back("BLEU, val");
    if (data_.test) columns.emplace_back("BLEU, test");
    columns.emplace_back("ms/sentence, val");
    examples::Table table(std::move(columns));
    for (const auto& line : lines_) table.add(line);
    std::printf("%sBLEU: %s, beam %lld, length penalty %g, coverage penalty %g; times with %d threads\n",
                table.text().c_str(), signature_.c_str(), static_cast<long long>(search_.beam.beam),
                search_.beam.length_penalty, search_.beam.coverage_penalty, search_.threads);
    if (path.empty()) return;
    std::string text = "[";
    for (std::size_t i = 0; i < rows_.size(); ++i) text += (i == 0 ? "\n" : ",\n") + rows_[i].dump();
    write_text(path, text + "\n]\n");
  }

 private:
  DataOptions data_;
  SearchOptions search_;
  JudgedTexts texts_;
  std::string signature_;
  std::vector<nlohmann::json> rows_;
  std::vector<std::vector<std::string>> lines_;
};

/// Calls `f(from, drop, name)` for drops from each of levels `first` .. `last`, the highest first, to each below
/// it: before every layer of the encoder but the first, before the decoder, and after the words 1, 5 and 10 of
/// translations.
template <class F>
void for_each_drop(const gnmt::Translator& translator, int first, int last, const F& f) {
  for (int from = last; from >= first; --from)
    for (int to = from - 1; to >= 0; --to) {
      const auto at = [&](index_t encoder_layer, index_t words) {
        const gnmt::LevelDrop drop{Level{to}, encoder_layer, words};
        f(Level{from}, drop, std::to_string(from) + ">" + std::to_string(to) + " " + drop.place());
      };
      for (index_t layer = 1; layer < translator.model.network().config().encoder_layers; ++layer) at(layer, 0);
      for (const index_t words : {0, 1, 5, 10}) at(0, words);
    }
}

int run_train(TrainOptions options, const std::string& command) {
  const train::Recipe recipe = recipe_for(options);
  examples::check_report(options.report);
  gnmt::ParallelText text =
      std::move(gnmt::read_parallel(options.data.directory, "train", options.data.source, options.data.target)).value();
  if (options.limit > 0 && options.limit < static_cast<index_t>(text.source.size())) {
    text.source.resize(static_cast<std::size_t>(options.limit));
    text.target.resize(static_cast<std::size_t>(options.limit));
  }
  Report report(options.data, options.search);
  const gnmt::Vocabularies words = learn_words(options, text);
  const auto learnt = gnmt::encode_pairs(text, words.source, words.target, options.longest);
  std::fprintf(stderr,
               "%lld pairs to learn from; left out: %lld with an empty side, %lld too long. Vocabularies: %d and %d\n",
               static_cast<long long>(learnt.pairs.size()), static_cast<long long>(learnt.empty),
               static_cast<long long>(learnt.too_long), words.source.size(), words.target.size());
  options.network.source_words = words.source.size();
  options.network.target_words = words.target.size();
  std::filesystem::create_directories(options.out);
  train::Translation<float> task(learnt.pairs, {.smoothing = options.smoothing});
  TrainingNet network(options.network);
  gnmt::initialise(network, options.seed);
  strata::ThreadPool pool(options.search.threads);
  train::Trainer<TrainingNet, train::Translation<float>> trainer(network, task, recipe, pool);
  const auto trained = examples::run_training(
      trainer, options.batch,
      {.checkpoint = options.out + "/checkpoint.safetensors",
       .resume = options.resume,
       .dense_from = options.dense_from,
       .checkpoint_seconds = 120,
       .stop_after = options.stop_after,
       .steps_per_epoch = std::max<std::int64_t>(1, strata::ceil_div(task.size(), options.batch))});
  if (!trained.finished) return examples::unfinished;

  const auto counts = train::count_layers<float>(network, trainer.levels());
  if (!recipe.levels.empty()) (void)strata::check_within(counts, recipe.levels).value();
  const std::string model_path = options.out + "/model.safetensors";
  gnmt::save_translator(network, trainer.levels(), words, model_path);
  const auto translator = std::move(gnmt::load_translator(model_path, {.self_check = true})).value();
  /// `name` is "dense" or a level's; a drop, whose cost lies between those of its levels, has no `count`.
  const auto add = [&](const gnmt::Translator& judged, Level level, const nlohmann::json& name,
                       const std::optional<strata::LevelCount>& count, double epochs, double seconds,
                       const std::optional<gnmt::LevelDrop>& drop = {}) {
    nlohmann::json row = {{"seed", options.seed}, {"arm", options.arm}, {"level", name},      {"weights", nullptr},
                          {"flops", nullptr},     {"epochs", epochs},   {"seconds", seconds}, {"command", command}};
    std::vector<std::string> cells = {name == "dense" ? "dense" : "level " + examples::level_text(row), "", "", ""};
    if (count) {
      row["weights"] = count->weight_share();
      row["flops"] = count->flop_share();
      cells[1] = examples::percent(count->weight_share(), 2);
      cells[2] = examples::percent(count->flop_share(), 2);
      cells[3] = examples::fixed(static_cast<double>(judged.model.bytes(level)) / 1024, 0);
    }
    report.add(judged, level, std::move(row), std::move(cells), drop);
  };
  const strata::LevelCount whole{.weights = 1, .flops = 1, .total_weights = 1, .total_flops = 1};
  if (recipe.levels.empty()) {
    add(translator, Level{0}, "dense", whole, options.epochs, trained.seconds);
  } else {
    // The dense model that a sparse arm starts from had fewer epochs than the dense arm: its row says so.
    const std::string dense_path = options.out + "/dense.safetensors";
    gnmt::save_translator(*trainer.dense(), 1, words, dense_path);
    add(std::move(gnmt::load_translator(dense_path, {.self_check = true})).value(), Level{0}, "dense", whole,
        recipe.dense_epochs, trained.dense_seconds);
    const auto stored = examples::stored_counts(translator.model, counts, model_path);
    const double level_epochs = examples::epochs_of_levels(options, recipe);
    for (int level = translator.model.levels() - 1; level >= 0; --level)
      add(translator, Level{level}, examples::level_of_budgets(options, level), stored[static_cast<std::size_t>(level)],
          level_epochs, trained.seconds);
    if (options.switches)
      for_each_drop(translator, 1, translator.model.levels() - 1,
                    [&](Level from, const gnmt::LevelDrop& drop, const std::string& name) {
                      add(translator, from, name, {}, level_epochs, trained.seconds, drop);
                    });
  }
  report.finish({"model", "weights", "FLOPs", "KiB"}, options.report);
  std::printf("%.0f seconds of training. Model: %s\n", trained.seconds, model_path.c_str());
  return 0;
}

struct ModelOptions {
  std::string path;
  int level = -1;  ///< below 0: the fullest one, or all of them
};

/// Raises: no such level.
Level level_of(const gnmt::Translator& translator, const ModelOptions& options) {
  const int level = options.level < 0 ? translator.model.levels() - 1 : options.level;
  if (level >= translator.model.levels())
    strata::raise(strata::Error("--level",
                                "at most " + std::to_string(translator.model.levels() - 1) + " for " + options.path,
                                std::to_string(level)));
  return Level{level};
}

int run_translate(const ModelOptions& model, const SearchOptions& search, const std::string& file) {
  const auto translator = std::move(gnmt::load_translator(model.path)).value();
  const Level level = level_of(translator, model);
  const std::vector<std::string> lines =
      std::move(file.empty() ? gnmt::read_lines(std::cin, "standard input") : gnmt::read_lines(file)).value();
  const auto sources = sources_of(lines, translator.words.source, search.longest_source);
  for (const auto& words : gnmt::translate_all(translator.model, level, sources, search.beam, search.threads))
    std::printf("%s\n", translator.words.target.decode(words).c_str());
  if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0)
    strata::raise(strata::Error("standard output", "room for all translations", "a failure to write"));
  return 0;
}

int run_evaluate(const ModelOptions& model, const DataOptions& data, const SearchOptions& search, bool switches,
                 const std::string& path, const std::string& command) {
  examples::check_report(path);
  const auto translator = std::move(gnmt::load_translator(model.path)).value();
  const int top = level_of(translator, model).index;
  if (switches && top == 0) strata::raise(strata::Error("--switches", "a level above 0 to drop from", "level 0"));
  Report report(data, search);
  for (int level = top; level >= (model.level < 0 ? 0 : top); --level)
    report.add(translator, Level{level},
               {{"level", level}, {"nnz", translator.model.nnz(Level{level})}, {"command", command}},
               {"level " + std::to_string(level), std::to_string(translator.model.nnz(Level{level})),
                examples::fixed(static_cast<double>(translator.model.bytes(Level{level})) / 1024, 0)});
  if (switches)
    for_each_drop(translator, model.level < 0 ? 1 : top, top,
                  [&](Level from, const gnmt::LevelDrop& drop, const std::string& name) {
                    report.add(translator, from, {{"level", name}, {"nnz", nullptr}, {"command", command}},
                               {"level " + name, "", ""}, drop);
                  });
  report.finish({"model", "weights", "KiB"}, path);
  return 0;
}

/// What `--switches` does, for the help of both commands that have it.
constexpr const char* switches_help =
    "judge translations that drop to a lower level as well: between layers of the encoder, before the decoder, and "
    "after the words 1, 5 and 10";

void add_data_options(CLI::App& app, DataOptions& data) {
  app.add_option(
         "--data", data.directory,
         "directory with train, val and test_2016_flickr as text in both languages (train.de, ... or train.de.xz)")
      ->required();
  app.add_option("--source", data.source, "language to translate from")->capture_default_str();
  app.add_option("--target", data.target, "language to translate to")->capture_default_str();
  app.add_flag("--test", data.test, "judge by test_2016_flickr too: once, when all choices are made");
}

void add_search_options(CLI::App& app, SearchOptions& search) {
  app.add_option("--beam", search.beam.beam, "hypotheses of beam search; 1: greedy")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  app.add_option("--length-penalty", search.beam.length_penalty, "alpha of GNMT's length normalisation")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--coverage-penalty", search.beam.coverage_penalty, "beta of GNMT's coverage penalty")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--longest-translation", search.beam.longest, "words or pieces at most")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  app.add_option("--longest-source", search.longest_source, "words or pieces of a sentence that are read")
      ->check(CLI::Range(1, 1000000))
      ->capture_default_str();
  app.add_option("--threads", search.threads, "each translates sentences of its own")
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
}

void add_model_options(CLI::App& app, ModelOptions& model, const char* level) {
  app.add_option("model", model.path, "model file")->required();
  app.add_option("--level", model.level, level)->check(CLI::NonNegativeNumber);
}

void add_train_options(CLI::App& app, TrainOptions& options, bool& whole_words) {
  add_data_options(app, options.data);
  add_search_options(app, options.search);
  options.epochs = 18;
  options.out = "gnmt-out";
  examples::add_run_options(app, options, shares, {.switches = switches_help});
  app.add_option("--merges", options.words.merges, "byte pairs that are learnt, for each vocabulary")
      ->check(CLI::Range(0, 1000000))
      ->capture_default_str();
  app.add_flag("--whole-words", whole_words, "a vocabulary of words instead of byte pairs");
  app.add_option("--most-words", options.words.most_words, "of a vocabulary of words")
      ->check(CLI::Range(1, 10000000))
      ->capture_default_str();
  app.add_flag("--joint", options.joint, "one vocabulary for both languages instead of one each");
  app.add_flag("--lower-case", options.words.lower_case, "translate in lower case; BLEU then is of lower case");
  app.add_option("--longest", options.longest, "words or pieces of sentences to learn from")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  app.add_option("--limit", options.limit, "training pairs at most; 0: all")->check(CLI::NonNegativeNumber);
  app.add_option("--width", options.network.width, "features of embeddings, cells and attention")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  app.add_option("--encoder-layers", options.network.encoder_layers)->check(CLI::Range(1, 64))->capture_default_str();
  app.add_option("--decoder-layers", options.network.decoder_layers)->check(CLI::Range(1, 64))->capture_default_str();
  app.add_option("--dropout", options.network.dropout)->check(CLI::Range(0.0, 0.99))->capture_default_str();
  app.add_option("--batch", options.batch, "sentence pairs a step")->check(CLI::Range(1, 65536))->capture_default_str();
  app.add_option("--rate", options.rate, "learning rate of AdamW")->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--decay", options.decay, "weight decay of AdamW")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--smoothing", options.smoothing, "of labels")->check(CLI::Range(0.0, 0.99))->capture_default_str();
  app.add_option("--clip", options.clip, "largest norm of the gradient; 0: none")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"Machine translation with nested sparse levels."};
  app.require_subcommand(1);
  TrainOptions training;
  DataOptions data;
  SearchOptions search;
  ModelOptions model;
  bool whole_words = false;
  bool switches = false;
  std::string file, report;
  CLI::App* const train_app =
      app.add_subcommand("train", "trains on parallel text; ends with 3 if --stop-after or a signal cut the run short");
  add_train_options(*train_app, training, whole_words);
  CLI::App* const translate_app = app.add_subcommand("translate", "translates text, a sentence a line");
  add_model_options(*translate_app, model, "default: the fullest one");
  translate_app->add_option("file", file, "text, plain or .xz; default: standard input");
  add_search_options(*translate_app, search);
  CLI::App* const evaluate_app = app.add_subcommand("evaluate", "BLEU and time of a model's levels");
  add_model_options(*evaluate_app, model, "default: all of them");
  add_data_options(*evaluate_app, data);
  add_search_options(*evaluate_app, search);
  evaluate_app->add_flag("--switches", switches, switches_help);
  evaluate_app->add_option("--report", report,
                           "file for the numbers of the table as JSON; not for `results`, since a model file tells "
                           "neither arm nor seed");
  CLI11_PARSE(app, argc, argv);
  training.words.byte_pairs = !whole_words;
  const std::string command = examples::command_of("gnmt", argc, argv);
  try {
    if (*train_app) return run_train(training, command);
    if (*translate_app) return run_translate(model, search, file);
    return run_evaluate(model, data, search, switches, report, command);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "gnmt: %s\n", error.what());
    return 1;
  }
}
