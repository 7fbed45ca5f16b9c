PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help search test integrations slow check docs mutants .venv

help: ## say what can be made
	@awk -F ':.*## ' '/^[a-z.]+: .*##/ {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

search: .venv ## find latent sizes for a ResNet-20 on real digits, in a few minutes
	$(BIN)/python -m ranksearch

check: .venv ## lint, format, types, layers of imports, dead code, unused dependencies
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo --no-cache
	$(BIN)/vulture
	$(BIN)/deptry .

test: check ## check, then the tests
	$(BIN)/python -m pytest

integrations: .venv ## the tests with large packages of others, which it installs: transformers and lightning
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[integrations]'
	$(BIN)/python -m pytest -n 0 -m integrations

slow: .venv ## the tests that the others leave out, half an hour of killed workers and networks for ImageNet
	$(BIN)/python -m pytest -m slow

.venv: .venv/.complete ## the environment alone

docs: .venv ## the pages and the reference as a site in build/site, without a network
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "build/site/index.html; its search needs a server: $(BIN)/python -m http.server --directory build/site"

mutants: .venv ## change the solver and the allocation in every small way, and see that a test notices
	$(BIN)/mutmut run
	$(BIN)/mutmut results

# Made anew in place when the project's requirements change; complete only once pip has succeeded.
.venv/.complete: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ranksearch needs Python 3.11 or newer: make PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@
