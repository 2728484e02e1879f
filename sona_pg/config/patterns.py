"""Patterns of the bank, and what they say of parameters."""

from __future__ import annotations

from dataclasses import dataclass

from sona_pg.config.checks import check_whole, check_within
from sona_pg.config.limits import MAX_DIM
from sona_pg.errors import ConfigError


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
        check_whole("k_clusters", self.k_clusters, 1, 10_000)
        check_whole("embedding_dim", self.embedding_dim, 1, MAX_DIM)
        check_whole("max_iterations", self.max_iterations, 1, 10_000)
        check_within("convergence_threshold", self.convergence_threshold, 0.0, 0.5)
        check_whole("min_cluster_size", self.min_cluster_size, 1, 1_000_000)
        check_within("quality_threshold", self.quality_threshold, -1e6, 1e6)
        check_whole("max_trajectories", self.max_trajectories, 1, 10_000_000)
        check_within("match_threshold", self.match_threshold, -1.0, 1.0)
        check_within("merge_threshold", self.merge_threshold, 0.0, 1.0)
        check_within("prior_quality", self.prior_quality, -1e6, 1e6)
        check_within("confidence_prior", self.confidence_prior, 0.0, 1e6)
        check_within("half_life_seconds", self.half_life_seconds, 1.0, 1e12)
        check_whole("prune_accesses", self.prune_accesses, 0, 1 << 31)
        check_within("prune_age_seconds", self.prune_age_seconds, 0.0, 1e12)
        check_whole("seed", self.seed, 0, (1 << 63) - 1)


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
        check_within("quality_range", self.quality_range, 1e-6, 1e6)
        check_within("decide_at", self.decide_at, 1.0, 1e12)
        check_whole("max_parameters", self.max_parameters, 1, 10_000)
        check_whole("max_values", self.max_values, 2, 1000)
        check_whole("max_value_bytes", self.max_value_bytes, 1, 1 << 20)
        check_whole("max_waiting", self.max_waiting, 1, 10_000)
        check_whole("min_support", self.min_support, 1, 1_000_000)
        check_within("shrinkage", self.shrinkage, 0.0, 1e6)
        check_within("similarity_width", self.similarity_width, 1e-3, 10.0)


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
        check_whole("processes", self.processes, 1, 1024)
        check_within("scheduler_timeout_seconds", self.scheduler_timeout_seconds, 0.1, 3600.0)
        if not isinstance(self.scheduler, str) or (self.scheduler and "://" not in self.scheduler):
            raise ConfigError(f"scheduler is {self.scheduler!r}, expected an address such as tcp://host:8786")
        if self.without_scheduler not in (FAIL, LOCAL):
            raise ConfigError(f"without_scheduler is {self.without_scheduler!r}, expected {FAIL!r} or {LOCAL!r}")
        if self.without_scheduler == LOCAL and not self.scheduler:
            raise ConfigError("without_scheduler is for a scheduler that cannot be reached: give one, or leave it out")
