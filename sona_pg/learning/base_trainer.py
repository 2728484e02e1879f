"""Trains a candidate for the base of a space on what was judged.

`sona_pg.learning.base_cycle` gives it the tiers as one map and the lists, and has the gate decide on what comes of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sona_pg.config import BaseTrainingConfig, QueryAdapterConfig
from sona_pg.errors import ConfigError, DimensionMismatch, LearningError
from sona_pg.kernels import ListwiseTrainer, LowRank
from sona_pg.learning.held_outputs import HeldOutputs
from sona_pg.learning.item_pool import ItemPool
from sona_pg.learning.judged_list import JudgedList, helpful_items
from sona_pg.learning.lora import checked_seed
from sona_pg.learning.merging import merge
from sona_pg.learning.query_adapter import initial_directions
from sona_pg.types import FloatVector

PROGRESS_STEPS = 256
"""After so many steps whoever waits is told, and may stop the training by an exception."""


class Constraint(Protocol):
    """Holds weights near what earlier tasks need; `sona_pg.learning.ewc.EwcPlusPlus` is one."""

    def proximal_step(self, theta: FloatVector, step: float | ArrayLike) -> None:
        """Change `theta` in place, after an optimiser's step of the sizes `step`."""


@dataclass(frozen=True, slots=True, eq=False)
class TrainedBase:
    """A candidate.

    Parameters
    ----------
    map
        A has orthonormal columns, scale is 1.
    lists
        How many lists taught it; those in which nothing helped that is known do not count.
    steps, refused
        Optimiser steps taken, and lists at which the loss was not finite.
    first_loss, last_loss
        Mean loss of the first and the last epoch, nats; 0 without a step.
    """

    map: LowRank
    lists: int
    steps: int
    refused: int
    first_loss: float
    last_loss: float


def train_base(
    start: LowRank,
    lists: Sequence[JudgedList],
    *,
    items: ArrayLike,
    config: BaseTrainingConfig | None = None,
    recipe: QueryAdapterConfig | None = None,
    seed: int = 0,
    constraint: Constraint | None = None,
    held: HeldOutputs | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> TrainedBase:
    """Train a candidate from `start` on judged lists, several times each, in an order drawn anew each time.

    The query adapter's recipe, but for four things. Negatives are items that helped somewhere (see
    `sona_pg.learning.judged_list.helpful_items`), also among what was shown. The step size falls linearly to 0. B
    decays towards 0, the frozen embedding, which is what is right where nothing was learned (Loshchilov & Hutter
    2019). A starts with orthonormal columns, whatever the factors of `start` were, so that what is learned depends on
    the function alone; free columns are the principal directions of the items.

    The same arguments give the same bits. `start` is not changed.

    Parameters
    ----------
    start
        What answers, as one map; see `sona_pg.learning.merging.merge`.
    lists
        Judged lists, the new ones and those of the reservoir; a list is learned once in an epoch, however often.
    items
        Sample of the items (n, dim), for directions that `start` does not use.
    config, recipe
        Settings of the training, and of the query adapter.
    seed
        Of order and negatives.
    constraint
        What holds the weights where earlier tasks need them. Its weights must be of the form that `fixed_form` gives.
    held
        What earlier tasks were answered; part of the loss.
    on_progress
        Is told how many steps were taken, and of how many; what it raises ends the training.

    Raises
    ------
    ConfigError, DimensionMismatch, InvalidInput
        If settings or inputs do not fit.
    """
    config = BaseTrainingConfig.for_dim(start.dim) if config is None else config
    recipe = QueryAdapterConfig.for_dim(start.dim) if recipe is None else recipe
    random = np.random.Generator(np.random.PCG64(checked_seed(seed)))
    for judged in lists:
        if judged.query.size != start.dim:
            raise DimensionMismatch(start.dim, judged.query.size, "query of a judged list")
    known = helpful_items(lists, recipe.pool_size, start.dim)
    examples = [example for judged in lists if (example := _Example.of(judged, known)) is not None]
    weights = fixed_form(start, config.rank, items)
    training = _Training(weights, known, config, recipe, constraint, held, total=config.epochs * len(examples))
    losses: list[float] = []
    for _ in range(config.epochs if examples else 0):
        total = 0.0
        for number in random.permutation(len(examples)):
            total += training.learn(examples[number], random)
            if on_progress is not None and training.taken % PROGRESS_STEPS == 0:
                on_progress(training.taken, training.total)
        losses.append(total / len(examples))
    ends = (losses[0], losses[-1]) if losses else (0.0, 0.0)
    trained = training.served if examples else start
    return TrainedBase(merge([trained], config.rank)[0], len(examples), training.taken, training.refused, *ends)


def fixed_form(low_rank: LowRank, rank: int, items: ArrayLike) -> NDArray[np.float32]:
    """Weights (2 rank, dim) of the same function in one form: A orthonormal, B as long as it must be.

    Columns of A that the function does not need are the initial directions of the query adapter, orthogonal to those
    that it does, with zeros in B.

    Raises
    ------
    ConfigError
        If `rank` exceeds the dimension.
    """
    dim = low_rank.dim
    if rank > dim:
        raise ConfigError(f"rank {rank} exceeds the dimension {dim}: choose a rank of at most {dim}")
    form, _ = merge([low_rank], rank)
    used = 0 if form.is_zero else form.rank
    down = np.vstack([form.weights[:used], initial_directions(items, rank)]).astype(np.float64)
    free: list[NDArray[np.float64]] = []
    for direction in down[used:]:
        for other in (*down[:used], *free) * 2:  # twice is enough (Kahan)
            direction = direction - (direction @ other) * other
        length = float(np.linalg.norm(direction))
        if length > 1e-3 and used + len(free) < rank:
            free.append(direction / length)
    if used + len(free) < rank:
        q, _ = np.linalg.qr(np.vstack([*down[:used], *free, np.eye(dim)]).T)
        free += list(q.T[used + len(free) : rank])
    up = np.zeros((rank, dim))
    up[:used] = form.weights[form.rank :][:used]
    return np.vstack([down[:used], *free, up]).astype(np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class _Example:
    """A judged list without what says nothing."""

    query: FloatVector
    items: list[FloatVector]
    targets: list[float]
    skip: NDArray[np.int64]

    @classmethod
    def of(cls, judged: JudgedList, known: ItemPool) -> _Example | None:
        """None where nothing helped that is known."""
        if not judged.teaches:
            return None
        kept = [
            (item, target)
            for id, item, target in zip(judged.item_ids, judged.items, judged.targets, strict=True)
            if target > 0 or known.row(id) is not None
        ]
        return cls(judged.query, [i for i, _ in kept], [t for _, t in kept], known.rows(judged.item_ids))


class _Training:
    """The weights, and one step after the other."""

    def __init__(
        self,
        weights: NDArray[np.float32],
        known: ItemPool,
        config: BaseTrainingConfig,
        recipe: QueryAdapterConfig,
        constraint: Constraint | None,
        held: HeldOutputs | None,
        *,
        total: int,
    ) -> None:
        rank, dim = config.rank, weights.shape[1]
        self._trained, self.served = LowRank(dim, rank), LowRank(dim, rank)
        for low_rank in (self._trained, self.served):
            low_rank.load(weights)
        self._trainer = ListwiseTrainer(
            self._trained, self.served, recipe.temperature, recipe.beta1, recipe.beta2, recipe.epsilon
        )
        self._known, self._config, self._recipe, self._constraint = known, config, recipe, constraint
        self._held = held
        self._extra = None if held is None else np.zeros_like(weights)
        self.total, self.taken, self.refused = total, 0, 0

    def learn(self, example: _Example, random: np.random.Generator) -> float:
        """One step; the loss before it."""
        c, t = self._recipe, self._trainer.steps + 1
        rate = self._config.learning_rate * max(1 - self.taken / max(self.total, 1), 0.0)
        average = min(c.average_decay, (1 + t) / (10 + t))
        # Decoupled from Adam's moments, and before the step, so that the average takes part in it.
        self._trained.weights[self._config.rank :] *= np.float32(1 - rate * self._config.decay)
        seed = int(random.integers(1 << 63))
        self.taken += 1
        if self._held is not None and self._extra is not None:
            self._extra.fill(0)
            self._held.add_gradient(self._trained, random, self._extra)
        try:
            loss = self._trainer.step(
                example.query,
                example.items,
                example.targets,
                self._known.embeddings,
                example.skip,
                seed,
                c.negatives,
                rate,
                average,
                self._extra,
            )
        except LearningError:
            self.refused += 1
            return 0.0
        if self._constraint is not None:
            self._hold(self._constraint, rate, average)
        return loss

    def _hold(self, constraint: Constraint, rate: float, average: float) -> None:
        c, weights = self._recipe, self._trained.weights
        scale = np.sqrt(self._trainer.moment2 / (1 - c.beta2**self._trainer.steps))
        before = weights.copy()
        constraint.proximal_step(weights, rate / (scale + np.float32(c.epsilon)))
        self.served.weights[...] += np.float32(1 - average) * (weights - before)
