# The only entry point.  `make help` lists the targets.
SHELL := /bin/bash -euo pipefail
.DEFAULT_GOAL := help
.PHONY: help setup demo test check lint format types layers crds docs golden verify chart e2e e2e-long clean

VENV := .venv
BIN := $(VENV)/bin
UV_VERSION := 0.13.8
PYTHON ?= python3
# Two gloo ranks or two pytest workers share the machine: one thread each.
export OMP_NUM_THREADS ?= 1
export HF_HUB_OFFLINE := 1
# Without its bytecode, importing torch and transformers takes three times as long, in every process.
unexport PYTHONDONTWRITEBYTECODE

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(VENV)/.done ## make .venv with everything the other targets need

$(VENV)/.done: pyproject.toml uv.lock
	@$(PYTHON) -c 'import sys; assert (3, 11) <= sys.version_info < (3, 13), f"Python 3.11 or 3.12 is needed, this is {sys.version}: make PYTHON=python3.12"'
	@echo "setting up $(VENV): one to three minutes, 6 GB"
	@test -x $(BIN)/uv || { $(PYTHON) -m venv $(VENV) && $(BIN)/pip install --quiet --disable-pip-version-check uv==$(UV_VERSION); }
	@UV_PROJECT_ENVIRONMENT=$(VENV) $(BIN)/uv sync --quiet --frozen --inexact --all-extras
	@touch $@

demo: setup ## train, kill a rank, recover, evaluate, export: the main job without a cluster
	@$(BIN)/python examples/demo.py

test: setup ## unit and component tests, three to four minutes
	$(BIN)/pytest -n 2 --dist loadfile

check: lint types layers verify test ## all that needs no cluster

lint: setup ## ruff: format and rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

format: setup ## let ruff rewrite what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

types: setup ## mypy, strict
	$(BIN)/mypy operator/deepseek_operator trainer_image/deepseek_trainer cli/dstj

layers: setup ## the architecture as import contracts
	$(BIN)/lint-imports

crds: setup ## models -> crds/ and the chart
	$(BIN)/python -m deepseek_operator.crd

docs: setup ## models -> the tables of docs/
	$(BIN)/python -m deepseek_operator.apidocs
	$(BIN)/python tests/helm/readme.py

golden: setup ## rewrite the golden files; read the diff
	$(BIN)/pytest -q --update-golden tests/operator tests/cli tests/trainer -k golden
	git diff --stat

verify: setup ## generated files are up to date
	$(BIN)/python -m deepseek_operator.crd --check
	$(BIN)/python -m deepseek_operator.apidocs --check
	$(BIN)/python tests/helm/readme.py --check

chart: setup ## the chart under Helm, helm-unittest, kubeconform and promtool (needs Go)
	@$(BIN)/python tests/helm/tools.py
	$(BIN)/pytest tests/helm --timeout 300

# One process for the cluster, one for the rest; see tests/e2e/conftest.py.
E2E := $(BIN)/pytest tests/e2e --timeout 900 -v -n 2 --dist loadfile
e2e: setup cluster-build ## the slower tier: whole jobs as real processes and in real pods; as root, with Go
	$(E2E) -m "not long" --file-limit 300

e2e-long: setup cluster-build ## long stories that guard against what rarely breaks: crash storms, rare settings
	$(E2E) -m long

include tests/e2e/cluster/cluster.mk

clean: ## remove what the targets made, the environment too
	rm -rf $(VENV) .dstj .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis build
	find . -name __pycache__ -prune -exec rm -rf {} +
