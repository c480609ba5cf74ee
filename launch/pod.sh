#!/usr/bin/env bash
# What a pod of gke.sh runs, with main.py's arguments. Kubernetes takes a pod that ended with 0 for finished, and so does main.py
# end when its node is drained (SIGTERM). Without results the code here is 75, after which the JobSet starts the pods again.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/common.sh
. launch/xla_flags.sh tpu
python main.py "$@" &
pid="$!"
trap 'kill -TERM "$pid" 2>/dev/null || true' TERM # of a container only this shell, its first process, gets the signal
await "$pid"
python -m launch.finished "$@"
