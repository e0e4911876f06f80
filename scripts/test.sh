#!/usr/bin/env bash
# Everything that decides whether a change is good; `make test` and CI run it.
#
# Two lanes run beside each other, since tests on a broker mostly wait; what a part printed comes when it ends, and the
# summary at the end names each. A failed part does not stop the next. TEST_LANES=1: one after another, printing at once.
# Outside CI a machine without Java skips what needs Apache Kafka, one without Go or apt what validates deploy/, and says
# so; with CI set that is a failure.
set -uo pipefail
cd "$(dirname "$0")/.."

bin=.venv/bin
export PYTHONUNBUFFERED=1
case ${CI:-} in '' | 0 | false) ci= ;; *) ci=yes ;; esac
together=${TEST_LANES:-2}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
: >"$work/summary"

note() { printf '  %s\n' "$1" >>"$work/summary"; }

part() {
  local name=$1 started=$SECONDS result=passed output
  shift
  if [ "$together" -gt 1 ]; then
    printf '... %s: %s\n' "$name" "$*"
    output=$(mktemp "$work/part.XXXXXX")
    "$@" </dev/null >"$output" 2>&1 || result=FAILED
    # One part's output at a time.
    { flock 9 2>/dev/null; printf '\n=== %s: %s\n' "$name" "$*"; cat "$output"; } 9>"$work/printing"
    rm -f "$output"
  else
    printf '\n=== %s: %s\n' "$name" "$*"
    "$@" </dev/null || result=FAILED
  fi
  note "$(printf '%-8s %s (%d s)' "$result" "$name" $((SECONDS - started)))"
}

part "lint" "$bin/ruff" check .
part "format" "$bin/ruff" format --check .
part "types" "$bin/mypy"

if ! "$bin/python" -m stream_app.embedded.kafka check >/dev/null 2>&1 &&
  { [ -n "$ci" ] || { command -v java >/dev/null && command -v mvn >/dev/null; }; }; then
  part "Apache Kafka from Maven" "$bin/python" -m stream_app.embedded.kafka install
fi
broker=kafka
if missing=$("$bin/python" -m stream_app.embedded.kafka check 2>&1); then
  missing=
elif [ -z "$ci" ]; then
  broker=embedded
fi

deploy() {
  printf '\n=== deploy tools: scripts/deploy-tools.sh\n'
  if scripts/deploy-tools.sh </dev/null; then
    part "deploy" "$bin/pytest" -q tests/deploy
  elif [ -n "$ci" ]; then
    note "FAILED   deploy, not run: its tools could not be fetched (above)"
  else
    note "SKIPPED  deploy: its tools could not be fetched (above)"
  fi
}

on_kafka() {
  if [ -z "$missing" ]; then
    part "integration on Apache Kafka" "$bin/pytest" -q tests/integration --stack=kafka
  elif [ -n "$ci" ]; then
    note "FAILED   integration on Apache Kafka, not run: $missing"
  else
    note "SKIPPED  integration on Apache Kafka: $missing"
  fi
}

first() {
  deploy
  part "unit tests" "$bin/pytest" -q tests/unit
  on_kafka
}

second() {
  part "integration on the embedded stack" "$bin/pytest" -q tests/integration --stack=embedded
  part "faults ($broker)" "$bin/pytest" -q tests/faults --stack="$broker"
}

if [ "$together" -gt 1 ]; then
  second &
  lane=$!
  # A job in the background hears no Ctrl-C.
  trap 'pkill -TERM -P "$lane"; kill "$lane"; exit 130' INT TERM
  first
  # One that was killed leaves no line in the summary.
  wait "$lane" || note "FAILED   the second lane, which ended before it was done (exit status $?)"
else
  first
  second
fi

printf '\n=== summary after %d s\n' "$SECONDS"
cat "$work/summary"
# Without a summary nothing has passed.
grep -q passed "$work/summary" && ! grep -q FAILED "$work/summary"
