#!/usr/bin/env bash
# The job that slurm.sh submits. Arguments: PLATFORM (gpu | cpu), then main.py's arguments. jax
# finds the other tasks through SLURM.
set -euo pipefail
platform="$1"
shift
. launch/common.sh
[ "$platform" = cpu ] || . launch/xla_flags.sh "$platform"
[ "$platform" = gpu ] || export JAX_PLATFORMS=cpu
export EMJAX_DISTRIBUTED=""
# The batch shell gets SIGTERM (sbatch --signal=B:TERM@90) and forwards it to the tasks, not to
# srun, which would kill them.
stopped=0
trap 'stopped=1; scancel --signal=TERM "$SLURM_JOB_ID"' TERM
srun --kill-on-bad-exit=1 .venv/bin/python main.py "$@" &
code=0
await "$!" || code=$?
# main.py also ends with 0 when SIGTERM stopped it, and the signal may have reached only the tasks.
if [ "$code" = 0 ] && .venv/bin/python -m launch.finished "$@"; then exit 0; fi
if [ "$code" = 0 ] || [ "$stopped" = 1 ]; then
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
fi
exit "$code"
