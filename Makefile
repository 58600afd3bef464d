# Every target installs what it needs into .venv; models go to the user's cache folder.
PY ?= python3
VENV := .venv
BIN := $(VENV)/bin
SERVES := $(VENV)/.serves
STAMP := $(VENV)/.installed
STUBS := router/v1
WORKERS ?= -n auto --maxprocesses 4 --dist worksteal
SOAK ?= --hours 8
GPU ?=
ALONE = $$(grep -rl 'mark.alone' tests)

# Compiled modules are kept wherever the shell says not to: tests start many processes, and rewrite assertions.
unexport PYTHONDONTWRITEBYTECODE

# As `python -m venv`, which leaves a traceback if Ctrl-C ends it.
MAKE_VENV = @$(PY) -c 'import signal, venv; signal.signal(signal.SIGINT, signal.SIG_DFL); venv.main(["$(VENV)"])'
# Modules are compiled when they are first imported: most never are.
PIP_INSTALL = $(BIN)/pip install --disable-pip-version-check --no-compile
INSTALL_FAILED = { echo "make: pip could not install (above is why). See that the network and pip's index settings are \
	right, then run make again: what is installed stays." >&2; exit 1; }

# What looks after packages has an environment of its own: it is no part of what is served or tested.
TOOLS := .make/tools
TOOLS_STAMP := $(TOOLS)/.installed
# So has what makes the site of the documentation, which tells of its own end at every start (CONTRIBUTING.md does so once).
DOCS := .make/docs
DOCS_STAMP := $(DOCS)/.installed
SITE ?= site
MKDOCS = NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs
# The lock has torch's build for CPUs, which is not on PyPI.
TORCH_FROM ?= $(if $(PIP_FIND_LINKS),--find-links $(PIP_FIND_LINKS),--extra-index-url https://download.pytorch.org/whl/cpu)
LOCK = $(TOOLS)/bin/uv pip compile --quiet --generate-hashes --no-header --python-version 3.11 \
	--python-platform x86_64-manylinux_2_28 --no-emit-find-links --no-annotate --override deploy/torch.txt $(TORCH_FROM) $(UPGRADE)

# Of `make fuzz`: for how long each target, who makes the inputs, which targets (none: all).
SECONDS ?= 60
FUZZER ?= hypothesis
TARGETS ?=

.DEFAULT_GOAL := help
.PHONY: help install install-locked demo serve test test-fast test-long fuzz check format proto bench bench-peers bench-gpu soak answers lock audit wheel sbom reference docs docs-serve clean

help: ## show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## create .venv with all that development needs; demo and serve need less and install less

# Two environments in one folder: what serving needs, and that with what development needs.
$(SERVES): pyproject.toml
	@echo "installing what serving needs into $(VENV): first torch, then the rest"
	$(MAKE_VENV)
	@$(PIP_INSTALL) $(TORCH_FROM) torch || $(INSTALL_FAILED)
	@$(PIP_INSTALL) -e '.[standard,native]' || $(INSTALL_FAILED)
	@touch $@

$(STAMP): pyproject.toml
	$(MAKE_VENV)
	@$(PIP_INSTALL) -e '.[dev,standard,train,pictures,native]' || $(INSTALL_FAILED)
	@touch $(SERVES) $@

install-locked: ## the same with exactly the packages of requirements-dev.lock, by their hashes
	$(MAKE_VENV)
	$(BIN)/pip install -q --disable-pip-version-check --require-hashes $(TORCH_FROM) -r requirements-dev.lock
	$(BIN)/pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(SERVES) $(STAMP)

demo: $(SERVES) ## fetch the base, serve it with the adapters here, send real requests to all at once
	@$(BIN)/python -c 'from router.cli.__main__ import main; main("examples.demo")'

serve: $(SERVES) ## serve the default base with ./adapters and ./plugins
	$(BIN)/lora-router serve

test: $(STAMP) ## all tests but the long ones, those on the real base included
	$(BIN)/python -m pytest $(WORKERS) -m 'not long and not alone'
	$(BIN)/python -m pytest -m 'alone and not long' $(ALONE)

test-fast: $(STAMP) ## the tests that take no more than a moment, in a minute
	$(BIN)/python -m pytest $(WORKERS) -m 'not long and not alone and not slow and not interop and not gpu and not cluster'
	$(BIN)/python -m pytest -m 'alone and not long and not slow' $(ALONE)

test-long: $(STAMP) ## what a release needs, too: rehearsals in full, many kills; writes benchmarks/results/load.md
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

proto: $(STAMP) ## generate router/v1 and router/kserve from proto/
	$(BIN)/python -m grpc_tools.protoc -I proto --python_out=. --pyi_out=. --grpc_python_out=. proto/router/*/*.proto

fuzz: $(STAMP) ## fuzz every parser and every RPC, SECONDS each (60); FUZZER=random is faster, FUZZER=atheris looks for new code
ifeq ($(FUZZER),atheris)
	$(BIN)/pip install -q --disable-pip-version-check --target .make/atheris --upgrade atheris==3.0.0
endif
	PYTHONPATH=.make/atheris $(BIN)/python -m tests.fuzz.run --seconds $(SECONDS) --engine $(FUZZER) $(TARGETS)

bench: $(STAMP) ## measure this engine against PEFT on this machine; writes benchmarks/results/engine.md
	$(BIN)/python -m benchmarks.engine

bench-peers: $(STAMP) ## measure vLLM for CPU on the same prompts and adapters, in its own environment
	$(BIN)/python -m benchmarks.peers

bench-gpu: $(STAMP) ## tests, parity, speed and limits on one CUDA card, in 45 minutes; GPU=--rehearse without a card
	$(BIN)/python -m benchmarks.gpu $(GPU)

soak: $(STAMP) ## eight hours under load and change: does anything grow? SOAK='--minutes 10 --engine real' for less
	$(BIN)/python -m tests.soak $(SOAK)

answers: $(STAMP) ## a million answers while adapters and clients change: is each its caller's? ANSWERS='--engine real'
	$(BIN)/python -m tests.soak.answers $(ANSWERS)

$(TOOLS_STAMP): deploy/tools.txt
	$(PY) -m venv $(TOOLS)
	$(TOOLS)/bin/pip install -q --disable-pip-version-check -r deploy/tools.txt
	@touch $@

lock: $(TOOLS_STAMP) ## write requirements.lock (the image) and requirements-dev.lock (tests); UPGRADE=--upgrade for newer ones
	$(LOCK) pyproject.toml --extra standard --extra jwt --extra native --extra otel --extra postgres -o requirements.lock
	$(LOCK) pyproject.toml deploy/build.txt --extra dev --extra standard --extra native --extra train --extra pictures -c requirements.lock -o requirements-dev.lock
	$(LOCK) deploy/build.txt -c requirements-dev.lock -o deploy/build.lock

audit: $(TOOLS_STAMP) ## ask the advisory database about every package of the locks; fails where it cannot be asked
	$(PY) -m deploy.audit --pip-audit $(TOOLS)/bin/pip-audit requirements.lock requirements-dev.lock

wheel: $(SERVES) ## write dist/lora_router-VERSION-py3-none-any.whl, which serves from any folder; list what it serves
	$(BIN)/pip wheel -q --no-deps --wheel-dir dist .
	@wheel=$$(ls -t dist/lora_router-*.whl | head -1) && echo "$$wheel, $$(wc -c < $$wheel) bytes. Adapters and plugins in it (router/shipped.txt lists the files):" && \
	$(BIN)/python -m zipfile -l $$wheel | awk '$$1 ~ /_data\/(adapters|plugins)/ {split($$1, part, "/"); \
		bytes[part[3] "/" part[4]] += $$NF} END {for (one in bytes) printf "  %-32s %9d bytes\n", one, bytes[one]}' | sort

sbom: $(TOOLS_STAMP) ## write dist/sbom.cdx.json, the packages of the image (CycloneDX)
	@mkdir -p dist
	$(TOOLS)/bin/cyclonedx-py requirements requirements.lock --pyproject pyproject.toml --mc-type application \
		--output-reproducible -o dist/sbom.cdx.json

$(DOCS_STAMP): deploy/docs.txt
	$(PY) -m venv $(DOCS)
	$(DOCS)/bin/pip install -q --disable-pip-version-check -r deploy/docs.txt
	@touch $@

reference: $(STAMP) ## write docs/reference.md, and the tables in docs/cli.md
	$(BIN)/python -m deploy.reference

docs: $(DOCS_STAMP) ## make the documentation a site in SITE (site); fails where a link, an anchor or the list of pages is wrong
	$(MKDOCS) build --site-dir "$(abspath $(SITE))"
	@echo "$(SITE)/index.html; 'make docs-serve' shows it"

docs-serve: $(DOCS_STAMP) ## serve that site at 127.0.0.1:8008, made anew when a page changes
	$(MKDOCS) serve --dev-addr 127.0.0.1:8008

clean: ## remove what the targets here made (not the model cache)
	rm -rf $(VENV) $(TOOLS) $(DOCS) site dist build .pytest_cache .mypy_cache .ruff_cache
