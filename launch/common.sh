# shellcheck shell=bash
# What the launch scripts share. With --dry-run nothing is done: each command is printed as it would be run.

dry_run=0
LOST=69 PREEMPTED=75 # exit codes of mmrec_jax.main after which the same command goes on

fail() { # fail MESSAGE: ends with a mistake of the caller's
  printf '%s: %s\n' "$(basename "$0")" "$1" >&2
  exit 2
}

usage() { # usage FILE: the comment at the head of a script
  awk 'NR > 1 && /^#SBATCH/ { next } NR > 1 && !/^#/ { exit } NR > 1 { sub(/^# ?/, ""); print }' "$1"
}

need() { # need OPTION VALUE: an option that has no default
  [[ -n $2 ]] || fail "$1 is missing; --help shows an example"
}

run() { # run COMMAND...: runs it, or prints it
  if ((dry_run)); then
    printf '%q ' "$@"
    printf '\n'
  else
    "$@"
  fi
}

quoted() { # quoted WORD...: one string that a shell reads back as these words
  local words
  printf -v words '%q ' "$@"
  printf '%s' "${words% }"
}

pids=() signalled=0
terminate() { # for `trap terminate TERM INT`: ends what runs beside the shell, which a shell starts deaf to SIGINT
  local pid
  signalled=1
  for pid in "${pids[@]}"; do kill -s TERM "$pid" 2>/dev/null || true; done
}

await() { # await PID: sets `code` to the exit code of a process that runs beside the shell
  local again
  code=0
  wait "$1" || code=$?
  # A signal ends `wait` early with a code of its own; the process's comes from the next one, or was the one we have (127).
  while ((signalled)); do
    signalled=0 again=0
    wait "$1" 2>/dev/null || again=$?
    if ((again != 127)); then code=$again; fi
  done
}

until_done() { # until_done TIMES COMMAND...: runs it again, at most so often, where it lost a host or was ended, but not by us
  local left=$1 code=0 ended=0
  shift
  if ((dry_run)); then run "$@" && return; fi
  trap 'ended=1; terminate' TERM INT
  while ((left > 0)); do
    "$@" &
    pids=($!)
    if ((ended)); then terminate; fi # it came before the process was known
    await "${pids[0]}"
    if ((ended || code != LOST && code != PREEMPTED)); then return "$code"; fi
    left=$((left - 1))
    printf 'ended with %s: again, from the last checkpoint\n' "$code" >&2
  done
  # The last attempt takes the place of the shell, so that a signal to the script is one to the command.
  exec "$@"
}
