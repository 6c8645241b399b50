// Shows that key files are written once, kept from others, and read back; and that what is no key
// file is refused with what to do. The keys of the foreign certificates are those of RFC 32.

#include "transport/curve_keys.hpp"

#include <sys/stat.h>

#include <boost/test/unit_test.hpp>
#include <filesystem>
#include <fstream>
#include <sstream>

using namespace sluice;
using namespace sluice::transport;

namespace {

struct Folder {
  std::filesystem::path path;
  Folder() {
    std::string name = (std::filesystem::temp_directory_path() / "sluice-XXXXXX").string();
    BOOST_REQUIRE(mkdtemp(name.data()) != nullptr);
    path = name;
  }
  ~Folder() { std::filesystem::remove_all(path); }
  std::string operator/(const std::string& name) const { return (path / name).string(); }
};

mode_t mode_of(const std::string& path) {
  struct stat facts {};
  BOOST_REQUIRE_EQUAL(stat(path.c_str(), &facts), 0);
  return facts.st_mode & 07777;
}

std::string write(const std::string& path, const std::string& text, mode_t mode = 0600) {
  std::ofstream(path) << text;
  chmod(path.c_str(), mode);
  return path;
}

template <class T>
void check_refused(const Result<T>& result, ErrorCode code, std::string_view part) {
  BOOST_REQUIRE(!result);
  BOOST_TEST_CONTEXT(result.error().message) {
    BOOST_CHECK(result.error().code == code);
    BOOST_CHECK(result.error().message.find(part) != std::string::npos);
  }
}

const std::string some_key = "Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID";
const std::string its_secret = "D:)Q[IlAW!ahhC2ac:9*A}h:p?([4%wOTJ%JR%cs";

}  // namespace

BOOST_AUTO_TEST_SUITE(curve_keys)

BOOST_AUTO_TEST_CASE(what_is_written_is_read_back_and_never_overwritten) {
  const Folder folder;
  const auto keys = generate_curve_keys();
  const mode_t mask = umask(077);
  const auto files = write_curve_keys(keys, folder / "node");
  umask(mask);
  BOOST_REQUIRE(files);
  BOOST_CHECK_EQUAL(files->public_file, folder / "node.key");
  BOOST_CHECK_EQUAL(files->secret_file, folder / "node.key_secret");
  BOOST_CHECK_EQUAL(mode_of(files->secret_file), 0600U);
  BOOST_CHECK_EQUAL(mode_of(files->public_file), 0644U);
  const auto read = read_secret_key(files->secret_file);
  BOOST_REQUIRE_MESSAGE(read, read.error().message);
  BOOST_CHECK_EQUAL(read->public_key, keys.public_key);
  BOOST_CHECK_EQUAL(read->secret_key, keys.secret_key);
  BOOST_CHECK_EQUAL(read_public_key(files->public_file).value(), keys.public_key);
  BOOST_CHECK_EQUAL(read_public_key(files->secret_file).value(), keys.public_key);
  BOOST_CHECK_EQUAL(read_public_key(keys.public_key).value(), keys.public_key);
  std::stringstream shown;
  shown << std::ifstream(files->public_file).rdbuf();
  BOOST_CHECK(shown.str().find(keys.secret_key) == std::string::npos);

  check_refused(write_curve_keys(generate_curve_keys(), folder / "node"), ErrorCode::io,
                "there already");
  BOOST_CHECK_EQUAL(read_secret_key(files->secret_file)->secret_key, keys.secret_key);
  // A public file in the way: no secret one is left behind.
  write(folder / "half.key", "mine");
  check_refused(write_curve_keys(keys, folder / "half"), ErrorCode::io, "half.key");
  BOOST_CHECK(!std::filesystem::exists(folder / "half.key_secret"));
  check_refused(write_curve_keys(keys, folder / "nowhere/node"), ErrorCode::io, "nowhere");
}

BOOST_AUTO_TEST_CASE(a_secret_that_others_can_read_is_refused) {
  const Folder folder;
  const auto files = write_curve_keys(generate_curve_keys(), folder / "node");
  for (const mode_t mode : {0640U, 0604U, 0620U, 0601U, 0644U}) {
    chmod(files->secret_file.c_str(), mode);
    check_refused(read_secret_key(files->secret_file), ErrorCode::unauthorized, "chmod 600");
  }
  for (const mode_t mode : {0600U, 0400U}) {
    chmod(files->secret_file.c_str(), mode);
    BOOST_CHECK(read_secret_key(files->secret_file));
  }
}

BOOST_AUTO_TEST_CASE(certificates_of_others_are_read) {
  const Folder folder;
  const auto pyzmq = write(folder / "a",
                           "#   ****  Generated on 2026-11-25 by pyzmq  ****\n"
                           "#   ZeroMQ CURVE **Secret** Certificate\n\nmetadata\ncurve\n"
                           "    public-key = \"" +
                               some_key +
                               "\"\n"
                               "    secret-key = \"" +
                               its_secret + "\"\n");
  const auto read = read_secret_key(pyzmq);
  BOOST_REQUIRE_MESSAGE(read, read.error().message);
  BOOST_CHECK_EQUAL(read->public_key, some_key);
  BOOST_CHECK_EQUAL(read->secret_key, its_secret);
  const auto terse = write(folder / "b", "\tsecret-key='" + its_secret + "'");
  BOOST_CHECK_EQUAL(read_secret_key(terse).value().public_key, some_key);
}

BOOST_AUTO_TEST_CASE(what_is_no_key_file_is_refused) {
  const Folder folder;
  const auto line = [](const std::string& name, const std::string& key) {
    return name + " = \"" + key + "\"\n";
  };
  const auto other = generate_curve_keys();
  check_refused(read_secret_key(folder / "none"), ErrorCode::io, "none");
  check_refused(read_secret_key(folder.path.string()), ErrorCode::bad_file, "no file of keys");
  const std::vector<std::string> bad = {"",
                                        "secret-key",
                                        "secret-key =",
                                        "secret-key = \"",
                                        "secret-key = \"\"",
                                        line("secret-key", its_secret.substr(1)),
                                        line("secret-key", its_secret + "0"),
                                        line("secret-key", "~" + its_secret.substr(1)),
                                        line("public-key", some_key),
                                        std::string(200'000, 'x')};
  for (const auto& text : bad)
    check_refused(read_secret_key(write(folder / "bad", text)), ErrorCode::bad_file, "secret-key");
  check_refused(read_secret_key(write(folder / "mixed", line("public-key", other.public_key) +
                                                            line("secret-key", its_secret))),
                ErrorCode::bad_file, "belong together");
  check_refused(read_public_key(some_key.substr(1)), ErrorCode::io, "40 characters");
  check_refused(read_public_key(write(folder / "bad", line("public-key", "short"))),
                ErrorCode::bad_file, "public-key");
  BOOST_CHECK(!is_curve_key(some_key.substr(1)));
  BOOST_CHECK(!is_curve_key("~" + some_key.substr(1)));
  BOOST_CHECK(!is_curve_key(std::string(40, '#')));  // more than 32 bits in five characters
}

BOOST_AUTO_TEST_SUITE_END()
