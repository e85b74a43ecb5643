PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PEERS_INSTALLED := $(VENV)/.installed-benchmarks
DOCS_INSTALLED := $(VENV)/.installed-docs
PACKAGE_INSTALLED := $(VENV)/.installed-package

# The models are small: one thread for each process is fastest, and reproducible.
OMP_NUM_THREADS ?= 1
export OMP_NUM_THREADS
# Material's announcement of a successor is no warning of ours.
export NO_MKDOCS_2_WARNING := 1

.DEFAULT_GOAL := help

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-15s %s\n", $$1, $$2 }' Makefile

.PHONY: demo
demo: $(INSTALLED) ## Fit the Eight Schools model and show the result
	$(BIN)/python examples/eight_schools.py

.PHONY: test
test: lint ## Run the linter, the type checker and the tests
	$(BIN)/python -m pytest -n $(WORKERS)

.PHONY: slow
slow: $(INSTALLED) ## Run the longer statistical checks
	$(BIN)/python -m pytest -n $(WORKERS) -m slow

.PHONY: lint
lint: $(INSTALLED) ## Check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.PHONY: format
format: $(INSTALLED) ## Format the code and apply the linter's safe fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: docs
docs: $(DOCS_INSTALLED) ## Build the documentation site in site/, warnings are errors; run its code, look at it in a browser
	$(BIN)/mkdocs build --strict
	AVBVI_SITE=$(CURDIR)/site $(BIN)/python -m pytest -q -n $(WORKERS) -m slow tests/site tests/reports tests/test_page_code.py

.PHONY: serve
serve: $(DOCS_INSTALLED) ## Show the documentation at localhost:8000, made anew as its sources change
	$(BIN)/mkdocs serve

.PHONY: notebooks
notebooks: $(DOCS_INSTALLED) ## Run the tutorials in full and keep their results (each under 3 minutes)
	$(BIN)/python -m docs.notebooks

.PHONY: quick-notebooks
quick-notebooks: $(DOCS_INSTALLED) ## Run the quick form of the tutorials; their files stay as they are
	$(BIN)/python -m docs.notebooks --quick

.PHONY: package
package: $(PACKAGE_INSTALLED) ## Build sdist and wheel, check them, and use the wheel in a clean environment
	$(BIN)/python -m tests.package_check
	$(BIN)/python -m pytest -q -m slow tests/test_packaging.py

.PHONY: gpu
gpu: $(INSTALLED) ## Check and time what needs a CUDA device; exit status 2 without one
	$(BIN)/python -m benchmarks.gpu

.PHONY: bench
bench: $(PEERS_INSTALLED) ## Run all benchmarks beside their peers (hours)
	$(BIN)/python -m benchmarks.eight_schools
	$(BIN)/python -m benchmarks.toy_densities
	$(BIN)/python -m benchmarks.own_sampler
	$(BIN)/python -m benchmarks.posteriordb
	$(BIN)/python -m benchmarks.robust
	$(BIN)/python -m benchmarks.divergences --workers 1
	$(BIN)/python -m benchmarks.verdicts
	$(BIN)/python -m benchmarks.stopping
	$(BIN)/python -m benchmarks.calibration
	$(BIN)/python -m benchmarks.safety kill-resume
	$(BIN)/python -m benchmarks.safety million-steps
	$(BIN)/python -m benchmarks.marginals
	$(BIN)/python -m benchmarks.synthetic_vae
	$(BIN)/python -m benchmarks.linear_gaussian
	$(BIN)/python -m benchmarks.objectives
	$(BIN)/python -m benchmarks.family
	$(BIN)/python -m benchmarks.digits
	$(BIN)/python -m benchmarks.relatives
	$(BIN)/python -m benchmarks.mnist --seeds 3 --test-images 256 --temperatures 200 --piece-minutes 120
	$(BIN)/python -m benchmarks.speed
	$(BIN)/python -m benchmarks.time_to_kl
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.scale
	$(BIN)/python -m benchmarks.distributed
	$(BIN)/python -m benchmarks.import_time
	$(BIN)/python -m benchmarks.report

.PHONY: clean
clean: ## Remove caches and build products; the virtual environment stays
	rm -rf .cache .mypy_cache .pytest_cache .ruff_cache build dist site
	find avbvi benchmarks docs examples models tests -type d -name __pycache__ -prune -exec rm -rf {} +

# Stamps: the environment is made once, and updated when what it installs has changed.
$(INSTALLED): pyproject.toml constraints.txt
	@if ! test -x $(BIN)/python; then \
		$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
			echo "avbvi needs Python 3.11 or newer, and '$(PYTHON)' is not:" \
				"run make PYTHON=/path/to/python3.11" >&2; exit 1; }; \
		$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
			echo "'$(PYTHON)' lacks the venv module: install it" \
				"(on Debian or Ubuntu: apt install python3-venv)" >&2; exit 1; }; \
		$(PYTHON) -m venv $(VENV); \
	fi
	$(BIN)/python -m pip install -c constraints.txt -e ".[test]"
	@touch $@

$(DOCS_INSTALLED): $(INSTALLED)
	$(BIN)/python -m pip install -c constraints.txt -e ".[docs]"
	@touch $@

$(PACKAGE_INSTALLED): $(INSTALLED)
	$(BIN)/python -m pip install -c constraints.txt -e ".[package]"
	@touch $@

$(PEERS_INSTALLED): $(INSTALLED)
	$(BIN)/python -m pip install -c constraints.txt -e ".[benchmarks]"
	@touch $@
