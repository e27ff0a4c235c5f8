"""Failures put into a flow: a task is replaced by a subclass of itself that fails where it is told.

The subclass keeps the task's name, so the flow stays the one that the next command knows.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from volctl import errors
from volctl.engine.task import Flow, Task
from volctl.flows import FLOWS, LITERALS

Json = dict[str, Any]
Step = Callable[..., Any]


def inject(change: Json) -> None:
    """`flow`, `task`, `half` (gather … unrecord), `when` (before, after), `error` (a code, or a Python error),
    and `while` (a file: only as long as it is there). The error `stop` is none: it stands still until SIGCONT.

    With `insert`, another task of that name goes in front of `task` instead: another version's flow.
    """
    flow = FLOWS[change["flow"]]
    tasks = []
    for task in flow.tasks:
        if task.name != change["task"]:
            tasks.append(task)
        elif "insert" in change:
            tasks += [type(change["insert"], (Task,), {})(), task]
        else:
            tasks.append(failing(task, change))
    new: Flow[Any, Any] = Flow(flow.name, flow.state, *tasks, direction=flow.direction, beside=flow.beside)
    new.on_undone, new.on_stuck = flow.on_undone, flow.on_stuck
    module, literal = LITERALS[flow.name].split(".")
    setattr(import_module(f"volctl.flows.{module}"), literal, new)


def failing(task: Task[Any, Any], change: Json) -> Task[Any, Any]:
    half: Step = getattr(type(task), change["half"])

    def broken(self: Task[Any, Any], *args: Any) -> None:
        if change.get("when") == "after":
            half(self, *args)
        if "while" not in change or Path(change["while"]).exists():
            _stop() if change["error"] == "stop" else _fail(change["error"])
        if change.get("when") != "after":
            half(self, *args)

    made: Task[Any, Any] = type(task.name, (type(task),), {change["half"]: broken})()
    return made


def _stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def _fail(code: str) -> NoReturn:
    raise error_of(code)


def error_of(code: str) -> Exception:
    """The error of that code (`errors`), or a mistake of ours: `RuntimeError`."""
    said = f"injected {json.dumps(code)}"
    if code == "RuntimeError":
        return RuntimeError(said)
    return _classes(errors.VolctlError)[code](said)


def _classes(base: type[errors.VolctlError]) -> dict[str, type[errors.VolctlError]]:
    known = {base.code: base}
    for child in base.__subclasses__():
        known = _classes(child) | known
    return known
