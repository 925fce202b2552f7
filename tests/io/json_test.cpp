// The JSON of model files and profiles: what is valid, what values are, and nlohmann/json as the judge of both.
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include <strata/io/json.hpp>

#include "support/catch.hpp"

namespace {

using nlohmann::json;
using strata::io::JsonMember;
using strata::io::JsonValue;

constexpr int depth = 6;

/// The same value as nlohmann/json has it, through the accessors.
json copy_of(const JsonValue& value) {
  if (value.is_object()) {
    json object = json::object();
    for (const JsonMember& member : value.members()) object[member.name] = copy_of(member.value);
    return object;
  }
  if (value.is_list()) {
    json list = json::array();
    const auto elements = value.elements(1000);
    for (const JsonValue& element : *elements) list.push_back(copy_of(element));
    return list;
  }
  if (const auto text = value.text()) return *text;
  if (const auto whole = value.whole()) return *whole;
  if (const auto number = value.number()) return *number;
  if (value.source() == "null") return nullptr;
  return value.source() == "true";
}

/// Whether both readers agree on `text`: valid or not, and what it means. Names given twice are valid for the judge.
bool agree(const std::string& text) {
  const auto value = JsonValue::parse(text, depth);
  const json judged = json::parse(text, nullptr, false);
  if (value) return !judged.is_discarded() && copy_of(value.value()) == judged;
  return judged.is_discarded() || value.error().expected() != "valid JSON";
}

std::string written(const std::string& text) {
  std::string result;
  strata::io::append_json(result, std::string_view(text));
  return result;
}

}  // namespace

TEST_CASE("texts are valid JSON, and mean the same, where another reader says so") {
  for (const char* text : {"",
                           " ",
                           "{}",
                           "[]",
                           " [ ] ",
                           "{ }",
                           "null",
                           "true",
                           "false",
                           "nul",
                           "truex",
                           "[true,false,null]",
                           "[1,]",
                           "[,1]",
                           "{\"a\":1,}",
                           "{\"a\" : [ 1 , 2 ] , \"b\":{}}",
                           "{\"a\"}",
                           "{a:1}",
                           "{'a':1}",
                           "{\"a\":1 \"b\":2}",
                           "[1 2]",
                           "{} x",
                           "[",
                           "{",
                           "]",
                           "}",
                           "[}",
                           "{]",
                           "[[1],[2,[3]]]",
                           "0",
                           "-0",
                           "-",
                           "01",
                           "1.",
                           ".5",
                           "1.5",
                           "-1.5e3",
                           "1e",
                           "1e+",
                           "1E-5",
                           "1e05",
                           "+1",
                           "0x1",
                           "1e999",
                           "-1e999",
                           "NaN",
                           "Infinity",
                           "18446744073709551615",
                           "18446744073709551616",
                           "9007199254740993.5",
                           "\"\"",
                           "\"a",
                           "\"\\\"\"",
                           "\"\\\\\\/\\b\\f\\n\\r\\t\"",
                           "\"\\x\"",
                           "\"\\u00e4\"",
                           "\"\\u00E4\"",
                           "\"\\u00g4\"",
                           "\"\\u12\"",
                           "\"\\ud83d\\ude00\"",
                           "\"\\ud83d\"",
                           "\"\\ude00\"",
                           "\"\\ud83dx\"",
                           "\"\\ud83d\\u0041\"",
                           "\"\t\"",
                           "\"\n\"",
                           "\"\x7f\"",
                           "\"\xc3\xa4\"",
                           "\"\xff\"",
                           "\"\xc3\"",
                           "\"\xc0\x80\"",
                           "\"\xe0\x80\x80\"",
                           "\"\xed\xa0\x80\"",
                           "\"\xf4\x90\x80\x80\"",
                           "\"\xf0\x9f\x98\x80\"",
                           "\"\xf0\x9f\x98\"",
                           "\"\\u0000\"",
                           "/**/1",
                           "{\"a\":{\"b\":[{\"c\":\"d\"}]}}",
                           "\t\r\n1\n"}) {
    INFO(text);
    CHECK(agree(text));
  }
  CHECK(agree(std::string("\"\0\"", 3)));
  CHECK_FALSE(JsonValue::parse(std::string("1\0", 2), depth).ok());  // for the judge the text ends there
}

TEST_CASE("changed texts are judged alike") {
  const std::string text =
      R"({"a":{"dtype":"F32","shape":[2,-3.5e1,0],"data_offsets":[0,24]},"\u00e4\n":[true,false,null,"x\"y"],"c":{}})";
  REQUIRE(agree(text));
  const std::string pieces = "{}[]\",:0123456789-+.eE\\utrfn ab\xc3\xa4\xf0\x9f\x01";
  std::mt19937 random(5);
  int wrong = 0;
  for (int i = 0; i < 20'000; ++i) {
    std::string changed = text;
    for (int n = 0; n < 1 + i % 3; ++n) {
      const std::size_t at = random() % changed.size();
      if (random() % 3 == 0) {
        changed.erase(at, 1 + random() % 4);
      } else {
        changed[at] = pieces[random() % pieces.size()];
      }
      if (changed.empty()) changed = "0";
    }
    if (!agree(changed)) {
      UNSCOPED_INFO(changed);
      ++wrong;
    }
  }
  CHECK(wrong == 0);
  for (std::size_t size = 0; size < text.size(); ++size)
    CHECK_FALSE(JsonValue::parse(text.substr(0, size), depth).ok());
}

TEST_CASE("names given twice and deep nesting are refused") {
  CHECK(JsonValue::parse(R"({"a":1,"a":2})", 1).error().expected() == "names given once");
  CHECK(JsonValue::parse(R"([{"a":1,"b":{"\u0061":0,"a":2}}])", 3).error().expected() == "names given once");
  CHECK(JsonValue::parse(R"({"a":{"a":1},"b":{"a":1}})", 2).ok());
  CHECK(JsonValue::parse("1", 0).ok());
  CHECK(JsonValue::parse("[[1],{}]", 2).ok());
  for (const char* text : {"[[1],{}]", "[[]]", "{\"a\":{}}"}) {
    INFO(text);
    CHECK(JsonValue::parse(text, 1).error().found() == "deeper");
  }
  CHECK(JsonValue::parse(std::string(1'000'000, '['), 8).error().found() == "deeper");
}

TEST_CASE("values are only what they are asked for as") {
  const std::string text = R"(["5", 5, -5, 5.0, 5e0, 18446744073709551616, true, null, [], {}])";
  const auto list = JsonValue::parse(text, 2).value().elements(10).value();
  REQUIRE(list.size() == 10);
  const std::vector<bool> text_like = {true, false, false, false, false, false, false, false, false, false};
  const std::vector<bool> whole_like = {false, true, false, false, false, false, false, false, false, false};
  const std::vector<bool> number_like = {false, true, true, true, true, true, false, false, false, false};
  for (std::size_t i = 0; i < list.size(); ++i) {
    INFO(list[i].source());
    CHECK(list[i].text().has_value() == text_like[i]);
    CHECK(list[i].whole().has_value() == whole_like[i]);
    CHECK(list[i].number().has_value() == number_like[i]);
    CHECK(list[i].is_list() == (i == 8));
    CHECK(list[i].is_object() == (i == 9));
    CHECK(list[i].elements(5).has_value() == (i == 8));
    CHECK(list[i].members().empty());
  }
  CHECK_FALSE(JsonValue::parse(text, 2).value().elements(9).has_value());
}

TEST_CASE("what is written is read back, by the judge as well") {
  for (const std::string& text : {std::string(), std::string("plain"), std::string("\"\\/\b\f\n\r\t\x01\x1f\x7f"),
                                  std::string("a\0b", 3), std::string("\xc3\xa4 \xe2\x82\xac \xf0\x9f\x98\x80")}) {
    CHECK(JsonValue::parse(written(text), 0).value().text() == text);
    CHECK(json::parse(written(text)) == text);
  }
  CHECK(written("\xff"
                "a\xc3") ==
        "\"\xef\xbf\xbd"
        "a\xef\xbf\xbd\"");
  for (const double number :
       {0.0, -0.0, 1.0, 0.1, -1e-300, 1e300, 5e-324, std::numeric_limits<double>::max(), 1.0 / 3}) {
    std::string text;
    strata::io::append_json(text, number);
    INFO(text);
    CHECK(JsonValue::parse(text, 0).value().number() == number);
    CHECK(json::parse(text).get<double>() == number);
  }
}
