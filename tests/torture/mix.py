"""Sixteen processes do whatever they like with the same few volumes, some are killed; then everything is counted.

What must have come out is replayed from the journal: operations on one volume exclude each other, so the order in
which their flows ended is the order in which they happened. Rows, sizes and every byte must be what that order gives.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests import oracle
from tests.engine.crash import Ended, Rig
from tests.oracle import Content
from tests.torture.core import Budget, Tally, another, quiet, worlds
from tests.torture.verbs import HERE, due

PROCESSES = 16
COMMANDS = 150  # of one round
Json = dict[str, Any]
LINES = {
    "create NEW --size 2M -q": 3,
    "create NEW --size 1M --if-absent": 1,
    "create NEW --from-volume VOLUME": 3,
    "create NEW --from-snapshot SNAPSHOT": 3,
    "create NEW --from-image QCOW2 --size 3M": 2,
    "create NEW --from-image registered": 1,
    "snapshot create VOLUME SNEW": 4,
    "snapshot delete SNAPSHOT -y": 3,
    "delete VOLUME -y": 2,
    "delete VOLUME -y --cascade": 2,
    "extend VOLUME +1M": 3,
    "revert VOLUME SNAPSHOT -y": 4,
    "attach VOLUME": 2,
    "detach VOLUME": 3,
    "set VOLUME --property role=ANY": 1,
    "image add INEW RAW --copy": 1,
    "image add INEW URL": 1,
    "image delete INEW -y": 1,
    "list --json": 1,
    "show VOLUME --json": 1,
    "flow list --json": 1,
    "doctor --json": 1,
    "image cache prune --all -y": 1,
    "release VOLUME": 2,
    "adopt a VOLUME NEW": 3,
    "doctor --fix -y": 1,
    "backup-db KEPT --force": 1,
}
if os.geteuid() != 0:  # loop devices are for root
    del LINES["attach VOLUME"], LINES["detach VOLUME"]
NEVER_FAIL = ("list", "flow", "doctor", "image cache")
NAMES = {
    "SNAPSHOT": ("snap", "other", "s0", "s1", "s2", "s3"),
    "SNEW": ("s0", "s1", "s2", "s3"),
    "INEW": ("i0", "i1"),
    "VOLUME": ("src", "bystander", "v0", "v1", "v2", "v3", "v4"),
    "NEW": ("v0", "v1", "v2", "v3", "v4"),
    "ANY": ("web", "mail"),
    "KEPT": ("ROOT/kept.db", "ROOT/saved"),
}


def run(kind: str, budget: Budget) -> Tally:
    """Rounds of `COMMANDS` commands, a new world for each; a run of the tally is a command."""
    tally, number = Tally(), 0
    with worlds(kind) as world:
        while not budget.spent(tally):
            number += 1
            with another(world) as rig:
                _round(rig, budget, f"round {number}", tally)
    return tally


@dataclass(slots=True)
class Doing:
    """A command that runs: its line, when it is to be killed, and whether it was."""

    line: str
    begun: float
    kill_at: float
    killed: bool = False


@dataclass(slots=True)
class Crowd:
    """Up to `PROCESSES` commands at once."""

    rig: Rig
    rng: random.Random
    running: dict[int, Doing] = field(default_factory=dict)

    def begin(self) -> None:
        line = self.rng.choices(list(LINES), list(LINES.values()))[0]
        for word, names in NAMES.items():
            line = line.replace(word, self.rng.choice(names)) if word in line.split() else line
        line = line.replace("=ANY", "=" + self.rng.choice(NAMES["ANY"]))
        words = [*self.rig.words(line), "--timeout", "600s", "--lock-timeout", "20s"]
        doomed = self.rng.random() < 0.12
        now = time.monotonic()
        pid = self.rig.start(*words)
        self.running[pid] = Doing(line, now, now + self.rng.uniform(0, 0.6) if doomed else float("inf"))

    def ended(self) -> Iterator[tuple[Doing, Ended]]:
        """Kill who is due; give those that have ended."""
        for pid, doing in list(self.running.items()):
            if time.monotonic() > doing.kill_at and not doing.killed:
                doing.killed = True
                with suppress(ProcessLookupError):
                    os.kill(pid, self.rng.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM)))
            if _dead(pid):
                del self.running[pid]
                yield doing, self.rig.join(pid)


def _dead(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def _round(rig: Rig, budget: Budget, where: str, tally: Tally) -> None:
    crowd, left = Crowd(rig, budget.random(where)), COMMANDS
    before = _model(rig)
    done: dict[str, list[int]] = {}
    if budget.cases is not None:
        left = min(left, budget.cases - tally.runs)
    while left or crowd.running:
        while left and len(crowd.running) < PROCESSES:
            crowd.begin()
            left -= 1
        for doing, ended in crowd.ended():
            tally.add(f"{where}, {doing.line}", _allowed(doing, ended))
            tally.note("killed" if doing.killed else f"exit {ended.status}")
            verb = " ".join(doing.line.split()[: 2 if doing.line.startswith(("snapshot", "image")) else 1])
            done.setdefault(verb, []).append(-1 if doing.killed else ended.status)
        time.sleep(0.002)
    tally.wrong += [f"{where}: {sentence}" for sentence in (*_settled(rig, before), *_counted(rig, done))]


def _allowed(doing: Doing, ended: Ended) -> list[str]:
    """Exit codes by what the command may have met: names come and go under its hands."""
    if doing.killed and ended.status in (-9, -15, 143):
        return []
    codes = {0} if doing.line.startswith(NEVER_FAIL) else {0, 4, 5, 10}
    if doing.line.startswith("revert"):
        codes.add(2)  # a snapshot of another volume
    if doing.line == "doctor --json" and ended.status == 12 and {each["kind"] for each in ended.json()} == {"flow"}:
        return []  # of a command that was killed since it looked for such
    if ended.status not in codes or "Traceback" in ended.err:
        return [f"exit {ended.status}: {ended.err.strip()} {ended.out[:1000]}".strip()]
    return []


FLOW_OF = {
    "create": "volume_create_manager",
    "delete": "volume_delete",
    "extend": "volume_extend",
    "revert": "volume_revert",
    "snapshot create": "snapshot_create",
    "snapshot delete": "snapshot_delete",
    "adopt": "volume_adopt",
    "release": "volume_release",
}
EXACT = (
    "volume_create_manager",
    "volume_extend",
    "volume_revert",
    "snapshot_create",
    "volume_adopt",
    "volume_release",
)
"""`create --if-absent` and `delete --cascade` delete what no command named."""


def _counted(rig: Rig, done: dict[str, list[int]]) -> list[str]:
    """Every command that said 0 has its flow, and there are no more than those and the killed can explain."""
    found = []
    for verb, codes in done.items():
        if flow := FLOW_OF.get(verb):
            flows, said, killed = len(rig.flows(name=flow, phase="done")), codes.count(0), codes.count(-1)
            had = {"volume_create_manager": 2, "snapshot_create": 2}.get(flow, 0)  # of the furnished world
            lazy = 10_000 if verb == "create" else 0  # `--if-absent` may say 0 and do nothing
            if not said - lazy <= flows - had or (flow in EXACT and flows - had > said + killed):
                found.append(f"{verb}: {said} said 0 and {killed} were killed, but {flows - had} flows are done")
    return found


# -- the model


@dataclass(slots=True)
class Model:
    """What volumes and snapshots read as, by id, and how large they are; `since` is the last flow it knows.

    `strangers` are the files of volumes that were released, by pool and name, and what they read as.
    """

    since: int = 0
    reads_as: dict[str, str] = field(default_factory=dict)
    size: dict[str, int] = field(default_factory=dict)
    strangers: dict[tuple[str, str], str] = field(default_factory=dict)

    def put(self, target: str, source: str, size: int) -> None:
        self.reads_as[target], self.size[target] = source, size

    def gone(self, target: str) -> None:
        del self.reads_as[target], self.size[target]

    def happened(self, flow: Json) -> None:
        state, target, name = flow["state"], flow["object_id"], flow["name"]
        if name == "volume_create_manager":
            self.put(target, self._source(state), state["size"])
        elif name == "snapshot_create":
            volume = state["volume_id"]
            self.put(target, self.reads_as[volume], self.size[volume])
        elif name == "volume_extend":
            self.size[target] = state["size"]
        elif name == "volume_revert":
            self.reads_as[target] = self.reads_as[state["snapshot_id"]]
        elif name == "volume_adopt":
            self.put(target, self.strangers.pop((state["backend"], state["thing"])), state["size"])
        elif name == "volume_release":
            self.strangers[state["backend"], state["thing"]] = self.reads_as[target]
            self.gone(target)
        elif name in ("volume_delete", "snapshot_delete") and target in self.reads_as:  # else it was never made
            self.gone(target)

    def _source(self, state: Json) -> str:
        source = state["source"]
        if source["kind"] in ("blank", "image"):
            return "image" if source["kind"] == "image" else ""
        return self.reads_as[source["volume_id"] if source["kind"] == "volume" else source["id"]]


def _model(rig: Rig) -> Model:
    """The furnished world."""
    tables, model = oracle.load(rig.state), Model()
    model.since = max(row["number"] for row in tables["flows"])
    known = {"src": "src", "bystander": "", "snap": "then", "other": "then"}
    for row in (*tables["volumes"], *tables["snapshots"]):
        model.put(row["id"], known[row["name"]], row["size"])
    return model


def _settled(rig: Rig, model: Model) -> list[str]:
    """One more command; then the oracle, and the replay of everything that is done."""
    found = [] if quiet(rig.root) else ["a process lives on"]
    if rig.kind == "qcow2":  # a layer that is open stays until it is not
        for row in oracle.load(rig.state)["volumes"]:
            if row["status"] == "in-use":
                rig.run("detach", row["id"], status=0)
    told = rig.run("quota", "show", "--json")
    if told.status:
        return [*found, f"the next command: exit {told.status}: {told.err}"]
    if [flow for flow in rig.flows() if flow["ended_at"] is None]:
        due(rig.state)
        told = rig.run("quota", "show", "--json")
    new = [flow for flow in rig.flows(phase="done") if flow["number"] > model.since]
    for flow in sorted(new, key=lambda flow: str(flow["ended_at"])):
        model.happened(flow)
    contents = {id: rig.contents[what] if what else Content() for id, what in model.reads_as.items()}
    contents |= {row["id"]: rig.contents["image"] for row in rig.cached()}
    found += _strange(rig, model)
    healthy = rig.run("doctor", "--json")
    if healthy.status:
        found.append(f"doctor: exit {healthy.status}: {healthy.out}")
    return [*found, *rig.judge(told, **contents), *_differences(rig, model)]


def _strange(rig: Rig, model: Model) -> Iterator[str]:
    """What was released is not ours, and reads as it did."""
    for (pool, name), what in model.strangers.items():
        path = rig.pools[pool] / name
        if not path.exists():
            yield f"{pool}/{name} was released, and is not there"
        elif told := oracle.differs(path, rig.contents[what] if what else Content(), qcow2=rig.kind == "qcow2"):
            yield f"{pool}/{name} was released, and {told}"
        rig.mark_stranger(name)
    yield from (f"{path.name} is left behind" for path in rig.root.iterdir() if path.name not in HERE)


def _differences(rig: Rig, model: Model) -> Iterator[str]:
    tables = oracle.load(rig.state)
    rows = {row["id"]: row for kind in ("volumes", "snapshots") for row in tables[kind]}
    for id in rows.keys() | model.size.keys():
        row, size = rows.get(id), model.size.get(id)
        if row is None:
            yield f"{id} should be there with {size} bytes"
        elif size is None and row["status"] in ("available", "in-use"):
            yield f"{row['name']} ({id}) is {row['status']}, but nothing made it"
        elif size is not None and (row["status"] not in ("available", "in-use") or row["size"] != size):
            yield f"{row['name']} ({id}) is {row['status']} with {row['size']} bytes, not {size}"
