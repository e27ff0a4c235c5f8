"""Random populations of volumes, made through the service, whose database is lost and made again."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from volctl.model import CreateRequest, to_json
from volctl.service import Options, Session, Watcher, creation, doctor, open_session, snapshots, types, volumes

UNKNOWN = ("available_at", "updated_at", "attempts", "explanation")
"""What no object carries."""
TEXTS = ("plain", "Zürich ☂ 日本", "a" * 255, 'quo"te\\ and = , {}', "\u202eevil", "")


class World:
    """One state directory with a prepared pool of these options, worked on through the service."""

    def __init__(self, home: Path, kind: str, **options: str) -> None:
        self.home, self.kind = home, kind
        home.mkdir()
        config = home / "config.toml"
        lines = [f"{key} = {value!r}" for key, value in {"name": kind, "kind": kind, **options}.items()]
        config.write_text("\n".join(["[[backend]]", *lines, ""]))
        self.options = Options(str(config), str(home / "state"))
        with self.session() as s:
            s.env.backends.get(kind).init()

    @contextmanager
    def session(self, project: str | None = None) -> Iterator[Session]:
        options = Options(self.options.config, self.options.state_dir, project)
        with open_session(options, Watcher()) as s:
            yield s

    def state(self) -> Any:
        """All that can be listed and shown, without what is not known of a rebuilt one."""
        with self.session() as s:
            every = to_json(volumes.list_(s, all_projects=True))
            shown = [to_json(volumes.show(s, volume["id"])) for volume in every]
            taken = to_json(snapshots.list_(s, all_projects=True))
            used = {volume["type"] for volume in every}
            kinds = [found for found in to_json(types.list_(s)) if found["name"] in used]
        known = [{key: value for key, value in row.items() if key not in UNKNOWN} for row in (*every, *shown)]
        return known, taken, kinds

    def lose(self) -> None:
        for path in (self.home / "state").glob("volctl.db*"):
            path.unlink()

    def populate(self, random: random.Random) -> None:
        for project in ("default", "other"):
            with self.session(project) as s:
                if project == "default":
                    types.create(
                        s, "gold", (f"vendor:role={random.choice(('a', 'b'))}",), random.choice((None, "fine"))
                    )
                for number in range(random.randint(1, 4)):
                    self._act(s, random, f"v{number}")

    def _act(self, s: Session, random: random.Random, name: str) -> None:
        """A volume of some kind, and what happens to it."""
        words = _words(random)
        named = name if random.random() < 0.8 else None
        sources = [found.id for found in snapshots.list_(s)] if random.random() < 0.5 else []
        source = random.choice(sources) if sources else None
        size, type_name = None if source else f"{random.randint(3, 6)}M", random.choice((None, "gold"))
        wanted = CreateRequest(named, size=size, from_snapshot=source, type=type_name, **words)
        made = creation.create(s, wanted)
        if random.random() < 0.5:
            text = random.choice(TEXTS)
            taken = snapshots.create(s, made.id, random.choice((None, f"s-{name}")), description=text)
            if random.random() < 0.5:
                snapshots.update(s, taken.id, name=f"t-{name}", description=None, properties=("later=1",))
            if random.random() < 0.4:
                volumes.revert(s, made.id, taken.id)
        if random.random() < 0.3:
            volumes.extend(s, made.id, "+1M")
        if random.random() < 0.4:
            volumes.update(s, made.id, name=f"w-{name}", description=random.choice(TEXTS), properties=())
        if random.random() < 0.3:
            volumes.unset(s, made.id, name=False, description=True, properties=("k0",))
        if random.random() < 0.3:
            volumes.protect(s, made.id, True)
        elif random.random() < 0.2:
            volumes.delete(s, made.id, cascade=True) if self.kind != "qcow2" else None


def _words(random: random.Random) -> dict[str, Any]:
    few = random.randint(0, 3) if random.random() < 0.9 else 40  # more than an attribute of ext4 holds
    pairs = tuple(f"k{number}={random.choice(TEXTS)}{random.random()}"[:250] for number in range(few))
    return {"properties": pairs, "description": random.choice((None, *TEXTS))}


def come_back_equal(world: World, seed: str, held: Callable[[], object]) -> None:
    """Populate it, lose the database and make it again: every row is as it was, and what the backend holds."""
    world.populate(random.Random(seed))
    before, contents = world.state(), held()
    world.lose()
    told = doctor.rebuild(world.options, Watcher())
    assert {finding.problem for finding in told} <= {"made again"}, seed
    assert world.state() == before, seed
    assert held() == contents, seed
    with world.session() as s:
        assert doctor.look(s) == [], seed
