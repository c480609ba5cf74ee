# shellcheck shell=bash
# What the launchers share. Every value that reaches a command passes through `name_ok` or is quoted as one word; nothing is
# evaluated, and no secret is an argument: HF_TOKEN and judge keys are read from the environment of the machine that runs.

fail() {
    echo "error: $*" >&2
    exit 2
}

# run COMMAND...: prints it, and unless --dry_run was given runs it.
run() {
    printf '+'
    printf ' %q' "$@"
    printf '\n'
    if [ "${DRY_RUN:-0}" = 0 ]; then "$@"; fi
}

# name_ok WHAT VALUE: letters, digits, dot, underscore, hyphen; for what becomes part of a resource's name.
name_ok() {
    [[ "$2" =~ ^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$ ]] ||
        fail "$1 is '$2'; it must begin with a small letter and hold small letters, digits and hyphens alone, 40 at most."
}

# path_ok WHAT VALUE: a path or bucket without characters that a shell or a remote shell would read.
path_ok() {
    [[ "$2" =~ ^[A-Za-z0-9._:@%+=,/~-]+$ ]] || fail "$1 is '$2'; use letters, digits and . _ : @ % + = , / ~ - alone."
    case "/$2/" in */../*) fail "$1 is '$2'; '..' is not taken." ;; esac
}

# The command line of the experiment as one string that a remote shell reads back as the same words.
quoted() {
    local text
    printf -v text ' %q' "$@"
    echo "${text# }"
}

# await PID: the code of a child of this shell. A signal that the shell traps ends `wait` before the child has ended; then it is
# waited for again, and bash still knows the code of one that has ended meanwhile.
await() {
    while kill -0 "$1" 2>/dev/null; do wait "$1" || true; done
    wait "$1"
}

# The arguments after `--` go to main.py unchanged; none may hold a key. A key is a whole word, no piece of a path.
check_experiment() {
    [ "$#" -gt 0 ] || fail "give the experiment after --, for example: -- --config configs/kto_biased10.py"
    local word key='(^|[^A-Za-z0-9_./-])(hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|AIza[A-Za-z0-9_-]{35})([^A-Za-z0-9_/-]|$)'
    for word in "$@"; do
        [[ ! "$word" =~ $key ]] ||
            fail "an argument looks like a secret key, and all users of a machine see its command lines (docs/launch.md: Keys)."
    done
}
