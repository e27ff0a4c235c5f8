"""What the torture does to the furnished world (`tests.engine.crash`): each verb, and how to tell what became of it."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from tests import oracle
from tests.engine.crash import Ended, MiB, Rig
from tests.oracle import Content

HERE = {"config.toml", "state", "a", "b", "saved", "kept.db"}
UNREADABLE = "the result cannot be written"  # what was done is done
Check = Callable[[Rig], bool]


@dataclass(frozen=True, slots=True)
class Verb:
    """`done`: is all of it there? `intact`: is all as it was (a create may have left its row in `error`)?

    `completed`: what failed half way may yet be done, by a later command. `again`: what takes away the temporary
    files of one that was killed, where no other command knows of them.
    """

    argv: str
    done: Check
    intact: Check
    reads_as: dict[str, str] = field(default_factory=dict)
    """What objects read as when it is done, other than before."""
    prepare: Callable[[Rig], object] = lambda rig: None
    completed: bool = False
    again: str | None = None


def _available(name: str) -> Check:
    return lambda rig: (rig.volume(name) or {}).get("status") == "available"


def _absent_or_failed(name: str) -> Check:
    return lambda rig: bool((rig.volume(name) or {"status": "error"})["status"] == "error")


def _size(name: str, size: int) -> Check:
    return lambda rig: bool(rig.there(name)["size"] == size)


def _reads(name: str, what: str) -> Check:
    return lambda rig: rig.differs(name, rig.contents[what]) is None


def _taken(rig: Rig) -> bool:
    return bool((rig.snapshot("s") or {}).get("status") == "available")


def _not_taken(rig: Rig) -> bool:
    return bool((rig.snapshot("s") or {"status": "error"})["status"] == "error")


def _status(name: str, status: str) -> Check:
    return lambda rig: bool(rig.there(name)["status"] == status)


def _images(rig: Rig) -> set[str]:
    return {row["name"] for row in oracle.load(rig.state)["images"] if row["status"] == "available"}


def _saved(rig: Rig) -> bool:
    saved, source = rig.root / "saved", rig.contents["src"]
    return saved.exists() and oracle.differs(saved, source) is None


def _is_whole(database: Path) -> bool:
    with closing(sqlite3.connect(database)) as connection:
        return bool(connection.execute("PRAGMA integrity_check").fetchone() == ("ok",))


def _create(argv: str, source: str | None) -> Verb:
    return Verb(argv, _available("v"), _absent_or_failed("v"), {"v": source} if source else {})


VERBS = {
    "create": _create("create v --size 3M", None),
    "create-image": _create("create v --from-image QCOW2 --size 3M", "image"),
    "create-registered": _create("create v --from-image registered", "image"),
    "create-snapshot": _create("create v --from-snapshot snap --size 3M", "then"),
    "create-volume": _create("create v --from-volume src", "src"),
    "create-across": _create("create v --from-snapshot snap --backend b --size 3M", "then"),
    "delete": Verb(
        "delete bystander -y", lambda rig: rig.volume("bystander") is None, _available("bystander"), completed=True
    ),
    "extend": Verb("extend src 5M", _size("src", 5 * MiB), _size("src", 2 * MiB), completed=True),
    "snapshot": Verb("snapshot create src s", _taken, _not_taken, {"s": "src"}),
    "snapshot-delete": Verb(
        "snapshot delete snap -y",
        lambda rig: rig.snapshot("snap") is None,
        lambda rig: rig.snapshot("snap") is not None,
        completed=True,
    ),
    "revert": Verb("revert src snap -y", _reads("src", "then"), _reads("src", "src"), {"src": "then"}, completed=True),
    "attach": Verb("attach src", _status("src", "in-use"), _available("src")),
    "detach": Verb(
        "detach src",
        _available("src"),
        _status("src", "in-use"),
        prepare=lambda rig: rig.run("attach", "src", status=0),
        completed=True,
    ),
    "image-add": Verb("image add i RAW --copy", lambda rig: "i" in _images(rig), lambda rig: "i" not in _images(rig)),
    "image-save": Verb("image save src ROOT/saved", _saved, lambda rig: not (rig.root / "saved").exists()),
    "backup-db": Verb(
        "backup-db ROOT/kept.db",
        lambda rig: (rig.root / "kept.db").exists() and _is_whole(rig.root / "kept.db"),
        lambda rig: not (rig.root / "kept.db").exists(),
        again="backup-db ROOT/kept.db --force",
    ),
    "image-delete": Verb(
        "image delete registered -y",
        lambda rig: "registered" not in _images(rig),
        lambda rig: "registered" in _images(rig),
        completed=True,
    ),
}
if os.geteuid() != 0:  # loop devices are for root
    del VERBS["attach"], VERBS["detach"]


def contents(rig: Rig, verb: Verb, done: bool) -> dict[str, Content]:
    return {name: rig.contents[what] for name, what in verb.reads_as.items()} if done else {}


def outcome(rig: Rig, verb: Verb, ended: Ended | None = None) -> list[str]:
    """One more command, then everything: SPEC section 11, and that the verb was done or was not.

    What the first one said must be true: exit 0 is done, anything else is not (but for those that are completed). A
    flow that could not be undone or completed is stuck; it must end when it is tried again.
    """
    told = rig.run("quota", "show", "--json")
    if told.status:
        return [f"the next command: exit {told.status}: {told.err}"]
    if any(flow["phase"] == "stuck" and flow["ended_at"] is None for flow in rig.flows()):
        due(rig.state)
        told = rig.run("quota", "show", "--json")
    done, intact = verb.done(rig), verb.intact(rig)
    found = rig.judge(told, **contents(rig, verb, done))
    if verb.again:
        rig.run(*rig.words(verb.again), status=0)
    found += [f"{path.name} is left behind" for path in rig.root.iterdir() if path.name not in HERE]
    if done == intact:
        found.append("it is done and it is not" if done else "it is neither done nor as it was")
    if ended and ended.status == 0 and not done:
        found.append(f"exit 0, but it was not done: {ended.err}")
    if ended and ended.status > 0 and UNREADABLE not in ended.err and done and not verb.completed:
        found.append(f"exit {ended.status}, but it was done: {ended.err}")
    if ended and "Traceback" in ended.err:
        found.append(ended.err)
    return found


def due(state: Path) -> None:
    """Stuck flows wait before they are tried again: no more."""
    with sqlite3.connect(state / "volctl.db") as connection:
        connection.execute("UPDATE flows SET next_try = '2000-01-01T00:00:00.000000Z' WHERE next_try IS NOT NULL")
    connection.close()
