"""The tree of verbs. Each is imported when it is named, so that one command does not pay for fifty."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import typer
from typer.main import get_group

from volctl.cli import stderr
from volctl.cli.options import Verbs, typer_app
from volctl.errors import Cancelled, InternalError, UsageError

VERBS = {
    "create": ("create", "Create a volume, or several."),
    "explain": ("create", "Show which backend a volume would get, and why."),
    "list": ("look", "List volumes."),
    "show": ("look", "Show volumes in full."),
    "path": ("look", "Print the file or device of a volume."),
    "tree": ("look", "Show volumes, their snapshots and their clones."),
    "wait": ("look", "Wait until a volume has a status."),
    "attach": ("attach", "Make a volume a block device and print it."),
    "detach": ("attach", "Take a volume's block device away; refused while something has it open."),
    "extend": ("change", "Make a volume larger."),
    "set": ("change", "Change the name, description or properties of a volume."),
    "unset": ("change", "Remove the name, description or properties of a volume."),
    "protect": ("change", "Refuse to delete volumes."),
    "unprotect": ("change", "Allow to delete volumes again."),
    "revert": ("delete", "Set a volume back to a snapshot; what was written since is lost."),
    "delete": ("delete", "Delete volumes."),
    "snapshot": ("snapshot", "Snapshots of volumes."),
    "image": ("image", "Registered disk images."),
    "type": ("types", "Volume types: what a backend must satisfy."),
    "backend": ("backend", "Backends: the pools of storage."),
    "quota": ("quota", "Limits of a project and what it uses."),
    "flow": ("flow", "What commands did, task by task."),
    "events": ("events", "List events, or follow them."),
    "adopt": ("adopt", "Make a file or an LV that is on a backend a volume, in place."),
    "release": ("adopt", "Let go of a volume: its file or LV stays, under a name of its own."),
    "doctor": ("doctor", "Compare the database with what is there; exit 12 if they differ."),
    "backup-db": ("backup", "Copy the database to a file, also while commands run."),
    "config": ("config", "The configuration."),
    "completion": ("completion", "Print a completion script for bash, zsh or fish."),
}
"""Each verb's module beside this one, and its help (the first line of its docstring)."""


class Root(Verbs):
    """`volctl` itself."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return load(cmd_name) if cmd_name in VERBS else None

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(verb, help) for verb, (_, help) in VERBS.items()])


def group(module: str) -> typer.Typer:
    """The commands that a module beside this one holds."""
    found = import_module(f"volctl.cli.{module}").app
    assert isinstance(found, typer.Typer)
    return found


def load(verb: str) -> Any:
    """The command, or the group of commands, of one verb."""
    made = get_group(group(VERBS[verb][0]))
    return made if made.name == verb else made.commands[verb]


root = typer_app(
    help="Block volumes on this machine: volctl create web --size 10 --from-image debian.qcow2",
)


@root.callback(cls=Root, epilog="volctl --version prints the version; volctl COMMAND --help explains a command.")
def _root() -> None:
    """Typer wants a function to make a group without commands of its own."""


def run(words: list[str]) -> int:
    """Parse and run one command line; its exit code."""
    try:
        code = get_group(root).main(words, prog_name="volctl", standalone_mode=False)
    except typer.TyperException as error:
        raise _usage(error) from error
    except typer.Abort:
        raise Cancelled(2) from None
    except SystemExit as left:  # Click's answer to any broken pipe; the result is not written here
        raise InternalError("internal error: a pipe to a program broke") from left
    return code if isinstance(code, int) else 0


def _usage(error: typer.TyperException) -> UsageError:
    """The parser's complaint in our words."""
    message = error.format_message().strip()
    if message.startswith("Usage:"):
        stderr.raw(message + "\n\n")
        return UsageError("a command is missing")
    hint = getattr(getattr(error, "ctx", None), "command_path", "volctl")
    return UsageError(message[:1].lower() + message[1:].rstrip("."), hint=f"see {hint} --help")
