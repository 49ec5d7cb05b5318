# Each target does all its own set-up in a fresh clone: Python 3.11+ and make are enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CLIENTS := .clients
SECURITY := $(addprefix tests/runtime/server/test_,access.py routes.py keys.py key_secrets.py quotas.py refusals.py ui.py) \
  tests/e2e/test_canary.py
export TOKENIZERS_PARALLELISM ?= false
export HF_HUB_OFFLINE ?= 1

.PHONY: install demo test security clients lint type arch golden architectures bench promises check wheel lock clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt $(wildcard runtime/blockc_runtime/native/*.cpp runtime/blockc_runtime/native/*.h)
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'blockc needs Python 3.11 or newer')"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "pip>=25.1"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --group dev -e .
	touch $(STAMP)

demo: install
	$(BIN)/blockc demo

# Two test processes with one math thread each: OpenMP threads that outnumber the cores lose a factor of ten.
test security clients golden wheel: export OMP_NUM_THREADS ?= 1
# Asserts are rewritten once for all runs. Each process has a half of the tests in their order, and takes from the other's
# when it is through: what a folder shares is mostly made once.
test: export PYTHONDONTWRITEBYTECODE =
test: install
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not cuda and not wheel and not clients"

# Without `assert`: nothing that keeps tenants apart may hang on one. (pytest's own in the tests stay.)
security: install
	$(BIN)/python -O -m pytest -n 2 -W ignore::pytest.PytestConfigWarning $(SECURITY)

# Client libraries as they are published, against the samples: an environment of their own, and npm where there is one.
clients: install $(CLIENTS)/.installed
	$(BIN)/python -m pytest -m clients tests/clients -rs

$(CLIENTS)/.installed: tests/clients/requirements.txt tests/clients/package.json
	test -x $(CLIENTS)/bin/python || $(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install --quiet --disable-pip-version-check -r tests/clients/requirements.txt
	cp tests/clients/package.json $(CLIENTS)
	! command -v npm || npm install --silent --no-audit --no-fund --prefix $(CLIENTS)
	touch $@

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: install
	$(BIN)/mypy

arch: install
	$(BIN)/lint-imports --config .importlinter

golden: install
	$(BIN)/python -m pytest -q --update-golden

architectures: install
	$(BIN)/python -m tests.support.every_architecture
	$(BIN)/ruff format blockc/architectures.py

bench: install
	$(BIN)/python -m benchmarks

promises: install
	$(BIN)/python -m benchmarks.promises

wheel: install
	$(BIN)/python -m pytest tests/packaging -m wheel

check: lint type arch test security wheel

lock: install
	{ head -n 1 constraints.txt; $(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu//'; } > constraints.new
	mv constraints.new constraints.txt

clean:
	rm -rf $(VENV) $(CLIENTS) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
