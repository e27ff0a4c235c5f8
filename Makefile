# Every target sets up what it needs; the second time that costs nothing.
.DEFAULT_GOAL := help
.PHONY: help demo test test-vm test-next test-lvm torture bench lint clean

help:
	@echo 'make demo    a 10 GiB volume from a real Debian image, step by step'
	@echo 'make test    lint, types, import rules, every test that needs no guest, thin LVM in one (ten minutes)'
	@echo 'make test-vm the rest of real LVM, in emulated machines: full pools, kills, power cuts (25 minutes)'
	@echo 'make test-next  make test on Debian 13 and Python 3.13, in a bare chroot (root)'
	@echo 'make test-lvm  the same at every point: 500 random kills, 100 lost databases, 300 power cuts, mirrors (hours)'
	@echo 'make torture kills, failing system calls, full disks, crowds, for half an hour'
	@echo 'make bench   how fast it is, beside the bars'
	@echo 'make lint    format, lint, types, import and house rules only'
	@echo 'make clean   remove what the above made in this directory'

demo:
	@scripts/demo

test:
	@scripts/check host $(PYTEST)

test-vm:
	@scripts/check vm $(PYTEST)

test-next:
	@scripts/test-next $(PYTEST)

test-lvm:
	@scripts/bootstrap test
	VOLCTL_EVERY=1 VOLCTL_POPULATIONS=100 VOLCTL_RANDOM_KILLS=250 VOLCTL_POWER_CUTS=300 \
		.venv/bin/python -m pytest -n 2 --dist worksteal -m vm $(PYTEST)

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
