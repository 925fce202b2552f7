// Line and scatter plots as SVG files for the reports of the example programs: one picture of fixed size, no
// dependencies, the same bytes for the same data. What it looks like is settled here, not by the caller.
#pragma once

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <limits>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <strata/core/error.hpp>
#include <strata/io/atomic_file.hpp>

#include "table.hpp"

namespace examples {

/// A measured value, a text beside it (or none) and the half length of its vertical error bar (0: none).
struct PlotPoint {
  double x = 0, y = 0;
  std::string label = {};
  double y_error = 0;
};

/// Points of one colour and marker; `joined` by a line in the order given.
struct PlotSeries {
  std::string name;
  std::vector<PlotPoint> points = {};
  bool joined = true;
};

/// What `svg` draws. All texts are UTF-8.
struct Plot {
  std::string title, x_label, y_label;
  bool x_logarithmic = false;
  std::vector<PlotSeries> series = {};
};

namespace detail {

constexpr double kPlotWidth = 720;
constexpr double kPlotHeight = 480;

/// The characters of UTF-8 `text`; what is no UTF-8 or may not stand in XML becomes '?', control characters a space.
inline std::vector<std::string> plot_characters(const std::string& text) {
  std::vector<std::string> characters;
  for (std::size_t i = 0; i < text.size();) {
    const auto lead = static_cast<unsigned char>(text[i]);
    const std::size_t length = lead < 0x80 ? 1 : lead >> 5U == 6 ? 2 : lead >> 4U == 14 ? 3 : lead >> 3U == 30 ? 4 : 0;
    char32_t code = length < 2 ? lead : lead & (0x7FU >> length);
    bool good = length > 0 && i + length <= text.size();
    for (std::size_t k = 1; good && k < length; ++k) {
      const auto next = static_cast<unsigned char>(text[i + k]);
      good = (next & 0xC0U) == 0x80U;
      code = code << 6U | (next & 0x3FU);
    }
    constexpr std::array<char32_t, 5> least = {0, 0, 0x80, 0x800, 0x10000};
    good = good && code >= least[length] && code <= 0x10FFFF && (code < 0xD800 || code > 0xDFFF) &&
           (code & 0xFFFEU) != 0xFFFE;
    characters.push_back(!good ? "?" : code < 0x20 || code == 0x7F ? " " : text.substr(i, length));
    i += good ? length : 1;
  }
  return characters;
}

/// An upper estimate of how wide a sans-serif font sets the characters, in pixels.
inline double plot_text_width(const std::vector<std::string>& characters, double font_size) {
  double ems = 0;
  for (const std::string& character : characters) ems += character.size() > 2 ? 1.0 : 0.6;
  return ems * font_size;
}

/// A piece of text that is placed: escaped for XML, cut to `room` pixels with an ellipsis.
struct PlotText {
  std::string xml;
  double width = 0;

  PlotText(const std::string& text, double font_size, double room) {
    std::vector<std::string> characters = plot_characters(text);
    if (plot_text_width(characters, font_size) > room) {
      while (!characters.empty() && plot_text_width(characters, font_size) + font_size > room) characters.pop_back();
      characters.emplace_back("\u2026");
    }
    width = plot_text_width(characters, font_size);
    for (const std::string& c : characters)
      xml += c == "&" ? "&amp;" : c == "<" ? "&lt;" : c == ">" ? "&gt;" : c == "\"" ? "&quot;" : c == "'" ? "&#39;" : c;
  }
};

/// A number as an axis shows it: as short as it can be with `digits` significant ones.
inline std::string plot_number(double value, int digits) {
  std::array<char, 32> text{};
  const auto end = std::to_chars(text.data(), text.data() + text.size(), value, std::chars_format::general, digits).ptr;
  std::string result(text.data(), end);
  if (const std::size_t exponent = result.find('e'); exponent != std::string::npos) {  // 1e+06 as 1e6
    std::size_t first = exponent + 1;
    if (result[first] == '+') result.erase(first, 1);
    if (result[first] == '-') ++first;
    while (result[first] == '0') result.erase(first, 1);
  }
  return result;
}

/// Range, ticks and direction of one axis: values from `low` to `high` (their logarithms if `logarithmic`) lie between
/// the pixels `from` and `to`.
struct PlotAxis {
  bool logarithmic = false;
  double low = std::numeric_limits<double>::infinity();
  double high = -std::numeric_limits<double>::infinity();
  double from = 0, to = 1;
  std::vector<std::pair<double, std::string>> ticks;

  /// Finite and not so large that the width of a range could overflow; above 0 where the axis is logarithmic.
  [[nodiscard]] bool takes(double value) const { return std::abs(value) <= 1e300 && (!logarithmic || value >= 1e-300); }
  [[nodiscard]] double scaled(double value) const { return logarithmic ? std::log10(value) : value; }
  [[nodiscard]] double pixel(double value) const { return from + (scaled(value) - low) / (high - low) * (to - from); }
  void include(double value) {
    if (!takes(value)) return;
    low = std::min(low, scaled(value));
    high = std::max(high, scaled(value));
  }

  /// Some room around the values, or around a single value; 0 to 1 (1 to 10 if logarithmic) where there is none.
  void finish() {
    if (low > high) {
      low = 0;
      high = 1;
    } else {
      const double size = std::max(std::abs(low), std::abs(high));
      const double smallest = logarithmic ? 1e-3 : std::max(1e-9 * size, 1e-290);
      const double room = high - low >= smallest ? 0.06 * (high - low)
                          : logarithmic          ? 0.3
                          : size > 1e-280        ? 0.1 * size
                                                 : 1;
      low -= room;
      high += room;
    }
    if (!logarithmic || !add_logarithmic_ticks()) add_linear_ticks();
  }

 private:
  /// Powers of ten, with their doubles and fivefolds between them where few fit; false if that makes less than two.
  bool add_logarithmic_ticks() {
    const double stride = std::max(1.0, std::ceil((high - low) / 8));
    for (double power = std::floor(low); power <= high; ++power) {
      if (std::fmod(power, stride) != 0) continue;
      for (const double factor : {1.0, 2.0, 5.0}) {
        if (factor > 1 && high - low > 3) break;
        const double value = factor * std::pow(10.0, power);
        if (std::log10(value) >= low && std::log10(value) <= high) ticks.emplace_back(value, plot_number(value, 6));
      }
    }
    if (ticks.size() >= 2) return true;
    ticks.clear();
    return false;
  }

  /// Multiples of 1, 2 or 5 times a power of ten, two to six steps of them.
  void add_linear_ticks() {
    const double first = logarithmic ? std::pow(10.0, low) : low;
    const double last = logarithmic ? std::pow(10.0, high) : high;
    const double power = std::pow(10.0, std::floor(std::log10((last - first) / 6)));
    double step = 10 * power;
    for (const double factor : {5.0, 2.0, 1.0})
      if ((last - first) / (factor * power) <= 6 * (1 + 1e-9)) step = factor * power;
    const double largest = std::max(std::abs(first), std::abs(last));
    const int decimals = static_cast<int>(std::max(0.0, -std::floor(std::log10(step) + 1e-9)));
    const int digits = static_cast<int>(std::ceil(std::log10(largest / step))) + 2;
    const double start = std::ceil(first / step - 1e-9);
    for (int i = 0; i < 12 && (start + i) * step <= last + 1e-9 * step; ++i) {
      const double value = (start + i) * step;
      ticks.emplace_back(value, largest < 1e6 && decimals <= 5 ? fixed(value, decimals) : plot_number(value, digits));
    }
  }
};

struct PlotBox {
  double left, top, right, bottom;

  [[nodiscard]] bool holds(double x, double y) const { return x > left && x < right && y > top && y < bottom; }
  [[nodiscard]] bool meets(const PlotBox& other) const {
    return left < other.right && other.left < right && top < other.bottom && other.top < bottom;
  }
};

/// The elements of the picture, written one after the other.
class PlotCanvas {
 public:
  static std::string number(double value) {
    std::string text = fixed(value, 2);
    text.erase(text.find_last_not_of('0') + 1);
    if (text.back() == '.') text.pop_back();
    return text;
  }

  void add(const std::string& element) { body_ += element + "\n"; }

  void line(double x1, double y1, double x2, double y2, const std::string& style) {
    add("<line x1=\"" + number(x1) + "\" y1=\"" + number(y1) + "\" x2=\"" + number(x2) + "\" y2=\"" + number(y2) +
        "\" " + style + "/>");
  }

  /// `anchor`: start, middle or end. `y` is the base line.
  void text(double x, double y, const std::string& anchor, double size, const PlotText& text,
            const std::string& style = "fill=\"#333333\"") {
    if (text.xml.empty()) return;
    add("<text x=\"" + number(x) + "\" y=\"" + number(y) + "\" text-anchor=\"" + anchor + "\" font-size=\"" +
        number(size) + "\" " + style + ">" + text.xml + "</text>");
  }

  /// The marker of series `kind`: circle, square, triangle, diamond and again.
  void marker(double x, double y, std::size_t kind, const std::string& colour) {
    const std::string style = "\" fill=\"" + colour + "\" stroke=\"#ffffff\" stroke-width=\"1\"/>";
    if (kind % 4 == 0) {
      add("<circle class=\"marker\" cx=\"" + number(x) + "\" cy=\"" + number(y) + "\" r=\"4.5" + style);
      return;
    }
    static constexpr double corners[3][4][2] = {{{-4, -4}, {4, -4}, {4, 4}, {-4, 4}},
                                                {{0, -5.5}, {5, 4}, {-5, 4}, {0, -5.5}},
                                                {{0, -5.5}, {5.5, 0}, {0, 5.5}, {-5.5, 0}}};
    std::string points;
    for (const auto& [dx, dy] : corners[kind % 4 - 1])
      points += (points.empty() ? "" : " ") + number(x + dx) + "," + number(y + dy);
    add("<polygon class=\"marker\" points=\"" + points + style);
  }

  [[nodiscard]] std::string document() const {
    const std::string size = "width=\"" + number(kPlotWidth) + "\" height=\"" + number(kPlotHeight) + "\"";
    return "<svg xmlns=\"http://www.w3.org/2000/svg\" " + size + " viewBox=\"0 0 " + number(kPlotWidth) + " " +
           number(kPlotHeight) + "\" font-family=\"Helvetica, Arial, sans-serif\">\n<rect " + size +
           " fill=\"#ffffff\"/>\n" + body_ + "</svg>\n";
  }

 private:
  std::string body_;
};

/// Where the label of the point at (x, y) covers least of `points` and `boxes`, within `frame`.
inline PlotBox place_label(double x, double y, double width, const PlotBox& frame,
                           const std::vector<std::pair<double, double>>& points, const std::vector<PlotBox>& boxes) {
  constexpr double height = 14;
  constexpr double gap = 7;
  const std::array<std::pair<double, double>, 8> corners = {{{x - width / 2, y - gap - height},
                                                             {x - width / 2, y + gap},
                                                             {x + gap, y - height - 2},
                                                             {x - gap - width, y - height - 2},
                                                             {x + gap, y + 2},
                                                             {x - gap - width, y + 2},
                                                             {x + gap + 2, y - height / 2},
                                                             {x - gap - 2 - width, y - height / 2}}};
  PlotBox best{};
  double best_cost = std::numeric_limits<double>::infinity();
  for (const auto& corner : corners) {
    const double left = std::clamp(corner.first, frame.left, std::max(frame.left, frame.right - width));
    const double top = std::clamp(corner.second, frame.top, frame.bottom - height);
    const PlotBox box{left, top, left + width, top + height};
    double cost = 0.1 * (std::abs(left - corner.first) + std::abs(top - corner.second));
    for (const auto& [px, py] : points) cost += box.holds(px, py) ? 1 : 0;
    for (const PlotBox& other : boxes) cost += box.meets(other) ? 20 : 0;
    if (cost >= best_cost) continue;
    best = box;
    best_cost = cost;
  }
  return best;
}

}  // namespace detail

/// The plot as the text of an SVG file of 720 x 480 pixels. Points that have a coordinate which is not finite (or
/// beyond 1e300, or on a logarithmic axis below 1e-300) are left out and a line goes on to the next; an error bar that
/// is not finite is left out alone. Without any point the axes say so. Texts that are too long end in an ellipsis.
[[nodiscard]] inline std::string svg(const Plot& plot) {
  // Okabe and Ito's colours without yellow, which is too light on white.
  static constexpr std::array<const char*, 7> colours = {"#0072b2", "#d55e00", "#009e73", "#cc79a7",
                                                         "#e69f00", "#56b4e9", "#000000"};
  using detail::PlotCanvas;
  using detail::PlotText;
  detail::PlotAxis x;
  detail::PlotAxis y;
  x.logarithmic = plot.x_logarithmic;
  const auto shown = [&](const PlotPoint& point) { return x.takes(point.x) && y.takes(point.y); };
  const auto error_of = [&](const PlotPoint& point) {
    const double error = std::abs(point.y_error);
    return y.takes(point.y - error) && y.takes(point.y + error) ? error : 0.0;
  };
  for (const PlotSeries& series : plot.series)
    for (const PlotPoint& point : series.points) {
      if (!shown(point)) continue;
      x.include(point.x);
      y.include(point.y - error_of(point));
      y.include(point.y + error_of(point));
    }
  const bool empty = x.low > x.high;
  x.finish();
  y.finish();

  double widest_tick = 0;
  for (const auto& tick : y.ticks)
    widest_tick = std::max(widest_tick, PlotText(tick.second, 12, detail::kPlotWidth).width);
  detail::PlotBox frame{widest_tick + (plot.y_label.empty() ? 24 : 46), plot.title.empty() ? 20.0 : 46.0,
                        detail::kPlotWidth - 28, detail::kPlotHeight - (plot.x_label.empty() ? 34 : 56)};
  const double frame_width = frame.right - frame.left;
  PlotCanvas canvas;
  canvas.text((frame.left + frame.right) / 2, 28, "middle", 16, PlotText(plot.title, 16, frame_width),
              "fill=\"#111111\" font-weight=\"bold\"");

  if (plot.series.size() > 1) {  // the legend, in rows above the frame
    double at = frame.left;
    for (std::size_t s = 0; s < plot.series.size(); ++s) {
      const PlotText name(plot.series[s].name, 12, frame_width - 34);
      if (at > frame.left && at + 34 + name.width > frame.right) {
        at = frame.left;
        frame.top = std::min(frame.top + 18, frame.bottom - 100);
      }
      const std::string colour = colours[s % colours.size()];
      if (plot.series[s].joined)
        canvas.line(at, frame.top, at + 24, frame.top, "stroke=\"" + colour + "\" stroke-width=\"2\"");
      canvas.marker(at + 12, frame.top, s, colour);
      canvas.text(at + 30, frame.top + 4, "start", 12, name);
      at += 30 + name.width + 18;
    }
    frame.top += 18;
  }

  x.from = frame.left;
  x.to = frame.right;
  y.from = frame.bottom;
  y.to = frame.top;
  const std::string grid = "stroke=\"#e4e4e4\" stroke-width=\"1\"";
  double taken = -1;  // where the last number on the horizontal axis ends
  for (const auto& [value, number] : x.ticks) {
    const double at = x.pixel(value);
    const PlotText text(number, 12, frame_width);
    canvas.line(at, frame.top, at, frame.bottom, grid);
    const double middle = std::min(at, detail::kPlotWidth - 2 - text.width / 2);
    if (middle - text.width / 2 < taken) continue;
    canvas.text(middle, frame.bottom + 18, "middle", 12, text);
    taken = middle + text.width / 2 + 6;
  }
  for (const auto& [value, number] : y.ticks) {
    const double at = y.pixel(value);
    canvas.line(frame.left, at, frame.right, at, grid);
    canvas.text(frame.left - 8, at + 4, "end", 12, PlotText(number, 12, frame_width));
  }
  canvas.add("<path d=\"M" + PlotCanvas::number(frame.left) + " " + PlotCanvas::number(frame.top) + "V" +
             PlotCanvas::number(frame.bottom) + "H" + PlotCanvas::number(frame.right) +
             "\" fill=\"none\" stroke=\"#666666\" stroke-width=\"1\"/>");
  canvas.text((frame.left + frame.right) / 2, detail::kPlotHeight - 14, "middle", 13,
              PlotText(plot.x_label, 13, frame_width));
  const double centre = (frame.top + frame.bottom) / 2;
  canvas.text(18, centre, "middle", 13, PlotText(plot.y_label, 13, frame.bottom - frame.top),
              "fill=\"#333333\" transform=\"rotate(-90 18 " + PlotCanvas::number(centre) + ")\"");
  if (empty) canvas.text((frame.left + frame.right) / 2, centre, "middle", 14, PlotText("no data", 14, frame_width));

  std::vector<std::pair<double, double>> covered;  // places that labels had better leave free
  for (std::size_t s = 0; s < plot.series.size(); ++s) {
    const std::string colour = colours[s % colours.size()];
    std::string path;
    std::pair<double, double> last;
    for (const PlotPoint& point : plot.series[s].points) {
      if (!shown(point)) continue;
      const std::pair<double, double> at = {x.pixel(point.x), y.pixel(point.y)};
      if (const double error = error_of(point); error > 0) {
        const std::string style = "class=\"error\" stroke=\"" + colour + "\" stroke-width=\"1.2\"";
        const double low = y.pixel(point.y - error);
        const double high = y.pixel(point.y + error);
        canvas.line(at.first, low, at.first, high, style);
        for (const double end : {low, high}) canvas.line(at.first - 4, end, at.first + 4, end, style);
        for (double place = high; place < low; place += 6) covered.emplace_back(at.first, place);
      }
      covered.insert(covered.end(), 6, at);
      if (plot.series[s].joined && !path.empty())
        for (int i = 1; i < 32; ++i)
          covered.emplace_back(last.first + (at.first - last.first) * i / 32,
                               last.second + (at.second - last.second) * i / 32);
      path += (path.empty() ? "" : " ") + PlotCanvas::number(at.first) + "," + PlotCanvas::number(at.second);
      last = at;
    }
    if (plot.series[s].joined && path.find(' ') != std::string::npos)
      canvas.add("<polyline points=\"" + path + "\" fill=\"none\" stroke=\"" + colour +
                 "\" stroke-width=\"2\" stroke-linejoin=\"round\"/>");
  }
  for (std::size_t s = 0; s < plot.series.size(); ++s)  // above all lines
    for (const PlotPoint& point : plot.series[s].points)
      if (shown(point)) canvas.marker(x.pixel(point.x), y.pixel(point.y), s, colours[s % colours.size()]);
  std::vector<detail::PlotBox> labels;
  for (const PlotSeries& series : plot.series)
    for (const PlotPoint& point : series.points) {
      if (!shown(point) || point.label.empty()) continue;
      const PlotText text(point.label, 11, frame_width);
      labels.push_back(detail::place_label(x.pixel(point.x), y.pixel(point.y), text.width, frame, covered, labels));
      const detail::PlotBox& box = labels.back();
      canvas.text((box.left + box.right) / 2, box.bottom - 3, "middle", 11, text, "class=\"label\" fill=\"#333333\"");
    }
  return canvas.document();
}

/// Writes `svg(plot)` to `path`, whole or not at all. Error: the file cannot be written.
[[nodiscard]] inline strata::Status write_svg(const Plot& plot, const std::string& path) {
  const std::string text = svg(plot);
  return strata::io::write_atomically(path, {std::as_bytes(std::span(text))});
}

}  // namespace examples
