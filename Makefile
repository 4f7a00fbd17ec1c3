# Two commands: `make quickstart` runs a whole study, `make test` checks everything that is quick.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: quickstart test test-all lint setup setup-dev clean

quickstart: setup  ## A study on a real model: about ten minutes on two CPU cores
	$(BIN)/prefixlab run studies/quickstart.yaml --out runs/quickstart

test: setup-dev lint  ## Lint, types, unit and smoke tests
	$(BIN)/pytest -n auto --dist worksteal --durations=15 -m "not slow and not gpu"

test-all: test  ## The same, then the slow tests, one at a time: some of them want the whole machine
	$(BIN)/pytest -n 0 --durations=15 -m "slow and not gpu"

lint: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

setup: $(VENV)/.installed
setup-dev: $(VENV)/.installed-dev

# torch first and alone: elsewhere a newer one could be chosen, and on Linux PyPI's brings several GB for GPUs.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --requirement requirements-dev.txt
	touch $@

clean:  ## Remove what the tests and tools left; keeps runs/ and .venv/
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
