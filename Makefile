# Everything a person needs from a fresh clone: only Python >= 3.11, make, git and a C compiler are taken for granted.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check format clean

demo: .venv/installed
	$(BIN)/ringmark demo

# Two tests at a time: most of them wait for processes to start. Those that share a cluster or a long run stay together.
test: .venv/installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadgroup

check: .venv/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_layers.py

format: .venv/installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

.venv/installed-dev: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch .venv/installed $@

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis runs/demo
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
