#!/usr/bin/env bash
# Regenerates the pins in requirements/{run,test}-pyXY.txt from pyproject.toml:
#
#   requirements/lock.sh python3.11
#
# Use the oldest available patch release (Debian 12 has 3.11.2), because some package releases
# require a newer one. This only resolves versions, on Linux x86-64; test the result with
# `make clean test` and the same interpreter.
set -euo pipefail
export LC_ALL=C
cd "$(dirname "$0")/.."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"$1" -m venv "$scratch/venv"
python=$scratch/venv/bin/python
"$python" -m pip install -q --upgrade pip
tag=$("$python" -c 'import sys; print("py%d%d" % sys.version_info[:2])')

# Prints name==version of everything that installing the arguments would install, except the project
# itself.
resolve() {
    "$python" -m pip install -q --dry-run --ignore-installed --report "$scratch/report.json" "$@" >&2
    "$python" - "$scratch/report.json" <<'PY'
import json, re, sys

for item in json.load(open(sys.argv[1]))["install"]:
    name, version = item["metadata"]["name"], item["metadata"]["version"].partition("+")[0]
    name = re.sub(r"[-_.]+", "-", name).lower()
    # On Linux, torch installs and pins its own CUDA packages; a CPU build installs none.
    if name != "emjax" and not re.match(r"nvidia-|cuda-|triton$", name):
        print(f"{name}=={version}")
PY
}

resolve '.[test]' flit_core | sort >"$scratch/all.txt"
resolve . flit_core -c "$scratch/all.txt" | sort >"requirements/run-$tag.txt"
{
    echo "-r run-$tag.txt"
    comm -13 "requirements/run-$tag.txt" "$scratch/all.txt"
} >"requirements/test-$tag.txt"
wc -l "requirements/run-$tag.txt" "requirements/test-$tag.txt"
