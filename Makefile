# make train | make test | make test-quick | make test-torch | make bench | make gpu | make docs | make lint | make release:
# each sets up what it needs first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
SOURCES := setup.py pyproject.toml $(shell find csrc -type f)
CPP := $(shell find csrc tests -name '*.h' -o -name '*.hpp' -o -name '*.cpp' -o -name '*.inc' -o -name '*.cu' -o -name '*.cuh')
ARGS ?=

.PHONY: install train test test-quick test-torch bench gpu docs lint release clean

install: $(STAMP)

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)

# Build requirements come first and the build isn't isolated: a second copy of torch would be fetched for it otherwise.
# torch pins the version of cuda-toolkit, whose nvcc the tests need too; setup.py says what it builds and what switches that.
$(STAMP): $(BIN)/python $(SOURCES)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.14.1 torchvision==0.29.1 'setuptools>=77' wheel 'pybind11>=2.13' ninja 'cuda-toolkit[nvcc,cccl]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --editable '.[train,test,bench,docs,lint]'
	@touch $@

train: install
	$(BIN)/python examples/train.py $(ARGS)

test: lint
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

# For the inner loop, in under two minutes: the CPU backend on the grid, the public face, the layout.
QUICK_TESTS := mp_nce modules inputs panels queue domain_similarity

test-quick: install
	$(BIN)/python -m pytest -n 2 --dist worksteal $(QUICK_TESTS:%=tests/test_%.py) -k 'not low_precision and not any_operands' $(ARGS)

# Another torch than that of `make install`, with the newest NumPy that the interpreter of Triton 3.6 works with.
TORCH ?= 2.11.0
OTHER := .venv-torch-$(TORCH)
OTHER_TESTS := mp_nce domain_similarity modules inputs citizenship compile reference random info stable_abi triton_interpreted triton_static
RETURN_TESTS := domain_similarity modules inputs stable_abi

$(OTHER)/installed: $(BIN)/python
	$(BIN)/python -m venv --clear $(OTHER)
	$(OTHER)/bin/python -m pip install --quiet --disable-pip-version-check torch==$(TORCH) 'numpy<2.3' 'setuptools>=77' wheel 'pybind11>=2.13' ninja pytest pytest-xdist hypothesis expecttest tqdm matplotlib
	@touch $@

# The wheel built beside either torch is tested beside the other. One kernel spills with Triton 3.6, on sm_120 alone.
test-torch: install $(OTHER)/installed
	$(BIN)/python -m tests.other_torch $(BIN)/python $(OTHER)/bin/python -n 2 --dist worksteal $(OTHER_TESTS:%=tests/test_%.py) -k 'not (similarity_matrix_kernel and 120)'
	UNICLIP_BUILD_CUDA=0 $(BIN)/python -m tests.other_torch $(OTHER)/bin/python $(BIN)/python $(RETURN_TESTS:%=tests/test_%.py)
	UNICLIP_TEST_PYTHON=$(abspath $(OTHER)/bin/python) $(BIN)/python -m pytest tests/test_gpu_command.py -k network

bench: install
	$(BIN)/python -m benchmarks.run $(ARGS)
	$(BIN)/python -m benchmarks.ranks

# Looks for a GPU before anything is installed, then builds for it, checks on it, measures on it; benchmarks/gpu/__main__.py
# says what ARGS there are. With ARGS=--existing the environment is that of PYTHON as it is.
gpu:
	$(PYTHON) -m benchmarks.gpu --python $(BIN)/python $(ARGS)

# Into build/site. The variable quietens an advertisement.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict $(ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CPP)

# The sdist and, made of it, a wheel for each Python, tried where no source is near: docs/releasing.md.
PYTHONS ?= 3.10 3.11 3.12 3.13 3.14
release: install
	rm -rf dist
	$(BIN)/python -m build --sdist --no-isolation
	$(BIN)/python -m tests.release $(PYTHONS)

clean:
	rm -rf $(VENV) .venv-torch-* build dist *.egg-info uniclip_kernels/*.so
