"""volctl completion: scripts that know every verb and option; only names of objects are asked for.

The scripts are made from the signatures of the commands, so pressing TAB starts no Python except to list names.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, get_args, get_origin

import typer
from typer.models import ArgumentInfo, OptionInfo

from volctl.cli import stdout
from volctl.cli.options import OUTPUTS, common_options, typer_app, verb
from volctl.errors import UsageError
from volctl.records import record

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
    "--format": "echo raw qcow2",
    "--image-format": "echo auto raw qcow2 vmdk vdi vhd vhdx",
    "--type": NAMES["type"],
    "--backend": NAMES["backend"],
    "--from-volume": NAMES[""],
    "--from-snapshot": NAMES["snapshot"],
    "--volume": NAMES[""],
}
"""What lists the values of an option; `--from-image` and others take files."""


Option = tuple[str, str, bool]
HELP: Option = ("--help", "Show this message and exit.", False)


@record
class Node:
    """A command: its words after `volctl`, its verbs and options with their help, what it takes."""

    words: tuple[str, ...]
    verbs: tuple[tuple[str, str], ...]
    options: tuple[Option, ...]
    takes: str


@verb(app, "completion")
def completion(ctx: typer.Context, shell: Annotated[str, typer.Argument(metavar="SHELL")]) -> None:
    """Print a completion script for bash, zsh or fish."""
    if shell not in SCRIPTS:
        raise UsageError(f"there is no completion for {shell!r}", hint=f"known: {', '.join(SCRIPTS)}")
    stdout.write(SCRIPTS[shell](tree()))


def tree() -> list[Node]:
    """Every command, from the signatures; Typer would take 20 ms to make commands of them all."""
    from volctl.cli.app import VERBS, group

    common = tuple(_options(common_options))
    found = [Node((), tuple((word, help) for word, (_, help) in VERBS.items()), (*common, HELP), "")]
    for word, (module, _) in VERBS.items():
        app = group(module)
        if app.info.name == word:
            found += _group((word,), app, common)
        else:
            found.append(_node((word,), _commands(app)[word], common))
    return found


def _commands(app: typer.Typer) -> dict[str, Any]:
    return {command.name or "": command.callback for command in app.registered_commands}


def _group(words: tuple[str, ...], app: typer.Typer, common: tuple[Option, ...]) -> Iterator[Node]:
    """The commands of a group, and those of the groups in it."""
    commands = _commands(app)
    inner = {
        str(info.typer_instance.info.name): info.typer_instance for info in app.registered_groups if info.typer_instance
    }
    verbs = [(name, _summary(function)) for name, function in commands.items()]
    verbs += [(name, str(group.info.help)) for name, group in inner.items()]
    yield Node(words, tuple(verbs), (HELP,), "")
    for name, function in commands.items():
        yield _node((*words, name), function, common)
    for name, group in inner.items():
        yield from _group((*words, name), group, common)


def _node(words: tuple[str, ...], function: Any, common: tuple[Option, ...]) -> Node:
    takes = any(isinstance(info, ArgumentInfo) for _, info in _parameters(function))
    return Node(words, (), (*_options(function), *common, HELP), _lister(words) if takes else "")


def _summary(function: Any) -> str:
    return str(function.__doc__).splitlines()[0]


def _parameters(function: Any) -> Iterator[tuple[Any, ArgumentInfo | OptionInfo]]:
    """The type and the description of each `Annotated` parameter (`verb` has evaluated them)."""
    for annotation in function.__annotations__.values():
        if get_origin(annotation) is Annotated:
            yield get_args(annotation)


def _options(function: Any) -> Iterator[Option]:
    """(flag, help, takes a value); Typer keeps the first flag of an annotation as its default."""
    for kind, info in _parameters(function):
        if isinstance(info, OptionInfo):
            for flag in (info.default, *(info.param_decls or ())):
                yield str(flag), info.help or "", kind is not bool


def _lister(words: tuple[str, ...]) -> str:
    """The command that lists what a verb takes; none for new names and files."""
    if words[-1] in ("create", "add", "check", "completion", "backup-db"):
        return NAMES[""] if words == ("snapshot", "create") else ""
    return NAMES.get(words[0] if len(words) > 1 and words != ("image", "save") else "", "")


def bash(tree: list[Node]) -> str:
    values = "".join(
        f'        {_flags(option)}) _volctl_words "$({lister} 2>/dev/null)"; return ;;\n'
        for option, lister in VALUES.items()
    )
    cases = "".join(_bash_case(node) for node in tree)
    groups = "|".join(f'"{name}"' for name in _groups(tree))
    return BASH.replace("@VALUES@", values).replace("@CASES@", cases).replace("@GROUPS@", groups)


def _bash_case(node: Node) -> str:
    verbs = " ".join(verb for verb, _ in node.verbs)
    options = " ".join(option for option, _, _ in node.options)
    return f'        "{" ".join(node.words)}") _volctl_at "{verbs}" "{options}" "{node.takes}" ;;\n'


def _groups(tree: list[Node]) -> list[str]:
    """The words of each group of verbs: `image`, `image cache`."""
    return [" ".join(node.words) for node in tree if node.words and node.verbs]


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
        @GROUPS@) [[ $word == -* ]] || verb="$verb $word" ;;
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
    lines.append(FISH.strip().replace("@GROUPS@", " ".join(map(_quoted, _groups(tree)))))
    for node in tree:
        lines += _fish_node(node)
    return "\n".join(lines) + "\n"


FISH = """
function __volctl_at --description 'Whether the verbs typed so far are these'
    set -l verbs
    for word in (commandline -opc)[2..-1]
        string match -q -- '-*' $word; or set -a verbs $word
    end
    set -l last 1
    while contains -- "$verbs[1..$last]" @GROUPS@; and test $last -lt (count $verbs)
        set last (math $last + 1)
    end
    test "$verbs[1..$last]" = "$argv"
end
complete -c volctl -f
"""


def _fish_node(node: Node) -> Iterator[str]:
    where = f"-n '__volctl_at {' '.join(node.words)}'"
    for word, help in node.verbs:
        yield f"complete -c volctl {where} -a {word} -d {_quoted(help)}"
    for option, help, takes_value in node.options:
        flag = f"-l {option[2:]}" if option.startswith("--") else f"-s {option[1:]}"
        values = _fish_values(VALUES[option]) if option in VALUES else " -r -F" if takes_value else ""
        yield f"complete -c volctl {where} {flag}{values} -d {_quoted(help)}"
    if node.takes:
        yield f"complete -c volctl {where}{_fish_values(node.takes)}"


def _fish_values(lister: str) -> str:
    words = lister.removeprefix("echo ")
    return f" -x -a '{words}'" if words != lister else f" -x -a '({lister} 2>/dev/null)'"


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


SCRIPTS = {"bash": bash, "zsh": zsh, "fish": fish}
