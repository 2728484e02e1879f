"""When the slow loops run."""

from __future__ import annotations

from dataclasses import dataclass

from sona_pg.config.checks import check_whole, check_within
from sona_pg.config.limits import VECTOR_BYTES
from sona_pg.config.memory import CONSOLIDATION_THRESHOLD, PHI_THRESHOLD
from sona_pg.config.rhythm import BACKGROUND_SECONDS, DEEP_SECONDS
from sona_pg.errors import ConfigError

MIN_TRAJECTORIES = 100
"""New trajectories without which a cycle of loop B is skipped."""


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
            check_within("every_seconds", self.every_seconds, 1.0, 366 * 86_400.0)
        if self.amount is not None:
            check_whole("amount", self.amount, 1, 1 << 62)


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
        check_whole("minimum", self.minimum, 1, 1_000_000)
        check_whole("max_trajectories", self.max_trajectories, 1, 10_000_000)
        check_whole("max_vector_bytes", self.max_vector_bytes, 1 << 20, 1 << 40)
        check_whole("shard_rows", self.shard_rows, 1, 10_000_000)


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
        check_whole("dreams_per_cycle", self.dreams_per_cycle, 0, 100_000)
        check_within("dreams_per_node", self.dreams_per_node, 0.0, 1000.0)
        check_whole("most_dreams", self.most_dreams, 0, 100_000)
        check_within("consolidation_threshold", self.consolidation_threshold, 0.0, 1.0)
        check_within("phi_threshold", self.phi_threshold, 0.0, 1.0)
        if self.phi_threshold == 1:
            raise ConfigError(f"phi_threshold is {self.phi_threshold!r}, expected 0 to below 1: no dream reaches 1")
        check_within("max_cycle_seconds", self.max_cycle_seconds, 0.0, 7 * 86_400.0)
        check_whole("max_vector_bytes", self.max_vector_bytes, 1 << 20, 1 << 40)
        check_whole("pattern_items", self.pattern_items, 0, 10_000)
        check_whole("system_patterns", self.system_patterns, 2, 15)
        check_whole("system_queries", self.system_queries, 2, 1_000_000)
        check_whole("transfer_patterns", self.transfer_patterns, 1, 2000)
        check_whole("keep_dreams", self.keep_dreams, 1, 10_000)
        check_whole("keep_dreams_each", self.keep_dreams_each, 0, 100_000)
        # Longer ago there is no time that a database knows.
        check_within("keep_archive_seconds", self.keep_archive_seconds, 0.0, 1e11)

    def dreams_of(self, nodes: int) -> int:
        """Dreams of a cycle over a graph of so many nodes."""
        check_whole("nodes", nodes, 0, (1 << 31) - 1)
        if not self.dreams_per_cycle or not nodes:
            return 0
        return max(self.dreams_per_cycle, min(int(self.dreams_per_node * nodes), self.most_dreams))


DEEP_SCHEDULE = ScheduleConfig(every_seconds=DEEP_SECONDS)
"""Of loop C where nobody has set another one."""


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
        check_within("extraction_interval_seconds", self.extraction_interval_seconds, 0.0, 366 * 86_400.0)
        check_whole("min_trajectories", self.min_trajectories, 1, 1_000_000)
        if self.base_lora_lr is not None:
            check_within("base_lora_lr", self.base_lora_lr, 0.0, 1.0)
        if self.ewc_lambda is not None:
            check_within("ewc_lambda", self.ewc_lambda, 1e-9, 1e9)
