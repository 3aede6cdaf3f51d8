# The README's commands. `make` alone lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
READY := $(VENV)/.ready
export PATH := $(BIN):$(PATH)
export MLFLOW_DISABLE_TELEMETRY := true
export DVC_NO_ANALYTICS := 1
export DO_NOT_TRACK := 1

# One process for each core, each with one thread (tests/conftest.py); tests that share what takes long stay together.
PYTEST := python -m pytest -n logical --maxprocesses 4 --dist loadfile
# make test COV="--cov=medstyle --cov-report=term:skip-covered" tells which lines no test runs; it takes a third longer
COV ?=

.PHONY: help demo test slow lint docs bench serve lock clean

help:             ## list the commands
	@sed -nE 's/^([a-z]+):.*## (.*)/make \1\t\2/p' Makefile | expand -t 14

demo: $(READY)    ## train, measure and register the default model, then show what came out
	dvc repro
	@medstyle summary

test: $(READY)    ## run the tests
	$(PYTEST) $(COV)

slow: $(READY)    ## run the tests that take minutes
	$(PYTEST) -m slow

lint: $(READY)    ## check style, types and the direction of imports
	ruff check
	ruff format --check
	mypy
	lint-imports

docs: $(READY)    ## renew the generated reference pages
	python docs/generate.py

bench: $(READY)   ## run every benchmark
	@set -e; for script in $(wildcard benchmarks/*.py); do echo "== $$script"; python "$$script"; done

serve: $(READY)   ## serve the champion model on http://127.0.0.1:5101
	medstyle serve --host 127.0.0.1 --port 5101

# torch first and by itself: a looser request for it takes the newest build with gigabytes of CUDA libraries
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "medstyle needs Python 3.11 or newer: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' requirements.lock)"
	$(BIN)/python -m pip install --quiet -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps -e .
	@touch $@

# Whatever pyproject.toml allows today, pinned; torch keeps its version unless one is named: make lock TORCH=torch==2.14.0
TORCH ?= $(shell grep '^torch==' requirements.lock)
lock:             ## renew requirements.lock in a throw-away environment
	@set -e; dir=$$(mktemp -d); trap 'rm -rf "$$dir"' EXIT; \
	$(PYTHON) -m venv "$$dir"; \
	"$$dir/bin/python" -m pip install --quiet "$(TORCH)"; \
	"$$dir/bin/python" -m pip install --quiet ".[phantom,ops,dev]"; \
	"$$dir/bin/python" -m pip freeze --exclude medstyle | grep -viE '^(nvidia|cuda|triton)' | sed 's/+[^ ]*$$//' > "$$dir/lock"; \
	{ echo "# Made by make lock."; cat "$$dir/lock"; } > requirements.lock

clean:            ## remove caches of tools; results and the environment stay
	rm -rf build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .grimp_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +
