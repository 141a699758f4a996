#!/usr/bin/env bash
# Sets up .venv and a browser where they are missing, then runs the tests; arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."

find_chromium() { command -v chromium || command -v chromium-browser || command -v google-chrome || true; }

[ -x .venv/bin/python ] || python3 -m venv .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt

if [ -z "$(find_chromium)" ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium >/dev/null
    else
        .venv/bin/python -m playwright install chromium
    fi
fi

# A thread for each of the two processes: with more they wait for each other most of the time.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
# Files as they come: the slow ones, of the page, are first in the alphabet, so that none is left for the end.
exec .venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
