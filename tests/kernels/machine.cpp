// Shows that limits of control groups of both versions are found, the narrowest of a group and
// those around it, in trees of files like the kernel's; and that what is no limit, or is not there,
// is none.

#include "kernels/cpu/machine.hpp"

#include <unistd.h>

#include <boost/test/unit_test.hpp>
#include <filesystem>
#include <fstream>
#include <string>

namespace sluice::kernels::test {
namespace {

namespace fs = std::filesystem;

/// A temporary folder of files, for as long as this lives.
class Tree {
 public:
  Tree() {
    std::string made = (fs::temp_directory_path() / "sluice-cgroup-XXXXXX").string();
    BOOST_REQUIRE(::mkdtemp(made.data()) != nullptr);
    root_ = made;
  }
  ~Tree() { fs::remove_all(root_); }
  Tree(const Tree&) = delete;
  Tree& operator=(const Tree&) = delete;

  void file(const std::string& path, const std::string& text) const {
    fs::create_directories((root_ / path).parent_path());
    std::ofstream(root_ / path) << text;
  }
  cpu::CgroupRoom room() const {
    return cpu::cgroup_room((root_ / "mount").string(), (root_ / "membership").string());
  }

 private:
  fs::path root_;
};

}  // namespace

BOOST_AUTO_TEST_SUITE(machine)

BOOST_AUTO_TEST_CASE(version_2) {
  const Tree tree;
  tree.file("membership", "0::/pods/one\n");
  tree.file("mount/pods/one/memory.max", "max\n");
  tree.file("mount/pods/one/cpu.max", "150000 100000\n");
  tree.file("mount/pods/memory.max", "1000000\n");
  tree.file("mount/pods/memory.current", "700000\n");
  tree.file("mount/pods/memory.stat", "anon 5\nactive_file 200000\ninactive_file 100000\n");
  tree.file("mount/pods/cpu.max", "400000 100000\n");
  BOOST_REQUIRE(tree.room().memory_bytes.has_value());
  BOOST_TEST(*tree.room().memory_bytes == 600000U);
  BOOST_TEST(tree.room().cores.value_or(0) == 1.5);
  tree.file("mount/pods/one/memory.max", "300000\n");  // nothing used
  BOOST_TEST(tree.room().memory_bytes.value_or(0) == 300000U);
  tree.file("mount/pods/one/memory.current", "400000\n");  // a limit that was lowered
  BOOST_TEST(tree.room().memory_bytes.value_or(1) == 0U);
}

// A container that is not shown its place in the tree: its own group is the mount.
BOOST_AUTO_TEST_CASE(version_1) {
  const Tree tree;
  tree.file("membership",
            "4:memory:/docker/77\n1:cpu,cpuacct:/docker/77\n3:cpuset:/docker/77\n"
            "2:name=systemd:/\n0::/\n");
  tree.file("mount/memory/memory.limit_in_bytes", "2000000\n");
  tree.file("mount/memory/memory.usage_in_bytes", "900000\n");
  tree.file("mount/memory/memory.stat", "total_inactive_file 300000\ntotal_active_file 0\n");
  tree.file("mount/cpu/cpu.cfs_quota_us", "200000\n");
  tree.file("mount/cpu/cpu.cfs_period_us", "50000\n");
  BOOST_TEST(tree.room().memory_bytes.value_or(0) == 1400000U);
  BOOST_TEST(tree.room().cores.value_or(0) == 4);
  tree.file("mount/memory/docker/77/memory.limit_in_bytes", "9223372036854771712\n");
  BOOST_TEST(tree.room().memory_bytes.value_or(0) == 1400000U);
}

BOOST_AUTO_TEST_CASE(no_limit) {
  const Tree tree;
  BOOST_TEST(!tree.room().memory_bytes.has_value());  // no such system
  tree.file("membership", "0::/\n4:memory:/\n1:cpu:/\nnonsense\n");
  BOOST_TEST(!tree.room().cores.has_value());
  tree.file("mount/memory.max", "max\n");
  tree.file("mount/cpu.max", "max 100000\n");
  tree.file("mount/memory/memory.limit_in_bytes", "9223372036854771712\n");
  tree.file("mount/cpu/cpu.cfs_quota_us", "-1\n");
  tree.file("mount/cpu/cpu.cfs_period_us", "100000\n");
  BOOST_TEST(!tree.room().memory_bytes.has_value());
  BOOST_TEST(!tree.room().cores.has_value());
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace sluice::kernels::test
