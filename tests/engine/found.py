"""What a command may find in a world: damage that was done by hand, a file of somebody's."""

from __future__ import annotations

import shutil
import sqlite3
import uuid
from contextlib import closing
from pathlib import Path

from tests import qcow2_files
from tests.engine.crash import MiB, Rig

STRANGE = "thing"
"""The name of the file in pool `a` that can be adopted: the image, in the backend's own format."""


def strangers_file(rig: Rig) -> Path:
    path = rig.pools["a"] / STRANGE
    shutil.copy(_image(rig), path)
    rig.mark_foreign()
    return path


def _image(rig: Rig) -> Path:
    source = rig.contents["image"].source
    assert source is not None
    return Path(rig.qcow2) if rig.kind == "qcow2" else source


def damage(rig: Rig) -> None:
    """An orphan, what a revert left, a volume whose file is gone, one whose disk has grown, quota for nobody."""
    shutil.copy(_image(rig), rig.pools["b"] / f"volume-{uuid.uuid4()}")
    lost = rig.file("bystander")
    for path in lost.parent.glob(f"*{lost.name}"):  # what it is about lies beside a qcow2
        path.unlink()
    if rig.kind == "qcow2":
        qcow2_files.resize(rig.file("src"), 3 * MiB)
    else:
        (rig.pools["a"] / f"revert-{rig.there('src')['id']}").write_bytes(b"x")
        with rig.file("src").open("ab") as file:
            file.truncate(3 * MiB)
    with closing(sqlite3.connect(rig.state / "volctl.db")) as db, db:
        db.execute("INSERT INTO reservations VALUES ('r', 'default', NULL, NULL, 1, 0, 4096)")


def lose_the_database(rig: Rig) -> None:
    """And the images, whose rows nothing else tells of."""
    for path in (*rig.state.glob("volctl.db*"), *rig.state.glob("images/*")):
        path.unlink()
