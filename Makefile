# `make demo` shows it, `make test` checks it, `make compat` checks it on every supported version of datasets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
COMPAT_VERSIONS := 2.16.1 3.6.0 4.8.5 5.2.0
PIP := -m pip install --quiet --disable-pip-version-check

# What the LLaVA trainers pin beside datasets 2.16.1.
PINS_2.16.1 := numpy==1.26.1 pyarrow==15.0.2 huggingface_hub==0.22.2

.PHONY: demo test lint types unit compat bench clean
# Else make takes the marks for intermediate files, removes them, and installs the environments anew each time.
.PRECIOUS: .venvs/%/.installed

demo: $(VENV)/.runtime
	$(BIN)/python tools/demo.py

test: lint types unit

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

unit: $(VENV)/.dev
	$(BIN)/pytest -n 2 --ignore tests/compat

# One environment per version, with this package installed as a wheel: the tests load from the checkout and from elsewhere.
# All versions must give the same samples, so each leaves a digest for the next.
compat:
	rm -rf .venvs/digests && mkdir -p .venvs/digests
	$(MAKE) --no-print-directory $(COMPAT_VERSIONS:%=compat-%)

compat-%: .venvs/%/.installed
	.venvs/$*/bin/python $(PIP) --no-deps --force-reinstall .
	.venvs/$*/bin/python -m pytest -q -p no:cacheprovider -o filterwarnings=default tests/compat

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/run.py

$(VENV)/.runtime: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP) -e .
	touch $@

$(VENV)/.dev: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP) -e '.[dev]'
	touch $@ $(VENV)/.runtime

.venvs/%/.installed: pyproject.toml
	$(PYTHON) -m venv .venvs/$*
	.venvs/$*/bin/python $(PIP) datasets==$* $(PINS_$*) torch==2.13.0 pytest .
	touch $@

clean:
	rm -rf $(VENV) .venvs dist build .pytest_cache .mypy_cache .ruff_cache
