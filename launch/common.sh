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

until_done() { # until_done TIMES COMMAND...: runs it again, at most so often, where it ended by SIGTERM or a lost host
  local left=$1 code
  shift
  while :; do
    # The last attempt takes the place of the shell, so that a signal to the script is one to the command.
    if ((left == 0 && !dry_run)); then exec "$@"; fi
    code=0
    run "$@" || code=$?
    if ((code != LOST && code != PREEMPTED || left == 0)); then
      return "$code"
    fi
    left=$((left - 1))
    printf 'ended with %s: again, from the last checkpoint\n' "$code" >&2
  done
}
