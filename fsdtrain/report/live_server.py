"""Serve a few fixed answers over HTTP: read-only, for this machine alone or behind a token.

It does not know what it serves. No path of a request reaches the file system: a request either
names one of the routes or is told that there is nothing. What protects it: only GET and HEAD; the
Host header must be an address or a name of this machine, so that no foreign page reaches it by
rebinding its own name (DNS rebinding); bound to more than the loopback, a random token is asked for
and compared in constant time.
"""

import hmac
import ipaddress
import logging
import secrets
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from fsdtrain.errors import UserError

LOOPBACK = "127.0.0.1"
IDLE_S = 30.0  # a client that sends nothing for so long is let go
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a route gives.

    Args:
        body: as it is sent.
        content_type: of the body.
        content_security_policy: what a browser lets the page do.
        tag: of this version of the body; a client that has it is told so instead.
    """

    body: bytes
    content_type: str
    content_security_policy: str = "default-src 'none'"
    tag: str = ""


Route = Callable[[], Answer | None]  # None: there is nothing (yet)


class LiveServer(ThreadingHTTPServer):
    """Listens as soon as it is made; `serve_forever` answers.

    Args:
        routes: by path, "/" for instance.
        host: an address of this machine; any but the loopback needs the token.
        port: 0: any free one.

    Raises:
        UserError: the address or the port cannot be had.
    """

    daemon_threads = True  # a slow client does not keep the command from ending
    block_on_close = False

    def __init__(self, routes: Mapping[str, Route], *, host: str = LOOPBACK, port: int = 0) -> None:
        self.routes = routes
        address = _resolve(host)
        self.is_local = address.is_loopback
        self.token = None if self.is_local else secrets.token_urlsafe(32)
        self.address_family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        try:
            super().__init__((str(address), port), _Handler)
        except OSError as error:
            raise UserError(
                f"cannot listen on {host}, port {port}: {error.strerror}; choose another port with "
                "--port, or --port 0 for any free one"
            ) from error
        self.names = {"localhost", socket.gethostname().lower(), self.server_name.lower()}

    @property
    def port(self) -> int:
        """That it listens on."""
        return int(self.server_address[1])

    @property
    def url(self) -> str:
        """For the user's browser; with the token, where there is one."""
        address = ipaddress.ip_address(str(self.server_address[0]))
        name = socket.gethostname() if address.is_unspecified else str(address)
        host = f"[{name}]" if ":" in name else name
        query = f"?token={self.token}" if self.token else ""
        return f"http://{host}:{self.port}/{query}"

    @property
    def cookie(self) -> str:
        """Its name; browsers share cookies among the ports of a host."""
        return f"fsdtrain_{self.port}"

    def knows_host(self, header: str | None) -> bool:
        """Whether a browser that sends this Host header came here by an address or our name.

        The port is not compared: a tunnel has another one.
        """
        if not header:
            return False
        try:
            name = urlsplit(f"//{header}").hostname or ""
        except ValueError:
            return False
        if name.lower() in self.names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def is_token(self, given: str) -> bool:
        """Whether this is the token, in a time that tells nothing of it."""
        return self.token is not None and hmac.compare_digest(given.encode(), self.token.encode())

    def get_request(self) -> tuple[socket.socket, object]:
        """Accept a client that may not stay silent for ever."""
        client, address = super().get_request()
        client.settimeout(IDLE_S)
        return client, address

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is no fault of ours; anything else is shown as it is."""
        if isinstance(sys.exception(), ConnectionError | TimeoutError):
            return
        super().handle_error(request, client_address)  # type: ignore[arg-type]  # as it came


def _resolve(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"--host {host!r} is no address of this machine; give {LOOPBACK} for this machine "
            "alone, or 0.0.0.0 for all of its networks"
        ) from error
    return ipaddress.ip_address(str(found[0][4][0]))


class _Handler(BaseHTTPRequestHandler):
    server: LiveServer
    server_version = "fsdtrain"
    sys_version = ""
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(has_body=True)

    def do_HEAD(self) -> None:
        self._answer(has_body=False)

    def _refuse(self) -> None:
        # What a client sent with it is not read.
        self.close_connection = True
        self._send(
            HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD", headers={"Allow": "GET, HEAD"}
        )

    do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_TRACE = do_CONNECT = _refuse

    def _answer(self, *, has_body: bool) -> None:
        if not self.server.knows_host(self.headers.get("Host")):
            self._send(HTTPStatus.MISDIRECTED_REQUEST, "not a name of this machine", has_body)
            return
        try:
            target = urlsplit(self.path)
        except ValueError:
            self._send(HTTPStatus.NOT_FOUND, "there is nothing here", has_body)
            return
        if self.server.token is not None:
            given = parse_qs(target.query).get("token", [""])[0]
            if given and self.server.is_token(given):
                self._accept_token(target.path)
                return
            if not self.server.is_token(self._cookie()):
                text = "the token is missing or wrong: open the address that the command printed"
                self._send(HTTPStatus.FORBIDDEN, text, has_body)
                return
        route = self.server.routes.get(target.path)
        answer = None if route is None else route()
        if answer is None:
            self._send(HTTPStatus.NOT_FOUND, "there is nothing here", has_body)
            return
        tag = f'"{answer.tag}"' if answer.tag else ""
        headers = {"Content-Security-Policy": answer.content_security_policy}
        if tag:
            headers["ETag"] = tag
        if tag and self.headers.get("If-None-Match") == tag:
            self._send_bytes(HTTPStatus.NOT_MODIFIED, b"", headers)
            return
        headers["Content-Type"] = answer.content_type
        self._send_bytes(HTTPStatus.OK, answer.body, headers, has_body=has_body)

    def _accept_token(self, path: str) -> None:
        """From now on by cookie, so that the token does not stay in the address and its history."""
        cookie = f"{self.server.cookie}={self.server.token}; HttpOnly; SameSite=Strict; Path=/"
        # One slash: two would name another host.
        where = "/" + path.lstrip("/\\")
        known = where if where in self.server.routes else "/"
        self._send_bytes(HTTPStatus.SEE_OTHER, b"", {"Location": known, "Set-Cookie": cookie})

    def _cookie(self) -> str:
        try:
            found = SimpleCookie(self.headers.get("Cookie", "")).get(self.server.cookie)
        except CookieError:
            return ""
        return "" if found is None else found.value

    def _send(
        self,
        status: HTTPStatus,
        text: str,
        has_body: bool = True,
        *,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        given = {"Content-Type": "text/plain; charset=utf-8", **(headers or {})}
        self._send_bytes(status, f"{text}\n".encode(), given, has_body=has_body)

    def _send_bytes(
        self, status: HTTPStatus, body: bytes, headers: Mapping[str, str], *, has_body: bool = True
    ) -> None:
        self.send_response(status)
        common = {
            "Content-Security-Policy": "default-src 'none'",
            "Cache-Control": "no-store",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            "Cross-Origin-Resource-Policy": "same-origin",
        }
        if status is not HTTPStatus.NOT_MODIFIED:
            common["Content-Length"] = str(len(body))
        for name, value in (common | dict(headers)).items():
            self.send_header(name, value)
        self.end_headers()
        if has_body:
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        # Of the address, only what is no secret.
        logger.debug("%s %s", self.client_address[0], self.command)
