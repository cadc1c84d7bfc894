# Every target creates .venv if it is missing. RECIPE=, RUN= and ARGS= are passed to the scripts.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUNS := $(or $(LATENTDIFF_RUNS),runs)

.DEFAULT_GOAL := help
.PHONY: help venv demo test fast lint train-ae train-diffusion sample bench bench-demo

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'
	@echo "  variables: RECIPE=file.py RUN=folder ARGS='train.lr=1e-4 ...'"

venv: $(VENV)/ready  ## create .venv with the package and everything the tests need

$(VENV)/ready: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[test,progress]'
	@touch $@

demo: venv  ## train both stages on rendered shapes, evaluate, generate images: about 10 minutes on two cores with bf16
	$(BIN)/python train_autoencoder.py recipes/autoencoder/demo.py
	$(BIN)/python train_diffusion.py recipes/diffusion/demo.py
	$(BIN)/python evaluate.py demo --summary
	$(BIN)/python sample.py --run demo --output $(RUNS)/demo/images --num-images 4 \
		--prompt "a large red star above a small blue circle on a gray background" \
		--prompt "a small yellow triangle left of a large green square on a black background"

test: venv lint  ## lint, then all tests
	$(BIN)/python -m pytest

fast: venv  ## the tests that take at most a few seconds each
	$(BIN)/python -m pytest -m "not slow"

lint: venv  ## ruff: errors and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

train-ae: venv  ## train stage one: RECIPE= (default recipes/autoencoder/demo.py)
	$(BIN)/python train_autoencoder.py $(RECIPE) $(ARGS)

train-diffusion: venv  ## train stage two: RECIPE= (default recipes/diffusion/demo.py)
	$(BIN)/python train_diffusion.py $(RECIPE) $(ARGS)

sample: venv  ## generate images: RUN= and ARGS='--prompt "..."'
	$(BIN)/python sample.py $(if $(RUN),--run $(RUN)) $(ARGS)

bench: venv  ## speed and memory compared with diffusers: docs/benchmarks.md
	$(BIN)/python -m benchmarks speed $(ARGS)

bench-demo: venv  ## the current demo compared with that of the reference commit, about half an hour
	$(BIN)/python -m benchmarks demo $(ARGS)
