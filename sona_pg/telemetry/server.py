"""HTTP for two pages: a daemon thread that never holds up the process."""

from __future__ import annotations

import contextlib
import logging
import socket
import socketserver
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from urllib.parse import urlsplit

from sona_pg.errors import IoError

log = logging.getLogger("sona_pg")

_CLIENT_SECONDS = 10
"""A client that takes longer to ask, or to read, is left."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What a page answers."""

    status: int
    content_type: str
    body: bytes


Page = Callable[[str], Reply]
"""Answers a request; it is given the types that the client accepts."""


class PageServer(socketserver.ThreadingTCPServer):
    """Answers GET and HEAD for a few paths.

    Parameters
    ----------
    host, port
        Where to listen; port 0 is any that is free.
    pages
        What answers, by path.

    Raises
    ------
    IoError
        If that cannot be listened on.
    """

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False

    def __init__(self, host: str, port: int, pages: dict[str, Page]) -> None:
        self.pages = pages
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            self.address_family = found[0][0]
            super().__init__((host, port), _Handler)
        except OSError as cause:
            raise IoError(
                f"port {port} of {host} cannot be listened on ({cause}): choose another --metrics-port, or 0 for any "
                "that is free, or another --metrics-host"
            ) from cause
        self.port: int = self.socket.getsockname()[1]

    def start(self) -> None:
        """Answer from now on."""
        threading.Thread(target=self.serve_forever, name="sona-metrics", daemon=True).start()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is none of our business."""
        log.debug("a request for metrics from %s failed", client_address, exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    timeout = _CLIENT_SECONDS
    server_version = "sona"
    sys_version = ""

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        assert isinstance(self.server, PageServer)
        page = self.server.pages.get(urlsplit(self.path).path)
        if page is None:
            there = ", ".join(self.server.pages)
            reply = Reply(404, "text/plain; charset=utf-8", f"there is no such page: {there}\n".encode())
        else:
            try:
                reply = page(self.headers.get("Accept", ""))
            except Exception:
                log.exception("%s could not be answered", self.path)
                reply = Reply(500, "text/plain; charset=utf-8", b"this failed: see the log of the worker\n")
        with contextlib.suppress(ConnectionError, TimeoutError):
            self.send_response(reply.status)
            self.send_header("Content-Type", reply.content_type)
            self.send_header("Content-Length", str(len(reply.body)))
            self.end_headers()
            if with_body:
                self.wfile.write(reply.body)

    def log_message(self, format: str, *args: object) -> None:
        log.debug("%s: %s", self.address_string(), format % args)
