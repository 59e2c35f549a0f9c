# make train GAME=Pong [ARGS="--preset cpu --steps 2000"]     make test
# Each makes .venv first, once, from constraints.txt. PYTHON=python3.12 picks another interpreter for it.

PYTHON ?= python3
GAME ?= Pong
ARGS ?=
REF ?=

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: help train test lint test-fast test-slow bench bench-compare counts results clean
.DEFAULT_GOAL := help

help:
	@sed -n '1,2s/^# //p' Makefile
	@echo "make lint | test-fast | test-slow | clean"
	@echo "make bench [ARGS=\"--device cuda\"] | bench-compare [REF=main] [ARGS=...] | counts | results"

train: $(INSTALLED)
	@$(BIN)/stormfast train --game "$(GAME)" $(ARGS)

test: lint test-fast

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/mypy

test-fast: $(INSTALLED)
	$(BIN)/python -m pytest

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m "slow and not gpu"

bench: $(INSTALLED)
	$(BIN)/python -m pytest bench --save $(ARGS)

bench-compare: export REF := $(REF)
bench-compare: $(INSTALLED)
	$(BIN)/python bench/compare.py $(if $(REF),--against "$$REF") $(ARGS)

counts: $(INSTALLED)
	$(BIN)/python -m bench.counts --write

results: $(INSTALLED)
	$(BIN)/python -m bench.tables $(ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .benchmarks

$(INSTALLED): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "stormfast needs Python 3.11 to 3.13, but there is no $(PYTHON); install one, or name it: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "stormfast needs Python 3.11 to 3.13, but $(PYTHON) is $$($(PYTHON) -V 2>&1); name another: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
	  || { echo "$(PYTHON) lacks the venv module; on Debian: apt install python3-venv"; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV): once, some minutes ..."
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -e ".[dev]" -c constraints.txt
	@touch $@
