# shellcheck shell=bash
# What the launch scripts share. With --dry-run nothing is done: each command is printed as it would be run.
# Arrays that may be empty are written ${name[@]+"${name[@]}"}, for the bash 3.2 of macOS.

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

quoted() { # quoted WORD...: one string that bash reads back as these words, also out of YAML in double quotes
  local word character out i separator=''
  for word in "$@"; do
    out=$word
    if [[ -z $word || $word == *[!A-Za-z0-9_@%+=:,./-]* ]]; then
      out=''
      for ((i = 0; i < ${#word}; i++)); do
        character=${word:i:1}
        case $character in
          [\'\"\\]) printf -v character "'$'\\\\x%02x''" "'$character" ;;
        esac
        out+=$character
      done
      out="'$out'"
    fi
    printf '%s%s' "$separator" "$out"
    separator=' '
  done
}

pids=() signalled=0
end_process() { # end_process PID: asks a process that runs beside the shell to end; a script may do it in its own way
  kill -s TERM "$1" 2>/dev/null || true
}

terminate() { # for `trap terminate TERM INT`: ends what runs beside the shell, which a shell starts deaf to SIGINT
  local pid
  signalled=1
  for pid in ${pids[@]+"${pids[@]}"}; do end_process "$pid"; done
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

goes_on() { # goes_on CODE: whether the same command goes on after it
  (($1 == LOST || $1 == PREEMPTED))
}

worst_of() { # worst_of CODE...: sets `worst` to the first that is a mistake or crash, else to the first that is not 0
  local code
  worst=0
  for code in "$@"; do
    if ((code != 0)) && { ((worst == 0)) || { goes_on "$worst" && ! goes_on "$code"; }; }; then worst=$code; fi
  done
}

until_done() { # until_done TIMES COMMAND...: runs it again, at most so often, where it lost a host or was ended, but not by us
  local left=$1 code=0 ended=0
  shift
  if ((dry_run)); then run "$@" && return; fi
  trap 'ended=1; terminate' TERM INT
  while true; do
    "$@" &
    pids=($!)
    if ((ended)); then terminate; fi # it came before the process was known
    await "${pids[0]}"
    if ((ended || left == 0)) || ! goes_on "$code"; then return "$code"; fi
    left=$((left - 1))
    printf 'ended with %s: again, from the last checkpoint\n' "$code" >&2
  done
}
