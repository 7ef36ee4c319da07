# make PYTHON=python3.12: another interpreter to build the environment with.
# make VENV=somewhere:     another place for it.
# make run ARGS=...:       options of `retinue serve`; of pytest after `make test`.
PYTHON ?= python3
VENV   ?= .venv
UV     ?= uv
ARGS   ?=
BIN    := $(VENV)/bin

# Stamps say what is installed, and from where, so that an unchanged checkout starts at once.
key     = $(shell { pwd; cat pyproject.toml $(1); } | cksum | cut -d' ' -f1)
BASE   := $(VENV)/.base-$(call key,requirements.lock)
DEV    := $(VENV)/.dev-$(call key,requirements-dev.lock)

.PHONY: help install run test check bench fmt clean lock
.DEFAULT_GOAL := help

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "make %-9s %s\n", $$1, $$2}' Makefile

install: $(BASE) ## Make .venv with Retinue and its local model runtime

run: install ## Serve on 127.0.0.1:9000 (the first time: install, then fetch the small model)
	@$(BIN)/retinue serve $(ARGS)

test: $(DEV) ## Install what the tests need, and run them
	@$(BIN)/python -m retinue_agents.models.weights
	@$(BIN)/python -m pytest -n 4 --dist worksteal $(ARGS)

check: $(DEV) ## Lint, formatting, types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/pyright --pythonpath $(BIN)/python

bench: install ## Measure the start, what a task costs beside the bare a2a-sdk, a slow memory, recall (ARGS="--quick server")
	@$(BIN)/python -m benchmarks $(ARGS)

fmt: $(DEV) ## Format the code
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

clean: ## Remove the environment and caches; databases in var/ stay
	@if [ -e $(VENV)/pyvenv.cfg ]; then rm -rf $(VENV); fi
	@rm -rf build dist .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# With hashes, for every platform, without the address of an index. The second file never contradicts the first.
COMPILE = $(UV) pip compile pyproject.toml --quiet --universal --python-version 3.11 --group build \
  --generate-hashes --no-header --no-annotate --no-emit-index-url --no-emit-find-links $(ARGS)

lock: ## Lock the dependencies anew, with uv (ARGS=--upgrade: to their newest versions)
	@command -v $(UV) >/dev/null || { echo "make lock needs uv: pip install uv, or make lock UV=path/to/uv" >&2; exit 1; }
	@$(COMPILE) --all-extras --group dev --output-file requirements-dev.lock
	@$(COMPILE) --extra local --constraints requirements-dev.lock --output-file requirements.lock

# The tests' environment contains the base one.
$(DEV): STAMPS = $(DEV) $(BASE)
$(BASE): STAMPS = $(BASE)

$(BASE): | requirements.lock
$(DEV): | requirements-dev.lock
$(BASE) $(DEV):
	@VENV='$(VENV)' PYTHON='$(PYTHON)' sh .ci/install $|
	@rm -f $(VENV)/.base-* $(VENV)/.dev-*
	@touch $(STAMPS)
