#!/usr/bin/env bash
# The command of a pod of gke.sh, with main.py's arguments. Kubernetes treats a pod that ended with
# 0 as finished, but main.py also ends with 0 when its node is drained (SIGTERM). Without results
# this script ends with 75, and the JobSet starts the pods again.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/common.sh
. launch/xla_flags.sh tpu
python main.py "$@" &
pid="$!"
trap 'kill -TERM "$pid" 2>/dev/null || true' TERM # only a container's first process, this shell, gets the signal
await "$pid"
python -m launch.finished "$@"
