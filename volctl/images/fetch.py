"""The content of a URL, across connections that break: resumed where the server can, begun again where not.

What is there already is only gone on with if the server says that it is still the same file: `If-Range`
with a strong ETag, or with a Last-Modified that was a minute old when it was sent.
Source: RFC 9110, sections 8.8 (validators), 13.1.5 (If-Range), 14.4 (Content-Range).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import field
from datetime import UTC, datetime

from volctl import interrupt
from volctl.errors import AccessError, BackendError, ImageError, NotFoundError, VolctlError
from volctl.images import http
from volctl.images.http import Broken, Exchange, Head
from volctl.model import KiB
from volctl.records import mutable, record

PAUSE, LONGEST_PAUSE = 0.2, 60.0  # seconds before the second try, doubled for each further one
ENOUGH = 64 * KiB  # of progress, for the tries to be counted anew
AGAIN = (408, 425, 429, 500, 502, 503, 504)
CLOSED = (401, 403, 407, 451)
SETTLED = 60  # seconds after which a Last-Modified tells every change
_NUMBER = r"(\d{1,19})"
_LENGTH = re.compile(_NUMBER)
_RANGE = re.compile(f"bytes {_NUMBER}-{_NUMBER}/(?:{_NUMBER}|\\*)")
_UNSATISFIED = re.compile(f"bytes \\*/{_NUMBER}")


@record
class Mark:
    """What a server says by which its file is known again, as it said it.

    `strong` (an ETag or a date, as If-Range takes it) is only there if bytes may be put together by it.
    """

    etag: str | None = None
    modified: str | None = None
    strong: str | None = None

    @classmethod
    def of(cls, headers: Mapping[str, str]) -> Mark:
        etag, modified = headers.get("etag"), headers.get("last-modified")
        if etag:
            return cls(etag, modified, None if etag.startswith("W/") else etag)
        settled = modified is not None and _is_settled(modified, headers.get("date"))
        return cls(None, modified, modified if settled else None)

    def condition(self) -> dict[str, str]:
        """The headers that ask for nothing if nothing has changed."""
        if self.etag:
            return {"If-None-Match": self.etag}
        return {"If-Modified-Since": self.modified} if self.modified else {}

    def is_of(self, headers: Mapping[str, str]) -> bool:
        """Does a part of the file come with the validator that bytes are put together by, and with no other?"""
        etag, modified = headers.get("etag"), headers.get("last-modified")
        if self.etag is None:
            return etag is None and modified == self.modified
        return etag == self.etag and modified in (None, self.modified)


def _is_settled(modified: str, date: str | None) -> bool:
    then, now = _time(modified), _time(date)
    return then is not None and now is not None and (now - then).total_seconds() >= SETTLED


def _time(text: str | None) -> datetime | None:
    from email.utils import parsedate_to_datetime

    try:
        found = parsedate_to_datetime(text) if text else None
    except (ValueError, OverflowError):
        return None
    return found.replace(tzinfo=UTC) if found and found.tzinfo is None else found


@record
class Policy:
    """How patient one is: tries without progress, and seconds in which nothing comes."""

    attempts: int = 5
    patience: float = 30.0


@mutable
class Download:
    """A file that is being fetched. `position` is where the next piece belongs, `total` its length, if known."""

    url: str
    policy: Policy
    mark: Mark = field(default_factory=Mark)
    position: int = 0
    total: int | None = None
    unchanged: bool = False
    _exchange: Exchange | None = None
    _failures: int = 0
    _counted: int = 0
    _held: Mark = field(default_factory=Mark)

    @classmethod
    def begin(
        cls, url: str, policy: Policy, *, held: Mark | None = None, part: Mark | None = None, have: int = 0
    ) -> Download:
        """Ask for it. `held` is the mark of a whole copy: `unchanged` then tells that it is still good.

        Of another one, with the mark `part`, the first `have` bytes are there. Raises `NotFoundError`,
        `AccessError`, `ImageError` for a web page, `BackendError` for a server that cannot be reached.
        """
        there = have if part is not None and part.strong else 0
        made = cls(url, policy, part or Mark(), there, _counted=there, _held=held or Mark())
        made._persist(made._connect)
        return made

    def pieces(self) -> Iterator[bytes]:
        """The rest, piece by piece; if `position` is 0 again, what was written before is void.

        An empty piece comes when the connection is a new one: of a file that is empty now, no other may follow.
        """
        while self._exchange is not None:
            try:
                for piece in self._exchange.pieces():
                    yield piece
                    self.position += len(piece)
                if self.total in (None, self.position):
                    return
                raise Broken(f"it ended after {self.position} of {self.total} bytes")
            except Broken as error:
                if self.position - self._counted >= ENOUGH:  # what is fetched again is no progress
                    self._failures, self._counted = 0, self.position
                self._failed(error)
                self._persist(self._connect)
            yield b""

    def close(self) -> None:
        if self._exchange is not None:
            self._exchange.close()

    def _persist(self, act: Callable[[], None]) -> None:
        """Try until it is done, or the tries are used up."""
        while True:
            try:
                return act()
            except Broken as error:
                self._failed(error)

    def _failed(self, error: Broken) -> None:
        """Count it, and wait; `BackendError` when that was the last."""
        self.close()
        self._failures += 1
        if self._failures >= self.policy.attempts:
            tries = f"{self._failures} tries" if self._failures > 1 else "one try"
            said = f"{self.url} could not be fetched, after {tries}: {error}"
            resumable = self.position > 0 and self.mark.strong
            raise BackendError(said, hint="the next command goes on where this one stopped" if resumable else None)
        interrupt.pause(error.pause or PAUSE * 2 ** (self._failures - 1))

    def _connect(self) -> None:
        headers = self._held.condition()
        if self.position and self.mark.strong:
            headers |= {"Range": f"bytes={self.position}-", "If-Range": self.mark.strong}
        else:
            self.position = 0
        exchange = self._exchange = http.get(self.url, headers, self.policy.patience)
        try:
            self._judge(exchange.head)
        except (Broken, VolctlError):
            exchange.close()
            raise
        self._held = Mark()  # whatever is asked from now on is about the file that this answer began

    def _judge(self, head: Head) -> None:
        if head.status == 304 and self._held != Mark():
            self.unchanged = True
            self._done()
        elif head.status == 416 and self.position:
            self._judge_unsatisfied(head)
        elif head.status == 206:
            self._judge_range(head)
        elif head.status == 200:
            self._refuse_page(head)
            self.position, self.mark, self.total = 0, Mark.of(head.headers), self._announced(head)
        else:
            raise self._refusal(head)

    def _done(self) -> None:
        self.close()
        self._exchange = None

    def _judge_unsatisfied(self, head: Head) -> None:
        """There is nothing behind what is there: it is whole, if the server's file is just as long."""
        found = _UNSATISFIED.fullmatch(head.headers.get("content-range", ""))
        if found and int(found[1]) == self.position:
            self.total = self.position
            return self._done()
        raise self._from_the_beginning("it has fewer bytes than were fetched")

    def _judge_range(self, head: Head) -> None:
        """A part of the same file, as long as it was, from `position` on: its end need not be the file's."""
        if not self.position:
            raise BackendError(f"{self.url}: the server sends a part of the file, and was asked for all of it")
        found = _RANGE.fullmatch(head.headers.get("content-range", ""))
        total = int(found[3]) if found and found[3] else self.total
        if not found or total is None or not int(found[1]) == self.position <= int(found[2]) < total:
            raise self._from_the_beginning("it sent another part than it was asked for")
        if self.total not in (None, total) or not self.mark.is_of(head.headers):
            raise self._from_the_beginning("it sent a part of another file")
        self.total = total

    def _from_the_beginning(self, why: str) -> Broken:
        self.position, self.mark = 0, Mark()
        return Broken(why)

    def _announced(self, head: Head) -> int | None:
        text = head.headers.get("content-length")
        if text is None or "transfer-encoding" in head.headers:
            return None
        if not _LENGTH.fullmatch(text):
            raise BackendError(f"{self.url}: the server announces a length that is none, {text[:20]!r}")
        return int(text)

    def _refuse_page(self, head: Head) -> None:
        kind = head.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind in ("text/html", "application/xhtml+xml"):
            raise ImageError(f"{self.url} is a web page, not an image", hint="look at it in a browser")

    def _refusal(self, head: Head) -> Exception:
        said = f"{self.url}: the server answers {head.status}"
        if head.status in AGAIN:
            return Broken(f"the server answers {head.status}", _pause(head.headers.get("retry-after")))
        if head.status in (404, 410):
            return NotFoundError(f"{said}, there is no such file")
        if head.status in CLOSED:
            return AccessError(f"{said}, it wants to know who asks")
        return BackendError(said)


def _pause(text: str | None) -> float:
    """Seconds of a Retry-After, which is a number of them or a date; 0 if it says nothing."""
    if text is None:
        return 0.0
    if text.strip().isdecimal():
        return min(float(text), LONGEST_PAUSE)
    until = _time(text)
    left = (until - datetime.now(UTC)).total_seconds() if until else 0.0
    return min(max(left, 0.0), LONGEST_PAUSE)


def read_small(url: str, policy: Policy, most: int) -> bytes:
    """All of a small file, such as a list of checksums; `BackendError` if it is longer than `most` bytes."""
    download = Download.begin(http.check_url(url), policy)
    content = bytearray()
    for piece in download.pieces():
        del content[download.position :]
        content += piece
        if len(content) > most:
            download.close()
            raise BackendError(f"{url} has more than {most} bytes")
    return bytes(content)
