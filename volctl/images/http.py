"""One HTTP request at a time: signals and the deadline are heard while a name is looked up or a server is silent.

A request runs in a thread of its own, which this module's callers never see; who waits for it asks
`interrupt.check`. Redirects are followed here, to http and https only. The certificates are the
system's, the proxies the environment's (`http_proxy`, `https_proxy`, `all_proxy`, `no_proxy`).
Source: RFC 9110.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from volctl import interrupt
from volctl.errors import BackendError, UsageError
from volctl.model import KiB
from volctl.records import record

if TYPE_CHECKING:
    import urllib3
    from urllib3.response import BaseHTTPResponse

SCHEMES = ("http://", "https://")
REDIRECTS = 10
PIECE, WAITING = 256 * KiB, 8  # bytes at a time, and pieces that may wait to be taken
AGENT = "volctl"


class Broken(Exception):
    """The connection failed, or the server could not answer: another try may help, after `pause` seconds."""

    def __init__(self, said: str, pause: float = 0.0) -> None:
        super().__init__(said)
        self.pause = pause


@record
class Head:
    """The beginning of an answer; the names of `headers` are in lower case."""

    status: int
    headers: Mapping[str, str]


def is_url(text: str) -> bool:
    return text.lower().startswith(SCHEMES)


def check_url(url: str) -> str:
    """The URL without its fragment; `UsageError` if it cannot be one, or carries a password."""
    try:
        parts = urlsplit(url)
        odd = parts.port == 0 or not parts.hostname or not url.isprintable() or " " in url
    except ValueError:
        odd = True
    if odd:
        raise UsageError(f"{url!r} is not a URL that can be fetched")
    if parts.username is not None:
        raise UsageError("a URL with a user's name or password would be kept and shown; it is not taken")
    return parts._replace(fragment="").geturl()


class Exchange:
    """A GET under way."""

    def __init__(self, url: str, headers: Mapping[str, str], patience: float) -> None:
        self._url = url
        self._headers = {"Accept-Encoding": "identity", "User-Agent": AGENT, **headers}
        self._patience = patience
        self._given: queue.Queue[Head | bytes | Exception] = queue.Queue(WAITING)
        self._left = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()
        try:
            head = self._take()
        except BaseException:
            self.close()
            raise
        assert isinstance(head, Head)
        self.head = head

    def pieces(self) -> Iterator[bytes]:
        """The body as it comes. `Broken` if it does not end as announced, or nothing comes for too long."""
        while piece := self._take():
            assert isinstance(piece, bytes)
            yield piece

    def close(self) -> None:
        """Leave; the thread ends with its next piece, or when it waited long enough."""
        self._left.set()

    def _take(self) -> Head | bytes:
        end = time.monotonic() + self._patience
        while True:
            interrupt.check()
            try:
                given = self._given.get(timeout=0.1)
            except queue.Empty:
                if time.monotonic() > end:
                    raise Broken(f"nothing came for {self._patience:g} s") from None
                continue
            if isinstance(given, Exception):
                raise given
            return given

    def _run(self) -> None:
        from urllib3.exceptions import HTTPError, LocationValueError

        try:
            self._converse()
        except (LocationValueError, ValueError) as error:
            self._give(UsageError(f"{self._url!r} is not a URL that can be fetched: {error}"))
        except (HTTPError, OSError) as error:
            self._give(_failure(error))
        except Exception as error:  # also a mistake of ours: who waits for the answer hears it, and tells it
            self._give(error)

    def _converse(self) -> None:
        with _pool(self._url, self._patience) as pool:
            response = pool.request(
                "GET", self._url, headers=self._headers, redirect=False, preload_content=False, decode_content=False
            )
            with closing(response):
                headers = {name.lower(): value for name, value in response.headers.items()}
                self._give(Head(response.status, headers))
                while not self._left.is_set() and (piece := self._read(response)):
                    self._give(piece)
                self._give(b"")

    def _read(self, response: BaseHTTPResponse) -> bytes:
        return response.read1(PIECE, decode_content=False)

    def _give(self, item: Head | bytes | Exception) -> None:
        while not self._left.is_set():
            try:
                self._given.put(item, timeout=0.1)
            except queue.Full:
                continue
            return


def get(url: str, headers: Mapping[str, str], patience: float) -> Exchange:
    """Ask for `url` and follow redirects. `patience` is how long nothing may come, in seconds."""
    exchange, followed = Exchange(url, headers, patience), 0
    while (location := _location(exchange.head)) is not None:
        exchange.close()
        if followed == REDIRECTS:
            raise BackendError(f"{url} was reached by {REDIRECTS} redirects, and redirects again")
        url, exchange = _follow(url, location, headers, patience)
        followed += 1
    return exchange


def _location(head: Head) -> str | None:
    return head.headers.get("location") if head.status in (301, 302, 303, 307, 308) else None


def _follow(url: str, location: str, headers: Mapping[str, str], patience: float) -> tuple[str, Exchange]:
    """The target, and what it answers; a target that cannot be asked is the server's fault, not the user's."""
    try:
        target = check_url(urljoin(url, location.replace(" ", "%20")))
        if not is_url(target):
            raise UsageError("only http and https are followed")
        return target, Exchange(target, headers, patience)
    except (ValueError, UsageError) as error:
        raise BackendError(f"{url} redirects to {location!r}: {error}") from error


def _pool(url: str, patience: float) -> urllib3.PoolManager:
    from urllib.request import getproxies_environment, proxy_bypass

    import urllib3

    parts = urlsplit(url)
    timeout = urllib3.Timeout(connect=patience, read=patience)
    proxies = getproxies_environment()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(parts.netloc, proxies):
        return urllib3.PoolManager(retries=False, timeout=timeout)
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    if not is_url(proxy):
        raise UsageError(f"the proxy {urlsplit(proxy).scheme} of the environment is none that volctl can use")
    return urllib3.ProxyManager(proxy, proxy_headers=_login(proxy), retries=False, timeout=timeout)


def _login(proxy: str) -> dict[str, str] | None:
    from urllib3.util import make_headers

    parts = urlsplit(proxy)
    if parts.username is None:
        return None
    return dict(make_headers(proxy_basic_auth=f"{parts.username}:{parts.password or ''}"))


def _failure(error: Exception) -> Exception:
    """What went wrong in plain words; what another try cannot help is an error of ours."""
    from urllib3 import exceptions

    if isinstance(error, exceptions.SSLError):
        hint = "the clock, the system's certificates (package ca-certificates) and the server's name must agree"
        said = getattr(error.args[0], "verify_message", None) or _said(error)
        return BackendError(f"the server is not who it says it is: {said}", hint=hint)
    if isinstance(error, exceptions.NameResolutionError):
        return Broken(f"the name of the server cannot be resolved ({_said(error)})")
    # urllib3 has what the system says at once, such as a refused connection, among its timeouts, too
    if isinstance(error, exceptions.TimeoutError) and not isinstance(error, exceptions.NewConnectionError):
        return Broken("nothing came in time")
    return Broken(f"the connection failed: {_said(error)}")


def _said(error: Exception) -> str:
    """urllib3 puts the connection object before what happened, and wraps the error of the system."""
    cause = error.__cause__ or error
    return str(getattr(cause, "strerror", None) or str(cause).rpartition(": ")[2] or type(cause).__name__)
