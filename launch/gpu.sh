#!/usr/bin/env bash
# Runs an experiment on all GPUs of this machine. One process drives them all; --processes starts
# one process per GPU.
#
#   launch/gpu.sh [--processes N] [--dry_run] -- --config configs/kto_biased10.py [...]
# After a kill or an interrupt, the same command resumes the run.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/common.sh

processes=1 DRY_RUN=0
while [ "$#" -gt 0 ]; do
    case "$1" in
    --processes)
        [ "$#" -ge 2 ] || fail "$1 needs a value"
        processes="$2"
        shift 2
        ;;
    --dry_run) DRY_RUN=1 && shift ;;
    --) shift && break ;;
    *) fail "unknown argument '$1'; put the experiment's arguments after --" ;;
    esac
done
[[ "$processes" =~ ^[1-9][0-9]?$ ]] || fail "--processes is '$processes'; give a number from 1 to 99."
check_experiment "$@"
. launch/xla_flags.sh gpu

if [ "$processes" = 1 ]; then
    run exec .venv/bin/python main.py "$@" # replaces this shell, so that SIGTERM reaches it
    exit
fi
# The GPUs in CUDA_VISIBLE_DEVICES if it is set, otherwise the machine's first GPUs by number.
IFS=, read -ra cards <<<"${CUDA_VISIBLE_DEVICES-$(seq -s, 0 "$((processes - 1))")}"
[ "${#cards[@]}" -ge "$processes" ] ||
    fail "--processes is $processes, but CUDA_VISIBLE_DEVICES names only ${#cards[@]}: '${CUDA_VISIBLE_DEVICES-}'."
export JAX_COORDINATOR_ADDRESS="127.0.0.1:${EMJAX_PORT:-12355}" JAX_NUM_PROCESSES="$processes"
pids=()
for ((i = 0; i < processes; i++)); do
    if [ "$DRY_RUN" = 1 ]; then
        run env JAX_PROCESS_ID="$i" CUDA_VISIBLE_DEVICES="${cards[i]}" .venv/bin/python main.py "$@"
    else
        JAX_PROCESS_ID="$i" CUDA_VISIBLE_DEVICES="${cards[i]}" .venv/bin/python main.py "$@" &
        pids+=("$!")
    fi
done
# Forward SIGTERM to all processes: each saves and ends.
trap 'kill -TERM "${pids[@]}" 2>/dev/null || true' TERM INT
code=0
for pid in "${pids[@]}"; do await "$pid" || code=$?; done
exit "$code"
