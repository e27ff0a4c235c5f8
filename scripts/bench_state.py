"""What `scripts/bench` compares volctl with: the import floor, and the ways in which qemu-img leaves durable bytes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench_measure import Row, paired, run, times

PROGRAM = str(Path(sys.executable).with_name("volctl"))
FLOOR = """
import sys, typer, sqlalchemy
engine = sqlalchemy.create_engine("sqlite:///" + sys.argv[1])
with engine.connect() as connection:
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.exec_driver_sql("PRAGMA " + pragma)
    connection.execute(sqlalchemy.text("SELECT key, value FROM meta")).all()
"""
CACHES = {  # -T none: the source too passes by the page cache
    "-t none -T none": ("-t", "none", "-T", "none"),
    "-t none": ("-t", "none"),
    "flushed": ("-t", "writeback"),
}
DURABLE = {f"-m {many} {cache}": ("-m", str(many), *words) for cache, words in CACHES.items() for many in (4, 16)}
"""By their names, the ways of qemu-img that leave durable bytes: with so many requests in flight."""


@dataclass(frozen=True, slots=True)
class State:
    """A state directory, and the commands that work on it: `program` is how volctl is called here."""

    path: Path
    runs: int
    config: str = "/dev/null"
    program: Sequence[str] = (PROGRAM,)

    @property
    def env(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("VOLCTL_")}
        return kept | {"VOLCTL_STATE_DIR": str(self.path), "VOLCTL_CONFIG": self.config}

    def volctl(self, *words: str) -> float:
        return run([*self.program, *words], self.env).seconds

    def floor(self) -> float:
        return run([sys.executable, "-c", FLOOR, str(self.path / "volctl.db")], self.env).seconds

    def path_of(self, name: str) -> Path:
        return self.path / "volumes" / f"volume-{self.id_of(name)}"

    def id_of(self, name: str) -> str:
        words = [*self.program, "show", name, "-o", "value", "-c", "id"]
        return subprocess.run(words, env=self.env, check=True, capture_output=True, text=True).stdout.strip()

    def beside_floor(self, what: str, bar: float, *words: str) -> Row:
        return times(what, paired(lambda: self.volctl(*words), self.floor, self.runs), "import floor", bar, self.runs)


def qcow2_state(directory: Path, runs: int) -> State:
    config = directory / "qcow2.toml"
    config.write_text(f'[[backend]]\nname = "disks"\nkind = "qcow2"\ndirectory = "{directory}/disks"\n')
    state = State(directory / "qcow2", runs, str(config))
    state.volctl("backend", "init", "disks", "--yes")
    return state
