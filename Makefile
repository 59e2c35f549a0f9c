# make train GAME=Pong [ARGS="--preset cpu --steps 12000"]     make test
# Each makes .venv first, once, from constraints.txt. PYTHON=python3.12 picks another interpreter for it.

PYTHON ?= python3
GAME ?= Pong
ARGS ?=
REF ?=
WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# A file's tests run in one worker, in order; files begin in the order of tests/conftest.py.
PARALLEL := -n $(WORKERS) --dist loadfile --no-loadscope-reorder

# Types are checked beside the tests, which keep a core waiting at times; both must hold.
checked = @$(BIN)/mypy & types=$$!; $(BIN)/python -m pytest $(PARALLEL) $(1) $(ARGS); tests=$$?; wait $$types && exit $$tests

.PHONY: help train earn test test-all test-slow lint style counts results bench bench-compare clean
.DEFAULT_GOAL := help

help:
	@sed -n '1,2s/^# //p' Makefile
	@echo "make test [WORKERS=2] | style | lint (style and types) | test-all (with the tests of what measures) | test-slow | clean"
	@echo "make earn [ARGS=\"--next 3\"]: trains what the table of results lacks next, on one core that nothing else wants"
	@echo "make counts | results | bench [ARGS=\"--device cuda\"] | bench-compare [REF=main] [ARGS=...]"

train: $(INSTALLED)
	@$(BIN)/stormfast train --game "$(GAME)" $(ARGS)

# The next (game, seed) that the table in bench/results/learning lacks; hours of one core. A call that was stopped goes on.
# Results of older commits stay until they are replaced: ARGS=--replace-older.
earn: $(INSTALLED)
	@$(BIN)/stormfast study table --preset cpu --next 1 --low-priority --out runs/earn --results bench/results/learning $(ARGS)

# The product, and the exact counts of launches and host reads that every change must keep or name.
test: style
	$(call checked,-m "(not instruments or counts) and not slow and not gpu")

test-all: style
	$(call checked)

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m "slow and not gpu" $(ARGS)

lint: style
	$(BIN)/mypy

style: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# After a change of them that is meant: counts anew, and the tables that show them.
counts: $(INSTALLED)
	$(BIN)/python -m bench.counts --write
	$(BIN)/python -m bench.tables

results: $(INSTALLED)
	$(BIN)/python -m bench.tables $(ARGS)

bench: $(INSTALLED)
	$(BIN)/python -m pytest bench --save $(ARGS)

bench-compare: export REF := $(REF)
bench-compare: $(INSTALLED)
	$(BIN)/python -m bench.compare $(if $(REF),--against "$$REF") $(ARGS)

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
