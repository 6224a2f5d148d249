#!/usr/bin/env bash
# Several processes on this machine make one run, as the hosts of a cluster do: for trying it out without one.
#
#   launch/local_multiprocess.sh N [--dry-run] [--devices=D] [--port=PORT] [--logs=DIR] -- FLAGS
#   launch/local_multiprocess.sh 2 --devices=4 -- --config=configs/crossan.py:smoke --workdir=runs/two
#
# N          processes
# --devices  fake CPU devices of each process (default: those it has)
# --port     of process 0; the port after it is used too (default: a free pair)
# --logs     takes what processes 1, 2, ... print (default: a folder in $TMPDIR); process 0 prints here
# FLAGS      of mmrec_jax.main
#
# SIGTERM reaches all processes, and Ctrl-C does so as SIGTERM. The exit code is 0 where all ended well, else that of the first process
# (by number) that did not end well, a mistake or crash before 69 (a lost process) and 75 (ended by SIGTERM).
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/common.sh
source "$here/common.sh"

count='' devices='' port='' logs=''
while (($#)); do
  case $1 in
    --help | -h) usage "$0" && exit 0 ;;
    --dry-run) dry_run=1 ;;
    --devices=*) devices=${1#*=} ;;
    --port=*) port=${1#*=} ;;
    --logs=*) logs=${1#*=} ;;
    --) shift && break ;;
    [0-9]*) count=$1 ;;
    *) fail "unknown option $1" ;;
  esac
  shift
done
[[ $count =~ ^[1-9][0-9]*$ ]] || fail "give the number of processes; --help shows an example"
[[ -z $devices || $devices =~ ^[1-9][0-9]*$ ]] || fail "--devices=$devices is no number"

free_pair() {
  python - <<'PYTHON'
import socket

while True:
    with socket.socket() as first, socket.socket() as second:
        first.bind(("", 0))
        port = first.getsockname()[1]
        try:
            second.bind(("", port + 1))
        except OSError:
            continue
        print(port)
        break
PYTHON
}

if ((dry_run)); then
  port=${port:-PORT}
else
  port=${port:-$(free_pair)}
  logs=${logs:-$(mktemp -d)}
  mkdir -p "$logs"
fi
if [[ -n $devices ]]; then
  export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$devices"
  if ((dry_run)); then printf 'export XLA_FLAGS=%q\n' "$XLA_FLAGS"; fi
fi

trap terminate TERM INT

for ((i = 0; i < count; i++)); do
  command=(python -m mmrec_jax.main "$@" "--coordinator=127.0.0.1:$port" "--processes=$count" "--process=$i")
  if ((dry_run)); then
    run "${command[@]}"
  elif ((i == 0)); then
    "${command[@]}" &
    pids+=($!)
  else
    "${command[@]}" >"$logs/process_$i.log" 2>&1 &
    pids+=($!)
  fi
done

if ((signalled)); then terminate; fi # it came before all of them were known

codes=()
for pid in ${pids[@]+"${pids[@]}"}; do
  await "$pid"
  codes+=("$code")
done
worst_of ${codes[@]+"${codes[@]}"}
if ((worst != 0 && count > 1)); then printf 'what processes 1 to %s printed is in %s\n' "$((count - 1))" "$logs" >&2; fi
exit "$worst"
