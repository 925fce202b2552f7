// BLEU against sacreBLEU's figures, which bleu_reference.py has written down.
#include "gnmt/bleu.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <fstream>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "support/catch.hpp"
#include "support/close.hpp"

namespace {

nlohmann::json reference_sets() {
  std::ifstream file(STRATA_SOURCE_DIR "/tests/examples/bleu_reference.json");
  return nlohmann::json::parse(file);
}

std::string joined(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : " ") + word;
  return text;
}

}  // namespace

TEST_CASE("tokens are those of sacreBLEU's 13a") {
  std::size_t lines = 0;
  for (const auto& set : reference_sets())
    for (std::size_t i = 0; i < set["tokens"].size(); ++i, ++lines) {
      const auto line = set["translations"][i].get<std::string>();
      INFO(set["name"] << ": " << line);
      CHECK(joined(gnmt::tokenise_13a(line)) == set["tokens"][i].get<std::string>());
    }
  CHECK(lines > 200);
}

TEST_CASE("a corpus scores as in sacreBLEU") {
  for (const auto& set : reference_sets())
    for (const bool lower : {false, true}) {
      gnmt::Bleu bleu(lower);
      for (std::size_t i = 0; i < set["references"].size(); ++i)
        bleu.add(set["translations"][i].get<std::string>(), set["references"][i].get<std::string>());
      const gnmt::BleuScore found = bleu.score();
      const auto& expected = set[lower ? "lower" : "mixed"];
      INFO(set["name"] << (lower ? ", lower case" : ", mixed case"));
      CHECK(test::close(found.score, expected["score"].get<double>(), 1e-12));
      CHECK(test::close(found.brevity_penalty, expected["brevity_penalty"].get<double>(), 1e-12));
      CHECK(found.words == expected["words"].get<std::int64_t>());
      CHECK(found.reference_words == expected["reference_words"].get<std::int64_t>());
      for (std::size_t n = 0; n < 4; ++n) {
        INFO(n + 1 << "-grams");
        CHECK(found.correct[n] == expected["correct"][n].get<std::int64_t>());
        CHECK(found.total[n] == expected["total"][n].get<std::int64_t>());
        CHECK(test::close(found.precisions[n], expected["precisions"][n].get<double>(), 1e-12));
      }
      CHECK(bleu.signature() == expected["signature"].get<std::string>());
    }
}

TEST_CASE("BLEU of no sentence, of bytes that are no text and of a very long line") {
  gnmt::Bleu bleu;
  CHECK(bleu.score().score == 0);
  bleu.add("\xFF\xC3(\xE2\x82", "\xFF\xC3(\xE2\x82");
  std::string line;
  for (int i = 0; i < 10000; ++i) line += "word" + std::to_string(i % 100) + " ";
  bleu.add(line, line);
  CHECK(bleu.score().words == 10000 + static_cast<std::int64_t>(gnmt::tokenise_13a("\xFF\xC3(\xE2\x82").size()));
  CHECK(test::close(bleu.score().score, 100, 1e-9));
}
