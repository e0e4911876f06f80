#!/usr/bin/env bash
# Everything that decides whether a change is good; `make test` and CI run it.
#
# The parts run one after another, a failed one does not stop the next, and the summary at the end names each.
# Outside CI a machine without Java skips what needs Apache Kafka, one without Go or apt what validates deploy/, and says
# so; with CI set that is a failure.
set -uo pipefail
cd "$(dirname "$0")/.."

bin=.venv/bin
export PYTHONUNBUFFERED=1
case ${CI:-} in '' | 0 | false) ci= ;; *) ci=yes ;; esac
summary=()
failed=0

part() {
  local name=$1 started=$SECONDS
  shift
  printf '\n=== %s: %s\n' "$name" "$*"
  if "$@" </dev/null; then
    summary+=("passed   $name ($((SECONDS - started)) s)")
  else
    summary+=("FAILED   $name ($((SECONDS - started)) s)")
    failed=1
  fi
}

part "lint" "$bin/ruff" check .
part "format" "$bin/ruff" format --check .
part "types" "$bin/mypy"
printf '\n=== deploy tools: scripts/deploy-tools.sh\n'
if scripts/deploy-tools.sh </dev/null; then
  part "deploy" "$bin/pytest" -q tests/deploy
elif [ -n "$ci" ]; then
  summary+=("FAILED   deploy, not run: its tools could not be fetched (above)")
  failed=1
else
  summary+=("SKIPPED  deploy: its tools could not be fetched (above)")
fi
part "unit tests" "$bin/pytest" -q tests/unit
part "integration on the embedded stack" "$bin/pytest" -q tests/integration --stack=embedded

if ! "$bin/python" -m stream_app.embedded.kafka check >/dev/null 2>&1 &&
  { [ -n "$ci" ] || { command -v java >/dev/null && command -v mvn >/dev/null; }; }; then
  part "Apache Kafka from Maven" "$bin/python" -m stream_app.embedded.kafka install
fi
if missing=$("$bin/python" -m stream_app.embedded.kafka check 2>&1); then
  broker=kafka
  part "integration on Apache Kafka" "$bin/pytest" -q tests/integration --stack=kafka
elif [ -n "$ci" ]; then
  broker=kafka
  summary+=("FAILED   integration on Apache Kafka, not run: $missing")
  failed=1
else
  broker=embedded
  summary+=("SKIPPED  integration on Apache Kafka: $missing")
fi
part "faults ($broker)" "$bin/pytest" -q tests/faults --stack="$broker"

printf '\n=== summary after %d s\n' "$SECONDS"
printf '  %s\n' "${summary[@]}"
exit "$failed"
