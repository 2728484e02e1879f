"""The base LoRA's part of loop B: what the instant tier has learned becomes part of a base, trained on a sample of all.

A cycle merges the adapters of the instant tier into the base, trains that on judged lists, new ones and earlier ones,
and asks the gate, by events that nothing was learned from, whether the candidate loses against what answers. What is
published answers from the next statement on; what came meanwhile is learned on top of it.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sona_pg.config import InstantLoopConfig, QueryAdapterConfig
from sona_pg.errors import DatabaseBusy, DatabaseUnavailable, LearningError, SonaError
from sona_pg.learning.base_cycle import (
    Answered,
    BaseConfig,
    Candidate,
    Hour,
    make_candidate,
    next_offered,
    next_owed,
    next_reservoir,
    replayed_share,
)
from sona_pg.learning.base_tasks import MOST_TASKS, Traffic
from sona_pg.learning.item_pool import ItemPool
from sona_pg.learning.judged_list import reservoir_sample
from sona_pg.learning.learner import Learned, Learner
from sona_pg.learning.outcome import OutcomeEvent, worth_of
from sona_pg.learning.packing import pack, unpack
from sona_pg.loops.cycle import Cycle
from sona_pg.store import spaces
from sona_pg.store.base import BaseState, BaseTransaction, Sample, base_reader
from sona_pg.store.connection import Connection
from sona_pg.store.ledger import TAUGHT, judged_events, read_ledger
from sona_pg.store.runs import Facts
from sona_pg.store.spaces import Space
from sona_pg.types import FloatVector

log = logging.getLogger("sona_pg")

_READ_AT_ONCE = 500
"""Trajectories that are read at once."""

_STATE_FORMAT = 1

_NOTHING: Facts = {"base": "kept", "base_reason": "nothing was learned from items yet"}


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
        Trajectories that were learned since the last cycle, and those that wait to be judged by: a sample of each, from
        which that of all can be made.
    owed
        Trajectories that have judged and that no base has learned.
    hour
        Of all of them that are there, and of earlier ones, what was judged.
    offered
        How many of all that are new, and of all that are withheld, are lists that were not offered to the reservoir.
    gone
        Of those that were looked for, what there is nothing left to learn from: retention has deleted it.
    refused
        Why some of the tasks that are remembered cannot be used.
    """

    state: BaseState
    learner: Learner | None = None
    new: Collection[uuid.UUID] = ()
    withheld: Collection[uuid.UUID] = ()
    owed: Collection[uuid.UUID] = ()
    hour: Hour | None = None
    offered: tuple[int, int] = (0, 0)
    gone: Collection[uuid.UUID] = ()
    refused: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class _Made:
    """What it has come to; no candidate where nothing was learned from items yet."""

    found: _Found
    candidate: Candidate | None


class BasePhase:
    """The phase that makes a base, and publishes it if it does not lose.

    Parameters
    ----------
    config
        Settings.
    """

    def __init__(self, config: BaseConfig) -> None:
        self._config = config

    def must_release(self, connection: Connection, cycle: Cycle) -> bool:
        """Whether something is withheld by which nothing will be judged: that is learned, however little is new."""
        if self._config.gate.withheld:
            return False
        space = cycle.space
        settings = spaces.claim_settings(connection, space, None, None)
        with base_reader(connection, space) as reader:
            state = reader.state()
            if reader.owed(state) or reader.unjudged(state, 1).ordinals:
                return True
            learner = _learner(connection, space, state, *settings)
        return learner is not None and learner.withheld_share > 0

    def read(self, connection: Connection, cycle: Cycle) -> _Found:
        """Judged lists: a sample of the hour, of earlier ones, and all that was withheld."""
        space = cycle.space
        settings = spaces.claim_settings(connection, space, None, None)
        with base_reader(connection, space) as reader:
            state = reader.state()
            learner = _learner(connection, space, state, *settings)
            if learner is None:
                return _Found(state)
            traffic = self._traffic(state, space)
            reservoir, size = self._config.training.reservoir, self._config.training.lists_of(space.dim)
            new = reader.trajectories(state.consumed, state.head.ordinal, Learned.ADAPTER, reservoir)
            withheld = reader.unjudged(state, reservoir)
            if not self._config.gate.withheld:
                # Nothing is judged any more: what waited for that is learned like everything.
                new, withheld = _joined(new, withheld), Sample({}, 0)
            owed = reader.owed(state)
            held = reader.ordinals(state.reservoir)
            earlier = {**_few(held, size), **_few({id: held[id] for id in owed}, size)}
            tasks, refused = reader.tasks(state.head.epoch)
            next_task = reader.next_task()
            for problem in refused:
                log.error("space %r: %s", space.name, problem)
            looked = [_few(sample.ordinals, size) for sample in (new, withheld)]
            answered, gone = _answered(connection, cycle, learner, {**earlier, **looked[0], **looked[1]})
        hour = Hour(
            learner.adapter.base,
            [learner.adapter.map, learner.micro],
            learner.pool,
            learner.adapter.config,
            [answered[id] for id in looked[0] if id in answered],
            [answered[id] for id in earlier if id in answered and id not in looked[0]],
            [answered[id] for id in looked[1] if id in answered],
            tasks,
            traffic,
            replayed_share(sum(id in answered for id in earlier), state.offered),
            state.consumed,
            next_task,
        )
        offered = (_lists(new, looked[0], answered), _lists(withheld, looked[1], answered))
        return _Found(state, learner, list(new.ordinals), list(withheld.ordinals), owed, hour, offered, gone, refused)

    def _traffic(self, state: BaseState, space: Space) -> Traffic:
        """The task at hand; a new one, where what is stored cannot be used."""
        traffic = Traffic(space.dim, self._config.boundary)
        if state.state:
            before: Mapping[str, NDArray[np.generic]] = {}
            try:
                before = unpack(state.state, _header(space.dim), "base")
                traffic.load_state(before)
            except LearningError as error:
                log.error("space %r: its traffic is watched anew: %s", space.name, error)
                traffic.begin_anew(state.consumed, before)
        return traffic

    def compute(self, found: _Found, cycle: Cycle) -> _Made:
        """A candidate, and what the gate says of it."""
        if found.hour is None:
            return _Made(found, None)
        # A cycle that is run again, by another worker, comes to the same.
        seed = found.state.head.ordinal
        made = make_candidate(found.hour, self._config, seed=seed, on_progress=lambda taken, total: cycle.check_stop())
        return _Made(found, made)

    def write(self, connection: Connection, made: _Made, cycle: Cycle) -> Facts:
        """Publish, or keep what answers; and note down how far the ledger is taken in."""
        found, candidate, learner = made.found, made.candidate, made.found.learner
        share = self._config.gate.withheld
        if learner is None or (candidate is None and share):
            return _NOTHING
        transaction = BaseTransaction(connection, cycle.run, found.state)
        current = _current(learner, transaction)
        # Before it is noted down as learned.
        taught = 0 if share else _teach_waiting(connection, cycle, transaction, current)
        if candidate is None:
            self._advance(transaction, found, None, learner.dim)
            return {**_NOTHING, "taught": taught}
        decision, strength = candidate.decision, self._config.strength(candidate.traffic)
        self._advance(transaction, found, candidate, learner.dim)
        transaction.write_tasks(candidate.ended, strength, MOST_TASKS)
        version = None
        if decision.publishes:
            transaction.publish_before("before another base", current.to_bytes(), current.adapter.map)
            rebased = learner.on_base(candidate.trained.map)
            _catch_up(connection, cycle, rebased, found.state.head.ordinal)
            rebased.withheld_share = share
            cause = f"base: {decision.log_rank:+.4f} in log rank on {decision.withheld} withheld events"
            version = transaction.publish(cause, _write(transaction, rebased), rebased.adapter.map)
        elif current.withheld_share != share:
            current.withheld_share = share
            _write(transaction, current)
        return {
            "base": "kept" if version is None else "published",
            "base_reason": decision.verdict.value,
            "base_version": version,
            "taught": taught,
            "lists": candidate.trained.lists,
            "withheld": decision.withheld,
            "log_rank_gain": round(decision.log_rank, 6),
            "ndcg_gain": round(decision.ndcg, 6),
            "merge_error": round(candidate.merge_error, 6),
            "tasks_ended": len(candidate.ended),
            "tasks_held": candidate.held,
            "tasks_refused": list(found.refused),
            "ewc_lambda": round(strength, 3),
        }

    def _advance(self, transaction: BaseTransaction, found: _Found, candidate: Candidate | None, dim: int) -> None:
        """Note down what was taken in, what is kept of it, and what is still to be learned."""
        state, training, head = found.state, self._config.training, transaction.learner.head.ordinal
        assert found.hour is not None
        traffic = pack(_header(dim), found.hour.traffic.state())
        if candidate is None:
            # There is nothing in all of it that teaches.
            transaction.advance(state.reservoir, traffic, judged=head, learned=head, offered=state.offered)
            return
        decision = candidate.decision
        new, withheld, owed, held = (
            [id for id in ids if id not in found.gone]
            for ids in (found.new, found.withheld, found.owed, state.reservoir)
        )
        reservoir = next_reservoir(held, new, withheld, decision, training.reservoir)
        judged, learned = state.judged, state.learned
        if self._config.gate.withheld:
            owed = next_owed(owed, withheld, decision, training.lists_of(dim))
            if decision.publishes:
                learned = judged
            if decision.has_judged:
                judged = state.head.ordinal
            if not owed:
                learned = judged
        else:
            owed, judged, learned = [], head, head
        transaction.advance(
            list(dict.fromkeys([*reservoir, *owed])),
            traffic,
            judged=judged,
            learned=learned,
            offered=next_offered(state.offered, *found.offered, decision),
        )


def _learner(
    connection: Connection, space: Space, state: BaseState, instant: InstantLoopConfig, adapter: QueryAdapterConfig
) -> Learner | None:
    """What answers; None before anything was learned."""
    if state.learner is None:
        return None
    pool = ItemPool(*spaces.item_sample(connection, space))
    learner = Learner(space.dim, pool, adapter=adapter, instant=instant, space=space.config)
    learner.load_bytes(state.learner)
    return learner


def _teach_waiting(connection: Connection, cycle: Cycle, transaction: BaseTransaction, current: Learner) -> int:
    """Learn at once all that is withheld, where nothing is to be judged by it any more; how much that was.

    A version is published of it, since whoever replays the ledger knows nothing of that.
    """
    waiting = transaction.waiting()
    if not waiting and not current.withheld_share:
        return 0
    current.withheld_share, taught = 0.0, 0
    for start in range(0, len(waiting), _READ_AT_ONCE):
        events = judged_events(connection, cycle.space, waiting[start : start + _READ_AT_ONCE])
        embeddings = _embeddings(connection, cycle, current.pool, _items(events))
        taught += sum(current.learn(event, embeddings.get) in TAUGHT for event in events)
    state = _write(transaction, current)
    if taught:
        transaction.publish(f"{taught} withheld events learned: nothing is withheld now", state, current.adapter.map)
    return taught


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


def _write(transaction: BaseTransaction, learner: Learner) -> bytes:
    """Replace what answers; the state that was written."""
    state = learner.to_bytes()
    served = {"adapter": learner.adapter.map, "micro": learner.micro}
    transaction.write_learner(state, served, learner.events)
    return state


def _few(ordinals: Mapping[uuid.UUID, int], size: int) -> dict[uuid.UUID, int]:
    """A sample of trajectories with their ledger entries, in the order in which they are given."""
    kept = set(reservoir_sample(ordinals, size))
    return {id: at for id, at in ordinals.items() if id in kept}


def _joined(one: Sample, other: Sample) -> Sample:
    """A sample of both."""
    both = sorted({**one.ordinals, **other.ordinals}.items(), key=lambda entry: entry[1])
    return Sample(dict(both), one.fresh + other.fresh)


def _lists(sample: Sample, looked: Collection[uuid.UUID], answered: Collection[uuid.UUID]) -> int:
    """In how many of all something helped that is known; an estimate, where not all were looked at."""
    return round(sample.fresh * sum(id in answered for id in looked) / max(len(looked), 1))


def _header(dim: int) -> dict[str, int]:
    """Of the state of the traffic."""
    return {"format": _STATE_FORMAT, "dim": dim}


def _answered(
    connection: Connection, cycle: Cycle, learner: Learner, ordinals: Mapping[uuid.UUID, int]
) -> tuple[dict[uuid.UUID, Answered], set[uuid.UUID]]:
    """What was judged in trajectories in which something helped; and of which there is nothing left."""
    wanted, found, gone = list(ordinals), {}, set(ordinals)
    for start in range(0, len(wanted), _READ_AT_ONCE):
        events = judged_events(connection, cycle.space, wanted[start : start + _READ_AT_ONCE])
        embeddings = _embeddings(connection, cycle, learner.pool, _items(events))
        for event in events:
            judged = learner.judged_list(event, embeddings.get)
            if judged is None:
                continue
            id, worth = event.trajectory.id, worth_of(event.trajectory, cycle.space.config)
            gone.discard(id)
            if judged.teaches:
                found[id] = Answered(ordinals[id], judged, worth or 0.0)
        cycle.check_stop()
    return found, gone


def _items(events: Sequence[OutcomeEvent]) -> set[str]:
    """Those that are known by their ids alone."""
    shown = (step for event in events for step in event.trajectory.steps if not step.activations.size)
    return {step.item_id for step in shown if step.item_id is not None}


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
