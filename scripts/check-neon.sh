#!/usr/bin/env bash
# Compiles kernels/cpu for ARM's NEON, and the rest of kernels/, without optimization: nothing is
# run. Needs Debian's g++-aarch64-linux-gnu, and the headers of scripts/setup.sh.
set -euo pipefail
# shellcheck source=scripts/steps.sh
. "$(dirname "$0")/steps.sh"

compiler=aarch64-linux-gnu-g++
command -v $compiler >/dev/null || {
  printf '%s is missing: apt-get install g++-aarch64-linux-gnu\n' $compiler >&2
  exit 1
}
# Of /usr/include just what is the same on every processor.
folder=$root/build/neon
mkdir -p "$folder/include"
for headers in hwy fmt tl; do ln -sfn /usr/include/$headers "$folder/include/$headers"; done
# The options of CMakeLists.txt.
printf '%s\n' kernels/*.cpp kernels/cpu/*.cpp | xargs -P "$(nproc)" -I{} sh -c '
  '$compiler' -march=armv8-a+crypto -std=c++20 -O0 -ffp-contract=off -Wall -Wextra -Wshadow \
    -Wconversion -Wno-sign-conversion -Wnon-virtual-dtor -Werror -I. \
    -isystem "$1/include" -c {} -o "$1/$(basename {}).o"' sh "$folder"
