// Mapped files and files written whole or not at all.
#include <atomic>
#include <csignal>
#include <span>
#include <string>
#include <string_view>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <thread>
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

/// The permissions of the file at `path`.
mode_t mode_of(const std::string& path) {
  struct stat status {};
  return ::stat(path.c_str(), &status) == 0 ? status.st_mode & 07777U : 0;
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

TEST_CASE("threads that write one path at once leave it whole at every moment, without errors") {
  const test::Directory directory;
  const std::string path = directory.file("a");
  const std::string large(3'000'000, 'a');
  const std::string small(1000, 'b');
  REQUIRE(strata::io::write_atomically(path, pieces({large})).ok());
  std::atomic<int> errors{0};
  std::atomic<int> torn{0};
  std::atomic<int> writing{2};
  const auto writer = [&](const std::string& text) {
    for (int i = 0; i < 40; ++i)
      if (!strata::io::write_atomically(path, pieces({text})).ok()) ++errors;
    --writing;
  };
  std::thread first([&] { writer(large); });
  std::thread second([&] { writer(small); });
  std::thread reader([&] {
    while (writing > 0)
      if (const std::string text = test::contents(path); text != large && text != small) ++torn;
  });
  first.join();
  second.join();
  reader.join();
  CHECK(errors == 0);
  CHECK(torn == 0);
  CHECK(directory.files() == 1);
}

TEST_CASE("files that a program of the same number left are no hindrance") {
  const test::Directory directory;
  const std::string path = directory.file("a");
  // The next names, as a child process would find them if one of its number had died in mid-write.
  const std::string next = strata::io::detail::temporary_name(path);
  const std::size_t counted = next.rfind('_') + 1;
  const int number = std::stoi(next.substr(counted));
  for (int i = 1; i <= 5; ++i) test::write(next.substr(0, counted) + std::to_string(number + i), "left");
  REQUIRE(strata::io::write_atomically(path, pieces({"new"})).ok());
  CHECK(test::contents(path) == "new");
  CHECK(directory.files() == 6);
  CHECK(test::contents(next.substr(0, counted) + std::to_string(number + 1)) == "left");
}

TEST_CASE("a file that is replaced keeps its mode, a new one has that of the program") {
  const test::Directory directory;
  const std::string path = directory.file("a");
  const mode_t before = ::umask(027);
  REQUIRE(strata::io::write_atomically(path, pieces({"one"})).ok());
  CHECK(mode_of(path) == 0640);
  for (const mode_t mode : {0600U, 0666U, 0444U, 0755U}) {
    REQUIRE(::chmod(path.c_str(), mode) == 0);
    CHECK(strata::io::write_atomically(path, pieces({"two"})).ok());
    CHECK(mode_of(path) == mode);
  }
  ::umask(before);
}

TEST_CASE("a symbolic link stays one and the file that it names is written") {
  const test::Directory directory;
  std::filesystem::create_directories(directory.path / "elsewhere");
  const std::string path = directory.file("elsewhere/a");
  const std::string link = directory.file("link");
  const std::string chain = directory.file("elsewhere/chain");
  std::filesystem::create_symlink("elsewhere/a", link);
  std::filesystem::create_symlink(link, chain);
  for (const std::string& name : {link, chain, path}) {  // at first there is no file
    INFO(name);
    REQUIRE(strata::io::write_atomically(name, pieces({name})).ok());
    CHECK(test::contents(path) == name);
  }
  CHECK(std::filesystem::is_symlink(link));
  CHECK(std::filesystem::is_symlink(chain));
  CHECK(directory.files() == 2);
  const std::string circle = directory.file("circle");
  std::filesystem::create_symlink("circle", circle);
  CHECK(strata::io::write_atomically(circle, pieces({"x"})).error().where() == circle);
  CHECK(std::filesystem::is_symlink(circle));
}

TEST_CASE("what is there and no file is not replaced by one") {
  const test::Directory directory;
  const std::string pipe = directory.file("pipe");
  REQUIRE(::mkfifo(pipe.c_str(), 0600) == 0);
  const std::string link = directory.file("link");
  std::filesystem::create_symlink("pipe", link);
  for (const std::string& path : {pipe, link}) {
    const auto status = strata::io::write_atomically(path, pieces({"x"}));
    REQUIRE_FALSE(status.ok());
    CHECK(status.error().where() == path);
    CHECK(std::filesystem::is_fifo(path));
  }
  CHECK(directory.files() == 2);
}
