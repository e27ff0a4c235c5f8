"""Generic netlink, as far as one needs it to ask one family of the kernel for something.

Sources: netlink(7), linux/netlink.h, linux/genetlink.h.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import field

from volctl.errors import BackendError
from volctl.records import mutable

Attributes = dict[int, bytes]

_GENERIC, _NETLINK = 16, 270  # NETLINK_GENERIC, SOL_NETLINK
_ADD_MEMBERSHIP = 1
_MESSAGE, _COMMAND, _ATTRIBUTE = struct.Struct("=IHHII"), struct.Struct("=BBH"), struct.Struct("=HH")
_REQUEST_ACK, _ERROR, _NESTED = 1 | 4, 2, 0x8000
_CONTROLLER, _GET_FAMILY = 16, 3
_FAMILY_ID, _FAMILY_NAME, _MOST, _GROUPS, _GROUP_NAME, _GROUP_ID = 1, 2, 5, 7, 1, 2
_LARGEST = 65536
_PATIENCE = 30.0  # seconds for one answer of the kernel


@mutable
class Family:
    """One that is there, and a conversation with it. `most` is the highest number of an attribute it knows."""

    channel: socket.socket
    number: int = _CONTROLLER
    most: int = 0
    groups: dict[bytes, int] = field(default_factory=dict)

    def ask(self, command: int, *attributes: bytes) -> Attributes:
        """What it answers; OSError if it will not."""
        content = _COMMAND.pack(command, 1, 0) + b"".join(attributes)
        header = _MESSAGE.pack(_MESSAGE.size + len(content), self.number, _REQUEST_ACK, 0, 0)
        self.channel.settimeout(_PATIENCE)
        self.channel.send(header + content)
        answer: Attributes = {}
        for kind, said in self._messages():
            if kind != _ERROR:
                answer |= parse(said[_COMMAND.size :])
                continue
            (number,) = struct.unpack_from("=i", said)
            if number:
                raise OSError(-number, os.strerror(-number))
            return answer
        raise AssertionError("messages do not end")

    def _messages(self) -> Iterator[tuple[int, bytes]]:
        """Kind and content of each that comes."""
        while True:
            try:
                data = self.channel.recv(_LARGEST)
            except TimeoutError as error:
                raise BackendError(f"the kernel did not answer within {_PATIENCE:g} s") from error
            while data:
                length, kind, *_ = _MESSAGE.unpack_from(data)
                yield kind, data[_MESSAGE.size : length]
                data = data[_padded(length) :]

    def listen(self, group: bytes) -> None:
        """Hear what it tells everybody of this group, by `heard`. `ask` is then for another conversation."""
        self.channel.setsockopt(_NETLINK, _ADD_MEMBERSHIP, self.groups[group])

    def heard(self, seconds: float) -> Attributes | None:
        """What it says next; None if it says nothing for so long."""
        self.channel.settimeout(seconds)
        try:
            data = self.channel.recv(_LARGEST)
        except TimeoutError:
            return None
        return parse(data[_MESSAGE.size + _COMMAND.size : _MESSAGE.unpack_from(data)[0]])


@contextmanager
def family(name: str) -> Iterator[Family | None]:
    """None if this kernel has no such family, or not for this network namespace."""
    with ExitStack() as stack:
        try:
            channel = stack.enter_context(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _GENERIC))
            found = Family(channel).ask(_GET_FAMILY, attribute(_FAMILY_NAME, name.encode() + b"\0"))
        except OSError:  # containers may have no netlink at all
            yield None
            return
        groups = [parse(group) for group in parse(found.get(_GROUPS, b"")).values()]
        yield Family(
            channel,
            number_of(found[_FAMILY_ID]),
            number_of(found[_MOST]),
            {group[_GROUP_NAME].rstrip(b"\0"): number_of(group[_GROUP_ID]) for group in groups},
        )


def attribute(kind: int, value: bytes) -> bytes:
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(_padded(length) - length)


def nested(kind: int, *inside: bytes) -> bytes:
    return attribute(kind | _NESTED, b"".join(inside))


def parse(data: bytes) -> Attributes:
    """Attributes by their numbers."""
    found = {}
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        if length < _ATTRIBUTE.size:
            break
        found[kind & ~_NESTED] = data[_ATTRIBUTE.size : length]
        data = data[_padded(length) :]
    return found


def number_of(value: bytes) -> int:
    """Numbers are as this machine writes them."""
    return int.from_bytes(value, sys.byteorder)


def _padded(length: int) -> int:
    return -(-length // 4) * 4
