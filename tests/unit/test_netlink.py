"""Generic netlink, asked for the one family that every kernel has: the one that tells of families."""

from __future__ import annotations

import pytest

from volctl.qcow2 import netlink
from volctl.qcow2.netlink import attribute, nested, number_of, parse


def test_a_family_that_is_there_and_one_that_is_not() -> None:
    with netlink.family("nlctrl") as found:
        assert found is not None
        assert (found.number, found.groups[b"notify"]) == (16, 16)
        again = found.ask(3, attribute(2, b"nlctrl\0"))
        assert number_of(again[1]) == 16
        with pytest.raises(FileNotFoundError):
            found.ask(3, attribute(2, b"nothere\0"))
        assert found.heard(0.01) is None
    with netlink.family("nothere") as absent:
        assert absent is None


def test_attributes_come_back_as_they_went() -> None:
    data = attribute(1, b"a") + nested(7, attribute(1, b"inside"), attribute(2, b"")) + attribute(2, b"long" * 9)
    found = parse(data)
    assert (found[1], found[2], parse(found[7])) == (b"a", b"long" * 9, {1: b"inside", 2: b""})
    assert parse(data[:3]) == parse(b"\1\0\1\0") == {}
