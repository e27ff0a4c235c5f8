"""What a command prints: the formats, the columns, several objects, a terminal."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml as pyyaml  # type: ignore[import-untyped]
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import LIMIT, Volctl
from volctl.cli import main, output, table
from volctl.cli.human import cell
from volctl.cli.progress import bar, clock, wrapped
from volctl.cli.text import escape, fit, pad, width

VOLUME = [
    *("id", "name", "project", "description", "size", "status", "fault", "type", "backend", "availability_zone"),
    *("bootable", "protected", "properties", "source", "attachments", "attempts"),
    *("created_at", "available_at", "updated_at"),
]
ID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("VOLCTL_OUTPUT", "VOLCTL_LOCK_TIMEOUT", "VOLCTL_PROJECT", "VOLCTL_DEBUG", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("VOLCTL_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("VOLCTL_CONFIG", str(tmp_path / "config.toml"))
    (tmp_path / "config.toml").write_text("")
    return tmp_path / "state"


@pytest.fixture
def say(state: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run one command in this process: (exit code, stdout, stderr)."""

    def run(*argv: str) -> tuple[int, str, str]:
        code = main(list(argv))
        return code, *capsys.readouterr()

    return run


def test_one_object_is_an_object_and_several_are_an_array(say: Any) -> None:
    code, out, err = say("create", "web", "--size", "1", "--json")
    assert (code, err) == (0, "")
    web = json.loads(out)
    assert list(web) == VOLUME
    assert (web["size"], web["status"], web["type"]) == (1024**3, "available", None)
    several = json.loads(say("create", "db", "--size", "10M", "--count", "2", "--json")[1])
    assert [volume["name"] for volume in several] == ["db-1", "db-2"]
    assert [volume["name"] for volume in json.loads(say("list", "--json")[1])] == ["web", "db-1", "db-2"]
    assert list(json.loads(say("show", "web", "--json")[1])) == [*VOLUME, "explanation"]
    assert isinstance(json.loads(say("show", "web", "db-1", "--json")[1]), list)


def test_columns_select_and_order_in_every_format(say: Any) -> None:
    say("create", "web", "--size", "1")
    say("create", "--size", "10M")
    columns = ("-c", "size", "-c", "name")
    assert json.loads(say("list", "--json", *columns)[1])[0] == {"size": 1024**3, "name": "web"}
    assert say("list", *columns)[1] == "SIZE    NAME\n1 GiB   web\n10 MiB  -\n"
    assert say("list", "-o", "value", *columns)[1] == "1073741824 web\n10485760 \n"
    assert say("list", "-o", "csv", *columns)[1] == "size,name\n1073741824,web\n10485760,\n"
    assert say("list", "-o", "yaml", *columns)[1].startswith('- size: 1073741824\n  name: "web"\n')
    assert say("show", "web", "-o", "value", *columns)[1] == "1073741824\nweb\n"
    assert say("show", "web", *columns)[1] == "size  1 GiB\nname  web\n"


def test_common_options_may_stand_before_the_verb(say: Any) -> None:
    say("--project", "other", "create", "web", "--size", "1")
    assert json.loads(say("-o", "json", "list", "--project", "other")[1])[0]["project"] == "other"
    assert say("-o", "csv", "list", "-o", "value", "-c", "name", "--project", "other")[1] == "web\n"


def test_an_unknown_column_does_nothing(say: Any) -> None:
    assert say("create", "web", "--size", "1", "-c", "nope")[0] == 2
    assert say("list", "-o", "value")[1] == ""


def test_quiet_create_prints_ids(say: Any) -> None:
    assert re.fullmatch(ID + "\n", say("create", "web", "--size", "1", "-q")[1])
    assert re.fullmatch(f"({ID}\n){{2}}", say("create", "--size", "10M", "--count", "2", "-q")[1])


def test_path_is_the_path(say: Any, state: Path) -> None:
    volume = say("create", "web", "--size", "1", "-q")[1].strip()
    path = say("path", "web")[1]
    assert path == f"{state}/volumes/volume-{volume}\n"
    assert json.loads(say("path", "web", "--json")[1]) == {"path": path.strip()}


def test_each_failure_is_told_and_the_others_go_on(say: Any) -> None:
    say("create", "a", "--size", "10M")
    say("create", "b", "--size", "10M")
    code, out, err = say("delete", "a", "nope", "b", "-y", "--json")
    assert (code, out) == (3, "")
    assert "no volume 'nope'" in err.splitlines()[0]
    error = json.loads(err.splitlines()[-1])["error"]
    assert (error["code"], error["message"]) == ("partial", "1 of 3 failed")
    assert [failed["ref"] for failed in error["details"]["failed"]] == ["nope"]
    assert say("list", "--json")[1] == "[]\n"


def test_what_was_made_is_shown_when_some_fail(say: Any) -> None:
    say("create", "v-2", "--size", "10M")
    code, out, _err = say("create", "v", "--size", "10M", "--count", "3", "-o", "json")
    assert code == 3
    assert [volume["name"] for volume in json.loads(out)] == ["v-1", "v-3"]


def test_an_explanation_without_a_backend_is_shown_and_fails(say: Any) -> None:
    code, out, err = say("explain", "--size", "1P", "--json")
    assert code == 6
    told = json.loads(out)
    assert list(told) == ["size", "type", "chosen", "backends"]
    assert told["chosen"] is None
    assert json.loads(err.splitlines()[-1])["error"]["code"] == "no_backend"
    code, out, _ = say("create", "--dry-run", "--size", "1")
    assert code == 0
    assert out.startswith("1 GiB: local\n")
    several = json.loads(say("create", "w", "--dry-run", "--size", "1", "--count", "2", "--json")[1])
    assert [explanation["chosen"] for explanation in several] == ["local", "local"]
    say("create", "w-2", "--size", "10M")
    assert say("create", "w", "--dry-run", "--size", "1", "--count", "2")[0] == 5


def test_every_reading_command_in_every_format(say: Any, tmp_path: Path) -> None:
    say("create", "web", "--size", "10M")
    say("snapshot", "create", "web", "s")
    say("type", "create", "gold", "--spec", "ssd=true")
    (tmp_path / "raw").write_bytes(bytes(1024**2))
    say("image", "add", "zero", str(tmp_path / "raw"))
    reading = [
        *("list", "show web", "tree", "tree web", "wait web", "snapshot list", "snapshot show s", "image list"),
        *("image show zero", "type list", "type show gold", "backend list", "backend show local", "backend check"),
        *("quota show", "flow list", "flow show web", "events", "events web", "config show", "config check"),
        *("config path", "explain --size 1", f"image check {tmp_path}/raw"),
    ]
    for command in reading:
        for form in ("table", "json", "yaml", "value", "csv"):
            code, out, err = say(*command.split(), "-o", form)
            assert (code, err) == (0, ""), (command, form)
            if form == "json":
                expected = json.loads(out)
            elif form == "yaml":
                assert settled(pyyaml.safe_load(out)) == settled(expected), command
            elif form == "csv":
                assert len({len(row) for row in csv.reader(io.StringIO(out))}) == 1, command


def settled(value: Any) -> Any:
    """Without what changes by itself between two commands."""
    if isinstance(value, list):
        return [settled(item) for item in value]
    return {key: item for key, item in value.items() if key != "free"} if isinstance(value, dict) else value


def test_hostile_text_stays_text(say: Any) -> None:
    text = "a\u202egnp.exe"
    say("create", "web", "--size", "10M", "--description", text)
    assert "a\\u202egnp.exe" in say("show", "web")[1]
    assert text not in say("show", "web", "--json")[1]
    assert json.loads(say("show", "web", "--json")[1])["description"] == text
    assert pyyaml.safe_load(say("show", "web", "-o", "yaml")[1])["description"] == text
    assert say("show", "web", "-o", "value", "-c", "description")[1] == text + "\n"


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(min_size=1), inner, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(st.text(min_size=1), PLAIN, max_size=4) | st.lists(PLAIN, max_size=4))
def test_yaml_reads_back(value: Any) -> None:
    def close(read: Any) -> Any:  # YAML 1.1 takes 1e+16 for text
        return json.loads(json.dumps(read))

    text = output.yaml(value)
    if "e+" not in text and "e-" not in text:
        assert close(pyyaml.safe_load(text)) == close(value)


@given(st.text())
def test_escaped_text_is_printable(text: str) -> None:
    assert escape(text).isprintable()
    assert width(pad(escape(text), 400)) >= 400
    assert width(fit(escape(text), 10)) <= 10


def test_plain_tables_line_up_also_with_wide_letters() -> None:
    drawn = table.plain(("name", "size"), [["日本", "1"], ["a\nb", "22"], ["\x1b[31m", "3"]], True, False)
    assert drawn == "NAME      SIZE\n日本      1\na         22\nb\n\\x1b[31m  3\n"


@pytest.mark.parametrize(
    ("field", "row", "shown"),
    [
        ("size", {"size": 10 * 1024**3}, "10 GiB"),
        ("limit", {"resource": "gigabytes", "limit": -1}, "unlimited"),
        ("in_use", {"resource": "gigabytes_gold", "in_use": 1024**3}, "1 GiB"),
        ("in_use", {"resource": "volumes", "in_use": 3}, "3"),
        ("fault", {"fault": {"code": "backend", "message": "it broke"}}, "backend: it broke"),
        ("source", {"source": {"kind": "image", "id": None, "name": "deb"}}, "image deb"),
        ("attempts", {"attempts": [{"backend": "a", "error": "x"}, {"backend": "b", "error": "y"}]}, "a: x\nb: y"),
        ("properties", {"properties": {}}, "-"),
        ("bootable", {"bootable": True}, "yes"),
        ("free", {"free": float("inf")}, "infinite"),
    ],
)
def test_cells(field: str, row: dict[str, Any], shown: str) -> None:
    assert cell(field, row) == shown


def test_infinity_is_no_number_of_json() -> None:
    assert output._json({"free": float("inf")}) == '{\n  "free": null\n}\n'
    assert output._json([{"free": float("inf")}]) == '[\n  {\n    "free": null\n  }\n]\n'


def test_bars_and_clocks() -> None:
    half = bar("convert", 512 * 1024**2, 1024**3, 2.0)
    assert half == "convert [==========>         ]  50%  512 MiB of 1 GiB  256 MiB/s  2 s left"
    assert bar("fetch", 512 * 1024**2, 0, 2.0) == "fetch 512 MiB  256 MiB/s"  # nobody said how long it is
    assert bar("copy", 0, 0, 0) == "copy 0 bytes"
    assert clock(125) == "2 min 5 s"


def test_flow_lines_fit_the_terminal() -> None:
    lines = wrapped("api", ["ExtractVolumeRequestTask", "QuotaReserveTask", "EntryCreateTask", "QuotaCommitTask"], 80)
    assert len(lines) == 2
    assert all(len(line) < 80 for line in lines)


def on_terminal(volctl: Volctl, *argv: str, answers: bytes = b"", interrupt: bool = False) -> tuple[int, str]:
    """Run on a terminal of 80 columns: (exit code, what the terminal got)."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(sys.executable, [sys.executable, "-m", "volctl", *argv], {**volctl.environment, "TERM": "xterm"})
    seen, answered, end = b"", False, time.monotonic() + LIMIT
    while time.monotonic() < end:
        if select.select([terminal], [], [], 0.1)[0]:
            try:
                seen += os.read(terminal, 65536)
            except OSError:
                break
        if not answered and b"[y/N]" in seen:
            answered = True
            os.kill(pid, signal.SIGINT) if interrupt else os.write(terminal, answers)
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), seen.decode()


def test_a_terminal_sees_the_flows_go_by(volctl: Volctl) -> None:
    code, seen = on_terminal(volctl, "create", "web", "--size", "10M")
    assert code == 0
    for task in ("api        ExtractVolumeRequestTask", "QuotaReserveTask", "scheduler  ", "CreateVolumeFromSpecTask"):
        assert task in seen
    assert "QuotaReserveTask" not in on_terminal(volctl, "create", "db", "--size", "10M", "-q")[1]


def test_colours_can_be_had_and_refused(volctl: Volctl) -> None:
    volctl("create", "web", "--size", "10M")
    assert "\x1b[32mavailable" in on_terminal(volctl, "list")[1]
    assert "\x1b" not in on_terminal(volctl, "list", "--no-color")[1].replace("\x1b[0m", "").replace("\r\x1b[K", "")
    assert "\x1b" not in volctl("list").out


def test_nothing_is_cut_off_on_a_narrow_terminal(volctl: Volctl) -> None:
    name = "n" + "0123456789" * 6
    volctl("create", name, "--size", "10M")
    seen = on_terminal(volctl, "list", "--no-color", "-c", "id", "-c", "name", "-c", "created_at", "-c", "project")[1]
    assert len(re.findall("[0-9n]", seen)) >= len(name)
    assert "…" not in seen


@pytest.mark.parametrize(("answers", "code"), [(b"y\n", 0), (b"n\n", 2), (b"\n", 2), (b"\x04", 2)])
def test_a_prompt_names_what_goes_and_is_obeyed(volctl: Volctl, answers: bytes, code: int) -> None:
    volctl("create", "web", "--size", "10M")
    ended, seen = on_terminal(volctl, "delete", "web", answers=answers)
    assert "volume web (10 MiB, " in seen
    assert ended == code
    assert volctl("show", "web", status=None).status == (4 if code == 0 else 0)


def test_ctrl_c_in_a_prompt(volctl: Volctl) -> None:
    volctl("create", "web", "--size", "10M")
    assert on_terminal(volctl, "delete", "web", interrupt=True)[0] == 130
    volctl("show", "web")


def test_verbose_shows_programs_and_steps_off_a_terminal(volctl: Volctl, tmp_path: Path) -> None:
    image = tmp_path / "image.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "8M"], check=True)
    told = volctl("create", "web", "--from-image", image, "-v").err
    assert re.search(r"^\+ qemu-img convert ", told, re.MULTILINE)
    assert "volume_create_api: QuotaReserveTask done" in told
    assert volctl("create", "db", "--from-image", image).err == ""


def test_the_outcome_does_not_depend_on_stdout(volctl: Volctl) -> None:
    words = [*volctl.argv, "create", "web", "--size", "10M"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(words, env=dict(volctl.environment), stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 1
    assert done.stderr == b"volctl: the result cannot be written: No space left on device\n"
    assert volctl("show", "web", "--json").json()["status"] == "available"


def test_all_readers_that_leave_are_no_error(volctl: Volctl) -> None:
    words = [*volctl.argv, "events", "--follow", "--json", "--timeout", f"{LIMIT:g}s"]
    with subprocess.Popen(
        words, env=dict(volctl.environment), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as follower:
        assert follower.stdout is not None
        assert follower.stderr is not None
        follower.stdout.close()
        follower.stderr.close()
        volctl("create", "web", "--size", "10M")
        assert follower.wait(LIMIT / 2) == 0


def test_events_can_be_followed(volctl: Volctl) -> None:
    volctl("create", "web", "--size", "10M")
    words = [*volctl.argv, "events", "--follow", "--json"]
    with subprocess.Popen(
        words, env=dict(volctl.environment), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as follower:
        assert follower.stdout is not None
        before = [json.loads(follower.stdout.readline()) for _ in json.loads(volctl("events", "--json").out)]
        volctl("create", "db", "--size", "10M")
        later = json.loads(follower.stdout.readline())
        follower.send_signal(signal.SIGTERM)
        follower.communicate()
    assert later["id"] > before[-1]["id"]
    assert follower.returncode == 143


def test_yaml_of_what_needs_two_halves() -> None:
    """JSON writes U+1F600 as two surrogates, which YAML takes for two characters."""
    value = {"d": "x\U0001f600\u00e9\x7f\u202e\ny", "\U0001f600": [True, None, 1.5]}
    assert pyyaml.safe_load(output.yaml(value)) == value


def test_no_number_is_null_in_json() -> None:
    assert output._json({"free": float("nan")}) == '{\n  "free": null\n}\n'
