#!/usr/bin/env bash
# A workload of a GKE cluster by xpk: TPU slices or GPU hosts, started again by Kubernetes where one is taken away.
#
#   launch/gke_xpk.sh --cluster=NAME --workload=NAME --device=TYPE --image=IMAGE [--dry-run] [OPTIONS] -- FLAGS
#   launch/gke_xpk.sh --cluster=pod --workload=rec-1 --device=v5litepod-256 --image=gcr.io/p/mmrec_jax:tpu \
#     --zone=us-west4-a -- --config=configs/crossan.py --workdir=gs://bucket/runs/rec-1
#
# --device    what xpk calls the hardware: v5litepod-16, v6e-256, h100-mega-80gb-8, ...
# --slices    TPU slices (or GPU hosts) of that type (default: 1)
# --image     container, made from launch/Dockerfile.tpu or launch/Dockerfile.gpu and pushed
# --restarts  how often Kubernetes starts all processes again (default: 10)
# --zone, --project  of the cluster (default: those of gcloud's configuration)
# FLAGS       of mmrec_jax.main; the processes find each other by the variables that GKE and xpk set
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/common.sh
source "$here/common.sh"

cluster='' workload='' device='' image='' slices=1 restarts=10 zone='' project=''
while (($#)); do
  case $1 in
    --help | -h) usage "$0" && exit 0 ;;
    --dry-run) dry_run=1 ;;
    --cluster=*) cluster=${1#*=} ;;
    --workload=*) workload=${1#*=} ;;
    --device=*) device=${1#*=} ;;
    --image=*) image=${1#*=} ;;
    --slices=*) slices=${1#*=} ;;
    --restarts=*) restarts=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --) shift && break ;;
    *) fail "unknown option $1" ;;
  esac
  shift
done
need --cluster "$cluster"
need --workload "$workload"
need --device "$device"
need --image "$image"
(($#)) || fail "give the flags of mmrec_jax.main after --"

size=(--num-slices="$slices")
if [[ $device != v[0-9]* && $device != tpu* ]]; then size=(--num-nodes="$slices"); fi
where=()
if [[ -n $zone ]]; then where+=("--zone=$zone"); fi
if [[ -n $project ]]; then where+=("--project=$project"); fi
# Kubernetes waits this long after SIGTERM: enough to take a step and to save.
run xpk workload create "--cluster=$cluster" "--workload=$workload" "--device-type=$device" "${size[@]}" \
  "--docker-image=$image" "--max-restarts=$restarts" --termination-grace-period-seconds=120 "${where[@]}" \
  "--command=exec python -m mmrec_jax.main $(quoted "$@")"
