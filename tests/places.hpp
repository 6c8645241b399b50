#pragma once
// Where a test program finds its files: in the tree, if it lies where it was built, or beside it in
// an unpacked archive (cmake/SluiceInstall.cmake), which may be all that a host has of the project.
// No path of the machine that compiled it counts.

#include <boost/test/unit_test.hpp>
#include <cstdlib>
#include <filesystem>
#include <string>

namespace sluice::tests {

/// `in_archive` or `in_tree`, both relative to the program's folder; fails where neither is there.
inline std::string find_folder(const char* in_archive, const char* in_tree) {
  namespace fs = std::filesystem;
  const fs::path program = fs::read_symlink("/proc/self/exe").parent_path();
  for (const char* place : {in_archive, in_tree}) {
    if (fs::is_directory(program / place)) return (program / place).lexically_normal().string();
  }
  BOOST_FAIL("neither " << in_archive << " nor " << in_tree << " is a folder, seen from " << program
                        << ": unpack the archive whole, or build the program anew");
  return {};
}

/// Pretended drivers, plugins and NCCLs (cmake/SluiceTestPlugins.cmake). Any thread.
inline std::string plugins_folder() { return find_folder("../tests/plugins", "plugins"); }

/// Of the fixtures; an archive has those of the programs in it. Any thread.
inline std::string fixtures_folder() {
  return find_folder("../tests/fixtures", SLUICE_TREE "/tests/fixtures");
}

}  // namespace sluice::tests
