"""How the strategy that answers is learned."""

from __future__ import annotations

from dataclasses import dataclass

from sona_pg.config.checks import check_whole, check_within


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
        check_whole("candidates", self.candidates, 1, 1000)
        check_whole("neighbours", self.neighbours, 1, 1000)
        check_whole("neighbours_learning", self.neighbours_learning, self.neighbours, 10_000)
        check_whole("misses_near", self.misses_near, 0, 1000)
        check_within("vote_kernel", self.vote_kernel, 1e-3, 10.0)
        check_within("familiar_from", self.familiar_from, -1.0, 1.0)
        check_within("familiar_width", self.familiar_width, 1e-3, 2.0)
        check_within("fusion_learning_rate", self.fusion_learning_rate, 0.0, 1.0)
        check_within("fusion_average", self.fusion_average, 0.0, 0.99999)
        check_within("counterfactual_weight", self.counterfactual_weight, 0.0, 1.0)
        check_whole("folds", self.folds, 2, 16)
        check_whole("stake_rank", self.stake_rank, 1, 64)
        check_within("stake_learning_rate", self.stake_learning_rate, 0.0, 1.0)
        check_within("stake_temperature", self.stake_temperature, 1e-3, 10.0)
        check_whole("stake_negatives", self.stake_negatives, 0, 4096)
        check_within("gate_threshold", self.gate_threshold, 1.0, 1e9)
        check_within("gate_later", self.gate_later, 0.0, 0.99)
        check_within("stake_keep", self.stake_keep, 0.5, 1.0)
        check_within("stake_from", self.stake_from, 0.0, 1.0)
        check_within("stake_prior", self.stake_prior, 0.0, 5.0)
        check_within("strange_prior", self.strange_prior, 0.0, 5.0)
        check_within("choice_open", self.choice_open, 1.0, 1e12)
        check_whole("choice_window", self.choice_window, 1, 10_000)
        check_whole("most_helped", self.most_helped, 1, 1000)
        check_whole("most_remembered", self.most_remembered, self.most_helped, 10_000)
        check_within("harm_threshold", self.harm_threshold, 2.0, 1e9)
        check_within("harm_later", self.harm_later, 0.0, 0.99)
        check_within("harm_keep", self.harm_keep, 0.5, 1.0)
        check_whole("suspected_controls", self.suspected_controls, 1, 1_000_000)
        check_within("suspected_from", self.suspected_from, 0.0, 100.0)
        check_within("suspected_until", self.suspected_until, -100.0, self.suspected_from)
        check_within("suspected_share", self.suspected_share, 0.0, 0.5)
        check_within("sanity_open", self.sanity_open, 1.0, 1e12)
        check_within("sanity_close", self.sanity_close, 0.0, 1e12)
        check_whole("sanity_window", self.sanity_window, 1, 10_000)
        check_whole("sanity_events", self.sanity_events, 1, 1_000_000)
        check_whole("rank_items", self.rank_items, 1, 1 << 20)
        check_whole("related_starts", self.related_starts, 1, 100)
        check_whole("related_hops", self.related_hops, 0, 10)
        check_within("related_factor", self.related_factor, 0.0, 1.0)
        check_within("related_weight", self.related_weight, 0.0, 10.0)
        check_whole("regions", self.regions, 1, 1000)
        check_within("region_near", self.region_near, -1.0, 1.0)
        check_within("region_pattern", self.region_pattern, -1.0, 1.0)
        check_within("region_prior", self.region_prior, 0.0, 1e9)
        check_whole("prototypes", self.prototypes, 1, 10_000)
        check_within("prototype_near", self.prototype_near, -1.0, 1.0)


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
        check_within("interval_seconds", self.interval_seconds, 0.01, 3600.0)
        check_whole("batch", self.batch, 1, 10_000)
        check_within("admit_interval_seconds", self.admit_interval_seconds, 0.0, 86_400.0)
        check_whole("admit_rows", self.admit_rows, 1, 1 << 31)
        check_within("stalled_seconds", self.stalled_seconds, 0.01, 86_400.0)
