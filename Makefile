# Everything a user or a developer does begins here. Needs Python 3.11+ (with venv and pip), make, and a package index.
#   make run     the quickstart, from nothing to a report           make test      linters, types, tests
#   make docs    generated pages, picture and screenshots           make campaign  the slow campaigns (hours)
#   make bench   the environment of the tools compared with         make sbom      software bill of materials
#   make lock    write requirements.lock anew from this environment
#   make install the environment alone; `make clean install` makes it anew
#
# TORCH=cpu takes PyTorch's own CPU builds, TORCH=cuda its CUDA 13.0 builds; without it, what the package index has
# (on Linux usually a CUDA build of several gigabytes). The versions in requirements.lock were tested together with the CPU build;
# a CUDA build brings its own nvidia-* and triton packages, which are not in the lock file and come in whatever version it asks for.
PYTHON ?= python3
TORCH  ?=
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed$(TORCH)

TORCH_INDEX_ := 
TORCH_INDEX_cpu := --index-url https://download.pytorch.org/whl/cpu
TORCH_INDEX_cuda := --index-url https://download.pytorch.org/whl/cu130

# In the order of the pipeline; `python -m tests.benchmarks --help` says what each measures.
BENCHMARKS := pipeline curation dedup packing training saving monitor recovery window tuning memory validation gate report effect kills

export DO_NOT_TRACK = 1
export PREFECT_SERVER_ANALYTICS_ENABLED = false
export MLFLOW_DISABLE_TELEMETRY = true

.PHONY: run test install lint types campaign bench docs sbom lock clean
.DELETE_ON_ERROR:

run: $(STAMP)
	$(BIN)/millrace run

test: $(STAMP) lint types
	$(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder $(PYTEST)

install: $(STAMP)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Millrace needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make $(MAKECMDGOALS) PYTHON=python3.11" >&2; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "Python's venv or pip is missing. On Debian and Ubuntu: apt install python3-venv python3-pip" >&2; exit 2; }
	@echo "Making the environment in $(VENV) (about 3 GB and a few minutes, once)"
	@$(PYTHON) -m venv $(VENV)
	@rm -f $(VENV)/.installed*
	@grep '^torch==' requirements.lock | $(BIN)/python -m pip install -q --disable-pip-version-check $(TORCH_INDEX_$(TORCH)) -r /dev/stdin
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps -r requirements.lock
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps -e .
	@touch $@

# Also tests extras that the lock file leaves out; first: pip install '.[eightbit,s3,tensorboard,wandb]' 'moto[server]'
campaign: $(STAMP) .venv-bench/.installed
	MILLRACE_HYPOTHESIS=campaign $(BIN)/python -m pytest -m '' --timeout 0
	@missed=; for name in $(BENCHMARKS); do $(BIN)/python -m tests.benchmarks $$name || missed="$$missed $$name"; done; \
	  test -z "$$missed" || { echo "goals missed by:$$missed" >&2; exit 1; }

bench: $(STAMP) .venv-bench/.installed

.venv-bench/.installed: tests/benchmarks/peers.txt
	@$(PYTHON) -m venv .venv-bench
	@grep '^torch==' $< | .venv-bench/bin/python -m pip install -q --disable-pip-version-check $(TORCH_INDEX_$(TORCH)) -r /dev/stdin
	@.venv-bench/bin/python -m pip install -q --disable-pip-version-check --no-deps -r $<
	@touch $@

docs: $(STAMP)
	$(BIN)/python -m tests.docs

sbom: $(STAMP)
	$(PYTHON) -m venv .venv-sbom
	.venv-sbom/bin/python -m pip install -q --disable-pip-version-check cyclonedx-bom
	.venv-sbom/bin/cyclonedx-py environment $(BIN)/python --output-file sbom.json
	@echo "sbom.json written (CycloneDX)"

lock: $(STAMP)
	@{ echo "# Versions that were installed and tested together on Python 3.11 (Linux, PyTorch's CPU build). \`make lock\` writes this file anew."; \
	   $(BIN)/python -m pip freeze --exclude millrace | sed 's/+[a-z0-9.]*$$//'; } > requirements.lock.new
	@mv requirements.lock.new requirements.lock

clean:
	rm -rf .venv .venv-bench .venv-sbom .mypy_cache .ruff_cache .pytest_cache .hypothesis
