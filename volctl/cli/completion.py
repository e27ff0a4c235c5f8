"""volctl completion: scripts that know every verb and option; only names of objects are asked for.

The scripts are made from the tree of commands, so pressing TAB starts no Python except to list names.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from volctl.cli import stdout
from volctl.cli.options import OUTPUTS, Verb, typer_app
from volctl.errors import UsageError

app = typer_app()

NAMES = {
    "": "volctl list -o value -c name",
    "snapshot": "volctl snapshot list -o value -c name",
    "image": "volctl image list -o value -c name",
    "type": "volctl type list -o value -c name",
    "backend": "volctl backend list -o value -c name",
    "flow": "volctl flow list -o value -c id",
}
"""What lists the objects that a group's verbs take; the empty name is the top."""

VALUES = {
    "--output": f"echo {' '.join(OUTPUTS)}",
    "--image-format": "echo auto raw qcow2 vmdk vdi vhd vhdx",
    "--type": NAMES["type"],
    "--backend": NAMES["backend"],
    "--from-volume": NAMES[""],
    "--from-snapshot": NAMES["snapshot"],
    "--volume": NAMES[""],
}
"""What lists the values of an option; `--from-image` and others take files."""


@dataclass(frozen=True, slots=True)
class Node:
    """A command: its words after `volctl`, its verbs and options with their help, what it takes."""

    words: tuple[str, ...]
    verbs: tuple[tuple[str, str], ...]
    options: tuple[tuple[str, str, bool], ...]
    takes: str


@app.command("completion", cls=Verb)
def completion(ctx: typer.Context, shell: Annotated[str, typer.Argument(metavar="SHELL")]) -> None:
    """Print a completion script for bash, zsh or fish."""
    if shell not in SCRIPTS:
        raise UsageError(f"there is no completion for {shell!r}", hint=f"known: {', '.join(SCRIPTS)}")
    from volctl.cli.app import command

    stdout.write(SCRIPTS[shell](list(nodes(ctx, command(), ()))))


def nodes(ctx: typer.Context, command: Any, words: tuple[str, ...]) -> Iterator[Node]:
    """The tree, from the top."""
    verbs = {verb: command.get_command(ctx, verb) for verb in getattr(command, "list_commands", lambda _: ())(ctx)}
    parameters = command.get_params(ctx)
    options = [
        (opt, parameter.help or "", not parameter.is_flag)
        for parameter in parameters
        if parameter.param_type_name == "option"
        for opt in parameter.opts
    ]
    takes = [parameter.metavar for parameter in parameters if parameter.param_type_name == "argument"]
    yield Node(
        words,
        tuple((verb, found.get_short_help_str(70)) for verb, found in verbs.items()),
        tuple(options),
        _lister(words, takes),
    )
    for verb, found in verbs.items():
        yield from nodes(ctx, found, (*words, verb))


def _lister(words: tuple[str, ...], takes: list[str]) -> str:
    """The command that lists what a verb takes; none for new names, files and groups."""
    if not takes or words[-1] in ("create", "add", "check", "completion"):
        return NAMES[""] if words == ("snapshot", "create") else ""
    return NAMES.get(words[0] if len(words) > 1 else "", "")


def bash(tree: list[Node]) -> str:
    values = "".join(
        f'        {_flags(option)}) _volctl_words "$({lister} 2>/dev/null)"; return ;;\n'
        for option, lister in VALUES.items()
    )
    cases = "".join(_bash_case(node) for node in tree)
    return BASH.replace("@VALUES@", values).replace("@CASES@", cases).replace("@GROUPS@", "|".join(_groups(tree)))


def _bash_case(node: Node) -> str:
    verbs = " ".join(verb for verb, _ in node.verbs)
    options = " ".join(option for option, _, _ in node.options)
    return f'        "{" ".join(node.words)}") _volctl_at "{verbs}" "{options}" "{node.takes}" ;;\n'


def _groups(tree: list[Node]) -> list[str]:
    return [node.words[0] for node in tree if len(node.words) == 1 and node.verbs]


def _flags(option: str) -> str:
    return "-o|--output" if option == "--output" else option


BASH = """\
# bash completion for volctl; put this where bash reads it: eval "$(volctl completion bash)"
_volctl_words() { COMPREPLY+=($(compgen -W "$1" -- "$cur")); }
_volctl_at() {
    if [[ $cur == -* ]]; then
        _volctl_words "$2"
    elif [[ $1 ]]; then
        _volctl_words "$1"
    elif [[ $3 ]]; then
        _volctl_words "$($3 2>/dev/null)"
    fi
}
_volctl() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} verb="" word
    COMPREPLY=()
    case $prev in
@VALUES@    esac
    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        case $verb in
        "") [[ $word == -* ]] || verb=$word ;;
        @GROUPS@) [[ $word == -* ]] || { verb="$verb $word"; break; } ;;
        *) break ;;
        esac
    done
    case $verb in
@CASES@    esac
}
complete -o default -F _volctl volctl
"""


def zsh(tree: list[Node]) -> str:
    """Through zsh's own reader of bash completions."""
    script = bash(tree).split("\n", 1)[1]
    return (
        '#compdef volctl\n# zsh completion for volctl; in ~/.zshrc: eval "$(volctl completion zsh)"\n'
        "autoload -Uz +X compinit bashcompinit\n(( $+functions[compdef] )) || compinit\nbashcompinit\n" + script
    )


def fish(tree: list[Node]) -> str:
    lines = ["# fish completion for volctl: volctl completion fish > ~/.config/fish/completions/volctl.fish"]
    lines.append(FISH.strip().replace("@GROUPS@", " ".join(_groups(tree))))
    for node in tree:
        lines += _fish_node(node)
    return "\n".join(lines) + "\n"


FISH = """
function __volctl_at --description 'Whether the verbs typed so far are these'
    set -l verbs
    for word in (commandline -opc)[2..-1]
        string match -q -- '-*' $word; or set -a verbs $word
    end
    if contains -- "$verbs[1]" @GROUPS@
        set verbs $verbs[1..2]
    else
        set verbs $verbs[1]
    end
    test "$verbs" = "$argv"
end
complete -c volctl -f
"""


def _fish_node(node: Node) -> Iterator[str]:
    where = f"-n '__volctl_at {' '.join(node.words)}'"
    for verb, help in node.verbs:
        yield f"complete -c volctl {where} -a {verb} -d {_quoted(help)}"
    for option, help, takes_value in node.options:
        flag = f"-l {option[2:]}" if option.startswith("--") else f"-s {option[1:]}"
        values = f" -x -a '({VALUES[option]} 2>/dev/null)'" if option in VALUES else " -r -F" if takes_value else ""
        yield f"complete -c volctl {where} {flag}{values} -d {_quoted(help)}"
    if node.takes:
        yield f"complete -c volctl {where} -a '({node.takes} 2>/dev/null)'"


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


SCRIPTS = {"bash": bash, "zsh": zsh, "fish": fish}
