"""A proxy on the loopback, for http and https, that remembers what it was asked; and certificates for a test's server.

with proxying() as proxy:
    environment["https_proxy"] = proxy.address
"""

from __future__ import annotations

import select
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

PIECE = 64 * 1024
CA = """
[ca]
default_ca = ours
[ours]
database = issued
new_certs_dir = .
rand_serial = yes
unique_subject = no
default_md = sha256
policy = anybody
[anybody]
commonName = supplied
"""
KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


@dataclass(frozen=True, slots=True)
class Passed:
    """A request: how, for what, and who said to ask."""

    method: str
    target: str
    login: str | None


@dataclass(slots=True)
class Proxy:
    """`wants` is the Proxy-Authorization without which nothing is passed on."""

    address: str = ""
    wants: str | None = None
    passed: list[Passed] = field(default_factory=list)

    @property
    def port(self) -> int | None:
        return urlsplit(self.address).port


class Passing(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: Proxy

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _allowed(self) -> bool:
        login = self.headers.get("Proxy-Authorization")
        self.proxy.passed.append(Passed(self.command, self.path, login))
        self.close_connection = True
        if self.proxy.wants in (None, login):
            return True
        self.send_response(407)
        self.send_header("Content-Length", "0")
        self.end_headers()
        return False

    def do_GET(self) -> None:
        if not self._allowed():
            return
        parts = urlsplit(self.path)
        onward = HTTPConnection(parts.hostname or "", parts.port)
        headers = {name: text for name, text in self.headers.items() if not name.lower().startswith("proxy-")}
        onward.request("GET", parts.path, headers=headers)
        answer = onward.getresponse()
        self.send_response(answer.status)
        for name, text in answer.getheaders():
            self.send_header(name, text)
        self.end_headers()
        while piece := answer.read(PIECE):
            self.wfile.write(piece)
        onward.close()

    def do_CONNECT(self) -> None:
        if not self._allowed():
            return
        host, _, port = self.path.rpartition(":")
        with socket.create_connection((host, int(port))) as onward:
            self.send_response(200)
            self.end_headers()
            with suppress(OSError):
                self._relay(onward)

    def _relay(self, onward: socket.socket) -> None:
        other = {self.connection: onward, onward: self.connection}
        while True:
            for ready in select.select(list(other), [], [])[0]:
                if not (data := ready.recv(PIECE)):
                    return
                other[ready].sendall(data)


@contextmanager
def proxying(wants: str | None = None) -> Iterator[Proxy]:
    proxy = Proxy(wants=wants)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OurPassing", (Passing,), {"proxy": proxy}))
    server.daemon_threads = True
    proxy.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@dataclass(frozen=True, slots=True)
class Authority:
    """Who signs the certificates of a test; `file` is its own. They have what Python 3.13 demands of RFC 5280."""

    directory: Path

    @property
    def file(self) -> Path:
        return self.directory / "ca.pem"

    def make(self) -> None:
        words = ("req", "-x509", *KEY, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=of a test")
        self._openssl(*words, "-addext", "keyUsage=critical,keyCertSign")

    def server(self, name: str = "IP:127.0.0.1", days: int = 1) -> ssl.SSLContext:
        """A certificate for this name; with negative `days` it is expired."""
        (self.directory / "names").write_text(f"subjectAltName={name}\nauthorityKeyIdentifier=keyid\n")
        (self.directory / "issued").touch()
        (self.directory / "ca.cnf").write_text(CA)
        begin, end = (f"{datetime.now(UTC) + timedelta(days=number):%Y%m%d%H%M%SZ}" for number in (-2, days))
        self._openssl("req", *KEY, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=a server")
        self._openssl(
            "ca", "-batch", "-config", "ca.cnf", "-cert", "ca.pem", "-keyfile", "ca.key", "-in", "server.csr",
            "-startdate", begin, "-enddate", end, "-extfile", "names", "-notext", "-out", "server.pem",
        )  # fmt: skip
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.directory / "server.pem", self.directory / "server.key")
        return context

    def _openssl(self, *words: str) -> None:
        subprocess.run(["openssl", *words], cwd=self.directory, check=True, capture_output=True)
