"""The base LoRA's part of loop B: what the instant tier has learned becomes part of a base, trained on a sample of all.

A cycle merges the adapters of the instant tier into the base, trains that on judged lists, new ones and earlier ones,
and asks the gate, by events that nothing was learned from, whether the candidate loses against what answers. What is
published answers from the next statement on; what came meanwhile is learned on top of it.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from sona_pg.config import BaseTrainingConfig, BoundaryConfig, EwcConfig, GateConfig
from sona_pg.errors import DatabaseBusy, DatabaseUnavailable, SonaError
from sona_pg.kernels import LowRank
from sona_pg.learning.base_tasks import (
    BaseTask,
    TaskConstraint,
    Traffic,
    learned_task,
    met_again,
    recognised,
    signature_of,
)
from sona_pg.learning.base_trainer import TrainedBase, fixed_form, train_base
from sona_pg.learning.gate import Decision, Verdict, compare, decide, relation_of
from sona_pg.learning.item_pool import ItemPool
from sona_pg.learning.judged_list import JudgedList, helpful_items, reservoir_hash
from sona_pg.learning.learner import Learned, Learner
from sona_pg.learning.merging import merge
from sona_pg.learning.outcome import worth_of
from sona_pg.learning.packing import pack, unpack
from sona_pg.learning.serving import Serving
from sona_pg.loops.cycle import Cycle
from sona_pg.store import spaces
from sona_pg.store.base import BaseState, BaseTransaction, base_reader
from sona_pg.store.connection import Connection
from sona_pg.store.ledger import TAUGHT, judged_events, read_ledger
from sona_pg.store.runs import Facts
from sona_pg.types import FloatVector

log = logging.getLogger("sona_pg")

_READ_AT_ONCE = 500
"""Trajectories that are read at once."""

_MOST_TASKS = 100
"""Tasks that are remembered; the penalty is made of the latest `EwcConfig.max_tasks`, the others are known again."""

_STATE_FORMAT = 1

_UNDECIDED = (Verdict.NOTHING_WITHHELD, Verdict.TOO_FEW)
"""What is withheld goes on waiting: nothing was decided by it."""


@dataclass(frozen=True, slots=True)
class _Found:
    """What a cycle begins with.

    Parameters
    ----------
    state
        How far the base is.
    learner
        What answers; None before anything was learned.
    new, withheld, earlier
        Trajectories of the hour that were learned, those that wait to be judged by, and those that are learned again,
        each with the last ledger entry of it.
    lists, worth
        Judged lists of all of them, by trajectory, and what the answers were worth; of those that are there.
    tasks, refused
        What is remembered of earlier ones, and why some of it cannot be used.
    """

    state: BaseState
    learner: Learner | None
    new: Mapping[uuid.UUID, int] = field(default_factory=dict)
    withheld: Mapping[uuid.UUID, int] = field(default_factory=dict)
    earlier: Mapping[uuid.UUID, int] = field(default_factory=dict)
    lists: Mapping[uuid.UUID, JudgedList] = field(default_factory=dict)
    worth: Mapping[uuid.UUID, float] = field(default_factory=dict)
    tasks: Sequence[BaseTask] = ()
    refused: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class _Made:
    """What a cycle has come to.

    Parameters
    ----------
    found
        What it began with.
    trained
        The candidate.
    merge_error
        What the merged tiers differ by from what they were merged of, relative to what they do.
    decision
        Of the gate.
    traffic
        The task at hand.
    ended
        Tasks that have ended meanwhile.
    held
        Tasks that the candidate was kept from leaving.
    """

    found: _Found
    trained: TrainedBase
    merge_error: float
    decision: Decision
    traffic: Traffic
    ended: Sequence[BaseTask]
    held: int


class BasePhase:
    """The phase that makes a base, and publishes it if it does not lose.

    Parameters
    ----------
    training, gate, ewc, boundary
        Settings; the rank is at most the dimension of the space.
    """

    def __init__(
        self, training: BaseTrainingConfig, gate: GateConfig, ewc: EwcConfig, boundary: BoundaryConfig
    ) -> None:
        self._training, self._gate, self._ewc, self._boundary = training, gate, ewc, boundary

    def read(self, connection: Connection, cycle: Cycle) -> _Found:
        """Judged lists: a sample of the hour, of earlier ones, and all that was withheld."""
        space = cycle.space
        instant, adapter = spaces.claim_settings(connection, space, None, None)
        with base_reader(connection, space) as reader:
            state = reader.state()
            if state.learner is None:
                return _Found(state, None)
            pool = ItemPool(*spaces.item_sample(connection, space))
            learner = Learner(space.dim, pool, adapter=adapter, instant=instant, space=space.config)
            learner.load_bytes(state.learner)
            until = state.head.ordinal
            new = reader.trajectories(state.consumed, until, Learned.ADAPTER)
            withheld = reader.trajectories(state.judged, until, Learned.WITHHELD)
            earlier, tasks = reader.ordinals(state.reservoir), reader.tasks()
            for problem in tasks[1]:
                log.error("space %r: %s", space.name, problem)
            wanted = [*dict.fromkeys([*state.reservoir, *_sample(new, self._training.reservoir), *withheld])]
            lists: dict[uuid.UUID, JudgedList] = {}
            worth: dict[uuid.UUID, float] = {}
            for start in range(0, len(wanted), _READ_AT_ONCE):
                _read_lists(connection, cycle, learner, wanted[start : start + _READ_AT_ONCE], lists, worth)
                cycle.check_stop()
        return _Found(state, learner, new, withheld, earlier, lists, worth, *tasks)

    def compute(self, found: _Found, cycle: Cycle) -> _Made | None:
        """A candidate, and what the gate says of it; None where nothing was learned from items yet."""
        learner, lists = found.learner, found.lists
        if learner is None or not lists:
            return None
        rank = min(self._training.rank, learner.dim)
        config = replace(self._training, rank=rank)
        hour = [lists[id] for id in found.new if id in lists]
        judged = [lists[id] for id in found.withheld if id in lists]
        taught = [one for id, one in lists.items() if id not in found.withheld]
        queries = np.stack([one.query for one in hour or taught or judged])
        merged, error = merge([learner.adapter.map, learner.micro], rank, queries=queries)
        traffic, ended = self._tasks(found, learner, merged)
        constraint = self._constraint(found, traffic, ended, fixed_form(merged, rank, learner.pool.embeddings))
        trained = train_base(
            merged,
            taught,
            items=learner.pool.embeddings,
            config=config,
            recipe=learner.adapter.config,
            constraint=constraint,
            # A cycle that is run again, by another worker, comes to the same.
            seed=found.state.head.ordinal,
            on_progress=lambda taken, total: cycle.check_stop(),
        )
        base, candidate = learner.adapter.base, Serving([trained.map])
        relation = relation_of(
            [*hour, *judged],
            None if base is None else Serving([base]).adapt,
            withheld=judged,
            candidate=candidate.adapt,
        )
        differences = compare(judged, learner.serving().adapt, candidate.adapt, learner.pool)
        decision = decide(relation, differences, self._gate)
        held = 0
        if constraint is not None:
            held = constraint.ewc.task_count
            if decision.publishes:
                traffic.strength = constraint.strength_after(trained.map.weights)
        return _Made(found, trained, error, decision, traffic, ended, held)

    def _tasks(self, found: _Found, learner: Learner, merged: LowRank) -> tuple[Traffic, list[BaseTask]]:
        """The task at hand after the queries of the hour, and those that ended in it."""
        traffic = Traffic(learner.dim, self._boundary)
        if found.state.state:
            traffic.load_state(unpack(found.state.state, _header(learner.dim), "base"))
        # What answered while the task was at hand; before there is a base, what has come of it.
        base, rank = learner.adapter.base, min(self._training.rank, learner.dim)
        served = merged if base is None else merge([base], rank)[0]
        ended: list[BaseTask] = []
        for id, ordinal in found.new.items():
            began = traffic.since
            if id not in found.lists or not traffic.observe(found.lists[id].query, ordinal):
                continue
            own = [i for i, at in {**found.earlier, **found.new}.items() if began <= at < ordinal and i in found.lists]
            lists = [found.lists[i] for i in own]
            quality = float(np.mean([found.worth[i] for i in own])) if own else 0.0
            known = helpful_items(lists, learner.adapter.config.pool_size, learner.dim)
            tasks = [*found.tasks, *ended]
            new_id = 1 + max((task.id for task in tasks), default=0)
            task = learned_task(served, lists, quality, known, learner.adapter.config, new_id)
            if task is None:
                continue
            again = recognised(tasks, task.signature, self._ewc.same_task)
            ended.append(task if again is None else met_again(again, task))
        return traffic, ended

    def _constraint(
        self, found: _Found, traffic: Traffic, ended: Sequence[BaseTask], weights: NDArray[np.float32]
    ) -> TaskConstraint | None:
        """What holds the candidate where tasks other than the one at hand need it."""
        tasks = list({task.id: task for task in (*found.tasks, *ended)}.values())
        if not tasks:
            return None
        own = [found.lists[id].query for id, at in found.new.items() if at >= traffic.since and id in found.lists]
        here = recognised(tasks, signature_of(own), self._ewc.same_task) if own else None
        others = [task for task in tasks if task is not here]
        strength = traffic.strength or self._ewc.initial_lambda
        return TaskConstraint(weights, others, self._ewc, strength) if others else None

    def write(self, connection: Connection, made: _Made | None, cycle: Cycle) -> Facts:
        """Publish, or keep what answers; and note down how far the ledger is taken in."""
        if made is None:
            return {"base": "kept", "base_reason": "nothing was learned from items yet"}
        found, decision, learner = made.found, made.decision, made.found.learner
        assert learner is not None
        transaction = BaseTransaction(connection, cycle.run, found.state, cycle.config.lock_timeout_seconds)
        has_judged = decision.verdict not in _UNDECIDED
        is_noise = decision.verdict is Verdict.UNRELATED
        # What was judged by is learned from the next cycle on, like all that an hour brought that means something.
        known = [*found.new, *(found.withheld if has_judged else ())]
        sample = _sample({*found.state.reservoir, *(() if is_noise else known)}, self._training.reservoir)
        state = pack(_header(learner.dim), made.traffic.state())
        transaction.advance(sample, state, has_judged=has_judged)
        transaction.write_tasks(made.ended, made.traffic.strength or self._ewc.initial_lambda, _MOST_TASKS)
        version = None
        current = _current(learner, transaction)
        if decision.publishes:
            rebased = _rebased(current, made.trained.map)
            _catch_up(connection, cycle, rebased, found.state.head.ordinal)
            rebased.withheld_share = self._gate.withheld
            version = _write(transaction, rebased, decision)
        elif current.withheld_share != self._gate.withheld:
            current.withheld_share = self._gate.withheld
            _write(transaction, current, None)
        return {
            "base": "kept" if version is None else "published",
            "base_reason": decision.verdict.value,
            "base_version": version,
            "lists": made.trained.lists,
            "withheld": decision.withheld,
            "log_rank_gain": round(decision.log_rank, 6),
            "ndcg_gain": round(decision.ndcg, 6),
            "merge_error": round(made.merge_error, 6),
            "tasks_ended": len(made.ended),
            "tasks_held": made.held,
            "tasks_refused": list(found.refused),
            "ewc_lambda": made.traffic.strength or self._ewc.initial_lambda,
        }


def _current(learner: Learner, transaction: BaseTransaction) -> Learner:
    """The learner as it is by now, behind its lock."""
    current = learner.anew(learner.pool)
    state = transaction.learner.state()
    if state is not None:
        current.load_bytes(state)
    return current


def _catch_up(connection: Connection, cycle: Cycle, rebased: Learner, first: int) -> None:
    """Learn on the new base what was learned on the old one from a ledger entry on."""
    while len(batch := read_ledger(connection, cycle.space, first, _READ_AT_ONCE)):
        embeddings = _embeddings(connection, cycle, rebased.pool, batch.items())
        for entry in batch.events():
            if entry.event is not None and entry.learned in TAUGHT:
                rebased.learn(entry.event, embeddings.get)
            first = entry.ordinal + 1


def _write(transaction: BaseTransaction, learner: Learner, decision: Decision | None) -> int | None:
    """Replace what answers, and publish it, if there was a decision; the version's number."""
    state, adapter = learner.to_bytes(), learner.adapter.map
    transaction.write_learner(state, {"adapter": adapter, "micro": learner.micro})
    if decision is None:
        return None
    cause = f"base: {decision.log_rank:+.4f} in log rank on {decision.withheld} withheld events"
    return transaction.publish(cause, state, adapter)


def _sample(ids: Collection[uuid.UUID], size: int) -> list[uuid.UUID]:
    """A uniform sample that depends on the ids alone, and of a sample's sample is the sample of all."""
    return sorted(ids, key=lambda id: (reservoir_hash(id), id.int))[:size]


def _rebased(learner: Learner, base: LowRank) -> Learner:
    """A learner that begins anew on a base which has what this one has learned; counts and baselines go on."""
    rebased = learner.anew(learner.pool)
    rebased.adapter.stand_on(base)
    rebased.micro.baseline, rebased.reward = learner.micro.baseline, learner.reward
    rebased.events, rebased.last = learner.events, learner.last
    return rebased


def _header(dim: int) -> dict[str, int]:
    """Of the state of the traffic."""
    return {"format": _STATE_FORMAT, "dim": dim}


def _read_lists(
    connection: Connection,
    cycle: Cycle,
    learner: Learner,
    ids: Sequence[uuid.UUID],
    lists: dict[uuid.UUID, JudgedList],
    worth: dict[uuid.UUID, float],
) -> None:
    """Judged lists of trajectories, and what the answers were worth, into `lists` and `worth`."""
    events = judged_events(connection, cycle.space, ids)
    shown = (step for event in events for step in event.trajectory.steps if not step.activations.size)
    items = {step.item_id for step in shown if step.item_id is not None}
    embeddings = _embeddings(connection, cycle, learner.pool, items)
    for event in events:
        judged = learner.judged_list(event, embeddings.get)
        if judged is not None and judged.teaches:
            lists[event.trajectory.id] = judged
            worth[event.trajectory.id] = worth_of(event.trajectory, cycle.space.config) or 0.0


def _embeddings(
    connection: Connection, cycle: Cycle, pool: ItemPool, items: Collection[str]
) -> Mapping[str, FloatVector]:
    """Embeddings of items that the pool does not hold."""
    missing = sorted(item for item in items if pool.row(item) is None)
    try:
        return spaces.item_embeddings(connection, cycle.space, missing)
    except (DatabaseUnavailable, DatabaseBusy):
        raise
    except SonaError:
        # The table is gone, or another one: the sample is what there is to learn from.
        return {}
