#!/usr/bin/env bash
# Creates a Cloud TPU slice, runs an experiment on it, fetches the results and deletes the slice.
#
#   launch/tpu_vm.sh --name NAME --zone ZONE --type v5litepod-16 --bucket gs://BUCKET [--project P] [--spot] [--queued]
#                    [--version v2-alpha-tpuv5-lite] [--env_file FILE] [--keep] [--dry_run]
#                    -- --config configs/kto_biased10.py [...]
# The work directory is in the bucket, which is mounted on all workers, so a preemption loses at
# most half a minute of answers. With --spot the script replaces a preempted slice and resumes, in
# at most 20 attempts. Ctrl-C leaves the slice running; --keep also keeps it at the end. --env_file
# contains keys, one per line (HF_TOKEN=...); only its owner may be able to read it (chmod 600). The
# workers delete their copies as soon as they have read them.
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
    *) fail "unknown argument '$1'; put the experiment's arguments after --" ;;
    esac
done
name_ok --name "$name"
name_ok --zone "$zone"
[[ "$type" =~ ^v[0-9]+[a-z]*(litepod)?-[0-9]+$ ]] || fail "--type is '$type'; give an accelerator type such as v5litepod-16, v5p-32 or v6e-16."
[[ "$bucket" =~ ^gs://[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]$ ]] || fail "--bucket is '$bucket'; give gs://NAME."
if [ -z "$version" ]; then # the runtime in Google's recipes for this generation
    case "$type" in
    v2-* | v3-* | v4-*) version="tpu-ubuntu2204-base" ;;
    v5litepod-*) version="v2-alpha-tpuv5-lite" ;;
    v5p-*) version="v2-alpha-tpuv5" ;;
    v6e-*) version="v2-alpha-tpuv6e" ;;
    *) fail "--type is '$type', and this script does not know its runtime (v5e is called v5litepod); give --version." ;;
    esac
fi
path_ok --version "$version"
[ -z "$project" ] || name_ok --project "$project"
if [ -n "$env_file" ]; then
    case "$env_file" in /*) ;; *) env_file="$from/$env_file" ;; esac
    [[ "$env_file" != *:* ]] || fail "--env_file is '$env_file'; scp would read a path with ':' as a file on another machine."
    [ -f "$env_file" ] || fail "--env_file is '$env_file', but there is no file."
    [ -n "$(find -L "$env_file" -prune -perm 600)" ] || fail "--env_file is '$env_file'; only its owner may be able to read it (chmod 600)."
    # The workers' shell reads this file and would print a line that it mistakes for a command.
    bad="$(grep -nvE '^([A-Za-z_][A-Za-z0-9_]*=[A-Za-z0-9._:/@%+=,~-]*|#.*)?$' "$env_file" | cut -d: -f1 | head -n1 || true)"
    [ -z "$bad" ] || fail "line $bad of --env_file must be NAME=VALUE without spaces, quotes or other characters that a shell interprets."
fi
check_experiment "$@"

where=(--zone "$zone")
[ -z "$project" ] || where+=(--project "$project")
on=(gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker)
words="$(quoted "$@") --workdir /gcs/$name --config.watch.checkpoints=$bucket/$name/checkpoints"
command="cd emjax &&"
# Delete the keys before anything else, so that no failure leaves them on the workers' disks.
[ -z "$env_file" ] || command+=" { set -a; . ./keys.env; set +a; rm keys.env; } &&"
command+=" . launch/xla_flags.sh tpu && EMJAX_DISTRIBUTED=auto .venv/bin/python main.py $words"
errors="$(mktemp)"
trap 'rm -f "$errors"' EXIT
trap 'exit 130' INT # gcloud handles Ctrl-C itself, which would look like a failure and be retried

# --- the state of the slice ---

# ask GROUP FIELD: the field of $name as reported by gcloud, or NONE if gcloud reports that it does
# not exist. Fails if gcloud reports neither for three minutes. Nothing follows from that, and in
# particular not that the slice is gone.
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

# The state of the slice or, while it is queued, of the request for it.
state() {
    local queue=ACTIVE now
    if [ "$queued" = 1 ]; then queue="$(ask queued-resources state.state)" || return; fi
    if [ "$queue" != ACTIVE ]; then echo "$queue" && return; fi
    now="$(ask tpu-vm state)" || return
    if [ "$queued$now" = 1NONE ]; then now=TERMINATED; fi # the remains of its request must be deleted
    echo "$now"
}

# The state after a failure. The API may report a preempted slice as READY for some minutes.
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

# Makes sure that a slice is READY: the existing one, or a new one after deleting the remains of a
# preempted one.
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
        *) break ;; # STOPPED: someone stopped it for a reason
        esac
    done
    echo "the slice is ${now:-in a state that gcloud does not report}" >&2
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
        # If the first slice cannot be created, the arguments may be wrong.
        [ "$spot$made" = 11 ] || fail "there is no slice. (--queued waits for capacity.) Run the same command again to resume."
        sleep 300
        continue
    fi
    now="$(settled)" || fail "gcloud does not report the state of the slice, so nothing was deleted. Run the same command again to resume."
    case "$step $now" in
    "finished READY") echo "SIGTERM stopped the run, but the slice still exists: resuming the run" ;;
    *" READY" | *" STOPPED")
        DRY_RUN=1
        echo "$step: failed, or the connection was lost (slice: $now). The slice is kept for inspection. It costs money until you"
        echo "delete it:"
        delete
        exit 1
        ;;
    *)
        [ "$spot" = 1 ] || fail "the slice is $now. Progress is saved in $bucket/$name; run the same command again to resume."
        echo "the slice is $now: the next attempt resumes from $bucket/$name"
        ;;
    esac
done
fail "the run did not finish in 20 attempts; run the same command again to resume."
