"""Taking what is there under management in place, and letting go of a volume: a new name and our mark, nothing else.

`take` and `give` undo one another, and each may be called again after a crash at any instant. Neither
reads or writes a byte of the content. They raise what a backend's methods raise (`volctl.backend`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from volctl.model import Object
from volctl.records import record


@record
class Found:
    """Something of somebody's: its name on the backend, its path for people, its size in bytes.

    `file` is a path that can be read to see what it holds; None where that takes more than to open it.
    `identity` tells it from another that has its name later; None where nothing does.
    """

    name: str
    path: str
    size: int
    file: str | None = None
    identity: str | None = None


class Adoption(ABC):
    """How one backend does it."""

    @property
    def format(self) -> str:
        """What its objects are, as the gate of images calls it."""
        return "raw"

    @abstractmethod
    def look(self, source: str) -> Found:
        """What the user calls `source`, if it can become a volume.

        `UsageError` for what is elsewhere or cannot be one, `NotFoundError`, `InUseError` with the holders.
        """

    @abstractmethod
    def take(self, name: str, target: Object, identity: str | None = None) -> None:
        """What has this name becomes `target`, with our mark and what it is about. It was so already: success.

        `NotFoundError` if there is neither, `ConflictError` for another than the one of this identity.
        """

    @abstractmethod
    def give(self, volume: Object, name: str, identity: str | None = None) -> None:
        """The volume gets this name and loses our mark. It was so already: success.

        `NotFoundError` if there is neither; another than the one of this identity does not count.
        """

    @abstractmethod
    def free(self, wanted: str) -> str:
        """A name that nothing bears, and that no listing takes for an object: `wanted`, or like it."""

    @abstractmethod
    def path(self, name: str) -> str:
        """Of what has this name, for people."""
