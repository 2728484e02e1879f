"""The memory graph: consolidation, hierarchy, dreams, integration, transfer."""

from __future__ import annotations

from dataclasses import dataclass

from sona_pg.config.checks import check_whole, check_within
from sona_pg.config.rhythm import DEEP_SECONDS
from sona_pg.errors import ConfigError

CONSOLIDATION_THRESHOLD = 0.7
"""Value of both ends from which an edge of the memory graph is strengthened."""

PHI_THRESHOLD = 0.3
"""Integration from which a dream may leave something behind, see `PhiConfig`."""


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
        check_within("threshold", self.threshold, 0.0, 1.0)
        if self.threshold == 1:
            raise ConfigError(f"threshold is {self.threshold!r}, expected 0 to below 1: no dream reaches 1")
        check_within("ridge", self.ridge, 0.0, 1.0)
        check_within("quantile", self.quantile, 0.0, 1.0)
        check_whole("random_paths", self.random_paths, 1, 1_000_000)
        check_within("system_ridge", self.system_ridge, 1e-9, 1.0)
        check_whole("steps_per_node", self.steps_per_node, 2, 1_000_000)
        check_whole("shuffles", self.shuffles, 0, 1_000_000)
        check_whole("seed", self.seed, 0, (1 << 63) - 1)


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
            check_within(name, getattr(self, name), 0.0, 1.0)
        total = sum(getattr(self, name) for name in weights)
        if abs(total - 1) > 1e-9:
            raise ConfigError(f"{', '.join(weights)} are {total:g} together, expected 1")
        check_within("recency_half_life_seconds", self.recency_half_life_seconds, 1.0, 1e12)
        check_within("prior_quality", self.prior_quality, 0.0, 1.0)
        check_within("threshold", self.threshold, 0.0, 1.0)
        check_within("strengthening", self.strengthening, 0.0, 0.999)
        check_within("interval_seconds", self.interval_seconds, 1.0, 1e12)
        check_within("half_life_seconds", self.half_life_seconds, 1.0, 1e12)
        # What nothing has confirmed is forgotten sooner.
        check_within("creative_half_life_seconds", self.creative_half_life_seconds, 1.0, self.half_life_seconds)
        check_within("prune_weight", self.prune_weight, 0.0, 1.0)
        check_within("merge_threshold", self.merge_threshold, 0.0, 1.0)
        check_within("prune_value", self.prune_value, 0.0, 1.0)
        check_whole("prune_accesses", self.prune_accesses, 0, 1 << 31)
        check_within("prune_age_seconds", self.prune_age_seconds, 0.0, 1e12)


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
        check_whole("levels", self.levels, 1, 3)
        check_within("branching", self.branching, 1.0, 10.0)
        check_within("tolerance", self.tolerance, 0.0, 10.0)
        check_within("match_overlap", self.match_overlap, 0.01, 1.0)
        check_whole("max_rows", self.max_rows, 16, 20_000)
        check_whole("seed", self.seed, 0, (1 << 63) - 1)


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
        check_within("min_similarity", self.min_similarity, -1.0, 1.0)
        check_within("significance", self.significance, 0.001, 0.5)
        check_whole("null_draws", self.null_draws, 1, 100_000)
        if self.significance * (self.null_draws + 1) < 1:
            raise ConfigError(
                f"{self.null_draws} null_draws cannot show a significance of {self.significance}: "
                f"expected at least {round(1 / self.significance) - 1}"
            )
        check_within("max_weight", self.max_weight, 0.0, 1e6)
        check_whole("seed", self.seed, 0, (1 << 63) - 1)


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
        check_whole("path_length", self.path_length, 1, 100_000)
        for name in ("creative_jump_prob", "restart_prob", "novelty_weight", "coherence_weight", "utility_weight"):
            check_within(name, getattr(self, name), 0.0, 1.0)
        if self.creative_jump_prob + self.restart_prob > 1:
            raise ConfigError(
                f"creative_jump_prob {self.creative_jump_prob} and restart_prob {self.restart_prob}: "
                "expected a sum of at most 1, the rest follows edges"
            )
        whole = self.novelty_weight + self.coherence_weight + self.utility_weight
        if abs(whole - 1) > 1e-6:
            raise ConfigError(f"the weights of novelty, coherence and utility have a sum of {whole}, expected 1")
        check_within("temperature", self.temperature, 0.05, 100.0)
        check_whole("window", self.window, 1, 1000)
        check_whole("max_edges", self.max_edges, 0, 1 << 24)
        check_within("edge_weight", self.edge_weight, 1e-6, 1.0)
        if not isinstance(self.start, str) or self.start not in ("activation", "anchors"):
            raise ConfigError(f"start is {self.start!r}, expected 'activation' or 'anchors'")
        check_within("half_life_seconds", self.half_life_seconds, 1.0, 1e12)
        check_whole("seed", self.seed, 0, (1 << 63) - 1)


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
        check_within("held_out", self.held_out, 0.01, 0.5)
        check_whole("repeats", self.repeats, 3, 1000)
        check_within("margin", self.margin, 0.0, 0.5)
        check_within("alpha", self.alpha, 1e-9, 0.5)
        check_whole("min_edges", self.min_edges, 10, 1 << 24)
        check_whole("min_pairs", self.min_pairs, 1, 100_000)
        check_whole("max_pairs", self.max_pairs, 10, 100_000)
        check_whole("walks", self.walks, 1, 10_000)
        check_whole("swaps", self.swaps, 1, 1000)
        check_whole("max_swaps", self.max_swaps, 1, 1 << 30)
