#!/usr/bin/env bash
# Runs an experiment as a JobSet on a TPU slice of the GKE cluster that kubectl is connected to.
#
#   launch/gke.sh --name NAME --image IMAGE --accelerator tpu-v5p-slice --topology 2x2x4 --bucket gs://BUCKET [--spot]
#                 [--chips 4] [--service-account default] [--dry_run] -- --config configs/kto_biased10.py [...]
# Keys come from the Kubernetes secret emjax-keys. To follow the logs:
#
#   kubectl logs -f -l jobset.sigs.k8s.io/jobset-name=NAME
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/common.sh

name="" image="" accelerator="" topology="" bucket="" chips=4 service_account="default" spot=0 DRY_RUN=0
while [ "$#" -gt 0 ]; do
    case "$1" in
    --name | --image | --accelerator | --topology | --bucket | --chips | --service-account)
        [ "$#" -ge 2 ] || fail "$1 needs a value"
        key="${1#--}"
        declare "${key//-/_}=$2"
        shift 2
        ;;
    --spot) spot=1 && shift ;;
    --dry_run) DRY_RUN=1 && shift ;;
    --) shift && break ;;
    *) fail "unknown argument '$1'; put the experiment's arguments after --" ;;
    esac
done
name_ok --name "$name"
name_ok --service-account "$service_account"
path_ok --image "$image"
[[ "$accelerator" =~ ^tpu-v[a-z0-9-]+$ ]] || fail "--accelerator is '$accelerator'; give one such as tpu-v5p-slice or tpu-v6e-slice."
[[ "$topology" =~ ^[0-9]+(x[0-9]+){1,2}$ ]] || fail "--topology is '$topology'; give a shape such as 4x4 or 2x2x4."
[[ "$bucket" =~ ^gs://[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]$ ]] || fail "--bucket is '$bucket'; give gs://NAME."
[[ "$chips" =~ ^[148]$ ]] || fail "--chips is '$chips'; a host has 1, 4 or 8 chips."
check_experiment "$@"

all=$((${topology//x/*}))
[ $((all % chips)) = 0 ] || fail "--topology $topology has $all chips, which is not a multiple of the $chips chips of a host (--chips)."
# A JSON list of the words, so that YAML reads each of them as a plain string.
words="$(python3 -c 'import json, sys; print(json.dumps(sys.argv[1:]))' "$@" --workdir "/runs/$name" \
    "--config.watch.checkpoints=$bucket/$name/checkpoints")"
text="$(cat launch/gke/jobset.yaml)"
put() { text="${text//"@@$1@@"/"$2"}"; }
put NAME "$name"
put IMAGE "$image"
put HOSTS "$((all / chips))"
put CHIPS "$chips"
put ACCELERATOR "$accelerator"
put TOPOLOGY "$topology"
put BUCKET "${bucket#gs://}"
put SERVICE_ACCOUNT "$service_account"
put SPOT "$([ "$spot" = 1 ] && echo 'cloud.google.com/gke-spot: "true"' || echo '# on demand')"
put ARGS "$words"
if [ "$DRY_RUN" = 1 ]; then
    echo "$text"
    exit
fi
run kubectl apply -f - <<<"$text"
