// Line and scatter plots as SVG text.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <span>
#include <string>
#include <vector>

#include <strata/core/error.hpp>
#include <strata/io/atomic_file.hpp>

namespace examples {

struct PlotPoint {
  double x = 0;
  double y = 0;
  std::string label;
};

struct PlotSeries {
  std::string name;
  std::vector<PlotPoint> points;
  bool joined = true;  ///< by lines
};

struct Plot {
  std::string title, x_label, y_label;
  std::vector<PlotSeries> series;
};

namespace detail {

[[nodiscard]] inline std::string escaped(const std::string& text) {
  std::string result;
  for (const char c : text) {
    if (c == '<') {
      result += "&lt;";
    } else if (c == '&') {
      result += "&amp;";
    } else {
      result += c;
    }
  }
  return result;
}

/// An axis from `low` to `high` whose ticks are 1, 2 or 5 times a power of ten apart.
struct Axis {
  double low = 0;
  double high = 1;
  double step = 0.5;

  Axis(double smallest, double largest) {
    if (!(largest > smallest)) {
      smallest -= 0.5;
      largest += 0.5;
    }
    const double margin = 0.08 * (largest - smallest);
    const double rough = (largest - smallest + 2 * margin) / 6;
    const double power = std::pow(10.0, std::floor(std::log10(rough)));
    step = power * (rough / power <= 1 ? 1 : (rough / power <= 2 ? 2 : (rough / power <= 5 ? 5 : 10)));
    low = std::floor((smallest - margin) / step) * step;
    high = std::ceil((largest + margin) / step) * step;
  }
};

}  // namespace detail

/// The plot as an SVG document. Points that are not finite are left out.
[[nodiscard]] inline std::string svg(const Plot& plot) {
  constexpr double width = 720, height = 480, left = 80, right = 30, top = 50, bottom = 60;
  constexpr const char* colours[] = {"#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"};
  std::vector<double> xs, ys;
  for (const auto& series : plot.series)
    for (const auto& point : series.points)
      if (std::isfinite(point.x) && std::isfinite(point.y)) {
        xs.push_back(point.x);
        ys.push_back(point.y);
      }
  if (xs.empty()) xs = ys = {0};
  const detail::Axis x_axis(*std::min_element(xs.begin(), xs.end()), *std::max_element(xs.begin(), xs.end()));
  const detail::Axis y_axis(*std::min_element(ys.begin(), ys.end()), *std::max_element(ys.begin(), ys.end()));
  const auto px = [&](double x) {
    return left + (x - x_axis.low) / (x_axis.high - x_axis.low) * (width - left - right);
  };
  const auto py = [&](double y) {
    return height - bottom - (y - y_axis.low) / (y_axis.high - y_axis.low) * (height - top - bottom);
  };
  std::string out;
  const auto print = [&](const char* format, auto... values) {
    char text[512];
    std::snprintf(text, sizeof(text), format, values...);
    out += text;
  };
  const auto write = [&](double x, double y, const char* anchor, int size, const std::string& text,
                         const char* extra = "") {
    print(R"(<text x="%.1f" y="%.1f" text-anchor="%s" font-size="%d"%s>)", x, y, anchor, size, extra);
    out += detail::escaped(text) + "</text>\n";
  };
  print(R"(<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %.0f %.0f" font-family="sans-serif">)", width, height);
  out += "\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n";
  for (double x = x_axis.low; x <= x_axis.high + x_axis.step / 2; x += x_axis.step) {
    print("<path d=\"M%.1f %.1fV%.1f\" stroke=\"#ddd\"/>\n", px(x), top, height - bottom);
    print("<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\" font-size=\"12\">%.6g</text>\n", px(x),
          height - bottom + 18, std::abs(x) < x_axis.step * 1e-9 ? 0 : x);
  }
  for (double y = y_axis.low; y <= y_axis.high + y_axis.step / 2; y += y_axis.step) {
    print("<path d=\"M%.1f %.1fH%.1f\" stroke=\"#ddd\"/>\n", left, py(y), width - right);
    print("<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"end\" font-size=\"12\">%.6g</text>\n", left - 8, py(y) + 4,
          std::abs(y) < y_axis.step * 1e-9 ? 0 : y);
  }
  write(width / 2, 28, "middle", 16, plot.title);
  write((left + width - right) / 2, height - 16, "middle", 13, plot.x_label);
  write(20, (top + height - bottom) / 2, "middle", 13, plot.y_label, " transform=\"rotate(-90 20 235)\"");
  for (std::size_t s = 0; s < plot.series.size(); ++s) {
    const auto& series = plot.series[s];
    const char* colour = colours[s % std::size(colours)];
    std::string path;
    for (const auto& point : series.points) {
      if (!std::isfinite(point.x) || !std::isfinite(point.y)) continue;
      char text[64];
      std::snprintf(text, sizeof(text), "%s%.1f %.1f", path.empty() ? "M" : "L", px(point.x), py(point.y));
      path += text;
      print("<circle cx=\"%.1f\" cy=\"%.1f\" r=\"5\" fill=\"%s\"/>\n", px(point.x), py(point.y), colour);
      const bool at_right = px(point.x) > width - 160;
      write(px(point.x) + (at_right ? -9 : 9), py(point.y) - 9, at_right ? "end" : "start", 12, point.label);
    }
    if (series.joined && !path.empty())
      out += "<path d=\"" + path + "\" fill=\"none\" stroke=\"" + colour + "\" stroke-width=\"1.5\"/>\n";
    if (plot.series.size() > 1) {
      const double y = height - bottom - 14 - 18 * static_cast<double>(s);
      print("<circle cx=\"%.1f\" cy=\"%.1f\" r=\"5\" fill=\"%s\"/>\n", width - right - 150, y - 4, colour);
      write(width - right - 138, y, "start", 12, series.name);
    }
  }
  return out + "</svg>\n";
}

/// Writes the plot to a file, whole or not at all.
[[nodiscard]] inline strata::Status write_svg(const Plot& plot, const std::string& path) {
  const std::string text = svg(plot);
  return strata::io::write_atomically(path, {std::as_bytes(std::span(text))});
}

}  // namespace examples
