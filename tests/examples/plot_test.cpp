// The plots and tables of the example programs: well-formed XML within the picture for ordinary data and for what
// breaks scales (no points, one, equal ones, not finite, huge and tiny), round ticks, and numbers as texts.
#include "support/plot.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <map>
#include <string>
#include <unistd.h>
#include <vector>

#include "support/catch.hpp"
#include "support/table.hpp"

namespace {

using examples::Plot;
using examples::PlotPoint;

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

struct Element {
  std::string name;
  std::map<std::string, std::string> attributes;
  std::string text;

  [[nodiscard]] double number(const std::string& attribute) const {
    const auto found = attributes.find(attribute);
    return found == attributes.end() ? kNan : std::strtod(found->second.c_str(), nullptr);
  }
  [[nodiscard]] bool is(const std::string& kind) const {
    const auto found = attributes.find("class");
    return found != attributes.end() && found->second == kind;
  }
};

/// Characters and the five named or numbered entities that `svg` writes.
bool escaped(const std::string& text) {
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto c = static_cast<unsigned char>(text[i]);
    if (c == '<' || c == '>' || c == '"' || c < 0x20 || c == 0x7F) return false;
    if (c != '&') continue;
    const std::string entity = text.substr(i, text.find(';', i) - i + 1);
    const std::vector<std::string> known = {"&amp;", "&lt;", "&gt;", "&quot;", "&#39;"};
    if (std::find(known.begin(), known.end(), entity) == known.end()) return false;
  }
  return true;
}

/// The elements of a well-formed document; every failed step is a failed check.
std::vector<Element> parse(const std::string& document) {
  std::vector<Element> elements;
  std::vector<std::string> open;
  std::size_t at = 0;
  while (at < document.size()) {
    const std::size_t tag = std::min(document.find('<', at), document.size());
    std::string text = document.substr(at, tag - at);
    text.erase(std::remove(text.begin(), text.end(), '\n'), text.end());
    CHECK(escaped(text));
    if (!text.empty()) {
      REQUIRE(!open.empty());
      elements.back().text += text;
    }
    if (tag == document.size()) break;
    const std::size_t end = document.find('>', tag);
    REQUIRE(end != std::string::npos);
    std::string inside = document.substr(tag + 1, end - tag - 1);
    at = end + 1;
    if (inside[0] == '/') {
      REQUIRE(!open.empty());
      REQUIRE(open.back() == inside.substr(1));
      open.pop_back();
      continue;
    }
    const bool closed = inside.back() == '/';
    if (closed) inside.pop_back();
    Element element;
    element.name = inside.substr(0, inside.find(' '));
    std::size_t i = element.name.size();
    while (i < inside.size()) {
      REQUIRE(inside[i] == ' ');
      const std::size_t equals = inside.find("=\"", i);
      REQUIRE(equals != std::string::npos);
      const std::size_t quote = inside.find('"', equals + 2);
      REQUIRE(quote != std::string::npos);
      const std::string value = inside.substr(equals + 2, quote - equals - 2);
      CHECK(escaped(value));
      CHECK(element.attributes.emplace(inside.substr(i + 1, equals - i - 1), value).second);
      i = quote + 1;
    }
    if (!closed) open.push_back(element.name);
    elements.push_back(element);
  }
  CHECK(open.empty());
  REQUIRE(!elements.empty());
  CHECK(elements.front().name == "svg");
  return elements;
}

/// Parses the plot and checks what holds for every plot: no coordinate that is not a number, nothing beyond the edges.
std::vector<Element> checked(const Plot& plot) {
  const std::string document = examples::svg(plot);
  std::vector<Element> elements = parse(document);
  CHECK(elements[0].number("width") == 720);
  CHECK(elements[0].number("height") == 480);
  for (const Element& element : elements) {
    for (const auto& [name, value] : element.attributes) {
      INFO(element.name << " " << name << " = " << value);
      CHECK(value.find("nan") == std::string::npos);
      CHECK(value.find("inf") == std::string::npos);
    }
    for (const char* name : {"x", "x1", "x2", "cx"})
      if (element.attributes.count(name) != 0) CHECK((element.number(name) >= 0 && element.number(name) <= 720));
    for (const char* name : {"y", "y1", "y2", "cy"})
      if (element.attributes.count(name) != 0) CHECK((element.number(name) >= 0 && element.number(name) <= 480));
    if (element.name != "text" || element.attributes.count("transform") != 0) continue;
    std::size_t characters = 0;  // an entity counts as more than it is
    for (const char c : element.text) characters += (static_cast<unsigned char>(c) & 0xC0U) != 0x80U;
    const double width = 0.55 * element.number("font-size") * static_cast<double>(characters);
    const std::string& anchor = element.attributes.at("text-anchor");
    const double left = element.number("x") - (anchor == "start" ? 0 : anchor == "middle" ? width / 2 : width);
    INFO("text " << element.text);
    if (element.text.find('&') == std::string::npos) {
      CHECK(left >= 0);
      CHECK(left + width <= 720);
    }
  }
  return elements;
}

std::ptrdiff_t count(const std::vector<Element>& elements, const std::string& kind) {
  return std::count_if(elements.begin(), elements.end(), [&](const Element& element) { return element.is(kind); });
}

bool shows(const std::vector<Element>& elements, const std::string& text) {
  return std::any_of(elements.begin(), elements.end(), [&](const Element& element) { return element.text == text; });
}

/// The numbers on the axes: horizontal ones are set in the middle, vertical ones flush right.
std::vector<double> ticks(const std::vector<Element>& elements, const std::string& anchor) {
  std::vector<double> values;
  for (const Element& element : elements) {
    if (element.name != "text" || element.is("label") || element.number("font-size") != 12) continue;
    if (element.attributes.at("text-anchor") != anchor) continue;
    char* end = nullptr;
    values.push_back(std::strtod(element.text.c_str(), &end));
    INFO(element.text);
    CHECK(*end == '\0');
  }
  return values;
}

Plot plot_of(std::vector<PlotPoint> points, bool logarithmic = false) {
  return {"title", "x", "y", logarithmic, {{"series", std::move(points)}}};
}

}  // namespace

TEST_CASE("a plot shows its texts, points, error bars and a legend") {
  Plot plot{"Accuracy & cost", "multiplications <M>", "accuracy [%]", false, {}};
  plot.series.push_back({"joint", {{1, 80, "L0", 1}, {2, 85, "L1", 1}, {3, 86.5, "L2"}}});
  auto elements = checked(plot);
  CHECK(shows(elements, "Accuracy &amp; cost"));
  CHECK(shows(elements, "multiplications &lt;M&gt;"));
  CHECK(shows(elements, "accuracy [%]"));
  CHECK(!shows(elements, "joint"));  // one series needs no legend
  CHECK(count(elements, "marker") == 3);
  CHECK(count(elements, "label") == 3);
  CHECK(count(elements, "error") == 6);
  const auto lines = [&] {
    return std::count_if(elements.begin(), elements.end(), [](const Element& e) { return e.name == "polyline"; });
  };
  CHECK(lines() == 1);
  plot.series.push_back({"dense", {{2.5, 87, "dense"}, {1, 70}}, false});
  elements = checked(plot);
  CHECK(shows(elements, "joint"));
  CHECK(shows(elements, "dense"));
  CHECK(lines() == 1);
  CHECK(count(elements, "marker") == 5 + 2);
}

TEST_CASE("larger values lie further right and further up") {
  const auto elements = checked(plot_of({{1, 5}, {2, 7}, {4, 11}}));
  std::vector<Element> markers;
  std::copy_if(elements.begin(), elements.end(), std::back_inserter(markers),
               [](const Element& element) { return element.is("marker"); });
  REQUIRE(markers.size() == 3);
  const double scale_x = markers[1].number("cx") - markers[0].number("cx");
  const double scale_y = markers[1].number("cy") - markers[0].number("cy");
  CHECK(scale_x > 100);  // the values fill the picture
  CHECK(scale_y < -100);
  CHECK(std::abs(markers[2].number("cx") - markers[1].number("cx") - 2 * scale_x) < 0.05);
  CHECK(std::abs(markers[2].number("cy") - markers[1].number("cy") - 2 * scale_y) < 0.05);
}

TEST_CASE("ticks are round, evenly spaced and few") {
  for (const double scale : {1e-12, 1e-5, 0.003, 0.1, 1.0, 7.0, 40.0, 9999.0, 1e6, 3e9, 1e25})
    for (const double offset : {0.0, -0.5, 3.0, 100.0}) {
      INFO("scale " << scale << ", offset " << offset);
      const auto elements = checked(plot_of({{offset * scale, 1}, {(offset + 1) * scale, 2}}));
      const std::vector<double> values = ticks(elements, "middle");
      REQUIRE(values.size() >= 2);
      CHECK(values.size() <= 8);
      const double step = values[1] - values[0];
      const double mantissa = step / std::pow(10.0, std::floor(std::log10(step * 1.001)));
      const auto near = [&](double round) { return std::abs(mantissa - round) < 0.01; };
      CHECK((near(1) || near(2) || near(5)));
      for (std::size_t i = 0; i + 1 < values.size(); ++i)
        CHECK(std::abs(values[i + 1] - values[i] - step) < 1e-3 * step);
      CHECK(values.front() >= (offset - 0.1) * scale);
      CHECK(values.back() <= (offset + 1.1) * scale);
    }
}

TEST_CASE("a logarithmic axis has powers of ten, and twos and fives where there is room") {
  CHECK(ticks(checked(plot_of({{1, 1}, {100, 2}}, true)), "middle") == std::vector<double>{1, 2, 5, 10, 20, 50, 100});
  CHECK(ticks(checked(plot_of({{1, 1}, {1e6, 2}}, true)), "middle") ==
        std::vector<double>{1, 10, 100, 1000, 10000, 100000, 1000000});
  const auto wide = ticks(checked(plot_of({{1e-100, 1}, {1e100, 2}}, true)), "middle");
  CHECK(wide.size() >= 2);
  CHECK(wide.size() <= 10);
  CHECK(ticks(checked(plot_of({{10, 1}, {11, 2}}, true)), "middle").size() >= 2);
  CHECK(ticks(checked(plot_of({{6, 1}}, true)), "middle").size() >= 2);
  const auto elements = checked(plot_of({{1, 1}, {0, 2}, {-3, 2}, {10, 3}}, true));  // no logarithm: left out
  CHECK(count(elements, "marker") == 2);
}

TEST_CASE("plots without spread or without points still have axes") {
  for (const bool logarithmic : {false, true}) {
    INFO("logarithmic: " << logarithmic);
    for (const Plot& plot : {Plot{"", "", "", logarithmic, {}}, plot_of({}, logarithmic),
                             plot_of({{kNan, 1}, {1, kInfinity}}, logarithmic)}) {
      const auto elements = checked(plot);
      CHECK(shows(elements, "no data"));
      CHECK(count(elements, "marker") == 0);
      CHECK(ticks(elements, "end").size() >= 2);
    }
    for (const double value : {1.0, 0.1, 123456789.0, 1e-9, 1e300, 1e-300, 1e16}) {
      INFO("value " << value);
      for (const auto& points : {std::vector<PlotPoint>{{value, value, "only"}},
                                 std::vector<PlotPoint>{{value, value, "a"}, {value, value, "b"}, {value, value}},
                                 std::vector<PlotPoint>{{value, value}, {std::nextafter(value, kInfinity), value}}}) {
        const auto elements = checked(plot_of(points, logarithmic));
        CHECK(!shows(elements, "no data"));
        CHECK(ticks(elements, "middle").size() >= 2);
        CHECK(ticks(elements, "end").size() >= 2);
      }
    }
  }
  CHECK(ticks(checked(plot_of({{0, 0}})), "middle").size() >= 2);
  CHECK(ticks(checked(plot_of({{-5, -5}})), "end").size() >= 2);
}

TEST_CASE("values that are not finite or too large are left out") {
  const double largest = std::numeric_limits<double>::max();
  const auto elements = checked(plot_of({{1, 1},
                                         {kNan, 2},
                                         {2, kInfinity},
                                         {-kInfinity, 1},
                                         {largest, -largest},
                                         {3, 2, "", kNan},
                                         {4, 2, "", kInfinity},
                                         {5, 3, "", -0.5}}));
  CHECK(count(elements, "marker") == 4);
  CHECK(count(elements, "error") == 3);  // of the negative one, whose size counts
  checked(plot_of({{-1e300, -1e300}, {1e300, 1e300}}));
  checked(plot_of({{5e-324, 5e-324}, {1e-323, 0}}));
}

TEST_CASE("labels stay inside the picture and apart from each other") {
  const std::string longest(300, 'W');
  Plot plot = plot_of({{0, 0, "lower left label"}, {1, 1, "upper right label"}, {0, 1, "upper left"}, {1, 0, longest}});
  plot.title = plot.x_label = plot.y_label = longest;
  plot.series.push_back({longest, {{0.5, 0.5, longest}}});
  checked(plot);
  for (int i = 0; i < 30; ++i) plot.series.push_back({"series " + std::to_string(i), {{0.1 * i, 0.5}}});
  checked(plot);

  std::vector<PlotPoint> points;
  for (int i = 0; i < 4; ++i) points.push_back({1.0 + 0.1 * i, 80 + 0.05 * i, "level " + std::to_string(i)});
  for (int i = 4; i < 8; ++i) points.push_back({1.2, 80.4, "level " + std::to_string(i)});  // all at one place
  std::vector<Element> labels;
  for (const Element& element : checked(plot_of(points)))
    if (element.is("label")) labels.push_back(element);
  REQUIRE(labels.size() == 8);
  for (std::size_t i = 0; i < labels.size(); ++i)
    for (std::size_t k = 0; k < i; ++k) {
      INFO(labels[i].text << " and " << labels[k].text);
      CHECK((std::abs(labels[i].number("x") - labels[k].number("x")) > 40 ||
             std::abs(labels[i].number("y") - labels[k].number("y")) > 11));
    }
}

TEST_CASE("any bytes are made into text that XML allows") {
  const auto text_of = [](const std::string& title) {
    Plot plot = plot_of({{1, 1}});
    plot.title = title;
    for (const Element& element : checked(plot))
      if (element.attributes.count("font-weight") != 0) return element.text;
    return std::string();
  };
  CHECK(text_of("<a href=\"b\">&'") == "&lt;a href=&quot;b&quot;&gt;&amp;&#39;");
  CHECK(text_of("\xC3\xA4 \xE2\x82\xAC \xF0\x9F\x98\x80") == "\xC3\xA4 \xE2\x82\xAC \xF0\x9F\x98\x80");
  CHECK(text_of(std::string("a\0b\tc\x7F", 6)) == "a b c ");
  CHECK(text_of("\xFFx\xC3") == "?x?");                    // no lead byte; cut short
  CHECK(text_of("\xC0\xAF") == "??");                      // longer than it need be
  CHECK(text_of("\xED\xA0\x80\xEF\xBF\xBF") == "??????");  // a surrogate; no character
  CHECK(text_of("\xF5\x80\x80\x80") == "????");            // beyond Unicode
  CHECK(text_of(std::string(200, 'x')).find("\u2026") != std::string::npos);
}

TEST_CASE("a plot is written whole and the same each time") {
  const auto directory = std::filesystem::temp_directory_path() / ("strata_plot_test" + std::to_string(::getpid()));
  std::filesystem::create_directories(directory);
  const std::string path = (directory / "plot.svg").string();
  const Plot plot = plot_of({{1, 2, "a"}, {3, 4, "b"}});
  REQUIRE(examples::write_svg(plot, path).ok());
  REQUIRE(examples::write_svg(plot, path).ok());
  std::ifstream stream(path, std::ios::binary);
  CHECK(std::string(std::istreambuf_iterator<char>(stream), {}) == examples::svg(plot));
  CHECK(std::distance(std::filesystem::directory_iterator(directory), std::filesystem::directory_iterator()) == 1);
  const std::string nowhere = (directory / "missing" / "plot.svg").string();
  const auto status = examples::write_svg(plot, nowhere);
  REQUIRE(!status.ok());
  CHECK(status.error().where() == nowhere);
  std::filesystem::remove_all(directory);
}

TEST_CASE("numbers as texts") {
  CHECK(examples::fixed(1.25, 1) == "1.2");
  CHECK(examples::fixed(-0.04, 1) == "0.0");
  CHECK(examples::fixed(-0.06, 1) == "-0.1");
  CHECK(examples::fixed(-0.0, 0) == "0");
  CHECK(examples::fixed(12, -3) == "12");
  CHECK(examples::fixed(kNan, 2) == "nan");
  CHECK(examples::fixed(-kInfinity, 2) == "-inf");
  CHECK(examples::fixed(std::numeric_limits<double>::lowest(), 99).size() == 1 + 309 + 1 + 17);
  CHECK(examples::percent(0.125, 1) == "12.5 %");
  CHECK(examples::percent(1, 0) == "100 %");
  CHECK(examples::bytes(0) == "0 B");
  CHECK(examples::bytes(1023) == "1023 B");
  CHECK(examples::bytes(1024) == "1.0 KiB");
  CHECK(examples::bytes(-1536) == "-1.5 KiB");
  CHECK(examples::bytes(1024 * 1024 - 1) == "1.0 MiB");
  CHECK(examples::bytes(3.0 * 1024 * 1024 * 1024) == "3.0 GiB");
  CHECK(examples::bytes(kInfinity) == "inf B");
}

TEST_CASE("columns of a table are aligned") {
  examples::Table table({"network", "size", "accuracy"});
  table.add({"dense", "1.5 MiB", "91.3 %"});
  table.add({"level \xC3\xA4", "12 KiB"});
  table.add({"x", "", "1 %", "beyond"});
  CHECK(table.text() ==
        "network     size  accuracy\n"
        "-------  -------  --------  ------\n"
        "dense    1.5 MiB    91.3 %\n"
        "level \xC3\xA4   12 KiB\n"
        "x                      1 %  beyond\n");
  CHECK(examples::Table({}).text() == "\n\n");
}
