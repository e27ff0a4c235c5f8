"""docs/reliability.md: a line for each part and backend, written from what was run; other lines keep what they had."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import REPO
from tests.torture.core import Tally

PAGE = REPO / "docs" / "reliability.md"
HEAD = """\
# Reliability

What was done to volctl to break its promises (every volume, snapshot, image, quota, file and device is as it should be
after one more command), and how often it broke one. `scripts/torture --write` writes this page from what it ran;
nothing here is typed in. After each run an oracle that shares no code with volctl (`tests/oracle.py`) looks at the
database, the pools and the machine. "19 of 1900" are 19 chosen by the seed where 1900 are known; a longer run takes
more, up to all of them.

"""
COLUMNS = ("what", "where", "runs", "violations", "seed", "date", "again with")
NOT_RUN = ("not run", "", "", "")


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the table: what is done, on which backend, and the command that does it again."""

    what: str
    where: str
    command: str

    @property
    def key(self) -> tuple[str, str]:
        return self.what, self.where


def cells(tally: Tally, seed: int) -> tuple[str, str, str, str]:
    runs = f"{tally.runs}" if tally.total is None else f"{tally.runs} of {tally.total}"
    notes = "".join(f"; {count} {what}" for what, count in sorted(tally.notes.items()))
    return (
        "; ".join([runs + notes, *tally.told]),
        str(len(tally.wrong)),
        str(seed),
        datetime.datetime.now(datetime.UTC).date().isoformat(),
    )


def known(page: str) -> dict[tuple[str, str], tuple[str, ...]]:
    """What the page says of each line that was run."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line[:1] == "|"]
    return {(row[0], row[1]): tuple(row[2:6]) for row in rows[2:] if row[2] != NOT_RUN[0]}


def render(lines: list[Line], results: Mapping[tuple[str, str], tuple[str, ...]]) -> str:
    rows = [COLUMNS, *(_row(line, results.get(line.key, NOT_RUN)) for line in lines)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    text = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    text.insert(1, "| " + " | ".join("-" * width for width in widths) + " |")
    return HEAD + "\n".join(text) + "\n"


def _row(line: Line, result: tuple[str, ...]) -> tuple[str, ...]:
    seed = f" --seed {result[2]}" if result[2] else ""
    return line.what, line.where, *result, f"`{line.command}{seed}`"


def write(lines: list[Line], results: Mapping[tuple[str, str], tuple[str, ...]], page: Path = PAGE) -> None:
    before = known(page.read_text()) if page.exists() else {}
    page.parent.mkdir(exist_ok=True)
    page.write_text(render(lines, before | dict(results)))
