# Everything happens in .venv; nothing needs to be installed before.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: quickstart test test-all lint clean

quickstart: $(VENV)/run
	$(BIN)/python -m ssljax.quickstart

test: $(VENV)/test
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow" --durations=12

test-all: $(VENV)/test
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(VENV)/test
	$(BIN)/ruff check .

$(VENV)/run: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/test: $(VENV)/run
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test,dev]'
	touch $@

clean:
	rm -rf $(VENV) runs build *.egg-info
