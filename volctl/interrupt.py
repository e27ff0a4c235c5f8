"""Signals and the deadline of a command, as flags that waiting code asks for with `check()`.

Nothing is thrown into the middle of a statement: a handler notes the signal, tells the user, and
ends the running children; the code that waited for them sees it at its next `check()`. Every loop
that may last (a lock, a copy, a child) calls `check()` at least every tenth of a second.
A second signal leaves at once, or when the children are dead: the journal has what the next command's
settle needs, and with a child that lives on, and holds its lock, that would wait for ever.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from volctl.errors import Cancelled, TimedOut

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE = 6.0  # seconds an undo may take after --timeout ran out; SPEC allows the command 10
TELLING = 2.0  # seconds in which what is done is told, whatever signals come; who reads it may be stuck

_signum: int | None = None
_deadline: float | None = None
_timeout: float | None = None
_second: int | None = None
_closing = False
_deaf = False
_done: float | None = None
_depth = 0
_heard = False
_leaving = False
end_children: Callable[[], None] = lambda: None
"""Ask them to."""
kill_children: Callable[[], None] = lambda: None
"""Those that do not end in the time that they may take over it."""


def install(timeout: float | None = None) -> None:
    """Begin to listen for signals; `timeout` is in seconds from now."""
    global _signum, _second, _deadline, _timeout, _deaf, _done, _heard
    _signum, _second, _deaf, _done, _heard, _timeout = None, None, False, None, False, timeout
    _deadline = None if timeout is None else time.monotonic() + timeout
    for signum in SIGNALS:
        if signal.getsignal(signum) is not signal.SIG_IGN:  # nohup stays nohup
            signal.signal(signum, _on_signal)


def _on_signal(signum: int, frame: FrameType | None) -> None:
    global _signum, _second
    if _leaving:
        return
    if _done is not None:
        _signum = _signum or signum
        if time.monotonic() > _done + TELLING:
            _leave(signum, "what was asked is done, and could not be told")
    elif _signum is None:
        _signum = signum
        if not _closing:
            _begin_to_end()
    else:
        _second = signum
        if not _closing:
            _leave_undone()


def _begin_to_end() -> None:
    _say(f"volctl: signal {_signum}: ending, undoing what had begun")
    if not _deaf:
        end_children()


def _leave_undone() -> None:
    assert _second is not None
    _leave(_second, f"second signal {_second}: leaving at once; the next command undoes the rest")


def _leave(signum: int, why: str) -> NoReturn:
    global _leaving
    _leaving = True
    _say(f"volctl: {why}")
    end_children()
    kill_children()
    os._exit(128 + signum)


def _say(line: str) -> None:
    try:
        os.write(sys.stderr.fileno(), line.encode() + b"\n")
    except (OSError, ValueError):
        pass  # a closed terminal must not stop the undo


def check() -> None:
    """Raise `Cancelled` after a signal and `TimedOut` after the deadline.

    Each is raised once: from then on the command is on its way out, with `GRACE` seconds for its undo. What is done
    has as long for what comes after it.
    """
    global _heard, _deadline
    if _done is not None:
        if _deadline is not None and time.monotonic() > max(_deadline, _done) + GRACE:
            raise TimedOut(f"not done within {GRACE:g} s")
        return
    if _second is not None:
        _leave_undone()
    if _signum is not None and not _heard and not _deaf:
        _heard, _deadline = True, time.monotonic() + GRACE
        raise Cancelled(_signum)
    if _deadline is not None and time.monotonic() > _deadline:
        _deadline = time.monotonic() + GRACE
        raise TimedOut(f"not done within {_timeout:g} s" if _timeout is not None else f"no end within {GRACE:g} s")


def pause(seconds: float) -> None:
    """Sleep, but hear signals and the deadline."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        check()
        time.sleep(min(left, 0.05))
    check()


@contextmanager
def work() -> Iterator[None]:
    """Inside is what may be ended; work may be part of other work."""
    global _depth
    if _depth == 0:
        listen()
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1


@contextmanager
def closing() -> Iterator[None]:
    """Inside is a last commit and `finished`: a signal comes before both or after both."""
    global _closing
    before = _signum
    _closing = True
    try:
        yield
    finally:
        _closing = False
        if _done is None and _signum != before:
            _begin_to_end()
        if _done is None and _second is not None:
            _leave_undone()


def finished() -> None:
    """All that was asked for is done, and is to be told: no signal and no deadline makes it a failure."""
    global _done
    if _depth <= 1:
        _done = time.monotonic()


def listen() -> None:
    """Something else is begun, and may be ended again."""
    global _done
    _done = None


@contextmanager
def undoing() -> Iterator[None]:
    """A failure is being undone: a signal is not heard inside, and there are at least `GRACE` seconds."""
    global _deaf, _deadline
    before, _deaf = _deaf, True
    if _deadline is not None:
        _deadline = max(_deadline, time.monotonic() + GRACE)
    try:
        yield
    finally:
        _deaf = before


@contextmanager
def budget(seconds: float) -> Iterator[None]:
    """Inside, the deadline is at most `seconds` away."""
    global _deadline, _timeout
    before = _deadline, _timeout
    end = time.monotonic() + seconds
    if _deadline is None or end < _deadline:
        _deadline, _timeout = end, seconds
    try:
        yield
    finally:
        _deadline, _timeout = before
