"""Standard error: errors and notes, as sentences, and for machines as one last line of JSON."""

from __future__ import annotations

import os
import re
import sys
from typing import Any

from volctl.cli.stdout import silence
from volctl.cli.text import escape
from volctl.errors import VolctlError

_OUTPUT = re.compile(r"(?:--output(?:=|$)|-[qvy]*o=?)(.*)")
"""The option, alone or after others that take no value, with its value if that is in the same word."""


def is_terminal() -> bool:
    try:
        return sys.stderr is not None and sys.stderr.isatty()
    except ValueError:
        return False


def line(text: str) -> None:
    """One line, escaped; nobody to read it is no error."""
    raw(escape(text) + "\n")


def raw(text: str) -> None:
    """Text as it is: only for what we wrote ourselves."""
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except UnicodeEncodeError:
        raw(text.encode("ascii", "backslashreplace").decode())
    except OSError:
        silence(sys.stderr)
    except (ValueError, AttributeError):
        pass  # closed, or never there


def tell(error: VolctlError, *, as_json: bool = False) -> None:
    """`volctl: what happened`, `hint: what to do`, and the JSON line where it was asked for."""
    line(f"volctl: {error.message}")
    if error.hint:
        line(f"hint: {error.hint}")
    if as_json:
        import json

        raw(json.dumps({"error": plain(error)}, default=str) + "\n")


def plain(error: VolctlError) -> dict[str, Any]:
    return {
        "code": error.code,
        "exit": error.exit,
        "message": error.message,
        "hint": error.hint,
        "volume": error.volume,
        "details": error.details,
    }


def wants_json(words: list[str]) -> bool:
    """Whether JSON was asked for, also on a command line that cannot be parsed."""
    words = words[: words.index("--")] if "--" in words else words
    if "--json" in words:
        return True
    asked = os.environ.get("VOLCTL_OUTPUT")
    for word, following in zip(words, [*words, ""][1:], strict=True):
        if found := _OUTPUT.fullmatch(word):
            asked = found[1] or following
    return asked == "json"
