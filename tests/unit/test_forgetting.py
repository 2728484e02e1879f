"""Forgetting: what comes too late, and what a ledger gives once more."""

from __future__ import annotations

import hashlib
import uuid
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from sona_pg.ids import new_trajectory_id, time_of
from sona_pg.learning.edges import EdgeWeights, edge_updates
from sona_pg.learning.forgetting import Replay, digest_of, is_before
from sona_pg.learning.learner import Learner
from sona_pg.learning.outcome import OutcomeEvent
from sona_pg.types import TrajectoryBuilder

MOMENT = datetime(2024, 2, 29, 12, 0, 0, 500_000, tzinfo=UTC)


def _id_of(moment: datetime) -> uuid.UUID:
    milliseconds = int(moment.timestamp() * 1000)
    return uuid.UUID(int=new_trajectory_id().int & (1 << 80) - 1 | milliseconds << 80)


def test_an_id_says_when_it_was_made() -> None:
    before = datetime.now(UTC)
    made = time_of(new_trajectory_id())
    assert made is not None
    assert before - timedelta(milliseconds=1) <= made <= datetime.now(UTC)
    assert time_of(_id_of(MOMENT)) == MOMENT


@pytest.mark.parametrize(
    "id",
    [uuid.UUID(int=7), uuid.uuid4(), uuid.UUID("ffffffff-ffff-7fff-bfff-ffffffffffff")],
    ids=["small", "random", "last"],
)
def test_other_ids_say_nothing(id: uuid.UUID) -> None:
    assert time_of(id) is None


@pytest.mark.parametrize("later", [-1, 0, 1])
def test_an_answer_is_older_than_a_moment_by_its_id_and_else_by_when_it_was_received(later: int) -> None:
    at = MOMENT + timedelta(milliseconds=later)
    assert is_before(_id_of(at), MOMENT, None) == (later < 0)
    assert is_before(_id_of(at), MOMENT, MOMENT - timedelta(days=1)) == (later < 0)
    assert is_before(uuid.uuid4(), MOMENT, at) == (later < 0)
    assert not is_before(uuid.uuid4(), MOMENT, None)


def test_a_digest_is_of_the_space_and_the_user() -> None:
    key = uuid.UUID(int=1)
    assert digest_of(key, "ü") == hashlib.sha256(bytes(15) + b"\x01" + "ü".encode()).digest()
    assert len({digest_of(k, u) for k in (key, uuid.UUID(int=2)) for u in ("a", "b")}) == 4


def test_a_replay_is_what_a_learner_and_its_edges_were() -> None:
    numbers = np.random.default_rng(3)
    learner, edges, replay = Learner(8), EdgeWeights(0.05), Replay(Learner(8), 0.05)
    for event in range(20):
        builder = TrajectoryBuilder(event, numbers.standard_normal(8))
        for item in numbers.choice(6, 3, replace=False):
            builder.add_step(
                numbers.standard_normal(8), None, float(numbers.integers(2)), item_id=str(item), position=1
            )
        outcome = OutcomeEvent(builder.build())
        learned = learner.learn(outcome)
        edges.update(edge_updates(outcome))
        edges.commit()
        replay.learn(outcome, "something else" if event == 4 else learned, {})
    assert replay.learner.to_bytes() == learner.to_bytes()
    assert replay.edges
    assert {edge: edges.weight(*edge) for edge in replay.edges} == replay.edges
    assert len(edges) == len(replay.edges)
    assert list(replay.became) == [(uuid.UUID(int=4), 0)]
    assert replay.entries == 20
