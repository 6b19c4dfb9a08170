# Everything a person types. Each target makes its own environment first; nothing but Python >= 3.11 and make is needed.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
DATA := $(wildcard ../shared/data/nuclei/labelled ../shared/data/everyday)

.PHONY: help install demo test test-fast lint lock weights clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(STAMP)  ## make .venv with the pinned packages and gapmap itself

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "gapmap needs Python 3.11 or newer; $(PYTHON) is older. Try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade uv
	SAM2_BUILD_CUDA=0 $(BIN)/uv pip install --quiet --python $(BIN)/python -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	$(BIN)/gapmap doctor --quiet
	@touch $@

demo: install  ## label a sample pool and show the ten most uncertain masks
	$(BIN)/python -m flows.demo

test: install lint  ## what CI runs: ruff, mypy, and every test that needs no long run
	$(BIN)/python -m pytest -m "not slow"

test-slow: install  ## real Prefect server and worker, ten kills, concurrent writers, large models
	$(BIN)/python -m pytest -m slow

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lock: install  ## pin what pyproject.toml asks for, names and versions only
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --group dev --no-annotate --no-header --upgrade pyproject.toml -o requirements.lock

weights: install  ## train sam-nano, then sam2-mini from it (an hour or two each on a CPU; goes on where it was)
	$(BIN)/python -m engine.learn.pretrain sam-nano --data $(DATA) --steps 3000 --scenes 1200
	cp runs/sam-nano/sam-nano.safetensors weights/
	$(BIN)/python -m engine.learn.pretrain sam2-mini --data $(DATA) --start weights/sam-nano.safetensors --dense 0 --rate 3e-4 --steps 560 --scenes 400
	cp runs/sam2-mini/sam2-mini.safetensors weights/

clean:  ## remove the environment and what the demo made
	rm -rf .venv gapmap-demo *.egg-info
