"""What an object is about, as tags of an LV."""

from __future__ import annotations

import base64
import re
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from volctl.lvm import about, thick
from volctl.lvm.adopt import ours
from volctl.lvm.group import ATTACHED, AWAY, Session
from volctl.model import Json, Object

TEXT = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S", "Zs", "Cf")), max_size=80)


@given(st.dictionaries(TEXT, TEXT, max_size=8), TEXT)
def test_tags_hold_it_in_the_characters_and_the_length_that_lvm_takes(properties: dict[str, str], name: str) -> None:
    told: Json = {"name": name, "properties": properties, "protected": True}
    tags = about.tags(Object("volume", "x", told))
    assert all(re.fullmatch(r"[A-Za-z0-9_+.][A-Za-z0-9_+.\-/=!:&#]{0,1023}", tag) for tag in tags)
    assert about.told({*tags, "volctl", "somebody"}) == told
    assert about.own({*tags, "volctl"}) == tags


def test_what_is_too_long_for_the_group_goes_without_its_properties() -> None:
    properties = {str(number): f"{number * 7919:0250}" + str(hash(str(number))) for number in range(2000)}
    tags = about.tags(Object("volume", "x", {"name": "v", "properties": properties}))
    assert sum(map(len, tags)) < about.LONGEST
    assert about.told(tags) == {"name": "v"}


def nested() -> str:
    packer = zlib.compressobj(9, wbits=-15)
    packed = packer.compress(b"[" * 600_000) + packer.flush()
    return "volctl-about-00-" + base64.urlsafe_b64encode(packed).decode().rstrip("=")


UNREADABLE = ("volctl-about-00-", "volctl-about-00-!", "volctl-about-00-AAAA", nested())


@pytest.mark.parametrize("tags", [set(), *({tag} for tag in UNREADABLE)])
def test_what_cannot_be_read_is_nothing(tags: set[str]) -> None:
    assert about.told(tags) is None


def test_nothing_to_tell_is_no_tag() -> None:
    assert about.tags(Object("volume", "x")) == set()


def test_only_our_tags_are_ours() -> None:
    target = Object("volume", "00000000-0000-4000-8000-000000000000", {"name": "web"})
    given = Session("vg0", "fast", "db").tags(target) | {ATTACHED, AWAY, f"{thick.TAIL}4194304"}
    assert ours(given | {"volctl-like", "volctls", "mine", "volctl-volume-of-mine"}) == given
