"""A world to crash in: a state directory, two fake pools, things in them that are not ours; and its oracle."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from tests import oracle, qcow2_files
from tests.conftest import REPO
from tests.oracle import Content
from tests.web import serving

MiB = 1024**2
KILLED = -9
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended: its exit code (negative: the signal), the points it passed, what it said.

    `seconds` of processor time and `memory` in bytes, the most of it and of its children.
    """

    status: int
    points: list[str]
    out: str
    err: str
    seconds: float = 0.0
    memory: int = 0

    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def commits(self) -> int:
        return self.points.count("after commit")


def until_stopped(pid: int) -> None:
    """Until a signal has stopped it."""
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        time.sleep(0.01)


class Zygote:
    """The warm process of `zygote.py`, with these modules imported; `under` another program, such as strace."""

    def __init__(self, *modules: str, under: Sequence[str] = ()) -> None:
        words = [*under, sys.executable, "-m", "tests.engine.zygote", *modules]
        env = {
            **({"VOLCTL_DEBUG": "1"} if os.environ.get("VOLCTL_DEBUG") else {}),
            "PYTHONPATH": str(REPO),
            "PATH": os.environ.get("PATH", os.defpath),
            "LC_ALL": "C.UTF-8",
        }
        self._process = subprocess.Popen(
            words, cwd=REPO, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def _ask(self, order: Json) -> Any:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def start(self, order: Json) -> int:
        pid: int = self._ask({"start": order})["pid"]
        return pid

    def join(self, pid: int) -> Ended:
        return Ended(*self._ask({"join": pid}))

    def close(self) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


@dataclass(frozen=True, slots=True)
class Rig:
    """One world under `root`: `state`, a pool for each of `names` (preferred in this order), `config.toml`."""

    zygote: Zygote
    root: Path
    contents: Mapping[str, Content]
    foreign: dict[str, oracle.Marks] = field(default_factory=dict)
    names: tuple[str, ...] = ("a", "b")
    kind: str = "fake"
    options: str = ""
    place: Path | None = None
    path: str | None = None
    page: str = ""
    """The URL of the image, where there is a server."""

    @property
    def state(self) -> Path:
        return self.root / "state"

    @property
    def pools(self) -> dict[str, Path]:
        return {name: self.root / name for name in self.names}

    def words(self, line: str) -> list[str]:
        """A command line; QCOW2 and RAW in it are the images' files, URL one of them, ROOT the world's directory."""
        source = self.contents["image"].source
        assert source is not None
        places = {"QCOW2": source.with_name("disk.qcow2"), "RAW": source, "ROOT": self.root, "URL": self.page}
        for word, path in places.items():
            line = line.replace(word, str(path))
        return line.split()

    def start(self, *argv: str, **order: Any) -> int:
        """`die_at`, `files`, `signals`, `inject`, `wait`, `group` as the zygote takes them; `env` adds variables."""
        env = {"VOLCTL_STATE_DIR": str(self.state), "VOLCTL_CONFIG": str(self.root / "config.toml")}
        if self.path:
            env["PATH"] = self.path
        return self.zygote.start({"argv": argv, **order, "env": env | order.get("env", {})})

    def join(self, pid: int) -> Ended:
        return self.zygote.join(pid)

    def run(self, *argv: str, status: int | None = None, **order: Any) -> Ended:
        """One command to its end."""
        done = self.join(self.start(*argv, **order))
        if status is not None:
            assert done.status == status, f"{' '.join(argv)}: exit {done.status}, not {status}\n{done.err}"
        return done

    def bare(self, config: Path, *argv: str, **order: Any) -> Ended:
        """The same with a configuration of one's own."""
        env = {"VOLCTL_STATE_DIR": str(self.state), "VOLCTL_CONFIG": str(config)}
        return self.join(self.zygote.start({"argv": argv, "env": env, **order}))

    def order(self, pool: str, **fail: Any) -> None:
        """What calls of a fake pool shall fail from now on (see `backends.fake`)."""
        (self.pools[pool] / "fail").write_text(json.dumps(fail))

    def check(self, *stuck: str, **contents: Content) -> list[str]:
        """One more command, then the oracle."""
        told = self.run("quota", "show", "--json")
        if told.status:
            return [f"the next command: exit {told.status}: {told.err}"]
        return self.judge(told, *stuck, **contents)

    def judge(self, quota: Ended, *stuck: str, **contents: Content) -> list[str]:
        """The oracle alone, given what `quota show --json` said after all others had ended."""
        contents = {**self.contents, **contents}
        return oracle.check(
            oracle.World(
                self.state,
                self.pools,
                contents,
                self.foreign,
                frozenset(stuck),
                quota.json(),
                qcow2=self.kind == "qcow2",
            )
        )

    def volume(self, name: str) -> Json | None:
        return next((row for row in oracle.load(self.state)["volumes"] if row["name"] == name), None)

    def snapshot(self, name: str) -> Json | None:
        return next((row for row in oracle.load(self.state)["snapshots"] if row["name"] == name), None)

    def there(self, name: str) -> Json:
        row = self.volume(name)
        assert row is not None, f"there is no volume {name}"
        return row

    def cached(self) -> list[Json]:
        """The rows of the image cache, least recently used first."""
        return sorted(oracle.load(self.state)["cached_images"], key=lambda row: str(row["used_at"]))

    @property
    def qcow2(self) -> str:
        """The image as a qcow2 file."""
        source = self.contents["image"].source
        assert source is not None
        return str(source.with_name("disk.qcow2"))

    def flows(self, **wanted: str) -> list[Json]:
        rows = oracle.load(self.state)["flows"]
        return [row for row in rows if all(row[key] == value for key, value in wanted.items())]

    def fault(self, name: str) -> tuple[str, str]:
        """Code and message of a volume that must be in `error`."""
        row = self.there(name)
        assert row["status"] in ("error", "error_deleting"), row
        return row["fault"]["code"], row["fault"]["message"]

    def stuck(self) -> Json:
        """The one flow that is open, and stuck."""
        (row,) = [row for row in self.flows() if row["ended_at"] is None]
        assert row["phase"] == "stuck", row
        return row

    def held(self, pool: str) -> set[str]:
        """Names of the volumes' files in a pool."""
        objects = filter(oracle.OBJECT.fullmatch, os.listdir(self.pools[pool]))
        return {name for name in objects if not name.startswith("image-")}

    def file(self, name: str) -> Path:
        row = self.there(name)
        return self.pools[row["backend"]] / f"volume-{row['id']}"

    def differs(self, name: str, content: Content) -> str | None:
        return oracle.differs(self.file(name), content, qcow2=self.kind == "qcow2")

    def overwrite(self, name: str, content: Content) -> None:
        """What a guest would do: write into the volume's own disk."""
        assert content.source
        if self.kind == "qcow2":
            qcow2_files.write(self.file(name), 0, content.source.read_bytes())
            return
        with open(self.file(name), "r+b") as file:
            file.write(content.source.read_bytes())

    @contextmanager
    def copy(self) -> Iterator[Rig]:
        """The same world elsewhere."""
        with scratch(self.place) as root:
            subprocess.run(["cp", "-a", f"{self.root}/.", root], check=True)  # hard links stay what they are
            copied = replace(self, root=root, foreign={})
            copied.configure()
            copied.mark_foreign()
            yield copied

    def configure(self, top: str = "") -> None:
        """`config.toml` with `top` before its backends; the first pool has the most room, and so on."""
        tables = [
            f'[[backend]]\nname = "{name}"\nkind = "{self.kind}"\ndirectory = "{path}"\n{self.options}'
            + (f"capacity = {1024**4 >> number}\n" if self.kind == "fake" else "")
            for number, (name, path) in enumerate(self.pools.items())
        ]
        (self.root / "config.toml").write_text("\n".join([top, *tables]))

    def mark_foreign(self) -> None:
        for pool, path in self.pools.items():
            self.foreign[pool] = oracle.marks(path)

    def mark_stranger(self, name: str) -> None:
        """If there is something of this name in a pool, it is not ours as it is now."""
        for pool, path in self.pools.items():
            self.foreign[pool].pop(name, None)
            self.foreign[pool] |= {found: mark for found, mark in oracle.marks(path).items() if found == name}


@contextmanager
def scratch(place: Path | None = None) -> Iterator[Path]:
    """A directory at `place`, or in memory, where there is one: most of what is tested here needs no disk."""
    memory = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else None
    root = Path(tempfile.mkdtemp(prefix="volctl-crash-", dir=place or memory))
    try:
        yield root
    finally:
        shutil.rmtree(root)


def noise(path: Path, size: int, seed: int) -> Content:
    path.write_bytes(random.Random(seed).randbytes(size))
    return Content(path)


@contextmanager
def empty(
    zygote: Zygote, *names: str, kind: str = "fake", options: str = "", place: Path | None = None
) -> Iterator[Rig]:
    """Prepared pools with strangers' files in them, and no volume."""
    with scratch(place) as root:
        rig = Rig(zygote, root, {}, names=names, kind=kind, options=options, place=place)
        rig.configure()
        for name, path in rig.pools.items():
            path.mkdir()
            (path / "somebody").mkdir()
            (path / "somebody" / "volume").write_bytes(b"not ours" * 100)
            (path / "volume-of-somebody.img").write_bytes(b"not ours either")
            (path / "a-link").symlink_to("somebody/volume")
            rig.run("backend", "init", name, "-y", status=0)
        rig.mark_foreign()
        yield rig


@contextmanager
def furnished(zygote: Zygote, kind: str = "fake", options: str = "", place: Path | None = None) -> Iterator[Rig]:
    """Volume `src` (2 MiB) with snapshots `snap` and `other`, written to since; a bystander; images.

    `options` are lines of TOML for each backend. All but the images' files is at `place`.
    """
    with scratch() as sources, empty(zygote, "a", "b", kind=kind, options=options, place=place) as rig:
        then, now = noise(sources / "then", 3 * MiB // 2, 1), noise(sources / "now", 2 * MiB, 2)
        image = noise(sources / "disk.raw", MiB, 3)
        _write_images(sources)
        contents = {"src": now, "snap": then, "other": then, "bystander": Content(), "image": image, "then": then}
        contents |= dict.fromkeys(("first", str(sources / "disk.raw"), str(sources / "disk.qcow2")), image)
        rig = replace(rig, contents=contents)
        for name, size in (("src", "2M"), ("bystander", "1M")):
            rig.run("create", name, "--size", size, status=0)
        rig.overwrite("src", then)
        for name in ("snap", "other"):
            rig.run("snapshot", "create", "src", name, status=0)
        rig.overwrite("src", now)
        rig.run("image", "add", "registered", str(sources / "disk.raw"), "--copy", status=0)
        assert rig.check() == []
        yield rig


def _write_images(directory: Path) -> None:
    words = ("qemu-img", "convert", "-f", "raw", "-O", "qcow2", "disk.raw", "disk.qcow2")
    subprocess.run(words, cwd=directory, check=True)


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    made = Zygote("urllib3")
    yield made
    made.close()


@pytest.fixture(scope="session")
def empty_world(zygote: Zygote) -> Iterator[Rig]:
    with empty(zygote, "a", "b", "c", "d") as rig:
        yield rig


@pytest.fixture(scope="session")
def world(zygote: Zygote) -> Iterator[Rig]:
    with furnished(zygote) as rig, serving() as web:
        image = rig.contents["image"].source
        assert image is not None
        yield replace(rig, page=web.put("/disk.raw", image.read_bytes()))


@pytest.fixture(scope="session")
def loop_world(zygote: Zygote) -> Iterator[Rig]:
    with furnished(zygote, "loop") as rig:
        yield rig


@pytest.fixture(scope="session")
def caching_world(zygote: Zygote) -> Iterator[Rig]:
    """The same where clones are said to share blocks, so that images are cached."""
    with furnished(zygote, options='clone = "share"\n') as rig:
        yield rig


@pytest.fixture
def caching(caching_world: Rig) -> Iterator[Rig]:
    """A copy of the caching world."""
    with caching_world.copy() as copied:
        yield copied


@pytest.fixture(scope="session")
def qcow2_world(zygote: Zygote) -> Iterator[Rig]:
    with furnished(zygote, "qcow2") as rig:
        yield rig


@pytest.fixture
def four(empty_world: Rig) -> Iterator[Rig]:
    """A copy of the empty world, with pools a to d."""
    with empty_world.copy() as copied:
        yield copied


@pytest.fixture
def rig(world: Rig) -> Iterator[Rig]:
    """A copy of the furnished world."""
    with world.copy() as copied:
        yield copied
