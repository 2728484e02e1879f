"""The reasoning bank of a cycle: it goes on with patterns that are kept elsewhere, and says what became of each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sona_pg.config import PatternConfig, VerdictConfig
from sona_pg.errors import InvalidInput, PatternExtractionError
from sona_pg.learning.clusters import without_duplicates
from sona_pg.learning.outcome_shard import OutcomeShard, OutcomeShards, clustered
from sona_pg.learning.patterns import LearnedPattern, changed, level_centroids, merge_plan
from sona_pg.learning.reasoning_bank import ReasoningBank
from sona_pg.learning.recommendation import Best, best_values
from sona_pg.learning.verdicts import Evidence, Verdict

Verdicts = Mapping[int, Mapping[str, Verdict]]
"""By id of the pattern and by parameter."""


@dataclass(frozen=True, slots=True)
class Advance:
    """What a cycle makes of patterns.

    Parameters
    ----------
    created, changed
        Patterns that are new, and those that are not as they were: whose weight has merely aged is not among them.
    merged
        By id of what went, the id of what it is part of now; only what was there before.
    pruned
        Ids of what was removed.
    verdicts
        By id and parameter, those that are new or not as they were.
    evidence
        Of every pattern in `verdicts`, on all that was used in it.
    best
        By id and parameter, what is recommended: of those in `verdicts`, or of all.
    last_id
        The last id that was given.
    waiting
        Ordinals of outcomes that belong to no pattern, and are not counted.
    """

    created: tuple[LearnedPattern, ...]
    changed: tuple[LearnedPattern, ...]
    merged: Mapping[int, int]
    pruned: tuple[int, ...]
    verdicts: Verdicts
    evidence: Mapping[int, list[Evidence]]
    best: Mapping[int, Mapping[str, Best | None]]
    last_id: int
    waiting: tuple[int, ...]


class ResumedBank(ReasoningBank):
    """A bank that begins with patterns and verdicts as they are, and whose trajectories are held by shards.

    Parameters
    ----------
    patterns, verdicts
        What is known.
    last_id
        The last id that was given: no id is given twice.
    config, verdict_config
        Settings.
    """

    def __init__(
        self,
        patterns: Mapping[int, LearnedPattern],
        verdicts: Verdicts,
        last_id: int,
        config: PatternConfig,
        verdict_config: VerdictConfig,
    ) -> None:
        super().__init__(config, verdict_config)
        self._before = dict(patterns)
        self._verdicts_before = {id: dict(known) for id, known in verdicts.items()}
        self._patterns = dict(patterns)
        self._verdicts = {id: dict(known) for id, known in verdicts.items()}
        self._next_id = last_id + 1

    def advance(self, shards: OutcomeShards, now: float, *, recommend_anew: bool = False) -> Advance:
        """Extract, merge and prune.

        Parameters
        ----------
        shards
            The outcomes.
        now
            Seconds since the epoch.
        recommend_anew
            Whether what stayed as it was is to be recommended by other settings than before.

        Raises
        ------
        PatternExtractionError
            If the clusters cannot be computed.
        """
        waiting = self._extract(shards, now) if sum(shards.sizes) else ()
        plan = self.consolidate_patterns(now=now)
        pruned = self.prune_patterns(now=now)
        return self._advance(plan, pruned, waiting, recommend_anew=recommend_anew)

    def take_over(
        self, patterns: Sequence[LearnedPattern], verdicts: Verdicts, now: float, *, is_own: bool = False
    ) -> tuple[Advance, dict[int, int]]:
        """Take over patterns of another space: each becomes part of the one that it is near to, or is a new one.

        Parameters
        ----------
        patterns, verdicts
            What is taken over; ids, and by id the verdicts.
        now
            Seconds since the epoch.
        is_own
            Whether they are of this space, from an earlier time: what is there, or near to what is there, has learned
            all that they have, and nothing counts twice.

        Returns
        -------
        Advance, dict
            What comes of it, and by old id the new one, of those that were taken over.

        Raises
        ------
        ConfigError
            If one has verdicts on too many parameters; nothing was taken over.
        """
        if is_own:
            patterns = [pattern for pattern in patterns if pattern.id not in self._before]
        renamed = self._put_beside(patterns, verdicts)
        if is_own:
            near = merge_plan(self.patterns, self.config.merge_threshold)
            gone = {old for old, new in renamed.items() if near.get(new) in self._before}
            for old in gone:
                del self._patterns[renamed[old]]
                self._verdicts.pop(renamed.pop(old), None)
        new = set(renamed.values())
        # Those that were there are for the next cycle to merge.
        near = merge_plan(self.patterns, self.config.merge_threshold)
        plan = self._merge({id: into for id, into in near.items() if id in new}, now)
        return self._advance({}, (), (), recommend_anew=False), {old: plan.get(id, id) for old, id in renamed.items()}

    def _advance(
        self, plan: Mapping[int, int], pruned: Sequence[int], waiting: tuple[int, ...], *, recommend_anew: bool
    ) -> Advance:
        before, after = self._before, self._patterns
        verdicts: dict[int, dict[str, Verdict]] = {}
        for id, known in self._verdicts.items():
            were = self._verdicts_before.get(id, {})
            new = {name: verdict for name, verdict in known.items() if verdict is not were.get(name)}
            if new:
                verdicts[id] = new
        return Advance(
            created=tuple(after[id] for id in sorted(after.keys() - before.keys())),
            changed=tuple(after[id] for id in sorted(after.keys() & before.keys()) if _differs(before[id], after[id])),
            merged={id: into for id, into in plan.items() if id in before},
            pruned=tuple(id for id in pruned if id in before),
            verdicts=verdicts,
            evidence={id: self.get_verdict(id) for id in verdicts},
            best={
                id: best_values(known, self.verdict_config)
                for id, known in (self._verdicts if recommend_anew else verdicts).items()
            },
            last_id=self._next_id - 1,
            waiting=waiting,
        )

    def _extract(self, shards: OutcomeShards, now: float) -> tuple[int, ...]:
        """Bring the patterns up to the outcomes; which of these wait."""
        try:
            centroids = clustered(shards, level_centroids(self.patterns, self.config.embedding_dim), self.config)
            (tally, _), *others = tallies = shards.map(OutcomeShard.tally, centroids)
            clusters, into = without_duplicates(sum((of for of, _ in others), tally), self.config.merge_threshold)
            change = changed(self.patterns, clusters, now, self._next_id, self.config)
        except (InvalidInput, MemoryError, FloatingPointError) as cause:
            found = sum(shards.sizes)
            raise PatternExtractionError(f"{found} trajectories could not be clustered: {cause}") from cause
        fresh = [(int(change.members[into[one.cluster]]), one) for _, part in tallies for one in part]
        judged = ((id, one) for id, one in fresh if id >= 0 and not math.isnan(one.quality))
        self._take(change, ((id, one.quality, one.used, one.fed_back) for id, one in judged))
        return tuple(one.ordinal for id, one in fresh if id < 0)


def _differs(before: LearnedPattern, after: LearnedPattern) -> bool:
    # Two times a part of a half-life is the half-life: a weight that has merely aged need not be written.
    aside = {"centroid": before.centroid, "total_weight": before.total_weight, "decayed_at": before.decayed_at}
    return (
        not np.array_equal(before.centroid, after.centroid)
        or after.updated_at != before.updated_at
        or _fields(replace(after, **aside)) != _fields(before)  # type: ignore[arg-type]
    )


def _fields(pattern: LearnedPattern) -> tuple[object, ...]:
    return tuple(getattr(pattern, name) for name in LearnedPattern.__slots__ if name != "centroid")
