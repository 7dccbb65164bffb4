# Every target sets up what it needs in .venv; a second call does nothing that is done already.
PYTHON ?= python3
TORCH ?= torch==2.14.*
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
# The demo runs on the CPU: it takes the build that is there, or makes one without CUDA kernels,
# whose compilation would take most of its time.
ifneq (,$(filter demo demo-full recipes,$(MAKECMDGOALS)))
SIAMCUDA_CUDA ?= $(or $(patsubst $(VENV)/build-%.stamp,%,$(firstword $(wildcard $(VENV)/build-*.stamp))),0)
endif
# A toolkit behind a shim is found by setup.py; SIAMCUDA_CUDA=auto|1|0 says whether to look.
export SIAMCUDA_CUDA ?= auto
# Ninja and CMake come from PyPI too: nothing but Python, make and a C++ compiler is asked for.
export PATH := $(abspath $(BIN)):$(PATH)

.PHONY: help build test lint format bench demo demo-full recipes instructions check gpu-check clean
help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/torch.stamp: | $(BIN)/python
	$(BIN)/python -m pip install -q "$(TORCH)" "numpy>=1.26" "setuptools>=77" ninja wheel
	touch $@

# The tools and extras that pyproject.toml names, without building the extension for them.
$(VENV)/tools.stamp: pyproject.toml tools/requirements.py | $(VENV)/torch.stamp
	$(BIN)/python tools/requirements.py dev | xargs -d '\n' $(BIN)/python -m pip install -q
	touch $@

SOURCES := $(shell find csrc -type f) setup.py pyproject.toml
$(VENV)/build-$(SIAMCUDA_CUDA).stamp: $(SOURCES) | $(VENV)/torch.stamp
	touch $@.begun # a source that is edited meanwhile is newer than this
	$(BIN)/python -m pip install --no-build-isolation --no-deps -e .
	rm -f $(VENV)/build-*.stamp
	mv $@.begun $@

build: $(VENV)/build-$(SIAMCUDA_CUDA).stamp ## compile and install in place

test: build $(VENV)/tools.stamp ## the whole suite
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/tools.stamp build ## ruff, mypy --strict, clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	git ls-files 'csrc/*' 'tests/*' 'bench/*' | grep -E '\.(h|cpp|inl|cuh|cu)$$' | \
		xargs $(BIN)/clang-format --dry-run -Werror

format: $(VENV)/tools.stamp ## rewrite sources in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	git ls-files 'csrc/*' 'tests/*' 'bench/*' | grep -E '\.(h|cpp|inl|cuh|cu)$$' | \
		xargs $(BIN)/clang-format -i

bench: build $(VENV)/tools.stamp ## measure against the peers and print a table
	$(BIN)/python -m bench $(ARGS)

# 2: nothing to compare with, and it has said why.
instructions: build $(VENV)/tools.stamp ## count instructions by valgrind, compare with those on record
	$(BIN)/python -m bench.instructions $(ARGS) || test $$? -eq 2

demo: build $(VENV)/tools.stamp ## train on real faces, verify people it never saw
	$(BIN)/siamcuda train chopra-faces --out runs/demo $(ARGS)

demo-full: build $(VENV)/tools.stamp ## the same over ten splits
	$(BIN)/siamcuda train chopra-faces --splits 10 --out runs/demo-full $(ARGS)

recipes: build $(VENV)/tools.stamp ## run every recipe, write docs/recipes.md; ARGS=--quick: try them
	$(BIN)/python -m bench.recipes $(ARGS)

check: lint test ## what CI runs

gpu-check: build $(VENV)/tools.stamp ## run everything on a GPU, or say that there is none
	$(BIN)/python tools/gpu_check.py $(ARGS)

clean: ## remove what was built, keep .venv
	rm -rf build dist runs *.egg-info siamcuda/_C*.so $(VENV)/build-*.stamp
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
