"""Names and free text: what is taken, what is refused, and that the refusal says why."""

from __future__ import annotations

import sys
import unicodedata

import pytest

from volctl.flows.words import check_text
from volctl.model import check_name

NAMES = ["a", "A", "0", "a.b", "a-b", "a_b", "web-1.old_2", "a" * 63, "deadbeef", "0-0", "volume", "snap-1"]
NO_NAMES = [
    "", ".", "..", "-", "-a", "_a", ".a", "a" * 64, "a b", " a", "a ", "a\n", "\na", "a/b", "../a", "a\0", "ä", "aé",
    "a\u0301", "а", "a\u202e", "a:b", "a,b", "a=b", "$(id)", "`id`", "a;b", "a*", "~a", "٣", "a\\b", "a'b", 'a"b',
]  # fmt: skip
IDS = [
    "123e4567-e89b-12d3-a456-426614174000",
    "123E4567-E89B-12D3-A456-426614174000",
    "123e4567e89b12d3a456426614174000",
    "00000000-0000-0000-0000-000000000000",
]


@pytest.mark.parametrize("name", NAMES)
def test_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", NO_NAMES, ids=ascii)
def test_no_names(name: str) -> None:
    with pytest.raises(ValueError, match="is not a name"):
        check_name(name)


@pytest.mark.parametrize("name", IDS)
def test_ids_are_no_names(name: str) -> None:
    with pytest.raises(ValueError, match="looks like an id"):
        check_name(name)


def test_text_of_every_category() -> None:
    """Control, surrogate, unassigned and line separators are refused; all else, format characters too, is kept."""
    refused = {"Cc", "Cs", "Cn", "Zl", "Zp"}
    for char in map(chr, (*range(0x2100), *range(0x2100, sys.maxunicode, 97))):
        if unicodedata.category(char) in refused:
            with pytest.raises(ValueError, match=f"U\\+{ord(char):04X} at position 2"):
                check_text("x" + char, "it")
        else:
            assert check_text(char, "it") == char


@pytest.mark.parametrize(
    "char", ["\n", "\x00", "\x1b", "\x7f", "\x85", "\ud800", "\udcff", "\u2028", "\u2029", "\u0378"]
)
def test_refused_characters(char: str) -> None:
    with pytest.raises(ValueError, match="forbidden character"):
        check_text(f"a{char}", "it")


@pytest.mark.parametrize("text", ["", "a b", "ünïcödé", "日本", "\u202eabc", "\u200d", "\u00ad", "👩‍🚀", "\u3000"])
def test_kept_text(text: str) -> None:
    assert check_text(text, "it") == text


def test_length_counts_characters() -> None:
    assert check_text("日" * 255, "it")
    with pytest.raises(ValueError, match="256 characters; allowed are 0 to 255"):
        check_text("日" * 256, "it")
    with pytest.raises(ValueError, match="0 characters; allowed are 1 to 255"):
        check_text("", "a key", least=1)
