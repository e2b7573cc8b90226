# Every target makes what it needs on first use and is quick after. `make demo` is the one to start with.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test check compat bench notebooks figures clean

demo: $(VENV)/.installed
	$(BIN)/lofit-lens demo

# Tiny models gain nothing from a second thread, so these tests run side by side; the real models' have the machine to themselves.
SIDE_BY_SIDE := -n auto --maxprocesses 4

test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(SIDE_BY_SIDE) tests/unit tests/contract
	$(BIN)/python -m pytest tests/real

check: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/python -m pytest -q tests/unit/test_rooms.py

# The model contract once more on the oldest supported TransformerLens, which still has HookedTransformer.
compat: .venv-tl3/.installed
	OMP_NUM_THREADS=1 .venv-tl3/bin/python -m pytest $(SIDE_BY_SIDE) tests/contract

bench: $(VENV)/.installed
	$(BIN)/python -m pytest -s tests/benchmarks -o python_files='bench_*.py'

figures: $(VENV)/.figures
	$(BIN)/lofit-lens figures

notebooks: $(VENV)/.notebooks
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -rA -n 2 --nbmake --nbmake-timeout=600 notebooks

clean:
	rm -rf .venv .venv-tl3

# torch goes in first and exactly pinned: a CPU build found on disk or in a wheel house is taken, and nothing replaces it.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

$(VENV)/.figures $(VENV)/.notebooks: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[$(subst .,,$(notdir $@))]'
	touch $@

.venv-tl3/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-tl3
	sed 's/^transformer-lens==.*/transformer-lens==3.9.0/' constraints.txt > .venv-tl3/constraints.txt
	.venv-tl3/bin/pip install --quiet --disable-pip-version-check --constraint .venv-tl3/constraints.txt torch
	.venv-tl3/bin/pip install --quiet --disable-pip-version-check --constraint .venv-tl3/constraints.txt --editable '.[dev]'
	touch $@
