"""What is remembered of earlier tasks, and the two sums of it that a penalty is made of."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sona_pg import kernels
from sona_pg.config import FISHER_KINDS
from sona_pg.errors import LearningError
from sona_pg.types import FloatVector

Doubles = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class TaskMemory:
    """A task that was learned: which parameters it needs, and where it needs them.

    Parameters
    ----------
    fisher
        Diagonal Fisher information F_k, the mean over samples, float32 (p,), not negative.
    anchor
        Parameters θ*_k at the end of the task, float32 (p,).
    samples
        How many samples the Fisher is a mean of.
    quality
        Quality that the task ended with; None where it is unknown.
    kind
        Whose gradients the Fisher is of, one of `sona_pg.config.FISHER_KINDS`.
    weight
        λ_k in units of the common λ.
    """

    fisher: FloatVector
    anchor: FloatVector
    samples: int
    quality: float | None = None
    kind: str = FISHER_KINDS[0]
    weight: float = 1.0


class TaskRing:
    """The latest tasks, and the sums Σ w_k F_k and Σ w_k F_k θ*_k over them, in double precision.

    The sums are made anew whenever a task comes or goes: what was added and taken away again would leave its rounding
    behind, as large as the largest Fisher that ever was in them. λ multiplies them, and may change at every step.

    Parameters
    ----------
    param_count
        Number of parameters.
    max_tasks
        Tasks that are kept; one more, and the oldest goes.
    """

    def __init__(self, param_count: int, max_tasks: int) -> None:
        self._tasks: deque[TaskMemory] = deque(maxlen=max_tasks)
        self.stiffness: Doubles = np.zeros(param_count)
        self.pull: Doubles = np.zeros(param_count)

    def __len__(self) -> int:
        return len(self._tasks)

    def __iter__(self) -> Iterator[TaskMemory]:
        return iter(self._tasks)

    def add(self, task: TaskMemory) -> None:
        """Remember one more task."""
        self.replace([*self._tasks, task])

    def replace(self, tasks: Iterable[TaskMemory]) -> None:
        """Remember these instead, at most the latest `max_tasks` of them.

        Raises
        ------
        LearningError
            If one of them belongs to another model, or is damaged; nothing was changed.
        """
        kept = deque(tasks, self._tasks.maxlen)
        stiffness, pull = np.zeros_like(self.stiffness), np.zeros_like(self.pull)
        for task in kept:
            _check(task, len(stiffness))
            weighted = task.weight * task.fisher.astype(np.float64)
            stiffness += weighted
            pull += weighted * task.anchor
        self._tasks, self.stiffness, self.pull = kept, stiffness, pull

    def merged(self) -> TaskMemory:
        """All tasks as one, with the same two sums to float32: F = Σ w_k F_k, and θ* = Σ w_k F_k θ*_k / F.

        Raises
        ------
        LearningError
            If no task is remembered.
        """
        if not self._tasks:
            raise LearningError("no task is remembered: there is nothing to merge")
        last, kinds = self._tasks[-1], {task.kind for task in self._tasks}
        judged = [(task.quality, task.samples) for task in self._tasks if task.quality is not None]
        weight = sum(samples for _, samples in judged)
        return TaskMemory(
            fisher=self.stiffness.astype(np.float32),
            anchor=self.centre(last.anchor).astype(np.float32),
            samples=sum(task.samples for task in self._tasks),
            quality=sum(quality * samples for quality, samples in judged) / weight if weight else None,
            kind=last.kind if len(kinds) == 1 else FISHER_KINDS[0],
        )

    def centre(self, elsewhere: FloatVector) -> Doubles:
        """Where the penalty is least, (p,); `elsewhere`, where no task needs a parameter."""
        centre = elsewhere.astype(np.float64)
        np.divide(self.pull, self.stiffness, out=centre, where=self.stiffness > 0)
        return centre

    def drift(self, theta: FloatVector) -> FloatVector:
        """Σ w_k F_k (θ - θ*_k)² of each parameter, (p,)."""
        out: FloatVector = np.zeros(len(theta), dtype=np.float32)
        for task in self._tasks:
            kernels.add_drift(task.fisher, theta, task.anchor, task.weight, out)
        return out


def _check(task: TaskMemory, param_count: int) -> None:
    for name, part in (("Fisher", task.fisher), ("θ*", task.anchor)):
        if part.dtype != np.float32 or part.shape != (param_count,):
            raise LearningError(
                f"the {name} of a remembered task is {part.dtype} {part.shape}, expected float32 ({param_count},): "
                "it belongs to a model of another layout"
            )
        if not np.isfinite(part).all():
            raise LearningError(f"the {name} of a remembered task holds NaN or infinity: it is damaged")
    if task.fisher.min() < 0 or task.samples < 1 or not 0 <= task.weight < np.inf or task.kind not in FISHER_KINDS:
        raise LearningError(
            f"a remembered task has {task.samples} samples, weight {task.weight}, kind {task.kind!r} and a least "
            f"Fisher of {task.fisher.min()}, expected at least 1, at least 0, one of {', '.join(FISHER_KINDS)}, "
            "and at least 0: it is damaged"
        )
