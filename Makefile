# Two commands do everything on a machine with python3, a C++ compiler and make: `make demo`, `make test`.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint format bench report build clean
.DELETE_ON_ERROR:

demo: build  ## render the city, train SFRS beside its baseline, evaluate: runs/demo
	$(BIN)/sfrs demo --out runs/demo

test: export CMAKE_ARGS = -DSFRS_WIDE_KERNELS=ON
test: build  ## all tests
	$(BIN)/python -m pytest

build: $(STAMP)
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python setup.py --quiet build_ext --inplace

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check "$(TORCH)" numpy "setuptools>=77" "cmake>=3.22" ninja
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation --editable ".[train,test,lint]"
	@touch $@

CXX_FILES = $(shell git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.inl')

lint: build  ## layout and lint of Python and C++, C++ without a warning
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake -S . -B build/warnings -G Ninja -DPYTHON="$(CURDIR)/$(BIN)/python" -DOUTPUT_DIR="$(CURDIR)/build/warnings" -DSFRS_CXX_OPTIONS="-Werror;-O1" > /dev/null
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake --build build/warnings

format: build  ## rewrite all files in the project's layout
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

bench: build  ## measure the operators against their peers, write benchmarks/results
	$(BIN)/python -m benchmarks.run

clean:
	rm -rf build runs $(VENV) sfrs_ext/*.so
