"""A command's way to the service: the options as the service wants them, progress, prompts."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType
from typing import TYPE_CHECKING

import typer

from volctl import interrupt
from volctl.cli import stderr
from volctl.cli.options import common
from volctl.errors import Cancelled, UsageError
from volctl.interrupt import SIGNALS

if TYPE_CHECKING:
    from volctl.service import Options, Session


def options(ctx: typer.Context) -> Options:
    from volctl.service import Options

    given = common(ctx)
    return Options(project=given.project, timeout=given.timeout, lock_timeout=given.lock_timeout)


@contextmanager
def session(
    ctx: typer.Context, *, reads: bool = False, flows: bool = False, take_over: bool = False
) -> Iterator[Session]:
    """Listen for signals, open the state, show what goes on; `flows` keeps each flow's line on a terminal."""
    from volctl import service
    from volctl.cli import progress

    interrupt.install(common(ctx).timeout)
    with (
        progress.watching(common(ctx), flows=flows) as watcher,
        service.open_session(replace(options(ctx), take_over=take_over), watcher, reads=reads) as opened,
    ):
        yield opened


def confirm(ctx: typer.Context, question: Callable[[Session], tuple[str, list[str]]], refs: list[str]) -> list[str]:
    """Ask before something is destroyed. `UsageError` where nobody can answer.

    `question` gives the text that names the objects (empty: nothing to ask) and their ids. What comes
    back is those ids, since a name may be another's by the time of the answer; with --yes, `refs`.
    """
    if common(ctx).yes:
        return refs
    if not _can_ask():
        raise UsageError(f"{ctx.command_path} asks first, and there is no terminal to ask on", hint="say --yes")
    with session(ctx, reads=True) as s:
        text, ids = question(s)
    if text and not _answer(text):
        raise UsageError("not confirmed; nothing was done")
    return ids


def must_agree(ctx: typer.Context, text: str) -> None:
    """Ask before all that a command does. `UsageError` if it was not agreed to, or nobody can answer."""
    if common(ctx).yes:
        return
    if not _can_ask():
        raise UsageError(f"{ctx.command_path} asks first, and there is no terminal to ask on", hint="say --yes")
    if not _answer(text):
        raise UsageError("not confirmed; nothing was done")


def ask(ctx: typer.Context, text: str) -> bool:
    """May this part of what a command does be done? Without --yes and a terminal it may not."""
    return common(ctx).yes or (_can_ask() and _answer(text))


def _can_ask() -> bool:
    import sys

    return sys.stdin is not None and sys.stdin.isatty() and stderr.is_terminal()


def _answer(text: str) -> bool:
    """A signal leaves at once here: nothing has begun."""
    before = {signum: signal.signal(signum, _leave) for signum in SIGNALS}
    for line in text.splitlines():
        stderr.line(line)
    try:
        stderr.raw("Go on? [y/N] ")
        return input().strip().lower() in ("y", "yes")
    except EOFError:
        return False
    except Cancelled:
        stderr.raw("\n")
        raise
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _leave(signum: int, frame: FrameType | None) -> None:
    raise Cancelled(signum)
