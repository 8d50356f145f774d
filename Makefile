# Everything happens in .venv, which is made the first time. torch comes first: what asks for it later must not bring another build.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt

.PHONY: demo test test-changed parity mutation lint types docs clean

demo: .venv/plait
	$(BIN)/plait demo

test: lint types .venv/test
	$(BIN)/python -m pytest -n 2

# what differs from main, committed or not, can reach no more than this
test-changed: .venv/test
	$(BIN)/python -m pytest -n 2 --changed

parity: .venv/test
	$(BIN)/python -m tests.parity
	$(BIN)/python -m pytest -m parity_all

lint: .venv/test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

# does it notice a wrong number in any size's row? slower still
mutation: .venv/test
	$(BIN)/python -m tests.parity.mutation

# the rooms that pyproject.toml names
types: .venv/test
	$(BIN)/mypy

docs: .venv/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf .venv site

.venv/torch: constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) torch
	@touch $@

.venv/plait: .venv/torch pyproject.toml
	$(PIP) -e .
	@touch $@

.venv/test: .venv/plait
	$(PIP) -e '.[test,peers]'
	@touch $@

.venv/docs: .venv/plait
	$(PIP) -e '.[docs]'
	@touch $@
