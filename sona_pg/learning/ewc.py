"""EWC++: learning goes on, and what earlier tasks need stays where they need it."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sona_pg import kernels
from sona_pg.config import FISHER_KINDS, BoundaryConfig, EwcConfig
from sona_pg.errors import ConfigError, InvalidInput, LearningError
from sona_pg.learning.arrays import check_parts
from sona_pg.learning.fisher import FisherAverage
from sona_pg.learning.task_boundary import TaskBoundary
from sona_pg.learning.task_memory import Doubles, TaskMemory, TaskRing
from sona_pg.types import FloatVector, finite_or_none

State = dict[str, NDArray[np.generic]]


class EwcPlusPlus:
    """Elastic weight consolidation over a ring of tasks, in its exact proximal form, for any parameter vector.

    The loss of the task at hand is joined by ``½ Σ_k λ_k Σ_i F_ki (θ_i - θ*_ki)²`` (Kirkpatrick et al. 2017; Huszár
    2017 for the sum over tasks). Its gradient is ``S θ - T`` with ``S = Σ λ_k F_k`` and ``T = Σ λ_k F_k θ*_k``, and
    a proximal step on it is stable at every λ, where an explicit one diverges as soon as η λ F > 2.

    Parameters
    ----------
    config
        Its settings.
    theta
        Parameters that are meant where a method is not given any, float32 (p,); held by reference, never written to.
    boundary
        Settings of `detect_task_boundary`.
    embedding_dim
        Dimension of the vectors that `detect_task_boundary` takes; None: that of a gradient.

    Raises
    ------
    ConfigError
        If the number of parameters is not known.

    Examples
    --------
    >>> import numpy as np
    >>> ewc = EwcPlusPlus(EwcConfig(param_count=2, initial_lambda=100.0))
    >>> ewc.update_fisher([[1.0, 0.0], [-1.0, 0.0]])  # gradients of two samples
    >>> _ = ewc.start_new_task(np.zeros(2, dtype=np.float32))
    >>> ewc.apply_constraints([1.0, 1.0], np.zeros(2, dtype=np.float32), 0.1).round(2)
    array([0.09, 1.  ], dtype=float32)
    """

    def __init__(
        self,
        config: EwcConfig | None = None,
        theta: FloatVector | None = None,
        *,
        boundary: BoundaryConfig | None = None,
        embedding_dim: int | None = None,
    ) -> None:
        self.config = EwcConfig() if config is None else config
        count = self.config.param_count
        if theta is not None:
            count = len(kernels.as_vector(theta, -1 if count is None else count, "theta"))
        if not count:
            raise ConfigError("the number of parameters is not known: set EwcConfig.param_count, or pass theta")
        self._theta = theta
        self._ring = TaskRing(count, self.config.max_tasks)
        self._fisher = FisherAverage(count, self.config.fisher_ema_decay)
        self._boundary = TaskBoundary(count if embedding_dim is None else embedding_dim, boundary)
        self._lambda = self.config.initial_lambda
        self._stiffness: FloatVector = np.zeros(count, dtype=np.float32)
        self._pull: FloatVector = np.zeros(count, dtype=np.float32)

    @property
    def param_count(self) -> int:
        """Number of parameters."""
        return len(self._stiffness)

    @property
    def lambda_(self) -> float:
        """Strength of the penalty."""
        return self._lambda

    @property
    def task_count(self) -> int:
        """How many tasks are remembered."""
        return len(self._ring)

    @property
    def tasks(self) -> tuple[TaskMemory, ...]:
        """What is remembered, the oldest first; λ_k is `lambda_` times the task's weight."""
        return tuple(self._ring)

    @property
    def fisher(self) -> FloatVector:
        """Fisher information of the task at hand so far, (p,)."""
        return self._fisher.value.copy()

    @property
    def fisher_samples(self) -> int:
        """Samples in `fisher`."""
        return self._fisher.samples

    @property
    def stiffness(self) -> Doubles:
        """S = Σ λ_k F_k, float64 (p,)."""
        return self._lambda * self._ring.stiffness

    @property
    def pull(self) -> Doubles:
        """T = Σ λ_k F_k θ*_k, float64 (p,)."""
        return self._lambda * self._ring.pull

    # ---- constraining a step ----

    def apply_constraints(
        self, gradients: ArrayLike, theta: ArrayLike | None = None, learning_rate: float | None = None
    ) -> FloatVector:
        """The gradient of which a step is the exact proximal step: ``(g + S θ - T) / (1 + η S)``.

        ``θ - η g̃`` minimises ``g·θ' + |θ' - θ|² / 2η`` plus the penalty at θ' (and `EwcConfig.sparsity`).

        Parameters
        ----------
        gradients
            Gradient of the loss at hand, (p,).
        theta
            Parameters before the step, (p,); those of the constructor if None.
        learning_rate
            η of the step that will be taken; `EwcConfig.learning_rate` if None.

        Raises
        ------
        DimensionMismatch, InvalidInput, LearningError
            If a vector has another length or NaN, the result is not finite, or there are no parameters.
        """
        gradient = kernels.as_vector(gradients, self.param_count, "the gradient")
        at = self._parameters(theta)
        rate = self._rate(self.config.learning_rate if learning_rate is None else learning_rate)
        if self.config.project_gradients and len(self._ring):
            gradient = self._projected(gradient, at)
        out: FloatVector = np.empty(self.param_count, dtype=np.float32)
        if self.config.sparsity:
            gradient = gradient + self._shrinkage(at.astype(np.float64) - rate * gradient, rate, at)
        kernels.constrain(gradient, at, self._stiffness, self._pull, rate, out)
        return out

    def proximal_step(self, theta: FloatVector, step: float | ArrayLike) -> None:
        """``θ ← (θ + η T) / (1 + η S)``: what follows an optimiser's own step on the gradient alone.

        Parameters
        ----------
        theta
            float32 array of p numbers in any shape, contiguous and writeable; changed in place.
        step
            η, or that of each parameter in the shape of `theta`; with Adam ``lr / (sqrt(v / c₂) + ε)``.

        Raises
        ------
        DimensionMismatch, InvalidInput, LearningError
            If something does not fit, or is not finite; nothing was changed.
        """
        usable = isinstance(theta, np.ndarray) and theta.dtype == np.float32 and theta.flags.carray
        if not usable or theta.size != self.param_count:
            raise InvalidInput(
                f"theta must be a contiguous, writeable float32 array of {self.param_count} numbers: "
                "it is changed in place"
            )
        flat = theta.reshape(-1)
        if isinstance(step, float | int | np.floating):
            rate, steps = self._rate(float(step)), None
        else:
            rate, steps = 0.0, kernels.as_vector(np.ravel(np.asarray(step)), self.param_count, "the step")
            if steps.min() < 0:
                raise InvalidInput(f"a step is {steps.min()}, expected at least 0")
        if not len(self._ring) and not self.config.sparsity:
            return
        moved = flat
        if self.config.sparsity:
            each = rate if steps is None else steps
            moved = flat - (each * self._shrinkage(flat.astype(np.float64), each, flat)).astype(np.float32)
        out: FloatVector = np.empty(self.param_count, dtype=np.float32)
        kernels.proximal(moved, self._stiffness, self._pull, rate, steps, out)
        flat[...] = out

    def _shrinkage(self, moved: Doubles, rate: float | FloatVector, theta: FloatVector) -> FloatVector:
        """Gradient of the sparsity penalty where the proximal step ends: of soft thresholding, but for the factor S."""
        weight = self.config.sparsity
        with np.errstate(divide="ignore", invalid="ignore"):
            ends = moved / rate + self._pull
        shrinkage = np.where(np.asarray(rate) > 0, np.clip(ends, -weight, weight), weight * np.sign(theta))
        return np.asarray(shrinkage, dtype=np.float32)

    def _projected(self, gradient: FloatVector, theta: FloatVector) -> FloatVector:
        """Without what raises the penalty to first order (Chaudhry et al. 2019, A-GEM, eq. 11)."""
        penalty = self.stiffness * theta - self.pull
        along = float(gradient @ penalty)
        length = float(penalty @ penalty)
        if along >= 0 or not 0 < length < math.inf:
            return gradient
        return np.asarray(gradient - along / length * penalty, dtype=np.float32)

    # ---- remembering ----

    def update_fisher(self, gradients: ArrayLike) -> None:
        """Take the gradients of single samples into the Fisher of the task at hand.

        Parameters
        ----------
        gradients
            Gradient of one sample's log likelihood, (p,), or those of n samples, (n, p). The gradient of a batch's
            mean loss is no such thing: its square is smaller by about the size of the batch.

        Raises
        ------
        DimensionMismatch, InvalidInput, LearningError
            If it has another shape, or numbers of which the square is none; nothing was changed.
        """
        self._fisher.update(gradients)

    def detect_task_boundary(self, embedding: ArrayLike) -> bool:
        """Whether the stream of these vectors has changed; see `TaskBoundary`. It starts anew after an alarm."""
        return self._boundary.observe(embedding)

    def start_new_task(self, theta: ArrayLike | None = None, quality: float | None = None) -> TaskMemory | None:
        """Remember the task at hand with its Fisher and the parameters it ended with, and begin the next.

        Parameters
        ----------
        theta
            Parameters at the end of the task, (p,); those of the constructor if None.
        quality
            Quality that it ended with, where it is known.

        Returns
        -------
        TaskMemory or None
            What is remembered; None if `update_fisher` was given nothing, so that there is nothing to remember.

        Raises
        ------
        DimensionMismatch, InvalidInput, LearningError
            If the parameters do not fit, or the sums leave the range of float32; nothing was changed.
        """
        anchor = self._parameters(theta).copy()
        reached = finite_or_none(quality, "quality")
        if not self._fisher.samples:
            return None
        task = TaskMemory(self._fisher.value.copy(), anchor, self._fisher.samples, reached, self.config.fisher_kind)
        earlier = tuple(self._ring)
        if self.config.anchors == "latest":
            earlier = tuple(replace(other, anchor=anchor) for other in earlier)
        self._replace([*earlier, task])
        self._fisher.reset()
        return task

    def remember(self, task: TaskMemory) -> None:
        """Remember a task that was learned elsewhere, or earlier, as the latest.

        Raises
        ------
        LearningError
            If it belongs to a model of another layout, or is damaged; nothing was changed.
        """
        self._replace([*self._ring, task])

    def consolidate_all_tasks(self) -> None:
        """Make one task of all: the same S and T, and so the same constraint, in the memory of one.

        What is lost is how much the tasks disagree, a constant of `regularization_loss`. Without tasks nothing happens.
        """
        if len(self._ring):
            self._replace([self._ring.merged()])

    def _replace(self, tasks: list[TaskMemory]) -> None:
        before = tuple(self._ring)
        self._ring.replace(tasks)
        try:
            self._set_sums(self._lambda)
        except LearningError:
            self._ring.replace(before)
            raise

    def _set_sums(self, strength: float) -> None:
        """λ times the sums, as the kernels take them."""
        with np.errstate(over="ignore"):
            stiffness = (strength * self._ring.stiffness).astype(np.float32)
            pull = (strength * self._ring.pull).astype(np.float32)
        if not (np.isfinite(stiffness).all() and np.isfinite(pull).all()):
            raise LearningError(
                "the Fisher or the parameters of the tasks times λ leave the range of float32: the model has run away"
            )
        self._lambda, self._stiffness, self._pull = strength, stiffness, pull

    # ---- strength ----

    def set_lambda(self, lambda_: float) -> None:
        """Set the strength of the penalty, of what is remembered too, within the range of the settings."""
        low, high = self.config.min_lambda, self.config.max_lambda
        if not isinstance(lambda_, float | int) or isinstance(lambda_, bool) or not low <= lambda_ <= high:
            raise ConfigError(f"lambda is {lambda_!r}, expected {low:g} to {high:g}")
        self._set_sums(float(lambda_))

    def predicted_loss(self, theta: ArrayLike | None = None) -> float:
        """Loss on the remembered tasks above its least, as the Fisher predicts it, nats: ``½ Δᵀ S Δ / λ``.

        Δ is the distance from T / S, where the penalty is least; the tasks' own λ_k count by their weight.
        """
        at = self._parameters(theta)
        moved = at - self._ring.centre(at)
        return 0.5 * float(moved @ (self._ring.stiffness * moved))

    def adapt_lambda(self, theta: ArrayLike | None = None, *, loss: float | None = None) -> float:
        """Hold the loss on the remembered tasks at what is tolerated: ``λ ← λ exp(κ (D/ε - 1))`` within the range.

        Parameters
        ----------
        theta
            Parameters, (p,); those of the constructor if None.
        loss
            D, nats, 0 or more, where it is known better than `predicted_loss` has it.

        Returns
        -------
        float
            The new λ; the old one while nothing is remembered.

        Raises
        ------
        DimensionMismatch, InvalidInput
            If something does not fit; nothing was changed.
        """
        if loss is not None:
            usable = isinstance(loss, float | int) and not isinstance(loss, bool)
            if not usable or not 0 <= loss <= sys.float_info.max:
                raise InvalidInput(f"the loss is {loss!r}, expected nats above the least, 0 or more")
        if len(self._ring):
            lost = self.predicted_loss(theta) if loss is None else loss
            excess = lost / self.config.tolerated_loss - 1
            factor = math.exp(min(self.config.lambda_rate * excess, 100.0))
            self._set_sums(min(max(self._lambda * factor, self.config.min_lambda), self.config.max_lambda))
        return self._lambda

    # ---- what it costs, and whom ----

    def regularization_loss(self, theta: ArrayLike | None = None) -> float:
        """The penalty ``½ Σ_k λ_k Σ_i F_ki (θ_i - θ*_ki)²`` at θ, and `sparsity_penalty`."""
        at = self._parameters(theta)
        drift = float(np.sum(self._ring.drift(at), dtype=np.float64))
        return 0.5 * self._lambda * drift + self.sparsity_penalty(at)

    def sparsity_penalty(self, theta: ArrayLike | None = None) -> float:
        """``sparsity · Σ|θ|``."""
        if not self.config.sparsity:
            return 0.0
        return self.config.sparsity * float(np.sum(np.abs(self._parameters(theta)), dtype=np.float64))

    def importance_scores(self) -> FloatVector:
        """How much the remembered tasks need each parameter, (p,): S over its largest, 0 to 1."""
        largest = float(self._ring.stiffness.max())
        return np.asarray(self._ring.stiffness / (largest or 1.0), dtype=np.float32)

    def drift_scores(self, theta: ArrayLike | None = None) -> FloatVector:
        """What each parameter's drift costs the remembered tasks, nats (p,): ``½ Σ_k w_k F_k (θ - θ*_k)²``."""
        return np.float32(0.5) * self._ring.drift(self._parameters(theta))

    # ---- keeping ----

    def state(self) -> State:
        """Everything that a continuation needs, as arrays."""
        tasks = tuple(self._ring)
        shape = (len(tasks), self.param_count)
        return {
            "lambda": np.array(self._lambda),
            "fisher": self._fisher.value.copy(),
            "fisher_samples": np.array(self._fisher.samples, dtype=np.int64),
            "task_fishers": np.array([task.fisher for task in tasks], dtype=np.float32).reshape(shape),
            "task_anchors": np.array([task.anchor for task in tasks], dtype=np.float32).reshape(shape),
            "task_samples": np.array([task.samples for task in tasks], dtype=np.int64),
            "task_qualities": np.array([task.quality or 0.0 for task in tasks]),
            "task_judged": np.array([task.quality is not None for task in tasks], dtype=np.bool_),
            "task_kinds": np.array([FISHER_KINDS.index(task.kind) for task in tasks], dtype=np.int64),
            "task_weights": np.array([task.weight for task in tasks], dtype=np.float64),
            **{f"boundary_{name}": part for name, part in self._boundary.state().items()},
        }

    def load_state(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Continue from what `state` gave; bit for bit.

        Raises
        ------
        LearningError
            If a part is missing, of another layout, or not what it can be; nothing was changed.
        """
        kinds = state.get("task_kinds")
        count = 0 if kinds is None or kinds.ndim != 1 else len(kinds)
        if count > self.config.max_tasks:
            raise LearningError(
                f"the EWC's state has {count} tasks, expected at most {self.config.max_tasks}: "
                "raise EwcConfig.max_tasks"
            )
        own = self.state()
        for name, part in own.items():
            if name.startswith("task_"):
                own[name] = np.broadcast_to(np.zeros((), part.dtype), (count, *part.shape[1:]))
        check_parts("EWC", state, own)
        strength, fisher = float(state["lambda"]), state["fisher"]
        low, high = self.config.min_lambda, self.config.max_lambda
        kind_codes = [int(code) for code in state["task_kinds"]]
        if not low <= strength <= high or fisher.min() < 0 or max(kind_codes, default=0) >= len(FISHER_KINDS):
            raise LearningError(
                f"the EWC's state has λ {strength}, expected {low:g} to {high:g}, a negative Fisher, or one of an "
                "unknown kind: it is damaged, or was learned with other settings"
            )
        tasks = [
            TaskMemory(
                np.array(state["task_fishers"][k], dtype=np.float32),
                np.array(state["task_anchors"][k], dtype=np.float32),
                int(state["task_samples"][k]),
                float(state["task_qualities"][k]) if state["task_judged"][k] else None,
                FISHER_KINDS[kind_codes[k]],
                float(state["task_weights"][k]),
            )
            for k in range(count)
        ]
        prefix = "boundary_"
        boundary = TaskBoundary(self._boundary.dim, self._boundary.config)
        boundary.load_state({n.removeprefix(prefix): part for n, part in state.items() if n.startswith(prefix)})
        before, before_lambda = tuple(self._ring), self._lambda
        try:
            self._ring.replace(tasks)
            self._set_sums(strength)
        except LearningError:
            self._ring.replace(before)
            self._set_sums(before_lambda)
            raise
        self._boundary = boundary
        self._fisher.value[...] = fisher
        self._fisher.samples = int(state["fisher_samples"])

    def _parameters(self, theta: ArrayLike | None) -> FloatVector:
        given = self._theta if theta is None else theta
        if given is None:
            raise InvalidInput("no parameters: pass theta, since a penalty depends on where they are")
        return kernels.as_vector(given, self.param_count, "theta")

    @staticmethod
    def _rate(rate: float) -> float:
        if not isinstance(rate, float | int) or isinstance(rate, bool) or not 0 <= rate <= 1e6:
            raise ConfigError(f"the step size is {rate!r}, expected 0 to 1e6")
        return float(rate)
