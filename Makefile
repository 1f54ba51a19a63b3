# make demo   environment, install, two small experts made on the spot, merged, shown and verified
# make test   environment, install, everything that CI runs
# make test-all   the same, with the long laws in full

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check -q
LOWER_ROWS = lswap_core/errors.py,lswap_core/dtypes.py,lswap_core/difference.py,lswap_core/sizes.py,lswap_core/header.py,lswap_core/names.py,lswap_core/checkpoint.py,lswap_core/expressions.py,lswap_core/options.py,lswap_core/draft.py,lswap_core/compatibility.py,lswap_core/wire.py,lswap_core/documents.py,lswap_core/plan.py,lswap_core/manifest.py,lswap_core/zones.py,lswap_core/recipe.py,lswap_core/baselines.py,lswap_core/runs.py,lswap_core/shares.py,lswap_core/arrangement.py,lswap_core/layout.py,lswap_core/ports.py,lswap_core/changes.py,lswap_core/kinship.py,lswap_core/suggestion.py,lswap_core/lora.py

.PHONY: demo test test-all check clean

demo: $(BIN)/python
	$(PIP) install -e .
	rm -rf demo
	$(BIN)/python benchmarks/make_experts.py demo
	cd demo && ../$(BIN)/lswap_core merge --math math --lang lang --bottom 4 --top 2 --transition 2
	cd demo && ../$(BIN)/lswap_core verify math+lang-b4u2t2 --math math --lang lang

test: $(VENV)/tests-installed check
	$(BIN)/python -m pytest --cov --cov-report=
	@$(BIN)/coverage report --skip-covered
	@$(BIN)/coverage report --include=$(LOWER_ROWS) --fail-under=100 > /dev/null || \
	  { $(BIN)/coverage report --include=$(LOWER_ROWS); echo "the lower rows must be covered, branches included"; exit 1; }

test-all: $(VENV)/tests-installed check
	LSWAP_LONG=1 $(BIN)/python -m pytest

check: $(VENV)/tests-installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# torch first and pinned: whatever asks for it later would bring a build of gigabytes
$(VENV)/tests-installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install -c constraints.txt torch
	$(PIP) install -c constraints.txt -e '.[test]'
	touch $@

clean:
	rm -rf $(VENV) demo build dist .coverage* .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks
