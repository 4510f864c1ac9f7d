# Every target makes .venv if there is none. PYTHON names the interpreter it is made with.
PYTHON ?= python3
BIN := .venv/bin
DEMO ?= runs/quickstart
# One thread per worker: two workers share two cores, and oversubscribed threads are slower than one each.
# Files in their order: sorted by the number of their tests, the longest ones would come last.
# Temporary files in memory where there is room for them: the tests save thousands of small files, each synced to disk.
ROOM := $(shell test -w /dev/shm && df -k /dev/shm | awk 'NR == 2 && $$4 > 4000000 {print "/dev/shm"}')
PYTEST = $(if $(ROOM),PYTEST_DEBUG_TEMPROOT=$(ROOM)) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -q

.PHONY: demo test test-all coverage lint format

demo: .venv/.installed
	$(BIN)/python tools/quickstart.py --out $(DEMO)

test: lint
	$(PYTEST) -m "not slow"

test-all: lint .venv/.installed-all
	$(PYTEST)

coverage: .venv/.installed-dev
	$(PYTEST) -m "not slow" --cov --cov-report=term-missing:skip-covered

lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	mkdir -p .venv/source && ln -sfn ../../tools .venv/source/supernet_tools
	$(BIN)/mypy

format: .venv/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.installed: pyproject.toml | .venv/bin/python
	$(BIN)/pip install --quiet --editable .
	touch $@

.venv/.installed-dev: pyproject.toml | .venv/bin/python
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@ .venv/.installed

.venv/.installed-all: pyproject.toml | .venv/bin/python
	$(BIN)/pip install --quiet --editable ".[dev,onnx,optuna,video]"
	touch $@ .venv/.installed-dev .venv/.installed
