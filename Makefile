# make demo    train, release and recommend on simulated pins; downloads nothing but packages
# make test    every test
# make lint    lint, types and import layers
# make docs    the documentation site, with broken links as errors
# make wheel   test of the wheel, installed with all its packages into a fresh environment
# make locks   lock files with hashes, from pyproject.toml and constraints.txt
# make sbom    software bill of materials of the serving image: sbom.json
# make audit   compare the lock files with known advisories
# make check   lint, docs, then every test
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: demo test check lint docs wheel locks sbom audit clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"recsys needs Python 3.11 or newer, found {v.major}.{v.minor}: make PYTHON=python3.11 ...")'
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all,dev,docs,spark,notebooks]'
	touch $@

demo: $(VENV)/.installed
	$(RUN) train.py +experiment=quickstart hydra.run.dir=demo/run
	$(RUN) index.py run=demo/run store=demo/releases
	$(RUN) recommend.py release=candidate store=demo/releases users=test k=100 out=demo/recommendations.parquet
	$(RUN) demo.py demo/run demo/recommendations.parquet demo/recall.png

test: $(VENV)/.installed
	$(RUN) -m pytest

lint: $(VENV)/.installed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(VENV)/bin/lint-imports

docs: $(VENV)/.installed
	$(RUN) -m mkdocs build --strict --quiet --site-dir .cache/site

wheel: $(VENV)/.installed
	RECSYS_TEST_FRESH_INSTALL=1 $(RUN) -m pytest -n 0 -q tests/deployment/test_wheel.py

# Tools that the project itself does not need have an environment of their own.
TOOLS := .cache/tools/bin
LOCK := $(TOOLS)/uv pip compile --quiet --constraint constraints.txt --generate-hashes --universal \
	--python-version 3.11 --no-annotate --no-header

$(TOOLS)/.installed:
	$(PYTHON) -m venv .cache/tools
	$(TOOLS)/pip install --quiet --disable-pip-version-check uv cyclonedx-bom pip-audit
	touch $@

locks: $(TOOLS)/.installed
	$(LOCK) pyproject.toml --extra serving --output-file locks/serving.txt
	$(LOCK) pyproject.toml --extra all --output-file locks/all.txt
	printf 'hatchling\nsetuptools\nwheel\n' | $(LOCK) - --output-file locks/build.txt

sbom: $(TOOLS)/.installed
	$(TOOLS)/cyclonedx-py requirements locks/serving.txt --pyproject pyproject.toml --output-file sbom.json

audit: $(TOOLS)/.installed
	$(TOOLS)/pip-audit --strict --require-hashes --disable-pip --requirement locks/serving.txt
	$(TOOLS)/pip-audit --strict --require-hashes --disable-pip --requirement locks/all.txt

check: lint docs test

clean:
	rm -rf demo runs releases .cache
