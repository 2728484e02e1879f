"""What a slow loop has come to in a space, when an application asked for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class LearningResult:
    """What a background cycle has come to.

    Parameters
    ----------
    state
        ``done``, or ``skipped`` where there was too little to learn from: see `reason`.
    reason
        Why it was skipped.
    patterns_learned, patterns
        Patterns that are new, and all that there are.
    trajectories, new
        Outcomes that were looked at, and those of them that no cycle had counted.
    is_published
        Whether a new base answers; otherwise `facts` say why not.
    facts
        All that the cycle says of itself, as in `sona.runs`.
    """

    state: str
    reason: str | None
    patterns_learned: int
    patterns: int
    trajectories: int
    new: int
    is_published: bool
    facts: Mapping[str, Any]

    @classmethod
    def of(cls, run: Mapping[str, Any]) -> LearningResult:
        """From a row of `sona.runs`."""
        facts = run["facts"] or {}
        return cls(
            run["state"],
            run["reason"],
            facts.get("created", 0),
            facts.get("patterns", 0),
            facts.get("trajectories", 0),
            facts.get("new", 0),
            facts.get("base") == "published",
            facts,
        )


@dataclass(frozen=True, slots=True)
class DeepLearningResult:
    """What a deep cycle has come to.

    Parameters
    ----------
    state, reason
        As of a `LearningResult`.
    dreams_generated, dreams_integrated
        Dreams, and those of them that could connect what they have brought together.
    concepts
        Patterns of patterns.
    phi, phi_by_chance
        Integration of those of the largest patterns that are most of one system, in nats, and the largest of as many
        without relations; None where it was not measured.
    facts
        All that the cycle says of itself, by phase, as in `sona.runs`.
    """

    state: str
    reason: str | None
    dreams_generated: int
    dreams_integrated: int
    concepts: int
    phi: float | None
    phi_by_chance: float | None
    facts: Mapping[str, Any]

    @classmethod
    def of(cls, run: Mapping[str, Any]) -> DeepLearningResult:
        """From a row of `sona.runs`."""
        facts = run["facts"] or {}

        def said(phase: str) -> Mapping[str, Any]:
            found = facts.get(phase)
            return found if isinstance(found, Mapping) else {}

        return cls(
            run["state"],
            run["reason"],
            said("dream").get("dreams", 0),
            said("dream").get("integrated", 0),
            said("hierarchy").get("concepts", 0),
            said("integration").get("phi"),
            said("integration").get("chance"),
            facts,
        )
