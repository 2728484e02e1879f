"""One POST over HTTP that is over in time, whoever answers: nothing is followed, and no answer is an exception."""

from __future__ import annotations

import functools
import http.client
import io
import socket
import time
import urllib.request
from collections.abc import Mapping
from typing import Any


def post(url: str, body: bytes, headers: Mapping[str, str], seconds: float) -> tuple[int, bytes, str]:
    """Status, content and the header Location of what is answered.

    Parameters
    ----------
    url, body, headers
        What is sent where.
    seconds
        For everything: connecting to the first address that answers, sending, and reading up to the last byte.

    Raises
    ------
    OSError
        If there is no connection, or the time is over.
    http.client.HTTPException
        If what is answered is no HTTP, or less than it says.
    ValueError
        If the address is none.
    """
    request = urllib.request.Request(url, body, dict(headers))
    with _opener().open(request, timeout=seconds) as answer:
        return answer.status, answer.read(), answer.headers.get("Location", "")


@functools.cache
def _opener() -> urllib.request.OpenerDirector:
    # One for all: it reads the certificates that are trusted.
    return urllib.request.build_opener(_AsAnswered, _Http, _Https)


class _AsAnswered(urllib.request.HTTPErrorProcessor):
    """Hands over every status; the default one raises, and goes with the headers, the key too, where it is sent."""

    def http_response(self, request: urllib.request.Request, response: Any) -> Any:  # noqa: ANN401
        return response

    https_response = http_response


class _Within(io.RawIOBase):
    """What a socket receives until a time; a socket by itself begins to wait anew with every byte."""

    def __init__(self, sock: socket.socket, raw: io.RawIOBase, until: float) -> None:
        self._socket, self._raw, self._until = sock, raw, until

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:  # noqa: ANN401
        self._socket.settimeout(_left(self._until))
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Answer(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, until: float, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(sock, *args, **kwargs)
        self.fp = io.BufferedReader(_Within(sock, self.fp.detach(), until))


class _Connection(http.client.HTTPConnection):
    """One that is over in time; its `timeout` is for everything."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **kwargs)
        self._until = time.monotonic() + float(self.timeout or 0)
        # Only ever called.
        self.response_class = functools.partial(_Answer, until=self._until)  # type: ignore[assignment]

    def connect(self) -> None:
        super().connect()
        # What is left is for the handshake of TLS, which comes next.
        self.sock.settimeout(_left(self._until))

    def send(self, data: Any) -> None:  # noqa: ANN401
        if self.sock is None:
            self.connect()
        self.sock.settimeout(_left(self._until))
        super().send(data)


class _SecureConnection(http.client.HTTPSConnection, _Connection):
    """In this order the handshake comes after `_Connection.connect`."""


class _Http(urllib.request.HTTPHandler):
    def do_open(self, http_class: Any, req: urllib.request.Request, **given: Any) -> Any:  # noqa: ANN401
        return super().do_open(_Connection, req, **given)


class _Https(urllib.request.HTTPSHandler):
    def do_open(self, http_class: Any, req: urllib.request.Request, **given: Any) -> Any:  # noqa: ANN401
        return super().do_open(_SecureConnection, req, **given)


def _left(until: float) -> float:
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    return left
