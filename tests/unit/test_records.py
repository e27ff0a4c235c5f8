"""Records: what the standard dataclass promises and they must keep."""

from __future__ import annotations

from dataclasses import asdict, field, fields, is_dataclass, replace
from typing import ClassVar

import pytest

from volctl.records import mutable, record


@record
class Point:
    x: int
    y: int = 0
    note: str = field(default="", compare=False)
    hidden: int = field(default=0, repr=False)


@record
class Named(Point):
    name: str = ""


@record
class Other:
    x: int
    y: int = 0
    hidden: int = 0


def test_equal_if_all_compared_fields_are() -> None:
    assert Point(1, note="a") == Point(1, note="b") and hash(Point(1, note="a")) == hash(Point(1, note="b"))
    other: object = Other(1)
    assert Point(1) != Point(1, 2) and Point(1) != other and Point(1) != Named(1)
    assert Named(1, name="a") != Named(1, name="b")


def test_shown_copied_and_made_plain_as_a_dataclass() -> None:
    assert repr(Named(1, name="a")) == "Named(x=1, y=0, note='', name='a')"
    assert replace(Point(1), y=2) == Point(1, 2)
    assert asdict(Other(1)) == {"x": 1, "y": 0, "hidden": 0}


def test_holds_nothing_but_its_fields() -> None:
    with pytest.raises(AttributeError):
        Point(1).z = 1  # type: ignore[attr-defined]


def test_one_field_alone_is_compared_and_hashed() -> None:
    @record
    class Single:
        it: tuple[int, ...]

    assert Single((1,)) == Single((1,)) and len({Single((1,)), Single((1,)), Single((2,))}) == 2


@mutable
class State:
    kind: ClassVar[str] = "state"
    size: int
    tried: list[str] = field(default_factory=list)
    seen: int | None = field(default=None, init=False)

    def grow(self) -> None:
        self.size += 1


@mutable
class Larger(State):
    kind = "larger"
    more: str = field(default="", kw_only=True)


def test_what_may_be_changed_is_compared_and_not_hashed() -> None:
    state, other = State(1), State(1)
    assert state == other and (state.tried, state.seen) == ([], None)
    state.grow()
    other.tried.append("a")
    assert state != other and state == State(2) and repr(other) == "State(size=1, tried=['a'], seen=None)"
    assert (State.kind, Larger.kind, other.kind) == ("state", "larger", "state")
    with pytest.raises(TypeError, match="unhashable"):
        hash(state)
    with pytest.raises(TypeError):
        State()  # type: ignore[call-arg]


def test_a_class_is_whole_whichever_of_it_is_asked_for_first() -> None:
    @mutable
    class Empty:
        pass

    @record
    class Asked:
        x: int = 3

    class Plain(Asked):
        pass

    assert Empty() == Empty() and is_dataclass(Asked)
    assert [found.name for found in fields(Asked)] == ["x"] and Plain() == Plain(3) and asdict(Plain(4)) == {"x": 4}
    assert Larger(1, ["a"], more="b") == replace(Larger(1, ["a"]), more="b") != State(1, ["a"])
