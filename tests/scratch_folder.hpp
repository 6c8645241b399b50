#pragma once
// Where a test may write.

#include <boost/test/unit_test.hpp>
#include <cstdlib>
#include <string>

namespace sluice::test {

/// A folder that goes away with the test.
class ScratchFolder {
 public:
  ScratchFolder() {
    char name[] = "/tmp/sluice-test.XXXXXX";
    BOOST_REQUIRE(mkdtemp(name) != nullptr);
    path_ = name;
  }
  ~ScratchFolder() {
    const std::string remove = "rm -rf '" + path_ + "'";
    if (std::system(remove.c_str()) != 0) BOOST_TEST_MESSAGE("left behind: " + path_);
  }
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;

  std::string file(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

}  // namespace sluice::test
