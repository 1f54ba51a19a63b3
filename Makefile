# make demo   environment, install, two small experts made on the spot, merged, shown and verified
# make test   environment, install, everything that CI runs
# make test-all   the same, with the long laws in full
#
# make test took 6 to 8 minutes on two processors of an AMD EPYC (Turin), other work beside it. One file, without the rest:
#   .venv/bin/python -m pytest tests/plan/test_plan.py
# Tests run in one process for each processor; WORKERS=2 says another number, WORKERS=0 runs them one by one in this one.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check -q
# What is compiled is kept, also where the environment says otherwise: the tests start many hundred processes.
export PYTHONDONTWRITEBYTECODE =
WORKERS ?= logical
# All tests of a file go to one process, in order: they share what is made once. Each process computes in one thread, as there
# are others. No test is a benchmark, and that plugin has no use for several processes.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -p no:benchmark
LOWER_ROWS = lswap_core/errors.py,lswap_core/options.py,lswap_core/text/*,lswap_core/checkpoint/*,lswap_core/recipe/*,lswap_core/plan/*,lswap_core/analysis/*,lswap_core/kernels/difference.py,lswap_core/io/ports.py,lswap_core/io/traffic.py

.PHONY: demo test test-all check clean

demo: $(VENV)/installed
	rm -rf demo
	$(BIN)/python benchmarks/make_experts.py demo
	cd demo && ../$(BIN)/lswap-core merge --math math --lang lang --bottom 4 --top 2 --transition 2
	cd demo && ../$(BIN)/lswap-core verify math+lang-b4u2t2 --math math --lang lang

test: $(VENV)/tests-installed check
	$(PYTEST) --cov --cov-report=
	@$(BIN)/coverage report --skip-covered
	@$(BIN)/coverage report --include=$(LOWER_ROWS) --fail-under=100 > /dev/null || \
	  { $(BIN)/coverage report --include=$(LOWER_ROWS); echo "the lower rows must be covered, branches included"; exit 1; }

test-all: $(VENV)/tests-installed check
	LSWAP_LONG=1 $(PYTEST)

check: $(VENV)/tests-installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# In place; built again when what the native kernels are made of changes.
$(VENV)/installed: pyproject.toml $(shell find csrc -type f) | $(BIN)/python
	$(PIP) install -e .
	touch $@

# torch first and pinned: whatever asks for it later would bring a build of gigabytes. The package is there, so only what the
# extra names is installed. Most of its 20,000 files are never imported: those that are get compiled then.
$(VENV)/tests-installed: constraints.txt $(VENV)/installed
	$(PIP) install --no-compile -c constraints.txt torch
	$(PIP) install --no-compile -c constraints.txt 'lswap-core[test]'
	touch $@

clean:
	rm -rf $(VENV) demo build dist .coverage* .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks
