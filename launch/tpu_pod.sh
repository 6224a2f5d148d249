#!/usr/bin/env bash
# A slice of TPU VMs by gcloud: made, set up, run on all hosts at once, and given back.
#
#   launch/tpu_pod.sh ACTION --name=NAME --zone=ZONE [--dry-run] [OPTIONS] [-- FLAGS]
#   launch/tpu_pod.sh create  --name=rec --zone=us-west4-a --type=v5litepod-16 --spot
#   launch/tpu_pod.sh install --name=rec --zone=us-west4-a
#   launch/tpu_pod.sh run     --name=rec --zone=us-west4-a -- --config=configs/crossan.py --workdir=gs://bucket/runs/a
#   launch/tpu_pod.sh stop    --name=rec --zone=us-west4-a
#   launch/tpu_pod.sh delete  --name=rec --zone=us-west4-a
#
# create   the slice: --type (accelerator type), --version (software of the VMs; default: the one for the type), --spot
#          (cheaper, may be taken away)
# install  copies this checkout to every host and installs it there with JAX for TPUs, and with a Python that JAX runs
#          on: that of the VMs is older
# run      starts FLAGS of mmrec_jax.main on every host; they find each other by the TPU metadata. --restarts=N starts
#          again after SIGTERM or a lost host
# stop     sends SIGTERM to the run on all hosts: it saves at the next step and ends with 75
# delete   the slice
# --project  of Google Cloud (default: that of gcloud's configuration)
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
    create | install | run | stop | delete) action=$1 ;;
    *) fail "unknown option $1" ;;
  esac
  shift
done
[[ -n $action ]] || fail "say create, install, run, stop or delete; --help shows examples"
need --name "$name"
need --zone "$zone"
where=("--zone=$zone")
if [[ -n $project ]]; then where+=("--project=$project"); fi
tpu=(gcloud compute tpus tpu-vm)

on_all_hosts=("${tpu[@]}" ssh "$name" "${where[@]}" --worker=all) # one shell command, at the same time

case $action in
  create)
    need --type "$type"
    if [[ -z $version ]]; then
      case $type in
        v6e-*) version=v2-alpha-tpuv6e ;;
        v5p-*) version=v2-alpha-tpuv5 ;;
        v5litepod-*) version=v2-alpha-tpuv5-lite ;;
        *) version=tpu-ubuntu2204-base ;;
      esac
    fi
    extra=()
    if ((spot)); then extra+=(--spot); fi
    run "${tpu[@]}" create "$name" "${where[@]}" "--accelerator-type=$type" "--version=$version" "${extra[@]}"
    ;;
  install)
    archive=/tmp/mmrec_jax.tar.gz
    run git -C "$here/.." archive --format=tar.gz "--output=$archive" HEAD
    run "${tpu[@]}" scp "$archive" "$name:mmrec_jax.tar.gz" "${where[@]}" --worker=all
    setup='mkdir -p mmrec_jax && tar -xzf mmrec_jax.tar.gz -C mmrec_jax && python3 -m pip install --quiet --user uv'
    setup+=' && python3 -m uv venv --quiet --python 3.11 venv && python3 -m uv pip install --quiet --python venv'
    setup+=' "jax[tpu]>=0.10.2,<0.11" "./mmrec_jax[media]"'
    run "${on_all_hosts[@]}" "--command=$setup"
    ;;
  run)
    (($#)) || fail "give the flags of mmrec_jax.main after --"
    program="cd mmrec_jax && exec ../venv/bin/python -m mmrec_jax.main $(quoted "$@")"
    until_done "$restarts" "${on_all_hosts[@]}" "--command=$program"
    ;;
  stop) run "${on_all_hosts[@]}" '--command=pkill -TERM -f "^[^ ]*python -m mmrec_jax.main"' ;;
  delete) run "${tpu[@]}" delete "$name" "${where[@]}" --quiet ;;
esac
