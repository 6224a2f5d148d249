#!/usr/bin/env bash
# A workload of a GKE cluster by xpk: TPU slices or GPU hosts, started again by Kubernetes where one is taken away.
#
#   launch/gke_xpk.sh --cluster=NAME --workload=NAME --device=TYPE --image=IMAGE [--dry-run] [OPTIONS] -- FLAGS
#   launch/gke_xpk.sh --cluster=pod --workload=rec-1 --device=v5litepod-256 --image=gcr.io/p/mmrec_jax:tpu \
#     --zone=us-west4-a --storage=shared -- --config=configs/crossan.py --workdir=/mnt/shared/runs/rec-1
#
# --device    what xpk calls the hardware: v5litepod-16, v6e-256, h100-mega-80gb-8, ...
# --slices    TPU slices (or GPU hosts) of that type (default: 1)
# --image     container, made from launch/Dockerfile.tpu or launch/Dockerfile.gpu and pushed
# --storage   disk that `xpk storage attach` has made known (Filestore), which all processes see: for the workdir and data,
#             which are lost with the pods elsewhere; hidden states may lie in a bucket: --config.store=gs://bucket/states
# --restarts  how often Kubernetes starts all processes again, where one was lost or ended by SIGTERM (default: 10)
# --zone, --project  of the cluster (default: those of gcloud's configuration)
# FLAGS       of mmrec_jax.main; the processes find each other by the variables that GKE and xpk set.
#             SIGTERM to this script is not one to them: it only submits; `xpk workload delete` ends a run
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/common.sh
source "$here/common.sh"

cluster='' workload='' device='' image='' slices=1 restarts=10 zone='' project='' storage=''
while (($#)); do
  case $1 in
    --help | -h) usage "$0" && exit 0 ;;
    --dry-run) dry_run=1 ;;
    --cluster=*) cluster=${1#*=} ;;
    --workload=*) workload=${1#*=} ;;
    --device=*) device=${1#*=} ;;
    --image=*) image=${1#*=} ;;
    --slices=*) slices=${1#*=} ;;
    --storage=*) storage=${1#*=} ;;
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
extra=()
if [[ -n $zone ]]; then extra+=("--zone=$zone"); fi
if [[ -n $project ]]; then extra+=("--project=$project"); fi
if [[ -n $storage ]]; then extra+=("--storage=$storage"); fi
# xpk ends a workload at exit codes that it is not told of. Kubernetes waits so long after SIGTERM: enough to take a step
# and to save.
run xpk workload create "--cluster=$cluster" "--workload=$workload" "--device-type=$device" "${size[@]}" \
  "--docker-image=$image" "--max-restarts=$restarts" "--restart-on-exit-codes=$LOST,$PREEMPTED" \
  --termination-grace-period-seconds=120 ${extra[@]+"${extra[@]}"} \
  "--command=exec python -m mmrec_jax.main $(quoted "$@")"
