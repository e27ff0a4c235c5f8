"""What `doctor` tells of one object."""

from __future__ import annotations

from volctl.records import record


@record
class Finding:
    """One difference, for a reader. `object` is named as it is on its backend, in the state directory or /dev.

    `id` and `name` are of the volume, snapshot, image or flow; null where there is none. `fix` is what
    `--fix` does, null if only a person can. `deletes`: bytes go, so it is done with `--yes` only.
    """

    kind: str
    object: str
    id: str | None
    name: str | None
    backend: str | None
    problem: str
    fix: str | None
    deletes: bool = False
    fixed: bool = False

    @property
    def counts(self) -> bool:
        """What is foreign is no difference."""
        return self.kind != "foreign" and not self.fixed
