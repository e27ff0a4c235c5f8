"""What libvirt's storage takes for the same: `virsh vol-create-as` with `vol-upload`, and `vol-clone`.

Its daemon must run already, at $LIBVIRT_DEFAULT_URI or where virsh looks by itself. The pool is one of ours, in
the directory of the bench, and gone afterwards.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench_data import image
from bench_measure import GiB, Pair, Row, milliseconds, paired, run, seconds_of, show
from bench_state import qcow2_state

SOON = 10  # seconds for the daemon to answer


@dataclass(frozen=True, slots=True)
class Pool:
    """A pool of files in a directory."""

    name: str
    directory: Path

    def virsh(self, *words: str | Path | int) -> float:
        return run(["virsh", "-q", *map(str, words)], dict(os.environ)).seconds

    def upload(self, image: Path, size: int) -> float:
        """Seconds of a new volume of `size` bytes that holds the qcow2 file, flushed."""
        taken = self.virsh("vol-create-as", self.name, "peer", size, "--format", "qcow2")
        taken += self.virsh("vol-upload", "peer", image, "--pool", self.name, "--sparse")
        taken += self._flush("peer")
        self.virsh("vol-delete", "peer", "--pool", self.name)
        return taken

    def clone(self, source: str) -> float:
        taken = self.virsh("vol-clone", source, "copy", "--pool", self.name) + self._flush("copy")
        self.virsh("vol-delete", "copy", "--pool", self.name)
        return taken

    def _flush(self, name: str) -> float:
        with (self.directory / name).open("rb") as file:
            return seconds_of(lambda: os.fsync(file.fileno()))


def missing() -> str | None:
    """Why there is nothing to compare with; None if there is."""
    if not shutil.which("virsh"):
        return "virsh is not installed (package libvirt-clients)"
    try:
        asked = subprocess.run(["virsh", "-q", "uri"], capture_output=True, text=True, timeout=SOON, check=False)
    except subprocess.TimeoutExpired:
        return f"libvirt does not answer within {SOON} s"
    return None if asked.returncode == 0 else f"no libvirt runs here ({asked.stderr.strip().splitlines()[-1]})"


@contextmanager
def pool(directory: Path) -> Iterator[Pool]:
    made = Pool(f"volctl-bench-{uuid.uuid4()}", directory / "libvirt")
    made.directory.mkdir()
    made.virsh("pool-create-as", made.name, "dir", "--target", made.directory)
    try:
        yield made
    finally:
        made.virsh("pool-destroy", made.name)


def libvirt(directory: Path, runs: int) -> None:
    """qcow2 files beside libvirt's storage, where virsh and a running libvirt are there."""
    if why := missing():
        show(Row("beside virsh", f"not measured: {why}", "", None))
        return
    source, state = image(directory, GiB, 4 * GiB), qcow2_state(directory, runs)

    def from_image() -> float:
        state.volctl("image", "cache", "prune", "--all")
        taken = state.volctl("create", "v", "--from-image", str(source))
        state.volctl("delete", "v", "--yes")
        return taken

    def clone() -> float:
        taken = state.volctl("create", "copy", "--from-volume", "kept")
        state.volctl("delete", "copy", "--yes")
        return taken

    with pool(directory) as peer:
        pair = paired(from_image, lambda: peer.upload(source, 4 * GiB), runs)
        show(beside("create from 1 GiB of data in a qcow2, checked", pair, "vol-create-as and vol-upload", runs))
        state.volctl("create", "kept", "--from-image", str(source))
        shutil.copyfile(source, peer.directory / "kept")
        peer.virsh("pool-refresh", peer.name)
        pair = paired(clone, lambda: peer.clone("kept"), runs)
        show(beside("clone of it", pair, "vol-clone", runs))


def beside(what: str, pair: Pair, peer: str, runs: int) -> Row:
    """Without a bar: it does something else."""
    figure = f"{milliseconds(pair.a)} = {pair.ratio:.2f} x {milliseconds(pair.b)} (virsh {peer}), median of {runs}"
    return Row(what, figure, "", None)
