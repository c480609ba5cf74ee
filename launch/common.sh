# shellcheck shell=bash
# Shared functions of the launchers. Every value that reaches a command passes `name_ok` or
# `path_ok`, or is quoted as one word. Nothing is evaluated. No secret is an argument: HF_TOKEN and
# judge keys are read from the environment of the machine that runs the experiment.

fail() {
    echo "error: $*" >&2
    exit 2
}

# run COMMAND...: prints the command and runs it, unless --dry_run was given.
run() {
    printf '+'
    printf ' %q' "$@"
    printf '\n'
    if [ "${DRY_RUN:-0}" = 0 ]; then "$@"; fi
}

# name_ok WHAT VALUE: lowercase letters, digits and hyphens; for values that become part of a
# resource name.
name_ok() {
    [[ "$2" =~ ^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$ ]] ||
        fail "$1 is '$2'; it must begin with a lowercase letter and contain only lowercase letters, digits and hyphens, 40 at most."
}

# path_ok WHAT VALUE: a path or bucket without characters that a local or remote shell would
# interpret.
path_ok() {
    [[ "$2" =~ ^[A-Za-z0-9._:@%+=,/~-]+$ ]] || fail "$1 is '$2'; use only letters, digits and . _ : @ % + = , / ~ -"
    case "/$2/" in */../*) fail "$1 is '$2'; '..' is not allowed." ;; esac
}

# Quotes the experiment's command line as one string that a remote shell splits into the same words.
quoted() {
    local text
    printf -v text ' %q' "$@"
    echo "${text# }"
}

# await PID: returns the exit code of a child of this shell. A trapped signal interrupts `wait`
# before the child has ended, so this waits again; bash keeps the code of a child that ended in
# between.
await() {
    while kill -0 "$1" 2>/dev/null; do wait "$1" || true; done
    wait "$1"
}

# The arguments after `--` go to main.py unchanged. None may contain a key: a whole word, not part
# of a path.
check_experiment() {
    [ "$#" -gt 0 ] || fail "give the experiment after --, for example: -- --config configs/kto_biased10.py"
    local word key='(^|[^A-Za-z0-9_./-])(hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|AIza[A-Za-z0-9_-]{35})([^A-Za-z0-9_/-]|$)'
    for word in "$@"; do
        [[ ! "$word" =~ $key ]] ||
            fail "an argument looks like a secret key, and every user of a machine can see its command lines (docs/launch.md: Keys)."
    done
}
