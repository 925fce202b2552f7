// The text side of the translation example: characters, files, tokens, vocabularies and pairs, with text that is
// malformed in every way a file can be.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <lzma.h>
#include <map>
#include <random>
#include <span>
#include <sstream>
#include <string>
#include <unistd.h>
#include <utility>
#include <vector>

#include "gnmt/byte_pairs.hpp"
#include "gnmt/corpus.hpp"
#include "gnmt/pairs.hpp"
#include "gnmt/tokens.hpp"
#include "gnmt/utf8.hpp"
#include "gnmt/vocabulary.hpp"
#include "support/catch.hpp"

namespace {

using gnmt::Vocabulary;
using gnmt::VocabularyOptions;
namespace utf8 = gnmt::utf8;
using Lines = std::vector<std::string>;

/// A directory of text files; removed at the end.
class Directory {
 public:
  Directory()
      : path_(std::filesystem::temp_directory_path() / ("strata-text-" + std::to_string(std::random_device{}()))) {
    std::filesystem::create_directories(path_);
  }
  Directory(const Directory&) = delete;
  Directory& operator=(const Directory&) = delete;
  ~Directory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }

  std::string write(const std::string& name, const std::string& bytes) const {
    std::ofstream(path_ / name, std::ios::binary) << bytes;
    return (path_ / name).string();
  }
  [[nodiscard]] std::string path() const { return path_.string(); }

 private:
  std::filesystem::path path_;
};

std::string packed(const std::string& text) {
  std::string result(text.size() + 65536, '\0');
  std::size_t size = 0;
  REQUIRE(lzma_easy_buffer_encode(3, LZMA_CHECK_CRC32, nullptr, reinterpret_cast<const std::uint8_t*>(text.data()),
                                  text.size(), reinterpret_cast<std::uint8_t*>(result.data()), &size,
                                  result.size()) == LZMA_OK);
  result.resize(size);
  return result;
}

template <class T>
std::string refusal(const strata::Result<T>& result) {
  return result ? std::string() : result.error().what();
}

bool mentions(const std::string& text, const std::string& part) {
  INFO(text << " | " << part);
  const bool found = text.find(part) != std::string::npos;
  CHECK(found);
  return found;
}

/// Characters of one to four bytes, signs, spaces, controls and stray bytes.
std::string random_line(std::mt19937& random, bool valid) {
  static const Lines parts = {"a",
                              "B",
                              "z",
                              "Ä",
                              "ß",
                              "ẞ",
                              "é",
                              "й",
                              "Ω",
                              "中",
                              "文",
                              "😀",
                              "𝒳",
                              "1",
                              "9",
                              ".",
                              ",",
                              "-",
                              "'",
                              "\"",
                              "„",
                              "“",
                              "…",
                              "–",
                              "€",
                              "。",
                              "(",
                              ")",
                              "&",
                              " ",
                              " ",
                              "  ",
                              "\t",
                              "\xC2\xA0",
                              "\xE3\x80\x80",
                              "\x01",
                              "\x7F",
                              "￭",
                              "▪",
                              "\xEF\xBB\xBF",
                              "\xE2\x80\x8B",
                              "e\xCC\x81",
                              "@@",
                              "_",
                              "▁",
                              "</w>",
                              "<unk>"};
  static const Lines broken = {"\xFF",         "\x80",     "\xC3",         "\xE2\x82",
                               "\xF0\x9F\x98", "\xC0\xAF", "\xED\xA0\x80", "\xF4\x90\x80\x80"};
  std::string line;
  const auto length = random() % 30;
  for (auto i = length; i > 0; --i)
    line += !valid && random() % 5 == 0 ? broken[random() % broken.size()] : parts[random() % parts.size()];
  return line;
}

Vocabulary learnt(const Lines& lines, const VocabularyOptions& options = {}) {
  const std::span<const std::string> text(lines);
  return Vocabulary::learn({&text, 1}, options);
}

const Lines captions = {"Ein Mann fährt Rad.", "Ein Mann und eine Frau fahren Rad.", "Eine Frau läuft (schnell) davon.",
                        "Zwei Männer laufen, eine Frau fährt.", "Die Frauen laufen; Männer fahren Räder."};

}  // namespace

TEST_CASE("every character survives writing and reading in UTF-8") {
  for (char32_t c = 0; c <= 0x10FFFF; c += c < 0x3000 ? 1 : 61) {
    if (c >= 0xD800 && c < 0xE000) continue;
    std::string text;
    utf8::append(text, c);
    const auto found = utf8::decode(text, 0);
    if (!found.valid || found.value != c || found.bytes != text.size())
      FAIL("U+" << std::hex << static_cast<unsigned>(c));
  }
  std::string last;
  utf8::append(last, 0x10FFFF);
  CHECK(utf8::decode(last, 0).value == 0x10FFFF);
}

TEST_CASE("malformed UTF-8 is found where it begins") {
  for (const char* bad : {"\x80", "\xBF", "\xC0\x80", "\xC1\xBF", "\xC3", "\xC3(", "\xE0\x80\x80", "\xE0\x9F\xBF",
                          "\xE2\x82", "\xE2\x82(", "\xED\xA0\x80", "\xED\xBF\xBF", "\xF0\x80\x80\x80",
                          "\xF0\x8F\xBF\xBF", "\xF0\x9F\x98", "\xF4\x90\x80\x80", "\xF5\x80\x80\x80", "\xFE", "\xFF"}) {
    CHECK(utf8::find_malformed(bad) == 0);
    CHECK(utf8::find_malformed(std::string("añ") + bad + "b") == 3);
    CHECK(utf8::decode(bad, 0).value == utf8::replacement);
    CHECK(utf8::decode(bad, 0).bytes == 1);
  }
  CHECK(utf8::find_malformed("") == std::string::npos);
  CHECK(utf8::find_malformed("aä中😀") == std::string::npos);
}

TEST_CASE("lower case of Latin, Greek and Cyrillic letters") {
  CHECK(utf8::to_lower("ABC xyz ÄÖÜß ẞ ÉÑÅØ ŁŻŹŃĆ ŸŽĹ ΑΩΆΈΏ ЖЯЁ 123 ×÷ ĸŉ ẦỸ") ==
        "abc xyz äöüß ß éñåø łżźńć ÿžĺ αωάέώ жяё 123 ×÷ ĸŉ ầỹ");
  for (char32_t c = 0; c < 0x3000; ++c) CHECK(utf8::to_lower(utf8::to_lower(c)) == utf8::to_lower(c));
}

TEST_CASE("lines of plain and packed files") {
  const Directory directory;
  const std::string text =
      "\xEF\xBB\xBF"
      "first line\r\n\nthird  \xE4\xB8\xAD\nlast without end";
  const Lines expected = {"first line", "", "third  \xE4\xB8\xAD", "last without end"};
  CHECK(gnmt::read_lines(directory.write("plain", text)).value() == expected);
  CHECK(gnmt::read_lines(directory.write("name.says.nothing", packed(text))).value() == expected);
  CHECK(gnmt::read_lines(directory.write("two.xz", packed("a\nb") + packed("c\nd\n"))).value() ==
        Lines{"a", "bc", "d"});
  CHECK(gnmt::read_lines(directory.write("empty", "")).value().empty());
  CHECK(gnmt::read_lines(directory.write("empty.xz", packed(""))).value().empty());
  CHECK(gnmt::read_lines(directory.write("one", "\n")).value() == Lines{""});
  std::istringstream stream(text);
  CHECK(gnmt::read_lines(stream, "stdin").value() == expected);
  // A pipe, which cannot be read twice.
  int ends[2] = {-1, -1};
  REQUIRE(pipe(ends) == 0);
  REQUIRE(write(ends[1], text.data(), text.size()) == static_cast<ssize_t>(text.size()));
  close(ends[1]);
  CHECK(gnmt::read_lines("/dev/fd/" + std::to_string(ends[0])).value() == expected);
  close(ends[0]);
  std::string words;
  for (int i = 0; i < 10000; ++i) words += "word ";
  CHECK(gnmt::read_lines(directory.write("long", words)).value() == Lines{words});
}

TEST_CASE("files that cannot be read are told with file and line") {
  const Directory directory;
  mentions(refusal(gnmt::read_lines(directory.path() + "/none")), "none: expected a text file");
  mentions(refusal(gnmt::read_lines(directory.path())), "a directory");
  mentions(refusal(gnmt::read_lines(directory.write("bad", "good\nba\xC3(d\n"))),
           "bad:2: expected text in UTF-8, found byte 0xC3 as byte 3");
  mentions(refusal(gnmt::read_lines(directory.write("bad.xz", packed("a\nb\n\xFF")))),
           "bad.xz:3: expected text in UTF-8");
  const gnmt::TextLimits limits{.bytes = 1000, .line_bytes = 10};
  mentions(refusal(gnmt::read_lines(directory.write("wide", "short\n12345678901\n"), limits)),
           "wide:2: expected at most 10 bytes");
  mentions(refusal(gnmt::read_lines(directory.write("large", std::string(1001, '\n')), limits)), "at most 1000 bytes");
  mentions(refusal(gnmt::read_lines(directory.write("bomb.xz", packed(std::string(5000000, '\n'))), limits)),
           "at most 1000 bytes of text, found more");
  std::istringstream stream(std::string(200000, '\n'));
  mentions(refusal(gnmt::read_lines(stream, "stdin", limits)), "stdin: expected at most 1000 bytes");

  const std::string whole = packed("some text that is packed, some text that is packed\n");
  for (std::size_t cut = 6; cut < whole.size(); cut += 3)
    mentions(refusal(gnmt::read_lines(directory.write("cut.xz", whole.substr(0, cut)))), "cut.xz: expected a");
  for (std::size_t at = 6; at < whole.size(); ++at) {
    std::string damaged = whole;
    damaged[at] = static_cast<char>(damaged[at] ^ 0x55);
    const auto result = gnmt::read_lines(directory.write("damaged.xz", damaged));
    if (!result) mentions(refusal(result), "damaged.xz: expected");
    CHECK_FALSE(result.ok());
  }
  mentions(refusal(gnmt::read_lines(directory.write("tail.xz", whole + "and something else"))), "intact .xz stream");
}

TEST_CASE("parallel text: both files, as many lines, packed or not") {
  const Directory directory;
  directory.write("train.de", "eins\n\ndrei\n");
  directory.write("train.en.xz", packed("one\ntwo\nthree\n"));
  const auto text = gnmt::read_parallel(directory.path(), "train", "de", "en").value();
  CHECK(text.source == Lines{"eins", "", "drei"});
  CHECK(text.target == Lines{"one", "two", "three"});
  directory.write("train.en", "one\n");  // goes before the packed file
  mentions(refusal(gnmt::read_parallel(directory.path(), "train", "de", "en")),
           "train.en:2: expected the translation of line 2 of ");
  directory.write("train.en", "1\n2\n3\n4\n5");
  mentions(refusal(gnmt::read_parallel(directory.path(), "train", "de", "en")), "train.de:4: expected the translation");
  mentions(refusal(gnmt::read_parallel(directory.path(), "train", "de", "fr")),
           "train.fr: expected this file or the same as .xz");
  mentions(refusal(gnmt::read_parallel(directory.path(), "val", "de", "en")), "val.de: expected this file");
  directory.write("val.de", "");
  directory.write("val.en", "");
  mentions(refusal(gnmt::read_parallel(directory.path(), "val", "de", "en")), "at least one sentence");
}

TEST_CASE("words and signs are parted and joined") {
  const std::string j(gnmt::joiner);
  CHECK(gnmt::tokenise("") == Lines{});
  CHECK(gnmt::tokenise(" \t\xC2\xA0 ") == Lines{});
  CHECK(gnmt::tokenise("(a-b).") == Lines{"(" + j, "a", j + "-" + j, "b", j + ")", j + "."});
  CHECK(gnmt::tokenise("A dog's  ball, 3.5 m.") ==
        Lines{"A", "dog", j + "'" + j, "s", "ball", j + ",", "3", j + "." + j, "5", "m", j + "."});
  CHECK(gnmt::tokenise("Straße Ärzte", true) == Lines{"straße", "ärzte"});
  CHECK(gnmt::tokenise("„Größe“ …") == Lines{"„" + j, "Größe", j + "“", "…"});
  CHECK(gnmt::tokenise("a - b") == Lines{"a", "-", "b"});
  CHECK(gnmt::normalise(" a\x01\tb\x7F￭\xFF ") == "a b ▪\xEF\xBF\xBD");
  CHECK(gnmt::detokenise({"a", j, "b"}) == "ab");
  CHECK(gnmt::detokenise({j + "a" + j, j, j + j, "b", ""}) == "ab");
}

TEST_CASE("tokens of any bytes give the normalised line back") {
  std::mt19937 random(1);
  for (int i = 0; i < 4000; ++i) {
    const std::string line = random_line(random, i % 2 == 0);
    for (const bool lower : {false, true}) {
      const std::string text = gnmt::normalise(line, lower);
      const Lines tokens = gnmt::tokenise(line, lower);
      INFO(line);
      CHECK(gnmt::detokenise(tokens) == text);
      CHECK(gnmt::normalise(text, lower) == text);
      CHECK(utf8::find_malformed(text) == std::string::npos);
      for (const std::string& token : tokens) CHECK(token.find(' ') == std::string::npos);
    }
  }
}

TEST_CASE("merges are learnt as by counting all pairs anew at every step") {
  std::mt19937 random(7);
  for (int round = 0; round < 30; ++round) {
    std::vector<gnmt::CountedWord> words(1 + random() % 40);
    for (auto& word : words) {
      word.count = 1 + static_cast<std::int64_t>(random() % 5);
      for (auto left = random() % 12; left > 0; --left) word.symbols.push_back(static_cast<gnmt::Symbol>(random() % 4));
    }
    auto plain = words;
    const auto originals = words;
    gnmt::Symbol next = 4;
    const auto merges = gnmt::learn_merges(words, 25, 2, [&](gnmt::Symbol, gnmt::Symbol) { return next++; });
    std::vector<gnmt::Merge> expected;
    while (expected.size() < 25) {
      std::map<std::pair<gnmt::Symbol, gnmt::Symbol>, std::int64_t> counts;
      for (const auto& word : plain)
        for (std::size_t i = 1; i < word.symbols.size(); ++i)
          counts[{word.symbols[i - 1], word.symbols[i]}] += word.count;
      std::int64_t most = 1;
      gnmt::Merge merge;
      for (const auto& [pair, count] : counts)
        if (count > most) {
          most = count;
          merge = {pair.first, pair.second, static_cast<gnmt::Symbol>(4 + expected.size())};
        }
      if (most < 2) break;
      expected.push_back(merge);
      for (auto& word : plain) gnmt::detail::replace_pair(word.symbols, merge);
    }
    CHECK(merges == expected);
    const gnmt::Merger merger(merges);
    for (std::size_t w = 0; w < words.size(); ++w) {
      CHECK(words[w].symbols == plain[w].symbols);
      auto symbols = originals[w].symbols;
      merger.apply(symbols);
      CHECK(symbols == plain[w].symbols);
    }
  }
}

TEST_CASE("byte pairs: what was learnt from is spelt again, what is new falls into pieces") {
  const Vocabulary vocabulary = learnt(captions, {.merges = 40});
  CHECK(vocabulary.merges().size() > 20);
  CHECK(vocabulary.merges().size() <= 40);
  for (const std::string& line : captions) {
    const auto ids = vocabulary.encode(line);
    CHECK(vocabulary.decode(ids) == line);
    CHECK(std::count(ids.begin(), ids.end(), strata::unknown_token) == 0);
  }
  CHECK(vocabulary.encode("Frau").size() == 1);
  CHECK(vocabulary.decode(vocabulary.encode("Frauenrad, fahren!")) == "Frauenrad, fahren ⁇");
  CHECK(vocabulary.encode("").empty());
  CHECK(vocabulary.encode(" \t ").empty());
  const auto strange = vocabulary.encode("中x");
  CHECK(strange == std::vector<std::int32_t>{strata::unknown_token, strata::unknown_token});
  CHECK(vocabulary.decode(std::vector<std::int32_t>{1, 4, 2, 0, -7, 1 << 20}).ends_with("⁇ ⁇"));

  const Vocabulary characters = learnt(captions, {.merges = 0});
  CHECK(characters.merges().empty());
  CHECK(characters.decode(characters.encode(captions[1])) == captions[1]);
  const Vocabulary lower = learnt(captions, {.merges = 40, .lower_case = true});
  CHECK(lower.decode(lower.encode(captions[2])) == "eine frau läuft (schnell) davon.");
  CHECK(learnt({}, {}).size() == gnmt::first_piece);
  CHECK(learnt({}, {}).encode("a").size() == 1);
}

TEST_CASE("joint byte pairs learn from both sides") {
  const Lines other = {"A man rides a bike.", "The men are riding bikes."};
  const std::vector<std::span<const std::string>> texts = {captions, other};
  const Vocabulary vocabulary = Vocabulary::learn(texts, {.merges = 60});
  for (const Lines* lines : {&captions, &other})
    for (const std::string& line : *lines) CHECK(vocabulary.decode(vocabulary.encode(line)) == line);
}

TEST_CASE("word vocabularies keep the most frequent words") {
  const Vocabulary vocabulary = learnt(captions, {.byte_pairs = false, .least_count = 2});
  CHECK(vocabulary.decode(vocabulary.encode("Eine Frau und Männer fahren Rad.")) == "⁇ Frau ⁇ Männer fahren Rad.");
  const Vocabulary few = learnt(captions, {.byte_pairs = false, .most_words = 3, .least_count = 1});
  CHECK(few.size() == gnmt::first_piece + 3);
  CHECK(few.piece(gnmt::first_piece) == std::string(gnmt::joiner) + ".");
}

TEST_CASE("any line of known characters survives byte pairs, and lines of 10,000 words and of one word as long") {
  std::mt19937 random(3);
  Lines lines;
  for (int i = 0; i < 300; ++i) lines.push_back(random_line(random, true));
  std::string words, word;
  for (int i = 0; i < 10000; ++i) {
    words += i % 7 == 0 ? "a " : "zB9 ";
    word += i % 3 == 0 ? "a" : "z";
  }
  lines.push_back(words);
  lines.push_back(word);
  const Vocabulary vocabulary = learnt(lines, {.merges = 200});
  for (const std::string& line : lines) {
    const auto ids = vocabulary.encode(line);
    // A character that has only stood at the end of words is unknown elsewhere; in these lines there is none.
    CHECK(vocabulary.decode(ids) == gnmt::normalise(line));
  }
  CHECK(vocabulary.encode(words).size() >= 10000);
  CHECK(vocabulary.encode(word).size() < 10000);
}

TEST_CASE("a vocabulary has a text form") {
  for (const VocabularyOptions& options : {VocabularyOptions{.merges = 40}, VocabularyOptions{.byte_pairs = false},
                                           VocabularyOptions{.merges = 5, .lower_case = true}}) {
    const Vocabulary vocabulary = learnt(captions, options);
    const std::string text = vocabulary.to_text();
    const Vocabulary again = Vocabulary::from_text(text).value();
    CHECK(again == vocabulary);
    CHECK(again.to_text() == text);
    for (const std::string& line : captions) CHECK(again.encode(line) == vocabulary.encode(line));
    for (std::size_t cut = 0; cut + 1 < text.size(); ++cut)
      mentions(refusal(Vocabulary::from_text(text.substr(0, cut))), "vocabulary:");
  }
  CHECK(Vocabulary::from_text(Vocabulary().to_text()).value() == Vocabulary());
}

TEST_CASE("texts that are no vocabulary are refused with their line") {
  const std::string head = "gnmt vocabulary 1\nunits byte-pairs\nlower_case 0\n";
  const auto told = [&](const std::string& text) { return refusal(Vocabulary::from_text(text)); };
  const std::string j(gnmt::joiner);
  mentions(told(""), "vocabulary:1");
  mentions(told("gnmt vocabulary 2\n"), "vocabulary:1");
  mentions(told("gnmt vocabulary 1\nunits bytes\n"), "vocabulary:2");
  mentions(told("gnmt vocabulary 1\nunits words\nlower_case yes\n"), "vocabulary:3");
  mentions(told(head + "pieces -1\n"), "vocabulary:4");
  mentions(told(head + "pieces 99999999999999999999\n"), "vocabulary:4");
  mentions(told(head + "pieces 99999999999\n"), "vocabulary:4");
  mentions(told(head + "pieces 2\na\n\nmerges 0\n"), "vocabulary:6");
  mentions(told(head + "pieces 2\na\na\nmerges 0\n"), "each piece once");
  mentions(told(head + "pieces 1\na b\nmerges 0\n"), "vocabulary:5");
  mentions(told(head + "pieces 1\n\xFF\nmerges 0\n"), "vocabulary:5");
  mentions(told(head + "pieces 1\na\nmerges 1\n4 4\n"), "vocabulary:7");
  mentions(told(head + "pieces 3\na" + j + "\nb\nab\nmerges 1\n4 9\n"), "two numbers");
  mentions(told(head + "pieces 3\na" + j + "\nb\nab\nmerges 1\n3 5\n"), "two numbers");
  mentions(told(head + "pieces 3\na" + j + "\nb\nab\nmerges 1\n5 4\n"), "a merge that gives a piece");
  mentions(told(head + "pieces 3\na" + j + "\nb\nab\nmerges 2\n4 5\n4 5\n"), "vocabulary:10");
  mentions(told(head + "pieces 3\na" + j + "\nb\nab\nmerges 1\n4 5\nmore\n"), "the end of the vocabulary");
  CHECK(Vocabulary::from_text(head + "pieces 3\na" + j + "\nb\nab\nmerges 1\n4 5\n").value().encode("ab").size() == 1);
}

TEST_CASE("pairs that cannot be learnt from are left out and counted") {
  const Vocabulary vocabulary = learnt(captions, {.merges = 100});
  std::string words;
  for (int i = 0; i < 10000; ++i) words += "Frau ";
  const gnmt::ParallelText text{{"Frau", "", "Mann", words, " \t", "Ein Mann"},
                                {"Mann", "Mann", " ", "Frau", "", "Frau"}};
  const gnmt::LearntPairs learnt_pairs = gnmt::encode_pairs(text, vocabulary, vocabulary, 50);
  CHECK(learnt_pairs.empty == 3);
  CHECK(learnt_pairs.too_long == 1);
  const auto& pairs = learnt_pairs.pairs;
  CHECK(pairs.check().ok());
  CHECK(pairs.size() == 2);
  CHECK(pairs.source_words == vocabulary.size());
  CHECK(pairs.target[1] == vocabulary.encode("Frau"));
  auto source = vocabulary.encode("Ein Mann");
  source.push_back(strata::end_token);
  CHECK(pairs.source[1] == source);
}

TEST_CASE("sources end with the end token and are cut to what a network shall read") {
  const Vocabulary vocabulary = learnt(captions, {.merges = 100});
  const auto frau = vocabulary.encode("Frau").front();
  bool cut = true;
  CHECK(gnmt::source_of(vocabulary, "Frau Frau", 2, &cut) == std::vector<std::int32_t>{frau, frau, strata::end_token});
  CHECK_FALSE(cut);
  CHECK(gnmt::source_of(vocabulary, "Frau Frau Mann", 2, &cut) ==
        std::vector<std::int32_t>{frau, frau, strata::end_token});
  CHECK(cut);
  CHECK(gnmt::source_of(vocabulary, " \t", 2, &cut).empty());
  CHECK_FALSE(cut);
}
