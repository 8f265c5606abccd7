# `make quickstart` and `make test` need Python 3.11 or later, pip, make and a C++ compiler; each sets up .venv first.

PYTHON := $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
# one torch thread per test process: more only get in each other's way; one process more than a small machine has cores,
# since a test may wait for processes that it has started
TEST_PROCESSES ?= 3
# for pip, such as the index of PyTorch's CPU wheels where no CUDA is wanted
PIP_ARGS ?=
# cuda: take PyTorch with CUDA where no NVIDIA GPU is found, too
TORCH ?=
# distributions of their own, with tests of their own; none is in our wheel
EXAMPLES := $(wildcard plugins/example-*)
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt $(PIP_ARGS)

.PHONY: help setup quickstart test check check-style check-types check-spelling check-pages docs format clean

help:
	@echo "make quickstart   set up, then the whole pipeline on the toy world; report in runs/quickstart/report.html"
	@echo "make test         set up, then all tests"
	@echo "make check        set up, then ruff, ruff format, mypy, codespell, and the pages of make docs"
	@echo "make docs         set up, then the pages and the API reference in build/site/index.html; warnings are errors"
	@echo "make format       fix what ruff can fix"
	@echo "make setup        .venv with what constraints.txt pins"
	@echo "make clean        remove .venv and caches"

setup: $(VENV)/installed

quickstart: $(VENV)/installed
	$(BIN)/divot quickstart $(QUICKSTART_ARGS)

# bytecode is kept even where that is switched off: tests start many processes, each of which would compile our modules
test: $(VENV)/installed
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

# four, so that make -j runs them side by side
check: check-style check-types check-spelling check-pages

check-style: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

check-types: $(VENV)/installed
	$(BIN)/mypy

check-spelling: $(VENV)/installed
	$(BIN)/codespell

check-pages: $(VENV)/installed
	$(BIN)/mkdocs build --quiet

docs: $(VENV)/installed
	$(BIN)/mkdocs build

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis dist build

$(VENV)/torch: constraints.txt
	@echo "setting up $(VENV) with $(PYTHON)"
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed")'
	test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	@$(BIN)/python .ci/check_torch_build $(if $(filter cuda,$(TORCH)),--cuda) -- -c constraints.txt $(PIP_ARGS)
	$(PIP) torch
	@touch $@

# torch goes first: DeepSpeed looks for it while it is built, and DS_BUILD_OPS=0 leaves its kernels to be built on use
$(VENV)/installed: $(VENV)/torch pyproject.toml $(EXAMPLES:%=%/pyproject.toml)
	DS_BUILD_OPS=0 $(PIP) -e ".[dev,deepspeed]"
	$(PIP) --no-build-isolation $(EXAMPLES:%=-e %)
	@touch $@
