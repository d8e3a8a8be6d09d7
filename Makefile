# `make train` and `make test` set up what they need, once; nothing but Python 3.11+ and make is assumed.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
BIN := $(VENV)/bin
# Longest first.
STUDIES := pcasgd local_steps resnet18 convergence slow_and_stale gpt references staleness_aware dc_asgd self_choosing runtime_theory rivals byzantine rivals.asynchrony rivals.convex rivals.federated rivals.momentum rivals.pairs

.PHONY: train compare test test-all studies check format lock clean

train: $(READY)  ## Eight Ray actors with stale neighbors; the very same schedule under other rules; a run without delays
	@rm -rf runs/first runs/first-published runs/first-under-d-asgd runs/first-undelayed
	$(BIN)/ray-pcasgd train --name first
	$(BIN)/ray-pcasgd replay runs/first --name first-published --set algorithm.theta=0.2
	$(BIN)/ray-pcasgd replay runs/first --name first-under-d-asgd --set algorithm=d-asgd
	$(BIN)/ray-pcasgd train --engine local --name first-undelayed --set algorithm=d-psgd --set 'links=[]'
	$(BIN)/ray-pcasgd report runs/first runs/first-published runs/first-under-d-asgd runs/first-undelayed \
		--output runs/first.html

compare: $(READY)  ## All methods under the same schedule
	$(BIN)/ray-pcasgd compare

test: $(READY)  ## The test suite, in minutes
	$(BIN)/python -m pytest -n logical tests/unit ray_pcasgd
	$(BIN)/python -m pytest -n 2 --dist worksteal tests/ray tests/engines tests/cli

test-all: $(READY)  ## The slow tests as well: every fault, every family on real actors, the mock of the cloud
	$(BIN)/python -m pytest -m "" --hypothesis-profile=whole -n logical tests/unit ray_pcasgd
	$(BIN)/python -m pytest -m "" tests/cli tests/engines tests/ray

studies: $(READY)  ## Every study at its smallest scale, two at a time
	@$(MAKE) --no-print-directory --jobs=2 $(STUDIES:%=study-%)

study-%: $(READY)
	$(BIN)/python -m experiments.$* --scale smoke --processes 1

check: $(READY)  ## Lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: $(READY)  ## Pin anew what pyproject.toml asks for
	$(BIN)/uv pip compile --universal --upgrade --no-emit-index-url --no-header --no-annotate --python-version 3.11 \
		pyproject.toml --group dev -o requirements.lock

$(READY): requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --compile-bytecode -r requirements.lock
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --no-deps -e .
	touch $(READY)

clean:
	rm -rf $(VENV)
