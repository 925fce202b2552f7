// Tables and plots from the rows of experiments, the JSON files in docs/results: of one network, and over all of them.
//
//   results merge       adds the rows of runs to a file of rows
//   results show        table, and a plot of accuracy against FLOPs, of one file
//   results headline    the table over all networks beside the paper's figures
//   results parameters  what model files hold: weights, embeddings, normalisations at every level
#include <CLI/CLI.hpp>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include <strata/io/atomic_file.hpp>
#include <strata/io/model_file.hpp>

#include "../support/parameters.hpp"
#include "../support/plot.hpp"
#include "../support/rows.hpp"
#include "../support/rows_report.hpp"
#include "../support/table.hpp"

namespace {

/// What arXiv 2112.10930 says of its four networks on average.
struct PaperLevel {
  double weights, flops, relative_loss;
};
constexpr PaperLevel paper[] = {{0.0538, 0.0447, 0.0325}, {0.1338, 0.1497, 0}};

nlohmann::json read_existing(const std::string& path, examples::Settings settings = examples::Settings::one_an_arm) {
  if (!std::filesystem::exists(path)) strata::raise(strata::Error(path, "a file of rows", "none"));
  return std::move(examples::read_rows(path, settings)).value();
}

void merge(const std::string& into, const std::vector<std::string>& files) {
  nlohmann::json rows = std::move(examples::read_rows(into)).value();
  const std::size_t before = rows.size();
  for (const std::string& file : files) (void)examples::merge_rows(rows, read_existing(file), file).value();
  (void)examples::write_rows(rows, into).value();
  std::printf("%s: %zu rows, %zu of them new\n", into.c_str(), rows.size(), rows.size() - before);
}

void show(const std::string& file, const std::string& plot) {
  const nlohmann::json rows = read_existing(file, examples::Settings::several);
  std::printf("%s", examples::rows_table(rows, "accuracy").text().c_str());
  if (plot.empty() || rows.empty()) return;
  const auto& first = rows.front();
  const std::string metric = first.value("metric", "accuracy");
  (void)examples::write_svg(
      examples::rows_plot(rows, "accuracy",
                          std::string(first.at("network")) + " on " + std::string(first.at("data")) + ": " + metric +
                              " against FLOPs, means over seeds",
                          metric + ", %"),
      plot)
      .value();
}

/// "1.23 (0.40 .. 2.06)" in percent, without the interval if there is none.
std::string loss_text(const examples::HeadlineLevel& level) {
  std::string text = examples::fixed(100 * level.relative_loss, 2);
  if (std::isfinite(level.half))
    text += " (" + examples::fixed(100 * (level.relative_loss - level.half), 2) + " .. " +
            examples::fixed(100 * (level.relative_loss + level.half), 2) + ")";
  return text;
}

void headline(const std::vector<std::string>& files, const std::string& report, const std::string& plot_file) {
  std::vector<examples::Headline> networks;
  for (const std::string& file : files)
    networks.push_back(std::move(examples::headline_of(read_existing(file), file)).value());

  examples::Plot plot;
  plot.title = "Nested levels of every network: accuracy relative to dense";
  plot.x_label = "share of the dense network's FLOPs, %";
  plot.y_label = "accuracy relative to dense, %";
  plot.x_logarithmic = true;
  nlohmann::json rows = nlohmann::json::array();
  for (const auto& network : networks) {
    examples::PlotSeries series{network.network + ", " + network.data};
    for (int l = 0; l < 2; ++l) {
      const auto& level = network.levels[l];
      series.points.push_back(
          {100 * level.flops, 100 * (1 - level.relative_loss), "", std::isfinite(level.half) ? 100 * level.half : 0});
    }
    series.points.push_back({100, 100});
    plot.series.push_back(std::move(series));
  }
  examples::PlotSeries average{"mean of the networks"};
  examples::PlotSeries reference{"paper"};
  for (int l = 1; l >= 0; --l) {
    examples::Table table({"level " + std::to_string(l), "data", "metric", "seeds", "dense", "level",
                           "relative loss, % (95 %)", "weights", "FLOPs"});
    // A network with several data sets counts once.
    struct Sum {
      double loss = 0, weights = 0, flops = 0, count = 0;
    };
    std::map<std::string, Sum> sums;
    for (const auto& network : networks) {
      const auto& level = network.levels[l];
      table.add({network.network, network.data, network.metric, std::to_string(level.seeds),
                 examples::fixed(100 * network.dense, 2) + (network.full_epochs ? "" : "*"),
                 examples::fixed(100 * level.accuracy, 2), loss_text(level), examples::percent(level.weights, 2),
                 examples::percent(level.flops, 2)});
      Sum& sum = sums[network.network];
      sum.loss += level.relative_loss;
      sum.weights += level.weights;
      sum.flops += level.flops;
      sum.count += 1;
      rows.push_back({{"network", network.network},
                      {"data", network.data},
                      {"metric", network.metric},
                      {"level", l},
                      {"seeds", level.seeds},
                      {"dense", network.dense},
                      {"dense_epochs", network.full_epochs ? "all" : "those before pruning"},
                      {"accuracy", level.accuracy},
                      {"relative_loss", level.relative_loss},
                      {"weights", level.weights},
                      {"flops", level.flops},
                      {"command", level.command}});
    }
    Sum mean;
    for (const auto& [name, sum] : sums) {
      const double share = 1 / (sum.count * static_cast<double>(sums.size()));
      mean.loss += sum.loss * share;
      mean.weights += sum.weights * share;
      mean.flops += sum.flops * share;
    }
    table.add({"mean", "", "", "", "", "", examples::fixed(100 * mean.loss, 2), examples::percent(mean.weights, 2),
               examples::percent(mean.flops, 2)});
    table.add({"paper", "", "", "", "", "", examples::fixed(100 * paper[l].relative_loss, 2),
               examples::percent(paper[l].weights, 2), examples::percent(paper[l].flops, 2)});
    std::printf("%s\n", table.text().c_str());
    average.points.push_back({100 * mean.flops, 100 * (1 - mean.loss)});
    reference.points.push_back({100 * paper[l].flops, 100 * (1 - paper[l].relative_loss)});
    rows.push_back({{"network", "mean"},
                    {"level", l},
                    {"relative_loss", mean.loss},
                    {"weights", mean.weights},
                    {"flops", mean.flops}});
  }
  for (const auto& network : networks)
    if (!network.full_epochs) {
      std::printf("* dense models that the levels come from, with fewer epochs than the levels\n");
      break;
    }
  plot.series.push_back(std::move(average));
  plot.series.push_back(std::move(reference));
  if (!report.empty()) (void)examples::write_rows(rows, report).value();
  if (!plot_file.empty()) (void)examples::write_svg(plot, plot_file).value();
}

/// Shares of levels are of the weights, and of all numbers that a run reads.
void parameters(const std::vector<std::string>& files) {
  for (const std::string& file : files) {
    const auto counts = examples::stored_parameters(strata::io::read_model(file).value());
    examples::Table table({"model", "weights", "embeddings", "norms", "others", "all", "of weights", "of all"});
    const auto add = [&](const std::string& name, const examples::ParameterCount& count) {
      const auto share = [](strata::index_t part, strata::index_t whole) {
        return examples::percent(static_cast<double>(part) / static_cast<double>(whole), 2);
      };
      table.add({name, std::to_string(count.weights), std::to_string(count.embeddings), std::to_string(count.norms),
                 std::to_string(count.others), std::to_string(count.total()),
                 share(count.weights, counts.dense.weights), share(count.total(), counts.dense.total())});
    };
    add("dense", counts.dense);
    for (std::size_t level = counts.levels.size(); level-- > 0;)
      add("level " + std::to_string(level), counts.levels[level]);
    std::printf("%s\n%s\n", file.c_str(), table.text().c_str());
  }
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"Tables and plots from the rows of experiments, and what models are made of."};
  app.require_subcommand(1);
  std::string file, report, plot;
  std::vector<std::string> files;
  auto* merge_command = app.add_subcommand(
      "merge",
      "adds rows to a file; a row replaces an older one of the same run. Refuses rows of runs with other options");
  merge_command->add_option("into", file, "file of rows, made if it is not there")->required();
  merge_command->add_option("files", files, "reports of runs")->required();
  auto* show_command = app.add_subcommand("show",
                                          "table of one file, an arm that was run with several settings as several "
                                          "arms, and a plot of accuracy against FLOPs");
  show_command->add_option("file", file, "file of rows")->required();
  show_command->add_option("--plot", plot, "SVG file to write");
  auto* headline_command = app.add_subcommand("headline", "table over all networks beside the paper's figures");
  headline_command->add_option("files", files, "files of rows, one for each network and data set")->required();
  headline_command->add_option("--report", report, "file for the table as JSON");
  headline_command->add_option("--plot", plot, "SVG file to write");
  auto* parameters_command = app.add_subcommand("parameters", "what model files hold, level by level");
  parameters_command->add_option("files", files, "model files")->required();
  CLI11_PARSE(app, argc, argv);
  try {
    if (*parameters_command) parameters(files);
    if (*merge_command) merge(file, files);
    if (*show_command) show(file, plot);
    if (*headline_command) headline(files, report, plot);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "results: %s\n", error.what());
    return 1;
  }
  return 0;
}
