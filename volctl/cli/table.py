"""Tables: with lines and colours on a terminal, plain aligned columns elsewhere. Nothing is cut off."""

from __future__ import annotations

import io

from volctl.cli.text import escape, pad, width

GAP = "  "
STATUS_COLORS = {"available": "green", "error": "red", "error_deleting": "red", "in-use": "cyan"}


def plain(columns: tuple[str, ...], rows: list[list[str]], heading: bool, color: bool) -> str:
    """Columns two blanks apart; a cell of several lines goes on in the rows below."""
    lines = [[column.upper() for column in columns]] if heading and rows else []
    for row in rows:
        cells = [[escape(part) for part in cell.split("\n")] for cell in row]
        for number in range(max(map(len, cells), default=0)):
            lines.append([cell[number] if number < len(cell) else "" for cell in cells])
    widths = [max(map(width, column)) for column in zip(*lines, strict=True)]
    return "".join(_row(line, widths) for line in lines)


def _row(line: list[str], widths: list[int]) -> str:
    return GAP.join(pad(cell, cells) for cell, cells in zip(line, widths, strict=True)).rstrip() + "\n"


def on_terminal(columns: tuple[str, ...], rows: list[list[str]], heading: bool, color: bool) -> str:
    """Drawn by rich, as wide as the terminal; long cells are folded, ids stay whole."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if heading and not rows:
        return ""
    table = Table(
        box=SIMPLE_HEAD if heading else None,
        show_header=heading,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1 if heading else 2, 0, 0),
        header_style="bold" if color else "",
    )
    for column in columns:
        table.add_column(column.upper(), overflow="fold", no_wrap=column in ("id", "field", "status", "size"))
    for row in rows:
        table.add_row(*(Text(_escaped(cell), style=STATUS_COLORS.get(cell, "")) for cell in row))
    console = Console(file=io.StringIO(), force_terminal=True, no_color=not color, highlight=False)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def _escaped(cell: str) -> str:
    return "\n".join(map(escape, cell.split("\n")))
