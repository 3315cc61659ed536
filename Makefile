# make demo | test | lint | bench | stages: each sets up what it needs by itself (Python 3.11+).
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: demo test lint bench stages clean

demo: $(READY)
	$(BIN)/recaption demo demo

test: $(READY)
	$(BIN)/pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)
	$(BIN)/python -m tests.bench

# README's stage table comes from the stages' declarations; a test fails when it is stale.
stages: $(READY)
	$(BIN)/python -m pipelines.readme

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[stages,dev]"
	touch $(READY)

clean:
	rm -rf $(VENV) demo build *.egg-info
