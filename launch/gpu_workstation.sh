#!/usr/bin/env bash
# One machine with one or more GPUs: a single process uses all of them, so there is nothing to connect.
#
#   launch/gpu_workstation.sh [--dry-run] [--gpus=0,1] [--image=IMAGE --data=DIR] [--restarts=N] -- FLAGS
#   launch/gpu_workstation.sh --gpus=0,1 -- --config=configs/crossan.py --workdir=runs/crossan
#
# --gpus      which GPUs (default: all)
# --image     runs in this container, made from launch/Dockerfile.gpu (default: in the current environment)
# --data      folder of the host that the container sees as /data: data, prepared data and workdirs. What the run writes
#             elsewhere is lost with the container: give --workdir=/data/...
# --restarts  how often to start again after SIGTERM (default: 0)
# FLAGS       of mmrec_jax.main
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/common.sh
source "$here/common.sh"

gpus='' image='' data='' restarts=0
while (($#)); do
  case $1 in
    --help | -h) usage "$0" && exit 0 ;;
    --dry-run) dry_run=1 ;;
    --gpus=*) gpus=${1#*=} ;;
    --image=*) image=${1#*=} ;;
    --data=*) data=${1#*=} ;;
    --restarts=*) restarts=${1#*=} ;;
    --) shift && break ;;
    *) fail "unknown option $1" ;;
  esac
  shift
done
(($#)) || fail "give the flags of mmrec_jax.main after --"

if [[ -n $image ]]; then
  need --data "$data"
  if [[ " $* " != *" --workdir=/data/"* ]]; then
    printf 'what the run makes is lost with the container: --workdir=/data/... keeps it in %s\n' "$data" >&2
  fi
  devices=all
  if [[ -n $gpus ]]; then devices="\"device=$gpus\""; fi
  # Docker passes SIGTERM to the program, which has this long to save.
  command=(docker run --rm --init --stop-timeout=120 --ipc=host --gpus "$devices" -v "$data:/data" "$image" "$@")
else
  command=(env JAX_PLATFORMS=cuda)
  if [[ -n $gpus ]]; then command+=("CUDA_VISIBLE_DEVICES=$gpus"); fi
  command+=(python -m mmrec_jax.main "$@")
fi
until_done "$restarts" "${command[@]}"
