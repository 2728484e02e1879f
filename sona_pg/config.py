"""Every default of sona_pg, once, with its unit and its reason. A value out of range is refused when it is given."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from sona_pg.errors import ConfigError


def _whole(name: str, value: int, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ConfigError(f"{name} is {value!r}, expected a whole number from {low} to {high}")
    _within(name, value, low, high)


def _within(name: str, value: float, low: float, high: float) -> None:
    if not isinstance(value, float | int) or not low <= value <= high:
        raise ConfigError(f"{name} is {value!r}, expected {low} to {high}")


def _flag(name: str, value: bool) -> None:
    if not isinstance(value, bool):
        raise ConfigError(f"{name} is {value!r}, expected True or False")


BACKGROUND_SECONDS = 3600.0
"""Time between two cycles of loop B."""

DEEP_SECONDS = 7 * 86_400.0
"""Time between two cycles of loop C."""

CONSOLIDATION_THRESHOLD = 0.7
"""Value of both ends from which an edge of the memory graph is strengthened."""

PHI_THRESHOLD = 0.3
"""Integration from which a dream may leave something behind, see `PhiConfig`."""

MIN_TRAJECTORIES = 100
"""New trajectories without which a cycle of loop B is skipped."""

VECTOR_BYTES = 160 << 20
"""Most that the vectors of a cycle's phase take in memory."""


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
        _whole("micro_lora_rank", self.micro_lora_rank, 1, 2)
        _within("micro_lora_lr", self.micro_lora_lr, 0.0, 1.0)
        _within("edge_update_scale", self.edge_update_scale, 0.0, 0.2)
        _whole("max_pending_signals", self.max_pending_signals, 1, 1 << 20)
        _within("flush_interval_seconds", self.flush_interval_seconds, 0.001, 3600.0)
        _whole("max_unflushed", self.max_unflushed, 1, 1 << 24)
        _within("patience_seconds", self.patience_seconds, 0.01, 3600.0)


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
        _whole("rank", self.rank, 1, 64)
        _within("learning_rate", self.learning_rate, 0.0, 1.0)
        _within("temperature", self.temperature, 1e-3, 10.0)
        _whole("negatives", self.negatives, 0, 4096)
        _whole("max_marked", self.max_marked, 0, 1000)
        _within("beta1", self.beta1, 0.0, 0.9999)
        _within("beta2", self.beta2, 0.0, 0.999999)
        _within("epsilon", self.epsilon, 1e-12, 1.0)
        _within("average_decay", self.average_decay, 0.0, 0.99999)
        _whole("pool_size", self.pool_size, 0, 1 << 20)

    @classmethod
    def for_dim(cls, dim: int) -> QueryAdapterConfig:
        """The defaults for a space of `dim` components: a rank that it can have."""
        if not isinstance(dim, int):
            raise ConfigError(f"dimension is {dim!r}, expected a whole number")
        return cls(rank=max(1, min(cls().rank, dim)))


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
        _whole("rank", self.rank, 1, 16)
        _whole("num_layers", self.num_layers, 1, 1024)
        if self.alpha is not None:
            _within("alpha", self.alpha, 1e-6, 1e6)
        _flag("train_down", self.train_down)

    @classmethod
    def for_dim(cls, dim: int) -> LoraConfig:
        """The defaults for layers of `dim` components: a rank that they can have."""
        if not isinstance(dim, int):
            raise ConfigError(f"dimension is {dim!r}, expected a whole number")
        return cls(rank=max(1, min(cls().rank, dim)))


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
        _within("max_gradient_norm", self.max_gradient_norm, 1e-6, 1e6)
        _within("prior_reward", self.prior_reward, -1e6, 1e6)
        _within("prior_weight", self.prior_weight, 0.0, 1e6)
        _whole("centring_signals", self.centring_signals, 0, 1 << 20)


STRATEGIES = ("learned", "frozen", "adapted", "familiar", "boosted", "stake", "fusion", "related", "shadow")
"""What may answer in a space; shadow learns and reports as learned does, and answers as frozen does."""


LEAST_SHARE = 0.001
"""Smallest share of answers that a control arm may have."""


@dataclass(frozen=True, slots=True)
class SpaceConfig:
    """What a space declares about its traffic.

    Parameters
    ----------
    reward_min, reward_max
        Declared range of rewards and qualities; others are refused. A reward above 0 is helpful.
    implicit_feedback
        Whether an item that was shown and not judged counts as unhelpful when another one helped.
    strategy
        What answers: 'learned' is whatever outcomes have proven to be best, any other one is fixed.
    examination
        Probability that an item is looked at, by position from 1; the last one holds beyond. None where it is unknown:
        then nothing is corrected for it.
    control_share
        Share of answers that the frozen embedding gives, to measure the lift by; 0 has no control arm.
    """

    reward_min: float = 0.0
    reward_max: float = 1.0
    implicit_feedback: bool = False
    strategy: str = "learned"
    examination: tuple[float, ...] | None = None
    control_share: float = 0.05

    def __post_init__(self) -> None:
        _within("control_share", self.control_share, 0.0, 0.5)
        if 0 < self.control_share < LEAST_SHARE:
            raise ConfigError(
                f"control_share is {self.control_share}, expected 0, or {LEAST_SHARE} to 0.5: so few say nothing"
            )
        if not isinstance(self.strategy, str) or self.strategy not in STRATEGIES:
            raise ConfigError(f"strategy is {self.strategy!r}, expected one of {', '.join(STRATEGIES)}")
        if self.examination is not None:
            self._check_examination(self.examination)
        _flag("implicit_feedback", self.implicit_feedback)
        _within("reward_min", self.reward_min, -1e6, 1e6)
        _within("reward_max", self.reward_max, -1e6, 1e6)
        for name in ("reward_min", "reward_max", "control_share"):
            # As the database keeps it, so that a bound belongs to its own range on both sides.
            object.__setattr__(self, name, struct.unpack("f", struct.pack("f", getattr(self, name)))[0])
        if not self.reward_min < self.reward_max or self.reward_max <= 0:
            raise ConfigError(
                f"the range of rewards is {self.reward_min} to {self.reward_max}: "
                "expected the lower bound below the upper one, and the upper one above 0: a reward above 0 is helpful"
            )

    def _check_examination(self, given: tuple[float, ...]) -> None:
        if not isinstance(given, tuple | list) or not 1 <= len(given) <= 1000:
            raise ConfigError(f"examination is {given!r}, expected 1 to 1000 probabilities, one for each position")
        for probability in given:
            _within("examination", probability, 1e-6, 1.0)
        # As the database keeps it.
        object.__setattr__(self, "examination", struct.unpack(f"{len(given)}f", struct.pack(f"{len(given)}f", *given)))


@dataclass(frozen=True, slots=True)
class StrategyConfig:
    """How the strategy that answers is learned.

    Parameters
    ----------
    candidates
        Items nearest to the query that are scored; beside them what helped near it.
    neighbours, neighbours_learning
        Remembered events that are asked about items, to answer and to learn: as if an answer had never been seen, those
        in which it helped are left out.
    misses_near
        So many of them, the nearest, say which items did not help.
    vote_kernel
        Width of the kernel exp((cosine - 1) / width) by which events vote.
    familiar_from, familiar_width
        The adapter is served by how familiar the ground is: not at all where no event is nearer than the first, wholly
        where one is nearer by the second.
    fusion_learning_rate, fusion_average
        Adam's step size and the served average's decay of the fusion's weights.
    counterfactual_weight
        Weight of the step on an event as if its answer had never been seen.
    folds
        Adapters of which each has not seen the answers of a part of the events, for that step.
    stake_rank, stake_learning_rate, stake_temperature, stake_negatives
        Recipe of the adapter that answers by its stake while a space is small.
    gate_threshold
        1/alpha of everything that is ever proven to beat frozen, taken together.
    gate_later
        Part of that evidence's capital that is kept for late starts.
    stake_keep
        What is left of the stakes' sums after an event.
    stake_from
        Stake at which it begins to answer; it goes on down to zero.
    stake_prior, strange_prior
        Sum of differences that is expected of five events before anything is known, on familiar and on strange ground:
        where nothing was tried nothing is promised.
    sanity_open, sanity_close
        Capital of the sanity test at which anything but frozen may answer, and below which nothing else may.
    sanity_window
        Over how many of the last events it looks.
    choice_open, choice_window
        The same of the second sanity test: whether, of what was shown, it was the nearer that helped.
    most_helped, most_remembered
        Items that helped in one event, at most so many of them count, and are remembered: those that helped most.
    sanity_events
        Among how many remembered queries the own one is ranked.
    rank_items
        Among how many items of the sample the helpful ones are ranked, to weigh the stakes.
    related_starts, related_hops, related_factor
        From so many of the nearest items activation spreads over the memory graph, so often, and each time this share
        of it goes on.
    related_weight
        What activation counts beside the cosine: so much for the item that most of it comes to, where the graph knows
        all that starts.
    regions
        Parts of the query space that have evidence of their own.
    region_near
        A query this near to a region's centre begins no other one.
    region_pattern
        Cosine of a region's centre to a pattern from which the region may become that pattern.
    region_prior
        Events by which the gain of a region is shrunk to that of the space.
    harm_threshold, harm_later
        1/alpha at which it is proven, by the control arm, that the frozen embedding is better, and what answers is
        given up; and the part of that evidence's capital that is kept for late starts.
    harm_keep, suspected_controls, suspected_from, suspected_until, suspected_share
        The control arm is enlarged to this share while what answers looks harmful: from a z-score on, down to another
        one, once there were so many controls; an answer counts by so much less than the next.
    prototypes, prototype_near
        Remembered queries by which `adapt` tells familiar ground, at most so many, none this near to another.
    """

    candidates: int = 40
    neighbours: int = 40
    neighbours_learning: int = 100
    misses_near: int = 10
    vote_kernel: float = 0.1
    familiar_from: float = 0.5
    familiar_width: float = 0.3
    fusion_learning_rate: float = 0.03
    fusion_average: float = 0.98
    counterfactual_weight: float = 0.25
    folds: int = 3
    stake_rank: int = 2
    stake_learning_rate: float = 2e-3
    stake_temperature: float = 0.1
    stake_negatives: int = 256
    gate_threshold: float = 20.0
    gate_later: float = 0.2
    stake_keep: float = 0.99
    stake_from: float = 0.1
    stake_prior: float = 0.1
    strange_prior: float = 0.0
    sanity_open: float = 1e4
    sanity_close: float = 1.0
    sanity_window: int = 20
    choice_open: float = 1e3
    choice_window: int = 40
    most_helped: int = 16
    most_remembered: int = 64
    sanity_events: int = 512
    rank_items: int = 256
    related_starts: int = 5
    related_hops: int = 2
    related_factor: float = 0.7
    related_weight: float = 1.0
    regions: int = 16
    region_near: float = 0.95
    region_pattern: float = 0.8
    region_prior: float = 50.0
    harm_threshold: float = 200.0
    harm_later: float = 0.2
    harm_keep: float = 0.999
    suspected_controls: int = 5
    suspected_from: float = 0.5
    suspected_until: float = -0.25
    suspected_share: float = 0.5
    prototypes: int = 256
    prototype_near: float = 0.8

    def __post_init__(self) -> None:
        _whole("candidates", self.candidates, 1, 1000)
        _whole("neighbours", self.neighbours, 1, 1000)
        _whole("neighbours_learning", self.neighbours_learning, self.neighbours, 10_000)
        _whole("misses_near", self.misses_near, 0, 1000)
        _within("vote_kernel", self.vote_kernel, 1e-3, 10.0)
        _within("familiar_from", self.familiar_from, -1.0, 1.0)
        _within("familiar_width", self.familiar_width, 1e-3, 2.0)
        _within("fusion_learning_rate", self.fusion_learning_rate, 0.0, 1.0)
        _within("fusion_average", self.fusion_average, 0.0, 0.99999)
        _within("counterfactual_weight", self.counterfactual_weight, 0.0, 1.0)
        _whole("folds", self.folds, 2, 16)
        _whole("stake_rank", self.stake_rank, 1, 64)
        _within("stake_learning_rate", self.stake_learning_rate, 0.0, 1.0)
        _within("stake_temperature", self.stake_temperature, 1e-3, 10.0)
        _whole("stake_negatives", self.stake_negatives, 0, 4096)
        _within("gate_threshold", self.gate_threshold, 1.0, 1e9)
        _within("gate_later", self.gate_later, 0.0, 0.99)
        _within("stake_keep", self.stake_keep, 0.5, 1.0)
        _within("stake_from", self.stake_from, 0.0, 1.0)
        _within("stake_prior", self.stake_prior, 0.0, 5.0)
        _within("strange_prior", self.strange_prior, 0.0, 5.0)
        _within("choice_open", self.choice_open, 1.0, 1e12)
        _whole("choice_window", self.choice_window, 1, 10_000)
        _whole("most_helped", self.most_helped, 1, 1000)
        _whole("most_remembered", self.most_remembered, self.most_helped, 10_000)
        _within("harm_threshold", self.harm_threshold, 2.0, 1e9)
        _within("harm_later", self.harm_later, 0.0, 0.99)
        _within("harm_keep", self.harm_keep, 0.5, 1.0)
        _whole("suspected_controls", self.suspected_controls, 1, 1_000_000)
        _within("suspected_from", self.suspected_from, 0.0, 100.0)
        _within("suspected_until", self.suspected_until, -100.0, self.suspected_from)
        _within("suspected_share", self.suspected_share, 0.0, 0.5)
        _within("sanity_open", self.sanity_open, 1.0, 1e12)
        _within("sanity_close", self.sanity_close, 0.0, 1e12)
        _whole("sanity_window", self.sanity_window, 1, 10_000)
        _whole("sanity_events", self.sanity_events, 1, 1_000_000)
        _whole("rank_items", self.rank_items, 1, 1 << 20)
        _whole("related_starts", self.related_starts, 1, 100)
        _whole("related_hops", self.related_hops, 0, 10)
        _within("related_factor", self.related_factor, 0.0, 1.0)
        _within("related_weight", self.related_weight, 0.0, 10.0)
        _whole("regions", self.regions, 1, 1000)
        _within("region_near", self.region_near, -1.0, 1.0)
        _within("region_pattern", self.region_pattern, -1.0, 1.0)
        _within("region_prior", self.region_prior, 0.0, 1e9)
        _whole("prototypes", self.prototypes, 1, 10_000)
        _within("prototype_near", self.prototype_near, -1.0, 1.0)


@dataclass(frozen=True, slots=True)
class PatternConfig:
    """The reasoning bank: how trajectories become patterns.

    Parameters
    ----------
    k_clusters
        Clusters of an extraction at most; fewer where they could not all have `min_cluster_size` trajectories.
    embedding_dim
        Dimension of queries.
    max_iterations
        Steps of k-means at most.
    convergence_threshold
        A step of k-means that lowers the objective by no more than this part of it is the last one.
    min_cluster_size
        A cluster of fewer trajectories begins no pattern; one that exists already may shrink below it.
    quality_threshold
        Average quality from which a pattern counts as good, and below which it may be pruned.
    max_trajectories
        Trajectories that are kept, the newest ones.
    match_threshold
        Cosine from which a cluster may be the pattern that was there before.
    merge_threshold
        Patterns with a cosine above this are one; at 1 none are.
    prior_quality
        Average quality of a pattern of which nothing was judged.
    confidence_prior
        Judged trajectories at which a pattern's confidence is one half.
    half_life_seconds
        Time in which the weight of a pattern halves.
    prune_accesses, prune_age_seconds
        A pattern of low quality is pruned if it was found fewer times than this, and neither created, found nor fed
        for this long.
    seed
        Of k-means.
    """

    k_clusters: int = 50
    embedding_dim: int = 256
    max_iterations: int = 100
    convergence_threshold: float = 0.001
    min_cluster_size: int = 5
    quality_threshold: float = 0.3
    max_trajectories: int = 10_000
    match_threshold: float = 0.8
    merge_threshold: float = 0.95
    prior_quality: float = 0.5
    confidence_prior: float = 10.0
    half_life_seconds: float = 30 * 86_400.0
    prune_accesses: int = 5
    prune_age_seconds: float = 30 * 86_400.0
    seed: int = 0

    def __post_init__(self) -> None:
        _whole("k_clusters", self.k_clusters, 1, 10_000)
        _whole("embedding_dim", self.embedding_dim, 1, MAX_DIM)
        _whole("max_iterations", self.max_iterations, 1, 10_000)
        _within("convergence_threshold", self.convergence_threshold, 0.0, 0.5)
        _whole("min_cluster_size", self.min_cluster_size, 1, 1_000_000)
        _within("quality_threshold", self.quality_threshold, -1e6, 1e6)
        _whole("max_trajectories", self.max_trajectories, 1, 10_000_000)
        _within("match_threshold", self.match_threshold, -1.0, 1.0)
        _within("merge_threshold", self.merge_threshold, 0.0, 1.0)
        _within("prior_quality", self.prior_quality, -1e6, 1e6)
        _within("confidence_prior", self.confidence_prior, 0.0, 1e6)
        _within("half_life_seconds", self.half_life_seconds, 1.0, 1e12)
        _whole("prune_accesses", self.prune_accesses, 0, 1 << 31)
        _within("prune_age_seconds", self.prune_age_seconds, 0.0, 1e12)
        _whole("seed", self.seed, 0, (1 << 63) - 1)


@dataclass(frozen=True, slots=True)
class VerdictConfig:
    """Which parameters worked: what is kept of them, and what it takes to say so.

    Parameters
    ----------
    quality_range
        Width of the range of qualities; a difference of two is divided by it.
    decide_at
        E at which a standing decision is made, and at which it is taken back, of two values; of more it is as many
        times that as there are comparisons.
    max_parameters, max_values
        Parameters of a pattern, and values of a parameter, that are kept: numbers beyond are merged with the nearest
        one, other values with the least support are dropped.
    max_value_bytes
        A value that is longer, as JSON in UTF-8, is skipped.
    max_waiting
        Outcomes that wait for one of another value to be compared with; the oldest goes.
    min_support
        Outcomes of a value, and of all others, before anything is recommended.
    shrinkage
        Outcomes by which the mean of a value is drawn to that of all of them.
    similarity_width
        Patterns count by exp((cosine - best cosine) / width).
    """

    quality_range: float = 1.0
    decide_at: float = 20.0
    max_parameters: int = 32
    max_values: int = 16
    max_value_bytes: int = 1000
    max_waiting: int = 64
    min_support: int = 3
    shrinkage: float = 2.0
    similarity_width: float = 0.05

    def __post_init__(self) -> None:
        _within("quality_range", self.quality_range, 1e-6, 1e6)
        _within("decide_at", self.decide_at, 1.0, 1e12)
        _whole("max_parameters", self.max_parameters, 1, 10_000)
        _whole("max_values", self.max_values, 2, 1000)
        _whole("max_value_bytes", self.max_value_bytes, 1, 1 << 20)
        _whole("max_waiting", self.max_waiting, 1, 10_000)
        _whole("min_support", self.min_support, 1, 1_000_000)
        _within("shrinkage", self.shrinkage, 0.0, 1e6)
        _within("similarity_width", self.similarity_width, 1e-3, 10.0)


@dataclass(frozen=True, slots=True)
class PhiConfig:
    """Integration of dreams and of activations over time, and the gate for dreams.

    Parameters
    ----------
    threshold
        φ that a dream must reach, on the scale of a space of which the random paths reach 0.3 at the `quantile`: at 0.3
        a dream must hold together better than this share of random paths in its own space. 0 is an open gate.
    ridge
        Share of the identity in the correlations of a dream's nodes, 0 to 1.
    quantile
        Of φ over random paths.
    random_paths
        How many random paths that is estimated from.
    system_ridge
        What is added to the variance 1 of each node of a system that is fitted to activations.
    steps_per_node
        A series with fewer steps for each of its nodes is not fitted.
    shuffles
        Series without relations between nodes that a system's integration is shown beside; 0 shows none.
    seed
        Of random paths and shuffles.
    """

    threshold: float = PHI_THRESHOLD
    ridge: float = 0.01
    quantile: float = 0.95
    random_paths: int = 400
    system_ridge: float = 1e-3
    steps_per_node: int = 4
    shuffles: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        _within("threshold", self.threshold, 0.0, 1.0)
        if self.threshold == 1:
            raise ConfigError(f"threshold is {self.threshold!r}, expected 0 to below 1: no dream reaches 1")
        _within("ridge", self.ridge, 0.0, 1.0)
        _within("quantile", self.quantile, 0.0, 1.0)
        _whole("random_paths", self.random_paths, 1, 1_000_000)
        _within("system_ridge", self.system_ridge, 1e-9, 1.0)
        _whole("steps_per_node", self.steps_per_node, 2, 1_000_000)
        _whole("shuffles", self.shuffles, 0, 1_000_000)
        _whole("seed", self.seed, 0, (1 << 63) - 1)


@dataclass(frozen=True, slots=True)
class EvidenceConfig:
    """The strategist's loop: the ledger is read a second time, to find out which strategy is best.

    Parameters
    ----------
    interval_seconds
        Time between two looks whether there is something new.
    batch
        Ledger entries in one transaction.
    admit_interval_seconds
        Time between two looks whether the remembered queries of a space belong into the HNSW index.
    admit_rows
        Remembered queries after which that is looked at before the time: until then, every search reads all of them.
    stalled_seconds
        Whoever waits for the strategies to be weighed gives up once nobody has gone on for so long.
    """

    interval_seconds: float = 1.0
    batch: int = 64
    admit_interval_seconds: float = 60.0
    admit_rows: int = 1_000
    stalled_seconds: float = 60.0

    def __post_init__(self) -> None:
        _within("interval_seconds", self.interval_seconds, 0.01, 3600.0)
        _whole("batch", self.batch, 1, 10_000)
        _within("admit_interval_seconds", self.admit_interval_seconds, 0.0, 86_400.0)
        _whole("admit_rows", self.admit_rows, 1, 1 << 31)
        _within("stalled_seconds", self.stalled_seconds, 0.01, 86_400.0)


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """How the database is used.

    Parameters
    ----------
    connect_timeout_seconds
        Longest wait for a connection.
    lock_timeout_seconds
        Longest wait of a flush for the learner's row; the next one tries again.
    prepare_statements
        Whether the server may keep prepared statements; false behind a pooler in transaction mode.
    idle_connections
        Connections for searches that an engine keeps open; as many more as there are threads that search are made.
    publish_every_events
        Learned outcome events between two immutable versions.
    publish_every_seconds
        A version is published after this time, too, if anything was learned.
    exact_search_rows
        Spaces with more remembered queries than this are searched through an HNSW index, which workers fill; so are
        those with more patterns, through one of their own.
    access_interval_seconds
        Time between two writes of how often patterns were found.
    spool_max_bytes
        Most that a space's spool takes on this machine while the database is away; 0 keeps no spool.
    spool_segment_bytes
        Size at which the spool begins another file; a file is deleted once all of it is in the database.
    spool_batch
        Spooled trajectories and scores that are replayed in one transaction.
    replay_batch
        Ledger entries that are read at once to be learned once more.
    embed_batch
        Recorded queries that are embedded at once, and written in one transaction, when a space changes its embedder.
    """

    connect_timeout_seconds: int = 10
    lock_timeout_seconds: int = 10
    prepare_statements: bool = True
    idle_connections: int = 4
    publish_every_events: int = 500
    publish_every_seconds: int = 3600
    exact_search_rows: int = 4_000
    access_interval_seconds: float = 60.0
    spool_max_bytes: int = 1 << 30
    spool_segment_bytes: int = 16 << 20
    spool_batch: int = 500
    replay_batch: int = 1_000
    embed_batch: int = 256

    def __post_init__(self) -> None:
        _whole("connect_timeout_seconds", self.connect_timeout_seconds, 1, 3600)
        _whole("lock_timeout_seconds", self.lock_timeout_seconds, 1, 3600)
        _flag("prepare_statements", self.prepare_statements)
        _whole("idle_connections", self.idle_connections, 0, 10_000)
        _whole("publish_every_seconds", self.publish_every_seconds, 1, 1 << 31)
        _whole("publish_every_events", self.publish_every_events, 1, 1 << 31)
        _whole("exact_search_rows", self.exact_search_rows, 0, 1 << 31)
        _within("access_interval_seconds", self.access_interval_seconds, 0.0, 86_400.0)
        _whole("spool_max_bytes", self.spool_max_bytes, 0, 1 << 50)
        _whole("spool_segment_bytes", self.spool_segment_bytes, 1, 1 << 32)
        _whole("spool_batch", self.spool_batch, 1, 100_000)
        _whole("replay_batch", self.replay_batch, 1, 100_000)
        _whole("embed_batch", self.embed_batch, 1, 100_000)


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """Worker processes.

    Parameters
    ----------
    poll_interval_seconds
        Time between two looks for work while there is none.
    batch
        Trajectories in one learning transaction.
    open_spaces
        Spaces whose state a worker keeps in memory.
    retention_interval_seconds
        Time between two looks for what is past its retention; while there is more, a batch at every look for work.
    retention_batch
        Trajectories in one transaction that deletes.
    keep_versions
        Newest versions that stay; older ones stay as long as there is a trajectory that was answered by them.
    longest_setback_seconds
        A space that fails is tried again after 2, 4, 8 … seconds, up to this.
    set_aside_after
        A loop whose cycles failed so often in a space, one after the other, is set aside there until somebody sets its
        schedule or asks for a cycle.
    attempts
        A cycle whose workers died so often without finishing a phase has failed.
    drain_seconds
        A worker that is to end finishes the phase in hand; after this time it abandons it, and the next worker begins
        it again.
    keep_runs
        Newest runs of a loop in a space that stay.
    """

    poll_interval_seconds: float = 0.5
    batch: int = 500
    open_spaces: int = 64
    retention_interval_seconds: float = 60.0
    retention_batch: int = 1000
    keep_versions: int = 100
    longest_setback_seconds: float = 300.0
    set_aside_after: int = 5
    attempts: int = 5
    drain_seconds: float = 30.0
    keep_runs: int = 1000

    def __post_init__(self) -> None:
        _within("poll_interval_seconds", self.poll_interval_seconds, 0.01, 3600.0)
        _whole("batch", self.batch, 1, 100_000)
        _whole("open_spaces", self.open_spaces, 1, 10_000)
        _within("retention_interval_seconds", self.retention_interval_seconds, 0.0, 86_400.0)
        _whole("retention_batch", self.retention_batch, 1, 100_000)
        _whole("keep_versions", self.keep_versions, 1, 1_000_000)
        _within("longest_setback_seconds", self.longest_setback_seconds, 1.0, 86_400.0)
        _whole("set_aside_after", self.set_aside_after, 1, 1_000_000)
        _whole("attempts", self.attempts, 1, 1_000_000)
        _within("drain_seconds", self.drain_seconds, 0.0, 86_400.0)
        _whole("keep_runs", self.keep_runs, 1, 1_000_000)


@dataclass(frozen=True, slots=True)
class ScheduleConfig:
    """When a loop learns in a space whose schedule nobody has set.

    Parameters
    ----------
    every_seconds
        Time between two cycles; None if none is due by that.
    cron
        When a cycle is due, in five fields, UTC; None if none is due by that.
    amount
        New ledger entries that make a cycle due; None if none do.
    """

    every_seconds: float | None = None
    cron: str | None = None
    amount: int | None = None

    def __post_init__(self) -> None:
        if self.every_seconds is not None:
            if self.cron is not None:
                raise ConfigError("a schedule has an interval and a cron expression, expected one of the two")
            _within("every_seconds", self.every_seconds, 1.0, 366 * 86_400.0)
        if self.amount is not None:
            _whole("amount", self.amount, 1, 1 << 62)


BACKGROUND_SCHEDULE = ScheduleConfig(every_seconds=BACKGROUND_SECONDS)
"""Loop B: hourly."""


@dataclass(frozen=True, slots=True)
class BackgroundConfig:
    """Loop B: how much of the ledger a cycle takes in.

    Parameters
    ----------
    minimum
        New trajectories with an outcome, without which a cycle is skipped.
    max_trajectories
        Trajectories of which patterns are made, the newest ones.
    max_vector_bytes
        Most that their queries take in memory: in spaces of many dimensions there are fewer.
    shard_rows
        Of more trajectories than this several parts are made, which several processes can hold.
    """

    minimum: int = MIN_TRAJECTORIES
    max_trajectories: int = 100_000
    max_vector_bytes: int = VECTOR_BYTES
    shard_rows: int = 25_000

    def __post_init__(self) -> None:
        _whole("minimum", self.minimum, 1, 1_000_000)
        _whole("max_trajectories", self.max_trajectories, 1, 10_000_000)
        _whole("max_vector_bytes", self.max_vector_bytes, 1 << 20, 1 << 40)
        _whole("shard_rows", self.shard_rows, 1, 10_000_000)


FAIL, LOCAL = "fail", "local"
"""What is done without the scheduler of a cluster."""


@dataclass(frozen=True, slots=True)
class ShardConfig:
    """Where the parts of a large cycle are computed; what it comes to is the same everywhere.

    Parameters
    ----------
    processes
        Of this machine; with 1 the worker does all itself.
    scheduler
        Address of a Dask scheduler, such as ``tcp://host:8786``, whose workers do it instead.
    without_scheduler
        What is done where the scheduler cannot be reached: ``fail``, and the cycle is tried again later, or ``local``,
        processes of this machine do it.
    scheduler_timeout_seconds
        How long is waited for the scheduler.
    """

    processes: int = 2
    scheduler: str = ""
    without_scheduler: str = FAIL
    scheduler_timeout_seconds: float = 10.0

    def __post_init__(self) -> None:
        _whole("processes", self.processes, 1, 1024)
        _within("scheduler_timeout_seconds", self.scheduler_timeout_seconds, 0.1, 3600.0)
        if not isinstance(self.scheduler, str) or (self.scheduler and "://" not in self.scheduler):
            raise ConfigError(f"scheduler is {self.scheduler!r}, expected an address such as tcp://host:8786")
        if self.without_scheduler not in (FAIL, LOCAL):
            raise ConfigError(f"without_scheduler is {self.without_scheduler!r}, expected {FAIL!r} or {LOCAL!r}")
        if self.without_scheduler == LOCAL and not self.scheduler:
            raise ConfigError("without_scheduler is for a scheduler that cannot be reached: give one, or leave it out")


@dataclass(frozen=True, slots=True)
class DeepLoopConfig:
    """Loop C: what a cycle over the memory graph does.

    Parameters
    ----------
    dreams_per_cycle
        Dreams of a cycle at least; at 0 there are none.
    dreams_per_node, most_dreams
        In a larger graph there are so many for each of its nodes, up to the second: what few walks connect of many
        nodes is next to nothing.
    consolidation_threshold
        See `ConsolidationConfig.threshold`.
    phi_threshold
        See `PhiConfig.threshold`.
    max_cycle_seconds
        Phases that would begin later, or are not ready by then, are left to the next cycle, and that is said; at 0 all
        are.
    max_vector_bytes
        Most that embeddings of nodes take in memory: in large spaces of many dimensions near duplicates and φ are
        looked at among the nodes accessed last.
    pattern_items
        Items that a pattern has edges to, those that helped there most often.
    system_patterns, system_queries
        Patterns, the largest, whose integration is measured, and over how many queries, the newest.
    transfer_patterns
        Patterns of a space, the largest, that are compared with those of others.
    keep_dreams, keep_dreams_each
        Cycles whose dreams are kept, and how many of each, those that were integrated first.
    keep_archive_seconds
        For how long what was removed can be restored.
    """

    dreams_per_cycle: int = 50
    dreams_per_node: float = 6.0
    most_dreams: int = 20_000
    consolidation_threshold: float = CONSOLIDATION_THRESHOLD
    phi_threshold: float = PHI_THRESHOLD
    max_cycle_seconds: float = 600.0
    max_vector_bytes: int = VECTOR_BYTES
    pattern_items: int = 20
    system_patterns: int = 15
    system_queries: int = 5000
    transfer_patterns: int = 200
    keep_dreams: int = 10
    keep_dreams_each: int = 1000
    keep_archive_seconds: float = 365 * 86_400.0

    def __post_init__(self) -> None:
        _whole("dreams_per_cycle", self.dreams_per_cycle, 0, 100_000)
        _within("dreams_per_node", self.dreams_per_node, 0.0, 1000.0)
        _whole("most_dreams", self.most_dreams, 0, 100_000)
        _within("consolidation_threshold", self.consolidation_threshold, 0.0, 1.0)
        _within("phi_threshold", self.phi_threshold, 0.0, 1.0)
        if self.phi_threshold == 1:
            raise ConfigError(f"phi_threshold is {self.phi_threshold!r}, expected 0 to below 1: no dream reaches 1")
        _within("max_cycle_seconds", self.max_cycle_seconds, 0.0, 7 * 86_400.0)
        _whole("max_vector_bytes", self.max_vector_bytes, 1 << 20, 1 << 40)
        _whole("pattern_items", self.pattern_items, 0, 10_000)
        _whole("system_patterns", self.system_patterns, 2, 15)
        _whole("system_queries", self.system_queries, 2, 1_000_000)
        _whole("transfer_patterns", self.transfer_patterns, 1, 2000)
        _whole("keep_dreams", self.keep_dreams, 1, 10_000)
        _whole("keep_dreams_each", self.keep_dreams_each, 0, 100_000)
        # Longer ago there is no time that a database knows.
        _within("keep_archive_seconds", self.keep_archive_seconds, 0.0, 1e11)

    def dreams_of(self, nodes: int) -> int:
        """Dreams of a cycle over a graph of so many nodes."""
        _whole("nodes", nodes, 0, (1 << 31) - 1)
        if not self.dreams_per_cycle or not nodes:
            return 0
        return max(self.dreams_per_cycle, min(int(self.dreams_per_node * nodes), self.most_dreams))


DEEP_SCHEDULE = ScheduleConfig(every_seconds=DEEP_SECONDS)
"""Of loop C where nobody has set another one."""

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
            _whole("param_count", self.param_count, 1, 1 << 28)
        _whole("max_tasks", self.max_tasks, 1, 1000)
        _within("min_lambda", self.min_lambda, 1e-9, 1e9)
        _within("max_lambda", self.max_lambda, self.min_lambda, 1e9)
        _within("initial_lambda", self.initial_lambda, self.min_lambda, self.max_lambda)
        _within("fisher_ema_decay", self.fisher_ema_decay, 0.0, 0.999999)
        if not isinstance(self.fisher_kind, str) or self.fisher_kind not in FISHER_KINDS:
            raise ConfigError(f"fisher_kind is {self.fisher_kind!r}, expected one of {', '.join(FISHER_KINDS)}")
        if not isinstance(self.anchors, str) or self.anchors not in ("own", "latest"):
            raise ConfigError(f"anchors is {self.anchors!r}, expected 'own' or 'latest'")
        _within("tolerated_loss", self.tolerated_loss, 1e-6, 1e6)
        _within("lambda_rate", self.lambda_rate, 0.0, 10.0)
        _within("learning_rate", self.learning_rate, 0.0, 1e6)
        _within("same_task", self.same_task, -1.0, 1.0)
        _within("sparsity", self.sparsity, 0.0, 1e6)
        _flag("project_gradients", self.project_gradients)


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
        _within("run_length", self.run_length, 1.0, 1e12)
        _whole("warm_up", self.warm_up, 2, 100_000)
        _whole("window", self.window, 16, 1_000_000)
        _whole("seed", self.seed, 0, (1 << 63) - 1)


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
        Most that their vectors take in memory: where there are many dimensions there are fewer lists.
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
    max_vector_bytes: int = VECTOR_BYTES
    distillation: float = 2.0
    distillation_batch: int = 8

    def __post_init__(self) -> None:
        _within("distillation", self.distillation, 0.0, 1e6)
        _whole("distillation_batch", self.distillation_batch, 1, 1 << 16)
        _whole("max_vector_bytes", self.max_vector_bytes, 1 << 20, 1 << 40)
        _whole("rank", self.rank, 1, 64)
        _whole("epochs", self.epochs, 0, 100)
        _within("learning_rate", self.learning_rate, 0.0, 1.0)
        _within("decay", self.decay, 0.0, 100.0)
        _whole("reservoir", self.reservoir, 1, 1 << 20)

    def lists_of(self, dim: int) -> int:
        """How many earlier lists, and as many of the hour, there is room for."""
        # A query and nine items, three times: earlier ones, new ones, and those that are withheld. Queries of earlier
        # tasks, among the first two of these, once more, with what was answered to them.
        return max(min(self.reservoir, self.max_vector_bytes // (4 * dim * (10 * 3 + 2 * 2))), 1)

    @classmethod
    def for_dim(cls, dim: int) -> BaseTrainingConfig:
        """The defaults for a space of `dim` components: a rank that it can have."""
        if not isinstance(dim, int):
            raise ConfigError(f"dimension is {dim!r}, expected a whole number")
        return cls(rank=max(1, min(cls().rank, dim)))


@dataclass(frozen=True, slots=True)
class BackgroundLoopConfig:
    """Loop B in memory.

    Parameters
    ----------
    extraction_interval_seconds
        Time between two cycles.
    min_trajectories
        Trajectories without which a cycle is skipped.
    base_lora_lr
        Step size of the base; None: that of `BaseTrainingConfig`.
    ewc_lambda
        Strength by which other tasks are held to begin with; None: that of `EwcConfig`.
    """

    extraction_interval_seconds: float = BACKGROUND_SECONDS
    min_trajectories: int = MIN_TRAJECTORIES
    base_lora_lr: float | None = None
    ewc_lambda: float | None = None

    def __post_init__(self) -> None:
        _within("extraction_interval_seconds", self.extraction_interval_seconds, 0.0, 366 * 86_400.0)
        _whole("min_trajectories", self.min_trajectories, 1, 1_000_000)
        if self.base_lora_lr is not None:
            _within("base_lora_lr", self.base_lora_lr, 0.0, 1.0)
        if self.ewc_lambda is not None:
            _within("ewc_lambda", self.ewc_lambda, 1e-9, 1e9)


@dataclass(frozen=True, slots=True)
class ConsolidationConfig:
    """What a consolidation of the memory graph does to nodes and edges.

    Parameters
    ----------
    frequency_weight, recency_weight, quality_weight, connectivity_weight
        Parts of a node's value; together 1, so that the value is from 0 to 1.
    recency_half_life_seconds
        Time without an access in which the recency of a node halves.
    prior_quality
        Quality of a node that was never judged.
    threshold
        Value of both its ends from which an edge is strengthened.
    strengthening
        η: an edge that is strengthened gains this part of what it lacks to 1, in an interval.
    interval_seconds
        Time for which one step of strengthening is due, the time between two cycles of loop C as a rule.
    half_life_seconds, creative_half_life_seconds
        Time in which the weight of an edge that is not strengthened halves; of one that a dream has made.
    prune_weight
        An edge below this weight goes.
    merge_threshold
        Nodes of one kind with a cosine above this are one; at 1 none are.
    prune_value, prune_accesses, prune_age_seconds
        A node goes to the archive if its value is below the first, it was accessed fewer times than the second, and
        neither created nor accessed for the third.
    """

    frequency_weight: float = 0.3
    recency_weight: float = 0.2
    quality_weight: float = 0.3
    connectivity_weight: float = 0.2
    recency_half_life_seconds: float = 30 * 86_400.0
    prior_quality: float = 0.5
    threshold: float = CONSOLIDATION_THRESHOLD
    strengthening: float = 0.1
    interval_seconds: float = DEEP_SECONDS
    half_life_seconds: float = 90 * 86_400.0
    creative_half_life_seconds: float = 14 * 86_400.0
    prune_weight: float = 0.02
    merge_threshold: float = 0.98
    prune_value: float = 0.2
    prune_accesses: int = 2
    prune_age_seconds: float = 90 * 86_400.0

    def __post_init__(self) -> None:
        weights = ("frequency_weight", "recency_weight", "quality_weight", "connectivity_weight")
        for name in weights:
            _within(name, getattr(self, name), 0.0, 1.0)
        total = sum(getattr(self, name) for name in weights)
        if abs(total - 1) > 1e-9:
            raise ConfigError(f"{', '.join(weights)} are {total:g} together, expected 1")
        _within("recency_half_life_seconds", self.recency_half_life_seconds, 1.0, 1e12)
        _within("prior_quality", self.prior_quality, 0.0, 1.0)
        _within("threshold", self.threshold, 0.0, 1.0)
        _within("strengthening", self.strengthening, 0.0, 0.999)
        _within("interval_seconds", self.interval_seconds, 1.0, 1e12)
        _within("half_life_seconds", self.half_life_seconds, 1.0, 1e12)
        # What nothing has confirmed is forgotten sooner.
        _within("creative_half_life_seconds", self.creative_half_life_seconds, 1.0, self.half_life_seconds)
        _within("prune_weight", self.prune_weight, 0.0, 1.0)
        _within("merge_threshold", self.merge_threshold, 0.0, 1.0)
        _within("prune_value", self.prune_value, 0.0, 1.0)
        _whole("prune_accesses", self.prune_accesses, 0, 1 << 31)
        _within("prune_age_seconds", self.prune_age_seconds, 0.0, 1e12)


@dataclass(frozen=True, slots=True)
class HierarchyConfig:
    """How patterns become patterns of patterns.

    Parameters
    ----------
    levels
        Levels above the patterns, at most; fewer where there are few patterns.
    branching
        How far the number of meta-patterns of a level may be from n^(1/2), n^(1/4), n^(1/8): up to so many times as
        many or as few, wherever Ward's tree has its widest gap.
    tolerance
        The hierarchy of the run before holds while the squared distances to the means of its clusters are together at
        most this part above those of a new tree.
    match_overlap
        Jaccard index of their patterns from which a meta-pattern is the one that it was in the run before.
    max_rows
        Patterns that Ward's method takes, with 8 n² bytes of memory; of more the means of a quarter as many clusters.
    seed
        Of those clusters.
    """

    levels: int = 3
    branching: float = 1.5
    tolerance: float = 0.05
    match_overlap: float = 0.3
    max_rows: int = 4096
    seed: int = 0

    def __post_init__(self) -> None:
        _whole("levels", self.levels, 1, 3)
        _within("branching", self.branching, 1.0, 10.0)
        _within("tolerance", self.tolerance, 0.0, 10.0)
        _within("match_overlap", self.match_overlap, 0.01, 1.0)
        _whole("max_rows", self.max_rows, 16, 20_000)
        _whole("seed", self.seed, 0, (1 << 63) - 1)


@dataclass(frozen=True, slots=True)
class EmbeddingConfig:
    """How texts become vectors.

    Parameters
    ----------
    batch_size
        Texts that an embedder is given at once.
    cache_size
        Texts, those asked last, whose vectors are remembered; at 0 none.
    max_characters
        A longer text is refused: what a model cuts off is not in the vector.
    """

    batch_size: int = 64
    cache_size: int = 10_000
    max_characters: int = 100_000

    def __post_init__(self) -> None:
        _whole("batch_size", self.batch_size, 1, 100_000)
        _whole("cache_size", self.cache_size, 0, 10_000_000)
        _whole("max_characters", self.max_characters, 1, 100_000_000)


@dataclass(frozen=True, slots=True)
class EndpointConfig:
    """An endpoint that speaks OpenAI's API.

    Parameters
    ----------
    url, key
        Its address, with the version, and the key; OPENAI_BASE_URL and OPENAI_API_KEY where they are empty.
    timeout_seconds
        How long one attempt waits.
    attempts
        How often it is tried in all, where that may help.
    pause_seconds
        Before the second attempt; it doubles.
    """

    url: str = ""
    key: str = field(default="", repr=False)
    timeout_seconds: float = 30.0
    attempts: int = 3
    pause_seconds: float = 0.5

    def __post_init__(self) -> None:
        _within("timeout_seconds", self.timeout_seconds, 0.01, 3600.0)
        _whole("attempts", self.attempts, 1, 100)
        _within("pause_seconds", self.pause_seconds, 0.0, 600.0)


@dataclass(frozen=True, slots=True)
class TransferConfig:
    """When patterns of two spaces are analogous, and for how much one speaks in the other's space.

    Parameters
    ----------
    min_similarity
        Least cosine, each space seen from its own mean.
    significance
        Probability that two spaces without anything in common have a pair that counts as analogous.
    null_draws
        Random orthogonal maps by which that is judged.
    max_weight
        Trajectories that the quality of an analogous pattern counts for, at most.
    seed
        Of the maps.
    """

    min_similarity: float = 0.5
    significance: float = 0.05
    null_draws: int = 199
    max_weight: float = 10.0
    seed: int = 0

    def __post_init__(self) -> None:
        _within("min_similarity", self.min_similarity, -1.0, 1.0)
        _within("significance", self.significance, 0.001, 0.5)
        _whole("null_draws", self.null_draws, 1, 100_000)
        if self.significance * (self.null_draws + 1) < 1:
            raise ConfigError(
                f"{self.null_draws} null_draws cannot show a significance of {self.significance}: "
                f"expected at least {round(1 / self.significance) - 1}"
            )
        _within("max_weight", self.max_weight, 0.0, 1e6)
        _whole("seed", self.seed, 0, (1 << 63) - 1)


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
        _within("withheld", self.withheld, 0.0, 0.5)
        _within("related_z", self.related_z, 0.0, 10.0)
        _whole("min_events", self.min_events, 2, 1_000_000)
        _within("losing_z", self.losing_z, 0.0, 10.0)


NODE_KINDS = ("concept", "pattern", "episode", "procedure", "item", "dream")
"""What a node of the memory graph may stand for."""


@dataclass(frozen=True, slots=True)
class DreamConfig:
    """Dreams: walks over the memory graph, what they are worth, and the weak edges that they propose.

    Parameters
    ----------
    path_length
        Nodes of a dream, its start included.
    creative_jump_prob, restart_prob
        Of a step that goes to any other node, and of one that goes back to the start; every other step follows an edge.
    novelty_weight, coherence_weight, utility_weight
        Parts of the overall score, with a sum of 1.
    temperature
        Edges are drawn by weight^(1 / temperature): below 1 strong ones even more, above 1 weak ones, too.
    window
        Nodes that a walk comes to within so many steps have met. At 2 they have at least a neighbour in common, which
        is what a new edge saves; longer windows find more pairs that have less to do with each other.
    max_edges
        Most edges by dreams that stand at once.
    edge_weight
        Of an edge by a dream: weak beside what was observed.
    start
        'activation': dreams begin where memory is active. 'anchors': at nodes with embeddings far from each other.
    half_life_seconds
        Time since the last access in which the activation of a node halves.
    seed
        Of what is drawn.
    """

    path_length: int = 15
    creative_jump_prob: float = 0.3
    restart_prob: float = 0.1
    novelty_weight: float = 0.3
    coherence_weight: float = 0.4
    utility_weight: float = 0.3
    temperature: float = 1.0
    window: int = 2
    max_edges: int = 3000
    edge_weight: float = 0.15
    start: str = "activation"
    half_life_seconds: float = 30 * 86_400.0
    seed: int = 0

    def __post_init__(self) -> None:
        _whole("path_length", self.path_length, 1, 100_000)
        for name in ("creative_jump_prob", "restart_prob", "novelty_weight", "coherence_weight", "utility_weight"):
            _within(name, getattr(self, name), 0.0, 1.0)
        if self.creative_jump_prob + self.restart_prob > 1:
            raise ConfigError(
                f"creative_jump_prob {self.creative_jump_prob} and restart_prob {self.restart_prob}: "
                "expected a sum of at most 1, the rest follows edges"
            )
        whole = self.novelty_weight + self.coherence_weight + self.utility_weight
        if abs(whole - 1) > 1e-6:
            raise ConfigError(f"the weights of novelty, coherence and utility have a sum of {whole}, expected 1")
        _within("temperature", self.temperature, 0.05, 100.0)
        _whole("window", self.window, 1, 1000)
        _whole("max_edges", self.max_edges, 0, 1 << 24)
        _within("edge_weight", self.edge_weight, 1e-6, 1.0)
        if not isinstance(self.start, str) or self.start not in ("activation", "anchors"):
            raise ConfigError(f"start is {self.start!r}, expected 'activation' or 'anchors'")
        _within("half_life_seconds", self.half_life_seconds, 1.0, 1e12)
        _whole("seed", self.seed, 0, (1 << 63) - 1)


@dataclass(frozen=True, slots=True)
class DreamEvidenceConfig:
    """When dreams have shown on a graph's own edges that they help.

    Parameters
    ----------
    held_out
        Share of the edges, or of the events that edges come from, that are taken out, and are to be found again.
    repeats
        How often; every time others.
    margin
        By so much the AUC must be above that on a rewired graph, in the mean: what degrees alone give is no evidence.
    alpha
        One-sided level of the test that it is above at all.
    min_edges
        Edges without which nothing is confirmed.
    min_pairs
        Pairs that only held-out events have, without which nothing is confirmed.
    max_pairs
        Most held-out edges, and most pairs without an edge, that are ranked in a repeat.
    walks
        From each of their nodes.
    swaps, max_swaps
        Tried for each edge to rewire a graph; after the first repeat, which goes on from where the last one ended, at
        most so many: what one rewired graph gives differs little from the next where there are many edges. Where events
        are held out, what is left is another graph every time and is rewired anew.
    """

    held_out: float = 0.2
    repeats: int = 10
    margin: float = 0.1
    alpha: float = 0.01
    min_edges: int = 50
    min_pairs: int = 10
    max_pairs: int = 200
    walks: int = 100
    swaps: int = 4
    max_swaps: int = 200_000

    def __post_init__(self) -> None:
        _within("held_out", self.held_out, 0.01, 0.5)
        _whole("repeats", self.repeats, 3, 1000)
        _within("margin", self.margin, 0.0, 0.5)
        _within("alpha", self.alpha, 1e-9, 0.5)
        _whole("min_edges", self.min_edges, 10, 1 << 24)
        _whole("min_pairs", self.min_pairs, 1, 100_000)
        _whole("max_pairs", self.max_pairs, 10, 100_000)
        _whole("walks", self.walks, 1, 10_000)
        _whole("swaps", self.swaps, 1, 1000)
        _whole("max_swaps", self.max_swaps, 1, 1 << 30)


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
        _whole("queries", self.queries, 1, 1 << 20)
        _within("weight", self.weight, 0.0, 1e6)
        _whole("batch", self.batch, 1, 1 << 16)


@dataclass(frozen=True, slots=True)
class TelemetryConfig:
    """What a worker process shows of itself: metrics and health.

    Parameters
    ----------
    host
        Address that is listened on. Anybody who reaches it may read names of spaces and messages of errors.
    max_spaces
        Spaces that have series of their own, the first that were created; what this process counts of others goes to
        a series without a space.
    cache_seconds, lift_cache_seconds
        Age up to which what was read from the database is given again, however often it is asked for. The lift is
        computed over all answers, and costs more.
    statement_timeout_seconds
        Longest that the database computes what is asked of it for the metrics.
    patience_seconds
        Longest that a request waits for the database; after that it is answered as if it were away.
    stall_seconds
        Without a turn of its loop for so long, and outside of a cycle, a process is not healthy.
    """

    host: str = "127.0.0.1"
    max_spaces: int = 1000
    cache_seconds: float = 5.0
    lift_cache_seconds: float = 60.0
    statement_timeout_seconds: float = 2.0
    patience_seconds: float = 3.0
    stall_seconds: float = 30.0

    def __post_init__(self) -> None:
        if not isinstance(self.host, str) or not self.host:
            raise ConfigError(f"host is {self.host!r}, expected an address like 127.0.0.1, or 0.0.0.0 for all")
        _whole("max_spaces", self.max_spaces, 1, 100_000)
        _within("cache_seconds", self.cache_seconds, 0.0, 3600.0)
        _within("lift_cache_seconds", self.lift_cache_seconds, 0.0, 86_400.0)
        _within("statement_timeout_seconds", self.statement_timeout_seconds, 0.001, 3600.0)
        _within("patience_seconds", self.patience_seconds, 0.01, 3600.0)
        _within("stall_seconds", self.stall_seconds, 0.1, 86_400.0)


SCHEMA_REVISION = "0010"
"""Revision of the database that this version works with."""

MAX_DIM = 16_000
"""Largest dimension of a pgvector column."""

MAX_STEPS = 10_000
"""Most steps of a trajectory; a longer one is refused."""

MAX_ID_BYTES = 500
"""Longest id of an item, a user, a session or a score in UTF-8: two of them fit into one index entry of Postgres."""

MAX_METADATA_BYTES = 1 << 20
"""Longest metadata of a trajectory, as JSON in UTF-8."""

MAX_METADATA_DEPTH = 100
"""How deep lists and dicts may be nested in it."""

SHOWN = 10
"""How many items an answer shows where nothing else is asked for."""
