"""What an image's content is called in the cache: by its sha256 where somebody knows it, else by the file it is in."""

from __future__ import annotations

from collections.abc import Mapping

_IDENTITY = ("device", "inode", "size", "mtime_ns", "ctime_ns")


def of_digest(sha256: str) -> str:
    return f"sha256:{sha256}"


def digest_of(key: str) -> str | None:
    """The sha256 that a key names."""
    return key.removeprefix("sha256:") if key.startswith("sha256:") else None


def of_file(identity: Mapping[str, int]) -> str:
    """As long as all of this stays, nobody has written to the file."""
    return "file:" + ":".join(str(identity[part]) for part in _IDENTITY)


def is_same(checked: Mapping[str, int], found: Mapping[str, int], *, owned: bool) -> bool:
    """Is it still that file? Nobody writes to our copies, which may have gone elsewhere with the state directory."""
    parts = ("size", "mtime_ns") if owned else checked.keys() | found.keys()
    return all(checked.get(part) == found.get(part) for part in parts)
