# make demo      train the digits on two local nodes, in a virtual environment made here
# make test      ruff, mypy --strict and the tests, but for the slow ones; installs what they need, system packages included
# make test-more the slow tests: whole frameworks, hosts with networks between them, the simulated backends
# make test-quick ruff, mypy and the tests that start no flow, for the inner loop
# make lint      the checkers alone
# make backends  all tests on AWS Batch, Kubernetes, Argo and the datastores, the long ones included
# make coverage  the tests once more with the lines of core/ counted, guards and tasks included
# make test-all  the long tests and the other versions of Python and Metaflow; goes on where it was stopped
# make docs      writes the parts of docs/ that are made of the code, and the site in build/site
# make release   the wheel and the sdist of the last commit, built reproducibly into dist/ and checked; uploads nothing
# make chaos     ROUNDS=200 SEED=7: a random walk over the matrix of faults; HEALTHY=1: only gangs that must not fail
# make clean     removes what the targets above made

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c tests/constraints.txt

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
# What a shell may have set and what is not ours. Debian's ordinary users have no sbin on their PATH, where `ip` is.
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV
export PATH := $(PATH):/usr/sbin:/sbin
# Metaflow wants to know who runs a flow; a container's shell may not say.
export USER ?= $(shell id -un)
# ... and does not take root for an answer.
DEMO_USER := $(filter-out root,$(USER))
DEMO_USER := $(or $(DEMO_USER),demo)

SITE = $(shell $(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

# Most tests wait for processes that they started, so that two run in little more than half the time on two cores.
TEST_PROCESSES ?= 2
PYTEST = $(BIN)/pytest -n $(TEST_PROCESSES) --dist worksteal

# Tests that start no flow and few processes.
QUICK_TESTS := $(addprefix tests/,core/machine core/storage core/remote_shell core/calls docs/test_architecture.py guard/channel/test_event_loop.py \
	guard/coordinator/test_root_cause.py launchers/*/test_*_plan.py launchers/torchrun/test_torchrun_explain.py)

# What the tests run besides Python. (Their servers, redis's and Slurm's, are started by tests, not by the packages.)
SYSTEM_PACKAGES := findutils g++ gcc git iproute2 libc6-dev libopenmpi-dev munge openmpi-bin openssh-client openssh-server pdsh \
	procps redis-server slurm-client slurm-wlm-jwt-plugin slurmctld slurmd \
	slurmrestd sysvinit-utils util-linux

.PHONY: demo test test-more test-quick backends docs lint coverage test-all release chaos clean package types system
.NOTPARALLEL:

demo: $(VENV)/demo-installed package
	METAFLOW_USER="$${METAFLOW_USER:-$(DEMO_USER)}" $(BIN)/python examples/torchrun/digits.py --datastore local --metadata local run

test: system $(VENV)/test-installed package lint
	$(PYTEST) -m "not big and not slow"

test-more: system $(VENV)/test-installed package
	$(PYTEST) -m "slow and not big"

test-quick: $(VENV)/test-installed package lint
	$(PYTEST) -m "not big and not slow" $(wildcard $(QUICK_TESTS))

backends: system $(VENV)/test-installed package
	tests/tools/system_packages.sh npm
	tests/tools/install_azurite.sh $(BIN)/python
	$(PYTEST) -m "big or not big" tests/backends

lint: $(VENV)/test-installed types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

coverage: system $(VENV)/test-installed package
	rm -f .coverage .coverage.*
	cp tests/tools/guard_coverage.py $(SITE)
	GANG_INSTALLED=$(SITE)/metaflow_extensions/gang $(BIN)/coverage run -m pytest -m "not big and not uncounted"
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report
	$(BIN)/coverage report --include='core/*' --format=total --fail-under=90

test-all: system
	tests/tools/system_packages.sh chromium fonts-dejavu-core make npm
	$(PYTHON) tests/tools/test_all.py $(SHARDS)

release: $(VENV)/release-installed
	$(BIN)/python tests/tools/release.py

chaos: system $(VENV)/test-installed package
	$(BIN)/python tests/faults/chaos.py $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(SEED),--seed $(SEED)) $(if $(HEALTHY),--healthy)

# The list of files in docs/architecture.md, docs/settings.md, the launchers' references, and the site, which is refused where a link leads nowhere.
docs: $(VENV)/docs-installed package
	$(BIN)/python tests/tools/file_list.py
	$(BIN)/python tests/tools/settings_page.py
	$(BIN)/python tests/tools/reference.py
	$(BIN)/python tests/tools/stub_file.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build # --quiet would let wrong links pass
	@echo "Read it: $(CURDIR)/build/site/index.html"

clean:
	rm -rf $(VENV) build dist toplevel/*.egg-info .test-all .coverage .coverage.* .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

system:
	tests/tools/system_packages.sh $(SYSTEM_PACKAGES)

# The tests see what a user gets: the package as built from this tree, not the tree. An old build/lib would keep files
# that the tree no longer has.
package:
	rm -rf build/lib
	$(PIP) --no-deps --no-build-isolation --force-reinstall .

# The tree under the names that it is installed as, for mypy.
types:
	rm -rf build/types
	mkdir -p build/types/metaflow_extensions/gang
	ln -s $(addprefix $(CURDIR)/,backends cli core launchers plugins toplevel) build/types/metaflow_extensions/gang/

$(VENV)/demo-installed: $(BIN)/python pyproject.toml tests/constraints.txt
	$(PIP) 'setuptools>=77' scikit-learn 'metaflow>=2.16' '.[torch]'
	touch $@

$(VENV)/docs-installed: $(BIN)/python pyproject.toml tests/constraints.txt
	$(PIP) 'setuptools>=77' 'metaflow>=2.16' '.[docs]'
	touch $@

$(VENV)/release-installed: $(BIN)/python pyproject.toml tests/constraints.txt
	$(PIP) build 'setuptools>=77' twine
	touch $@

$(VENV)/test-installed: $(BIN)/python pyproject.toml tests/constraints.txt tests/tools/install_mpis.sh
	$(PIP) '.[deepspeed,docs,jax,mpi,ray,torch,test]'
	tests/tools/install_mpis.sh $(BIN)/python
	touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "metaflow-gang needs Python 3.10 or newer, \
	and '$(PYTHON)' is not: name another with 'make PYTHON=/path/to/python3 $(MAKECMDGOALS)'." >&2; exit 1; }
	PYTHON=$(PYTHON) tests/tools/system_packages.sh python3-venv
	$(PYTHON) -m venv $(VENV)
