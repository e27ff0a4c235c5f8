# Every target sets up what it needs; the second time that costs nothing.
.DEFAULT_GOAL := help
.PHONY: help demo test test-lvm torture bench lint clean

help:
	@echo 'make demo    a 10 GiB volume from a real Debian image, step by step'
	@echo 'make test    lint, types, import rules, every test that needs no guest, thin LVM in one (ten minutes)'
	@echo 'make test-lvm  real LVM killed at every point and 500 times at random, 100 lost databases, mirrors (hours)'
	@echo 'make torture kills, failing system calls, full disks, crowds, for half an hour'
	@echo 'make bench   how fast it is, beside the bars'
	@echo 'make lint    format, lint, types, import and house rules only'
	@echo 'make clean   remove what the above made in this directory'

demo:
	@scripts/demo

test:
	@scripts/check host $(PYTEST)

test-lvm: lint
	VOLCTL_KILL_STRIDE=1 VOLCTL_POPULATIONS=100 VOLCTL_RANDOM_KILLS=250 .venv/bin/python -m pytest \
		tests/system/test_vm.py -k "conformance or kills or mends or doctor or repair or rebuild or random" $(PYTEST)

torture:
	@scripts/torture $(TORTURE)

lint:
	@scripts/bootstrap test
	.venv/bin/ruff check .
	.venv/bin/ruff format --check --quiet .
	.venv/bin/mypy volctl backends tests scripts/boot scripts/vm scripts/vm_images.py scripts/vm_machine.py \
		scripts/bench scripts/bench_*.py
	.venv/bin/lint-imports --no-logo
	.venv/bin/python -m pytest -q tests/unit/test_house.py

bench:
	@scripts/bootstrap test
	.venv/bin/python scripts/bench

clean:
	rm -rf .venv .cache .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis dist
