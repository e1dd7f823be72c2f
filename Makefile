# make pretrain   prepare the environment if need be, then run the main job to its end
# make test       prepare the environment if need be, then lint and test
# make docs       prepare the environment if need be, then build the docs site into build/site
# Choose another Python or torch with PYTHON=, TORCH= and TORCH_INDEX= (see scripts/setup.sh).

.PHONY: setup pretrain lint test test-slow docs clean
.DEFAULT_GOAL := test

export PYTHON TORCH TORCH_INDEX
in_env := PATH="$(CURDIR)/.venv/bin:$$PATH" VIRTUAL_ENV="$(CURDIR)/.venv"

setup:
	@bash scripts/setup.sh

pretrain: setup
	$(in_env) deepspeed launchers/pretrain.py --ds_config ds_configs/zero3.json

lint: setup
	$(in_env) ruff check .
	$(in_env) ruff format --check .
	$(in_env) mypy
	$(in_env) lint-imports
	$(in_env) python scripts/check_links.py

# The tests of one process first, as many at once as there are cores; then those that start ranks of their own.
of_one_process := tests/unit tests/golden tests/fuzz

test: lint
	$(in_env) pytest -n logical --maxprocesses 8 -m "not slow and not gpu" $(of_one_process)
	$(in_env) pytest -m "not slow and not gpu" $(of_one_process:%=--ignore %)

test-slow: setup
	$(in_env) pytest -m "slow and not gpu"

docs: setup
	$(in_env) python scripts/stage_docs.py
	$(in_env) zensical build --strict

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
