"""Tasks of a base: stretches of traffic of one kind, and how far each lets the base move.

A base is the matrix ``ΔW = A B``, and the same matrix has many factors. Here A has orthonormal columns, the frame of a
task, so that B holds the coordinates of ΔW in it, and what B may not leave ΔW may not leave either. In another frame A'
the penalty is ``½ Σ F (R B' - B)²`` with ``R = Aᵀ A'``, which couples the rows of B'. Around the B' at hand it is
majorised by one that does not, ``S = |R|ᵀ (F ∘ |R| 1)``: what lowers that lowers the penalty (Hunter & Lange 2004).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sona_pg.config import FISHER_KINDS, BoundaryConfig, EwcConfig, QueryAdapterConfig
from sona_pg.errors import LearningError
from sona_pg.kernels import ListwiseTrainer, LowRank, unit
from sona_pg.learning.arrays import check_parts
from sona_pg.learning.ewc import EwcPlusPlus
from sona_pg.learning.item_pool import ItemPool
from sona_pg.learning.judged_list import JudgedList
from sona_pg.learning.task_boundary import TaskBoundary
from sona_pg.learning.task_memory import Doubles, TaskMemory
from sona_pg.types import FloatVector

FloatMatrix = NDArray[np.float32]

MOST_TASKS = 100
"""Tasks that are remembered; the penalty is made of the latest `EwcConfig.max_tasks`, the others are known again."""

_COLUMNS_AT_ONCE = 256
_EPS = 1e-10


@dataclass(frozen=True, slots=True, eq=False)
class BaseTask:
    """A task that a base has learned.

    Parameters
    ----------
    id
        For life.
    signature
        Mean direction of its queries, unit (dim,).
    frame, anchor
        A (rank, dim), orthonormal rows, and B (rank, dim) at the end of the task.
    fisher
        Diagonal Fisher information of B, (rank, dim), not negative: the mean over samples.
    samples
        How many outcomes it is a mean of.
    quality
        What the task's answers were worth, 0 to 1.
    times_met
        How often it has come.
    is_held
        Whether the base that has learned it is the one at hand. After a deploy of another version it is known again,
        and is held once it has ended again.
    """

    id: int
    signature: FloatVector
    frame: FloatMatrix
    anchor: FloatMatrix
    fisher: FloatMatrix
    samples: int
    quality: float
    times_met: int = 1
    is_held: bool = True

    def in_frame(self, frame: FloatMatrix, at: FloatMatrix) -> TaskMemory:
        """Its penalty on B (rank', dim), flattened, in another frame (rank', dim), around `at` (rank', dim)."""
        turn = self.turn(frame)
        reach = np.abs(turn)
        fisher = reach.T @ (self.fisher * reach.sum(axis=1, keepdims=True))
        slope = turn.T @ (self.fisher * (turn @ at - self.anchor))
        anchor = at - np.divide(slope, fisher, out=np.zeros_like(slope), where=fisher > 0)
        return TaskMemory(
            np.ascontiguousarray(fisher, dtype=np.float32).ravel(),
            np.ascontiguousarray(anchor, dtype=np.float32).ravel(),
            self.samples,
            self.quality,
        )

    def outputs(self, queries: FloatMatrix) -> FloatMatrix:
        """What the base added to queries, unit rows (n, dim), at the end of the task."""
        base = LowRank(self.frame.shape[1], len(self.frame))
        base.load(np.vstack([self.frame, self.anchor]))
        added = np.zeros_like(queries)
        base.forward_batch(queries, added)
        return added

    def turn(self, frame: FloatMatrix) -> Doubles:
        """R, the coordinates of another frame (rank', dim) in its own, (rank, rank')."""
        product = self.frame.astype(np.float64) @ frame.T.astype(np.float64)
        # What is but rounding couples nothing.
        return np.where(np.abs(product) > 1e-6, product, 0.0)


def signature_of(queries: Sequence[FloatVector]) -> FloatVector:
    """Mean direction of queries (dim,) of any length, a unit vector; zero where they cancel."""
    total = np.sum(np.stack([unit(query) for query in queries]), axis=0, dtype=np.float64)
    return unit(np.asarray(total, dtype=np.float32))


def recognised(tasks: Sequence[BaseTask], signature: FloatVector, threshold: float) -> BaseTask | None:
    """The task whose queries have this mean direction; None where none is that near."""
    if not tasks or not signature.any():
        return None
    cosines = np.array([float(task.signature @ signature) for task in tasks])
    place = int(cosines.argmax())
    return tasks[place] if cosines[place] >= threshold else None


def learned_task(
    base: LowRank, lists: Sequence[JudgedList], quality: float, known: ItemPool, recipe: QueryAdapterConfig, id: int
) -> BaseTask | None:
    """What to remember of a task that has ended; None where nothing in it teaches, or the base is zero.

    At a base that is zero every Fisher information is, in every frame: nothing was learned that could be held.

    The Fisher information is the empirical one: the mean square of the gradients that the outcomes of single lists
    gave, at the base as it was in the end (Kirkpatrick et al. 2017; on which Fisher, van de Ven 2025).

    Parameters
    ----------
    base
        What answered, A with orthonormal columns and scale 1, as `sona_pg.learning.base_trainer` gives it.
    lists
        Of the task.
    quality
        What its answers were worth, 0 to 1.
    known
        Items that negatives are drawn from.
    """
    lists = [judged for judged in lists if judged.teaches]
    if not lists or base.is_zero:
        return None
    rank, dim = base.rank, base.dim
    still, served = LowRank(dim, rank), LowRank(dim, rank)
    for low_rank in (still, served):
        low_rank.load(base.weights)
    trainer = ListwiseTrainer(still, served, recipe.temperature, recipe.beta1, recipe.beta2, recipe.epsilon)
    fisher, samples = np.zeros((rank, dim)), 0
    for judged in lists:
        trainer.moment1.fill(0)
        try:
            trainer.step(
                judged.query,
                list(judged.items),
                list(judged.targets),
                known.embeddings,
                known.rows(judged.item_ids),
                judged.seed,
                recipe.negatives,
                0.0,
                1.0,
            )
        except LearningError:
            continue
        # After one step from nothing the first moment is a tenth of the gradient.
        fisher += (trainer.moment1[rank:].astype(np.float64) / (1 - recipe.beta1)) ** 2
        samples += 1
    if not samples:
        return None
    return BaseTask(
        id,
        signature_of([judged.query for judged in lists]),
        base.weights[:rank].copy(),
        base.weights[rank:].copy(),
        (fisher / samples).astype(np.float32),
        samples,
        quality,
    )


def met_again(known: BaseTask, again: BaseTask) -> BaseTask:
    """A task that has come once more: where it ended last, by the outcomes of all times.

    What a base needed that is not the one at hand any more counts for nothing.
    """
    total = known.samples + again.samples
    share = again.samples / total
    mean = (1 - share) * known.signature + share * again.signature
    if not known.is_held:
        return replace(again, id=known.id, signature=unit(mean.astype(np.float32)), times_met=known.times_met + 1)
    old = (known.turn(again.frame) ** 2).T @ known.fisher
    return replace(
        again,
        id=known.id,
        signature=unit(mean.astype(np.float32)),
        fisher=((1 - share) * old + share * again.fisher).astype(np.float32),
        samples=total,
        quality=(1 - share) * known.quality + share * again.quality,
        times_met=known.times_met + 1,
    )


class TaskConstraint:
    """Keeps a base that is trained where other tasks need it: B is drawn to what they need, and A moves along.

    A is free: with a frozen one the next task learned a third less, and the earlier ones were held no better
    (`python -m benchmarks base`, two collections in sequence).

    Parameters
    ----------
    weights
        The base before the training, (2 rank, dim), A orthonormal.
    tasks
        At least one.
    config
        Settings; the strength is `strength`.
    strength
        λ.
    share
        How much of it counts: the part of what was learned that is not replayed. What λ is adapted to does not depend
        on it: `EwcConfig.tolerated_loss` is in nats of the tasks.
    """

    def __init__(
        self, weights: FloatMatrix, tasks: Sequence[BaseTask], config: EwcConfig, strength: float, share: float = 1.0
    ) -> None:
        rank = len(weights) // 2
        self._tasks = tasks[-config.max_tasks :]
        count = rank * weights.shape[1]
        self.ewc = EwcPlusPlus(replace(config, param_count=count, fisher_kind=FISHER_KINDS[0]))
        self.ewc.set_lambda(min(max(strength, config.min_lambda), config.max_lambda))
        for task in self._tasks:
            self.ewc.remember(replace(task.in_frame(weights[:rank], weights[rank:]), weight=share))

    def proximal_step(self, theta: FloatVector, step: float | ArrayLike) -> None:
        """Change `theta` (2 rank, dim) in place, after an optimiser's step of the sizes `step`."""
        rank = len(theta) // 2
        self.ewc.proximal_step(theta[rank:], step if isinstance(step, float | int) else np.asarray(step)[rank:])

    def strength_after(self, weights: FloatMatrix) -> float:
        """λ for the next time, by what trained weights (2 rank, dim), A orthonormal, cost the tasks."""
        return self.ewc.adapt_lambda(weights[len(weights) // 2 :].ravel(), loss=excess_loss(self._tasks, weights))


def excess_loss(tasks: Sequence[BaseTask], weights: FloatMatrix) -> float:
    """Loss on tasks above the least that there is in the frame of the weights (2 rank, dim), A orthonormal; nats.

    By their Fisher information, ``½ Σ_k F_k (R_k B - B_k)²`` itself: what majorises it, as a proximal step needs it, is
    2 to 3 times as much in a frame that is turned.
    """
    rank, lost = len(weights) // 2, 0.0
    turns = [task.turn(weights[:rank]) for task in tasks]
    for start in range(0, weights.shape[1], _COLUMNS_AT_ONCE):
        columns = slice(start, start + _COLUMNS_AT_ONCE)
        up = weights[rank:, columns].T.astype(np.float64)
        stiffness, pull = np.zeros((len(up), rank, rank)), np.zeros((len(up), rank))
        for task, turn in zip(tasks, turns, strict=True):
            fisher = task.fisher[:, columns].T.astype(np.float64)
            stiffness += turn.T @ (fisher[:, :, np.newaxis] * turn)
            pull += (fisher * task.anchor[:, columns].T) @ turn
        # Tasks that want different things of one base lose something whatever it is: that is no reason to hold more.
        least = np.linalg.pinv(stiffness, rcond=_EPS, hermitian=True) @ pull[:, :, np.newaxis]
        moved = up[:, :, np.newaxis] - least
        lost += 0.5 * float(np.sum(moved * (stiffness @ moved)))
    return min(max(lost, 0.0), sys.float_info.max)


class Traffic:
    """The task at hand: whether its queries are still of one kind, and since when.

    Parameters
    ----------
    dim
        Dimension of queries.
    config
        Settings.
    """

    def __init__(self, dim: int, config: BoundaryConfig | None = None) -> None:
        self._boundary = TaskBoundary(dim, config)
        self.since = 0
        """Ledger entry with which the task began."""
        self.strength = 0.0
        """λ as it was adapted last; 0 before."""
        self.here = 0
        """Id of the remembered task that it was last taken for; 0 for none of them."""

    def observe(self, query: FloatVector, ordinal: int) -> bool:
        """Take in the query of a ledger entry; whether another task began about here."""
        if not self._boundary.observe(unit(query)):
            return False
        self.since, self.here = ordinal, 0
        return True

    def begin_anew(self, since: int, before: Mapping[str, NDArray[np.generic]]) -> None:
        """Watch from a ledger entry on, where `load_state` has refused what was; λ goes on if it can be read."""
        self.since = since
        strength = before.get("strength")
        if strength is not None and strength.shape == () and strength.dtype == np.float64:
            found = float(strength)
            self.strength = found if 0 <= found < np.inf else 0.0

    def state(self) -> dict[str, NDArray[np.generic]]:
        """Everything that a continuation needs, as arrays."""
        return {
            **self._boundary.state(),
            "since": np.array(self.since, dtype=np.int64),
            "strength": np.array(self.strength),
            "here": np.array(self.here, dtype=np.int64),
        }

    def load_state(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Continue from what `state` gave; bit for bit.

        Raises
        ------
        LearningError
            If it is damaged, or of another dimension or other settings; nothing was changed.
        """
        # States of earlier versions do not say.
        state = {"here": np.array(0, dtype=np.int64), **state}
        check_parts("traffic", state, self.state())
        self._boundary.load_state(state)
        self.since, self.strength, self.here = int(state["since"]), float(state["strength"]), int(state["here"])
