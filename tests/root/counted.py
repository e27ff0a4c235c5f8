"""What the guest tells the host of its tests, for the torture's table."""

from __future__ import annotations

from pathlib import Path

PLACE = Path("/out/counted")


def counted(what: str, runs: int, total: int) -> None:
    """So many, of so many that there are."""
    with PLACE.open("a") as file:
        file.write(f"{runs} {total} {what}\n")
