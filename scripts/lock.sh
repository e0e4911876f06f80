#!/usr/bin/env bash
# Renews requirements/runtime.txt and requirements/dev.txt from pyproject.toml: the newest versions that go together
# on Python 3.11-3.14. `make lock` runs it.
#
# Pins without addresses: a file that names an index would tie everyone to it. The overrides in pyproject.toml
# ([tool.uv]) are part of the result, so the pins must be installed with --no-deps, as scripts/setup.sh does.
set -euo pipefail
cd "$(dirname "$0")/.."

uv=.venv/bin/uv
[ -x "$uv" ] || { echo "there is no $uv: run scripts/setup.sh first" >&2; exit 1; }

compile() {
  "$uv" pip compile --quiet --upgrade --universal --python-version 3.11 \
    --no-emit-index-url --no-annotate --custom-compile-command "make lock" \
    --extra embedded "$@" pyproject.toml
}

compile --output-file requirements/runtime.txt
compile --group dev --constraint requirements/runtime.txt --output-file requirements/dev.txt

if grep -nE '://|^--' requirements/*.txt; then
  echo "requirements/ names an address or an option (above): pins only, please" >&2
  exit 1
fi
wc -l requirements/*.txt
