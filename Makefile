# `make setup` once; `make demo`, `make test` call it themselves and re-install nothing that is there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export OMP_NUM_THREADS ?= 1

.PHONY: help setup demo model study consortium test bench docs picture lint clean

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

setup: $(STAMP) ## make .venv and install the pinned requirements

$(STAMP): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; assert sys.version_info[:2] >= (3, 11), "Python 3.11 or newer is needed, this is " + sys.version' 
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "python3 -m venv failed: on Debian and Ubuntu, apt-get install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: setup ## phantom data, FCL pre-training of 4 hospitals, fine-tuning, evaluation, report
	$(BIN)/python -m flare_app.demo

model: setup ## the weights that the bundle ships: the demo with a narrower network, stored in half precision
	$(BIN)/python -m flare_app.demo --workspace runs/model --channels 8 16 32 64 128 --finetune_epochs 30
	$(BIN)/fcl bundle weights runs/model/finetune_fcl/model_last.pt

study: setup ## how few annotated patients are enough, on made-up data: the study's quick preset, minutes
	$(BIN)/python -m flare_app.study --config bundle/configs/studies/phantom.json --preset quick --out runs/study

consortium: setup ## provision server and 4 hospitals on loopback, pre-train on made-up data, fetch the result
	$(BIN)/python -m flare_app.provision consortium

lint: setup ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint ## static checks, then all tests
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

bench: setup ## training step, slice cache and rounds, each with its table in runs/benchmarks; about ten minutes
	$(BIN)/python -m tests.benchmarks.training_step --out runs/benchmarks/training_step.json
	$(BIN)/python -m tests.benchmarks.slice_cache --out runs/benchmarks/slice_cache.json
	$(BIN)/python -m tests.benchmarks.rounds --light --out runs/benchmarks/rounds.md

docs: setup ## the tutorial's notebook from bundle/docs/tutorial.py; cells that did not change keep their outputs
	$(BIN)/jupytext --quiet --to ipynb --update bundle/docs/tutorial.py

picture: DEMO := runs/demo
picture: CASE := patient001_frame01
picture: PATIENT = $(firstword $(subst _, ,$(CASE)))
picture: demo ## the README's picture: one volume of the demo, as both of its networks segment it
	$(BIN)/python -m fcl.evaluation.side_by_side --out bundle/docs/demo.png --label rv=1 --label myo=2 --label lv=3 \
		--image $(DEMO)/phantom/$(PATIENT)/$(CASE).nii.gz --truth $(DEMO)/phantom/$(PATIENT)/$(CASE)_gt.nii.gz \
		random=$(DEMO)/evaluate_random/predictions/$(CASE).nii.gz fcl=$(DEMO)/evaluate_fcl/predictions/$(CASE).nii.gz

clean: ## remove runs and caches, keep .venv
	rm -rf runs .pytest_cache .mypy_cache .ruff_cache
