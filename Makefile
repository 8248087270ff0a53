# `make demo`: install, render a data set, train FACENet on it, evaluate, export.
# `make test`: the same environment, the tests.
PYTHON ?= python3
INSTALLED := .venv/.installed

.PHONY: demo test lint
demo: $(INSTALLED)
	.venv/bin/python scripts/demo.py

test: $(INSTALLED)
	.venv/bin/python -m pytest

lint: $(INSTALLED)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

# A stamp, so that the second call installs nothing.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "python3 is %d.%d; facenet_jax needs 3.11 or newer, set PYTHON=..." % sys.version_info[:2])'
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@
