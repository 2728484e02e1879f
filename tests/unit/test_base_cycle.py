"""A cycle of the base, on hours in which tasks come and go."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
import pytest

from sona_pg.config import BaseTrainingConfig, EwcConfig, QueryAdapterConfig
from sona_pg.errors import ConfigError
from sona_pg.kernels import LowRank
from sona_pg.learning import base_cycle
from sona_pg.learning.base_cycle import (
    Answered,
    BaseConfig,
    Hour,
    _constraint,
    _held_outputs,
    _note_task_at_hand,
    make_candidate,
    next_offered,
    next_owed,
    next_reservoir,
    replayed_share,
)
from sona_pg.learning.base_memory import Answers, BaseMemory
from sona_pg.learning.base_tasks import MOST_TASKS, BaseTask, Traffic
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


def _base() -> LowRank:
    """That has learned something."""
    made = LowRank(DIM, 2)
    made.load(0.1 * np.random.default_rng(7).standard_normal((4, DIM)))
    return made


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
    tiers = [_base()]
    return Hour(None, tiers, pool, QueryAdapterConfig(rank=2), answers, [], [], tasks, _Traffic(changes), replayed=0.0)


def test_a_task_that_ends_twice_in_an_hour_has_come_twice() -> None:
    kinds = [HERE] * 10 + [THERE] * 10 + [HERE] * 10 + [THERE] * 10
    found = make_candidate(_hour(kinds, [_task(7, HERE, 1.0)], (10, 20, 30)), BaseConfig(), seed=1)
    assert found is not None
    assert [(task.id, task.times_met, task.samples) for task in found.ended] == [(7, 2, 20), (8, 1, 10), (7, 3, 30)]


def test_what_ended_last_is_held_though_it_was_known_first() -> None:
    known, again = [_task(1, HERE, 1.0), _task(2, THERE, 2.0)], _task(1, HERE, 3.0)
    config, weights = BaseConfig(ewc=EwcConfig(max_tasks=1)), np.eye(4, DIM, dtype=np.float32)
    hour = _hour([ELSEWHERE] * 3, known)
    _note_task_at_hand(hour, config, [again])
    made = _constraint(hour, config, [again], weights)
    assert made is not None
    theta = weights.copy()
    made.ewc.set_lambda(config.ewc.max_lambda)
    made.proximal_step(theta, 1e6)
    assert np.abs(theta[2:, 0] - again.anchor[:, 0]).max() < 1e-2


def test_what_is_replayed_is_not_held_and_the_rest_by_its_share() -> None:
    hour = _hour([ELSEWHERE] * 3, [_task(1, HERE, 1.0)])
    config, weights = BaseConfig(), np.eye(4, DIM, dtype=np.float32)
    _note_task_at_hand(hour, config, [])
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
    _note_task_at_hand(hour, config, [])
    held = _held_outputs(hour, config, [])
    assert held is not None
    # In the order of the tasks; the one at hand is free to learn, also where it was before.
    assert np.array_equal(held.queries, [HERE, HERE, HERE, ELSEWHERE])
    # Of the frame's two axes, the first is HERE; to ELSEWHERE nothing was added.
    assert np.array_equal(held.outputs, [*[np.ones(DIM)] * 3, np.zeros(DIM)])
    assert (list(held.counts), held.weight, held.batch) == ([3, 1], 2.0 * 0.25, 5)


def test_no_outputs_are_held_where_none_are_there_or_all_is_replayed() -> None:
    hour = _hour([HERE] * 3, [_task(1, HERE, 1.0), _task(2, THERE, 1.0)])
    off = BaseConfig(BaseTrainingConfig(distillation=0.0))
    hour.traffic.since = 0
    _note_task_at_hand(hour, BaseConfig(), [])
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


def test_what_is_replayed_is_a_share_of_what_was_ever_offered() -> None:
    assert replayed_share(0, 0) == 1.0
    assert replayed_share(10, 10) == 1.0
    assert replayed_share(10, 1000) == 0.01
    # Retention has deleted them, or there is room for a few: a reservoir that is not full does not replay all.
    assert replayed_share(0, 1000) == 0.0
    # What judges is learned before it is counted by chance.
    assert replayed_share(12, 10) == 1.0


@pytest.mark.parametrize(
    ("verdict", "offered"),
    [
        (Verdict.PUBLISH, 115),
        (Verdict.LOSES, 115),
        (Verdict.TOO_FEW, 110),
        (Verdict.NOTHING_WITHHELD, 110),
        (Verdict.UNRELATED, 100),
    ],
)
def test_offered_is_what_the_reservoir_may_take(verdict: Verdict, offered: int) -> None:
    assert next_offered(100, 10, 5, _decision(verdict)) == offered


@pytest.mark.parametrize(
    ("verdict", "owed", "withheld"),
    [
        (Verdict.PUBLISH, False, True),
        (Verdict.LOSES, True, True),
        (Verdict.TOO_FEW, True, False),
        (Verdict.NOTHING_WITHHELD, True, False),
        (Verdict.UNRELATED, True, False),
    ],
)
def test_what_has_judged_is_owed_until_it_is_published(verdict: Verdict, owed: bool, withheld: bool) -> None:
    before, waiting = ([uuid.UUID(int=100 * part + n) for n in range(5)] for part in (1, 2))
    kept = next_owed(before, waiting, _decision(verdict), 100)
    assert set(kept) == {*(before if owed else ()), *(waiting if withheld else ())}
    assert next_owed(before, waiting, _decision(verdict), 3) == kept[:3]


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


class _Memory(BaseMemory):
    """Goes through hours whose decisions are given."""

    def __init__(self, reservoir: int = 100) -> None:
        super().__init__(DIM, BaseConfig(training=BaseTrainingConfig(reservoir=reservoir)))
        self._made = make_candidate(_hour([HERE] * 3, []), BaseConfig(), seed=1)

    def begin(self, new: Answers | None = None) -> Hour:
        return self.hour(new or {}, None, [_base()], ItemPool.empty(DIM), QueryAdapterConfig(rank=2))

    def cycle(self, verdict: Verdict, new: Answers | None = None, ended: Sequence[BaseTask] = ()) -> None:
        assert self._made is not None
        self.keep(new or {}, replace(self._made, decision=_decision(verdict), ended=ended))

    def earlier(self) -> set[uuid.UUID]:
        return _ids(self.begin().earlier)


def _ids(answers: Sequence[Answered]) -> set[uuid.UUID]:
    return {one.judged.key[0] for one in answers}


def _answers(first: int, last: int) -> Answers:
    return {one.judged.key[0]: one for one in _hour([HERE] * last, []).new[first:]}


def test_memory_teaches_what_has_judged_until_it_is_published() -> None:
    memory, waiting = _Memory(reservoir=10), _answers(30, 40)
    memory.withhold(waiting)
    memory.cycle(Verdict.PUBLISH, _answers(0, 30))
    assert (len(memory.reservoir), memory.withheld) == (10, {})
    assert memory.earlier() == {*memory.reservoir, *waiting}
    # Three cycles that leave nothing behind, and one that does.
    for verdict in (Verdict.UNRELATED, Verdict.NOTHING_WITHHELD, Verdict.LOSES, Verdict.PUBLISH):
        assert set(waiting) <= memory.earlier()
        memory.cycle(verdict)
    assert memory.earlier() == set(memory.reservoir)


def test_memory_learns_nothing_of_noise() -> None:
    memory = _Memory()
    memory.withhold(_answers(30, 40))
    memory.cycle(Verdict.UNRELATED, _answers(0, 30))
    assert (memory.earlier(), memory.withheld, memory.begin().replayed) == (set(), {}, 1.0)


def test_memory_knows_what_share_of_all_it_replays() -> None:
    memory = _Memory(reservoir=10)
    assert memory.begin().replayed == 1.0
    memory.withhold(_answers(30, 40))
    memory.cycle(Verdict.PUBLISH, _answers(0, 30))
    assert memory.begin().replayed == len(memory.earlier()) / 40
    # What is judged once more is no news, and noise is not learned.
    memory.cycle(Verdict.PUBLISH, _answers(0, 20))
    memory.cycle(Verdict.UNRELATED, _answers(40, 60))
    assert memory.begin().replayed == 10 / 40
    memory.cycle(Verdict.TOO_FEW, _answers(40, 60))
    assert memory.begin().replayed == 10 / 60


def test_in_memory_nothing_judges_twice() -> None:
    memory, waiting = _Memory(reservoir=12), _answers(0, 10)
    memory.withhold(waiting)
    assert _ids(memory.begin().withheld) == set(waiting)
    memory.cycle(Verdict.LOSES)
    more = {id: answer._replace(worth=0.25, ordinal=answer.ordinal + 50) for id, answer in waiting.items()}
    memory.withhold(more)
    hour = memory.begin()
    assert hour.withheld == []
    # But it is learned as it is known by now, and was asked when it was.
    assert {(one.worth, one.ordinal) for one in hour.earlier} == {(0.25, n) for n in range(10)}


def test_memory_is_bounded() -> None:
    memory = _Memory(reservoir=10)
    memory.withhold(_answers(0, 30))
    hour = memory.begin(_answers(30, 60))
    assert (len(hour.new), len(hour.withheld)) == (10, 10)
    for _ in range(3):
        memory.cycle(Verdict.LOSES, _answers(30, 60), [_task(id, HERE, 1.0) for id in range(1, 2 * MOST_TASKS)])
        memory.withhold(_answers(60, 100))
    assert (len(memory.reservoir), len(memory.owed), len(memory.withheld)) == (10, 10, 10)
    assert [task.id for task in memory.tasks] == list(range(MOST_TASKS, 2 * MOST_TASKS))
    # Where vectors take more memory, there are fewer.
    wide = BaseMemory(DIM, BaseConfig(training=BaseTrainingConfig(max_vector_bytes=1 << 20)))
    wide.withhold(_answers(0, 3000))
    assert len(wide.withheld) == (1 << 20) // (4 * DIM * (10 * 3 + 2 * 2))


def test_a_copy_of_a_memory_goes_on_alone() -> None:
    memory = _Memory()
    memory.withhold(_answers(30, 40))
    alone = memory.copy()
    memory.cycle(Verdict.PUBLISH, _answers(0, 30))
    assert (alone.earlier(), len(alone.withheld), alone.begin().replayed) == (set(), 10, 1.0)
    alone.withhold(_answers(0, 40))
    assert len(alone.withheld) == 40


def test_what_is_judged_once_more_is_no_news_of_the_traffic() -> None:
    memory = _Memory()
    seen: list[int] = []
    memory.traffic.observe = lambda query, ordinal: bool(seen.append(ordinal))  # type: ignore[method-assign]
    first = _answers(0, 20)
    make_candidate(memory.begin(first), BaseConfig(), seed=1)
    memory.cycle(Verdict.PUBLISH, first)
    late = {id: answer._replace(ordinal=answer.ordinal + 20) for id, answer in first.items()}
    fresh = {id: answer._replace(ordinal=answer.ordinal + 20) for id, answer in _answers(20, 30).items()}
    hour = memory.begin({**late, **fresh})
    make_candidate(hour, BaseConfig(), seed=1)
    assert seen == [*range(20), *range(40, 50)]
    assert [one.ordinal for one in hour.new] == [*range(20), *range(40, 50)]


def test_the_task_at_hand_is_not_held_against_itself_in_an_hour_in_which_nothing_is_asked() -> None:
    tasks = [_task(1, HERE, 1.0), _task(2, THERE, 2.0)]
    config, weights = BaseConfig(), np.eye(4, DIM, dtype=np.float32)

    def held(hour: Hour) -> list[float]:
        _note_task_at_hand(hour, config, [])
        made = _constraint(hour, config, [], weights)
        return [] if made is None else [float(task.anchor[0]) for task in made.ewc.tasks]

    asked = _hour([HERE] * 3, tasks)
    others = held(asked)
    assert len(others) == 1
    traffic = asked.traffic
    assert traffic.here == 1
    # Nothing was asked; what is withheld, or learned again, tells as well.
    assert held(replace(asked, new=[])) == others
    traffic.since, traffic.here = 0, 0
    for part in ("earlier", "withheld"):
        traffic.here = 0
        assert held(replace(asked, new=[], **{part: asked.new})) == others  # type: ignore[arg-type]
    # It is another one from the alarm on.
    other = _hour([THERE] * 3, tasks)
    assert held(replace(other, traffic=traffic)) != others
    assert traffic.here == 2


def test_what_another_base_needed_is_known_again_and_not_held() -> None:
    undone = replace(_task(1, HERE, 1.0), is_held=False)
    config, weights = BaseConfig(), np.eye(4, DIM, dtype=np.float32)
    hour = _hour([THERE] * 3, [undone])
    _note_task_at_hand(hour, config, [])
    assert _constraint(hour, config, [], weights) is None
    found = make_candidate(_hour([HERE] * 10 + [THERE] * 10, [undone], (10,)), config, seed=1)
    assert found is not None
    (again,) = found.ended
    assert (again.id, again.times_met, again.samples, again.is_held) == (1, 2, 10, True)
    assert again.fisher.shape != undone.fisher.shape or not np.array_equal(again.fisher, undone.fisher)
    assert found.held == 1


def test_an_id_that_was_given_is_not_given_again() -> None:
    hour = replace(_hour([HERE] * 10 + [THERE] * 10, [], (10,)), next_task=8)
    found = make_candidate(hour, BaseConfig(), seed=1)
    assert found is not None
    assert [task.id for task in found.ended] == [8]


def test_the_strength_is_adapted_where_a_candidate_is_published(monkeypatch: pytest.MonkeyPatch) -> None:
    hour = _hour([ELSEWHERE] * 30, [_task(1, HERE, 1.0)])
    strengths = {}
    for verdict in (Verdict.PUBLISH, Verdict.LOSES):
        monkeypatch.setattr(base_cycle, "decide", lambda *_, verdict=verdict: _decision(verdict))
        traffic = _Traffic(())
        assert make_candidate(replace(hour, traffic=traffic), BaseConfig(), seed=1) is not None
        strengths[verdict] = traffic.strength
    # The task wants ones everywhere, and the base has hardly anything there.
    assert strengths[Verdict.PUBLISH] > EwcConfig().initial_lambda
    assert strengths[Verdict.LOSES] == 0.0


def test_a_task_that_ends_before_anything_answers_needs_what_is_published_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    zero = replace(_hour([HERE] * 20 + [THERE] * 20, [], (20,)), tiers=[LowRank(DIM, 2)])
    for verdict, count in ((Verdict.PUBLISH, 1), (Verdict.LOSES, 0)):
        monkeypatch.setattr(base_cycle, "decide", lambda *_, verdict=verdict: _decision(verdict))
        found = make_candidate(replace(zero, traffic=_Traffic((20,))), BaseConfig(), seed=1)
        assert found is not None
        assert len(found.ended) == count
        for task in found.ended:
            assert task.samples == 20
            assert task.fisher.any()
            assert np.array_equal(task.anchor, found.trained.map.weights[found.trained.map.rank :])


@pytest.mark.parametrize(
    "given",
    [
        {"param_count": 5},
        {"fisher_ema_decay": 0.5},
        {"fisher_kind": "exact"},
        {"anchors": "latest"},
        {"learning_rate": 1.0},
        {"sparsity": 1.0},
        {"project_gradients": True},
        {"max_tasks": MOST_TASKS + 1},
    ],
)
def test_settings_that_mean_nothing_to_a_base_are_refused(given: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(given))):
        BaseConfig(ewc=EwcConfig(**given))  # type: ignore[arg-type]
    BaseConfig(ewc=EwcConfig(initial_lambda=5.0, max_tasks=MOST_TASKS, tolerated_loss=0.1, same_task=0.5))
