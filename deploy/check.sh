#!/usr/bin/env bash
# Checks what is in deploy/ with its own validators, and says which of them are missing here.
#   deploy/check.sh
# systemd-analyze (Debian: systemd), shellcheck (Debian), kubernetes-validate 1.37.0 (PyPI, in
# .venv: scripts/setup.sh --tests). With build/release/sluice the configurations in the manifests
# are read, and the Slurm script runs on this machine, with stand-ins for srun and scontrol.
set -euo pipefail
# shellcheck source=scripts/steps.sh
. "$(dirname "$0")/../scripts/steps.sh"

sluice=$root/build/release/sluice
work=$(mktemp -d)
group=''
clean_up() {
  [[ -z $group ]] || kill -KILL -- "-$group" 2>/dev/null || true
  rm -rf "$work"
}
trap clean_up EXIT

missing() { printf 'not done    %s: %s is missing\n' "$1" "$2"; }

# The program's place is replaced by one that exists. Warnings leave systemd-analyze's exit code 0.
check_units() {
  local unit said
  for unit in deploy/systemd/*.service; do
    sed "s#/opt/sluice/bin/sluice#$(type -P true)#; s#^WorkingDirectory=.*#WorkingDirectory=/#" \
      "$unit" >"$work/$(basename "$unit")"
    said=$(systemd-analyze verify "$work/$(basename "$unit")" 2>&1)
    [[ -z $said ]] || { echo "$said"; return 1; }
  done
}

# manifest_parts FILE: the TOML files of its ConfigMaps, into the work folder.
manifest_parts() {
  .venv/bin/python - "$1" "$work" <<'END'
import pathlib
import sys
import yaml
for each in yaml.safe_load_all(open(sys.argv[1])):
    if each["kind"] == "ConfigMap":
        for name, text in each["data"].items():
            pathlib.Path(sys.argv[2], name).write_text(text)
END
}

# Bash ignores -e within a function whose exit code is asked for: so each command says what then.
check_manifests() {
  local file
  for file in deploy/kubernetes/*.yaml; do
    .venv/bin/kubernetes-validate --strict "$file" || return 1
    manifest_parts "$file" || return 1
  done
  [[ -x $sluice ]] || return 0
  for file in "$work"/*.toml; do
    "$sluice" node --print-config --config "$file" >/dev/null || return 1
  done
}

# The job as Slurm would run it, both hosts this one: keys, the group, a completion, SIGTERM.
run_slurm_script() {
  local status=0 port=$((20000 + RANDOM % 10000)) keys=$work/keys said=$work/job.log text
  local began=$SECONDS
  : >"$said"
  SLUICE=$sluice deploy/keys.sh "$keys" host-0 host-1 || return 1
  mkdir "$work/bin"
  cat >"$work/bin/scontrol" <<'END'
#!/usr/bin/env bash
printf '%s\n' 127.0.0.1 127.0.0.1
END
  cat >"$work/bin/srun" <<'END'
#!/usr/bin/env bash
while [[ $1 == -* ]]; do shift; done
trap : TERM
SLURM_PROCID=0 "$@" & first=$!
SLURM_PROCID=1 "$@" & second=$!
for task in "$first" "$second"; do
  while kill -0 "$task" 2>/dev/null; do wait "$task"; done
  wait "$task" || exit
done
END
  chmod +x "$work"/bin/*
  PATH=$work/bin:$PATH SLURM_JOB_NUM_NODES=2 SLURM_JOB_NODELIST='host-[0-1]' SLUICE=$sluice \
    SLUICE_KEYS=$keys SLUICE_MODEL=$(scripts/fetch-model.sh --path) SLUICE_TP=3 \
    SLUICE_INTERFACE=lo SLUICE_PORT=$port setsid deploy/slurm/two-hosts.sbatch >"$said" 2>&1 &
  group=$!
  until grep -q '^ready tcp' "$said"; do
    if ! kill -0 "$group" 2>/dev/null || ((SECONDS - began > 120)) ||
       grep -q 'the node ended' "$said"; then
      cat "$said"
      return 1
    fi
    sleep 0.1
  done
  text=$("$sluice" complete --connect "tcp://127.0.0.1:$port" --server-key "$keys/service.key" \
    --key "$keys/operator.key_secret" --prompt 'The capital of France is' --max-tokens 8 \
    --temperature 0)
  kill -TERM -- "-$group"
  wait "$group" || status=$?
  group=''
  cat "$said"
  echo "answer: $text; exit $status"
  [[ $text == *Paris* ]] && ((status == 0))
}

if command -v systemd-analyze >/dev/null; then
  step "deploy: systemd units" "systemd-analyze verify names the line" check_units
else
  missing "deploy: systemd units" "systemd-analyze (Debian: systemd)"
fi
if command -v shellcheck >/dev/null; then
  step "deploy: scripts" "shellcheck names the line" shellcheck -x deploy/*.sh deploy/slurm/*
else
  missing "deploy: scripts" "shellcheck"
fi
if [[ -x .venv/bin/kubernetes-validate ]]; then
  step "deploy: Kubernetes manifests" "kubernetes-validate names the field" check_manifests
else
  missing "deploy: Kubernetes manifests" "kubernetes-validate (scripts/setup.sh --tests)"
fi
if [[ -x $sluice ]]; then
  step "deploy: Slurm script runs" "its output is above" run_slurm_script
else
  missing "deploy: Slurm script runs" "build/release/sluice"
fi
