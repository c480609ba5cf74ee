#!/usr/bin/env bash
# The job that slurm.sh submits: PLATFORM (gpu | cpu) and main.py's arguments. jax finds the other tasks through SLURM.
set -euo pipefail
platform="$1"
shift
. launch/common.sh
[ "$platform" = cpu ] || . launch/xla_flags.sh "$platform"
[ "$platform" = gpu ] || export JAX_PLATFORMS=cpu
export EMJAX_DISTRIBUTED=""
# The batch shell gets SIGTERM (sbatch --signal=B:TERM@90) and passes it to the tasks; not to srun, which would kill them.
stopped=0
trap 'stopped=1; scancel --signal=TERM "$SLURM_JOB_ID"' TERM
srun --kill-on-bad-exit=1 .venv/bin/python main.py "$@" &
code=0
await "$!" || code=$?
# main.py ends with 0 where SIGTERM stopped it, too, and the signal may have come to the tasks alone.
if [ "$code" = 0 ] && .venv/bin/python -m launch.finished "$@"; then exit 0; fi
if [ "$code" = 0 ] || [ "$stopped" = 1 ]; then
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
fi
exit "$code"
