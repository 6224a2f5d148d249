#!/usr/bin/env bash
# One host of a slice of TPU VMs. launch/tpu_pod.sh calls it there, by ssh; nobody else has to.
#
#   launch/tpu_host.sh start RUN PROGRAM...
#   launch/tpu_host.sh follow
#   launch/tpu_host.sh stop
#
# start    the program of a run, which a connection that breaks does not end, and follows it. A call that is repeated
#          with the same RUN starts nothing
# follow   prints what the last run prints, from the beginning, and ends with its exit code
# stop     sends SIGTERM to the last run
#
# A run's output, process id and exit code are kept in $HOME/mmrec_jax_runs/RUN.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/common.sh
source "$here/common.sh"

runs=$HOME/mmrec_jax_runs
last=$runs/last

alive() { # whether the last run is still going on
  [[ -s $last/pid && ! -e $last/code ]] && kill -0 "$(cat "$last/pid")" 2>/dev/null
}

# Of a session of its own, with the run's folder first: the program's process id and exit code go there.
# shellcheck disable=SC2016 # that shell expands it
KEPT='"${@:2}" & echo $! >"$1/pid"; code=0; wait $! || code=$?; echo "$code" >"$1/ended"; mv "$1/ended" "$1/code"'

start() { # start RUN PROGRAM...
  local folder=$runs/$1
  if [[ -d $folder ]]; then return; fi
  if alive; then fail "a run is going on here: follow it, or stop it"; fi
  mkdir -p "$folder"
  ln -sfn "$folder" "$last"
  setsid bash -c "$KEPT" run "$folder" "${@:2}" >"$folder/log" 2>&1 </dev/null &
  until [[ -s $folder/pid ]]; do sleep 0.05; done
}

follow() { # ends as the last run ends; where nothing tells how, the host was started anew meanwhile
  local waited
  [[ -s $last/pid ]] || fail "nothing was run here"
  tail -n +1 -s 0.5 -f --pid="$(cat "$last/pid")" "$last/log" || true
  for ((waited = 0; waited < 50; waited++)); do
    if [[ -e $last/code ]]; then exit "$(cat "$last/code")"; fi
    sleep 0.1
  done
  exit "$LOST"
}

case ${1:-} in
  --help | -h) usage "$0" ;;
  start)
    start "${@:2}"
    follow
    ;;
  follow) follow ;;
  stop) if alive; then kill -s TERM "$(cat "$last/pid")"; fi ;;
  *) fail "say start, follow or stop" ;;
esac
