"""Which part of a large set one run takes: another part at each commit, so that landings together take all of it.

`VOLCTL_SEED` is the number that decides (else the commit's; 1 where there is no git). `VOLCTL_EVERY` is how much: every
so many, whatever a test takes by itself; 1 is everything (`make torture`, `make test-lvm`).
"""

from __future__ import annotations

import itertools
import os
import subprocess
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def of_the_commit() -> int:
    words = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short=7", "HEAD"]
    try:
        told = subprocess.run(words, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return 1
    return int(told.stdout.strip()[:7], 16) if told.returncode == 0 else 1


SEED = int(os.environ.get("VOLCTL_SEED") or of_the_commit())
os.environ["VOLCTL_SEED"] = str(SEED)  # for what a test starts: there may be no git there
EVERY = int(os.environ.get("VOLCTL_EVERY", "0"))


def stride(usual: int) -> int:
    """Every so many are taken; `usual` is what a test takes by itself."""
    return EVERY or usual


def phase(name: str, step: int) -> int:
    """A number below `step` that moves with the seed; another one for each name."""
    return zlib.crc32(f"{SEED} {name}".encode()) % step


def sampled(items: Sequence[T], name: str, usual: int) -> Sequence[T]:
    """Each `usual`th item, from one on that the seed decides; never none of some."""
    step = stride(usual)
    return items[phase(name, min(step, len(items))) :: step] if items else items


def spread(items: Sequence[T], name: str, count: int) -> Sequence[T]:
    """So many of them, evenly, all of them in turn as the seed moves; all if there are no more, or for a count of 0."""
    total = len(items)
    if not 0 < count < total:
        return items
    first = phase(name, total)
    return [items[(number * total + first) // count] for number in range(count)]


def numbers(name: str, usual: int, least: int = 1) -> Iterator[int]:
    """As `sampled` of 1, 2, 3, ..., for who finds out how many there are by going on.

    There must be `least`: that one comes first, whatever the seed says, so that fewer are seen, and never none taken.
    """
    step = stride(usual)
    first = 1 + phase(name, step)
    return itertools.chain([least] if step > 1 else [], itertools.count(first, step))
