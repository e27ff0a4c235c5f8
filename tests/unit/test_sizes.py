"""Sizes as people write them: units, fractions, rounding up to MiB, and everything that is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from volctl.model import MAX_SIZE, GiB, KiB, MiB, format_size, parse_size, round_up

TiB = 1024**4
PiB = 1024**5

GOOD = [
    ("1", GiB), ("10", 10 * GiB), ("0010", 10 * GiB),
    ("1M", MiB), ("1MiB", MiB), ("512M", 512 * MiB), ("1024K", MiB), ("1024KiB", MiB),
    ("1G", GiB), ("1GiB", GiB), ("1T", TiB), ("1TiB", TiB), ("1P", PiB), ("1PiB", PiB),
    ("1.5G", 3 * GiB // 2), ("1.5TiB", 3 * TiB // 2), ("0.5M", MiB), ("2.25T", 9 * TiB // 4), ("0.0000001K", MiB),
    ("1K", MiB), ("1kB", MiB), ("1025K", 2 * MiB),
    ("1MB", MiB), ("1.5MB", 2 * MiB), ("500MB", 477 * MiB), ("1GB", 954 * MiB), ("1TB", 953675 * MiB),
    ("1PB", 953674317 * MiB), ("1.1G", 1127 * MiB),
    ("8388607T", 8388607 * TiB), ("8191P", 8191 * PiB), ("8589934591", 8589934591 * GiB),
    ("8796093022207M", 8 * 1024**6 - MiB),
]  # fmt: skip
BAD = [
    "", " ", "x", "G", "0", "00", "0G", "0.0M", "-1", "+1", "-1G", "+1G", "--1", "1e3", "1E3G", "1e3G", "0x10", "0b1",
    "1 G", " 1", "1 ", "1G ", "1\n", "1G\n", "\t1", "1_000", "1,5G", "1.5", "1.", "1.G", ".5G", "1..5G", "1.5.1G",
    "1g", "1k", "1m", "1KB", "1kiB", "1kb", "1Gb", "1gib", "1GIB", "1Gi", "1GBs", "1B", "1iB", "1E", "1EiB", "1EB",
    "1GiB1", "10GiBx", "nan", "NaN", "inf", "1/2", "٣", "１", "1٣G", "½", "1½G", "²", "1Ｇ", "1G\0", "1\u200b",
    "8388608T", "8192P", "8589934592", "9223372036854775807M", "8796093022208M", "8796093022207.5M", "9" * 29, "9" * 40,
]  # fmt: skip


@pytest.mark.parametrize(("text", "size"), GOOD, ids=lambda value: str(value))
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", BAD, ids=ascii)
def test_no_sizes(text: str) -> None:
    with pytest.raises(ValueError, match=r"size|GiB|8 EiB"):
        parse_size(text)


@given(st.integers(1, MAX_SIZE), st.sampled_from(["K", "M", "G", "T"]))
def test_rounded_up_to_mib_and_never_down(size: int, unit: str) -> None:
    factor = {"K": KiB, "M": MiB, "G": GiB, "T": TiB}[unit]
    if round_up(size // factor * factor, MiB) > MAX_SIZE or size < factor:
        return
    parsed = parse_size(f"{size // factor}{unit}")
    assert parsed % MiB == 0
    assert 0 <= parsed - size // factor * factor < MiB


@given(st.text(max_size=8))
def test_any_text_is_a_size_or_a_value_error(text: str) -> None:
    try:
        assert MiB <= parse_size(text) <= MAX_SIZE
    except ValueError as error:
        assert str(error)


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1024, "1 KiB"), (1536, "1.5 KiB"), (10 * GiB, "10 GiB"), (PiB, "1 PiB")],
)
def test_sizes_for_people(size: int, text: str) -> None:
    assert format_size(size) == text
