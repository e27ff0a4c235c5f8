"""What a run of the tests says at its end: how long each part took, and how a failure is repeated.

`VOLCTL_PARTS` names a file that gets the table's lines, for `scripts/check`.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest

from tests.sampling import EVERY, SEED

COUNTS = [f"VOLCTL_{what}" for what in ("POPULATIONS", "RANDOM_KILLS", "REPLAYS", "POWER_CUTS", "CUT_ROUNDS", "FUZZ")]
SECONDS = dict[str, float]()
TESTS = dict[str, int]()


def part_of(report: pytest.TestReport) -> str:
    """The directory below tests/; what runs in a guest is a part by itself."""
    path, _, name = report.nodeid.partition("::")
    if "guest" in report.keywords or "vm" in report.keywords:
        return name.removeprefix("test_")
    words = path.split("/")
    return words[1] if len(words) > 2 else words[-1]


def again(nodeid: str) -> str:
    """The command that runs one test once more on the same sample; in a guest, the host's that boots it for that."""
    values = {"VOLCTL_SEED": str(SEED)} | ({"VOLCTL_EVERY": str(EVERY)} if EVERY else {})
    values |= {name: os.environ[name] for name in COUNTS if name in os.environ}
    if boot := os.environ.get("VOLCTL_BOOT"):
        values["VOLCTL_GUEST"], nodeid = nodeid.rpartition("::")[2].partition("[")[0], boot
    words = [f"{name}={value}" for name, value in values.items()]
    return " ".join([*words, ".venv/bin/python -m pytest", shlex.quote(nodeid)])


def pytest_report_header() -> str:
    return f"sample: VOLCTL_SEED={SEED}" + (f" VOLCTL_EVERY={EVERY}" if EVERY else "")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    part = part_of(report)
    SECONDS[part] = SECONDS.get(part, 0.0) + report.duration
    if report.when == "teardown":  # told once of each test; of a boot it is told how many were in it
        within = [int(str(value)) for name, value in report.user_properties if name == "tests"]
        TESTS[part] = TESTS.get(part, 0) + sum(within or [1])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not SECONDS:
        return
    lines = [f"{part} {TESTS.get(part, 0)} {SECONDS[part]:.0f}" for part in sorted(SECONDS, key=SECONDS.__getitem__)]
    if into := os.environ.get("VOLCTL_PARTS"):
        Path(into).write_text("".join(f"{line}\n" for line in reversed(lines)), encoding="ascii")
        return
    terminalreporter.section("seconds by part")
    for line in reversed(lines):
        terminalreporter.write_line("{:<40}{:>7} tests{:>7} s".format(*line.split()))
