# Every target installs what it needs into .venv; models go to the user's cache folder.
PY ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
STUBS := router/v1
WORKERS ?= -n auto --maxprocesses 4 --dist worksteal
ALONE = $$(grep -rl 'mark.alone' tests)

# Compiled modules are kept wherever the shell says not to: tests start many processes, and rewrite assertions.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help install demo serve test test-fast test-long check format proto bench bench-peers clean

help: ## show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## create .venv and install the project with its tools

$(STAMP): pyproject.toml
	$(PY) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -e '.[dev,train,native]'
	@touch $@

demo: $(STAMP) ## fetch the base, serve it with the adapters here, send real requests to all at once
	$(BIN)/python -m router.cli.demo

serve: $(STAMP) ## serve the default base with ./adapters and ./plugins
	$(BIN)/lora-router serve

test: $(STAMP) ## all tests but the long ones, those on the real base included
	$(BIN)/python -m pytest $(WORKERS) -m 'not long and not alone'
	$(BIN)/python -m pytest -m 'alone and not long' $(ALONE)

test-fast: $(STAMP) ## the tests that take no more than a moment, in a minute
	$(BIN)/python -m pytest $(WORKERS) -m 'not long and not alone and not slow and not interop and not gpu and not cluster'
	$(BIN)/python -m pytest -m 'alone and not long and not slow' $(ALONE)

test-long: $(STAMP) ## what a release needs, too: rehearsals in full, many kills; writes benchmarks/results/test-long.md
	$(BIN)/python -m tests.long

check: $(STAMP) ## format, lint, types, import rules, proto lint, stub freshness
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code
	$(BIN)/python -m tests.stub_freshness

format: $(STAMP) ## format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/buf format -w

proto: $(STAMP) ## generate router/v1 from proto/
	$(BIN)/python -m grpc_tools.protoc -I proto --python_out=. --pyi_out=. --grpc_python_out=. proto/router/v1/*.proto

bench: $(STAMP) ## measure this engine against PEFT on this machine; writes benchmarks/results/
	$(BIN)/python -m benchmarks.engine

bench-peers: $(STAMP) ## measure vLLM for CPU on the same prompts and adapters, in its own environment
	$(BIN)/python -m benchmarks.peers

clean: ## remove what the targets here made (not the model cache)
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache
