"""A cycle of the base: from the tiers that answer, and what was judged, to a candidate and what the gate says of it."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sona_pg.config import BaseTrainingConfig, BoundaryConfig, EwcConfig, GateConfig, QueryAdapterConfig
from sona_pg.errors import ConfigError
from sona_pg.kernels import LowRank, unit
from sona_pg.learning.base_tasks import (
    MOST_TASKS,
    BaseTask,
    TaskConstraint,
    Traffic,
    learned_task,
    met_again,
    recognised,
    signature_of,
)
from sona_pg.learning.base_trainer import TrainedBase, fixed_form, train_base
from sona_pg.learning.gate import Decision, compare, decide, relation_of
from sona_pg.learning.held_outputs import HeldOutputs
from sona_pg.learning.item_pool import ItemPool
from sona_pg.learning.judged_list import JudgedList, helpful_items, reservoir_sample
from sona_pg.learning.merging import merge
from sona_pg.learning.serving import Serving

_MEANINGLESS = {
    "param_count": "rank and dimension of the base say it",
    "fisher_ema_decay": "the Fisher information of a task is the plain mean over its lists",
    "fisher_kind": "the Fisher information of a task is that of the outcomes that there were",
    "anchors": "every task is held where it ended, in a frame of its own",
    "learning_rate": "steps are as long as BaseTrainingConfig has them",
    "sparsity": "what is not learned falls to 0 by BaseTrainingConfig.decay",
    "project_gradients": "the penalty is a step of its own, after that of the gradient",
}
"""Settings of `EwcConfig` that a cycle does not read, and why."""


class Answered(NamedTuple):
    """An answer that was judged.

    Parameters
    ----------
    ordinal
        Its place in the order in which answers were judged; the first one, where that was done more than once.
    judged
        Its judged list.
    worth
        What it was worth, 0 to 1.
    """

    ordinal: int
    judged: JudgedList
    worth: float


@dataclass(frozen=True, slots=True)
class BaseConfig:
    """Settings of a cycle of the base; the rank is at most the dimension.

    Parameters
    ----------
    training, gate, ewc, boundary
        Of its parts.

    Raises
    ------
    ConfigError
        If a setting of `EwcConfig` means nothing to a base, or is beyond what one can have.
    """

    training: BaseTrainingConfig = field(default_factory=BaseTrainingConfig)
    gate: GateConfig = field(default_factory=GateConfig)
    ewc: EwcConfig = field(default_factory=EwcConfig)
    boundary: BoundaryConfig = field(default_factory=BoundaryConfig)

    def __post_init__(self) -> None:
        default = EwcConfig()
        for name, why in _MEANINGLESS.items():
            given, expected = getattr(self.ewc, name), getattr(default, name)
            if given != expected:
                raise ConfigError(f"{name} of a base's EwcConfig is {given!r}, expected {expected!r}: {why}")
        if self.ewc.max_tasks > MOST_TASKS:
            raise ConfigError(f"max_tasks of a base's EwcConfig is {self.ewc.max_tasks}, expected at most {MOST_TASKS}")

    def strength(self, traffic: Traffic) -> float:
        """λ of what is held, as it was adapted last."""
        return traffic.strength or self.ewc.initial_lambda


@dataclass(frozen=True, slots=True)
class Hour:
    """What a cycle begins with.

    Parameters
    ----------
    base
        What the instant tier stands on; None before the first.
    tiers
        All that answers, as maps of the query; their sum is served.
    pool
        Sample of the items.
    recipe
        Of the query adapter.
    new, earlier, withheld
        Answers that were learned since the last cycle, in order; those that are learned again; and those that nothing
        was learned from, to judge by.
    tasks
        Remembered ones.
    traffic
        The task at hand; goes on with the cycle.
    replayed
        See `replayed_share`: what is replayed need not be held.
    watched
        Answers before this ordinal have passed the detector of changes: what is said of them late is learned, and is
        no news of the traffic.
    next_task
        Least id of a task that has never been there.
    """

    base: LowRank | None
    tiers: Sequence[LowRank]
    pool: ItemPool
    recipe: QueryAdapterConfig
    new: Sequence[Answered]
    earlier: Sequence[Answered]
    withheld: Sequence[Answered]
    tasks: Sequence[BaseTask]
    traffic: Traffic
    replayed: float = 1.0
    watched: int = 0
    next_task: int = 1


@dataclass(frozen=True, slots=True)
class Candidate:
    """What a cycle has come to.

    Parameters
    ----------
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

    trained: TrainedBase
    merge_error: float
    decision: Decision
    traffic: Traffic
    ended: Sequence[BaseTask]
    held: int


def next_reservoir(
    held: Iterable[uuid.UUID],
    new: Iterable[uuid.UUID],
    withheld: Iterable[uuid.UUID],
    decision: Decision,
    size: int,
) -> list[uuid.UUID]:
    """Trajectories that are learned again from now on: of an hour that is noise none, of what has judged all may be."""
    if decision.is_noise:
        new = withheld = ()
    return reservoir_sample({*held, *new, *(withheld if decision.has_judged else ())}, size)


def next_owed(
    owed: Iterable[uuid.UUID], withheld: Iterable[uuid.UUID], decision: Decision, size: int
) -> list[uuid.UUID]:
    """Trajectories that have judged and are yet to be learned: in every cycle, until one of them is published.

    Then they are learned again by chance, like all. What has judged now was no part of this candidate.
    """
    judged = withheld if decision.has_judged and not decision.is_noise else ()
    return reservoir_sample({*(() if decision.publishes else owed), *judged}, size)


def next_offered(offered: int, new: int, withheld: int, decision: Decision) -> int:
    """How many lists were ever offered to the reservoir, each once: as `next_reservoir` takes them.

    Parameters
    ----------
    offered
        Before the cycle.
    new, withheld
        How many were not offered before.
    """
    if decision.is_noise:
        return offered
    return offered + new + (withheld if decision.has_judged else 0)


def replayed_share(replayed: int, offered: int) -> float:
    """Share of the lists that were ever offered to the reservoir that a cycle learns again; 1 before there were any."""
    return min(1.0, replayed / offered) if offered else 1.0


def make_candidate(
    hour: Hour, config: BaseConfig, *, seed: int, on_progress: Callable[[int, int], None] | None = None
) -> Candidate | None:
    """Merge the tiers, train what comes of it under what earlier tasks need, and ask the gate.

    Parameters
    ----------
    hour
        What it begins with; its traffic is changed.
    config
        Settings.
    seed
        The same hour and seed come to the same.
    on_progress
        See `train_base`.

    Returns
    -------
    Candidate or None
        None where nothing was judged.
    """
    dim = hour.tiers[0].dim
    training = replace(config.training, rank=min(config.training.rank, dim))
    new, withheld = ([one.judged for one in answers] for answers in (hour.new, hour.withheld))
    taught = list({one.judged.key[0]: one.judged for one in (*hour.earlier, *hour.new)}.values())
    if not taught and not withheld:
        return None
    # Of all that is known, not of the hour: what does not fit goes where it costs least, and that is no task before.
    queries = np.stack([judged.query for judged in taught or withheld])
    merged, error = merge(hour.tiers, training.rank, queries=queries)
    # What answered while a task was at hand; before there is a base, what has come of it.
    answering = merged if hour.base is None else merge([hour.base], training.rank)[0]
    stretches = _ended(hour)
    ended = _learned(stretches, hour, config, answering)
    _note_task_at_hand(hour, config, ended)
    constraint = _constraint(hour, config, ended, fixed_form(merged, training.rank, hour.pool.embeddings))
    trained = train_base(
        merged,
        taught,
        items=hour.pool.embeddings,
        config=training,
        recipe=hour.recipe,
        seed=seed,
        constraint=constraint,
        held=_held_outputs(hour, config, ended),
        on_progress=on_progress,
    )
    served, candidate = Serving(hour.tiers), Serving([trained.map])
    before = None if hour.base is None else Serving([hour.base]).adapt
    relation = relation_of([*new, *withheld], before, withheld=withheld, candidate=candidate.adapt)
    differences = compare(withheld, served.adapt, candidate.adapt, hour.pool)
    decision = decide(relation, differences, config.gate)
    if constraint is not None and decision.publishes:
        hour.traffic.strength = constraint.strength_after(trained.map.weights)
    if answering.is_zero and decision.publishes:
        # Nothing answered yet that could be held; by now something does.
        ended = _learned(stretches, hour, config, trained.map)
    held = 0 if constraint is None else constraint.ewc.task_count
    return Candidate(trained, error, decision, hour.traffic, ended, held)


def _ended(hour: Hour) -> list[list[Answered]]:
    """The answers of every task that ended in the hour, by its queries in order."""
    ended: list[list[Answered]] = []
    for one in hour.new:
        began = hour.traffic.since
        if one.ordinal < hour.watched or not hour.traffic.observe(one.judged.query, one.ordinal):
            continue
        own = [other for other in (*hour.earlier, *hour.new) if began <= other.ordinal < one.ordinal]
        if own:
            ended.append(own)
    return ended


def _learned(
    stretches: Sequence[Sequence[Answered]], hour: Hour, config: BaseConfig, answering: LowRank
) -> list[BaseTask]:
    """What is remembered of tasks that have ended while this answered; see `learned_task`."""
    ended: list[BaseTask] = []
    for own in stretches:
        lists = [one.judged for one in own]
        quality = float(np.mean([one.worth for one in own]))
        known = helpful_items(lists, hour.recipe.pool_size, answering.dim)
        tasks = latest_tasks([*hour.tasks, *ended])
        id = max(hour.next_task, *(task.id + 1 for task in tasks), 1)
        task = learned_task(answering, lists, quality, known, hour.recipe, id)
        if task is not None:
            again = recognised(tasks, task.signature, config.ewc.same_task)
            ended.append(task if again is None else met_again(again, task))
    return ended


def latest_tasks(tasks: Sequence[BaseTask]) -> list[BaseTask]:
    """Every task once, as it was when it ended last, those that ended last at the end."""
    latest: dict[int, BaseTask] = {}
    for task in tasks:
        latest.pop(task.id, None)
        latest[task.id] = task
    return list(latest.values())


def _constraint(
    hour: Hour, config: BaseConfig, ended: Sequence[BaseTask], weights: NDArray[np.float32]
) -> TaskConstraint | None:
    """What holds the candidate where tasks other than the one at hand need it, and are not replayed."""
    share, others = 1.0 - hour.replayed, _others(hour, ended)
    return TaskConstraint(weights, others, config.ewc, config.strength(hour.traffic), share) if others else None


def _held_outputs(hour: Hour, config: BaseConfig, ended: Sequence[BaseTask]) -> HeldOutputs | None:
    """What those tasks were answered, at queries from before the task at hand: each belongs to the nearest task."""
    share, others = 1.0 - hour.replayed, _others(hour, ended)[-config.ewc.max_tasks :]
    if not others or not config.training.distillation:
        return None
    tasks = latest_tasks([*hour.tasks, *ended])
    asked: dict[int, list[NDArray[np.float32]]] = {}
    for one in (*hour.earlier, *hour.new):
        query = unit(one.judged.query)
        if one.ordinal < hour.traffic.since and (task := recognised(tasks, query, -np.inf)) is not None:
            asked.setdefault(task.id, []).append(query)
    held = [(task, np.stack(asked[task.id])) for task in others if task.id in asked]
    if not held:
        return None
    return HeldOutputs(
        np.vstack([queries for _, queries in held]),
        np.vstack([task.outputs(queries) for task, queries in held]),
        [len(queries) for _, queries in held],
        config.training.distillation * share,
        config.training.distillation_batch,
    )


def _note_task_at_hand(hour: Hour, config: BaseConfig, ended: Sequence[BaseTask]) -> None:
    """Note down which task is at hand, by what was asked since it began; 0 if none of those that ended."""
    # Nothing is learned from what is withheld, but it was asked like everything.
    asked = (*hour.earlier, *hour.new, *hour.withheld)
    own = [one.judged.query for one in asked if one.ordinal >= hour.traffic.since]
    # An hour in which nothing was asked says nothing of the task at hand: it is what it was.
    if own:
        here = recognised(latest_tasks([*hour.tasks, *ended]), signature_of(own), config.ewc.same_task)
        hour.traffic.here = 0 if here is None else here.id


def _others(hour: Hour, ended: Sequence[BaseTask]) -> list[BaseTask]:
    """Tasks other than the one at hand that hold; none where all there ever was is replayed."""
    tasks = latest_tasks([*hour.tasks, *ended])
    return [] if hour.replayed >= 1 else [task for task in tasks if task.id != hour.traffic.here and task.is_held]
