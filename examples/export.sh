#!/usr/bin/env bash
# Exports VMs through a daemon: submits a job for each, then asks for them until
# all have ended.
#
#   examples/export.sh FOLDER VM...
#
# FOLDER is on the daemon's machine; each VM gets a folder in it. The daemon is
# that of H2KVMD_URL, the command that of H2KVMCTL_PATH. Exit codes are those of
# docs/scripting.md: 0 all are there, 1 no job at all, 2 usage, 3 daemon away,
# 4 a job failed, 5 one was cancelled, 6 not authorised.
set -euo pipefail

if (($# < 2)); then
  echo "usage: $0 FOLDER VM..." >&2
  exit 2
fi
folder=$1
shift
ctl=${H2KVMCTL_PATH:-h2kvmctl}
patience=${PATIENCE:-120} # seconds that the daemon may be away

# The jobs go on without this script; on Ctrl-C they are to stop with it.
ids=()
declare -A taken=()
# shellcheck disable=SC2317 # the trap calls it
stop() {
  trap - INT TERM
  if ((${#ids[@]})); then "$ctl" cancel -id "$(IFS=,; echo "${ids[*]}")" || true; fi
  exit 130
}
trap stop INT TERM

for vm in "$@"; do
  # A command that fails ends the script with its exit code, after its own
  # words about why. Two VMs of one name get folders by their paths.
  target=$folder/$(basename "$vm")
  if [[ -n ${taken[$target]:-} ]]; then target=$folder/$(tr / _ <<<"${vm#/}"); fi
  taken[$target]=1
  code=0
  answer=$("$ctl" submit -vm "$vm" -output "$target" -parallel 4 -remove-cdrom) || code=$?
  if ((code)); then
    if ((${#ids[@]})); then echo "these jobs go on: ${ids[*]}" >&2; fi
    exit "$code"
  fi
  id=$(sed -n 's/.*Job ID: //p' <<<"$answer")
  ids+=("$id")
  echo "$vm is job $id"
done

# ended ID: 0 when the job has completed, 4 failed, 5 cancelled, 1 when it goes
# on, else the code that h2kvmctl gave.
ended() {
  local answer code=0
  answer=$("$ctl" query -id "$1") || code=$?
  if ((code)); then return $((code == 1 ? 10 : code)); fi
  # Each of these words is there only if it is the job's status.
  case ${answer,,} in
    *completed*) return 0 ;;
    *failed*) sed -n 's/^Error: /  /p' <<<"$answer" >&2; return 4 ;;
    *cancelled*) return 5 ;;
    *) return 1 ;;
  esac
}

result=0
for id in "${ids[@]}"; do
  since=$SECONDS
  while true; do
    code=0
    ended "$id" || code=$?
    case $code in
      0) echo "job $id completed"; break ;;
      1) since=$SECONDS ;;
      3) # The daemon may just be restarting.
        if ((SECONDS - since > patience)); then exit 3; fi ;;
      4) echo "job $id failed" >&2; result=4; break ;;
      5) echo "job $id was cancelled" >&2; result=$((result ? result : 5)); break ;;
      10) exit 1 ;; # there is no such job
      *) exit "$code" ;;
    esac
    sleep "${EVERY:-5}"
  done
done
exit "$result"
