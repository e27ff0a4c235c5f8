"""One conversation with a QEMU program over its monitor socket: docs/interop/qmp-spec.txt in QEMU's source."""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from volctl import interrupt
from volctl.errors import BackendError
from volctl.records import record

PATIENCE = 30.0  # seconds for one answer
LOOK = 1.0  # and for a greeting


class RefusedError(Exception):
    """The program understood, and would not."""


@record
class Monitor:
    path: Path
    stream: TextIO

    def execute(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """What the command returns. `RefusedError` with its words, `BackendError` when nobody answers."""
        with _answering(self.path):
            self.stream.write(json.dumps({"execute": command, "arguments": arguments or {}}) + "\n")
            self.stream.flush()
            while line := self.stream.readline():
                said = json.loads(line)
                if "error" in said:
                    raise RefusedError(said["error"]["desc"])
                if "return" in said:
                    return said["return"]
        raise BackendError(f"the storage daemon at {self.path} went away")


@contextmanager
def connected(path: Path) -> Iterator[Monitor]:
    """`BackendError` if nobody answers at the socket."""
    with socket.socket(socket.AF_UNIX) as channel:
        with _answering(path):
            _connect(channel, path, PATIENCE)
        with channel.makefile("rw", encoding="utf-8") as stream:
            monitor = Monitor(path, stream)
            with _answering(path):
                stream.readline()  # the greeting
            monitor.execute("qmp_capabilities")
            yield monitor


def silent(path: Path, patience: float = LOOK) -> bool:
    """Does whoever listens at the socket say nothing, such as a program that was stopped?"""
    with socket.socket(socket.AF_UNIX) as channel:
        try:
            _connect(channel, path, patience)
            channel.recv(1)
        except (TimeoutError, BlockingIOError):
            return True
        except OSError:
            return False
    return False


def listener(path: Path) -> int | None:
    """The process that listens at the socket; None if nobody does, or not now. `PermissionError` if one may not ask."""
    with socket.socket(socket.AF_UNIX) as channel:
        channel.setblocking(False)
        try:
            channel.connect(str(path))
            pid, _, _ = struct.unpack("3i", channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        except PermissionError:
            raise
        except OSError:
            return None
    return pid or None  # 0 is in another namespace


def _connect(channel: socket.socket, path: Path, patience: float) -> None:
    """One is answered at a time, and few may wait: who is one too many is told so at once."""
    channel.settimeout(patience)
    end = time.monotonic() + patience
    while True:
        try:
            channel.connect(str(path))
            return
        except BlockingIOError:
            if time.monotonic() > end:
                raise
            interrupt.pause(0.02)


@contextmanager
def _answering(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise BackendError(f"the storage daemon at {path} does not answer: {error}") from error
