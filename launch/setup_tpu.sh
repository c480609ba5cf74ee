#!/usr/bin/env bash
# tpu_vm.sh runs this on each worker of a slice: it installs Python and emjax with libtpu, and
# mounts the bucket at /gcs.
set -euo pipefail
bucket="${1:?the bucket without gs://}"
cd "$(dirname "$0")/.."
# The image's own Python may be too old for jax.
python="$(command -v python3.12 || command -v python3.11 || true)"
if [ -z "$python" ]; then
    sudo apt-get update -qq && sudo apt-get install -y -qq python3.11 python3.11-venv
    python="$(command -v python3.11)"
fi
tag="$("$python" -c 'import sys; print("py%d%d" % sys.version_info[:2])')"
[ -x .venv/bin/python ] || "$python" -m venv .venv
.venv/bin/python -m pip install -q --no-deps -r "requirements/run-$tag.txt"
.venv/bin/python -m pip install -q -e '.[tpu,gcs]'
command -v gcsfuse >/dev/null || {
    repository="gcsfuse-$(lsb_release -cs)"
    echo "deb [signed-by=/usr/share/keyrings/cloud.google.asc] https://packages.cloud.google.com/apt $repository main" |
        sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
    curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee /usr/share/keyrings/cloud.google.asc >/dev/null
    sudo apt-get update -qq && sudo apt-get install -y -qq gcsfuse
}
mountpoint -q /gcs || { sudo mkdir -p /gcs && sudo chown "$USER" /gcs && gcsfuse --implicit-dirs "$bucket" /gcs; }
