"""Killed at any time: the command alone, with its children, or by signals; and again while settling."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field

from tests.engine.attack import AGAIN, attack, wrong_end
from tests.engine.crash import Ended, Rig
from tests.torture.core import Budget, Tally, another, quiet, worlds
from tests.torture.verbs import Verb, fitting, outcome

SETTLING = ("list --json", "quota show --json", "create --size 1M", "flow list --json")


def run(kind: str, budget: Budget) -> Tally:
    """One random verb after another, each in a world of its own."""
    tally = Tally()
    with worlds(kind) as world:
        usual = Usual(world, fitting(world))
        while not budget.spent(tally):
            _one(world, budget.random(f"kill {tally.runs}"), usual, tally)
    return tally


@dataclass(frozen=True, slots=True)
class Usual:
    """How long a command line takes when nobody kills it, in seconds; tried when it is first asked for."""

    world: Rig
    verbs: dict[str, Verb]
    known: dict[str, float] = field(default_factory=dict)

    def __getitem__(self, line: str) -> float:
        if line not in self.known:
            with another(self.world) as rig:
                for verb in self.verbs.values():
                    if verb.argv == line:
                        verb.prepare(rig)
                begun = time.monotonic()
                rig.run(*rig.words(line), status=0)
                self.known[line] = time.monotonic() - begun
        return self.known[line]


def _one(world: Rig, rng: random.Random, usual: Usual, tally: Tally) -> None:
    name = rng.choice(list(usual.verbs))
    verb = usual.verbs[name]
    seconds = usual[verb.argv]  # in a world of its own, and only one can be attached at a time
    with another(world) as rig:
        verb.prepare(rig)
        first, how = _attacked(rig, verb.argv, rng, seconds)
        said = [f"{name} by {how}: exit {first.status}"]
        found = wrong_end(first, verb.codes)
        tally.note("survivors of their own kill" if first.status >= 0 else "killed")
        while rng.random() < AGAIN:
            line = rng.choice(SETTLING)
            again, how = _attacked(rig, line, rng, usual[line])
            found += wrong_end(again, verb.codes)
            said.append(f"{line} by {how}: exit {again.status}")
            tally.note("killed while settling")
        if not quiet(rig.root):
            found.append("a process lives on")
        found += outcome(rig, verb, first)
    tally.add("; ".join(said), found)


def _attacked(rig: Rig, line: str, rng: random.Random, usual: float) -> tuple[Ended, str]:
    """Begin a command, and let something happen to it at a random time."""
    pid = rig.start(*rig.words(line))
    told = attack(pid, rng, usual)
    return rig.join(pid), told
