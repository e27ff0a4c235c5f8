"""The options that every verb takes, and the kind of Typer command that takes them.

They are added to a verb's own parameters when it is parsed, not to fifty signatures; a verb finds
them in its context: `common(ctx)`. They may also stand before the verb.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import cache
from typing import Annotated, Any, TypeVar, get_type_hints

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption
from typer.main import get_command

from volctl.cli import stdout
from volctl.errors import UsageError
from volctl.records import record

BEFORE = "volctl.cli.before"  # where a context keeps the options that stood before the verb
OUTPUTS = ("table", "json", "yaml", "value", "csv")


@record
class Common:
    """What was asked for of every verb; times in seconds."""

    output: str
    columns: tuple[str, ...]
    project: str | None
    yes: bool
    quiet: bool
    verbose: bool
    color: bool
    timeout: float | None
    lock_timeout: float | None


def common(ctx: typer.Context) -> Common:
    assert isinstance(ctx.obj, Common)
    return ctx.obj


def common_options(
    output: Annotated[
        str | None, typer.Option("-o", "--output", metavar="FORMAT", help="table, json, yaml, value or csv")
    ] = None,
    column: Annotated[
        list[str] | None, typer.Option("-c", "--column", metavar="COLUMN", help="Show this column (repeatable)")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="The same as -o json")] = False,
    project: Annotated[str | None, typer.Option("--project", metavar="NAME", help="Who is charged")] = None,
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Do not ask")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress and no notes")] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Show each step and program")] = False,
    no_color: Annotated[bool, typer.Option("--no-color", help="No colours, as with NO_COLOR")] = False,
    timeout: Annotated[
        str | None, typer.Option("--timeout", metavar="DUR", help="Give up and undo after 90, 5m or 1h30m")
    ] = None,
    lock_timeout: Annotated[
        str | None, typer.Option("--lock-timeout", metavar="DUR", help="Wait so long for a lock (60s)")
    ] = None,
) -> None:
    """Only its signature is used."""


common_options.__annotations__ = get_type_hints(common_options, include_extras=True)


@cache
def _parameters() -> tuple[Any, ...]:
    app = typer.Typer(add_completion=False)
    app.command()(common_options)
    return tuple(_plain(parameter) for parameter in get_command(app).params)


def _names() -> tuple[str, ...]:
    return tuple(parameter.name for parameter in _parameters())


class _PlainOption(TyperOption):
    """Takes the words as they are: Typer's own conversion imports pydantic, which costs 60 ms."""

    def process_value(self, ctx: Any, value: Any) -> Any:
        return _given(self, ctx, value)

    def display_type(self, ctx: Any) -> str:
        return self.metavar or self.name.upper()


class _PlainArgument(TyperArgument):
    def process_value(self, ctx: Any, value: Any) -> Any:
        return _given(self, ctx, value)

    def display_type(self, ctx: Any) -> str:
        return ""

    def get_usage_pieces(self, ctx: Any) -> list[str]:
        name = self.display_name_raw if self.required else f"[{self.display_name_raw}]"
        return [name + "..." * (self.nargs == -1 and " " not in name)]


def _given(parameter: TyperOption | TyperArgument, ctx: Any, value: Any) -> Any:
    if value is None and (parameter.multiple or parameter.nargs == -1):
        value = ()
    if parameter.required and parameter.value_is_missing(value) and not ctx.resilient_parsing:
        raise UsageError(f"{ctx.command_path} needs {parameter.display_name_raw}", hint=help_hint(ctx))
    return parameter.callback(ctx, parameter, value) if parameter.callback else value


def _plain(parameter: Any) -> Any:
    if isinstance(parameter, TyperOption):
        parameter.__class__ = _PlainOption
        if parameter.name == "help":
            parameter.callback = _print_help
    elif isinstance(parameter, TyperArgument):
        parameter.__class__ = _PlainArgument
    return parameter


def _print_help(ctx: Any, parameter: Any, value: Any) -> None:
    if value and not ctx.resilient_parsing:
        stdout.write(ctx.get_help() + "\n")
        raise typer.Exit


def help_hint(ctx: Any) -> str:
    return f"see {ctx.command_path} --help"


class Verb(TyperCommand):
    """A command that takes the common options too."""

    def get_params(self, ctx: Any) -> list[Any]:
        own = [_plain(parameter) for parameter in super().get_params(ctx)]
        return [*own[:-1], *_parameters(), own[-1]]  # --help stays last

    def invoke(self, ctx: Any) -> Any:
        before = ctx.meta.get(BEFORE, {})
        after = {name: ctx.params.pop(name) for name in _names()}
        ctx.obj = read({name: before.get(name) if _absent(value) else value for name, value in after.items()})
        return super().invoke(ctx)


def _absent(value: object) -> bool:
    return value is None or value is False or value == ()


F = TypeVar("F", bound=Callable[..., None])


def verb(app: typer.Typer, name: str) -> Callable[[F], F]:
    """Add a function as a command that takes the common options too."""

    def add(function: F) -> F:
        # Typer evaluates annotations that are text four times over; once is enough.
        function.__annotations__ = get_type_hints(function, include_extras=True)
        return app.command(name, cls=Verb)(function)

    return add


class Verbs(TyperGroup):
    """A group of verbs that names the nearest one when there is no such verb."""

    def get_params(self, ctx: Any) -> list[Any]:
        own = [_plain(parameter) for parameter in super().get_params(ctx)]
        return [*own[:-1], *(_parameters() if ctx.parent is None else ()), own[-1]]

    def invoke(self, ctx: Any) -> Any:
        if ctx.parent is None:
            ctx.meta[BEFORE] = dict(ctx.params)
            ctx.params.clear()
        return super().invoke(ctx)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        names = self.list_commands(ctx)
        if args and args[0] not in names and not ctx.resilient_parsing and not args[0].startswith("-"):
            hint = nearest(args[0], names) or help_hint(ctx)
            raise UsageError(f"{args[0]!r} is not a command of {ctx.command_path}", hint=hint)
        return super().resolve_command(ctx, args)


def nearest(word: str, known: list[str]) -> str | None:
    from difflib import get_close_matches

    found = get_close_matches(word, known)
    return f"did you mean {' or '.join(found)}?" if found else None


def typer_app(name: str | None = None, help: str | None = None) -> typer.Typer:
    """A group of verbs in the house's plain style."""
    return typer.Typer(
        name=name,
        help=help,
        cls=Verbs,
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )


def read(values: dict[str, Any]) -> Common:
    """The common options from words and environment. `UsageError` for a format or a duration that is none."""
    lock_timeout = values["lock_timeout"]
    if lock_timeout is None:
        lock_timeout = os.environ.get("VOLCTL_LOCK_TIMEOUT") or None
    return Common(
        output=_output(values["output"], values["json"]),
        columns=tuple(values["column"] or ()),
        project=values["project"] or os.environ.get("VOLCTL_PROJECT") or None,
        yes=bool(values["yes"]),
        quiet=bool(values["quiet"]),
        verbose=bool(values["verbose"]),
        color=not values["no_color"] and not os.environ.get("NO_COLOR"),
        timeout=None if values["timeout"] is None else duration(values["timeout"], "--timeout"),
        lock_timeout=None if lock_timeout is None else duration(lock_timeout, "--lock-timeout"),
    )


def _output(asked: str | None, json: bool) -> str:
    if json and asked not in (None, "json"):
        raise UsageError(f"--json and --output {asked} contradict each other")
    chosen = "json" if json else asked or os.environ.get("VOLCTL_OUTPUT") or "table"
    if chosen not in OUTPUTS:
        raise UsageError(f"{chosen!r} is not an output format", hint=f"known: {', '.join(OUTPUTS)}")
    return chosen


_DURATION = r"(?=.)(?:([0-9]{1,9})h)?(?:([0-9]{1,9})m)?(?:([0-9]{1,9})s)?(?:([0-9]{1,9})ms)?"


def duration(text: str, option: str) -> float:
    """Seconds of `90`, `90s`, `5m`, `1h30m`, `500ms`."""
    match = re.fullmatch(_DURATION, text + "s" if text.isdigit() else text)
    if not match:
        raise UsageError(f"{text!r} is not a duration for {option}", hint="write 90, 90s, 5m, 1h30m or 500ms")
    hours, minutes, seconds, milliseconds = (int(part or 0) for part in match.groups())
    return hours * 3600 + minutes * 60 + seconds + milliseconds / 1000


def whole(text: str | None, option: str, least: int = 1) -> int | None:
    """The number of `--limit 50`; None stays None."""
    if text is None:
        return None
    if not re.fullmatch(r"-?[0-9]{1,18}", text) or int(text) < least:
        raise UsageError(f"{option} takes a whole number from {least}, not {text!r}")
    return int(text)
