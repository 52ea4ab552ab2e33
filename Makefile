# Everything happens in .venv; nothing needs to be installed before.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: quickstart test test-all test-tpu lint clean

quickstart: $(VENV)/run
	$(BIN)/python -m ssljax.quickstart

test: $(VENV)/test
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow" --durations=12

test-all: $(VENV)/test
	$(BIN)/python -m pytest -n 2 --dist worksteal

# Every config's step, compiled for chips that need not be there.
test-tpu: $(VENV)-tpu/test
	$(VENV)-tpu/bin/python -m pytest -n 2 --dist worksteal tests/tpu

lint: $(VENV)/test
	$(BIN)/ruff check .

$(VENV)/run: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/test: $(VENV)/run
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test,dev]'
	touch $@

# An environment of its own: beside libtpu, profiling on a CPU crashes.
$(VENV)-tpu/test: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)-tpu
	$(VENV)-tpu/bin/pip install --quiet --disable-pip-version-check \
	  --editable '.[test,plan]'
	touch $@

# What was trained, in runs/, stays.
clean:
	rm -rf $(VENV) $(VENV)-tpu build *.egg-info
