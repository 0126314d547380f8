#!/usr/bin/env bash
# Sets LoRA Loom up, the first time and after an update, and serves it: ./webui.sh --help lists the flags.
set -euo pipefail
root=$(cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")" && pwd)
from=$PWD
cd -- "$root"
. docker/environment.sh
make_environment webui requirements.txt
# Paths in the flags count from where the command was given.
cd -- "$from"
exec "$root/$python" "$root/webui.py" "$@"
