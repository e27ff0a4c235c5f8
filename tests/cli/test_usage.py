"""What is wrong on a command line: exit 2, one sentence, nothing on stdout, nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import get_args

import pytest
import typer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from volctl import model
from volctl.cli import app, main, stderr
from volctl.cli.completion import SCRIPTS, tree
from volctl.cli.options import duration
from volctl.cli.output import Shape
from volctl.errors import UsageError

EXITS = {0, *range(2, 13), 124}

WRONG = [
    ([], "a command is missing"),
    (["nope"], "'nope' is not a command of volctl"),
    (["snapshto"], "did you mean snapshot?"),
    (["snapshot"], "a command is missing"),
    (["snapshot", "creat"], "did you mean create?"),
    (["adopt", "x"], "volctl adopt needs SOURCE"),
    (["physician"], "'physician' is not a command of volctl"),
    (["image", "save", "x"], "volctl image save needs FILE"),
    (["list", "--nope"], "no such option: --nope"),
    (["list", "extra"], "unexpected extra argument"),
    (["show"], "volctl show needs REF"),
    (["extend", "x"], "volctl extend needs SIZE"),
    (["create", "--size"], "option '--size' requires an argument"),
    (["create", "--count", "0"], "--count takes a whole number from 1, not '0'"),
    (["create", "--count", "٣"], "--count takes a whole number"),
    (["create", "--max-attempts", "x"], "--max-attempts takes a whole number"),
    (["list", "--limit", "-1"], "--limit takes a whole number from 0"),
    (["list", "-o", "xml"], "'xml' is not an output format"),
    (["list", "--json", "-o", "yaml"], "contradict"),
    (["list", "-c", "stat"], "did you mean status?"),
    (["create", "x", "--size", "1", "-c", "nope"], "there is no column 'nope'"),
    (["list", "--timeout", "5x"], "'5x' is not a duration for --timeout"),
    (["list", "--lock-timeout", ""], "'' is not a duration for --lock-timeout"),
    (["set", "x"], "nothing to change"),
    (["unset", "x"], "nothing to change"),
    (["quota", "set"], "nothing to change"),
    (["type", "set", "t"], "nothing to change"),
    (["image", "add", "a", "b", "c"], "image add takes [NAME] LOCATION"),
    (["completion", "tcsh"], "there is no completion for 'tcsh'"),
    (["delete", "x"], "there is no terminal to ask on"),
    (["revert", "x", "y"], "there is no terminal to ask on"),
    (["snapshot", "delete", "x"], "there is no terminal to ask on"),
    (["flow", "abandon", "x"], "there is no terminal to ask on"),
]


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state directory that is not there yet."""
    for name in ("VOLCTL_OUTPUT", "VOLCTL_LOCK_TIMEOUT", "VOLCTL_PROJECT", "VOLCTL_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("VOLCTL_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("VOLCTL_CONFIG", str(tmp_path / "config.toml"))
    (tmp_path / "config.toml").write_text("")
    return tmp_path / "state"


@pytest.mark.parametrize(("argv", "said"), WRONG, ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_usage_errors(argv: list[str], said: str, state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert "Traceback" not in err
    assert not state.exists()


@pytest.mark.parametrize(
    "line",
    [
        "show ODD",
        "delete ODD -y",
        "create --size 1M --type ODD",
        "create --from-snapshot ODD",
        "image show ODD",
        "flow show ODD",
        "events ODD",
    ],
)
def test_a_word_that_is_no_text(line: str, state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.replace("ODD", "odd-name-\udcff").split()) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", "volctl: 'odd-name-\\udcff' is not UTF-8\n")


@pytest.mark.parametrize(
    "asked", [["-o", "json"], ["-ojson"], ["--output=json"], ["--output", "json"], ["--json"]], ids=" ".join
)
def test_usage_error_as_json_is_the_last_line(
    asked: list[str], state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for argv in ([*asked, "nope"], ["nope", *asked], ["list", "--nope", *asked], [*asked, "show"]):
        assert main(argv) == 2
        error = json.loads(capsys.readouterr().err.splitlines()[-1])["error"]
        assert list(error) == ["code", "exit", "message", "hint", "volume", "details"]
        assert (error["code"], error["exit"]) == ("usage", 2)


def test_json_by_environment(state: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("VOLCTL_OUTPUT", "json")
    main(["nope"])
    assert json.loads(capsys.readouterr().err.splitlines()[-1])["error"]["exit"] == 2
    main(["nope", "-o", "table"])
    assert "{" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("5m", 300), ("1h30m", 5400), ("500ms", 0.5), ("0", 0), ("1h1m1s1ms", 3661.001)],
)
def test_durations(text: str, seconds: float) -> None:
    assert duration(text, "--timeout") == seconds


@pytest.mark.parametrize(
    "text", ["", "s", "-1", "+1", "1.5", "1 s", "1d", "1s1m", "1e3", "٣", "nan", "1" * 12, "5ms3s"]
)
def test_no_durations(text: str) -> None:
    with pytest.raises(UsageError):
        duration(text, "--timeout")


def test_help_of_the_tree_is_the_help_of_the_commands() -> None:
    for verb, (_, help) in app.VERBS.items():
        assert app.load(verb).get_short_help_str(200).rstrip(".") == help.rstrip("."), verb


def test_modules_hold_no_command_that_the_tree_forgets() -> None:
    for module in {module for module, _ in app.VERBS.values()}:
        group: typer.Typer = import_module(f"volctl.cli.{module}").app
        if group.info.name not in app.VERBS:
            assert {command.name for command in group.registered_commands} == {
                verb for verb, (place, _) in app.VERBS.items() if place == module
            }


def test_shapes_are_classes_of_the_model() -> None:
    assert all(hasattr(model, name) for name in get_args(Shape))


@pytest.mark.parametrize("shell", sorted(SCRIPTS))
def test_completion_scripts_are_valid(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    script = tmp_path / "script"
    script.write_text(SCRIPTS[shell](tree()))
    done = subprocess.run([shell, "-n", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["sn"], {"snapshot"}),
        (["snapshot", "cr"], {"create"}),
        (["snapshot", "create", "--des"], {"--description"}),
        (["create", "--image-format", "qc"], {"qcow2"}),
        (["list", "--js"], {"--json"}),
        (["image", "ca"], {"cache"}),
        (["image", "cache", "pr"], {"prune"}),
        (["image", "cache", "prune", "--al"], {"--all"}),
    ],
    ids=str,
)
def test_bash_completes(typed: list[str], offered: set[str], tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text(SCRIPTS["bash"](tree()))
    words = f'source {script}; COMP_WORDS=(volctl "$@"); COMP_CWORD=$#; _volctl; printf "%s\\n" "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", words, "bash", *typed], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == offered


def test_an_internal_error_is_one_line(
    state: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(app.VERBS, "broken", ("no_such_module", "Broken."))
    assert main(["broken"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("volctl: internal error: ModuleNotFoundError: ")
    assert "VOLCTL_DEBUG=1" in err
    assert "Traceback" not in err
    monkeypatch.setenv("VOLCTL_DEBUG", "1")
    assert main(["broken"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_hostile_words_are_escaped(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["\x1b[31mred\u202e\nvolctl: fine"])
    err = capsys.readouterr().err
    assert "\x1b" not in err
    assert "\u202e" not in err
    assert len(err.splitlines()) == 2


OPTIONS = [
    *("-o", "json", "yaml", "csv", "value", "table", "-c", "name", "nope", "--json", "-y", "-q", "-v", "--help", "--"),
    *(
        "--size",
        "1",
        "10M",
        "0",
        "-5",
        "--count",
        "2",
        "--name",
        "x",
        "web",
        "--from-image",
        "/dev/null",
        "/nonexistent",
    ),
    *("--from-snapshot", "--from-volume", "--type", "--backend", "local", "--limit", "3", "--sort", "created_at:desc"),
    *("--status", "error", "--property", "k=v", "=v", "--hint", "same-backend=web", "--all-projects", "--cascade"),
    *("--force", "--timeout", "5s", "--lock-timeout", "1s", "--dry-run", "--if-absent", "--spec", "volumes", "-1"),
    *("--description", "volume:web", "--for", "--checksum", "sha256:00", "--image-format", "raw", "--project", "other"),
]
WORDS = st.one_of(
    st.sampled_from([*app.VERBS, "create", "show", "add", "set", "init", "check", "retry", "abandon", "refresh"]),
    st.sampled_from(OPTIONS),
    st.text(max_size=8),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(WORDS, max_size=7))
def test_no_words_make_a_traceback(state: Path, capsys: pytest.CaptureFixture[str], argv: list[str]) -> None:
    pytest.importorskip("volctl.service.creation")
    if "--follow" in argv or "-f" in argv or "wait" in argv:
        argv = [*argv, "--timeout", "200ms"]
    code = main(argv)
    out, err = capsys.readouterr()
    assert code in EXITS, err
    assert "Traceback" not in out + err
    assert (code == 0) or err.startswith(("volctl: ", "Usage: ")), err


def run(words: list[str], state: Path, redirect: str = "") -> subprocess.CompletedProcess[str]:
    command = f'"$@" {redirect}'
    return subprocess.run(
        ["bash", "-c", command, "bash", sys.executable, "-m", "volctl", *words],
        env=os.environ | {"VOLCTL_STATE_DIR": str(state), "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_reader_that_leaves_is_no_error(state: Path) -> None:
    done = run(["completion", "fish"], state, "| head -1; exit ${PIPESTATUS[0]}")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("words", [["completion", "fish"], ["--version"], ["--help"]], ids=" ".join)
def test_a_full_stdout_is_one_line(words: list[str], state: Path) -> None:
    done = run(words, state, ">/dev/full")
    assert done.returncode == 1
    assert done.stderr == "volctl: the result cannot be written: No space left on device\n"


@pytest.mark.parametrize("words", [["--version"], ["completion", "bash"]], ids=" ".join)
def test_a_closed_stdout_is_one_line(words: list[str], state: Path) -> None:
    done = run(words, state, ">&-")
    assert done.returncode == 1
    assert done.stderr == "volctl: the result cannot be written: standard output is closed\n"


def test_a_closed_stderr_changes_nothing(state: Path) -> None:
    done = run(["nope"], state, "2>&-")
    assert (done.returncode, done.stdout) == (2, "")


def test_all_descriptors_closed(state: Path) -> None:
    assert run(["nope"], state, "<&- >&- 2>&-").returncode == 2


@pytest.mark.parametrize(
    ("line", "asked"),
    [("show x -qo json", True), ("-qojson show x", True), ("show x -vqo=json", True), ("show -- --json", False),
     ("show x -o json -- y", True), ("show x -co json", False), ("list --output json x", True)],
)  # fmt: skip
def test_whether_json_was_asked_for(line: str, asked: bool) -> None:
    assert stderr.wants_json(line.split()) is asked


def test_from_a_directory_that_is_gone(state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    for line in ("image add x.img", "image check x.img", "create v --from-image x.img"):
        assert main(line.split()) in (2, 4)
    monkeypatch.setenv("VOLCTL_STATE_DIR", "relative")
    assert main(["list"]) == 2
