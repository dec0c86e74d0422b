"""What the live page's server answers, to whom, and what it refuses."""

import http.client
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.message import Message
from pathlib import Path
from typing import NamedTuple

import pytest

from fsdtrain.errors import UserError
from fsdtrain.report.live_server import Answer, LiveServer

POLICY = "default-src 'none'; script-src 'sha256-x'"
PAGE = Answer(
    body=b"<p>page</p>",
    content_type="text/html; charset=utf-8",
    content_security_policy=POLICY,
    tag="v1",
)


class Found(NamedTuple):
    status: int
    headers: Message
    body: bytes


Ask = Callable[..., Found]


@contextmanager
def serving(**options: str) -> Iterator[tuple[LiveServer, Ask]]:
    routes = {"/": lambda: PAGE, "/later": lambda: None}
    with LiveServer(routes, **options) as server:  # type: ignore[arg-type]  # host alone is text
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()

        def ask(path: str, method: str = "GET", **headers: str) -> Found:
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, headers=named)
            with connection.getresponse() as response:
                found = Found(response.status, response.headers, response.read())
            connection.close()
            return found

        try:
            yield server, ask
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def ask() -> Iterator[Ask]:
    with serving() as (_, found):
        yield found


@pytest.fixture(scope="module")
def guarded() -> Iterator[tuple[LiveServer, Ask]]:
    with serving(host="0.0.0.0") as found:
        yield found


def test_a_route_is_answered_with_its_policy(ask: Ask) -> None:
    found = ask("/")
    assert (found.status, found.body) == (200, PAGE.body)
    assert found.headers["Content-Security-Policy"] == POLICY
    assert found.headers["Cache-Control"] == "no-store"
    assert found.headers["X-Content-Type-Options"] == "nosniff"
    assert "Python" not in found.headers["Server"]


def test_head_has_the_same_headers_and_no_body(ask: Ask) -> None:
    found = ask("/", "HEAD")
    assert (found.status, found.body) == (200, b"")
    assert found.headers["Content-Length"] == str(len(PAGE.body))


def test_what_the_client_has_is_not_sent_again(ask: Ask) -> None:
    tag = ask("/").headers["ETag"]
    assert ask("/", If_None_Match=tag).status == 304
    assert ask("/", If_None_Match='"v0"').status == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_nothing_can_be_sent(ask: Ask, method: str) -> None:
    found = ask("/", method)
    assert found.status == 405
    assert found.headers["Allow"] == "GET, HEAD"


@pytest.mark.parametrize(
    "path",
    ["/later", "/etc/passwd", "/../../etc/passwd", "/%2e%2e/manifest.json", "//", "/manifest.json",
     "/?/../metrics.csv/", "http://127.0.0.1/x", "/index.html", "/\\..\\x"],
)  # fmt: skip
def test_no_path_reaches_a_file(
    ask: Ask, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "manifest.json").write_text("secret")
    monkeypatch.chdir(tmp_path)
    found = ask(path)
    body = found.body
    assert b"secret" not in body
    assert b"root:" not in body
    assert found.status == (200 if path in ("//", "/?/../metrics.csv/") else 404)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:9", 200), ("localhost", 200), ("[::1]:8000", 200), ("10.1.2.3", 200),
        ("evil.example", 421), ("127.0.0.1.evil.example", 421), ("localhost.evil.example:80", 421),
        ("[::1", 421), ("", 421),
    ],
)  # fmt: skip
def test_a_foreign_name_is_refused(ask: Ask, host: str, status: int) -> None:
    assert ask("/", Host=host).status == status


def test_loopback_needs_no_token_and_is_the_default(ask: Ask) -> None:
    with LiveServer({}) as server:
        assert server.server_address[0] == "127.0.0.1"
        assert server.token is None
        assert server.url == f"http://127.0.0.1:{server.port}/"


def test_elsewhere_only_the_token_opens(guarded: tuple[LiveServer, Ask]) -> None:
    server, ask = guarded
    assert server.token is not None
    assert len(server.token) >= 43
    assert server.token in server.url
    for path in (
        "/",
        "/?token=",
        "/?token=wrong",
        "/?token=\u00e9",
        f"/?token={server.token[:-1]}",
    ):
        found = ask(path.replace("\u00e9", "%C3%A9"))
        assert (found.status, b"page" in found.body) == (403, False)


def test_after_the_first_use_a_cookie_stands_for_the_token(
    guarded: tuple[LiveServer, Ask],
) -> None:
    server, ask = guarded
    first = ask(f"/?token={server.token}")
    assert (first.status, first.headers["Location"]) == (303, "/")
    cookie = first.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert ask("/", Cookie=cookie.split(";")[0]).status == 200
    assert ask("/", Cookie=f"{server.cookie}=wrong").status == 403
    assert ask("/", Cookie="\x01;;=").status == 403


def test_the_token_leads_to_no_other_host(guarded: tuple[LiveServer, Ask]) -> None:
    server, ask = guarded
    found = ask(f"//evil.example/?token={server.token}")
    assert found.headers["Location"] == "/"


def test_a_token_does_not_excuse_a_foreign_name(guarded: tuple[LiveServer, Ask]) -> None:
    server, ask = guarded
    assert ask(f"/?token={server.token}", Host="evil.example").status == 421


def test_two_servers_have_two_tokens() -> None:
    with LiveServer({}, host="0.0.0.0") as one, LiveServer({}, host="0.0.0.0") as other:
        assert one.token != other.token


def test_a_port_that_is_taken_is_a_sentence() -> None:
    with LiveServer({}) as server, pytest.raises(UserError, match="choose another port"):
        LiveServer({}, port=server.port)


@pytest.mark.parametrize("host", ["203.0.113.7", "no such host"])
def test_a_foreign_address_is_a_sentence(host: str) -> None:
    with pytest.raises(UserError, match=r"cannot listen|no address of this machine"):
        LiveServer({}, host=host)


def test_a_client_that_leaves_is_no_noise(ask: Ask, capfd: pytest.CaptureFixture[str]) -> None:
    with serving() as (server, _):
        client = socket.create_connection(("127.0.0.1", server.port))
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
        client.close()
    assert "Traceback" not in capfd.readouterr().err


def test_an_address_that_is_none_is_not_found(ask: Ask) -> None:
    with (
        serving() as (server, _),
        socket.create_connection(("127.0.0.1", server.port), timeout=10) as client,
    ):
        client.sendall(b"GET http://[x HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 404 ")
