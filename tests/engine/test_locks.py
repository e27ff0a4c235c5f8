"""Lock files come and go under the hands of other commands; a lock is had all the same."""

from __future__ import annotations

from pathlib import Path

from volctl.db.store import keep_owner
from volctl.engine.locks import EXCLUSIVE, LockDirectory


def test_a_new_file_swept_before_it_is_locked_is_made_anew(tmp_path: Path) -> None:
    """Another command's sweep sees the file between its making and its lock."""
    swept: list[Path] = []

    def own(path: Path) -> None:
        if not swept:
            swept.append(path)
            LockDirectory(tmp_path, keep_owner).sweep()
        keep_owner(path)
        path.stat()

    with LockDirectory(tmp_path, own).acquire({"volume": EXCLUSIVE}, 0) as held:
        assert swept == [tmp_path / "volume"]
        assert held.names == {"volume": EXCLUSIVE}
        assert LockDirectory(tmp_path, keep_owner).try_acquire({"volume": EXCLUSIVE}) is None
