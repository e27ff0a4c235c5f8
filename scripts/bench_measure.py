"""How `scripts/bench` measures: whole processes, in turn, and what it prints of them."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

KiB, MiB, GiB = 1024, 1024**2, 1024**3
WARM_UP = 1
Command = Sequence[str]


@dataclass(frozen=True, slots=True)
class Ran:
    """One process from its start to its end: seconds, and the peak resident bytes of its largest process."""

    seconds: float
    peak: int


@dataclass(frozen=True, slots=True)
class Pair:
    """Medians in seconds of two commands run in turn (A B A B …), and of the ratios A/B, pair by pair."""

    a: float
    b: float
    ratio: float


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table; `kept` is None where there is no bar, or nothing could be measured."""

    what: str
    figure: str
    bar: str
    kept: bool | None


def run(command: Command, env: dict[str, str]) -> Ran:
    """Run to the end, output thrown away; a failure ends the bench, for its figure would be of something else."""
    began = time.monotonic()
    process = subprocess.Popen(
        command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stderr.close()
    if process.returncode:
        sys.exit(f"bench: {' '.join(command)} failed with {process.returncode}:\n{said}")
    return Ran(seconds, usage.ru_maxrss * KiB)


def seconds_of(act: Callable[[], object]) -> float:
    began = time.monotonic()
    act()
    return time.monotonic() - began


def paired(a: Callable[[], float], b: Callable[[], float], runs: int) -> Pair:
    """Two measurements in turn, since the speed of a machine drifts; what the warm-up took does not count."""
    for _ in range(WARM_UP):
        a(), b()
    taken = [(a(), b()) for _ in range(runs)]
    ratio = statistics.median(first / second for first, second in taken)
    return Pair(statistics.median(first for first, _ in taken), statistics.median(second for _, second in taken), ratio)


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 10 else f"{seconds:.1f} s"


def times(what: str, pair: Pair, peer: str, bar: float, runs: int) -> Row:
    """A row whose bar is a multiple of a peer's time."""
    figure = f"{milliseconds(pair.a)} = {pair.ratio:.2f} x {milliseconds(pair.b)} ({peer}), median of {runs}"
    return Row(what, figure, f"<= {bar:g} x", pair.ratio <= bar)


VERDICT = {True: "ok", False: "MISSED", None: "-"}


def show(row: Row) -> None:
    """Print a row at once: the next may take a minute."""
    print(f"{VERDICT[row.kept]:<7} {row.what:<64} {row.bar:<14} {row.figure}", flush=True)


def heading(text: str) -> None:
    print(f"\n{text}", flush=True)
