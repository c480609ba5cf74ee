#!/usr/bin/env bash
# Runs an experiment on a Cloud TPU slice, from nothing to the results, and deletes the slice.
#
#   launch/tpu_vm.sh --name NAME --zone ZONE --type v5litepod-16 --bucket gs://BUCKET [--project P] [--spot] [--queued]
#                    [--version v2-alpha-tpuv5-lite] [--env_file FILE] [--keep] [--dry_run]
#                    -- --config configs/kto_biased10.py [...]
#
# The work directory lies in the bucket, mounted on all workers, so a preempted slice loses half a minute of answers at most:
# with --spot the script makes a new one and goes on, at most 20 times in all. Ctrl-C leaves the slice; --keep does so too at
# the end. --env_file holds keys, a line each (HF_TOKEN=...), and only its owner may read it (chmod 600); the workers delete
# their copies as they read them.
set -euo pipefail
from="$PWD"
cd "$(dirname "$0")/.."
. launch/common.sh

name="" zone="" type="" bucket="" project="" version="" env_file="" spot=0 queued=0 keep=0 DRY_RUN=0
while [ "$#" -gt 0 ]; do
    case "$1" in
    --name | --zone | --type | --bucket | --project | --version | --env_file)
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
if [ -z "$version" ]; then # the runtime that Google's recipes name for the generation
    case "$type" in
    v2-* | v3-* | v4-*) version="tpu-ubuntu2204-base" ;;
    v5litepod-*) version="v2-alpha-tpuv5-lite" ;;
    v5p-*) version="v2-alpha-tpuv5" ;;
    v6e-*) version="v2-alpha-tpuv6e" ;;
    *) fail "--type is '$type', whose runtime this script does not know (v5e is called v5litepod); give --version." ;;
    esac
fi
path_ok --version "$version"
[ -z "$project" ] || name_ok --project "$project"
if [ -n "$env_file" ]; then
    case "$env_file" in /*) ;; *) env_file="$from/$env_file" ;; esac
    [[ "$env_file" != *:* ]] || fail "--env_file is '$env_file'; a path with ':' would name another machine's file."
    [ -f "$env_file" ] || fail "--env_file is '$env_file', where there is no file."
    [ -n "$(find -L "$env_file" -prune -perm 600)" ] || fail "--env_file is '$env_file'; let its owner alone read it (chmod 600)."
    # The workers' shell reads it, and would print a line that it takes for a command.
    bad="$(grep -nvE '^([A-Za-z_][A-Za-z0-9_]*=[A-Za-z0-9._:/@%+=,~-]*|#.*)?$' "$env_file" | cut -d: -f1 | head -n1 || true)"
    [ -z "$bad" ] || fail "line $bad of --env_file is not NAME=VALUE without spaces, quotes and other characters that a shell reads."
fi
check_experiment "$@"

where=(--zone "$zone")
[ -z "$project" ] || where+=(--project "$project")
on=(gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker)
words="$(quoted "$@") --workdir /gcs/$name --config.watch.checkpoints=$bucket/$name/checkpoints"
command="cd emjax &&"
# `rm` before anything else, so that no failure leaves the keys on the workers' disks.
[ -z "$env_file" ] || command+=" { set -a; . ./keys.env; set +a; rm keys.env; } &&"
command+=" . launch/xla_flags.sh tpu && EMJAX_DISTRIBUTED=auto .venv/bin/python main.py $words"
errors="$(mktemp)"
trap 'rm -f "$errors"' EXIT
trap 'exit 130' INT # gcloud answers Ctrl-C itself, which would look like a failure to try again

# --- what is there ---

# ask GROUP FIELD: what gcloud says of $name, NONE where it says that there is no such thing. Fails where for three minutes it
# says neither: nothing may be concluded from that, least of all that the slice is gone.
ask() {
    local try
    for try in 1 2 3 4 5 6; do
        gcloud compute tpus "$1" describe "$name" "${where[@]}" --format "value($2)" 2>"$errors" && return
        if grep -q NOT_FOUND "$errors"; then echo NONE && return; fi
        [ "$try" = 6 ] || sleep 30
    done
    cat "$errors" >&2
    return 1
}

# The state of the slice; while it is queued, of the request for it.
state() {
    local queue=ACTIVE now
    if [ "$queued" = 1 ]; then queue="$(ask queued-resources state.state)" || return; fi
    if [ "$queue" != ACTIVE ]; then echo "$queue" && return; fi
    now="$(ask tpu-vm state)" || return
    if [ "$queued$now" = 1NONE ]; then now=TERMINATED; fi # of its request something is left, to be deleted
    echo "$now"
}

# The state when something failed. Of a preempted slice the API may say READY for some minutes.
settled() {
    local try now
    for try in 1 2 3 4 5 6 7; do
        now="$(state)" || return
        if [ "$now" != READY ]; then break; fi
        [ "$try" = 7 ] || sleep 30
    done
    echo "$now"
}

# --- the steps of an attempt ---

create() {
    local how=()
    [ "$spot" = 0 ] || how+=(--spot)
    if [ "$queued" = 1 ]; then
        run gcloud compute tpus queued-resources create "$name" "${where[@]}" --node-id "$name" \
            --accelerator-type "$type" --runtime-version "$version" "${how[@]}"
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

# A slice that is READY: the one that is there, or a new one, for which the remains of a preempted one are deleted.
slice() {
    local now asked=0
    if [ "$DRY_RUN" = 1 ]; then create && return; fi
    while now="$(state)"; do
        case "$now" in
        READY) made=1 && return ;;
        NONE | PREEMPTED | TERMINATED | FAILED | SUSPENDED)
            if [ "$asked" = 1 ]; then break; fi
            [ "$now" = NONE ] || delete || return
            create || return
            asked=1
            ;;
        *ING | ACCEPTED | WAITING_FOR_RESOURCES) sleep 30 ;; # CREATING, PROVISIONING, RESTARTING, SUSPENDING, ...
        *) break ;; # STOPPED: by someone, who has a reason
        esac
    done
    echo "the slice is ${now:-in a state that gcloud does not say}" >&2
    return 1
}

install() {
    run "${on[@]}" all --command "mkdir -p emjax" &&
        run gcloud compute tpus tpu-vm scp --recurse "${where[@]}" --worker all emjax configs main.py pyproject.toml README.md \
            LICENSE requirements launch "$name:emjax/" &&
        run "${on[@]}" all --command "cd emjax && bash launch/setup_tpu.sh ${bucket#gs://}"
}

experiment() {
    [ -z "$env_file" ] || run gcloud compute tpus tpu-vm scp "${where[@]}" --worker all "$env_file" "$name:emjax/keys.env" ||
        return
    run "${on[@]}" all --command "$command"
}

finished() { run "${on[@]}" 0 --command "cd emjax && .venv/bin/python -m launch.finished $words"; }

attempt() {
    step="slice" && slice && step="installing" && install && step="experiment" && experiment && step="finished" && finished
}

made=0
for number in $(seq 1 20); do
    echo "attempt $number"
    if attempt; then
        run gcloud storage rsync --recursive "$bucket/$name" "runs/$name"
        [ "$keep" = 1 ] || delete
        exit 0
    fi
    if [ "$step" = slice ]; then
        # Of the first one the arguments may be wrong.
        [ "$spot$made" = 11 ] || fail "there is no slice. (--queued waits for capacity.) The same command goes on."
        sleep 300
        continue
    fi
    now="$(settled)" || fail "gcloud does not say what has become of the slice, and nothing was deleted. The same command goes on."
    case "$step $now" in
    "finished READY") echo "SIGTERM stopped the run, and the slice is still there: the run goes on" ;;
    *" READY" | *" STOPPED")
        DRY_RUN=1
        echo "$step: failed, or the connection was lost (slice: $now). The slice is kept for you to look at. It costs money until"
        echo "you delete it:"
        delete
        exit 1
        ;;
    *)
        [ "$spot" = 1 ] || fail "the slice is $now. What was done is in $bucket/$name; the same command goes on."
        echo "the slice is $now: the next attempt goes on from $bucket/$name"
        ;;
    esac
done
fail "the run did not end in 20 attempts; start the same command again to go on."
