"""What a command is doing, on standard error: one line drawn over again, flows that have gone by, notes.

Only on a terminal and not with --quiet; --verbose prints each step and each program anywhere.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import field
from typing import TYPE_CHECKING

from volctl.cli import stderr
from volctl.cli.options import Common
from volctl.cli.text import escape, fit
from volctl.model import format_size
from volctl.records import mutable

if TYPE_CHECKING:
    from volctl.service import Watcher

BAR = 20
INTERVAL = 0.1  # seconds between two drawings of the line
BEGUN = "begun"
ENDINGS = {"done": "", "undone": " (undone)", "failed": " (failed)"}


@mutable
class Progress:
    """Hears a session's `Watcher` and draws. `flows`: leave a line for each flow and its tasks."""

    live: bool
    notes: bool
    steps: bool
    flows: bool
    color: bool
    flow: str | None = None
    tasks: list[str] = field(default_factory=list)
    what: str | None = None
    began: float = 0.0
    drawn: float = 0.0

    def warn(self, text: str) -> None:
        if self.notes:
            self.clear()
            stderr.line(f"volctl: {text}")

    def program(self, command: str) -> None:
        self.clear()
        stderr.line(f"+ {command}")

    def step(self, flow: str, task: str, state: str) -> None:
        if self.steps:
            if state != BEGUN:
                self.clear()
                stderr.line(f"{flow}: {task} {state}")
        elif self.live:
            self._follow(flow, task, state)

    def _follow(self, flow: str, task: str, state: str) -> None:
        if flow != self.flow:
            self.leave()
            self.flow = flow
        if state == BEGUN:
            self._draw(f"{short(flow)}: {task} …")
        else:
            self.tasks.append(task + ENDINGS.get(state, f" ({state})"))

    def progress(self, what: str, done: int, total: int) -> None:
        if not self.live:
            return
        now = time.monotonic()
        if what != self.what or done == 0:
            self.what, self.began, self.drawn = what, now, 0.0
        if now - self.drawn >= INTERVAL or done >= total > 0:
            self.drawn = now
            self._draw(bar(what, done, total, now - self.began))

    def _draw(self, text: str) -> None:
        stderr.raw("\r\x1b[K" + fit(escape(text), columns() - 1))

    def clear(self) -> None:
        if self.live:
            stderr.raw("\r\x1b[K")

    def leave(self) -> None:
        """The flow is over: its line stays, if lines stay."""
        if not self.live:
            return
        self.clear()
        if self.flows and self.tasks and self.flow:
            for line in wrapped(short(self.flow), self.tasks, columns()):
                stderr.raw(dim(line) + "\n" if self.color else line + "\n")
        self.flow, self.tasks = None, []


@contextmanager
def watching(given: Common, *, flows: bool = False) -> Iterator[Watcher]:
    from volctl import command
    from volctl.service import Watcher

    live = stderr.is_terminal() and not given.quiet
    shown = Progress(live, not given.quiet, given.verbose, flows, given.color)
    before = command.on_run
    if given.verbose:
        command.on_run = shown.program
    try:
        yield Watcher(warn=shown.warn, progress=shown.progress, step=shown.step)
    finally:
        command.on_run = before
        shown.leave()


def short(flow: str) -> str:
    """`api` of volume_create_api; other flows by their whole name."""
    return flow.removeprefix("volume_create_")


def wrapped(label: str, tasks: list[str], cells: int) -> list[str]:
    """`api        Task · Task` in as many lines as it needs."""
    lines = [f"{label:<10}"]
    for number, task in enumerate(map(escape, tasks)):
        piece = f" {task}" if lines[-1].strip() in ("", label) else f" · {task}"
        if len(lines[-1]) + len(piece) > cells - 1 and number:
            lines.append(" " * 10)
            piece = f" {task}"
        lines[-1] += piece
    return lines


def bar(what: str, done: int, total: int, seconds: float) -> str:
    """`convert [=====>    ] 45 %  512 MiB of 1.1 GiB  300 MiB/s  2 s left`; without a known total what is done."""
    if total <= 0:
        return f"{what} {format_size(done)}" + (f"  {format_size(int(done / seconds))}/s" if seconds >= 0.5 else "")
    share = min(1.0, done / total)
    filled = int(share * BAR)
    drawn = ("=" * filled + ">" * (filled < BAR)).ljust(BAR)
    text = f"{what} [{drawn}] {share:4.0%}  {format_size(done)} of {format_size(total)}"
    if seconds < 0.5 or done <= 0:
        return text
    rate = done / seconds
    return f"{text}  {format_size(int(rate))}/s  {clock((total - done) / rate)} left"


def clock(seconds: float) -> str:
    whole = max(0, round(seconds))
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60} s"


def dim(text: str) -> str:
    return f"\x1b[2m{text}\x1b[0m"


def columns() -> int:
    try:
        return os.get_terminal_size(2).columns or 80
    except OSError:
        return 80
