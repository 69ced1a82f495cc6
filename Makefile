# Every target first installs what it needs into VENV. Files in VENV record what is done, so that it happens only once.
PYTHON ?= python3
VENV ?= .venv
CUDA_HOME ?= /usr/local/cuda

BIN := $(VENV)/bin
CSRC := $(shell find mrcnn_plugin/layers/csrc -type f)
CXX_FILES := $(CSRC) $(wildcard tests/emulation/*.cpp tests/emulation/*.h)
REQUIREMENTS_DONE := $(VENV)/.mrcnn_plugin_requirements
PACKAGE_DONE := $(VENV)/.mrcnn_plugin_package

.DELETE_ON_ERROR:
.PHONY: help setup quickstart test lint sanitize cuda gpu ablations-report dist clean

help: ## list the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/make \1\t\2/p' Makefile | expand -t 24

setup: $(PACKAGE_DONE) ## install the requirements, Detectron2 and the package into VENV, and build the extension

quickstart: setup ## train a small model on generated images, evaluate it and draw its predictions
	$(BIN)/python tools/train_net.py --config-file configs/quickstart.yaml --resume
	$(BIN)/python tools/plot_results.py --config-file configs/quickstart.yaml

test: setup ## run the tests
	$(BIN)/python -m pytest

lint: setup ## check the style of Python and C++, and the types of Python
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)

SANITIZE = $(CXX) -std=c++20 -O1 -g -pthread -Wno-attributes -Imrcnn_plugin/layers/csrc -Itests/emulation \
    -isystem $$($(BIN)/python -c "import torch, os; print(os.path.dirname(torch.__file__))")/include \
    tests/emulation/sanitize.cpp $(wildcard mrcnn_plugin/layers/csrc/cpu/roi_align_kernel_*.cpp)

sanitize: setup ## run the CPU kernels and the emulated CUDA kernels under the address, undefined behaviour and thread sanitizers
	@mkdir -p build
	@echo "This takes some minutes. Ignore the warning about makecontext: the emulation tells ASan about its stacks."
	$(SANITIZE) -fsanitize=address,undefined,float-cast-overflow -fno-sanitize-recover=all -o build/sanitize_address
	build/sanitize_address
	$(SANITIZE) -fsanitize=thread -o build/sanitize_thread
	build/sanitize_thread tiny

cuda: setup ## compile the CUDA kernels for all generations of GPUs, and fail if registers spill (needs no GPU)
	@rm -rf build/cuda
	@echo "Compiling. The output goes to build/cuda.log."
	@mkdir -p build
	CUDA_HOME=$(CUDA_HOME) FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST= NVCC_FLAGS=-Xptxas=-v $(BIN)/python setup.py -q build_ext --force \
	    --build-lib build/cuda --build-temp build/cuda/objects >build/cuda.log 2>&1 || { cat build/cuda.log; false; }
	@grep -q "Used [0-9]* registers" build/cuda.log
	@grep -E "^ptxas info +: Used" build/cuda.log | sed -E 's/.*Used ([0-9]+ registers).*/\1/' | sort -n | uniq -c
	@! grep -E "[1-9][0-9]* bytes (stack frame|spill)" build/cuda.log
	$(BIN)/python -m tests.built_for_cuda build/cuda/mrcnn_plugin/_C.abi3.so

gpu: setup ## build the CUDA kernels, and run the tests and the benchmark that need a GPU
	@$(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available() and "make gpu: torch finds no CUDA GPU here")'
	@$(BIN)/python -m tests.built_for_cuda mrcnn_plugin/_C.abi3.so 2>/dev/null || \
	    { CUDA_HOME=$(CUDA_HOME) FORCE_CUDA=1 $(BIN)/python setup.py -q build_ext --force --inplace && touch $(PACKAGE_DONE); }
	$(BIN)/python -m pytest -m cuda
	$(BIN)/python tools/benchmark_roi_align.py --device cuda --output docs/results

ablations-report: setup ## make the tables and plots of ablations/ again from its results
	$(BIN)/python -m ablations report

dist: setup ## build a source distribution and a wheel in dist/
	$(BIN)/python -m build --no-isolation .

clean: ## remove all build products, and keep VENV and output/
	rm -rf build dist mrcnn_plugin.egg-info mrcnn_plugin/_C*.so $(PACKAGE_DONE)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or later is needed: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)

$(REQUIREMENTS_DONE): $(wildcard requirements/*) | $(BIN)/python
	requirements/install.sh $(VENV)
	@touch $@

# The editable install uses Python files where they are, so only changes of the extension's sources need a new build. An
# extension that is newer than the record in VENV needs one too, because it was built with the torch of another VENV. If
# there is no extension, each run tries to build it, because a compiler may have been installed in the meantime.
EXTENSION := $(wildcard mrcnn_plugin/_C*.so)
ifeq ($(EXTENSION),)
.PHONY: $(PACKAGE_DONE)
endif
$(PACKAGE_DONE): $(REQUIREMENTS_DONE) setup.py pyproject.toml $(CSRC) $(EXTENSION)
	$(BIN)/python -m pip install -qq --disable-pip-version-check --no-build-isolation --no-deps --editable .
	@ls mrcnn_plugin/_C*.so >/dev/null 2>&1 || echo "WARNING: there is no C++ compiler, so RoIAlign uses its slower" \
	    "PyTorch implementation. To get the extension, install one (Debian: apt-get install g++) and run make again." >&2
	@touch $@
