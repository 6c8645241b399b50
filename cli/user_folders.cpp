#include "cli/user_folders.hpp"

#include <cstdlib>
#include <filesystem>

namespace sluice::cli {
namespace {

namespace fs = std::filesystem;

/// What the variable says, or else a folder below the user's home; empty: there is neither.
fs::path user_folder(const char* variable, const char* below_home) {
  if (const char* named = std::getenv(variable); named != nullptr && *named == '/') {
    return fs::path(named) / "sluice";
  }
  if (const char* home = std::getenv("HOME"); home != nullptr && *home == '/') {
    return fs::path(home) / below_home / "sluice";
  }
  return {};
}

}  // namespace

std::string state_file(const std::string& name) {
  const fs::path folder = user_folder("XDG_STATE_HOME", ".local/state");
  if (folder.empty()) return {};
  std::error_code failed;
  fs::create_directories(folder, failed);
  return failed ? std::string{} : (folder / name).string();
}

std::string cache_folder() { return user_folder("XDG_CACHE_HOME", ".cache").string(); }

}  // namespace sluice::cli
