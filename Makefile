# make demo | test | fuzz | lint | bench | docs | manifests | lock: each sets up what it needs by itself (Python 3.11+).
# make images needs Docker.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

IMAGE  ?= recaption
TAG    ?= $(shell git describe --always --dirty)
# The images' base, such as python:3.11-slim-bookworm@sha256:…
PYTHON_IMAGE ?=
SBOM   := build/sbom

.PHONY: demo test fuzz lint bench docs stages manifests lock images sbom clean

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

# The images' versions are those that the tests ran with; their files are those that the index has today.
lock: $(READY)
	$(BIN)/pip list --format=freeze --exclude-editable --exclude pip --exclude setuptools > images/constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check uv
	$(BIN)/python images/lock.py

# Beside each image a list of what is in it, as CycloneDX has it: Python's packages, with the hashes that pip checked.
images: $(READY)
	@case "$(PYTHON_IMAGE)" in *@sha256:*) ;; *) echo "PYTHON_IMAGE: found '$(PYTHON_IMAGE)'; expected a base image by" \
	  "its digest, python:3.11-slim-bookworm@sha256:…, as docker buildx imagetools inspect shows it" >&2; exit 42;; esac
	set -e; for target in operator cpu gpu; do \
	  docker build $(BUILD) --build-arg PYTHON_IMAGE=$(PYTHON_IMAGE) -f images/Dockerfile --target $$target \
	    -t $(IMAGE)-$$target:$(TAG) .; done
	$(MAKE) sbom

sbom: $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check cyclonedx-bom
	mkdir -p $(SBOM)
	set -e; lists=; for target in operator cpu gpu; do lists="$$lists images/$$target.txt"; \
	  cat $$lists | $(BIN)/cyclonedx-py requirements - --pyproject pyproject.toml --of JSON -o $(SBOM)/$$target.json; done

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[stages,dev]"
	touch $(READY)

clean:
	rm -rf $(VENV) demo build *.egg-info
