// strata's side of the comparison in run: one model at one level in a process of its own, driven by the lines that
// engine.py understands: MODEL LEVEL CORES BATCH INPUT, the last a file of batch x 3 x height x width floats.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <iostream>
#include <string>

#include <strata/strata.hpp>

#include "../../../examples/resnet/network.hpp"

namespace {

using Model = strata::Model<resnet::ResNet>;

double milliseconds(strata::Session<Model>& session, strata::Level level) {
  const auto start = std::chrono::steady_clock::now();
  session.forward(level);
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

void serve(const std::string& path, int level_index, int cores, strata::index_t batch, const std::string& input) {
  const Model model = strata::load<resnet::ResNet>(path);
  if (level_index < 0 || level_index >= model.levels())
    strata::raise(strata::Error("level", "0 to " + std::to_string(model.levels() - 1), std::to_string(level_index)));
  const strata::Level level{level_index};
  strata::Session<Model> session(model, {.threads = cores, .batch = batch});
  std::ifstream file(input, std::ios::binary);
  const auto bytes = static_cast<std::streamsize>(session.input().size_bytes());
  if (!file.read(reinterpret_cast<char*>(session.input().data()), bytes))
    strata::raise(strata::Error(input, std::to_string(bytes) + " bytes", std::to_string(file.gcount())));
  milliseconds(session, level);
  std::printf("ready %.4f\n", milliseconds(session, level));
  std::fflush(stdout);
  std::string command;
  while (std::cin >> command) {
    if (command == "output") {
      std::string target;
      std::cin >> target;
      const auto logits = session.forward(level);
      (void)strata::io::write_atomically(target, {std::as_bytes(logits)}).value();
      std::printf("done\n");
    } else {
      int runs = 0;
      std::cin >> runs;
      for (int i = 0; i < runs; ++i) std::printf("%s%.4f", i == 0 ? "" : " ", milliseconds(session, level));
      std::printf("\n");
    }
    std::fflush(stdout);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 6) {
    std::fprintf(stderr, "usage: resnet50_engine MODEL LEVEL CORES BATCH INPUT\n");
    return 1;
  }
  try {
    serve(argv[1], std::atoi(argv[2]), std::atoi(argv[3]), std::atol(argv[4]), argv[5]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "resnet50_engine: %s\n", error.what());
    return 1;
  }
  return 0;
}
