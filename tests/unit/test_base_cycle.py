"""A cycle of the base, on hours in which tasks come and go."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
import pytest

from sona_pg.config import BaseTrainingConfig, EwcConfig, QueryAdapterConfig
from sona_pg.kernels import LowRank
from sona_pg.learning.base_cycle import (
    Answered,
    BaseConfig,
    Hour,
    _constraint,
    _held_outputs,
    make_candidate,
    next_reservoir,
    replayed_share,
)
from sona_pg.learning.base_memory import BaseMemory
from sona_pg.learning.base_tasks import BaseTask, Traffic
from sona_pg.learning.gate import Decision, Relation, Verdict
from sona_pg.learning.item_pool import ItemPool
from sona_pg.learning.judged_list import JudgedList
from sona_pg.types import FloatVector

from .samples import axis, unit_rows

DIM = 8
HERE, THERE, ELSEWHERE = axis(0, DIM), axis(1, DIM), axis(2, DIM)


class _Traffic(Traffic):
    """That changes at given entries."""

    def __init__(self, changes: Collection[int]) -> None:
        super().__init__(DIM)
        self._changes = changes

    def observe(self, query: FloatVector, ordinal: int) -> bool:
        if ordinal in self._changes:
            self.since = ordinal
        return ordinal in self._changes


def _task(id: int, signature: FloatVector, up: float) -> BaseTask:
    frame = np.eye(2, DIM, dtype=np.float32)
    return BaseTask(id, signature, frame, up * np.ones_like(frame), np.ones_like(frame), 10, 0.5)


def _hour(kinds: Sequence[FloatVector], tasks: Sequence[BaseTask], changes: Collection[int] = ()) -> Hour:
    rng = np.random.default_rng(0)
    pool = ItemPool([f"i{n}" for n in range(20)], unit_rows(rng.standard_normal((20, DIM))))
    answers = []
    for ordinal, query in enumerate(kinds):
        rows = rng.choice(20, 2, replace=False)
        items = tuple(pool.embeddings[row] for row in rows)
        ids = tuple(f"i{row}" for row in rows)
        judged = JudgedList((uuid.UUID(int=ordinal + 1), 0), query, ids, items, (1.0, 0.0), (True, True))
        answers.append(Answered(ordinal, judged, 1.0))
    tiers = [LowRank(DIM, 2)]
    return Hour(None, tiers, pool, QueryAdapterConfig(rank=2), answers, [], [], tasks, _Traffic(changes), replayed=0.0)


def test_a_task_that_ends_twice_in_an_hour_has_come_twice() -> None:
    kinds = [HERE] * 10 + [THERE] * 10 + [HERE] * 10 + [THERE] * 10
    found = make_candidate(_hour(kinds, [_task(7, HERE, 1.0)], (10, 20, 30)), BaseConfig(), seed=1)
    assert found is not None
    assert [(task.id, task.times_met, task.samples) for task in found.ended] == [(7, 2, 20), (8, 1, 10), (7, 3, 30)]


def test_what_ended_last_is_held_though_it_was_known_first() -> None:
    known, again = [_task(1, HERE, 1.0), _task(2, THERE, 2.0)], _task(1, HERE, 3.0)
    config, weights = BaseConfig(ewc=EwcConfig(max_tasks=1)), np.eye(4, DIM, dtype=np.float32)
    made = _constraint(_hour([ELSEWHERE] * 3, known), config, [again], weights)
    assert made is not None
    theta = weights.copy()
    made.ewc.set_lambda(config.ewc.max_lambda)
    made.proximal_step(theta, 1e6)
    assert np.abs(theta[2:, 0] - again.anchor[:, 0]).max() < 1e-2


def test_what_is_replayed_is_not_held_and_the_rest_by_its_share() -> None:
    hour = _hour([ELSEWHERE] * 3, [_task(1, HERE, 1.0)])
    config, weights = BaseConfig(), np.eye(4, DIM, dtype=np.float32)
    held = {share: _constraint(replace(hour, replayed=share), config, [], weights) for share in (0.0, 0.75, 1.0)}
    assert held[1.0] is None
    whole, quarter = held[0.0], held[0.75]
    assert whole is not None
    assert quarter is not None
    assert np.allclose(quarter.ewc.stiffness, 0.25 * whole.ewc.stiffness, rtol=1e-6)
    assert whole.ewc.stiffness.any()


def test_outputs_are_held_at_queries_of_other_tasks_that_were_asked_before_the_one_at_hand() -> None:
    tasks = [_task(1, HERE, 1.0), _task(2, THERE, 2.0), _task(3, ELSEWHERE, 3.0)]
    hour = _hour([HERE, 2 * HERE, THERE, THERE, ELSEWHERE, HERE, THERE, THERE], tasks)
    hour = replace(hour, earlier=hour.new[:6], new=hour.new[6:], replayed=0.75)
    hour.traffic.since = 6
    config = BaseConfig(BaseTrainingConfig(distillation=2.0, distillation_batch=5))
    held = _held_outputs(hour, config, [])
    assert held is not None
    # In the order of the tasks; the one at hand is free to learn, also where it was before.
    assert np.array_equal(held.queries, [HERE, HERE, HERE, ELSEWHERE])
    # Of the frame's two axes, the first is HERE; to ELSEWHERE nothing was added.
    assert np.array_equal(held.outputs, [*[np.ones(DIM)] * 3, np.zeros(DIM)])
    assert (held.weight, held.batch) == (2.0 * 0.25 * 2, 5)


def test_no_outputs_are_held_where_none_are_there_or_all_is_replayed() -> None:
    hour = _hour([HERE] * 3, [_task(1, HERE, 1.0), _task(2, THERE, 1.0)])
    off = BaseConfig(BaseTrainingConfig(distillation=0.0))
    hour.traffic.since = 0
    assert _held_outputs(hour, BaseConfig(), []) is None
    asked = replace(hour, earlier=_hour([THERE] * 3, []).new, new=[])
    asked.traffic.since = 3
    assert _held_outputs(asked, BaseConfig(), []) is not None
    assert _held_outputs(asked, off, []) is None
    assert _held_outputs(replace(asked, replayed=1.0), BaseConfig(), []) is None
    assert _held_outputs(replace(asked, tasks=[]), BaseConfig(), []) is None


def test_a_candidate_answers_an_earlier_task_more_as_it_was_answered() -> None:
    task = _task(1, THERE, 1.0)
    hour = _hour([HERE] * 30, [task])
    earlier = [one._replace(ordinal=-1) for one in _hour([THERE] * 3, []).new]
    off = {}
    for weight in (0.0, 100.0):
        config = BaseConfig(BaseTrainingConfig(learning_rate=1e-2, distillation=weight))
        made = make_candidate(replace(hour, earlier=earlier, traffic=_Traffic(())), config, seed=1)
        assert made is not None
        query = THERE[np.newaxis].copy()
        answered = -task.outputs(query)
        made.trained.map.forward_batch(query, answered)
        off[weight] = float(np.linalg.norm(answered))
    assert off[100.0] < 0.5 * off[0.0]


def test_a_reservoir_replays_everything_until_it_is_full() -> None:
    assert replayed_share(9, 10, 1000) == 1.0
    assert replayed_share(10, 10, 1000) == 0.01
    # Where there is room for fewer than are kept, no more are replayed.
    assert replayed_share(400, 10, 1000) == 0.01
    assert replayed_share(10, 10, 0) == 1.0


def _decision(verdict: Verdict) -> Decision:
    return Decision(verdict, Relation(20, 0.0, None), 5, 0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("verdict", "new", "withheld"),
    [
        (Verdict.PUBLISH, True, True),
        (Verdict.LOSES, True, True),
        (Verdict.TOO_FEW, True, False),
        (Verdict.NOTHING_WITHHELD, True, False),
        (Verdict.UNRELATED, False, False),
    ],
)
def test_what_is_learned_again_goes_by_what_was_decided(verdict: Verdict, new: bool, withheld: bool) -> None:
    held, fresh, waiting = ([uuid.UUID(int=100 * part + n) for n in range(5)] for part in (1, 2, 3))
    kept = next_reservoir(held, fresh, waiting, _decision(verdict), 100)
    assert set(kept) == {*held, *(fresh if new else ()), *(waiting if withheld else ())}
    assert next_reservoir(held, fresh, waiting, _decision(verdict), 3) == kept[:3]


def test_memory_lets_what_was_judged_by_be_learned_once() -> None:
    memory = BaseMemory(DIM, BaseConfig(training=BaseTrainingConfig(reservoir=2)))
    answers = {one.judged.key[0]: one for one in _hour([HERE] * 40, []).new}
    ids = list(answers)
    new, waiting = {id: answers[id] for id in ids[:30]}, {id: answers[id] for id in ids[30:]}
    memory.withheld = dict(waiting)

    def begins() -> Hour:
        return memory.hour({}, None, [LowRank(DIM, 2)], ItemPool.empty(DIM), QueryAdapterConfig(rank=2))

    made = make_candidate(memory.hour(new, None, [LowRank(DIM, 2)], _hour([HERE], []).pool, QueryAdapterConfig(rank=2)),
                          BaseConfig(), seed=1)  # fmt: skip
    assert made is not None
    alone = memory.copy()
    memory.keep(new, replace(made, decision=_decision(Verdict.PUBLISH)))
    assert (len(memory.reservoir), memory.withheld) == (2, {})
    assert {one.judged.key[0] for one in begins().earlier} == {*memory.reservoir, *waiting}
    assert begins().replayed == pytest.approx(2 / 30)
    memory.keep({}, replace(made, decision=_decision(Verdict.PUBLISH)))
    assert {one.judged.key[0] for one in begins().earlier} == set(memory.reservoir)
    # A copy goes on alone; and what noise has left is not learned.
    alone.keep(new, replace(made, decision=_decision(Verdict.UNRELATED)))
    assert (alone.reservoir, alone.withheld) == ({}, {})
    assert alone.hour({}, None, [LowRank(DIM, 2)], ItemPool.empty(DIM), QueryAdapterConfig(rank=2)).earlier == []
