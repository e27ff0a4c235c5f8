"""The fetch table: what a server may do wrong, and what volctl does then; docs/fetch.md is written by this.

VOLCTL_WRITE_DOCS=1 writes the page anew; without it the page must be what the test would write.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import re
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from time import time

import pytest

from tests import oracle
from tests.conftest import REPO
from tests.engine.crash import Ended, Rig, Zygote, scratch
from tests.engine.zygote import EXPIRE
from tests.web import Asked, Fault, File, Web, serving, until

PAGE = REPO / "docs" / "fetch.md"
CONTENT = random.Random(11).randbytes(1 << 20)
OTHER = random.Random(12).randbytes(1 << 20)
CUT = 300_000
PATIENCE, TRIES = 3, 3
CONFIG = f"[images]\nfetch_timeout = {PATIENCE}\nfetch_attempts = {TRIES}\n"
DAY_OLD = formatdate(time() - 86400, usegmt=True)
ENDED_BY = {"cancelled": signal.SIGINT, "timeout": EXPIRE}
JUST_NOW = "the time at which the case begins"


def page(*faults: Fault, **file: str | None) -> Callable[[Web], str]:
    """The image at a path, with these faults, one after the other."""

    def put(web: Web) -> str:
        made = web.files["/disk.raw"] = File(CONTENT, [*faults], **file)  # type: ignore[arg-type]
        if made.modified == JUST_NOW:
            made.modified = formatdate(usegmt=True)
        return web.url("/disk.raw")

    return put


def cut(times: int = 1, **more: bool) -> Fault:
    return Fault(times, cut=CUT, **more)  # type: ignore[arg-type]


def status(number: int, times: int = 99, **headers: str) -> Fault:
    return Fault(times, status=number, headers={name.replace("_", "-"): text for name, text in headers.items()})


def stalls(web: Web) -> str:
    """Sends the beginning, then nothing."""
    web.files["/disk.raw"] = File(CONTENT, [Fault(piece=CUT, on_piece=lambda sent: hold(web))])
    return web.url("/disk.raw")


def hold(web: Web) -> None:
    """Send no more, and nothing after that."""
    web.stop.wait(600)
    raise ConnectionError


def always_silent(web: Web) -> str:
    web.files["/disk.raw"] = File(CONTENT, [Fault(99, silent=True)])
    return web.url("/disk.raw")


def redirects(target: str) -> Callable[[Web], str]:
    def put(web: Web) -> str:
        web.files["/old"] = File(b"", [status(302, Location=target)])
        web.put("/disk.raw", CONTENT)
        return web.url("/old")

    return put


def changes(web: Web) -> str:
    """The connection breaks, and the file is another when it is asked for the rest."""
    web.files["/disk.raw"] = File(CONTENT, [cut(), Fault(etag='"two"', body=OTHER)])
    return web.url("/disk.raw")


def nobody(web: Web) -> str:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{closed.getsockname()[1]}/disk.raw"


def qcow2_too_short(web: Web) -> str:
    with scratch() as folder:
        (folder / "raw").write_bytes(CONTENT)
        words = ("qemu-img", "convert", "-f", "raw", "-O", "qcow2", "raw", "qcow2")
        subprocess.run(words, cwd=folder, check=True)
        content = (folder / "qcow2").read_bytes()
    return web.put("/disk", content, Fault(headers={"Content-Length": str(len(content) // 2)}, cut=len(content) // 2))


GOES_ON, AGAIN, GIVES_UP, REFUSES = "asks for the rest", "begins again", "gives up", "refuses it"
TAKES, TRIES_AGAIN = "takes it", "tries again"


@dataclass(frozen=True, slots=True)
class Case:
    """A fault, what volctl does, and the code it ends with ("": it makes the volume)."""

    does: str
    code: str
    put: Callable[[Web], str]
    twice: int = 0
    reads_as: bytes = CONTENT
    words: tuple[str, ...] = field(default=())


CASES = {
    "closes the connection in the body": Case(GOES_ON, "", page(cut())),
    "closes it again and again, but sends some each time": Case(GOES_ON, "", page(cut(3))),
    "closes it in the body of a chunked answer": Case(GOES_ON, "", page(cut(chunked=True))),
    "sends the beginning, then nothing": Case(GOES_ON, "", stalls),
    "closes, and a Last-Modified of yesterday, no ETag": Case(GOES_ON, "", page(cut(), etag=None, modified=DAY_OLD)),
    "announces more bytes than the file has": Case(
        GOES_ON, "", page(Fault(headers={"Content-Length": str(len(CONTENT) + 1000)}))
    ),
    "closes, and a Last-Modified of just now, no ETag": Case(AGAIN, "", page(cut(), etag=None, modified=JUST_NOW), CUT),
    "closes, and has a weak ETag": Case(AGAIN, "", page(cut(), etag='W/"one"'), CUT),
    "closes, and has no validator": Case(AGAIN, "", page(cut(), etag=None), CUT),
    "closes, and ignores Range": Case(AGAIN, "", page(cut(), Fault(ignore_range=True)), CUT),
    "closes, and sends another range than was asked for": Case(
        AGAIN, "", page(cut(), Fault(wrong_range=True, cut=0)), CUT
    ),
    "closes, and the file is another by then": Case(AGAIN, "", changes, CUT, OTHER),
    "closes before it answers, once": Case(TRIES_AGAIN, "", page(Fault(close_at_once=True))),
    "does not answer, once": Case(TRIES_AGAIN, "", page(Fault(silent=True))),
    "500, once": Case(TRIES_AGAIN, "", page(status(500, 1))),
    "503 with Retry-After, once": Case(TRIES_AGAIN, "", page(status(503, 1, Retry_After="1"))),
    "429 with a Retry-After that is a date": Case(TRIES_AGAIN, "", page(status(429, 1, Retry_After=DAY_OLD))),
    "sends it in chunks, no length announced": Case(TAKES, "", page(Fault(chunked=True))),
    "announces no length, and closes at the end": Case(TAKES, "", page(Fault(headers={"Content-Length": None}))),
    "sends it slowly": Case(TAKES, "", page(Fault(drip=0.02, piece=64 * 1024))),
    "packs it on the way, though not asked to (Content-Encoding: gzip)": Case(
        TAKES, "", page(Fault(headers={"Content-Encoding": "gzip"}, body=gzip.compress(CONTENT)))
    ),
    "redirects": Case(TAKES, "", redirects("/disk.raw")),
    "closes each time before anything came": Case(GIVES_UP, "backend", page(Fault(99, close_at_once=True))),
    "never answers": Case(GIVES_UP, "backend", always_silent),
    "500, each time": Case(GIVES_UP, "backend", page(status(500))),
    "503, each time": Case(GIVES_UP, "backend", page(status(503, Retry_After="0"))),
    "is not there (connection refused)": Case(GIVES_UP, "backend", nobody),
    "has a name that nobody knows": Case(GIVES_UP, "backend", lambda web: "http://nothere.invalid/disk.raw"),
    "a header of 100,000 bytes": Case(GIVES_UP, "backend", page(Fault(99, cut=0, headers={"X-Long": "x" * 100_000}))),
    "200 headers": Case(
        GIVES_UP, "backend", page(Fault(99, cut=0, headers={f"X-{number}": "x" for number in range(200)}))
    ),
    "404": Case(REFUSES, "not_found", page(status(404))),
    "410": Case(REFUSES, "not_found", page(status(410))),
    "401": Case(REFUSES, "permission", page(status(401))),
    "403": Case(REFUSES, "permission", page(status(403))),
    "418": Case(REFUSES, "backend", page(status(418))),
    "redirects to itself, for ever": Case(REFUSES, "backend", redirects("/old")),
    "redirects to file:///etc/passwd": Case(REFUSES, "backend", redirects("file:///etc/passwd")),
    "redirects to ftp://": Case(REFUSES, "backend", redirects("ftp://127.0.0.1/disk.raw")),
    "answers with a web page": Case(REFUSES, "image_format", page(kind="text/html; charset=utf-8")),
    "answers with a web page that it does not call one": Case(
        REFUSES, "image_format", page(Fault(body=b"\n<!DOCTYPE html><html>"))
    ),
    "announces fewer bytes than the image has": Case(REFUSES, "image_corrupt", qcow2_too_short),
    "sends without end": Case(REFUSES, "image_too_big", page(Fault(endless=True)), words=("--size", "1M")),
    "sends slowly, and --timeout runs out": Case(
        GIVES_UP, "timeout", page(Fault(99, drip=0.5)), words=("--timeout", "600")
    ),
    "sends slowly, and Ctrl-C is pressed": Case(GIVES_UP, "cancelled", page(Fault(99, drip=0.5))),
}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fetch") / "config.toml"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def rig(zygote: Zygote) -> Iterator[Rig]:
    with scratch() as root:
        yield Rig(zygote, root, {}, names=("local",))


@pytest.mark.parametrize("name", CASES)
def test_a_server_that(name: str, rig: Rig, config: Path) -> None:
    case = CASES[name]
    with serving() as web:
        url = case.put(web)
        ended = _run(rig, config, web, case, url)
    code = json.loads(ended.err.splitlines()[-1])["error"]["code"] if ended.status else ""
    assert (ended.status, code) == (exit_of(case.code), case.code), ended.err
    assert "Traceback" not in ended.err
    assert twice(web.asked) == case.twice
    assert any("range" in asked.headers for asked in web.asked) or case.does != GOES_ON
    assert len(web.asked) == 1 or case.does not in (TAKES, REFUSES) or "redirects" in name
    if not case.code:
        assert _volume(rig) == case.reads_as
    _holds(rig, config, case)


def _run(rig: Rig, config: Path, web: Web, case: Case, url: str) -> Ended:
    words = ("create", "v", "--json", "--from-image", url, *case.words)
    env = {"VOLCTL_STATE_DIR": str(rig.state), "VOLCTL_CONFIG": str(config)}
    pid = rig.zygote.start({"argv": words, "env": env})
    if case.code in ENDED_BY:  # not before something came, however slow this machine is
        store = rig.state / "images"
        until(lambda: store.is_dir() and any(path.stat().st_size for path in store.glob("*.part")))
        os.kill(pid, ENDED_BY[case.code])
    return rig.join(pid)


def exit_of(code: str) -> int:
    """SPEC, section 9."""
    codes = {"": 0, "not_found": 4, "backend": 8, "permission": 9, "timeout": 124, "cancelled": 130}
    return codes.get(code, 7)


def twice(asked: list[Asked]) -> int:
    """Bytes that were sent more than once; what is sent of a web page is no image's."""
    ends = [begin(one) + one.sent for one in asked]
    return max(0, sum(one.sent for one in asked) - max(ends, default=0))


def begin(one: Asked) -> int:
    match = re.fullmatch(r"bytes=(\d+)-", one.headers.get("range", ""))
    return int(match[1]) if match and one.status in (206, 416) else 0


def _volume(rig: Rig) -> bytes:
    return next((rig.state / "volumes").glob("volume-*")).read_bytes()


def _holds(rig: Rig, config: Path, case: Case) -> None:
    """SPEC, section 11; and of what failed nothing is left but a part that can be gone on with."""
    told = rig.bare(config, "image", "list", "--json")
    assert told.status == 0 and len(told.json()) == (0 if case.code else 1)
    tables = oracle.load(rig.state)
    assert len(tables["volumes"]) == (0 if case.code else 1)
    assert len(tables["parts"]) == (1 if case.code in ("timeout", "cancelled") else 0)
    pools = {"local": rig.state / "volumes"} if (rig.state / "volumes").exists() else {}
    contents = {"v": oracle.Content(rig.root / "content")}
    (rig.root / "content").write_bytes(case.reads_as)
    assert oracle.check(oracle.World(rig.state, pools, contents)) == []


def test_the_page_says_so() -> None:
    rows = [("the server", "volctl", "exit", "code", "bytes fetched twice")]
    rows += [(name, case.does, str(exit_of(case.code)), case.code, f"{case.twice:,}") for name, case in CASES.items()]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = [f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))} |" for row in rows]
    lines.insert(1, f"| {' | '.join('-' * width for width in widths)} |")
    text = HEAD + "\n".join(lines) + "\n"
    if os.environ.get("VOLCTL_WRITE_DOCS"):
        PAGE.write_text(text)
    assert PAGE.read_text() == text


HEAD = f"""# What a server can do while an image is fetched

Each row is a real server on the loopback, made to misbehave by `tests/flows/test_fetch_table.py`, which also
writes this page. The image has {len(CONTENT):,} bytes, the connection breaks after {CUT:,} of them; what is
fetched twice is what was received and could not be used. Tries are limited to {TRIES}, silence to
{PATIENCE} s here (by default 5 and 30 s: `fetch_attempts` and `fetch_timeout` in `[images]`); they are counted
anew when the file is 64 KiB further than when they last were; what is fetched again is no progress.

- Bytes are put together only by a strong validator (an ETag that is not weak, or a Last-Modified that was a
  minute old when it was sent) and If-Range; else the file is fetched from its beginning. An answer to that must
  carry this validator again, no other, and the length that was told before. A part that was not asked for is refused.
- The first URL is asked each time: a redirect may lead elsewhere by then.
- A command that was interrupted, killed or ran out of time or tries leaves what it received (`ID.part` in
  the image store, known to the database) if the rest can be asked for. The next command for that URL goes
  on there; after a restart of the machine it begins again, since what is there may not be what was written.
  What nobody came back for goes after seven days, or by `volctl image cache prune --all`.
- What fails otherwise leaves no volume, no image and no file.
- When the server cannot be reached, the command fails (exit 8), also where a copy is held: the hint names the
  copy, and `--from-image ID` takes it without asking the server.
- `volctl image add URL` makes what was fetched somebody's, also without a name; a second one with other words has a
  copy of its own. Only what was fetched for a create alone is dropped: for a new version, within the limits of
  `[image_cache]`, or by `volctl image cache prune --all`.
- `volctl image refresh` asks the server of a fetched image: what it has now takes the place of what is there,
  under the image's id and name; also if the file was damaged. If that fails, the image is as it was.

"""
