"""Events of several users, spaces that learn them, and all that such a space holds."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from acceptance.weighing import weighed
from numpy.typing import NDArray
from psycopg import sql

from sona_pg import SonaEngine, SpaceConfig, StoreConfig, StrategyConfig
from sona_pg.config import EvidenceConfig
from sona_pg.ids import new_trajectory_id
from sona_pg.learning.lift import CONTROL, LEARNED, LiftTest, is_control
from sona_pg.store.connection import Connection
from sona_pg.store.database import Database
from sona_pg.types import Answer, QueryTrajectory, TrajectoryBuilder, TrajectoryStep
from sona_pg.worker import InstantWorker

from .conftest import DIM

QUESTIONS, EVENTS, SHARE = 12, 400, 0.3
USERS = ("ann", "bob", "cid", "dan", "eve")

Matrix = NDArray[np.float32]


class Stream:
    """Events of several users, of every kind, the same whoever is left out."""

    def __init__(self, embeddings: Matrix, events: int = EVENTS) -> None:
        rng = np.random.default_rng(5)
        self._embeddings = embeddings
        self._topics = rng.standard_normal((QUESTIONS, DIM))
        near = embeddings @ self._topics.T
        self._answers = [int(np.argsort(-near[:, q])[rng.integers(1, 8)]) for q in range(QUESTIONS)]
        self.ids = [new_trajectory_id() for _ in range(events)]

    def user(self, event: int) -> str:
        return USERS[event // 3 % len(USERS)]

    def play(self, engine: SonaEngine, worker: InstantWorker, connection: Connection, without: str = "") -> None:
        """Record all events but those of a user, in the same transactions whether they are left out or not."""
        for event in range(len(self.ids)):
            if self.user(event) != without:
                self._record(engine, connection, event)
            if event % 5 == 4:
                for late in range(event - 24, event - 19):
                    if late >= 0 and self.user(late) != without:
                        self._score(engine, connection, late)
                engine.instant.flush_updates()
                while worker.step():
                    pass
            if event % 40 == 39:
                engine.flush()
        engine.flush()

    def _query(self, event: int) -> tuple[Matrix, str, list[str]]:
        question = event % QUESTIONS
        noise = np.random.default_rng(event).standard_normal(DIM)
        query = (self._topics[question] + 0.3 * noise).astype(np.float32)
        shown = [str(item) for item in np.argsort(-self._embeddings @ query)[:5]]
        return query, str(self._answers[question]), shown

    def _record(self, engine: SonaEngine, connection: Connection, event: int) -> None:
        id, user, kind = self.ids[event], self.user(event), event % 10
        query, answer, shown = self._query(event)
        control = is_control(id, SHARE)
        how = Answer(CONTROL if control else LEARNED, 0, "frozen" if control else "fusion", SHARE if control else 0.7)
        if kind == 8:  # steps that are no items teach the micro-LoRA
            builder = TrajectoryBuilder(id, query)
            for reward in (1.0, 0.25, 0.0):
                builder.add_step(np.random.default_rng(1000 + event).standard_normal(DIM), [0.5], reward)
            engine.record(builder, user_id=user)
            return
        rewards: dict[str, float | None] = {answer: 1.0, shown[1]: 0.5 if event % 7 == 0 else None}
        if kind in (3, 6):  # what helped is said later
            rewards = {shown[0]: 0.5 if kind == 3 else None}
        elif kind == 9:
            rewards = dict.fromkeys(shown, 0.0)
        if kind == 1:  # by SQL
            connection.execute(
                "SELECT sona.record(%s, %s, %s, %s, trajectory_id => %s, user_id => %s, arm => %s, propensity => %s)",
                (engine.space.name, query, shown, [rewards.get(item) for item in shown], id, user)
                + (how.arm, how.propensity),
            )
            return
        empty = np.zeros(0, dtype=np.float32)
        steps = [
            TrajectoryStep(empty, empty, rewards.get(item), 0.0, item, place)
            for place, item in enumerate(shown, start=1)
        ]
        steps += [
            TrajectoryStep(empty, empty, reward, 0.0, item, None)
            for item, reward in rewards.items()
            if item not in shown
        ]
        quality = 0.5 if event % 20 == 6 else None
        engine.record(QueryTrajectory(id, query, tuple(steps), quality, 0, user, f"session of {user}", {}, how))
        if kind == 3:
            engine.score(id, 1.0, answer, score_id=f"{event} beside")

    def _score(self, engine: SonaEngine, connection: Connection, event: int) -> None:
        id, kind = self.ids[event], event % 10
        _, answer, shown = self._query(event)
        if kind == 3:
            engine.score(id, 0.0, shown[0], score_id=f"{event} correction")
        elif kind == 6:
            engine.score(id, 0.75, answer, name="thumb", score_id=f"{event} late")
        elif kind == 1:
            connection.execute(
                "SELECT sona.score(%s, 1, %s, 'click', %s, %s)", (id, shown[2], f"{event} click", engine.space.name)
            )


@pytest.fixture
def open_space(url: str, items: tuple[str, Matrix]) -> Iterator[Callable[[str], SonaEngine]]:
    """Opens spaces over the items; the engines are closed at the end."""
    made: list[SonaEngine] = []

    def make(name: str) -> SonaEngine:
        engine = SonaEngine.connect(
            url,
            space=name,
            dim=DIM,
            background=False,
            space_config=SpaceConfig(control_share=SHARE),
            store=StoreConfig(publish_every_events=50, replay_batch=64),
            evidence=EvidenceConfig(batch=7),
        )
        engine.set_items(items[0], "id", "embedding")
        made.append(engine)
        return engine

    yield make
    for engine in made:
        engine.close()


@pytest.fixture
def worker(url: str) -> Iterator[InstantWorker]:
    made = InstantWorker(Database(url, StoreConfig(publish_every_events=50)))
    yield made
    assert made.failing == []
    made.close()


LEARNED_ROWS = {
    "learner": "SELECT events, ordinal, state, restored FROM sona.learner WHERE space_id = %s",
    "served_row": "SELECT tier, ordinal, down, up FROM sona.served_row WHERE space_id = %s ORDER BY 1, 2",
    "memory_edge": "SELECT kind, source, target, weight FROM sona.memory_edge WHERE space_id = %s ORDER BY 1, 2, 3",
    "learning_event": "SELECT ordinal, loop, trajectory_id, revision, learned FROM sona.learning_event"
    " WHERE space_id = %s ORDER BY 1",
    "trajectory": "SELECT trajectory_id, query, quality, user_id, session_id, metadata, arm, version, strategy,"
    " propensity FROM sona.trajectory WHERE space_id = %s ORDER BY 1",
    "trajectory_step": "SELECT trajectory_id, ordinal, item_id, position, reward, attention, activation"
    " FROM sona.trajectory_step WHERE space_id = %s ORDER BY 1, 2",
    "score": "SELECT score_id, trajectory_id, item_id, name, value, revision FROM sona.score WHERE space_id = %s"
    " ORDER BY 1",
    "pending_trajectory": "SELECT trajectory_id FROM sona.pending_trajectory WHERE space_id = %s ORDER BY 1",
    "answer_outcome": "SELECT trajectory_id, ordinal, arm, strategy, version, propensity, value, contrast, gain"
    " FROM sona.answer_outcome WHERE space_id = %s ORDER BY 1",
    "evidence": "SELECT evidence, suspected_share, restored FROM sona.strategist WHERE space_id = %s",
}
"""Beside what the strategist writes, all that a space holds but times and what numbers through."""


def _learned(connection: Connection, engine: SonaEngine) -> dict[str, Any]:
    key = (engine.space.space_id,)
    found: dict[str, Any] = {
        table: [
            [value.tobytes() if isinstance(value, np.ndarray) else value for value in row]
            for row in connection.execute(statement, key, binary=True)  # type: ignore[arg-type]
        ]
        for table, statement in LEARNED_ROWS.items()
    }
    (data,) = connection.execute("SELECT lift FROM sona.strategist WHERE space_id = %s", key).fetchall()[0]
    if data is not None:
        lift = LiftTest(StrategyConfig())
        lift.load_bytes(bytes(data))
        # Its key is the epoch, which says how often something was deployed or forgotten.
        found["lift"] = {name: part.tobytes() for name, part in lift._state().items() if name != "key"}
    return found | weighed(connection, engine.space)


def _some(engine: SonaEngine, users: str, rng: np.random.Generator) -> list[uuid.UUID]:
    """An event of every user, with a late score, each in a transaction of its own."""
    ids = []
    for user in users.split():
        query = rng.standard_normal(DIM).astype(np.float32)
        id = engine.record(query, ["1", "2", "3"], [1.0, 0.5, None], user_id=user)
        engine.score(id, 1.0, "3", score_id=f"score of {id}")
        engine.flush()
        ids.append(id)
    return ids


def _everything(connection: Connection, space_id: int) -> dict[str, list[str]]:
    """All rows of a space, of every table, as text."""
    tables = connection.execute(
        "SELECT c.relname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'space_id'"
        " WHERE c.relnamespace = 'sona'::regnamespace AND c.relkind IN ('r', 'p') ORDER BY 1"
    ).fetchall()
    statement = sql.SQL("SELECT t::text FROM {} t WHERE space_id = %s ORDER BY 1")
    return {
        table: [
            row
            for (row,) in connection.execute(statement.format(sql.Identifier("sona", table)), (space_id,)).fetchall()
        ]
        for (table,) in tables
    }
