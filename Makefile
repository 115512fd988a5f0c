# Two commands do everything on a machine with python3, a C++ compiler and make: `make demo`, `make test`.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# The GPU library takes minutes to compile: without a GPU, only `make cuda` and pip do it.
export SFRS_CUDA ?= $(if $(wildcard /dev/nvidiactl /dev/dxg),AUTO,OFF)

.PHONY: demo test libraries fuzz lint docs aarch64 format emulated cuda gpu gpu-package bench report build clean
.DELETE_ON_ERROR:

PHOTOS ?= $(wildcard ../shared/places/corridor)
demo: build  ## render the city, train SFRS beside its baseline, evaluate: runs/demo
	$(BIN)/sfrs demo --backbone efficientnet-lite0 --out runs/demo $(addprefix --photos ,$(PHOTOS))

test fuzz: export CMAKE_ARGS = -DSFRS_WIDE_KERNELS=ON -DSFRS_EMULATED_KERNELS=ON -DSFRS_FAILING_MEMORY=ON
# Workers that share cores must not spin while they wait: that alone makes it twice as long.
test fuzz: export OMP_WAIT_POLICY = PASSIVE
test: build  ## all tests, on all cores
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

LIBRARIES_PYTHON ?= python3
libraries: build  ## timm's and torchvision's networks as backbones, where $(LIBRARIES_PYTHON) imports both with sfrs
	@if PYTHONPATH=.:python $(LIBRARIES_PYTHON) -c 'import timm, torchvision, pytest, sfrs.models.model' 2> /dev/null; then \
	  PYTHONPATH=.:python $(LIBRARIES_PYTHON) -m pytest tests/sfrs/test_libraries.py tests/sfrs/test_backbones.py; \
	else echo "libraries: $(LIBRARIES_PYTHON) does not import timm, torchvision and sfrs, their networks are not tested"; fi

MINUTES ?= 10
SEED ?= $(shell date +%s)000
fuzz: build  ## for MINUTES=10 random calls of every operator, and damaged files of every format; one minute in `.ci/run`
	$(BIN)/python tests/fuzz/fuzz_files.py --minutes $(MINUTES) --seed $(SEED) & files=$$!; \
	  $(BIN)/python tests/fuzz/fuzz.py --minutes $(MINUTES) --seed $(SEED); calls=$$?; wait $$files && exit $$calls

build: $(STAMP)
	@$(BIN)/python setup.py --quiet build_ext --inplace

# Its programs name the place of a virtual environment: in a folder that was moved, or without the interpreter
# that it was made from, it is made again.
ifeq ($(and $(realpath $(BIN)/python),$(shell grep -sF "$(realpath $(VENV))/" $(BIN)/pip)),)
.PHONY: $(STAMP)
CLEAR = $(if $(wildcard $(STAMP)),--clear)
endif

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(CLEAR) $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check "$(TORCH)" numpy "setuptools>=77" "cmake>=3.22" ninja
	$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation --editable ".[train,serve,export,pretrained,heif,milvus,test,lint,docs]"
	@touch $@

CXX_FILES = $(shell git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.inl' 'csrc/*.cu' 'csrc/*.cuh')

lint: build aarch64 headers docs  ## layout and lint of Python and C++, C++ without a warning, README as measured
	$(BIN)/python -m benchmarks.report --check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake -S . -B build/warnings -G Ninja -DPYTHON="$(CURDIR)/$(BIN)/python" -DOUTPUT_DIR="$(CURDIR)/build/warnings" -DSFRS_CXX_OPTIONS="-Werror;-O1" > /dev/null
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake --build build/warnings

docs: build  ## the documentation's site in build/site, without a link that leads nowhere
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

AARCH64 = aarch64-linux-gnu-g++
aarch64:  ## the kernels compile for ARM, where a cross compiler is at hand
	@if command -v $(AARCH64) > /dev/null; then \
	  for file in kernels dispatch; do $(AARCH64) -std=c++17 -O1 -Wall -Wextra -Werror -Wno-psabi -fsyntax-only \
	    -DSFRS_ISA=portable -DSFRS_VECTOR_BYTES=16 csrc/cpu/$$file.cpp || exit 1; done; \
	else echo "aarch64: no $(AARCH64) here, sources not compiled for ARM"; fi

# With the emulator instead of CUDA's headers, and one process per core; an editor needs the same.
headers: build  ## every file that others include compiles alone
	@git ls-files 'csrc/*.h' 'csrc/*.inl' 'csrc/*.cuh' | xargs -P $$(nproc) -n 1 $(CXX) -std=gnu++17 -fsyntax-only -Wno-psabi \
	  -DSFRS_EMULATE -DTORCH_TARGET_VERSION=0x020b000000000000 -isystem $(wildcard $(VENV)/lib/python*/site-packages/torch/include) \
	  -x c++ /dev/null -include

format: build  ## rewrite all files in the project's layout
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

emulated: build  ## the CUDA kernels without a GPU, and every way to break them: about 10 minutes; a sample is in `make test`
	$(BIN)/python -m pytest tests/cuda/test_emulator.py
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python csrc/testing/mutations.py

ARCHS ?= all
cuda: build  ## the GPU library for ARCHS=all: registers, instructions, clocks, loading; needs nvcc, no GPU
	PATH="$(CURDIR)/$(BIN):$$PATH" SFRS_CUDA_ARCHS=$(ARCHS) tests/cuda/library.sh $(BUDGET)

gpu:  ## on a GPU, with the torch of $(PYTHON): STAGE=look (150 s), STAGE=full (6 minutes), or both
	PYTHON=$(PYTHON) tests/cuda/gpu.sh $(STAGE)

GPU_PYTHON ?= python3.12
GPU_ARCHS ?= 90
gpu-package: $(STAMP)  ## the GPU library for `make gpu` elsewhere, in build/gpu-package; TORCH_WHEEL=... for its headers
	PATH="$(CURDIR)/$(BIN):$$PATH" PYTHONPATH=. $(BIN)/python tests/cuda/package.py make build/gpu-package \
	  --python $(GPU_PYTHON) --architectures $(GPU_ARCHS) $(if $(TORCH_WHEEL),--torch $(TORCH_WHEEL))

bench: build  ## measure the operators against their peers, write benchmarks/results: about 20 minutes
	$(BIN)/python -m benchmarks.run
	$(BIN)/python -m benchmarks.scaling
	$(BIN)/python -m benchmarks.report

report: build  ## the tables of README and docs from the recorded results
	$(BIN)/python -m benchmarks.report

clean:
	rm -rf build runs $(VENV) sfrs_ext/*.so
