"""The reasoning bank in memory: trajectories become patterns that keep their identity, and verdicts on parameters."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sona_pg import kernels
from sona_pg.config import PatternConfig, VerdictConfig
from sona_pg.errors import ConfigError, InvalidInput, PatternExtractionError, SonaError
from sona_pg.learning.clusters import Tally, without_duplicates
from sona_pg.learning.kept_trajectories import KeptTrajectories
from sona_pg.learning.patterns import (
    Change,
    LearnedPattern,
    changed,
    clusters_of,
    is_prunable,
    level_centroids,
    merge_plan,
    merged_patterns,
    starting_centroids,
)
from sona_pg.learning.portable import bank_from_json, bank_to_json
from sona_pg.learning.recommendation import NearPattern, Recommendation, best_strategy, best_values, optimized_params
from sona_pg.learning.recorded import PARAMETERS, STRATEGY, FedBack, Used, fed_back, quality_of, used_parameters
from sona_pg.learning.verdicts import Evidence, Outcome, Verdict, looked
from sona_pg.types import Json, QueryTrajectory, as_seconds, finite_or_none

_Checked = tuple[NDArray[np.float32], float | None, Used, FedBack]
"""Unit query, quality, parameters, precision and recall."""


@dataclass(frozen=True, slots=True)
class BankStats:
    """What a bank holds.

    Parameters
    ----------
    trajectories, waiting
        Kept, and of them those that no extraction has counted.
    judged
        Kept ones with a quality.
    unclustered
        Kept ones that belonged to no pattern at the last extraction.
    evicted
        Trajectories that newer ones have displaced.
    skipped_parameters
        Values that were too long, or of a parameter too many.
    patterns, good_patterns
        All, and those whose average quality reaches the threshold.
    mean_quality
        Mean of the average quality of good patterns, 0 without one.
    """

    trajectories: int
    waiting: int
    judged: int
    unclustered: int
    evicted: int
    skipped_parameters: int
    patterns: int
    good_patterns: int
    mean_quality: float


class ReasoningBank:
    """Keeps the newest trajectories, and the patterns that they and earlier ones fell into.

    It knows no time of its own: who calls says what time it is, in seconds since the epoch.

    Parameters
    ----------
    config, verdict_config
        Settings.

    Examples
    --------
    >>> from sona_pg.types import TrajectoryBuilder
    >>> bank = ReasoningBank(PatternConfig(k_clusters=2, embedding_dim=3, min_cluster_size=2))
    >>> for query in ([1, 0, 0], [1, 0.1, 0], [0, 0, 1], [0, 0.1, 1]):
    ...     bank.add_trajectory(TrajectoryBuilder(None, query).build(0.8))
    >>> sorted(pattern.cluster_size for pattern in bank.extract_patterns(now=0.0))
    [2, 2]
    """

    def __init__(self, config: PatternConfig | None = None, verdict_config: VerdictConfig | None = None) -> None:
        self.config = PatternConfig() if config is None else config
        self.verdict_config = VerdictConfig() if verdict_config is None else verdict_config
        self._patterns: dict[int, LearnedPattern] = {}
        self._verdicts: dict[int, dict[str, Verdict]] = {}
        self._next_id = 1
        self._centroids: tuple[int, NDArray[np.float32]] | None = None
        self._skipped = 0
        self._kept = self._none_kept()

    def _none_kept(self) -> KeptTrajectories:
        return KeptTrajectories(self.config.embedding_dim, self.config.max_trajectories)

    # ---- trajectories ------------------------------------------------------------------------------------------------

    def add_trajectory(
        self,
        trajectory: QueryTrajectory,
        *,
        parameters: Mapping[str, Json] | None = None,
        precision: float | None = None,
        recall: float | None = None,
    ) -> None:
        """Keep a trajectory; of more than `max_trajectories` the oldest goes, uncounted if no extraction saw it.

        Parameters
        ----------
        trajectory
            Its quality is the final one, else the mean reward of its steps; without either it is not judged.
        parameters
            What was used, by name; those in ``metadata["parameters"]`` if None. Values that are too long, and
            parameters too many, are skipped and counted in `stats`.
        precision, recall
            What was fed back, 0 to 1; ``metadata["precision"]`` and ``metadata["recall"]`` if None.

        Raises
        ------
        DimensionMismatch
            If the query has another dimension than the bank.
        InvalidInput
            If the query is zero or not finite, a parameter is no JSON, or precision or recall is out of range.
        """
        self._kept.add(*self._checked(trajectory, parameters, precision, recall))

    def add_trajectories(self, trajectories: Sequence[QueryTrajectory]) -> None:
        """Keep trajectories, as `add_trajectory` does: all of them, or none.

        Raises
        ------
        DimensionMismatch, InvalidInput
            As `add_trajectory`; nothing was kept.
        """
        if isinstance(trajectories, str) or not isinstance(trajectories, Sequence):
            raise InvalidInput(f"trajectories are a {type(trajectories).__name__}, expected a list of them")
        skipped = self._skipped
        try:
            checked = [self._checked(trajectory) for trajectory in trajectories]
        except SonaError:
            self._skipped = skipped
            raise
        for parts in checked:
            self._kept.add(*parts)

    def _checked(
        self,
        trajectory: QueryTrajectory,
        parameters: Mapping[str, Json] | None = None,
        precision: float | None = None,
        recall: float | None = None,
    ) -> _Checked:
        """What is kept of a trajectory."""
        if not isinstance(trajectory, QueryTrajectory) or not isinstance(trajectory.metadata, Mapping):
            found = type(trajectory).__name__
            raise InvalidInput(f"a {found} was given, expected a QueryTrajectory with metadata by name")
        query = kernels.unit(
            kernels.as_vector(trajectory.query_embedding, self.config.embedding_dim, "query embedding")
        )
        if not query.any():
            raise InvalidInput("query embedding is zero: it has no direction")
        quality = quality_of(trajectory)
        metadata = trajectory.metadata
        given = metadata.get(PARAMETERS) if parameters is None else parameters
        used, skipped = used_parameters(given, trajectory.answer.strategy, self.verdict_config)
        said = fed_back(
            metadata.get("precision") if precision is None else precision,
            metadata.get("recall") if recall is None else recall,
        )
        self._skipped += skipped
        return query, quality, used, said

    @property
    def trajectory_count(self) -> int:
        """How many trajectories are kept."""
        return len(self._kept)

    def clear(self) -> None:
        """Forget all trajectories; patterns and verdicts stay."""
        self._kept = self._none_kept()

    # ---- patterns ----------------------------------------------------------------------------------------------------

    def extract_patterns(self, *, now: float = 0.0) -> list[LearnedPattern]:
        """Bring the patterns up to the trajectories that are kept; all patterns, in the order of their ids.

        Clusters start from the patterns that are there, are matched to them, and count every trajectory once. Without
        a new trajectory nothing changes.

        Raises
        ------
        PatternExtractionError
            If the clusters cannot be computed; nothing has changed then.
        """
        if self._update(as_seconds(now)) is not None:
            self.consolidate_patterns(now=now)
        return self.patterns

    def _update(self, now: float) -> Change | None:
        """As `extract_patterns`, and near duplicates stay; None if there was nothing new."""
        kept = self._kept
        if kept.is_extracted:
            return None
        n, rows, quality, waiting = len(kept), kept.rows, kept.quality, kept.waiting
        k = min(self.config.k_clusters, max(1, n // self.config.min_cluster_size))
        try:
            known = level_centroids(self.patterns, self.config.embedding_dim)
            start = None
            if len(known):
                counts = np.bincount(kernels.assign(rows, known)[0], minlength=len(known))
                start = starting_centroids(known, counts, k)
            centroids, labels = clusters_of(rows, k, start, self.config)
            clusters, into = without_duplicates(
                Tally.of(rows, labels, quality, waiting, len(centroids)), self.config.merge_threshold
            )
            change = changed(self.patterns, clusters, now, self._next_id, self.config)
        except (InvalidInput, MemoryError, FloatingPointError) as cause:
            raise PatternExtractionError(f"{n} trajectories could not be clustered: {cause}") from cause
        member = kept.member
        member[:] = change.members[into[labels]]
        counted = waiting & (member >= 0)
        self._take(
            change,
            (
                (int(member[place]), float(quality[place]), kept.used[place], kept.fed_back[place])
                for place in kept.oldest_first(np.flatnonzero(counted & ~np.isnan(quality)))
            ),
        )
        waiting &= ~counted
        kept.note_extraction()
        return change

    def _take(self, change: Change, judged: Iterable[tuple[int, float, Used, FedBack]]) -> None:
        """Take over patterns, and what was used where and came of it: by id of the pattern, the oldest first."""
        by_pattern: dict[int, dict[str, list[Outcome]]] = {}
        for id, quality, used, (precision, recall) in judged:
            for name, value in used:
                outcomes = by_pattern.setdefault(id, {}).setdefault(name, [])
                outcomes.append(Outcome(value, quality, precision, recall))
        patterns, verdicts = dict(change.patterns), dict(self._verdicts)
        for id, parameters in by_pattern.items():
            known = dict(verdicts.get(id, {}))
            for name, outcomes in parameters.items():
                if name not in known and len(known) >= self.verdict_config.max_parameters:
                    self._skipped += len(outcomes)
                    continue
                known[name] = known.get(name, Verdict(name)).updated(outcomes, self.verdict_config)
            verdicts[id] = known
            patterns[id] = replace(patterns[id], best_strategy=best_strategy(known.get(STRATEGY)))
        self._patterns, self._verdicts, self._centroids = patterns, verdicts, None
        self._next_id += len(change.created)

    @property
    def patterns(self) -> list[LearnedPattern]:
        """All patterns, in the order of their ids."""
        return [self._patterns[id] for id in sorted(self._patterns)]

    def get_pattern(self, id: int) -> LearnedPattern | None:
        """The pattern with this id, None if there is none."""
        return self._patterns.get(id) if isinstance(id, int) else None

    def find_similar(
        self,
        query: ArrayLike,
        k: int = 5,
        *,
        now: float | None = None,
        min_quality: float | None = None,
        level: int = 0,
    ) -> list[tuple[LearnedPattern, float]]:
        """The k patterns of one abstraction level nearest to a query by cosine, nearest first, with the cosine; exact.

        Parameters
        ----------
        query
            Vector (dim,), not zero.
        k
            How many at most.
        now
            Seconds since the epoch, to count an access of what was found; None counts none.
        min_quality
            Only patterns with at least this average quality.
        level
            Their abstraction level: a pattern of patterns is not beside what it is made of.

        Raises
        ------
        DimensionMismatch, InvalidInput
            If the query has another dimension, is not finite, or zero; k or level is no whole number from 0.
        """
        vector = kernels.unit(kernels.as_vector(query, self.config.embedding_dim, "query"))
        if not vector.any():
            raise InvalidInput("query is zero: it has no direction")
        for name, number in (("k", k), ("level", level)):
            if not isinstance(number, int) or isinstance(number, bool) or number < 0:
                raise InvalidInput(f"{name} is {number!r}, expected a whole number from 0")
        if now is not None:
            now = as_seconds(now)
        min_quality = finite_or_none(min_quality, "min_quality")
        patterns = [pattern for pattern in self.patterns if pattern.abstraction_level == level]
        if self._centroids is None or self._centroids[0] != level:
            rows = np.array([p.centroid for p in patterns], dtype=np.float32)
            self._centroids = level, rows.reshape(-1, self.config.embedding_dim)
        most = min(k, len(patterns)) if min_quality is None else len(patterns)
        places, cosines = kernels.top_k(self._centroids[1], vector, most)
        found = [(patterns[int(place)], float(cosine)) for place, cosine in zip(places, cosines, strict=True)]
        if min_quality is not None:
            found = [(pattern, cosine) for pattern, cosine in found if pattern.avg_quality >= min_quality][:k]
        if now is None:
            return found
        counted = []
        for pattern, cosine in found:
            accessed = replace(
                pattern, access_count=pattern.access_count + 1, last_accessed=max(pattern.last_accessed, now)
            )
            self._patterns[pattern.id] = accessed
            counted.append((accessed, cosine))
        return counted

    def consolidate_patterns(self, *, now: float = 0.0) -> dict[int, int]:
        """Merge near duplicates into the older one; by id of what went, the id of what it is part of now."""
        now = as_seconds(now)
        return self._merge(merge_plan(self.patterns, self.config.merge_threshold), now)

    def _merge(self, plan: dict[int, int], now: float) -> dict[int, int]:
        """Carry out a plan of `merge_plan`, and give it back."""
        if plan:
            kept = merged_patterns(self.patterns, plan, now, self.config)
            verdicts = dict(self._verdicts)
            for id, into in plan.items():
                both = dict(verdicts.get(into, {}))
                for name, verdict in verdicts.pop(id, {}).items():
                    both[name] = both[name].merged(verdict, self.verdict_config) if name in both else verdict
                if both:
                    verdicts[into] = both
                member = self._kept.member
                member[member == id] = into
            self._patterns = {pattern.id: pattern for pattern in kept}
            self._verdicts, self._centroids = verdicts, None
        return plan

    def prune_patterns(self, *, now: float) -> list[int]:
        """Remove patterns that are of low quality AND unused AND old, with their verdicts; their ids."""
        now = as_seconds(now)
        gone = [pattern.id for pattern in self.patterns if is_prunable(pattern, now, self.config)]
        for id in gone:
            del self._patterns[id]
            self._verdicts.pop(id, None)
            self._centroids = None
        if gone:
            member = self._kept.member
            member[np.isin(member, gone)] = -1
        return gone

    def verdicts(self, id: int) -> dict[str, Verdict]:
        """What is known of the parameters that were used in a pattern, by name."""
        return dict(self._verdicts.get(id, {}) if isinstance(id, int) else {})

    def put_back(self, pattern: LearnedPattern, verdicts: Mapping[str, Verdict]) -> bool:
        """Put a pattern that was merged or pruned back, as it was; False if one with its id is there.

        Its trajectories count for it again from the next extraction on.

        Raises
        ------
        DimensionMismatch
            If its centroid has another dimension than the bank.
        InvalidInput
            If the bank never gave its id.
        """
        if not isinstance(pattern, LearnedPattern):
            raise InvalidInput(f"a {type(pattern).__name__} was given, expected a LearnedPattern")
        if not kernels.as_vector(pattern.centroid, self.config.embedding_dim, "centroid").any():
            raise InvalidInput("the centroid is zero: it has no direction")
        if not isinstance(pattern.id, int) or not 0 < pattern.id < self._next_id:
            raise InvalidInput(f"pattern {pattern.id!r} is none of this bank: take it over with import_")
        if pattern.id in self._patterns:
            return False
        self._patterns[pattern.id] = pattern
        if verdicts:
            self._verdicts[pattern.id] = dict(verdicts)
        self._centroids = None
        return True

    def attach_text(
        self, id: int, *, title: str | None = None, description: str | None = None, content: str | None = None
    ) -> LearnedPattern:
        """Attach text to a pattern; what is None stays.

        Raises
        ------
        InvalidInput
            If there is no such pattern, or what is given is no text.
        """
        pattern = self.get_pattern(id)
        if pattern is None:
            raise InvalidInput(f"there is no pattern {id!r}: it was merged or pruned, or never was")
        texts = {"title": title, "description": description, "content": content}
        given = {name: text for name, text in texts.items() if text is not None}
        for name, text in given.items():
            if not isinstance(text, str):
                raise InvalidInput(f"{name} is {type(text).__name__}, expected a text")
        self._patterns[id] = replace(pattern, **given)  # type: ignore[arg-type]
        return self._patterns[id]

    # ---- verdicts ----------------------------------------------------------------------------------------------------

    def get_verdict(self, id: int) -> list[Evidence]:
        """The evidence on every value of every parameter that was used in a pattern; p-values adjusted for all."""
        return looked(self._verdicts.get(id, {}).values() if isinstance(id, int) else ())

    def optimized_params(
        self, query: ArrayLike, *, k: int = 5, defaults: Mapping[str, Json] | None = None
    ) -> dict[str, Recommendation]:
        """Parameters for a query, from the verdicts of the k patterns nearest to it; see `recommendation`."""
        if defaults is not None and not isinstance(defaults, Mapping):
            raise InvalidInput(f"defaults are {type(defaults).__name__}, expected values by name")
        near = [
            NearPattern(pattern.id, cosine, best_values(self._verdicts.get(pattern.id, {}), self.verdict_config))
            for pattern, cosine in self.find_similar(query, k)
        ]
        return optimized_params(near, self.verdict_config.similarity_width, defaults)

    # ---- state -------------------------------------------------------------------------------------------------------

    def stats(self) -> BankStats:
        """What the bank holds."""
        kept = self._kept
        good = [p.avg_quality for p in self._patterns.values() if p.avg_quality >= self.config.quality_threshold]
        return BankStats(
            trajectories=len(kept),
            waiting=int(kept.waiting.sum()),
            judged=int((~np.isnan(kept.quality)).sum()),
            unclustered=int((kept.member < 0).sum()),
            evicted=kept.evicted,
            skipped_parameters=self._skipped,
            patterns=len(self._patterns),
            good_patterns=len(good),
            mean_quality=math.fsum(good) / len(good) if good else 0.0,
        )

    def export(self) -> dict[str, Json]:
        """Patterns and verdicts as JSON; trajectories are not part of it."""
        return bank_to_json(self.config.embedding_dim, self.patterns, self._verdicts)

    def import_(self, exported: Mapping[str, Json], *, now: float = 0.0) -> dict[int, int]:
        """Take over what `export` gave, beside what is there, near duplicates merged; by old id the new one.

        Raises
        ------
        DimensionMismatch
            If it is of a bank of another dimension.
        InvalidInput
            If it is no export, or damaged; nothing was taken over.
        """
        now = as_seconds(now)
        patterns, verdicts = bank_from_json(exported, self.config.embedding_dim)
        renamed = self._put_beside(patterns, verdicts)
        plan = self.consolidate_patterns(now=now)
        return {old: plan.get(new, new) for old, new in renamed.items()}

    def _put_beside(
        self, patterns: Sequence[LearnedPattern], verdicts: Mapping[int, Mapping[str, Verdict]]
    ) -> dict[int, int]:
        """Put patterns of another bank, with their verdicts by id, beside those that are there; by old id the new one.

        Raises
        ------
        ConfigError
            If one has verdicts on too many parameters; nothing was taken over.
        """
        if any(len(known) > self.verdict_config.max_parameters for known in verdicts.values()):
            raise ConfigError(
                f"a pattern has verdicts on more than {self.verdict_config.max_parameters} parameters: "
                "raise VerdictConfig.max_parameters"
            )
        renamed = {pattern.id: self._next_id + place for place, pattern in enumerate(patterns)}
        for pattern in patterns:
            id = renamed[pattern.id]
            children = tuple(renamed[child] for child in pattern.children if child in renamed)
            self._patterns[id] = replace(pattern, id=id, children=children)
            if pattern.id in verdicts:
                self._verdicts[id] = dict(verdicts[pattern.id])
        self._next_id += len(patterns)
        self._centroids = None
        return renamed
