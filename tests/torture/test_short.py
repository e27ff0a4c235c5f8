"""A short form of each part of the torture, with the commit's seed: another sample at each landing, and repeatable.

`make torture` draws its seeds, and takes all points.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.conftest import REPO
from tests.engine.crash import Rig
from tests.sampling import SEED, sampled
from tests.torture import report
from tests.torture.core import Budget, Tally, worlds
from tests.torture.matrix import everywhere
from tests.torture.parts import LINES, PARTS, counted, suite
from tests.torture.planted import PAGE, caught
from tests.torture.plants import PLANTS, Plant
from tests.torture.verbs import VERBS

CASES = {
    ("syscalls", "loop"): 10,
    ("kills", "loop"): 5,
    ("kills", "caching"): 5,
    ("mix", "loop"): 50,
    ("mix", "caching"): 50,
    ("mix", "reflink"): 50,
    ("mix", "qcow2"): 30,
    ("full", "loop"): 10,
    ("machine", "fake"): 40,
    ("orphans", "loop"): 5,
}
"""Seconds, not minutes."""
SECONDS = 120.0  # for a machine that others use as well


@pytest.mark.parametrize(("name", "kind"), CASES, ids=map("-".join, CASES))
def test_nothing_is_violated(name: str, kind: str) -> None:
    part = next(part for part in PARTS if part.name == name)
    if part.needs_root or kind == "reflink":
        _needs_root()
    cases = CASES[name, kind]
    again = f"scripts/torture --only {name} --backend {kind} --seed {SEED} --cases {cases}"
    print(again)
    tally = part.run(kind, Budget(SEED, SECONDS, cases))
    assert not tally.wrong, "\n".join([*tally.wrong, f"again with: {again}"])
    assert tally.runs


def _needs_root() -> None:
    from tests.conftest import IS_ROOT

    if not IS_ROOT:
        pytest.skip("needs root")


@pytest.fixture(scope="module")
def caching() -> Iterator[Rig]:
    with worlds("caching") as world:
        yield world


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("adopt", 10),
        ("release", 10),
        ("backup-db", 5),
        ("doctor-fix", 30),
        ("doctor-rebuild", 8),
        ("image-fetch", 20),
        ("create-cached", 20),
        ("cache-prune", 9),
    ],
)
def test_what_no_other_matrix_kills_is_killed_at_any_point(caching: Rig, name: str, least: int) -> None:
    points, wrong = everywhere(caching, VERBS[name], 4)
    assert not wrong, "\n".join(f"{where}: {found}" for where, found in wrong.items())
    assert points >= least


HERE = [plant for plant in PLANTS if not plant.guest]


@pytest.mark.parametrize("plant", sampled(HERE, "planted", 10), ids=lambda plant: plant.what.replace(" ", "-"))
def test_a_mistake_that_is_planted_is_caught(plant: Plant) -> None:
    """Two or three of them; `scripts/torture --only planted` has all."""
    seconds, by = caught(plant, SEED)
    print(f"{plant.what}: caught by {by} in {seconds:.1f} s")
    assert by


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.what.replace(" ", "-"))
def test_what_a_mistake_replaces_is_there_once(plant: Plant) -> None:
    assert (REPO / plant.file).read_text().count(plant.old) == 1
    assert all((REPO / word).exists() for word in plant.words if word.startswith("tests/"))
    assert f"| {plant.room} | {plant.what} | `tests/" in PAGE.read_text()


def test_the_table_keeps_what_was_not_run_again() -> None:
    first, second = LINES[:2]
    tally = Tally(runs=19, total=1900, wrong=["x"], notes={"killed": 3}, told=["as told"])
    page = report.render(LINES, {first.key: report.cells(tally, 7)})
    (row,) = [line for line in page.splitlines() if first.what in line and f"| {first.where} " in line]
    assert re.search(r"\| 19 of 1900; 3 killed; as told +\| 1 +\| 7 +\| \d{4}-\d\d-\d\d +\|", row)
    assert set(report.known(page)) == {first.key}
    again = report.render(LINES, report.known(page) | {second.key: report.cells(Tally(runs=4), 8)})
    assert row.split() == next(line for line in again.splitlines() if first.what in line).split()
    assert page.count("not run") == len(LINES) - 1


def test_what_tests_say_they_did_is_added_up() -> None:
    told = [
        ("counted", "3 10 kills on thin"),
        ("other", "1"),
        ("counted", "4 10 kills on thin"),
        ("counted", "2 2 cuts"),
        ("noted", "3 killed"),
        ("noted", "1 killed"),
    ]
    tally = counted(ElementTree.Element("property", name=name, value=value) for name, value in told)
    assert (tally.runs, tally.total, tally.told) == (9, 22, ["7 of 20 kills on thin", "2 of 2 cuts"])
    assert tally.notes == {"killed": 4}


def test_what_failed_in_a_guest_is_counted_there_and_once(tmp_path: Path) -> None:
    (tmp_path / "test_boots.py").write_text("""
def test_passes(): pass
def test_boot(): assert False, "of it:\\nFAILED tests/root/test_a.py::test_b[1] - x\\nERROR tests/root/test_c.py"
def test_late(): assert False, "it took too long"
""")
    (tmp_path / "pytest.ini").write_text("[pytest]\n")  # else names begin where this directory and the checkout part
    tally = suite(str(tmp_path))("any", Budget(1))
    assert tally.runs == 3
    assert tally.wrong == ["tests/root/test_a.py::test_b[1]", "tests/root/test_c.py", "test_boots.test_late"]


def test_the_page_has_every_line_and_nothing_by_hand() -> None:
    page = (REPO / "docs" / "reliability.md").read_text()
    assert page == report.render(LINES, report.known(page))
