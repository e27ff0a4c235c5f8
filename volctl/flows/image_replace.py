"""image_replace: what was fetched anew becomes the content of an image that was fetched before; its id and name stay.

It is completed once it was begun, since the old file is gone with the first rename.
"""

from __future__ import annotations

import os
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from volctl.db import events, images
from volctl.engine.running import Run
from volctl.engine.task import Direction, Flow, Task
from volctl.errors import VolctlError
from volctl.files import os_open
from volctl.flows.context import Context
from volctl.flows.image import new_of, stored
from volctl.images import store
from volctl.model import Json, Status
from volctl.records import mutable

if TYPE_CHECKING:
    from sqlalchemy import Connection


@mutable
class ReplaceState:
    """`source_id` is the image that was fetched; it goes, unless it is somebody's (`copy`). `values` are of its row."""

    image_id: str
    source_id: str
    copy: bool = False
    values: Json = field(default_factory=dict)


ReplaceRun: TypeAlias = Run[Context, ReplaceState]


class ReplaceTask(Task[Context, ReplaceState]):
    """A task of the replace flow."""


class CheckSourceTask(ReplaceTask):
    """What is known of the content."""

    def gather(self, run: ReplaceRun) -> None:
        state = run.state
        with run.env.store.read() as tx:
            state.values = images.content(tx, state.source_id)
            state.copy = not images.is_unclaimed(tx, state.source_id)


class ReplaceFileTask(ReplaceTask):
    """The new file under the image's id."""

    def plan(self, run: ReplaceRun) -> Json:
        return {"file": run.state.image_id}

    def execute(self, run: ReplaceRun) -> None:
        state, target = run.state, stored(run.env, run.state.image_id)
        source = stored(run.env, state.source_id)
        if state.copy:
            self._copy(run, source)
            source = _beside(run)
        store.keep(source, target)
        state.values["identity"] = store.identity(target)

    def _copy(self, run: ReplaceRun, source: Path) -> None:
        try:
            with os_open(source, os.O_RDONLY | os.O_CLOEXEC) as fd:
                store.copy_in(fd, _beside(run), lambda done, total: run.env.progress("copy", done, total))
        except VolctlError as error:
            error.untouched = True
            raise

    def revert(self, run: ReplaceRun) -> None:
        store.remove(_beside(run))


def _beside(run: ReplaceRun) -> Path:
    return new_of(run.env, run.state.image_id)


class ReplaceEntryTask(ReplaceTask):
    """The image's row has the content of the other one, which goes."""

    def record(self, tx: Connection, run: ReplaceRun) -> None:
        state = run.state
        images.change(tx, state.image_id, status=Status.AVAILABLE, **state.values)
        if not state.copy:
            images.remove(tx, state.source_id)
        events.add(tx, "image.replace", state.image_id, run.request, {"size": state.values["size"]})


def stuck(tx: Connection, run: ReplaceRun) -> None:
    """The file may be the old or the new one, or still be under the other's id."""
    for image_id in (run.state.image_id, *(() if run.state.copy else (run.state.source_id,))):
        images.change(tx, image_id, status=Status.ERROR)


FLOW = Flow(
    "image_replace",
    ReplaceState,
    CheckSourceTask(),
    ReplaceFileTask(),
    ReplaceEntryTask(),
    direction=Direction.COMPLETE,
    on_stuck=stuck,
)
