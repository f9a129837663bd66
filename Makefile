# make train | make test | make bench | make gpu | make lint: each sets up what it needs first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
SOURCES := setup.py pyproject.toml $(shell find csrc -type f)
CPP := $(shell find csrc tests -name '*.h' -o -name '*.hpp' -o -name '*.cpp' -o -name '*.inc' -o -name '*.cu' -o -name '*.cuh')
ARGS ?=

.PHONY: install train test bench gpu lint clean

install: $(STAMP)

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)

# Build requirements come first and the build isn't isolated: a second copy of torch would be fetched for it otherwise.
# torch pins the version of cuda-toolkit, whose nvcc the tests need too; setup.py says what it builds and what switches that.
$(STAMP): $(BIN)/python $(SOURCES)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.14.1 torchvision==0.29.1 'setuptools>=77' wheel 'pybind11>=2.13' ninja 'cuda-toolkit[nvcc,cccl]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --editable '.[train,test,bench,lint]'
	@touch $@

train: install
	$(BIN)/python examples/train.py $(ARGS)

test: lint
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

bench: install
	$(BIN)/python -m benchmarks.run $(ARGS)

# Looks for a GPU before anything is installed, then builds for it, checks on it, measures on it; benchmarks/gpu/__main__.py
# says what ARGS there are. With ARGS=--existing the environment is that of PYTHON as it is.
gpu:
	$(PYTHON) -m benchmarks.gpu --python $(BIN)/python $(ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CPP)

clean:
	rm -rf $(VENV) build dist *.egg-info uniclip_kernels/*.so
