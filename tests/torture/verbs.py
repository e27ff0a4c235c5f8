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
from tests.engine.found import STRANGE, damage, lose_the_database, strangers_file
from tests.oracle import Content

HERE = {"config.toml", "state", "a", "b", "saved", "kept.db"}
UNREADABLE = "the result cannot be written"  # what was done is done
Check = Callable[[Rig], bool]


@dataclass(frozen=True, slots=True)
class Verb:
    """`done`: is all of it there? `intact`: is all as it was (a create may have left its row in `error`)?

    `completed`: what failed half way may yet be done, by a later command. `repairs`: what it finds was broken by hand,
    and stays so until it is done. `stranger` is a file in a pool that is not ours, or will be that. `fits`: does the
    world have what it takes? `codes` are exit codes of its own, where something fails, and of the commands
    after it.
    """

    argv: str
    done: Check
    intact: Check
    reads_as: dict[str, str] = field(default_factory=dict)
    """What objects read as when it is done, other than before."""
    prepare: Callable[[Rig], object] = lambda rig: None
    completed: bool = False
    repairs: bool = False
    stranger: str | None = None
    fits: Callable[[Rig], bool] = lambda rig: True
    codes: tuple[int, ...] = ()


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


def _has_image(name: str) -> Check:
    return lambda rig: name in _images(rig)


def _no_image(name: str) -> Check:
    return lambda rig: name not in _images(rig)


def _saved(rig: Rig) -> bool:
    saved, source = rig.root / "saved", rig.contents["src"]
    return saved.exists() and oracle.differs(saved, source) is None


def _not_there(name: str) -> Check:
    return lambda rig: not (rig.root / name).exists()


def _kept(rig: Rig) -> bool:
    """A whole database, one file, with the volumes that there are."""
    file = rig.root / "kept.db"
    if not file.exists():
        return False
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection:
        (whole,) = connection.execute("PRAGMA integrity_check").fetchone()
        names = {name for (name,) in connection.execute("SELECT name FROM volumes")}
    return whole == "ok" and names == {"src", "bystander"}


def _strange(name: str, content: str) -> Check:
    """There is a stranger's file that reads so."""

    def check(rig: Rig) -> bool:
        paths = [path / name for path in rig.pools.values() if (path / name).exists()]
        return [oracle.differs(path, rig.contents[content], qcow2=rig.kind == "qcow2") for path in paths] == [None]

    return check


def _all(*checks: Check) -> Check:
    return lambda rig: all(check(rig) for check in checks)


def _not(check: Check) -> Check:
    return lambda rig: not check(rig)


def _caches(rig: Rig) -> bool:
    return rig.kind == "qcow2" or "clone" in rig.options or rig.place is not None


def _has_page(rig: Rig) -> bool:
    return bool(rig.page)


def _cached(rig: Rig) -> None:
    rig.run("create", "first", "--from-image", rig.qcow2, "--backend", "a", status=0)


def _cached_only(rig: Rig) -> None:
    _cached(rig)
    rig.run("delete", "first", "-y", status=0)


def _repaired(rig: Rig) -> bool:
    found = rig.run("doctor", "--json")
    return found.status == 0 and rig.there("bystander")["status"] == "error" and rig.there("src")["size"] == 3 * MiB


def _rebuilt(rig: Rig) -> bool:
    return oracle.is_usable(rig.state) and rig.there("src")["status"] == "available"


def _create(argv: str, source: str | None) -> Verb:
    return Verb(argv, _available("v"), _absent_or_failed("v"), {"v": source} if source else {})


VERBS = {
    "create": _create("create v --size 3M", None),
    "create-image": _create("create v --from-image QCOW2 --size 3M", "image"),
    "create-registered": _create("create v --from-image registered", "image"),
    "create-snapshot": _create("create v --from-snapshot snap --size 3M", "then"),
    "create-volume": _create("create v --from-volume src", "src"),
    "create-url": Verb(
        "create v --from-image URL --size 3M", _available("v"), _absent_or_failed("v"), {"v": "image"}, fits=_has_page
    ),
    "create-cached": Verb(
        "create v --from-image QCOW2 --size 3M --backend a",
        _available("v"),
        _absent_or_failed("v"),
        {"v": "image"},
        _cached,
        fits=_caches,
    ),
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
    "image-add": Verb("image add i RAW --copy", _has_image("i"), _no_image("i")),
    "image-fetch": Verb("image add i URL", _has_image("i"), _no_image("i"), fits=_has_page),
    "image-save": Verb("image save src ROOT/saved", _saved, _not_there("saved")),
    "image-delete": Verb(
        "image delete registered -y", _no_image("registered"), _has_image("registered"), completed=True
    ),
    "cache-prune": Verb(
        "image cache prune --all -y",
        lambda rig: not rig.cached(),
        lambda rig: len(rig.cached()) == 1,
        prepare=_cached_only,
        completed=True,
        codes=(3,),
        fits=_caches,
    ),
    "backup-db": Verb("backup-db ROOT/kept.db", _kept, _not_there("kept.db")),
    "adopt": Verb(
        f"adopt a {STRANGE} v",
        _all(_available("v"), _not(_strange(STRANGE, "image"))),
        _all(lambda rig: rig.volume("v") is None, _strange(STRANGE, "image")),
        {"v": "image"},
        strangers_file,
        stranger=STRANGE,
    ),
    "release": Verb(
        "release bystander",
        _all(lambda rig: rig.volume("bystander") is None, _strange("bystander", "bystander")),
        _all(_available("bystander"), _not(_strange("bystander", "bystander"))),
        stranger="bystander",
    ),
    "doctor-fix": Verb("doctor --fix -y", _repaired, _not(_repaired), prepare=damage, repairs=True, codes=(12,)),
    "doctor-rebuild": Verb(
        "doctor --rebuild -y", _rebuilt, _not(_rebuilt), prepare=lose_the_database, repairs=True, codes=(11,)
    ),
}
if os.geteuid() != 0:  # loop devices are for root
    del VERBS["attach"], VERBS["detach"]


def fitting(rig: Rig) -> dict[str, Verb]:
    """Those that this world has what it takes for."""
    return {name: verb for name, verb in VERBS.items() if verb.fits(rig)}


def contents(rig: Rig, verb: Verb, done: bool) -> dict[str, Content]:
    """Other than before; all that is cached is the one image."""
    cached = {row["id"]: rig.contents["image"] for row in rig.cached()}
    return cached | ({name: rig.contents[what] for name, what in verb.reads_as.items()} if done else {})


def outcome(rig: Rig, verb: Verb, ended: Ended | None = None) -> list[str]:
    """One more command, then everything: SPEC section 11, and that the verb was done or was not.

    What the first one said must be true: exit 0 is done, anything else is not (but for those that are completed). A
    flow that could not be undone or completed is stuck; it must end when it is tried again.
    """
    found = _repaired_now(rig, verb, ended) if verb.repairs else []
    told = rig.run("quota", "show", "--json")
    if told.status or not oracle.is_usable(rig.state):
        return [*found, f"the next command: exit {told.status}: {told.err}, or the database is damaged"]
    if any(flow["phase"] == "stuck" and flow["ended_at"] is None for flow in rig.flows()):
        due(rig.state)
        told = rig.run("quota", "show", "--json")
    done, intact = verb.done(rig), verb.intact(rig)
    if verb.stranger:
        rig.mark_stranger(verb.stranger)
    found += rig.judge(told, **contents(rig, verb, done))
    found += [f"{path.name} is left behind" for path in rig.root.iterdir() if path.name not in HERE]
    if done == intact:
        found.append("it is done and it is not" if done else "it is neither done nor as it was")
    found += _told(verb, ended, done) if ended else []
    return [*found, f"the next command said: {told.err.strip() or 'nothing'}"] if found else []


def _told(verb: Verb, ended: Ended, done: bool) -> list[str]:
    found = [ended.err] if "Traceback" in ended.err else []
    if ended.status == 0 and not done:
        found.append(f"exit 0, but it was not done: {ended.err}")
    is_undone = ended.status > 0 and UNREADABLE not in ended.err and not verb.completed and not verb.repairs
    if is_undone and done:
        found.append(f"exit {ended.status}, but it was done: {ended.err}")
    return found


def _repaired_now(rig: Rig, verb: Verb, ended: Ended | None) -> list[str]:
    """What was not repaired yet is, when it is said again; and once more for what a stuck flow had hidden."""
    if verb.done(rig):
        return []
    found = ["exit 0, but it was not done"] if ended and ended.status == 0 else []
    again = rig.run(*rig.words(verb.argv))
    if again.status in verb.codes:
        again = rig.run(*rig.words(verb.argv))
    return [*found, f"said again: exit {again.status}: {again.err}"] if again.status else found


def due(state: Path) -> None:
    """Stuck flows wait before they are tried again: no more."""
    with sqlite3.connect(state / "volctl.db") as connection:
        connection.execute("UPDATE flows SET next_try = '2000-01-01T00:00:00.000000Z' WHERE next_try IS NOT NULL")
    connection.close()
