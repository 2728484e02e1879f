"""An endpoint that speaks OpenAI's API, over a real socket: what it answers, and what is done when it does not."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from sona_pg.config import EndpointConfig
from sona_pg.errors import ConfigError, EmbedderError, ResponderError
from sona_pg.text.embedders import EndpointEmbedder
from sona_pg.text.responders import Context, EndpointResponder, Item, best_items


class Served:
    """What an endpoint is to answer, and what it was asked."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, Any]] = []
        self.asked: list[tuple[str, dict[str, Any], str | None]] = []
        self.url = ""


@pytest.fixture
def served() -> Iterator[Served]:
    state = Served()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state.asked.append((self.path, body, self.headers.get("Authorization")))
            status, answer = state.answers.pop(0)
            if callable(answer):
                with contextlib.suppress(OSError):  # whoever asked may have gone
                    answer(self)
                return
            if status == 0:
                time.sleep(answer)
                return
            content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self) -> None:
            state.asked.append((self.path, {}, self.headers.get("Authorization")))
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    state.url = f"http://127.0.0.1:{server.server_port}/v1"
    yield state
    server.shutdown()
    server.server_close()


def config(served: Served, **settings: float) -> EndpointConfig:
    return EndpointConfig(served.url, key="secret", **{"pause_seconds": 0.0, **settings})  # type: ignore[arg-type]


def embeddings(*rows: list[float]) -> dict[str, Any]:
    # Not in order: an endpoint says which is which.
    return {"data": [{"index": index, "embedding": row} for index, row in reversed(list(enumerate(rows)))]}


def test_embeddings_are_asked_and_put_in_order(served: Served) -> None:
    served.answers = [(200, embeddings([1, 2], [3, 4]))]
    embedder = EndpointEmbedder("small", 2, config(served))
    assert np.array_equal(embedder.embed(["a", "b"]), np.array([[1, 2], [3, 4]], dtype=np.float32))
    assert served.asked == [("/v1/embeddings", {"model": "small", "input": ["a", "b"]}, "Bearer secret")]
    assert (embedder.dim, embedder.fingerprint) == (2, "openai/small")


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_what_may_pass_is_tried_again(status: int, served: Served) -> None:
    served.answers = [(status, b"later"), (status, b"later"), (200, embeddings([1, 2]))]
    assert EndpointEmbedder("small", 2, config(served)).embed(["a"]).shape == (1, 2)
    assert len(served.asked) == 3
    served.answers = [(status, b"later")] * 2
    with pytest.raises(EmbedderError, match=f"answered {status}: later; given up after 2 attempts"):
        EndpointEmbedder("small", 2, config(served, attempts=2)).embed(["a"])


def test_what_is_refused_is_not_tried_again(served: Served) -> None:
    served.answers = [(401, b"no such key")]
    with pytest.raises(EmbedderError, match="answered 401: no such key"):
        EndpointEmbedder("small", 2, config(served)).embed(["a"])
    assert len(served.asked) == 1


def test_a_time_that_is_over_is_tried_again(served: Served) -> None:
    served.answers = [(0, 0.5), (200, embeddings([1, 2]))]
    assert EndpointEmbedder("small", 2, config(served, timeout_seconds=0.1)).embed(["a"]).shape == (1, 2)


def test_a_port_that_nobody_listens_on_is_said() -> None:
    with pytest.raises(EmbedderError, match=r"127\.0\.0\.1:9/v1/embeddings: .*given up after 2 attempts"):
        EndpointEmbedder("small", 2, EndpointConfig("http://127.0.0.1:9/v1", attempts=2, pause_seconds=0.0)).embed(
            ["a"]
        )


def raw(content: bytes, pause: float = 0.0) -> Callable[[BaseHTTPRequestHandler], None]:
    """Answers with these very bytes; with a pause byte by byte."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        size = 1 if pause else max(len(content), 1)
        for start in range(0, len(content), size):
            handler.wfile.write(content[start : start + size])
            time.sleep(pause)

    return answer


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_refused_and_nobody_else_is_given_the_key(status: int, served: Served) -> None:
    elsewhere = served.url.replace("127.0.0.1", "localhost") + "/elsewhere"
    served.answers = [(0, raw(f"HTTP/1.0 {status} Moved\r\nLocation: {elsewhere}\r\n\r\n".encode()))]
    with pytest.raises(EmbedderError, match=f"answered {status}, a redirect to '{elsewhere}'"):
        EndpointEmbedder("small", 2, config(served)).embed(["a"])
    assert len(served.asked) == 1


@pytest.mark.parametrize(
    "broken", [b"HTTP/1.0 200 OK\r\nContent-Length: 1000\r\n\r\n{}", b"SSH-2.0-OpenSSH\r\n", b"", b"HTTP/1.0 99 x\r\n"]
)
def test_a_connection_that_breaks_off_is_tried_again(broken: bytes, served: Served) -> None:
    served.answers = [(0, raw(broken)), (200, embeddings([1, 2]))]
    assert EndpointEmbedder("small", 2, config(served)).embed(["a"]).shape == (1, 2)
    served.answers = [(0, raw(broken))] * 2
    with pytest.raises(EmbedderError, match="given up after 2 attempts"):
        EndpointEmbedder("small", 2, config(served, attempts=2)).embed(["a"])


@pytest.mark.parametrize("head", [b"HTTP/1.0 200 OK\r\n\r\n", b"HTTP/1.0 429 No\r\n\r\n"])
@pytest.mark.parametrize("whole", [True, False])
def test_an_answer_byte_by_byte_is_over_in_time(head: bytes, whole: bool, served: Served) -> None:
    """Every byte comes in time, and the last one would, too; all of them do not."""
    body = json.dumps(embeddings([1, 2])).encode()
    slow = raw(head + body, 0.02) if whole else raw(body, 0.02)

    def answer(handler: BaseHTTPRequestHandler) -> None:
        if not whole:
            handler.wfile.write(head)
        slow(handler)

    served.answers = [(0, answer)]
    with pytest.raises(EmbedderError, match="timed out; given up after 1 attempts"):
        EndpointEmbedder("small", 2, config(served, attempts=1, timeout_seconds=0.3)).embed(["a"])


def test_what_is_asked_is_json(served: Served) -> None:
    with pytest.raises(ResponderError, match="is to be asked is no JSON"):
        EndpointResponder("chat", config(served), tune=["seed"])("?", [], Context(), {"seed": object()})  # type: ignore[dict-item]


@pytest.mark.parametrize(
    "answer",
    [
        b"<html>",
        b"[" * 100_000,
        b'{"data": "\xff"}',
        b"9" * 5000,
        [],
        {},
        {"data": 5},
        {"data": {}},
        {"data": [{"index": 0}]},
        {"data": [{"embedding": [1]}]},
        {"data": [{"index": 0, "embedding": [10**400, 1]}]},
        {"data": [{"index": 0, "embedding": [1, 2]}] * 2},
        {"data": [{"index": 1, "embedding": [1, 2]}]},
    ],
)
def test_what_are_no_embeddings_is_said(answer: object, served: Served) -> None:
    served.answers = [(200, answer)]
    with pytest.raises(EmbedderError, match="answered"):
        EndpointEmbedder("small", 2, config(served)).embed(["a"])


def test_the_address_comes_from_the_environment_or_is_refused(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", served.url + "/")
    monkeypatch.setenv("OPENAI_API_KEY", "from outside")
    served.answers = [(200, embeddings([1, 2]))]
    EndpointEmbedder("small", 2).embed(["a"])
    assert served.asked[0][0] == "/v1/embeddings"
    assert served.asked[0][2] == "Bearer from outside"
    for url in ("", "localhost:1", "file:///etc/passwd", "http://", "http://[", "http://a:b", "http://a b", "http://ü"):
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        with pytest.raises(ConfigError, match="address"):
            EndpointEmbedder("small", 2)


def test_a_key_is_not_shown() -> None:
    assert "secret" not in repr(EndpointConfig("http://x", key="secret"))


@pytest.mark.parametrize(
    "key", [5, None, b"secret", "secret\n", "sec\rret", "secret\x00", "secret\u20ac", "secret\ud800"]
)
def test_a_key_that_cannot_be_sent_is_refused_unseen(key: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ANN401
    with pytest.raises(ConfigError, match="key") as refused:
        EndpointConfig("http://x", key=key)
    assert "sec" not in str(refused.value)
    if isinstance(key, str) and "\x00" not in key and key.isascii():
        monkeypatch.setenv("OPENAI_API_KEY", key)
        with pytest.raises(ConfigError, match="OPENAI_API_KEY"):
            EndpointEmbedder("small", 2, EndpointConfig("http://x"))


def test_an_address_is_a_text() -> None:
    for url in (5, None, b"http://x"):
        with pytest.raises(ConfigError, match="url is"):
            EndpointConfig(url)  # type: ignore[arg-type]


# ---- responders ------------------------------------------------------------------------------------------------------

ITEMS = [Item("7", 0.9, "Parcels take two days."), Item("8", 0.5)]


def test_a_responder_is_given_the_items_and_what_has_proven_good(served: Served) -> None:
    served.answers = [(200, {"choices": [{"message": {"content": "Two days."}}]})]
    respond = EndpointResponder("chat", config(served), tune=["temperature", "seed"])
    answer = respond("When?", ITEMS, Context(), {"temperature": 0.2, "other": 1})
    assert answer == "Two days."
    ((path, body, _),) = served.asked
    assert path == "/v1/chat/completions"
    assert (body["model"], body["temperature"]) == ("chat", 0.2)
    assert "seed" not in body
    assert "other" not in body
    system, user = body["messages"]
    assert "[7] Parcels take two days.\n\n[8]" in system["content"]
    assert user == {"role": "user", "content": "When?"}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("", ""),
        ([{"type": "text", "text": "Two "}, {"type": "text", "text": "days."}], "Two days."),
        (None, None),
        (5, None),
        ([], None),
        (["Two"], None),
        ({"type": "text", "text": "Two"}, None),
        ([{"type": "text", "text": None}], None),
        ([{"type": "text"}], None),
        ([{"type": "text", "text": "Two"}, {"type": "image_url", "image_url": "x"}], None),
    ],
)
def test_a_content_is_a_text_or_parts_of_one(content: object, text: str | None, served: Served) -> None:
    served.answers = [(200, {"choices": [{"message": {"content": content}}]})]
    respond = EndpointResponder("chat", config(served))
    if text is not None:
        assert respond("When?", ITEMS, Context(), {}) == text
    else:
        with pytest.raises(ResponderError, match="answered the content"):
            respond("When?", ITEMS, Context(), {})


def test_another_model_takes_its_place_where_it_is_tuned(served: Served) -> None:
    served.answers = [(200, {"choices": [{"message": {"content": "Two days."}}]})] * 2
    for tune in ((), ("model",)):
        EndpointResponder("chat", config(served), tune=tune)("When?", ITEMS, Context(), {"model": "large"})
    assert [body["model"] for _, body, _ in served.asked] == ["chat", "large"]


@pytest.mark.parametrize("tune", ["temperature", 5, None, [5], ("messages",), b"model"])
def test_what_are_no_names_to_tune_is_refused(tune: Any, served: Served) -> None:  # noqa: ANN401
    with pytest.raises(ConfigError, match="tune"):
        EndpointResponder("chat", config(served), tune=tune)


@pytest.mark.parametrize("answer", [{}, {"choices": []}, {"choices": [{}]}, b"no", b"[" * 100_000])
def test_what_is_no_completion_is_said(answer: object, served: Served) -> None:
    served.answers = [(200, answer)]
    with pytest.raises(ResponderError, match="answered"):
        EndpointResponder("chat", config(served))("When?", ITEMS, Context(), {})


def test_without_a_responder_the_best_item_answers() -> None:
    assert best_items("?", ITEMS, Context(), {}) == "Parcels take two days."
    assert best_items("?", ITEMS[1:], Context(), {}) == "8"
    assert best_items("?", [], Context(), {}) == ""
