"""What may happen to a running command at any time: killed, alone or with all that it started, or told to end."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterable
from contextlib import suppress

from tests.engine.crash import Ended

AGAIN = 0.7  # how likely the command that settles is killed as well, and the one after it …
POLITE = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ENDS = frozenset({-signal.SIGKILL, *(128 + number for number in POLITE), *(-number for number in POLITE)})
"""How a command that was attacked may end, other than as usual."""


def wrong_end(ended: Ended, codes: Iterable[int] = ()) -> list[str]:
    """A signal's own exit code, whatever it met; done is done; and nothing else but these can go wrong."""
    found = [] if ended.status in {0, *ENDS, *codes} else [f"exit {ended.status}: {ended.err.strip()}"]
    return [*found, ended.err] if "Traceback" in ended.err else found


def attack(pid: int, rng: random.Random, usual: float) -> str:
    """At a random time of the `usual` seconds that it takes; what was done."""
    time.sleep(rng.uniform(0, 0.9 * usual))
    return rng.choice((_kill, _kill, _kill_all, _signal, _signals))(pid, rng, usual)


def _kill(pid: int, rng: random.Random, usual: float) -> str:
    _send(pid, signal.SIGKILL)
    return "kill"


def _kill_all(pid: int, rng: random.Random, usual: float) -> str:
    """What the kernel's memory killer or the end of a container does: nobody is left."""
    for one in (pid, *descendants(pid)):
        _send(one, signal.SIGKILL)
    return "kill of all"


def _signal(pid: int, rng: random.Random, usual: float) -> str:
    number = rng.choice(POLITE)
    _send(pid, number)
    return number.name


def _signals(pid: int, rng: random.Random, usual: float) -> str:
    first = _signal(pid, rng, usual)
    time.sleep(rng.uniform(0, usual / 4))
    return f"{first} and {_signal(pid, rng, usual)}"


def _send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def descendants(pid: int) -> list[int]:
    """Children and theirs, as far as they still have their parents."""
    found: list[int] = []
    with suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children") as file:
                found += map(int, file.read().split())
    return [each for child in found for each in (child, *descendants(child))]
