#pragma once
// Where a test program finds its files: in the tree, if it lies where it was built, or beside it in
// an unpacked archive (cmake/SluiceInstall.cmake), which may be all that a host has of the project.
// No path of the machine that compiled it counts.

#include <boost/test/unit_test.hpp>
#include <cstdlib>
#include <filesystem>
#include <string>

namespace sluice::tests {

inline std::filesystem::path program_folder() {
  return std::filesystem::read_symlink("/proc/self/exe").parent_path();
}

/// `in_archive` or `in_tree`, both relative to the program's folder; fails where neither is there.
inline std::string find_folder(const char* in_archive, const char* in_tree) {
  const std::filesystem::path program = program_folder();
  for (const char* place : {in_archive, in_tree}) {
    const std::filesystem::path found = (program / place).lexically_normal();
    if (std::filesystem::is_directory(found)) return found.string();
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

/// A file of the models' folder, which SLUICE_TEST_MODELS names on a host without the tree; it may
/// be missing. Any thread.
inline std::string model_file(const std::string& name) {
  if (const char* folder = std::getenv("SLUICE_TEST_MODELS")) return folder + ("/" + name);
  return (program_folder() / SLUICE_TREE / "models" / name).lexically_normal();
}

}  // namespace sluice::tests
