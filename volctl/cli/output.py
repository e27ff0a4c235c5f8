"""The result on standard output, in the format and with the columns that were asked for.

A `View` is made before a command does anything, so that an unknown column changes nothing. JSON and
YAML show every field with its plain value; `table`, `value` and `csv` show a list's usual columns.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from typing import Any, Literal, TypeVar

import typer

from volctl.cli import stderr, stdout
from volctl.cli.human import Row, cell
from volctl.cli.options import Common, common, nearest
from volctl.cli.text import escape
from volctl.errors import Failure, PartialError, UsageError
from volctl.records import record

T = TypeVar("T")
YAML_WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}  # not text to YAML 1.1
Shape = Literal[
    "BackendDetails",
    "BackendState",
    "Event",
    "Explanation",
    "FlowDetails",
    "FlowRun",
    "Image",
    "QuotaLine",
    "Snapshot",
    "Volume",
    "VolumeDetails",
    "VolumeType",
]
"""The classes of `volctl.model` that commands show; by name, so that help and completion need not import it."""


@record
class View:
    """How the results of one command are shown; `fields` are all there are, `usual` those of a list."""

    given: Common
    fields: tuple[str, ...]
    usual: tuple[str, ...]

    def one(self, value: Any) -> None:
        """One object: `{}`, or a table of fields and values."""
        row: Row = _plain_row(value)
        columns = self.given.columns or tuple(row)
        match self.given.output:
            case "json":
                stdout.write(_json(_pick(row, self.given.columns)))
            case "yaml":
                stdout.write(yaml(_pick(row, self.given.columns)))
            case "value":
                stdout.write("".join(_line(row.get(column)) + "\n" for column in columns))
            case "csv":
                stdout.write(_csv(columns, [row]))
            case _:
                pairs = [{"field": column, "value": cell(column, row)} for column in columns]
                _table(("field", "value"), pairs, self.given, heading=False)

    def many(self, values: Iterable[Any]) -> None:
        """A list: `[]`, or a table with a row for each."""
        rows: list[Row] = [_plain_row(value) for value in values]
        columns = self.given.columns or self.usual
        match self.given.output:
            case "json":
                stdout.write(_json([_pick(row, self.given.columns) for row in rows]))
            case "yaml":
                stdout.write(yaml([_pick(row, self.given.columns) for row in rows]))
            case "value":
                stdout.write("".join(" ".join(_line(row.get(c)) for c in columns) + "\n" for row in rows))
            case "csv":
                stdout.write(_csv(columns, rows))
            case _:
                _table(columns, [{c: cell(c, row) for c in columns} for row in rows], self.given)

    def each(self, keys: Sequence[str], act: Callable[[str], T], *, several: bool = False) -> None:
        """Do it for each key and show what came back: one object for one key (unless `several`), else a list.

        Of several keys, a failure is told as it happens and the others go on; then `PartialError`.
        """
        if len(keys) == 1 and not several:
            self._shown(act(keys[0]))
            return
        done: list[T] = []
        failed: list[Row] = []
        try:
            for key in keys:
                _attempt(key, act, done, failed)
        finally:  # also when a signal ends the loop: what was done is told
            if not done or done[0] is not None:  # to delete gives nothing to show
                self.many(done)
        if failed:
            message = f"{len(failed)} of {len(keys)} failed"
            raise PartialError(message, details={"failed": failed, "done": len(done)})

    def _shown(self, value: Any) -> None:
        if value is not None:
            self.one(value)


def _plain_row(value: Any) -> Row:
    from volctl.model import to_json

    row: Row = to_json(value)
    return row


def _attempt(key: str, act: Callable[[str], T], done: list[T], failed: list[Row]) -> None:
    try:
        done.append(act(key))
    except Failure as error:
        stderr.tell(error)
        failed.append({"ref": key} | stderr.plain(error))


def view(ctx: typer.Context, shape: Shape | tuple[str, ...], usual: tuple[str, ...] = ()) -> View:
    """How to show objects with the fields of a class of the model. `UsageError` for a column that is none of them."""
    known = shape if isinstance(shape, tuple) else _fields(shape)
    for column in common(ctx).columns:
        if column not in known:
            near = nearest(column, list(known))
            raise UsageError(f"there is no column {column!r}", hint=near or f"columns: {', '.join(known)}")
    return View(common(ctx), known, usual or known)


def _fields(shape: str) -> tuple[str, ...]:
    from volctl import model

    return tuple(field.name for field in fields(getattr(model, shape)))


def _pick(row: Row, columns: tuple[str, ...]) -> Row:
    return {column: row.get(column) for column in columns} if columns else row


def _json(value: Any) -> str:
    """JSON in ASCII: no character in it can do anything to a terminal. Infinity is null, as JSON has none."""
    return json.dumps(_finite(value), indent=2) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _line(value: Any) -> str:
    """A plain value on one line; raw for a script, escaped for a terminal."""
    text = _plain(value)
    return escape(text) if stdout.is_terminal() else " ".join(text.splitlines())


def _plain(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, (bool, dict, list)):
        return json.dumps(_finite(value))
    return str(value)


def _csv(columns: tuple[str, ...], rows: list[Row]) -> str:
    import csv
    import io

    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    shown = escape if stdout.is_terminal() else str
    writer.writerows([shown(_plain(row.get(column))) for column in columns] for row in rows)
    return file.getvalue()


_LONGEST_KEY = 1000  # YAML takes 1024 characters before a colon, and more only behind a question mark


def yaml(value: Any, indent: str = "") -> str:
    """Block YAML of plain values. Strings are double-quoted ones, nearly those of JSON."""
    if isinstance(value, dict) and value:
        return "".join(f"{indent}{_key(key, indent)}:{_below(item, indent)}" for key, item in value.items())
    if isinstance(value, list) and value:
        return "".join(f"{indent}-{_item(item, indent)}" for item in value)
    return f"{indent}{_scalar(_finite(value))}\n"


def _scalar(value: Any) -> str:
    """As JSON, but for its pairs of surrogates, which YAML does not know: characters are as they are, or escaped."""
    return escape(json.dumps(value, ensure_ascii=False))


def _key(key: str, indent: str) -> str:
    """Bare where YAML reads it as text, else quoted: properties have keys like `on` and `a: b`."""
    bare = key.isascii() and key.isidentifier() and key.lower() not in YAML_WORDS
    quoted = key if bare else _scalar(key)
    return quoted if len(quoted) <= _LONGEST_KEY else f"? {quoted}\n{indent}"


def _below(value: Any, indent: str) -> str:
    if isinstance(value, (dict, list)) and value:
        return "\n" + yaml(value, indent + "  ")
    return " " + yaml(value)


def _item(value: Any, indent: str) -> str:
    if isinstance(value, (dict, list)) and value:
        return " " + yaml(value, indent + "  ").removeprefix(indent + "  ")
    return " " + yaml(value)


def _table(columns: tuple[str, ...], rows: list[Row], given: Common, heading: bool = True) -> None:
    from volctl.cli import table

    draw = table.on_terminal if stdout.is_terminal() else table.plain
    stdout.write(draw(columns, [[row[column] for column in columns] for row in rows], heading, given.color))
