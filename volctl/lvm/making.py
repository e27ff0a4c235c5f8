"""New LVs of one backend: in the thin pool or of their own extents, in the place of what a failed attempt left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TypeVar

from volctl.errors import BackendError, ExistsError, Failure, NoSpaceError, VolctlError
from volctl.lvm import placement
from volctl.lvm.group import Change, Session
from volctl.lvm.report import LogicalVolume
from volctl.lvm.settings import Settings
from volctl.model import Object
from volctl.records import record

T = TypeVar("T")


@record
class Maker:
    """Errors say what is wrong with the pool, where that is known (`placement.explained`)."""

    session: Session
    options: Settings

    def blank(self, target: Object, size: int) -> bool:
        """Make an inactive thin LV, which reads as zeros; False, and nothing is made, where new ones are thick."""
        change, thin = self._change(target, size, active=False)
        if thin:
            self.instead(target.name, lambda: self.session.change(change))
        return thin

    @contextmanager
    def opened(self, target: Object, size: int, flags: int) -> Iterator[tuple[int, bool]]:
        """A new LV, open, and whether it is thin: only those are blank."""
        change, thin = self._change(target, size, active=True)
        group = self.session.see(fresh=False)
        with ExitStack() as stack:
            opening = lambda: stack.enter_context(self.session.opened(target.name, flags, group, make=change))
            fd: int = self.instead(target.name, opening)
            with self._explaining():
                yield fd, thin

    def share(self, origin: LogicalVolume, name: str, tags: set[str], size: int) -> None:
        """A thin snapshot of an LV, `size` bytes long."""
        self.instead(name, lambda: self.session.change(lambda verbs: verbs.snapshot_thin(origin.name, name, tags)))
        if size > origin.size:
            self.session.change(lambda verbs: verbs.extend(name, size))

    def instead(self, name: str, make: Callable[[], T]) -> T:
        """Make an LV after removing what is there. The group as it was a moment ago is asked first."""
        for fresh in (False, True):
            self.session.remove(name, self.session.see(fresh=fresh), self.options.clear)
            try:
                with self._explaining():
                    return make()
            except ExistsError as error:
                failed = error
        raise failed

    def _change(self, target: Object, size: int, *, active: bool) -> tuple[Change, bool]:
        """How an LV is made, and whether it is thin; a thick one is active and holds what was there."""
        group, tags = self.session.see(fresh=False), self.session.tags(target)
        if pool := placement.pool_of(self.options, group):
            return lambda verbs: verbs.create_thin(pool.name, target.name, size, tags, active=active), True
        layout = placement.layout_of(self.options, group)
        return lambda verbs: verbs.create_thick(target.name, size, tags, layout), False

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        try:
            yield
        except (BackendError, NoSpaceError) as error:
            found: VolctlError = error
            with suppress(Failure):
                found = placement.explained(self.options, self.session.look(), error)
            raise found from None
