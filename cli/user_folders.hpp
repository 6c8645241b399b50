#pragma once
// Where a user's programs keep what they keep, as the XDG base directory specification has it.

#include <string>

namespace sluice::cli {

/// Where `name` is kept from run to run: $XDG_STATE_HOME/sluice or ~/.local/state/sluice, made if
/// it is not there. Empty when there is no home.
std::string state_file(const std::string& name);

/// What may be lost: $XDG_CACHE_HOME/sluice or ~/.cache/sluice, which need not be there. Empty when
/// there is no home.
std::string cache_folder();

}  // namespace sluice::cli
