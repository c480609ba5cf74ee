#!/usr/bin/env bash
# Submits an experiment to SLURM with one task per node, which drives all GPUs of the node.
#
#   launch/slurm.sh --nodes N --gpus G [--time HH:MM:SS] [--partition P] [--account A] [--cpus C] [--dry_run] \
#       -- --config configs/kto_biased10.py --workdir /shared/runs/one [...]
# --gpus 0 runs on CPUs. The work directory must be on a file system that all nodes share. The job
# gets SIGTERM 90 seconds before its time limit and when it is preempted. It then saves and is
# requeued, and the next run resumes from there.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/common.sh

nodes="" gpus="" time="24:00:00" partition="" account="" cpus="" DRY_RUN=0
while [ "$#" -gt 0 ]; do
    case "$1" in
    --nodes | --gpus | --time | --partition | --account | --cpus)
        [ "$#" -ge 2 ] || fail "$1 needs a value"
        declare "${1#--}=$2"
        shift 2
        ;;
    --dry_run) DRY_RUN=1 && shift ;;
    --) shift && break ;;
    *) fail "unknown argument '$1'; put the experiment's arguments after --" ;;
    esac
done
[[ "$nodes" =~ ^[1-9][0-9]*$ ]] || fail "--nodes is '$nodes'; give a number of nodes."
[[ "$gpus" =~ ^[0-9]+$ ]] || fail "--gpus is '$gpus'; give the number of GPUs per node, or 0 for CPUs."
[[ "$time" =~ ^([0-9]+-)?[0-9]+:[0-9]{2}:[0-9]{2}$ ]] || fail "--time is '$time'; give [DAYS-]HH:MM:SS."
[[ -z "$cpus" || "$cpus" =~ ^[1-9][0-9]*$ ]] || fail "--cpus is '$cpus'; give the number of cores per task."
[ -z "$partition" ] || path_ok --partition "$partition"
[ -z "$account" ] || path_ok --account "$account"
check_experiment "$@"

options=(--nodes "$nodes" --ntasks-per-node 1 --time "$time" --job-name emjax --output "emjax-%j.log" --open-mode append)
options+=(--requeue --signal "B:TERM@90")
[ "$gpus" = 0 ] || options+=(--gpus-per-node "$gpus")
[ -z "$cpus" ] || options+=(--cpus-per-task "$cpus")
[ -z "$partition" ] || options+=(--partition "$partition")
[ -z "$account" ] || options+=(--account "$account")
run sbatch "${options[@]}" launch/slurm_job.sh "$([ "$gpus" = 0 ] && echo cpu || echo gpu)" "$@"
