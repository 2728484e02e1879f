"""The base of the adapter, and what holds earlier tasks."""

from __future__ import annotations

from dataclasses import dataclass

from sona_pg.config.checks import check_flag, check_whole, check_within, rank_within
from sona_pg.config.limits import VECTOR_BYTES
from sona_pg.errors import ConfigError

FISHER_KINDS = ("empirical", "sampled", "exact", "batched")
"""Whose gradients a Fisher is of: the observed label's, that of a label drawn from the model, the expectation over the
model's labels, or (as some libraries do, and too small by far) whole batches' (van de Ven 2025, arXiv 2502.11756)."""


@dataclass(frozen=True, slots=True)
class EwcConfig:
    """EWC++: how what earlier tasks need is remembered, and how strongly it is held.

    Parameters
    ----------
    param_count
        Number of parameters; None takes it from the parameter vector.
    max_tasks
        Tasks that are remembered; one more, and the oldest is forgotten.
    initial_lambda
        Strength of the penalty to begin with.
    min_lambda, max_lambda
        Range in which the strength adapts.
    fisher_ema_decay
        Decay of the Fisher's moving average for each sample.
    fisher_kind
        Whose gradients `update_fisher` is given, one of `FISHER_KINDS`; kept beside what is remembered.
    anchors
        'own': every task is held where it was learned. 'latest': all are held where the latest one ended, which was
        found under the penalty of the others already, so that nothing is counted twice (Huszár 2018).
    tolerated_loss
        Loss on the remembered tasks that the strength is adapted to, nats.
    lambda_rate
        How fast it adapts: the exponent of a step at which nothing was lost.
    learning_rate
        Step size that `apply_constraints` assumes where it is not told.
    same_task
        Cosine of the mean direction of its queries from which a task is one that was there before.
    sparsity
        Weight of the penalty Σ|θ|, part of the same proximal step.
    project_gradients
        Whether a gradient loses its part that would raise the loss on the remembered tasks before it is constrained.
    """

    param_count: int | None = None
    max_tasks: int = 10
    initial_lambda: float = 30.0
    min_lambda: float = 1.0
    max_lambda: float = 10_000.0
    fisher_ema_decay: float = 0.999
    fisher_kind: str = "empirical"
    anchors: str = "own"
    tolerated_loss: float = 0.01
    lambda_rate: float = 0.5
    learning_rate: float = 1e-4
    same_task: float = 0.9
    sparsity: float = 0.0
    project_gradients: bool = False

    def __post_init__(self) -> None:
        if self.param_count is not None:
            check_whole("param_count", self.param_count, 1, 1 << 28)
        check_whole("max_tasks", self.max_tasks, 1, 1000)
        check_within("min_lambda", self.min_lambda, 1e-9, 1e9)
        check_within("max_lambda", self.max_lambda, self.min_lambda, 1e9)
        check_within("initial_lambda", self.initial_lambda, self.min_lambda, self.max_lambda)
        check_within("fisher_ema_decay", self.fisher_ema_decay, 0.0, 0.999999)
        if not isinstance(self.fisher_kind, str) or self.fisher_kind not in FISHER_KINDS:
            raise ConfigError(f"fisher_kind is {self.fisher_kind!r}, expected one of {', '.join(FISHER_KINDS)}")
        if not isinstance(self.anchors, str) or self.anchors not in ("own", "latest"):
            raise ConfigError(f"anchors is {self.anchors!r}, expected 'own' or 'latest'")
        check_within("tolerated_loss", self.tolerated_loss, 1e-6, 1e6)
        check_within("lambda_rate", self.lambda_rate, 0.0, 10.0)
        check_within("learning_rate", self.learning_rate, 0.0, 1e6)
        check_within("same_task", self.same_task, -1.0, 1.0)
        check_within("sparsity", self.sparsity, 0.0, 1e6)
        check_flag("project_gradients", self.project_gradients)


@dataclass(frozen=True, slots=True)
class BoundaryConfig:
    """When a stream of vectors counts as having changed.

    Parameters
    ----------
    run_length
        Fewest steps between false alarms in the mean; P(false alarm by step n) is at most n / run_length.
    warm_up
        First vectors, which the mean and the variance of each component are taken from.
    window
        Latest scores that the next one is ranked among.
    seed
        Of the order of equal scores.
    """

    run_length: float = 10_000.0
    warm_up: int = 32
    window: int = 2048
    seed: int = 0

    def __post_init__(self) -> None:
        check_within("run_length", self.run_length, 1.0, 1e12)
        check_whole("warm_up", self.warm_up, 2, 100_000)
        check_whole("window", self.window, 16, 1_000_000)
        check_whole("seed", self.seed, 0, (1 << 63) - 1)


@dataclass(frozen=True, slots=True)
class BaseTrainingConfig:
    """How a candidate for the base is made: the query adapter's recipe, several times over what was judged.

    Parameters
    ----------
    rank
        Of the base.
    epochs
        How often a list is learned in a cycle.
    learning_rate
        Adam's step size in the beginning; it falls linearly to 0. Half of the query adapter's: a list is learned again
        in every cycle in which it is in the reservoir.
    decay
        How much of B a step of that size takes away: towards the frozen embedding, where nothing is learned.
    reservoir
        Earlier lists that are learned again, a uniform sample of all; no more of the hour are learned, and as many
        are withheld.
    max_vector_bytes
        Most that their vectors take in memory: where there are many dimensions there are fewer lists. None: as much as
        the loop's queries may (`BackgroundConfig.max_vector_bytes`), or as that is by default, where there is no loop.
    distillation
        μ, how much a squared error of the output at queries of earlier tasks counts against nats of the listwise loss;
        0 holds no outputs. At 3 the second of two tasks lost more, once, than the first one kept.
    distillation_batch
        Of those queries, so many by which a step is held. With 128 no less was forgotten.
    """

    rank: int = 16
    epochs: int = 4
    learning_rate: float = 5e-4
    decay: float = 1.0
    reservoir: int = 4096
    max_vector_bytes: int | None = None
    distillation: float = 2.0
    distillation_batch: int = 8

    def __post_init__(self) -> None:
        check_within("distillation", self.distillation, 0.0, 1e6)
        check_whole("distillation_batch", self.distillation_batch, 1, 1 << 16)
        if self.max_vector_bytes is not None:
            check_whole("max_vector_bytes", self.max_vector_bytes, 1 << 20, 1 << 40)
        check_whole("rank", self.rank, 1, 64)
        check_whole("epochs", self.epochs, 0, 100)
        check_within("learning_rate", self.learning_rate, 0.0, 1.0)
        check_within("decay", self.decay, 0.0, 100.0)
        check_whole("reservoir", self.reservoir, 1, 1 << 20)

    def lists_of(self, dim: int) -> int:
        """How many earlier lists, and as many of the hour, there is room for."""
        # A query and nine items, three times: earlier ones, new ones, and those that are withheld. Queries of earlier
        # tasks, among the first two of these, once more, with what was answered to them.
        most = VECTOR_BYTES if self.max_vector_bytes is None else self.max_vector_bytes
        return max(min(self.reservoir, most // (4 * dim * (10 * 3 + 2 * 2))), 1)

    @classmethod
    def for_dim(cls, dim: int) -> BaseTrainingConfig:
        """The defaults for a space of `dim` components: a rank that it can have."""
        return cls(rank=rank_within(dim, cls().rank))


@dataclass(frozen=True, slots=True)
class GateConfig:
    """What a candidate for the base must stand before it is published.

    Parameters
    ----------
    withheld
        Share of the events, by hash of their id, that are not learned before a cycle has decided by them.
    related_z
        Standard deviations by which outcomes must differ from shuffled ones: what helped is about the query, and what
        was shown and helped is nearer to it than what was shown and did not. One shuffled hour in a hundred passes.
    min_events
        Events in which something helped, without which an hour says nothing.
    losing_z
        Standard errors by which withheld events may stand lower than they do now. Their number is small, and a
        candidate that is as good as what is served must not be refused every other time.
    """

    withheld: float = 0.05
    related_z: float = 2.33
    min_events: int = 10
    losing_z: float = 1.0

    def __post_init__(self) -> None:
        check_within("withheld", self.withheld, 0.0, 0.5)
        check_within("related_z", self.related_z, 0.0, 10.0)
        check_whole("min_events", self.min_events, 2, 1_000_000)
        check_within("losing_z", self.losing_z, 0.0, 10.0)


@dataclass(frozen=True, slots=True)
class DistillationConfig:
    """Holds what one adapter answered in earlier domains, while it learns another.

    Parameters
    ----------
    queries
        Remembered of each domain.
    weight
        μ, how much a squared error of the output counts against nats of the listwise loss.
    batch
        Remembered queries, as many of every domain, by which a step is held. Fewer are noisier, and noise moves outputs
        too.
    """

    queries: int = 200
    weight: float = 30.0
    batch: int = 256

    def __post_init__(self) -> None:
        check_whole("queries", self.queries, 1, 1 << 20)
        check_within("weight", self.weight, 0.0, 1e6)
        check_whole("batch", self.batch, 1, 1 << 16)
