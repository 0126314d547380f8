#!/usr/bin/env bash
# Sets up the environment with the test tools, checks style and layers, runs the tests: ./test.sh [pytest's arguments]
set -euo pipefail
root=$(cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")" && pwd)
cd -- "$root"
# Of what is installed the tests load a small part, which Python compiles when it is loaded, if it may write that down.
[ -n "${PYTHONDONTWRITEBYTECODE:-}" ] || install_option=--no-compile
. docker/environment.sh
make_environment test requirements.txt tests/requirements.txt

if [ -z "${LORALOOM_CHROMIUM:-}" ] && ! command -v chromium chromium-browser google-chrome google-chrome-stable >/dev/null; then
    apt_install chromium || say "Chromium is missing and cannot be installed from here: the browser tests will be skipped."
fi

"$python" -m ruff check .
"$venv/bin/lint-imports"
# As many processes as cores, with one thread each, the tests of a file together; -n 0 runs them in one process.
cores=$(env -u OMP_NUM_THREADS nproc)  # which believes that variable
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec "$python" -m pytest -n "$cores" --dist loadfile --no-loadscope-reorder "$@"
