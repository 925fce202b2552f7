// Mapped files and files written whole or not at all.
#include <csignal>
#include <span>
#include <string>
#include <string_view>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <vector>

#include <strata/io/atomic_file.hpp>
#include <strata/io/mapped_file.hpp>

#include "io/file_bytes.hpp"
#include "support/catch.hpp"

namespace {

using strata::io::MappedFile;

std::vector<std::span<const std::byte>> pieces(const std::vector<std::string_view>& texts) {
  std::vector<std::span<const std::byte>> result;
  for (const auto text : texts) result.push_back(std::as_bytes(std::span(text)));
  return result;
}

/// The status of a child process in which files may have at most `limit` bytes and which runs `f`.
template <class F>
int in_child_with_limit(rlim_t limit, bool die_at_limit, F&& f) {
  const pid_t child = ::fork();
  if (child == 0) {
    std::signal(SIGXFSZ, die_at_limit ? SIG_DFL : SIG_IGN);
    const rlimit limits{limit, limit};
    ::setrlimit(RLIMIT_FSIZE, &limits);
    ::_exit(f());
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return status;
}

}  // namespace

TEST_CASE("a mapped file has the bytes of the file, aligned, and outlives its replacement") {
  const test::Directory directory;
  const std::string path = directory.file("a");
  test::write(path, std::string(1000, 'x'));
  const auto file = MappedFile::open(path).value();
  REQUIRE(file->bytes().size() == 1000);
  CHECK(reinterpret_cast<std::uintptr_t>(file->bytes().data()) % 64 == 0);
  REQUIRE(strata::io::write_atomically(path, pieces({"new"})).ok());
  CHECK(file->bytes()[999] == std::byte{'x'});
  CHECK(test::contents(path) == "new");
}

TEST_CASE("an empty file is mapped as no bytes") {
  const test::Directory directory;
  test::write(directory.file("empty"), "");
  CHECK(MappedFile::open(directory.file("empty")).value()->bytes().empty());
}

TEST_CASE("what is not a readable file is an error that names it") {
  const test::Directory directory;
  const std::string missing = directory.file("missing");
  CHECK(MappedFile::open(missing).error().where() == missing);
  CHECK(MappedFile::open(directory.path.string()).error().expected() == "a regular file");
}

TEST_CASE("a pipe without a writer is an error, not a wait") {
  const test::Directory directory;
  const std::string pipe = directory.file("pipe");
  REQUIRE(::mkfifo(pipe.c_str(), 0600) == 0);
  const pid_t child = ::fork();
  if (child == 0) {
    std::signal(SIGALRM, SIG_DFL);
    ::alarm(1);
    ::_exit(MappedFile::open(pipe).ok() ? 1 : 0);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  CHECK(status == 0);
}

TEST_CASE("pieces are written one after the other and nothing else is left") {
  const test::Directory directory;
  const std::string path = directory.file("a");
  REQUIRE(strata::io::write_atomically(path, pieces({"one", "", "two"})).ok());
  CHECK(test::contents(path) == "onetwo");
  REQUIRE(strata::io::write_atomically(path, pieces({})).ok());
  CHECK(test::contents(path).empty());
  CHECK(directory.files() == 1);
}

TEST_CASE("a save that fails half-way leaves the old file whole and no other") {
  const test::Directory directory;
  const std::string path = directory.file("a");
  test::write(path, "old");
  const std::string large(100'000, 'x');
  const int status = in_child_with_limit(5000, false, [&] {
    return strata::io::write_atomically(path, pieces({"head", large})).ok() ? 1 : 0;
  });
  CHECK(status == 0);
  CHECK(test::contents(path) == "old");
  CHECK(directory.files() == 1);
}

TEST_CASE("a program that dies in the middle of saving leaves the old file whole") {
  const test::Directory directory;
  const std::string path = directory.file("a");
  test::write(path, "old");
  const std::string large(100'000, 'x');
  const int status = in_child_with_limit(5000, true, [&] {
    return strata::io::write_atomically(path, pieces({"head", large})).ok() ? 1 : 0;
  });
  CHECK(WIFSIGNALED(status));
  CHECK(test::contents(path) == "old");
}

TEST_CASE("a file that cannot be made or replaced is an error that names it") {
  const test::Directory directory;
  const std::string nowhere = directory.file("no/such/directory");
  CHECK(strata::io::write_atomically(nowhere, pieces({"x"})).error().where() == nowhere);
  std::filesystem::create_directories(directory.path / "taken" / "full");
  const auto status = strata::io::write_atomically(directory.file("taken"), pieces({"x"}));
  CHECK(status.error().where() == directory.file("taken"));
  CHECK(directory.files() == 1);  // the temporary file is gone
}
