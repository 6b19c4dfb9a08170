# Everything a person types. Each target makes its own environment first; nothing but Python >= 3.11 and make is needed.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
# Labelled sets for `make weights`, as COCO folders; without any, procedural scenes alone.
DATA := $(wildcard ../shared/data/nuclei/labelled ../shared/data/everyday)
# The version whose ways the review room knows; its packages are apart from gapmap's.
LABEL_STUDIO := 1.23.2
EVERY_CORE := --numprocesses=auto --dist=loadgroup
PRETRAIN := $(BIN)/python -m engine.learn.pretrain
LEARN_FROM := $(if $(DATA),--data $(DATA))

FIT := $(BIN)/gapmap fit-heads --replace --tokens runs/tokens --scenes 150 --calibrate-on scenes $(foreach set,$(DATA),--data $(set))
REFINE := $(BIN)/gapmap fit-refiner --replace --scenes 300 --rate 6e-4 $(foreach set,$(DATA),--data $(set))
JUDGE := $(foreach set,$(wildcard ../shared/data/blood-cells ../shared/data/car-parts ../shared/data/salient),--evaluate-on $(set))

.PHONY: help install demo review test test-fast lint lock weights heads refiners clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(STAMP)  ## make .venv with the pinned packages and gapmap itself

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "gapmap needs Python 3.11 or newer; $(PYTHON) is older. Try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade uv
	SAM2_BUILD_CUDA=0 $(BIN)/uv pip install --quiet --python $(BIN)/python -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	PREFECT_API_URL= $(BIN)/gapmap doctor --quiet
	@touch $@

demo: install  ## a whole round on a sample pool, with a simulated annotator, to its report
	$(BIN)/python -m flows.demo

review: install  ## a Label Studio server for the people who answer, on this machine; Ctrl-C ends it
	$(BIN)/gapmap review-server

test: install lint  ## what CI runs: ruff, mypy, and every test, the long ones against real servers too
	$(BIN)/python -m pytest $(EVERY_CORE)

test-fast: install lint  ## the same without the long ones
	$(BIN)/python -m pytest $(EVERY_CORE) -m "not slow"

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lock: install  ## pin what pyproject.toml asks for, names and versions only
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --group dev --no-annotate --no-header --upgrade pyproject.toml -o requirements.lock
	echo "label-studio==$(LABEL_STUDIO)" | $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-annotate --no-header --upgrade - -o label-studio.lock

weights: install  ## train sam-nano, then sam2-mini from it (an estimated half a day on one core, far less on a GPU; goes on where it was)
	$(PRETRAIN) sam-nano --steps 3000 --folder runs/sam-nano-1 $(LEARN_FROM)
	$(PRETRAIN) sam-nano --start runs/sam-nano-1/sam-nano.safetensors --dense 0 --steps 5000 --seed 1 --folder runs/sam-nano-2 $(LEARN_FROM)
	$(PRETRAIN) sam-nano --start runs/sam-nano-2/sam-nano.safetensors --dense 0 --images 32 --rate 8e-4 --steps 2200 --seed 2 --folder runs/sam-nano-3 $(LEARN_FROM)
	cp runs/sam-nano-3/sam-nano.safetensors weights/
	$(PRETRAIN) sam2-mini --start weights/sam-nano.safetensors --dense 0 --images 8 --rate 3e-4 --steps 400 --folder runs/sam2-mini $(LEARN_FROM)
	cp runs/sam2-mini/sam2-mini.safetensors weights/

heads: install  ## fit the heads of both models to scenes and the labelled sets (half an hour on two cores; goes on where it was)
	$(FIT) --model sam2-mini $(JUDGE)
	$(FIT) --model sam-nano --larger sam2-mini $(JUDGE)

refiners: install  ## fit the refiners of both models to scenes and the labelled sets (half an hour on two cores; goes on where it was)
	$(REFINE) --model sam-nano --steps 1000
	$(REFINE) --model sam2-mini --steps 700

clean:  ## remove the environment and what the demo made
	rm -rf .venv gapmap-demo *.egg-info
