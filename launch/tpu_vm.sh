#!/usr/bin/env bash
# Runs an experiment on a Cloud TPU slice, from nothing to the results, and deletes the slice.
#
#   launch/tpu_vm.sh --name NAME --zone ZONE --type v5litepod-16 --bucket gs://BUCKET [--project P] [--spot] [--queued]
#                    [--version v2-alpha-tpuv5-lite] [--keep] [--dry_run] -- --config configs/kto_biased10.py [...]
#
# The work directory lies in the bucket, mounted on all workers, so a preempted slice loses nothing: with --spot the script
# makes a new one and goes on, at most 20 times. Ctrl-C leaves the slice; --keep does so too at the end.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/common.sh

name="" zone="" type="" bucket="" project="" version="tpu-ubuntu2204-base" spot=0 queued=0 keep=0 DRY_RUN=0
while [ "$#" -gt 0 ]; do
    case "$1" in
    --name | --zone | --type | --bucket | --project | --version)
        [ "$#" -ge 2 ] || fail "$1 needs a value"
        declare "${1#--}=$2"
        shift 2
        ;;
    --spot | --queued | --keep) declare "${1#--}=1" && shift ;;
    --dry_run) DRY_RUN=1 && shift ;;
    --) shift && break ;;
    *) fail "unknown argument '$1'; the experiment's own follow after --" ;;
    esac
done
name_ok --name "$name"
name_ok --zone "$zone"
[[ "$type" =~ ^v[0-9]+[a-z]*(litepod)?-[0-9]+$ ]] || fail "--type is '$type'; give an accelerator type such as v5litepod-16, v5p-32, v6e-16."
[[ "$bucket" =~ ^gs://[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]$ ]] || fail "--bucket is '$bucket'; give gs://NAME."
path_ok --version "$version"
[ -z "$project" ] || name_ok --project "$project"
check_experiment "$@"

where=(--zone "$zone")
[ -z "$project" ] || where+=(--project "$project")
each=(gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker all --command)

create() {
    local how=()
    [ "$spot" = 0 ] || how+=(--spot)
    if [ "$queued" = 1 ]; then
        run gcloud compute tpus queued-resources create "$name" "${where[@]}" --node-id "$name" \
            --accelerator-type "$type" --runtime-version "$version" "${how[@]}"
        until [ "$DRY_RUN" = 1 ] || [ "$(state)" = READY ]; do sleep 30; done
    else
        run gcloud compute tpus tpu-vm create "$name" "${where[@]}" --accelerator-type "$type" --version "$version" "${how[@]}"
    fi
}

delete() {
    if [ "$queued" = 1 ]; then
        run gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet
    else
        run gcloud compute tpus tpu-vm delete "$name" "${where[@]}" --quiet
    fi
}

state() {
    gcloud compute tpus tpu-vm describe "$name" "${where[@]}" --format 'value(state)' 2>/dev/null || echo NONE
}

install() {
    run gcloud compute tpus tpu-vm scp --recurse "${where[@]}" --worker all emjax configs main.py pyproject.toml README.md \
        LICENSE requirements launch "$name:emjax/"
    run "${each[@]}" "cd emjax && bash launch/setup_tpu.sh ${bucket#gs://}"
}

work="/gcs/$name"
command="cd emjax && . launch/xla_flags.sh tpu && EMJAX_DISTRIBUTED=auto .venv/bin/python main.py"
command+=" $(quoted "$@") --workdir $work --config.watch.checkpoints=$bucket/$name/checkpoints"

for attempt in $(seq 1 20); do
    echo "attempt $attempt"
    if [ "$DRY_RUN" = 1 ] || [ "$(state)" != READY ]; then create; fi
    install
    if run "${each[@]}" "$command"; then
        run gcloud storage rsync --recursive "$bucket/$name" "runs/$name"
        [ "$keep" = 1 ] || delete
        exit 0
    fi
    now="$(state)"
    case "$now" in
    PREEMPTED | TERMINATED | STOPPED | NONE)
        [ "$spot" = 1 ] || fail "the slice is $now. What was done is in $bucket/$name; the same command goes on."
        echo "the slice is $now: making a new one, which goes on from $bucket/$name"
        delete || true
        ;;
    *)
        DRY_RUN=1
        echo "the run failed (slice: $now), which is kept for you to look at. It costs money until you delete it:"
        delete
        exit 1
        ;;
    esac
done
fail "preempted 20 times; start the same command again to go on."
