"""Texts in, answers out, through a real database: what is answered, what is recorded, and what fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from sona_pg import EmbeddingConfig, LearningMode, SonaConfig, SonaEngine, SpaceConfig
from sona_pg.config import BackgroundConfig
from sona_pg.errors import (
    ConfigError,
    DatabaseBusy,
    EmbedderError,
    EmbedderMismatch,
    InvalidInput,
    ResponderError,
)
from sona_pg.loops.background import background_loop
from sona_pg.store.connection import Connection
from sona_pg.text.embedders import FunctionEmbedder, HashingEmbedder
from sona_pg.text.responders import Context, Item

from .cycles import run_cycle

PASSAGES = {
    "parcel": "A parcel takes two days.",
    "password": "Reset your password by the link in the mail.",
    "invoice": "Invoices are sent on the first of the month.",
    "opening": "The shop opens at nine.",
}
EMBEDDER = HashingEmbedder(256)


@pytest.fixture
def items(connection: Connection, space_name: str) -> Iterator[str]:
    table = f"passages_{abs(hash(space_name)) % 10**9}"
    connection.execute(f"CREATE TABLE {table} (id text PRIMARY KEY, body text, embedding vector(256))")
    for (id, text), row in zip(PASSAGES.items(), EMBEDDER.embed(list(PASSAGES.values())), strict=True):
        connection.execute(f"INSERT INTO {table} VALUES (%s, %s, %s)", (id, text, row))
    yield table
    connection.execute(f"DROP TABLE {table}")


@pytest.fixture
def connect(url: str, space_name: str, items: str) -> Iterator[Callable[..., SonaEngine]]:
    made: list[SonaEngine] = []

    def make(**settings: Any) -> SonaEngine:  # noqa: ANN401
        given = {"embedder": EMBEDDER, "text_column": "body", "background": False, **settings}
        engine = SonaEngine.connect(url, space=space_name, space_config=SpaceConfig(control_share=0.0), **given)
        made.append(engine)
        engine.set_items(items, "id", "embedding")
        return engine

    yield make
    for engine in made:
        engine.close()


def trajectory(connection: Connection, id: object) -> tuple[Any, ...]:
    return connection.execute(
        "SELECT user_id, session_id, metadata, latency_us, quality FROM sona.trajectory WHERE trajectory_id = %s", (id,)
    ).fetchall()[0]


def test_without_a_responder_the_best_item_answers(connect: Callable[..., SonaEngine], connection: Connection) -> None:
    engine = connect()
    assert engine.space.dim == 256
    found = engine.process("how do I reset my password", Context("ann", "s1", {"channel": "web"}), k=2)
    assert found.text == PASSAGES["password"]
    assert (found.items[0].item_id, len(found.items)) == ("password", 2)
    assert (found.confidence, found.patterns_used, found.parameters) == (0.0, 0, {})
    assert found.latency_us > 0
    engine.flush()
    assert trajectory(connection, found.trajectory_id) == ("ann", "s1", {"channel": "web"}, found.latency_us, None)
    # Nothing is learned before somebody has judged.
    assert engine.metrics.learned == 0
    engine.score(found.trajectory_id, 1.0, "password")
    engine.flush()
    assert engine.metrics.learned == 1


def test_without_a_column_of_texts_items_answer_by_their_ids(connect: Callable[..., SonaEngine]) -> None:
    assert connect(text_column=None).process("reset the password").text == "password"


def test_a_responder_is_given_texts_and_context(connect: Callable[..., SonaEngine]) -> None:
    asked: list[tuple[Any, ...]] = []

    def respond(query: str, items: Sequence[Item], context: Context, parameters: Any) -> str:  # noqa: ANN401
        asked.append((query, [item.text for item in items], context.user_id, dict(parameters)))
        return f"{len(items)} items"

    engine = connect(responder=respond)
    assert engine.process("a parcel", Context("ann"), k=1).text == "1 items"
    assert asked == [("a parcel", [PASSAGES["parcel"]], "ann", {})]


@pytest.mark.parametrize("failing", [RuntimeError("out of tokens"), ResponderError("out of tokens"), 5])
def test_what_a_responder_fails_at_is_kept(
    failing: object, connect: Callable[..., SonaEngine], connection: Connection
) -> None:
    def respond(*_: object) -> Any:  # noqa: ANN401
        if isinstance(failing, Exception):
            raise failing
        return failing

    engine = connect(responder=respond)
    with pytest.raises(ResponderError, match="out of tokens" if isinstance(failing, Exception) else "a int"):
        engine.process("a parcel", Context("ann", metadata={"channel": "web"}))
    engine.flush()
    ((metadata,),) = connection.execute(
        "SELECT metadata FROM sona.trajectory JOIN sona.space USING (space_id) WHERE name = %s", (engine.space.name,)
    ).fetchall()
    assert metadata["channel"] == "web"
    assert "responder" in metadata["failure"] or "out of tokens" in metadata["failure"]


@pytest.mark.parametrize("message", ["x\0y", "x" * 2_000_000, "a lone \ud800"])
def test_a_failure_is_kept_whatever_its_message(
    message: str, connect: Callable[..., SonaEngine], connection: Connection
) -> None:
    def respond(*_: object) -> str:
        raise RuntimeError(message)

    engine = connect(responder=respond)
    with pytest.raises(ResponderError, match="RuntimeError"):
        engine.process("a parcel")
    engine.flush()
    ((failure,),) = connection.execute(
        "SELECT metadata ->> 'failure' FROM sona.trajectory JOIN sona.space USING (space_id) WHERE name = %s",
        (engine.space.name,),
    ).fetchall()
    assert failure.startswith("the responder failed: RuntimeError: ")


@pytest.mark.parametrize("context", [Context(user_id=5), Context(session_id="x" * 600), Context(user_id="")])  # type: ignore[arg-type]
def test_a_context_that_cannot_be_kept_is_refused_before_anybody_works(
    context: Context, connect: Callable[..., SonaEngine]
) -> None:
    called: list[object] = []
    engine = connect(responder=lambda *given: called.append(given) or "an answer")
    with pytest.raises(InvalidInput, match=r"(user|session) id"):
        engine.process("a parcel", context)
    assert called == []


def test_what_an_embedder_fails_at_is_not_recorded(connect: Callable[..., SonaEngine], connection: Connection) -> None:
    def embed(texts: Sequence[str]) -> Any:  # noqa: ANN401
        raise TimeoutError("too slow")

    engine = connect(embedder=FunctionEmbedder(embed, 256, EMBEDDER.fingerprint))
    with pytest.raises(EmbedderError, match="TimeoutError: too slow"):
        engine.process("a parcel")
    for text in ("", " ", "x" * 100_001, 5):
        with pytest.raises(InvalidInput, match="text"):
            engine.process(text)  # type: ignore[arg-type]
    engine.flush()
    assert connection.execute(
        "SELECT count(*) FROM sona.trajectory JOIN sona.space USING (space_id) WHERE name = %s", (engine.space.name,)
    ).fetchall() == [(0,)]


def test_another_model_is_refused(connect: Callable[..., SonaEngine]) -> None:
    connect()
    with pytest.raises(EmbedderMismatch):
        connect(embedder=FunctionEmbedder(EMBEDDER.embed, 256, "another"))


def test_what_is_missing_is_said(connect: Callable[..., SonaEngine], url: str) -> None:
    with SonaEngine.connect(url, space="without embedder", dim=8, background=False) as engine:
        engine.record([1.0] * 8, ["1"])
        engine.flush()
        with pytest.raises(ConfigError, match="process needs the embedder of the space"):
            engine.process("a parcel")
    with pytest.raises(InvalidInput, match="no column 'nowhere'"):
        connect(text_column="nowhere").process("a parcel")


@pytest.mark.parametrize("given", [{"responder": lambda *_: "an answer"}, {"text_column": "body"}])
def test_what_is_of_process_means_nothing_beside_a_fingerprint_alone(
    given: dict[str, Any], url: str, connection: Connection
) -> None:
    name = "of a fingerprint"
    of_config = {setting: value for setting, value in given.items() if setting != "responder"}
    config = SonaConfig(database_url=url, space=name, embedding_dim=8, embedder="a model", **of_config)
    with pytest.raises(ConfigError, match="needs an embedder, not its fingerprint alone"):
        SonaEngine(config, responder=given.get("responder"))
    with pytest.raises(ConfigError, match="needs an embedder, not its fingerprint alone"):
        SonaEngine.connect(url, space=name, dim=8, embedder="a model", **given)
    assert connection.execute("SELECT FROM sona.space WHERE name = %s", (name,)).fetchone() is None


def test_a_responder_needs_no_embedder_where_letters_do(url: str, space_name: str) -> None:
    config = SonaConfig(database_url=url, space=space_name, embedding_dim=8, learning_loops=LearningMode.MANUAL)
    with SonaEngine(config, responder=lambda *_: "an answer") as engine:
        assert engine.process("a parcel").text == "an answer"
    with SonaEngine.connect(
        url, space=space_name, responder=lambda *_: "another", embedding=EmbeddingConfig(cache_size=1), background=False
    ) as engine:
        assert engine.process("a parcel").text == "another"


def test_what_has_proven_good_reaches_the_responder(
    connect: Callable[..., SonaEngine], url: str, connection: Connection
) -> None:
    asked: list[dict[str, Any]] = []

    def respond(query: str, items: Sequence[Item], context: Context, parameters: Any) -> str:  # noqa: ANN401
        asked.append(dict(parameters))
        return "an answer"

    engine = connect(responder=respond)
    random = np.random.default_rng(0)
    for i in range(160):
        model = "large" if i % 2 else "small"
        found = engine.process(
            f"{random.choice(['where is', 'I wait for'])} my parcel {i % 7}",
            Context(metadata={"parameters": {"model": model}}),
        )
        engine.score(found.trajectory_id, 0.9 if model == "large" else 0.2)
    engine.flush()
    done = run_cycle(url, engine.space.name, background_loop(BackgroundConfig(minimum=1)))
    assert done.facts["patterns"] > 0
    found = engine.process("where is my parcel 3")
    assert asked[-1] == {"model": "large"} == found.parameters
    assert found.patterns_used > 0
    assert 0 < found.confidence < 0.9
    # What was used is recorded: the next cycle judges it.
    engine.flush()
    assert trajectory(connection, found.trajectory_id)[2] == {"parameters": {"model": "large"}}


# ---- cycles on demand ------------------------------------------------------------------------------------------------


def test_a_hundred_answers_that_were_judged_become_patterns(
    connect: Callable[..., SonaEngine], connection: Connection
) -> None:
    """The first example of the reference."""
    engine = connect()
    skipped = engine.background_learn()
    assert (skipped.state, skipped.patterns_learned) == ("skipped", 0)
    assert "0 of 100" in str(skipped.reason)
    for i in range(100):
        found = engine.process(f"{['where is my parcel', 'reset the password'][i % 2]} {i}")
        engine.score(found.trajectory_id, 1.0, found.items[0].item_id)
    learned = engine.background_learn()
    assert (learned.state, learned.new, learned.trajectories) == ("done", 100, 100)
    assert learned.patterns_learned == learned.patterns > 0
    again = engine.background_learn(minimum=1)
    assert (again.state, again.reason) == ("skipped", "0 of 1 new trajectories with an outcome")
    deep = engine.deep_learn()
    assert deep.state == "done"
    assert deep.dreams_generated > 0
    assert set(deep.facts) >= {"dream", "hierarchy", "integration"}


def test_only_the_own_space_has_a_cycle(connect: Callable[..., SonaEngine], url: str, connection: Connection) -> None:
    engine = connect()
    with SonaEngine.connect(url, space="somebody else's", dim=3, background=False) as other:
        connection.execute("SELECT sona.run_cycle(%s, 'background')", (other.space.name,))
        engine.background_learn()
        assert connection.execute("SELECT state FROM sona.runs WHERE space = %s", (other.space.name,)).fetchall() == [
            ("requested",)
        ]
        connection.execute("SELECT sona.drop_space(%s)", (other.space.name,))


def test_a_cycle_that_a_worker_is_at_is_waited_for(
    connect: Callable[..., SonaEngine], url: str, connection: Connection
) -> None:
    engine = connect()
    connection.execute(
        "SELECT pg_advisory_lock(sona._loop_key(space_id, 'background')) FROM sona.space WHERE name = %s",
        (engine.space.name,),
    )
    try:
        with pytest.raises(DatabaseBusy, match=r"a worker is at the background cycle of space .* for 0\.2 seconds"):
            engine.background_learn(wait_seconds=0.2)
    finally:
        connection.execute("SELECT pg_advisory_unlock_all()")
    assert engine.background_learn().state == "skipped"


def test_settings_of_a_loop_are_given_once(connect: Callable[..., SonaEngine]) -> None:
    with pytest.raises(ConfigError, match="minimum"):
        connect().background_learn(background_loop(), minimum=5)
