# What the README promises: `make demo` and `make test` do everything on a machine with Python 3.11+ and a C compiler.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SOURCES := $(shell find src -name '*.pxd' -o -name '*.h' -o -name 'CMakeLists.txt') $(shell find src/pagepool/_core src/pagepool/drivers -name '*.py') CMakeLists.txt pyproject.toml

.PHONY: build demo test lint bench test-vm clean

build: $(VENV)/.built

$(VENV)/.made: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "pagepool: installing build tools and test libraries into $(VENV)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check 'scikit-build-core>=1.1' 'cython-cmake>=0.3' 'cython>=3.3.1' 'cmake>=3.21' ninja
	@touch $@

$(VENV)/.built: $(VENV)/.made $(SOURCES)
	@echo "pagepool: building"
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pip install -q --disable-pip-version-check --no-build-isolation -Cbuild-dir=build/editable -e '.[test]'
	@touch $@

# make bench BENCH="--quick handles", make bench BENCH=--peers
bench: build
	@$(BIN)/python -m benchmarks --json build/bench.json $(BENCH)

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
