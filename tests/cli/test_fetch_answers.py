"""What a server answers, word by word: only what is surely one version of a file, and all of it, becomes an image."""

from __future__ import annotations

import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.cli.conftest import Cli, MiB
from tests.conftest import Volctl
from tests.web import Fault, File, Web, answer, scripted, serving
from volctl.images import http

ONE, TWO = b"1" * MiB, b"2" * MiB
CUT = 300_000
REST = f"bytes {CUT}-{MiB - 1}/{MiB}"


@pytest.fixture
def web() -> Iterator[Web]:
    with serving() as server:
        yield server


def whole(body: bytes, **headers: str) -> bytes:
    return answer("200 OK", body, **{"Content_Length": str(MiB), **headers})


def part(body: bytes, shown: str, **headers: str) -> bytes:
    return answer("206 Partial Content", body, Content_Length=str(len(body)), Content_Range=shown, **headers)


def content(cli: Cli, name: str) -> bytes:
    return cli.file(name).read_bytes()


def mark(cli: Cli) -> str:
    with closing(sqlite3.connect(cli.state / "volctl.db")) as database:
        return str(database.execute("SELECT mark FROM images").fetchone()[0])


def nothing_is_left(cli: Cli) -> None:
    assert cli.json("list") == cli.json("image", "list") == []


def test_what_is_not_modified_is_asked_only_until_a_body_was_begun(cli: Cli) -> None:
    """A 304 on a later try would be about the copy that is held, and end half a file."""
    broken, unmodified = whole(TWO[:CUT], ETag='"v2"'), answer("304 Not Modified", ETag='"v1"')
    with scripted(whole(ONE, ETag='"v1"'), broken, unmodified) as server:
        cli.volume("a", "--from-image", server.url)
        cli.error(8, "backend", "create", "b", "--from-image", server.url)
    assert [asked.get("if-none-match") for asked in server.asked[:3]] == [None, '"v1"', None]
    assert [volume["name"] for volume in cli.json("list")] == ["a"]


def test_another_version_before_the_first_byte(cli: Cli) -> None:
    with scripted(whole(b"", ETag='"v1"'), whole(TWO, ETag='"v2"')) as server:
        cli.volume("v", "--from-image", server.url)
    assert content(cli, "v") == TWO and '\\"v2\\"' in mark(cli)


def test_a_file_that_became_empty(cli: Cli) -> None:
    """No piece follows; what was there of the file is void all the same."""
    with scripted(whole(ONE[:CUT], ETag='"v1"'), answer("200 OK", ETag='"v2"')) as server:
        cli.error(7, "image_format", "create", "v", "--from-image", server.url)
    nothing_is_left(cli)


def test_a_part_that_was_not_asked_for(cli: Cli) -> None:
    with scripted(part(ONE[:CUT], f"bytes 0-{CUT - 1}/*")) as server:
        cli.error(8, "backend", "create", "v", "--from-image", server.url)
    nothing_is_left(cli)


DATE = "Mon, 05 Jan 2026 00:00:00 GMT"
LATER = {"Last_Modified": DATE, "Date": "Tue, 06 Jan 2026 00:00:00 GMT"}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param(
            {"ETag": '"a"'}, part(TWO[:100_000], f"bytes {CUT}-399999/400000", ETag='"a"'), id="another length"
        ),
        pytest.param({"ETag": '"a"'}, part(TWO[CUT:], REST), id="no validator"),
        pytest.param({"ETag": '"a"'}, part(TWO[CUT:], REST, Last_Modified=DATE), id="another validator"),
        pytest.param(
            {"ETag": '"a"', **LATER},
            part(TWO[CUT:], REST, ETag='"a"', Last_Modified="Mon, 05 Jan 2026 00:00:01 GMT"),
            id="the same ETag of another time",
        ),
        pytest.param(LATER, part(TWO[CUT:], REST), id="no Last-Modified"),
        pytest.param({"ETag": '"a"'}, part(TWO[CUT:], f"bytes {CUT}-{'9' * 5000}/{MiB}", ETag='"a"'), id="no number"),
        pytest.param({"ETag": '"a"'}, part(TWO[CUT:], f"bytes {CUT}-{MiB}/{MiB}", ETag='"a"'), id="behind the end"),
    ],
)
def test_a_part_that_may_be_of_another_file(first: dict[str, str], second: bytes, cli: Cli) -> None:
    with scripted(whole(ONE[:CUT], **first), second, whole(TWO)) as server:
        cli.volume("v", "--from-image", server.url)
    assert content(cli, "v") == TWO
    assert [asked.get("range") for asked in server.asked] == [None, f"bytes={CUT}-", None]


def test_the_end_of_a_part_is_not_the_end_of_the_file(cli: Cli) -> None:
    first = part(ONE[CUT:400_000], f"bytes {CUT}-399999/*", ETag='"a"')
    second = part(ONE[400_000:], f"bytes 400000-{MiB - 1}/{MiB}", ETag='"a"')
    with scripted(whole(ONE[:CUT], ETag='"a"'), first, second) as server:
        cli.volume("v", "--from-image", server.url)
    assert content(cli, "v") == ONE
    unknown = answer("200 OK", b"%x\r\n%s\r\n" % (CUT, ONE[:CUT]), ETag='"a"', Transfer_Encoding="chunked")
    with scripted(unknown, first, whole(ONE, ETag='"a"')) as server:
        cli.volume("w", "--from-image", server.url)
    assert content(cli, "w") == ONE


def test_killed_before_the_bytes_of_an_older_version_are_gone(volctl: Volctl, web: Web) -> None:
    """What is left of the old version is not gone on with as a part of the new one."""
    url = web.put("/disk.raw", ONE, Fault(cut=CUT), Fault(9, status=503, headers={"Retry-After": "0"}), etag='"v1"')
    (volctl.home / "config.toml").write_text("[images]\nfetch_attempts = 2\n")
    volctl("create", "v", "--from-image", url, status=8)
    assert [path.stat().st_size for path in (volctl.state / "images").iterdir()] == [CUT]
    web.put("/disk.raw", TWO, etag='"v2"')
    (volctl.home / "kill.py").write_text(
        "import os, sys\n"
        "from volctl.cli import main\n"
        "from volctl.flows.fetch import DownloadTask\n"
        "DownloadTask.execute = lambda self, run: os.kill(os.getpid(), 9)\n"
        "main(sys.argv[1:])\n"
    )
    killed = Volctl([volctl.argv[0], str(volctl.home / "kill.py")], volctl.home, volctl.environment)
    killed("create", "v", "--from-image", url, status=-signal.SIGKILL)
    volctl("create", "v", "--from-image", url)
    assert Path(volctl("path", "v").out.strip()).read_bytes() == TWO


def test_what_is_fetched_again_is_no_progress(cli: Cli) -> None:
    """Without a validator each try begins again: it must not go on for ever."""
    cli.configure("[images]\nfetch_attempts = 3\n")
    with scripted(*[whole(ONE[:CUT]), whole(ONE[:20_000])] * 3, whole(ONE)) as server:
        cli.error(8, "backend", "create", "v", "--from-image", server.url)
    assert len(server.asked) == 3
    nothing_is_left(cli)


FAR = "Mon, 01 Jan 99999999999999999999 00:00:00 GMT"


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(answer("200 OK", ONE, Content_Length="9" * 5000), id="a length of 5000 digits"),
        pytest.param(answer("200 OK", ONE, Content_Length="many"), id="a length that is no number"),
        pytest.param(answer("503 Busy", Retry_After=FAR), id="a date that is none"),
        pytest.param(answer("302 Found", Location="http://[foo"), id="a redirect to half an address"),
        pytest.param(answer("302 Found", Location="ftp://\x1b[31mx"), id="a redirect that colours the terminal"),
        pytest.param(answer("302 Found", Location="http://127.0.0.1:99999/"), id="a redirect to no port"),
        pytest.param(answer("302 Found", Location="http://a..b/"), id="a redirect to no name"),
        pytest.param(answer("302 Found", Location="http://u:p@localhost/"), id="a redirect with a password"),
    ],
)
def test_a_header_that_is_none_is_the_server_s_fault(bad: bytes, cli: Cli) -> None:
    cli.configure("[images]\nfetch_attempts = 1\n")
    with scripted(bad) as server:
        error = cli.error(8, "backend", "create", "v", "--from-image", server.url)
    assert error["message"].isprintable()
    nothing_is_left(cli)


def test_a_last_modified_that_is_no_date(cli: Cli) -> None:
    with scripted(whole(ONE, Last_Modified=FAR, Date=DATE)) as server:
        cli.volume("v", "--from-image", server.url)
    assert content(cli, "v") == ONE


def test_a_redirect_is_asked_for_anew(cli: Cli, web: Web) -> None:
    """Where it led the first time may be good for once only."""
    to = [Fault(status=302, headers={"Location": f"/signed?n={number}"}) for number in (1, 2)]
    web.files["/d.raw"] = File(b"", to)
    web.put("/signed?n=1", ONE, Fault(cut=700_000), Fault(9, status=403))
    web.put("/signed?n=2", ONE)
    cli.volume("v", "--from-image", web.url("/d.raw"))
    assert content(cli, "v") == ONE
    assert web.asked[-1].headers["range"] == "bytes=700000-"


def test_redirected_ten_times_and_to_a_name_with_blanks(cli: Cli, web: Web) -> None:
    for number in range(10):
        to = f"/{number + 1}" if number < 9 else "/the disk.raw"
        web.files[f"/{number}"] = File(b"", [Fault(9, status=302, headers={"Location": to})])
    web.put("/the%20disk.raw", ONE)
    cli.volume("v", "--from-image", web.url("/0"))
    web.files["/more"] = File(b"", [Fault(9, status=302, headers={"Location": "/0"})])
    cli.error(8, "backend", "create", "w", "--from-image", web.url("/more"))


@pytest.mark.parametrize("step", ["_converse", "_read"])
def test_a_mistake_of_ours_in_the_thread_that_fetches_is_told(
    step: str, cli: Cli, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, and not as a server that says nothing."""

    def broken(*_: object) -> None:
        raise RuntimeError("an odd one")

    monkeypatch.setattr(http.Exchange, step, broken)
    error = cli.error(1, "internal", "create", "v", "--from-image", web.put("/disk.raw", ONE))
    assert error["message"] == "internal error: RuntimeError: an odd one"
    nothing_is_left(cli)


def test_a_refused_connection_is_told_as_such(cli: Cli) -> None:
    cli.configure("[images]\nfetch_attempts = 1\n")
    with scripted(b"") as server:
        pass
    assert "refused" in cli.error(8, "backend", "create", "v", "--from-image", server.url)["message"]
