# Every target sets up what it needs in VENV. A second time that takes no time: files in VENV record what is done.
PYTHON ?= python3
VENV ?= .venv
CUDA_HOME ?= /usr/local/cuda

BIN := $(VENV)/bin
CSRC := $(shell find mrcnn_plugin/layers/csrc -type f)
REQUIREMENTS_DONE := $(VENV)/.mrcnn_plugin_requirements
PACKAGE_DONE := $(VENV)/.mrcnn_plugin_package

.DELETE_ON_ERROR:
.PHONY: help setup quickstart test lint sanitize cuda gpu dist clean

help: ## list the targets
	@sed -nE 's/^([a-z]+):.*## (.*)/make \1\t\2/p' Makefile | expand -t 20

setup: $(PACKAGE_DONE) ## install the requirements, Detectron2 and the package with its extension into VENV

quickstart: setup ## train a small model on generated pictures, evaluate it and draw what it finds
	$(BIN)/python tools/train_net.py --config-file configs/quickstart.yaml --resume
	$(BIN)/python tools/plot_results.py --config-file configs/quickstart.yaml

test: setup ## run the tests
	$(BIN)/python -m pytest

lint: setup ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

SANITIZE = $(CXX) -std=c++20 -O1 -g -pthread -Wno-attributes -Imrcnn_plugin/layers/csrc -Itests/emulation \
    -isystem $$($(BIN)/python -c "import torch, os; print(os.path.dirname(torch.__file__))")/include \
    tests/emulation/sanitize.cpp $(wildcard mrcnn_plugin/layers/csrc/cpu/roi_align_kernel_*.cpp)

sanitize: setup ## run the kernels, those for CUDA on the CPU, under the address, undefined behaviour and thread sanitizers
	@mkdir -p build
	@echo "Some minutes. That makecontext is not fully supported is no fault: the emulation tells ASan of its stacks."
	$(SANITIZE) -fsanitize=address,undefined,float-cast-overflow -fno-sanitize-recover=all -o build/sanitize_address
	build/sanitize_address
	$(SANITIZE) -fsanitize=thread -o build/sanitize_thread
	build/sanitize_thread tiny

cuda: setup ## compile the CUDA kernels for all generations of GPUs, without one; registers that spill are an error
	@rm -rf build/cuda
	@echo "Compiling; build/cuda.log holds what it prints."
	@mkdir -p build
	CUDA_HOME=$(CUDA_HOME) FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST= NVCC_FLAGS=-Xptxas=-v $(BIN)/python setup.py -q build_ext --force \
	    --build-lib build/cuda --build-temp build/cuda/objects >build/cuda.log 2>&1 || { cat build/cuda.log; false; }
	@grep -q "Used [0-9]* registers" build/cuda.log
	@grep -E "^ptxas info +: Used" build/cuda.log | sed -E 's/.*Used ([0-9]+ registers).*/\1/' | sort -n | uniq -c
	@! grep -E "[1-9][0-9]* bytes (stack frame|spill)" build/cuda.log
	$(BIN)/python -m tests.built_for_cuda build/cuda/mrcnn_plugin/_C.abi3.so

gpu: setup ## build for the GPU of this machine, run the tests and the benchmark there
	@$(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available() and "make gpu: torch finds no CUDA GPU here")'
	@$(BIN)/python -m tests.built_for_cuda mrcnn_plugin/_C.abi3.so 2>/dev/null || \
	    { CUDA_HOME=$(CUDA_HOME) FORCE_CUDA=1 $(BIN)/python setup.py -q build_ext --force --inplace && touch $(PACKAGE_DONE); }
	$(BIN)/python -m pytest -m cuda
	$(BIN)/python tools/benchmark_roi_align.py --device cuda --output docs/results

dist: setup ## build a source distribution and a wheel in dist/
	$(BIN)/python -m build --no-isolation .

clean: ## remove what was built (VENV and output/ stay)
	rm -rf build dist mrcnn_plugin.egg-info mrcnn_plugin/_C*.so $(PACKAGE_DONE)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or later is needed: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)

$(REQUIREMENTS_DONE): $(wildcard requirements/*) | $(BIN)/python
	requirements/install.sh $(VENV)
	@touch $@

# Python files are used where they lie; only what goes into the build needs a new one. So does an extension that is newer
# than this environment's build, since it was built for the torch of another one. Where there is none, each run tries to
# build it: a compiler may be there by now.
EXTENSION := $(wildcard mrcnn_plugin/_C*.so)
ifeq ($(EXTENSION),)
.PHONY: $(PACKAGE_DONE)
endif
$(PACKAGE_DONE): $(REQUIREMENTS_DONE) setup.py pyproject.toml $(CSRC) $(EXTENSION)
	$(BIN)/python -m pip install -qq --disable-pip-version-check --no-build-isolation --no-deps --editable .
	@ls mrcnn_plugin/_C*.so >/dev/null 2>&1 || echo "WARNING: no C++ compiler, so that RoIAlign runs on its slower" \
	    "PyTorch implementation. To have the extension, install one (Debian: apt-get install g++) and run make again." >&2
	@touch $@
