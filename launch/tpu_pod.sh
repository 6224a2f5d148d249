#!/usr/bin/env bash
# A slice of TPU VMs by gcloud: made, set up, run on all hosts at once, and given back.
#
#   launch/tpu_pod.sh ACTION --name=NAME --zone=ZONE [--dry-run] [OPTIONS] [-- FLAGS]
#   launch/tpu_pod.sh create  --name=rec --zone=us-west4-a --type=v5litepod-16 --spot
#   launch/tpu_pod.sh install --name=rec --zone=us-west4-a
#   launch/tpu_pod.sh run     --name=rec --zone=us-west4-a -- --config=configs/crossan.py --workdir=/mnt/runs/a
#   launch/tpu_pod.sh stop    --name=rec --zone=us-west4-a
#   launch/tpu_pod.sh delete  --name=rec --zone=us-west4-a
#
# create   the slice: --type (accelerator type), --version (software of the VMs; default: the one for the type), --spot
#          (cheaper, may be taken away)
# install  copies this checkout to every host, what is not committed included, and installs it there with JAX for TPUs,
#          and with a Python that JAX runs on: that of the VMs is older. Again after every change
# run      starts FLAGS of mmrec_jax.main on every host and prints what they print; they find each other by the TPU
#          metadata. --restarts=N starts again after SIGTERM or a lost host. Ctrl-C and SIGTERM to it are a `stop`. A
#          broken connection ends nothing on the hosts
# follow   prints what the hosts' last run prints, from the beginning, and ends as it does
# stop     sends SIGTERM to the run on all hosts: it saves at the next step and ends with 75
# delete   the slice
# --project  of Google Cloud (default: that of gcloud's configuration)
#
# The workdir and the data must lie on a disk that is mounted on every host (NFS, Filestore); hidden states may lie in a
# bucket: --config.store=gs://bucket/states. A spot slice that was taken away is gone: delete it, create it, install, and
# run the same FLAGS.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/common.sh
source "$here/common.sh"

action='' name='' zone='' project='' type='' version='' spot=0 restarts=0
while (($#)); do
  case $1 in
    --help | -h) usage "$0" && exit 0 ;;
    --dry-run) dry_run=1 ;;
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --version=*) version=${1#*=} ;;
    --restarts=*) restarts=${1#*=} ;;
    --spot) spot=1 ;;
    --) shift && break ;;
    create | install | run | follow | stop | delete) action=$1 ;;
    *) fail "unknown option $1" ;;
  esac
  shift
done
[[ -n $action ]] || fail "say create, install, run, follow, stop or delete; --help shows examples"
need --name "$name"
need --zone "$zone"
where=("--zone=$zone")
if [[ -n $project ]]; then where+=("--project=$project"); fi
tpu=(gcloud compute tpus tpu-vm)

on_all_hosts=("${tpu[@]}" ssh "$name" "${where[@]}" --worker=all) # one shell command, at the same time
host='bash mmrec_jax/launch/tpu_host.sh'

pack() { # pack ARCHIVE: the checkout as it lies here, but for what git ignores
  git ls-files -z --cached --others --exclude-standard | while IFS= read -r -d '' file; do
    if [[ -e $file ]]; then printf '%s\0' "$file"; fi
  done | tar -czf "$1" --null -T -
}

install() {
  local archive=/tmp/mmrec_jax.tar.gz setup
  cd "$here/.."
  run pack "$archive"
  run "${tpu[@]}" scp "$archive" "$name:mmrec_jax.tar.gz" "${where[@]}" --worker=all
  setup='mkdir -p mmrec_jax && tar -xzf mmrec_jax.tar.gz -C mmrec_jax'
  setup+=' && python3 -m pip install --quiet --user uv'
  setup+=' && { [ -d venv ] || python3 -m uv venv --quiet --python 3.11 venv; }'
  setup+=' && python3 -m uv pip install --quiet --python venv --reinstall-package mmrec_jax'
  setup+=' "jax[tpu]>=0.10.2,<0.11" "./mmrec_jax[media]"'
  run "${on_all_hosts[@]}" "--command=$setup"
}

attempt() { # attempt FLAGS...: one start of the run, with a name of its own: gcloud repeats a command whose ssh broke
  local program started
  program="../venv/bin/python -u -m mmrec_jax.main $(quoted "$@")"
  started=$(date +%Y%m%d-%H%M%S)-$RANDOM
  run "${on_all_hosts[@]}" "--command=cd mmrec_jax && exec bash launch/tpu_host.sh start $started $program"
}

end_process() { # of `attempt`, whose program is on the hosts
  "${on_all_hosts[@]}" "--command=$host stop" >&2 || kill -s TERM "$1"
}

case $action in
  create)
    need --type "$type"
    if [[ -z $version ]]; then
      case $type in
        v6e-*) version=v2-alpha-tpuv6e ;;
        v5p-*) version=v2-alpha-tpuv5 ;;
        v5litepod-*) version=v2-alpha-tpuv5-lite ;;
        *) version='tpu-ubuntu2204-base' ;;
      esac
    fi
    extra=()
    if ((spot)); then extra+=(--spot); fi
    run "${tpu[@]}" create "$name" "${where[@]}" "--accelerator-type=$type" "--version=$version" \
      ${extra[@]+"${extra[@]}"}
    ;;
  install) install ;;
  run)
    (($#)) || fail "give the flags of mmrec_jax.main after --"
    if ((dry_run)); then attempt "$@" && exit; fi
    until_done "$restarts" attempt "$@"
    ;;
  follow) run "${on_all_hosts[@]}" "--command=$host follow" ;;
  stop) run "${on_all_hosts[@]}" "--command=$host stop" ;;
  delete) run "${tpu[@]}" delete "$name" "${where[@]}" --quiet ;;
esac
