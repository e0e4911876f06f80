# Every target sets up what it needs by itself (scripts/setup.sh: a no-op when nothing changed).
#
#   make demo ARGS="--seconds 60"      PYTHON=python3.12 make test

.DEFAULT_GOAL := help
BIN := .venv/bin
ARGS ?=

.PHONY: help setup setup-dev demo test lint format test-unit test-integration test-kafka faults deploy-check bench lock clean

help: ## Show this list.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Make .venv with what the demo needs.
	@scripts/setup.sh runtime

setup-dev: ## Make .venv with what the tests need too.
	@scripts/setup.sh dev

demo: setup ## Stream a real shop through the pipeline and watch it. ARGS="--seconds 60" passes options.
	@$(BIN)/tailrace demo $(ARGS)

test: setup-dev ## Everything CI runs: style, types, unit, integration on both brokers, faults.
	@scripts/test.sh

lint: setup-dev ## Style and types.
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: setup-dev ## Put the style right.
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

test-unit: setup-dev ## Tests without a broker.
	@$(BIN)/pytest tests/unit $(ARGS)

test-integration: setup-dev ## Integration tests on the embedded stack.
	@$(BIN)/pytest tests/integration --stack=embedded $(ARGS)

test-kafka: setup-dev ## Integration tests on Apache Kafka (needs Java; fetches the jars with Maven).
	@$(BIN)/python -m stream_app.embedded.kafka install
	@$(BIN)/pytest tests/integration --stack=kafka $(ARGS)

faults: setup-dev ## Seeded runs with everything going wrong, killed processes and outages, on Apache Kafka (an hour).
	@$(BIN)/python -m stream_app.embedded.kafka install
	@FAULT_RUNS=$${FAULT_RUNS:-20} TORTURE_RUNS=$${TORTURE_RUNS:-20} CUT_OVER_RUNS=$${CUT_OVER_RUNS:-9} $(BIN)/pytest tests/faults --stack=kafka $(ARGS)

deploy-check: setup-dev ## Validate deploy/: chart, compose file, image, alerts. Fetches helm, promtool and others once.
	@scripts/deploy-tools.sh >/dev/null
	@$(BIN)/pytest tests/deploy $(ARGS)

bench: setup-dev ## Speed figures, all of `tailrace bench`. ARGS chooses one: latency, quality, encoder, ...
	@$(BIN)/python -m benchmarks $(ARGS)

lock: setup-dev ## Renew the pins in requirements/ from pyproject.toml.
	@scripts/lock.sh

clean: ## Remove .venv and every cache in the project.
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
