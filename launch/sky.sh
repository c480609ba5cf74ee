#!/usr/bin/env bash
# Runs an experiment through SkyPilot. With --spot it is a managed job, which SkyPilot restarts
# elsewhere after a preemption.
#
#   launch/sky.sh --name NAME --bucket BUCKET [--gpus H100:8] [--nodes N] [--spot] [--secret HF_TOKEN]... [--dry_run] \
#       -- --config configs/kto_biased10.py [...]
# --secret names an environment variable to pass to the run; its value appears on no command line.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/common.sh

name="" bucket="" gpus="H100:8" nodes=1 spot=0 secrets=() DRY_RUN=0
while [ "$#" -gt 0 ]; do
    case "$1" in
    --name | --bucket | --gpus | --nodes)
        [ "$#" -ge 2 ] || fail "$1 needs a value"
        declare "${1#--}=$2"
        shift 2
        ;;
    --secret)
        [ "$#" -ge 2 ] || fail "$1 needs a value"
        # Neither message repeats the argument, which may be a key.
        [[ "$2" =~ ^[A-Za-z_][A-Za-z0-9_]*$ ]] || fail "--secret takes the name of a variable in the environment, never its value."
        printenv "$2" >/dev/null || fail "--secret names a variable that the environment does not hold; export it first."
        secrets+=(--secret "$2")
        shift 2
        ;;
    --spot) spot=1 && shift ;;
    --dry_run) DRY_RUN=1 && shift ;;
    --) shift && break ;;
    *) fail "unknown argument '$1'; put the experiment's arguments after --" ;;
    esac
done
name_ok --name "$name"
[[ "$bucket" =~ ^[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]$ ]] || fail "--bucket is '$bucket'; give the name of a bucket, without gs://."
[[ "$gpus" =~ ^[A-Za-z0-9-]+:[1-9][0-9]*$ ]] || fail "--gpus is '$gpus'; give a kind and a number, such as H100:8."
[[ "$nodes" =~ ^[1-9][0-9]*$ ]] || fail "--nodes is '$nodes'; give a number of nodes."
check_experiment "$@"

# xargs splits the string into the same words. Each word is in double quotes, which xargs cannot
# escape, so no word may contain one.
words=""
for word in "$@"; do
    case "$word" in *\"* | *$'\n'*) fail "an argument contains a double quote or a line break, which the SkyPilot task cannot pass on: $word" ;; esac
    words+=" \"$word\""
done
how=(--name "$name" --gpus "$gpus" --num-nodes "$nodes" --env "EMJAX_BUCKET=$bucket" --env "EMJAX_NAME=$name")
how+=(--env "EMJAX_ARGS=${words# }" "${secrets[@]}" --yes)
if [ "$spot" = 1 ]; then
    run sky jobs launch "${how[@]}" --use-spot launch/sky.yaml
else
    run sky launch "${how[@]}" --cluster "$name" --down launch/sky.yaml
fi
