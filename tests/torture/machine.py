"""A hypothesis state machine over the service: any order of verbs, with deaths at any probe and backends that fail.

After each step the world is what the model says: as before the step, or as after it. Without a fault it is told which.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from tests import oracle
from tests.engine.crash import MiB
from tests.oracle import Content
from tests.torture.core import Budget, Tally
from tests.torture.verbs import due
from volctl.db import store
from volctl.errors import VolctlError
from volctl.model import CreateRequest
from volctl.service import attach, backends, creation, snapshots, volumes
from volctl.service.session import Options, Session, Watcher, open_session

VOLUMES, SNAPSHOTS = ("u", "v", "w"), ("s", "t")
STEPS = 25
CALLS = ("create", "clone", "delete", "extend", "snapshot", "delete_snapshot", "revert", "attach", "detach", "inspect")


class Died(BaseException):
    """The command ends here, as if killed: nothing catches this."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Dies at the `die_at`th probe, or the backend's next `call` fails with `error`, before or after its work."""

    die_at: int | None = None
    call: str | None = None
    error: str = "backend"
    after: bool = False


FAULTS = st.one_of(
    st.just(Fault()),
    st.builds(Fault, die_at=st.integers(1, 14)),
    st.builds(Fault, call=st.sampled_from(CALLS), error=st.sampled_from(["backend", "no_space"]), after=st.booleans()),
)


@dataclass(slots=True)
class Thing:
    """A volume or a snapshot: its size, what it begins with (then zeros), and its volume or device."""

    size: int
    content: bytes = b""
    volume: str | None = None
    attached: bool = False


@dataclass(slots=True)
class Model:
    volumes: dict[str, Thing] = field(default_factory=dict)
    snapshots: dict[str, Thing] = field(default_factory=dict)


Step = Callable[[Model], str | None]
"""Change the model; the code of the error where the verb is refused."""


class Machine(RuleBasedStateMachine):
    """One world of two fake pools."""

    tally = Tally()
    end = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="volctl-machine-", dir="/dev/shm"))
        self.pools = {name: self.root / name for name in ("a", "b")}
        tables = [
            f'[[backend]]\nname = "{name}"\nkind = "fake"\ndirectory = "{path}"\n' for name, path in self.pools.items()
        ]
        (self.root / "config.toml").write_text("\n".join(tables))
        self.options = Options(config=str(self.root / "config.toml"), state_dir=str(self.root / "state"))
        self.model = Model()
        with self.session() as session:
            for name in self.pools:
                backends.init(session, name)

    def teardown(self) -> None:
        shutil.rmtree(self.root)

    @contextmanager
    def session(self) -> Iterator[Session]:
        with open_session(self.options, Watcher()) as session:
            yield session

    def step(self, act: Callable[[Session], object], change: Step, fault: Fault) -> None:
        """Do it, and settle; the world must then be as before or as after, and as it was told."""
        if time.monotonic() > self.end:
            return
        wanted = deepcopy(self.model)
        refused = change(wanted)
        told = self._done(act, fault)
        for path in self.pools.values():
            (path / "fail").unlink(missing_ok=True)
        self._settle()
        self.tally.runs += 1
        if told == "" or (not fault.die_at and not fault.call):
            assert told == (refused or ""), f"{told or 'done'}, but {refused or 'done'} was expected"
        candidates = [self.model] if refused else [wanted] if told == "" else [self.model, wanted]
        problems = [self.problems(candidate) for candidate in candidates]
        assert [] in problems, problems
        self.model = candidates[problems.index([])]

    def _done(self, act: Callable[[Session], object], fault: Fault) -> str:
        """`died`, the code of the error, or nothing."""
        if fault.call:
            order = {fault.call: {"error": fault.error, "times": 1, "after": fault.after}}
            for path in self.pools.values():
                (path / "fail").write_text(json.dumps(order))
        left = [fault.die_at or 10_000]

        def probe(point: str) -> None:
            left[0] -= 1
            if left[0] == 0:
                raise Died

        store.probe = probe
        try:
            with self.session() as session:
                act(session)
        except VolctlError as error:
            return error.code
        except Died:
            return "died"
        finally:
            store.probe = lambda point: None
        return ""

    def _settle(self) -> None:
        """One more command, and one for what got stuck; what failed for good is deleted, which must be possible."""
        for _ in range(2):
            due(self.root / "state")
            with self.session():
                pass
        tables = oracle.load(self.root / "state")
        with self.session() as session:
            for row in tables["snapshots"]:
                if row["status"] == "error":
                    snapshots.delete(session, row["id"])
            for row in tables["volumes"]:
                if row["status"] == "error":
                    volumes.delete(session, row["id"])

    def problems(self, model: Model) -> list[str]:
        things = model.volumes | model.snapshots
        contents = {name: self._content(thing.content) for name, thing in things.items()}
        found = oracle.check(oracle.World(self.root / "state", self.pools, contents))
        tables = oracle.load(self.root / "state")
        there = {row["name"]: (row["size"], row["status"] == "in-use") for row in tables["volumes"]}
        there |= {row["name"]: (row["size"], False) for row in tables["snapshots"]}
        wanted = {name: (thing.size, thing.attached) for name, thing in things.items()}
        return found if there == wanted else [*found, f"there is {there}, not {wanted}"]

    def _content(self, data: bytes) -> Content:
        path = self.root / f"content-{data[:4].hex()}"
        path.write_bytes(data)
        return Content(path)

    # -- the verbs

    @rule(name=st.sampled_from(VOLUMES), size=st.integers(1, 3), fault=FAULTS)
    def create(self, name: str, size: int, fault: Fault) -> None:
        def change(model: Model) -> str | None:
            if name in model.volumes:
                return "exists"
            model.volumes[name] = Thing(size * MiB)
            return None

        self.step(lambda session: creation.create(session, CreateRequest(name, f"{size}M")), change, fault)

    @rule(name=st.sampled_from(VOLUMES), source=st.sampled_from(VOLUMES + SNAPSHOTS), fault=FAULTS)
    def copy(self, name: str, source: str, fault: Fault) -> None:
        def change(model: Model) -> str | None:
            found = model.volumes.get(source) or model.snapshots.get(source)
            if found is None:
                return "not_found"
            if name in model.volumes:
                return "exists"
            if found.attached:
                return "conflict"
            model.volumes[name] = Thing(found.size, found.content)
            return None

        is_volume = source in VOLUMES
        wanted = CreateRequest(
            name, from_volume=source if is_volume else None, from_snapshot=None if is_volume else source
        )
        self.step(lambda session: creation.create(session, wanted), change, fault)

    @rule(name=st.sampled_from(VOLUMES), value=st.integers(1, 255))
    def write(self, name: str, value: int) -> None:
        """A guest's own work."""
        if name in self.model.volumes:
            content = bytes([value]) * 4096
            row = next(row for row in oracle.load(self.root / "state")["volumes"] if row["name"] == name)
            with (self.pools[row["backend"]] / f"volume-{row['id']}").open("r+b") as file:
                file.write(content)
            self.model.volumes[name].content = content

    @rule(name=st.sampled_from(VOLUMES), snapshot=st.sampled_from(SNAPSHOTS), fault=FAULTS)
    def snapshot(self, name: str, snapshot: str, fault: Fault) -> None:
        def change(model: Model) -> str | None:
            volume = model.volumes.get(name)
            if volume is None:
                return "not_found"
            if volume.attached:
                return "conflict"
            if snapshot in model.snapshots:
                return "exists"
            model.snapshots[snapshot] = Thing(volume.size, volume.content, name)
            return None

        self.step(lambda session: snapshots.create(session, name, snapshot), change, fault)

    @rule(name=st.sampled_from(SNAPSHOTS), fault=FAULTS)
    def drop(self, name: str, fault: Fault) -> None:
        def change(model: Model) -> str | None:
            return None if model.snapshots.pop(name, None) else "not_found"

        self.step(lambda session: snapshots.delete(session, name), change, fault)

    @rule(name=st.sampled_from(VOLUMES), fault=FAULTS)
    def delete(self, name: str, fault: Fault) -> None:
        def change(model: Model) -> str | None:
            if name not in model.volumes:
                return "not_found"
            if model.volumes[name].attached:
                return "in_use"
            if any(snapshot.volume == name for snapshot in model.snapshots.values()):
                return "conflict"
            del model.volumes[name]
            return None

        self.step(lambda session: volumes.delete(session, name), change, fault)

    @rule(name=st.sampled_from(VOLUMES), fault=FAULTS)
    def extend(self, name: str, fault: Fault) -> None:
        def change(model: Model) -> str | None:
            if name not in model.volumes:
                return "not_found"
            model.volumes[name].size += MiB
            return None

        self.step(lambda session: volumes.extend(session, name, "+1M"), change, fault)

    @rule(name=st.sampled_from(VOLUMES), snapshot=st.sampled_from(SNAPSHOTS), fault=FAULTS)
    def revert(self, name: str, snapshot: str, fault: Fault) -> None:
        def change(model: Model) -> str | None:
            volume, found = model.volumes.get(name), model.snapshots.get(snapshot)
            if volume is None or found is None:
                return "not_found"
            if found.volume != name:
                return "usage"
            if volume.attached:
                return "in_use"
            volume.content = found.content
            return None

        self.step(lambda session: volumes.revert(session, name, snapshot), change, fault)

    @rule(name=st.sampled_from(VOLUMES), fault=FAULTS)
    def attach(self, name: str, fault: Fault) -> None:
        def change(model: Model) -> str | None:
            if name not in model.volumes:
                return "not_found"
            model.volumes[name].attached = True
            return None

        self.step(lambda session: attach.attach(session, name), change, fault)

    @rule(name=st.sampled_from(VOLUMES), fault=FAULTS)
    def detach(self, name: str, fault: Fault) -> None:
        def change(model: Model) -> str | None:
            if name not in model.volumes:
                return "not_found"
            model.volumes[name].attached = False
            return None

        self.step(lambda session: attach.detach(session, name), change, fault)


def run(kind: str, budget: Budget) -> Tally:
    """Machines of `STEPS` steps until the budget is spent; a run of the tally is a step."""
    tally, number = Tally(), 0
    while not budget.spent(tally):
        number += 1
        made = type("Machine", (Machine,), {"tally": tally, "end": budget.begun + budget.seconds + 30})
        phases = (Phase.generate,) if budget.stop_at_first else (Phase.generate, Phase.shrink)
        wanted = settings(
            max_examples=5,
            stateful_step_count=STEPS,
            deadline=None,
            database=None,
            phases=phases,
            suppress_health_check=list(HealthCheck),
            print_blob=False,
        )
        try:
            run_state_machine_as_test(seed(budget.seed * 1000 + number)(made), settings=wanted)
        except Exception as error:
            tally.wrong.append("\n".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ())]))
            break
    return tally
