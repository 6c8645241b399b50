#!/usr/bin/env bash
# Packs build/sluice-VERSION-linux-x86_64.tar.gz: programs, the shared libraries that they need
# beyond glibc's, the CUDA plugin where it was built, configs and licences. It runs from any folder
# of a host with glibc 2.36 or newer and nothing installed; a GPU needs its driver.
#   scripts/bundle.sh           packs the release preset
#   scripts/bundle.sh --bare    packs the bare preset: benches, test_kernels, test_model, fixtures
#   scripts/bundle.sh --check   packs, then runs it in a root folder that holds glibc alone
#   scripts/bundle.sh --with-nccl=LIBRARY,LICENCE   with NCCL, for groups of GPUs on hosts without:
#                               its libnccl.so.2 and the text of its licence
set -euo pipefail
cd "$(dirname "$0")/.."

preset=release name=sluice check=no nccl=
for argument in "$@"; do
  case $argument in
    --bare) preset=bare name=sluice-bare ;;
    --check) check=yes ;;
    --with-nccl=?*) nccl=${argument#*=} ;;
    *) sed -n '2,9s/^# \{0,1\}//p' "$0"; [[ $argument == --help ]] && exit 0 || exit 2 ;;
  esac
done

# fail WHAT REMEDY
fail() {
  echo "bundle: $1" >&2
  echo "remedy: $2" >&2
  exit 1
}

archive_bytes_max=$((60 * 1000 * 1000))
glibc_max=2.36
# Comes with every host, and must match its kernel and its name services.
glibc='^(ld-linux.*|lib(c|m|mvec|dl|rt|pthread|resolv|util|anl|nss_.*))\.so'

build=build/$preset
[[ -f $build/CMakeCache.txt ]] || cmake --preset "$preset"
cmake --build "$build"
version=$(sed -n 's/^CMAKE_PROJECT_VERSION:STATIC=//p' "$build/CMakeCache.txt")
folder=$name-$version
archive=build/$folder-linux-x86_64.tar.gz
work=$(mktemp -d "${TMPDIR:-/tmp}/sluice-bundle.XXXXXX")
trap 'rm -rf "$work"' EXIT
stage=$work/$folder
cmake --install "$build" --prefix "$stage" --strip >/dev/null

# The libraries, and the licence of each; those of libraries that are headers alone follow.
compiled=("$stage/bin" "$stage/lib" "$stage/tests/plugins")
mapfile -t binaries < <(find "${compiled[@]}" -type f -print 2>/dev/null)
licences=$stage/licences
mkdir -p "$stage/lib" "$licences"
# licence PACKAGE
licence() {
  cp -L "/usr/share/doc/$1/copyright" "$licences/$1" ||
    fail "the licence of $1 is not in /usr/share/doc/$1" "reinstall the package $1"
}
needed=$(for binary in "${binaries[@]}"; do ldd "$binary"; done)
[[ $needed != *'not found'* ]] || fail "a library is missing: ${needed}" "scripts/setup.sh"
while read -r library; do
  [[ $(basename "$library") =~ $glibc ]] && continue
  cp -L "$library" "$stage/lib/"
  real=$(readlink -f "$library")
  # A library may be registered by its path before /lib and /usr/lib became one folder.
  owner=$(dpkg -S "$real" 2>/dev/null || dpkg -S "${real#/usr}" 2>/dev/null) ||
    fail "no package owns $library, so its licence is not known" \
      "build with the distribution's libraries (scripts/setup.sh)"
  licence "${owner%%:*}"
done < <(awk '$2 == "=>" {print $3}' <<<"$needed" | sort -u)
headers=(libexpected-dev libxxhash-dev nlohmann-json3-dev)
[[ $preset == bare ]] ||
  headers+=(cppzmq-dev libmsgpack-cxx-dev libcli11-dev libboost1.74-dev)
for package in "${headers[@]}"; do
  licence "$package"
done
if [[ -f $stage/lib/sluice/libsluice_cuda.so ]]; then
  echo "libsluice_cuda.so contains the CUDA runtime (cudart), copyright NVIDIA Corporation," \
    "distributed under the CUDA Toolkit EULA: https://docs.nvidia.com/cuda/eula" \
    >"$licences/cuda-runtime"
fi

if [[ -n $nccl ]]; then
  [[ -f $stage/lib/sluice/libsluice_cuda.so ]] ||
    fail "this build has no CUDA plugin, which alone uses NCCL" "build where the CUDA toolkit is"
  [[ $(objdump -T "${nccl%,*}" 2>/dev/null) == *ncclCommInitRankConfig* ]] ||
    fail "${nccl%,*} is no NCCL of version 2.14 or later" "name the file libnccl.so.2"
  grep -qi 'redistribution' "${nccl##*,}" ||
    fail "${nccl##*,} is no licence" "name the text that came with NCCL, after a comma"
  cp -L "${nccl%,*}" "$stage/lib/sluice/libnccl.so.2"
  cp -L "${nccl##*,}" "$licences/nccl"
  archive_bytes_max=$((400 * 1000 * 1000))
fi

mapfile -t binaries < <(find "${compiled[@]}" -type f -print 2>/dev/null)
glibc_needed=$(objdump -T "${binaries[@]}" | grep -oP '(?<=GLIBC_)2\.[0-9]+' | sort -Vu | tail -n 1)
[[ $(printf '%s\n' "$glibc_needed" $glibc_max | sort -V | tail -n 1) == "$glibc_max" ]] ||
  fail "this build needs glibc $glibc_needed, newer than $glibc_max" "pack on Debian 12"

# The same build gives the same bytes.
tar --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$(git log -1 --format=%ct)" \
  -C "$work" -cf - "$folder" | gzip -9n >"$archive"
bytes=$(stat -c %s "$archive")
((bytes <= archive_bytes_max)) ||
  fail "$archive has $bytes bytes, more than $archive_bytes_max" "see what is in it: tar tvf"
echo "$archive: $((bytes / 1000)) kB, $(find "$stage/lib" -name '*.so*' | wc -l) libraries," \
  "glibc >= $glibc_needed"
[[ $check == yes ]] || exit 0

# A host with nothing but glibc: its loader and libraries, no /usr, /etc, /proc or /dev.
root=$work/root
mkdir -p "$root/lib64" "$root/lib/x86_64-linux-gnu" "$root/any where"
cp -L /lib64/ld-linux-x86-64.so.2 "$root/lib64/"
for library in c m mvec dl rt pthread resolv; do
  cp -L /lib/x86_64-linux-gnu/lib$library.so.? "$root/lib/x86_64-linux-gnu/"
done
tar -xzf "$archive" -C "$root/any where"
inside="/any where/$folder"
# The loader asks /proc where a program lies; where there is none, this says so.
alone=(env -i PATH=/usr/sbin:/usr/bin LD_ORIGIN_PATH="$inside/bin")
((EUID == 0)) || alone+=(unshare --map-root-user)
alone+=(chroot "$root")
# shows NEEDLE COMMAND...: runs it alone, and wants NEEDLE in its output.
shows() {
  local needle=$1 output
  shift
  output=$("${alone[@]}" "$@" 2>&1) || fail "alone, '$*' failed: $output" "see what ldd says of it"
  [[ $output == *"$needle"* ]] ||
    fail "alone, '$*' said '$output' and not '$needle'" "run it in $build for comparison"
}
shows 'cpu   usable' "$inside/bin/sluice-bench" --backends
if [[ -f $stage/lib/sluice/libsluice_cuda.so ]]; then
  shows "$inside/lib" /lib64/ld-linux-x86-64.so.2 --list "$inside/lib/sluice/libsluice_cuda.so"
fi
if [[ $preset == release ]]; then
  model=$(scripts/fetch-model.sh --path)
  ln "$model" "$root/model.gguf" 2>/dev/null || cp "$model" "$root/model.gguf"
  shows "sluice $version (commit " "$inside/bin/sluice" --version
  shows ' Paris' "$inside/bin/sluice" complete --model /model.gguf --max-tokens 4 --temperature 0 \
    --prompt 'The capital of France is'
fi
echo "runs in a root folder that holds glibc alone"
