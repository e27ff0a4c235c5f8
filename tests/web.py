"""A real HTTP server on the loopback that misbehaves as it is told, and remembers what it was asked.

with serving() as web:
    web.files["/disk.raw"] = File(content, [Cut(1000)])     # the first answer ends after 1000 bytes
"""

from __future__ import annotations

import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PIECE = 16 * 1024


@dataclass(slots=True)
class Fault:
    """How one answer is wrong. `times`: how many answers are; then they are right."""

    times: int = 1
    cut: int | None = None  # bytes of the body after which the connection is closed
    status: int | None = None  # instead of 200
    headers: dict[str, str | None] = field(default_factory=dict)  # in the place of those sent; None: not sent
    ignore_range: bool = False
    wrong_range: bool = False
    chunked: bool = False
    endless: bool = False
    drip: float = 0.0  # seconds between two pieces
    piece: int = PIECE
    silent: bool = False  # no answer at all
    body: bytes | None = None
    etag: str | None = None
    close_at_once: bool = False
    on_piece: Callable[[int], None] = lambda sent: None


@dataclass(slots=True)
class File:
    """What is at a path. `etag` None: no ETag is sent."""

    content: bytes
    faults: list[Fault] = field(default_factory=list)
    etag: str | None = '"one"'
    modified: str | None = None
    kind: str = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class Asked:
    """A request, and how many bytes of a body were sent for it."""

    path: str
    headers: dict[str, str]
    status: int
    sent: int


@dataclass(slots=True)
class Web:
    """The server: what it has, and what it was asked."""

    address: str = ""
    files: dict[str, File] = field(default_factory=dict)
    answered: list[Asked] = field(default_factory=list)
    answering: set[int] = field(default_factory=set)
    stop: threading.Event = field(default_factory=threading.Event)

    def url(self, path: str) -> str:
        return self.address + path

    def put(self, path: str, content: bytes, *faults: Fault, etag: str | None = '"one"') -> str:
        self.files[path] = File(content, list(faults), etag)
        return self.url(path)

    @property
    def asked(self) -> list[Asked]:
        """What was answered, once an answer that is about to end has: its reader may be faster.

        Not waited for is one that says nothing, or is held (`on_piece`).
        """
        end = time.monotonic() + 60
        while self.answering and time.monotonic() < end:
            time.sleep(0.005)
        return self.answered

    @property
    def sent(self) -> int:
        """Bytes of bodies, all answers together."""
        return sum(one.sent for one in self.asked)

    def bodies(self, path: str) -> int:
        """Answers to this path that had a body."""
        return sum(1 for one in self.asked if one.path == path and one.sent)


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    web: Web
    sent = 0

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        file = self.web.files.get(self.path, File(b"", [Fault(times=99, status=404)]))
        fault = self._fault(file)
        self.sent, self.answered = 0, 0
        self.web.answering.add(id(self))
        with suppress(OSError):
            self._answer(file, fault)
        self.close_connection = True
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.web.answered.append(Asked(self.path, headers, self.answered, self.sent))
        self.web.answering.discard(id(self))

    @contextmanager
    def _resting(self) -> Iterator[None]:
        self.web.answering.discard(id(self))
        yield
        self.web.answering.add(id(self))

    def _fault(self, file: File) -> Fault:
        for fault in file.faults:
            if fault.times:
                fault.times -= 1
                return fault
        return Fault()

    def _answer(self, file: File, fault: Fault) -> None:
        if fault.close_at_once:
            return
        if fault.silent:
            with self._resting():
                self.web.stop.wait(600)
            return
        etag = fault.etag or file.etag
        if fault.status is None and etag and self.headers.get("If-None-Match") == etag:
            self._head(304, {"ETag": etag}, fault)
            return
        status, start, headers = self._range(file, fault, etag)
        body = fault.body if fault.body is not None else file.content
        headers |= {"Content-Type": file.kind, "Content-Length": str(len(body) - start), "Connection": "close"}
        headers |= {"ETag": etag} if etag else {}
        headers |= {"Last-Modified": file.modified} if file.modified else {}
        if fault.chunked or fault.endless:
            del headers["Content-Length"]
        if fault.chunked:
            headers["Transfer-Encoding"] = "chunked"
        self._head(status, headers, fault)
        if status in (200, 206) or fault.body is not None:
            self._body(body[start:], fault)

    def _range(self, file: File, fault: Fault, etag: str | None) -> tuple[int, int, dict[str, str]]:
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        condition = self.headers.get("If-Range")
        if fault.status is not None:
            return fault.status, 0, {}
        if not match or fault.ignore_range or (condition and condition not in (etag, file.modified)):
            return 200, 0, {}
        start, length = int(match[1]), len(file.content)
        if start >= length:
            return 416, 0, {"Content-Range": f"bytes */{length}"}
        shown = start + 7 if fault.wrong_range else start
        return 206, start, {"Content-Range": f"bytes {shown}-{length - 1}/{length}"}

    def _head(self, status: int, headers: dict[str, str], fault: Fault) -> None:
        self.answered = status
        self.send_response(status)
        for name, value in (headers | fault.headers).items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()

    def _body(self, body: bytes, fault: Fault) -> None:
        left = len(body) if fault.cut is None else min(fault.cut, len(body))
        while left or fault.endless:
            piece = bytes(PIECE) if fault.endless else body[self.sent : self.sent + min(fault.piece, left)]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if fault.chunked else piece)
            self.sent += len(piece)
            left = max(0, left - len(piece))
            with self._resting():
                fault.on_piece(self.sent)
            if (left or fault.endless) and fault.drip and self.web.stop.wait(fault.drip):
                return
        if fault.chunked and fault.cut is None:
            self.wfile.write(b"0\r\n\r\n")


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client that left


@contextmanager
def serving(tls: ssl.SSLContext | None = None) -> Iterator[Web]:
    web = Web()
    server = Server(("127.0.0.1", 0), type("Answering", (Answer,), {"web": web}))
    web.address = f"http{'s' if tls else ''}://127.0.0.1:{server.server_address[1]}"
    if tls:  # who is refused is told in the thread of its own request
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield web
    finally:
        web.stop.set()
        server.shutdown()
        thread.join()
        server.server_close()


def until(true: Callable[[], bool], seconds: float = 120) -> None:
    """Wait for something that another thread or process does."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


@dataclass(slots=True)
class Script:
    """A server that only closes after each answer, however that reads; `asked`: the headers of each request."""

    url: str
    answers: list[bytes]
    asked: list[dict[str, str]] = field(default_factory=list)

    def serve(self, listening: socket.socket) -> None:
        """The answers, one after the other; the last of them again and again."""
        with suppress(OSError):
            while True:
                with listening.accept()[0] as talk:
                    lines = _request(talk).split("\r\n")
                    if not lines[0]:
                        return
                    self.asked.append({line.split(": ")[0].lower(): line.split(": ")[1] for line in lines[1:]})
                    with suppress(OSError):  # the client may leave in the middle of it
                        talk.sendall(self.answers[min(len(self.asked), len(self.answers)) - 1])


def _request(talk: socket.socket) -> str:
    text = b""
    while b"\r\n\r\n" not in text and (more := talk.recv(4096)):
        text += more
    return text.partition(b"\r\n\r\n")[0].decode()


def answer(status: str, body: bytes = b"", **headers: str) -> bytes:
    """The bytes of one; `content_length` in a name is Content-Length."""
    lines = [f"HTTP/1.1 {status}", *(f"{name.replace('_', '-')}: {text}" for name, text in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


@contextmanager
def scripted(*answers: bytes) -> Iterator[Script]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        script = Script(f"http://127.0.0.1:{port}/disk.raw", list(answers))
        thread = threading.Thread(target=script.serve, args=(listening,))
        thread.start()
        try:
            yield script
        finally:
            socket.create_connection(("127.0.0.1", port)).close()  # a request of nothing ends it
            thread.join()
