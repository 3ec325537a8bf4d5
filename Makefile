# `make demo` and `make test` do everything on a machine with Python 3.11+ (and its headers), a C compiler and PyPI.
# The first call makes .venv and builds; later ones build what has changed. Nothing outside this folder is touched.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && exit; done; echo python3)
VENV ?= .venv
SECONDS ?= 5
BIN := $(VENV)/bin
comma := ,
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check
SOURCES := $(shell find src -name '*.pxd' -o -name '*.h') $(shell find src/pagepool -path '*/_core/*.py' -o -name '_[a-z]*.py') \
	CMakeLists.txt pyproject.toml

.PHONY: demo test lint bench test-vm test-python test-ft test-asan build clean

demo: build             ## receive for SECONDS into recycled pages and show the pool at work
	@$(BIN)/pagepool rx --seconds $(SECONDS)

test: build $(VENV)/.libraries  ## every test that this machine can run; CI=true: what this kind of machine can do must not skip
	$(BIN)/python -m pytest $(if $(filter true,$(CI)),--require=$$($(BIN)/python tests/required.py)$(addprefix $(comma),$(REQUIRE))) $(ARGS)

lint: build $(VENV)/.lint   ## style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy examples/*.py
	$(BIN)/mypy -p benchmarks

bench: build $(VENV)/.libraries  ## the benchmarks, with their tables; BENCH="--quick handles", BENCH=--peers
	@$(BIN)/python -m benchmarks --json build/bench.json $(BENCH)

test-vm: build          ## devices that need a machine of their own, in QEMU; see tests/vm/README.md
	PYTHON=$(abspath $(BIN)/python) tests/vm/test-vm.sh $(ARGS)

# Everything on another Python, built once from a distribution's source where this machine has it not.
PYTHON_VERSION ?= 3.14t
test-python: build      ## PYTHON_VERSION=3.12: 3.11 to 3.14, 3.13t and 3.14t (t: without a GIL)
	PYTHON=$(abspath $(BIN)/python) tests/on_python.sh $(PYTHON_VERSION) $(ARGS) || test "$$?$(CI)" = 77

test-ft: test-python    ## the same without a GIL

test-asan: build        ## the core, the rings and Arrow built for AddressSanitizer and, where cheap, UBSan; SANITIZE=...
	PYTHON=$(abspath $(BIN)/python) tests/sanitized.sh $(ARGS)

build: $(VENV)/.built

$(VENV)/.made: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "pagepool: needs Python 3.11 or newer, this is %d.%d" % sys.version_info[:2])'
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo 'pagepool: this Python makes no virtual environments (Debian: apt-get install python3-venv)'; exit 1; }
	@$(PYTHON) -c 'import os, sys, sysconfig; h = os.path.join(sysconfig.get_path("include"), "Python.h"); sys.exit(None if os.path.exists(h) else "pagepool: no %s (Debian: apt-get install python3-dev)" % h)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "pagepool: installing build tools into $(VENV)"
	@$(PIP) 'pip>=23.1'
	@$(PIP) 'scikit-build-core>=1.1' 'cython-cmake>=0.3' 'cython>=3.3.1' 'cmake>=3.21' ninja
	@touch $@

$(VENV)/.built: $(VENV)/.made $(SOURCES)
	@echo "pagepool: building"
	@PATH="$(abspath $(BIN)):$$PATH" $(PIP) --no-build-isolation -Cbuild-dir=build/editable -e '.[test]'
	@touch $@

$(VENV)/.lint: $(VENV)/.made
	@$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["lint"], sep="\n")' > $@.txt
	@$(PIP) -r $@.txt
	@touch $@

# What other people's libraries do with our frames: tested where they can be had as wheels.
$(VENV)/.libraries: $(VENV)/.made
	@echo "pagepool: installing pyarrow, Polars and DuckDB into $(VENV)"
	@for one in 'pyarrow>=21' 'polars>=1.20' 'duckdb>=2'; do \
		$(PIP) --only-binary :all: $$one || echo "pagepool: no $$one for this machine: its tests are skipped"; done
	@touch $@

clean:                  ## remove everything that was made here
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
