"""Text for people: nothing that a terminal would obey, and columns that line up."""

from __future__ import annotations


def escape(text: str) -> str:
    r"""Control, format and unassigned characters as `\n`, `\x1b`, `\u202e`; all else as it is."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    return char.encode("unicode_escape", "surrogatepass").decode("ascii")


def width(text: str) -> int:
    """How many cells of a terminal the (escaped) text takes."""
    if text.isascii():
        return len(text)
    from unicodedata import category, east_asian_width

    return sum(0 if category(char) in ("Mn", "Me") else 2 if east_asian_width(char) in "WF" else 1 for char in text)


def pad(text: str, cells: int) -> str:
    return text + " " * (cells - width(text))


def fit(text: str, cells: int) -> str:
    """At most so many cells, for a line that is drawn over again."""
    if width(text) <= cells:
        return text
    while text and width(text) > cells - 1:
        text = text[:-1]
    return text + "…" if cells > 0 else ""
