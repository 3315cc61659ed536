# make demo | test | fuzz | lint | bench | docs | manifests | lock: each sets up what it needs by itself (Python 3.11+).
# make images needs Docker.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

IMAGE  ?= recaption
TAG    ?= $(shell git describe --always --dirty)

.PHONY: demo test fuzz lint bench docs stages manifests lock images clean

demo: $(READY)
	$(BIN)/recaption demo demo

test: $(READY)
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

# Other hostile inputs every time; what misbehaves says how to run it again.
fuzz: $(READY)
	$(BIN)/python -m tests.fuzz

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tests.lint.docstrings

bench: $(READY)
	$(BIN)/python -m tests.bench

# Parts of README.md and docs/ come from declarations, models and constants; a test fails when one is stale.
docs stages: $(READY)
	$(BIN)/python -m pipelines.pages

# manifests/crd comes from the recipe's models; a test fails when it is stale.
manifests: $(READY)
	$(BIN)/python -m pipelines.operator.crd.generate

# The images' versions are those that the tests ran with.
lock: $(READY)
	$(BIN)/pip list --format=freeze --exclude-editable --exclude pip --exclude setuptools > images/constraints.txt

images:
	set -e; for target in operator cpu gpu; do \
	  docker build $(BUILD) -f images/Dockerfile --target $$target -t $(IMAGE)-$$target:$(TAG) .; done

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[stages,dev]"
	touch $(READY)

clean:
	rm -rf $(VENV) demo build *.egg-info
