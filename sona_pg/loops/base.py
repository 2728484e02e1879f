"""The base LoRA's part of loop B: what the instant tier has learned becomes part of a base, trained on a sample of all.

A cycle merges the adapters of the instant tier into the base, trains that on judged lists, new ones and earlier ones,
and asks the gate, by events that nothing was learned from, whether the candidate loses against what answers. What is
published answers from the next statement on; what came meanwhile is learned on top of it.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sona_pg.config import BaseTrainingConfig, GateConfig
from sona_pg.errors import DatabaseBusy, DatabaseUnavailable, SonaError
from sona_pg.kernels import LowRank
from sona_pg.learning.base_trainer import TrainedBase, train_base
from sona_pg.learning.gate import Decision, Verdict, compare, decide, relation_of
from sona_pg.learning.item_pool import ItemPool
from sona_pg.learning.judged_list import JudgedList, reservoir_hash
from sona_pg.learning.learner import Learned, Learner
from sona_pg.learning.merging import merge
from sona_pg.learning.serving import Serving
from sona_pg.loops.cycle import Cycle
from sona_pg.store import spaces
from sona_pg.store.base import BaseState, BaseTransaction, base_reader
from sona_pg.store.connection import Connection
from sona_pg.store.ledger import TAUGHT, judged_events, read_ledger
from sona_pg.store.runs import Facts
from sona_pg.types import FloatVector

_READ_AT_ONCE = 500
"""Trajectories that are read at once."""

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
    new, withheld
        Trajectories of the hour that were learned, and those that wait to be judged by.
    lists
        Judged lists of the hour, of what was withheld, and of earlier ones, by trajectory; of those that are there.
    """

    state: BaseState
    learner: Learner | None
    new: Sequence[uuid.UUID] = ()
    withheld: Sequence[uuid.UUID] = ()
    lists: Mapping[uuid.UUID, JudgedList] | None = None


@dataclass(frozen=True, slots=True)
class _Made:
    """What a cycle has come to."""

    found: _Found
    candidate: LowRank | None = None
    trained: TrainedBase | None = None
    merge_error: float = 0.0
    decision: Decision | None = None


class BasePhase:
    """The phase that makes a base, and publishes it if it does not lose.

    Parameters
    ----------
    training, gate
        Settings; the rank is at most the dimension of the space.
    """

    name = "base"

    def __init__(self, training: BaseTrainingConfig, gate: GateConfig) -> None:
        self._training, self._gate = training, gate

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
            wanted = [*dict.fromkeys([*state.reservoir, *_sample(new, self._training.reservoir), *withheld])]
            lists: dict[uuid.UUID, JudgedList] = {}
            for start in range(0, len(wanted), _READ_AT_ONCE):
                lists |= _judged_lists(connection, cycle, learner, wanted[start : start + _READ_AT_ONCE])
                cycle.check_stop()
        return _Found(state, learner, new, withheld, lists)

    def compute(self, found: _Found, cycle: Cycle) -> _Made:
        """A candidate, and what the gate says of it."""
        learner, lists = found.learner, found.lists
        if learner is None or not lists:
            return _Made(found)
        rank = min(self._training.rank, learner.dim)
        config = replace(self._training, rank=rank)
        withheld = set(found.withheld)
        hour = [lists[id] for id in found.new if id in lists]
        judged = [lists[id] for id in found.withheld if id in lists]
        taught = [one for id, one in lists.items() if id not in withheld]
        queries = np.stack([one.query for one in hour or taught or judged])
        merged, error = merge([learner.adapter.map, learner.micro], rank, queries=queries)
        trained = train_base(
            merged,
            taught,
            items=learner.pool.embeddings,
            config=config,
            recipe=learner.adapter.config,
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
        return _Made(found, trained.map, trained, error, decide(relation, differences, self._gate))

    def write(self, connection: Connection, made: _Made, cycle: Cycle) -> Facts:
        """Publish, or keep what answers; and note down how far the ledger is taken in."""
        found, decision = made.found, made.decision
        if found.learner is None or decision is None or made.candidate is None:
            return {"base": "kept", "base_reason": "nothing was learned from items yet"}
        transaction = BaseTransaction(connection, cycle.run, found.state, cycle.config.lock_timeout_seconds)
        has_judged = decision.verdict not in _UNDECIDED
        is_noise = decision.verdict is Verdict.UNRELATED
        # What was judged by is learned from the next cycle on, like all that an hour brought that means something.
        known = [*found.new, *(found.withheld if has_judged else ())]
        sample = _sample({*found.state.reservoir, *(() if is_noise else known)}, self._training.reservoir)
        transaction.advance(sample, b"", has_judged=has_judged)
        version = None
        current = _current(found.learner, transaction)
        if decision.publishes:
            rebased = _rebased(current, made.candidate)
            _catch_up(connection, cycle, rebased, found.state.head.ordinal)
            rebased.withheld_share = self._gate.withheld
            version = _write(transaction, rebased, decision)
        elif current.withheld_share != self._gate.withheld:
            current.withheld_share = self._gate.withheld
            _write(transaction, current, None)
        assert made.trained is not None
        return {
            "base": "kept" if version is None else "published",
            "base_reason": decision.verdict.value,
            "base_version": version,
            "lists": made.trained.lists,
            "withheld": decision.withheld,
            "log_rank_gain": round(decision.log_rank, 6),
            "ndcg_gain": round(decision.ndcg, 6),
            "merge_error": round(made.merge_error, 6),
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


def _judged_lists(
    connection: Connection, cycle: Cycle, learner: Learner, ids: Sequence[uuid.UUID]
) -> dict[uuid.UUID, JudgedList]:
    events = judged_events(connection, cycle.space, ids)
    shown = (step for event in events for step in event.trajectory.steps if not step.activations.size)
    items = {step.item_id for step in shown if step.item_id is not None}
    embeddings = _embeddings(connection, cycle, learner.pool, items)
    found = {event.trajectory.id: learner.judged_list(event, embeddings.get) for event in events}
    return {id: judged for id, judged in found.items() if judged is not None and judged.teaches}


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
