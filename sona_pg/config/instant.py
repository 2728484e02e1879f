"""Loop A: what happens at every request."""

from __future__ import annotations

from dataclasses import dataclass

from sona_pg.config.checks import check_flag, check_whole, check_within, rank_within


@dataclass(frozen=True, slots=True)
class InstantLoopConfig:
    """Loop A: what happens at every request.

    Parameters
    ----------
    micro_lora_rank
        Rank of the micro-LoRA, 1 or 2.
    micro_lora_lr
        Step size of the micro-LoRA.
    edge_update_scale
        Unit of edge updates: an edge between items that helped together gains 5 units of what it lacks to 1, an edge
        to an item that was shown beside them and did not help loses 2 units of what it has.
    max_pending_signals
        Trajectories that may wait to be learned; one more is refused and counted.
    flush_interval_seconds
        Longest time that what was recorded waits to be durable.
    max_unflushed
        Learned trajectories that may wait for the database; one more is refused and counted.
    patience_seconds
        A flush that takes longer may hang: what is recorded goes to the spool meanwhile, and `close` waits no longer.
    """

    micro_lora_rank: int = 1
    micro_lora_lr: float = 0.001
    edge_update_scale: float = 0.01
    max_pending_signals: int = 1000
    flush_interval_seconds: float = 0.5
    max_unflushed: int = 20_000
    patience_seconds: float = 5.0

    def __post_init__(self) -> None:
        check_whole("micro_lora_rank", self.micro_lora_rank, 1, 2)
        check_within("micro_lora_lr", self.micro_lora_lr, 0.0, 1.0)
        check_within("edge_update_scale", self.edge_update_scale, 0.0, 0.2)
        check_whole("max_pending_signals", self.max_pending_signals, 1, 1 << 20)
        check_within("flush_interval_seconds", self.flush_interval_seconds, 0.001, 3600.0)
        check_whole("max_unflushed", self.max_unflushed, 1, 1 << 24)
        check_within("patience_seconds", self.patience_seconds, 0.01, 3600.0)


@dataclass(frozen=True, slots=True)
class QueryAdapterConfig:
    """The retrieval adapter and its listwise recipe.

    Parameters
    ----------
    rank
        Rank of the adapter. The first direction is the mean of the items, the others their principal directions.
    learning_rate
        Adam's step size; 3e-3 and more at a low temperature has lost up to 11 nDCG points.
    temperature
        τ of the softmax over cosines.
    negatives
        Random items beside the judged ones in every list.
    max_marked
        Helpful items that were not shown, at most so many in a list.
    beta1, beta2, epsilon
        Adam's constants (Kingma & Ba 2015).
    average_decay
        Bound of the served average's decay, ``min(average_decay, (1 + t) / (10 + t))``.
    pool_size
        Items kept as negatives and for the initial directions; a sample by hash of the id where there are more.
    """

    rank: int = 8
    learning_rate: float = 1e-3
    temperature: float = 0.07
    negatives: int = 64
    max_marked: int = 3
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    average_decay: float = 0.99
    pool_size: int = 4096

    def __post_init__(self) -> None:
        check_whole("rank", self.rank, 1, 64)
        check_within("learning_rate", self.learning_rate, 0.0, 1.0)
        check_within("temperature", self.temperature, 1e-3, 10.0)
        check_whole("negatives", self.negatives, 0, 4096)
        check_whole("max_marked", self.max_marked, 0, 1000)
        check_within("beta1", self.beta1, 0.0, 0.9999)
        check_within("beta2", self.beta2, 0.0, 0.999999)
        check_within("epsilon", self.epsilon, 1e-12, 1.0)
        check_within("average_decay", self.average_decay, 0.0, 0.99999)
        check_whole("pool_size", self.pool_size, 0, 1 << 20)

    @classmethod
    def for_dim(cls, dim: int) -> QueryAdapterConfig:
        """The defaults for a space of `dim` components: a rank that it can have."""
        return cls(rank=rank_within(dim, cls().rank))


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """The base LoRA, which the background loop trains.

    Parameters
    ----------
    rank
        Rank of every layer: 4 to 16 as a rule, less where the dimension is.
    num_layers
        How many layers there are; an adapter of queries has one.
    alpha
        The output is scaled by alpha / rank; None is the rank, a scale of 1.
    train_down
        Whether A is trained, too. A frozen orthonormal A makes B the coordinates of ΔW: a Fisher penalty then charges
        the same function the same, whatever its factors.
    """

    rank: int = 8
    num_layers: int = 1
    alpha: float | None = None
    train_down: bool = False

    def __post_init__(self) -> None:
        check_whole("rank", self.rank, 1, 16)
        check_whole("num_layers", self.num_layers, 1, 1024)
        if self.alpha is not None:
            check_within("alpha", self.alpha, 1e-6, 1e6)
        check_flag("train_down", self.train_down)

    @classmethod
    def for_dim(cls, dim: int) -> LoraConfig:
        """The defaults for layers of `dim` components: a rank that they can have."""
        return cls(rank=rank_within(dim, cls().rank))


@dataclass(frozen=True, slots=True)
class SignalConfig:
    """How rewards become REINFORCE signals.

    Parameters
    ----------
    max_gradient_norm
        Longer gradient estimates are cut to this norm.
    prior_reward, prior_weight
        Baseline before anything was seen, and for how many trajectories it counts.
    centring_signals
        So many first signals turn the micro-LoRA's first direction to the mean of their queries. A random direction
        sees a query of unit length at 1/sqrt(dim), and may see two kinds of queries with opposite signs.
    """

    max_gradient_norm: float = 10.0
    prior_reward: float = 0.5
    prior_weight: float = 1.0
    centring_signals: int = 16

    def __post_init__(self) -> None:
        check_within("max_gradient_norm", self.max_gradient_norm, 1e-6, 1e6)
        check_within("prior_reward", self.prior_reward, -1e6, 1e6)
        check_within("prior_weight", self.prior_weight, 0.0, 1e6)
        check_whole("centring_signals", self.centring_signals, 0, 1 << 20)
