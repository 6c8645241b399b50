#!/usr/bin/env bash
# Makes what the nodes of a fleet know each other by, and what clients know them by:
#   deploy/keys.sh FOLDER NODE...      # NODE: a peers.name
#     NODE.key_secret     security.node_keys of that node, and of no other
#     nodes.toml          security.nodes of every node
#     service.key_secret  security.keys of every front; service.key is for clients (--server-key)
#     operator.key_secret, probe.key_secret  two clients' own (--key)
#     clients.toml        security.clients of every front: those two, until you write more
# Run again with more names it adds them: keys that are there stay, and clients.toml does.
# SLUICE is the program (default: sluice).
set -euo pipefail
sluice=${SLUICE:-sluice}

if (($# < 2)) || [[ $1 == -* ]]; then
  sed -n '2,10s/^# \{0,1\}//p' "$0"
  [[ ${1:-} == --help ]] && exit 0 || exit 2
fi
folder=$1
shift
umask 077
mkdir -p "$folder"

for name in service operator probe "$@"; do
  if [[ ! $name =~ ^[A-Za-z0-9._-]+$ ]]; then
    echo "keys: '$name' cannot be a file's name: use letters, digits, dots and dashes" >&2
    exit 2
  fi
  [[ -e $folder/$name.key_secret ]] || "$sluice" keygen --out "$folder/$name" >/dev/null
done

# entry TABLE NAME
entry() {
  local key
  key=$(sed -n 's/^ *public-key = "\(.*\)"$/\1/p' "$folder/$2.key")
  [[ ${#key} == 40 ]] || { echo "keys: $folder/$2.key has no public key" >&2; exit 1; }
  printf "[[%s]]\nname = '%s'\npublic_key = '%s'\n\n" "$1" "$2" "$key"
}
for name in "$@"; do entry node "$name"; done >"$folder/nodes.toml"
if [[ ! -e $folder/clients.toml ]]; then
  for name in operator probe; do entry client "$name"; done >"$folder/clients.toml"
fi
echo "keys: $folder has the keys of $*, and service.key for clients"
