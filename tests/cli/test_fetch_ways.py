"""The way to a server: through proxies of the environment, and only to who can show who it is."""

from __future__ import annotations

import base64
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.cli.conftest import MiB
from tests.conftest import Ran, Volctl
from tests.proxy import Authority, Passed, Proxy, proxying
from tests.web import Web, serving

CONTENT = random.Random(8).randbytes(MiB)


@pytest.fixture
def web() -> Iterator[Web]:
    with serving() as server:
        yield server


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with proxying() as made:
        yield made


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    (tmp_path / "ca").mkdir()
    made = Authority(tmp_path / "ca")
    made.make()
    return made


def fetch(volctl: Volctl, url: str, status: int = 0, **environment: str) -> Ran:
    """Make `v` of what the URL holds, and see that it is that; or that nothing is left."""
    (volctl.home / "config.toml").write_text("[images]\nfetch_attempts = 1\nfetch_timeout = 10\n")
    asking = replace(volctl, environment={**volctl.environment, **environment})
    done = asking("create", "v", "--from-image", url, status=status)
    if status:
        assert volctl("list", "--json").json() == volctl("image", "list", "--json").json() == []
    else:
        assert Path(volctl("path", "v").out.strip()).read_bytes() == CONTENT
    return done


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "all_proxy"])
def test_through_the_proxy_of_the_environment(name: str, volctl: Volctl, web: Web, proxy: Proxy) -> None:
    url = web.put("/disk.raw", CONTENT)
    fetch(volctl, url, 0, **{name: proxy.address})
    assert proxy.passed == [Passed("GET", url, None)]


def test_a_proxy_without_a_scheme(volctl: Volctl, web: Web, proxy: Proxy) -> None:
    fetch(volctl, web.put("/disk.raw", CONTENT), http_proxy=proxy.address.removeprefix("http://"))
    assert len(proxy.passed) == 1


@pytest.mark.parametrize("none", ["127.0.0.1", "*", "example.org,127.0.0.1"])
def test_not_through_it_for_whom_it_is_not(none: str, volctl: Volctl, web: Web, proxy: Proxy) -> None:
    fetch(volctl, web.put("/disk.raw", CONTENT), http_proxy=proxy.address, https_proxy=proxy.address, no_proxy=none)
    assert proxy.passed == []


def test_with_the_login_that_the_proxy_wants(volctl: Volctl, web: Web) -> None:
    login = "Basic " + base64.b64encode(b"me:secret").decode()
    with proxying(wants=login) as proxy:
        url = web.put("/disk.raw", CONTENT)
        said = fetch(volctl, url, 9, http_proxy=proxy.address).err
        assert "407" in said and web.asked == []
        with_login = proxy.address.replace("//", "//me:secret@")
        fetch(volctl, url, http_proxy=with_login)
    assert [passed.login for passed in proxy.passed] == [None, login]
    assert "authorization" not in web.asked[0].headers and "proxy-authorization" not in web.asked[0].headers


def test_a_proxy_that_is_not_there_and_one_of_another_kind(volctl: Volctl, web: Web) -> None:
    url = web.put("/disk.raw", CONTENT)
    assert "could not be fetched" in fetch(volctl, url, 8, http_proxy="http://127.0.0.1:1").err
    assert "proxy socks5" in fetch(volctl, url, 2, http_proxy="socks5://127.0.0.1:1").err
    assert web.asked == []


def test_https_from_a_server_that_shows_who_it_is(volctl: Volctl, authority: Authority, proxy: Proxy) -> None:
    with serving(authority.server()) as web:
        url = web.put("/disk.raw", CONTENT)
        fetch(volctl, url, SSL_CERT_FILE=str(authority.file), http_proxy=proxy.address)
    assert proxy.passed == [], "it is the proxy of http"


def test_https_through_a_proxy_is_between_the_two(volctl: Volctl, authority: Authority, proxy: Proxy) -> None:
    with serving(authority.server()) as web:
        url = web.put("/disk.raw", CONTENT)
        fetch(volctl, url, SSL_CERT_FILE=str(authority.file), https_proxy=proxy.address)
        assert [(passed.method, passed.target) for passed in proxy.passed] == [("CONNECT", url.split("/")[2])]


@pytest.mark.parametrize(
    ("name", "days", "known", "said"),
    [
        ("DNS:other.example", 1, True, "127.0.0.1"),
        ("IP:127.0.0.1", -1, True, "expired"),
        ("IP:127.0.0.1", 1, False, "unable to get local issuer certificate"),
    ],
)
@pytest.mark.parametrize("proxied", [False, True])
def test_https_from_who_is_not_who_it_says_it_is(
    name: str, days: int, known: bool, said: str, proxied: bool, volctl: Volctl, authority: Authority, proxy: Proxy
) -> None:
    """Nothing is asked of it, nor once more."""
    trust = {"SSL_CERT_FILE": str(authority.file)} if known else {}
    way = {"https_proxy": proxy.address} if proxied else {}
    with serving(authority.server(name, days)) as web:
        done = fetch(volctl, web.put("/disk.raw", CONTENT), 8, **trust, **way)
    assert web.asked == [] and len(proxy.passed) == int(proxied)
    assert "not who it says it is" in done.err and said in done.err and "ca-certificates" in done.err
    assert "Traceback" not in done.err and "_ssl.c" not in done.err
