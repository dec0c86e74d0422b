# Two commands on a fresh machine: `make fit` and `make test`. Both create .venv if it is missing.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin

.PHONY: fit test test-slow lint

fit: $(VENV)/installed
	$(RUN)/python -m fsdtrain fit $(OVERRIDES)

test: $(VENV)/installed
	$(RUN)/pytest -m "not gpu and not slow"

test-slow: $(VENV)/installed
	$(RUN)/pytest -m "slow and not gpu"

lint: $(VENV)/installed
	$(RUN)/ruff check
	$(RUN)/ruff format --check
	$(RUN)/mypy fsdtrain backends
	$(RUN)/lint-imports

$(VENV)/installed: pyproject.toml constraints.txt
	test -x $(RUN)/python || $(PYTHON) -m venv $(VENV)
	$(RUN)/pip install --quiet --editable ".[dev]" --constraint constraints.txt
	touch $@
