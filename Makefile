# Every target sets up what it needs by itself (in .venv); nothing has to be activated.
#
# DEVICE=cpu (default) or DEVICE=gpu chooses the build of torch; once chosen, it stays until another is asked for.
# With cpu, pip takes the CPU build (a local version, `+cpu`) where one of its configured indexes offers it; add
# PyTorch's CPU index to PIP_EXTRA_INDEX_URL for that. Without it, the published build is installed, which is larger
# and works on a CPU as well; an environment that has it keeps it when cpu is asked for.

SHELL := /bin/sh
VENV := .venv
PYTHON := $(VENV)/bin/python
# A stamp in .venv says that a set-up was finished. Its name holds what was set up: the device, and a checksum of the
# files that decide and of the place, because a virtual environment cannot be moved.
SET_UP := $(patsubst $(VENV)/.set-up-%,%,$(wildcard $(VENV)/.set-up-*))
DEVICE ?= $(or $(firstword $(subst -, ,$(SET_UP))),cpu)
CHECKSUM := $(shell { pwd; cat pyproject.toml constraints.txt; } | cksum | tr -d ' ')
STAMP := $(VENV)/.set-up-$(DEVICE)-$(CHECKSUM)
UNFINISHED := $(VENV)/.unfinished
PIP_INSTALL := $(PYTHON) -m pip install -qq --disable-pip-version-check --no-input -c constraints.txt

TORCH_VERSION := $(shell sed -n 's/^torch==\([^ ]*\).*/\1/p' constraints.txt)
TORCH_cpu := torch==$(TORCH_VERSION)
# `===` compares the whole version, so that a local build such as `+cpu` is left aside.
TORCH_gpu := torch===$(TORCH_VERSION)

SUITABLE := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))

.DEFAULT_GOAL := help
.PHONY: help quickstart setup check test proofs soak bench docs lab-model images image-test audit clean
# A target that needs the set-up says so by itself; two of them at once would set up twice.
.NOTPARALLEL:
# What is compiled once is kept: every process of a run would compile our modules again where this is set.
unexport PYTHONDONTWRITEBYTECODE

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

quickstart: setup  ## Set up, then run the quickstart on the embedded lab (DEVICE=gpu: with the CUDA build of torch)
	@$(VENV)/bin/phasetune run pipelines/specs/quickstart.yaml

setup: $(STAMP)  ## Make .venv with the pinned packages; again only after pyproject.toml, constraints.txt or DEVICE changed
	@:

# `.unfinished` holds the process that installs. A set-up that was interrupted leaves it, and the next one starts from
# an empty environment; one that pip refused in order (no network, say) leaves the old environment usable.
$(STAMP):
	@test -n "$(TORCH_$(DEVICE))" || { echo "make: DEVICE is '$(DEVICE)'; it must be cpu or gpu" >&2; exit 2; }
	@if [ -e $(UNFINISHED) ] && kill -0 "$$(cat $(UNFINISHED))" 2>/dev/null; then \
	  echo "make: process $$(cat $(UNFINISHED)) is setting up $(VENV); wait for it, or end it and remove $(VENV)" >&2; exit 1; \
	fi
	@if [ -e $(UNFINISHED) ] || ! $(PYTHON) -c '$(SUITABLE)' 2>/dev/null || ! $(PYTHON) -m pip -V >/dev/null 2>&1; then \
	  for python in python3.11 python3 none; do \
	    if [ $$python = none ]; then \
	      echo "make: Python 3.11 or 3.12 with its venv module is needed; neither python3.11 nor python3 is that" >&2; \
	      echo "      (Debian and Ubuntu have the packages python3.11 and python3.11-venv)" >&2; exit 1; \
	    fi; \
	    if $$python -c '$(SUITABLE)' 2>/dev/null; then break; fi; \
	  done; \
	  $$python -m venv --clear $(VENV); \
	fi
	@rm -f $(VENV)/.set-up-*
	@echo "Installing the pinned packages into $(VENV), torch for $(DEVICE) (about two minutes the first time)"
	@echo $$$$ > $(UNFINISHED); \
	$(PIP_INSTALL) setuptools '$(TORCH_$(DEVICE))' && $(PIP_INSTALL) --no-build-isolation -e '.[dev]'; \
	code=$$?; [ $$code -ge 128 ] || rm -f $(UNFINISHED); exit $$code
	@touch $@

check: setup  ## Format, lint, types, and the house's own rules; about a minute at most
	@$(PYTHON) -m ruff format --check -q .
	@$(PYTHON) -m ruff check -q .
	@$(PYTHON) -m mypy --no-error-summary
	@$(PYTHON) -m pytest -q tests/house

test: check  ## The checks, the unit tests and the integration tests
	@$(PYTHON) tests/streams.py "not proof" tests/security tests/integration/test_[!b]*.py

proofs: setup  ## The long proofs: chaos, studies, real servers
	@$(PYTHON) tests/streams.py "proof and not soak" tests/chaos tests/integration/test_sweep*.py tests/security

soak: setup  ## Proofs that others resemble (further methods, kinds, sizes) and the longest studies; before a release
	@$(PYTHON) -m pytest -q -m soak

bench: setup  ## Measure speed and memory, one benchmark after another
	@for file in tests/benchmarks/*.py; do echo "== $$file"; $(PYTHON) $$file || exit 1; done

docs: setup  ## Write docs/spec.md, and the table in docs/sweeps.md, from the models of the specs
	@$(PYTHON) -m pipelines.spec_page > docs/spec.md.new && mv docs/spec.md.new docs/spec.md || { rm -f docs/spec.md.new; exit 1; }
	@$(PYTHON) -m pipelines.sweep_spec_page docs/sweeps.md

lab-model: setup  ## Train the lab's base model anew
	@$(PYTHON) -m components.lab.pretraining --out components/lab/model

images:  ## Build the images phasetune:dev and phasetune:dev-gpu with docker or buildah (BASE_IMAGE, IMAGE, TAG, PIP_CONF)
	@infra/images/build.sh

image-test: setup  ## Build the cpu image without an engine and run it read-only (root, debootstrap, buildah; ten minutes)
	@$(PYTHON) infra/images/test/run.py

# --strict: a package that the database of advisories cannot be asked about is no package without advisories. The one
# asked is PyPI's; PIP_AUDIT_VULNERABILITY_SERVICE=osv asks another. torch-cpu.lock is torch.lock's torch, built anew.
audit: setup  ## Look the locked packages up in the database of known vulnerabilities (needs the network)
	@$(PYTHON) -m pip_audit --strict --disable-pip --require-hashes -r infra/requirements.lock -r infra/torch.lock

clean:  ## Remove caches and build products; .venv and runs/ stay
	@rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find components pipelines tests infra -type d -name __pycache__ -prune -exec rm -rf {} +
