# Everything runs in .venv, made on first use and again when setup.cfg changes. No root needed.
#
#   make demo    install, start a server with its own database, send and find real images (ARGS="--exit" ends it)
#   make test    install what the tests need and run them          (ARGS="-k archive" passes options to pytest,
#                                                                  PROCESSES=4 says how many run tests at once)
#   make serve   run a server                                      (ARGS="--port 9000 --data-dir DIR")
#   make lint    ruff, mypy, import rules
#   make bench   benchmarks, beside Orthanc where that is installed
#   make sbom    write what is installed for a server as build/sbom.json (CycloneDX)
#   make clean   remove .venv and what tools left; never data

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
ARGS ?=
# JavaScript that tests run in a browser: SMART's own client, and rules of accessibility.
NPM_PACKAGES := fhirclient@2.6.3 axe-core@4.10.3
# Tests wait for the disk more than they compute. Each process has a mongod of its own; a few chosen tests need one.
PROCESSES ?= $(if $(ARGS),0,4)

.PHONY: demo test serve lint format bench sbom clean

demo: $(VENV)/installed
	@$(BIN)/fhir-imaging demo $(ARGS)

serve: $(VENV)/installed
	@$(BIN)/fhir-imaging serve $(ARGS)

# Compiled first: where PYTHONDONTWRITEBYTECODE is set, each of hundreds of commands and servers would compile it all anew.
test: $(VENV)/installed-test
	@$(BIN)/python -m compileall -q -j 0 fhir_server imaging tests/support
	@$(BIN)/python -m pytest -n $(PROCESSES) --dist loadfile $(ARGS)

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/installed-test
	@$(BIN)/python -m tests.benchmarks $(ARGS)

# In environments of their own: what is listed is what a server needs, without the tools that list it.
sbom: | $(BIN)/python
	@rm -rf build/sbom && mkdir -p build/sbom
	@$(PYTHON) -m venv build/sbom/server && build/sbom/server/bin/python -m pip install --quiet '.[embedded]'
	@$(PYTHON) -m venv build/sbom/tool && build/sbom/tool/bin/python -m pip install --quiet 'cyclonedx-bom>=7'
	@build/sbom/tool/bin/cyclonedx-py environment --output-reproducible --validate --output-file build/sbom.json \
		build/sbom/server/bin/python
	@rm -rf build/sbom
	@echo "build/sbom.json"

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .coverage
	find fhir_server imaging tests -name __pycache__ -prune -exec rm -rf {} +

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or later is needed; name it with: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "Python cannot make a virtual environment (on Debian: apt install python3-venv)"; exit 1; }

$(VENV)/installed: setup.cfg pyproject.toml | $(BIN)/python
	@echo "Installing into $(VENV), once; this takes a minute ..."
	@$(PIP) install --editable '.[embedded]'
	@touch $@

$(VENV)/installed-test: setup.cfg pyproject.toml | $(BIN)/python
	@echo "Installing into $(VENV) with the test tools, once; this takes a minute ..."
	@$(PIP) install --editable '.[embedded,test]'
	@command -v npm >/dev/null || echo "npm is not here: tests with JavaScript clients will be skipped"
	@! command -v npm >/dev/null || npm install --silent --no-save --no-audit --no-fund --prefix $(VENV)/npm $(NPM_PACKAGES)
	@touch $@ $(VENV)/installed
