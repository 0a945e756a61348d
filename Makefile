# make demo | test | lint | format | clean: each makes the environment it needs in .venv, once; later runs are offline.
#
#   PYTHON     the Python (>= 3.10) that the environment is made from
#   PIP_FLAGS  passed to every `pip install`, for example to name another index

PYTHON    ?= python3
PIP_FLAGS ?=

VENV    := .venv
MINIMAL := .venv-minimal
INSTALL := -m pip --disable-pip-version-check install --quiet -c .ci/constraints.txt $(PIP_FLAGS)
PIP     := $(VENV)/bin/python $(INSTALL)

CXX_FILES     := $(shell find csrc -name '*.cpp' -o -name '*.h')
NATIVE_TESTS  := $(wildcard tests/native/*)
PYTHON_FILES  := $(shell find pyquant -name '*.py')
BUILD_INPUTS  := $(CXX_FILES) CMakeLists.txt pyproject.toml .ci/constraints.txt
BUILD_TOOLS   := 'scikit-build-core>=0.11' 'pybind11>=3.0' 'cmake>=3.26' 'ninja>=1.11'
# Our build runs with these tools, from the environment itself, so that building again needs no index.
WITH_TOOLS    := PATH="$(CURDIR)/$(VENV)/bin:$$PATH"

.PHONY: demo test lint format clean

demo: $(VENV)/.demo
	$(VENV)/bin/pyquant demo --out build/demo

test: lint $(MINIMAL)/.installed
	$(VENV)/bin/python -m pytest

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/clang-format --dry-run --Werror $(CXX_FILES) $(NATIVE_TESTS)
	$(VENV)/bin/mypy

format: $(VENV)/.dev
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format
	$(VENV)/bin/clang-format -i $(CXX_FILES) $(NATIVE_TESTS)

clean:
	rm -rf $(VENV) $(MINIMAL) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks
	find pyquant tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "error: pyquant needs Python 3.10 or later; name one, for example: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.built: $(VENV)/.created $(BUILD_INPUTS)
	$(PIP) $(BUILD_TOOLS)
	$(WITH_TOOLS) $(PIP) --no-build-isolation --editable .
	@touch $@

$(VENV)/.demo: $(VENV)/.built
	$(PIP) 'pyquant-codec[demo]'
	@touch $@

# torchvision without its dependencies: it would accept no PyTorch but the one it was built with, which need not be ours.
$(VENV)/.dev: $(VENV)/.demo
	$(PIP) 'pyquant-codec[dev]'
	$(PIP) --no-deps torchvision
	@touch $@

# The wheel, as users get it, with nothing but its run-time dependencies: the tests run pyquant there without PyTorch.
$(MINIMAL)/.installed: $(VENV)/.built $(PYTHON_FILES)
	rm -rf dist
	$(WITH_TOOLS) $(VENV)/bin/python -m pip --disable-pip-version-check wheel --quiet --no-build-isolation --no-deps \
	  --wheel-dir dist .
	test -x $(MINIMAL)/bin/python || $(VENV)/bin/python -m venv $(MINIMAL)
	$(MINIMAL)/bin/python $(INSTALL) dist/*.whl
	$(MINIMAL)/bin/python $(INSTALL) --no-deps --force-reinstall dist/*.whl
	@touch $@
