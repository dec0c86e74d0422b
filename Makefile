# Two commands on a fresh machine: `make fit` and `make test`. Both create .venv if it is missing.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
# Two processes of one thread each: a file's tests stay together, for what they share.
PYTEST := OMP_NUM_THREADS=1 $(RUN)/pytest --numprocesses 2 --dist loadfile

.PHONY: fit test test-slow lint

fit: $(VENV)/installed
	$(RUN)/python -m fsdtrain fit $(OVERRIDES)

test: $(VENV)/installed
	$(PYTEST) -m "not gpu and not slow"

test-slow: $(VENV)/installed
	$(PYTEST) -m "slow and not gpu"

lint: $(VENV)/installed
	$(RUN)/ruff check
	$(RUN)/ruff format --check
	$(RUN)/mypy fsdtrain backends
	$(RUN)/lint-imports

$(VENV)/installed: pyproject.toml constraints.txt
	test -x $(RUN)/python || $(PYTHON) -m venv $(VENV)
	$(RUN)/pip install --quiet --editable ".[dev]" --constraint constraints.txt
	touch $@
