#!/usr/bin/env bash
# Installs what is missing, and calls apt or pip only when something is: offline afterwards.
#   scripts/setup.sh           what a build needs
#   scripts/setup.sh --tests   also what scripts/test.sh needs: clang for fuzzing, a Python client
set -euo pipefail
cd "$(dirname "$0")/.."

# package              reason
build_packages='
  g++                  compiler
  cmake                build
  ninja-build          build
  ccache               rebuilds
  pkg-config           libraries
  git                  version
  ca-certificates      downloads
  python3              scripts
  python3-pip          model
  python3-venv         clients
  libfmt-dev           text
  libexpected-dev      results
  libhwy-dev           vectors
  libpcre2-dev         tokenizer
  libutf8proc-dev      normalization
  libsodium-dev        hashes, seals
  libxxhash-dev        checks of packed weights
  libzmq3-dev          sockets
  cppzmq-dev           sockets
  libmsgpack-cxx-dev   wire
  libcaf-dev           actors
  libspdlog-dev        log
  libcli11-dev         options
  libtomlplusplus-dev  configuration
  nlohmann-json3-dev   JSON
  libedit-dev          editing
  libboost-dev         msgpack
  libboost-test-dev    tests
'
test_packages='
  shellcheck           deploy
  clang                fuzzers
  libclang-rt-dev      fuzzers
  iproute2             hosts
'
# Where it is not the native one; without it scripts/test.sh says that NEON was not compiled.
[[ $(dpkg --print-architecture) == arm64 ]] || test_packages+='
  g++-aarch64-linux-gnu NEON
'
# The Python client is checked against the first two; the example needs nothing else. The third
# checks deploy/kubernetes.
python_packages=(pyzmq==27.3.0 msgpack==1.2.4 kubernetes-validate==1.37.0)

with_tests=no
case ${1:-} in
  '') ;;
  --tests) with_tests=yes ;;
  *) sed -n '2,4s/^# \{0,1\}//p' "$0"; [[ $1 == --help ]] && exit 0 || exit 2 ;;
esac

missing_packages() {
  local name
  for name in "$@"; do
    [[ $(dpkg-query -W -f='${db:Status-Status}' "$name" 2>/dev/null) == installed ]] || echo "$name"
  done
}

table=$build_packages
[[ $with_tests == yes ]] && table+=$test_packages
mapfile -t wanted < <(awk 'NF {print $1}' <<<"$table")
mapfile -t missing < <(missing_packages "${wanted[@]}")
if ((${#missing[@]})); then
  echo "setup: installing with apt: ${missing[*]}"
  as_root=()
  if ((EUID != 0)); then
    as_root=(sudo)
    command -v sudo >/dev/null || {
      echo "setup: packages are missing, this is not root, and there is no sudo." >&2
      echo "remedy: as root: apt-get install --no-install-recommends ${missing[*]}" >&2
      exit 1
    }
  fi
  if ! { "${as_root[@]}" apt-get update -q &&
         "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
           apt-get install -qy --no-install-recommends "${missing[@]}"; }; then
    echo "setup: apt could not install the packages above." >&2
    echo "remedy: read apt's message; the network and Debian 12's main archive are needed" >&2
    exit 1
  fi
fi

python_has_packages() {
  [[ -x .venv/bin/python ]] && .venv/bin/python - "$@" <<'PY' 2>/dev/null
import sys
from importlib.metadata import version
sys.exit(any(version(n) != v for n, v in (p.split("==") for p in sys.argv[1:])))
PY
}
# Debian's own Python, whatever else comes first on the PATH: python3-venv belongs to it.
if [[ $with_tests == yes ]] && ! python_has_packages "${python_packages[@]}"; then
  echo "setup: making .venv with ${python_packages[*]}"
  if ! { /usr/bin/python3 -m venv --clear .venv &&
         .venv/bin/python -m pip install --quiet --disable-pip-version-check \
           "${python_packages[@]}"; }; then
    echo "setup: could not make the Python environment .venv." >&2
    echo "remedy: check that PyPI, or the mirror that pip is configured for, can be reached" >&2
    exit 1
  fi
fi
echo "setup: everything is installed"
