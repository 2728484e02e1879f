"""Learning from rows, as estimators do: how many taught, and why the others did not."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

TAUGHT = {"adapter": "the query adapter took a step", "micro": "the micro-LoRA took a step"}

SKIPPED = {
    "no outcome": "nothing was judged helpful: there is nothing to learn",
    "no embedding": "no helpful item has a known embedding: name the items table with set_items, or record activations",
    "withheld": "kept for the next background cycle, which judges a base by it and learns it then",
    "refused": "the step had no finite loss; nothing was changed",
}
"""What became of an event that changed no weight, as the ledger says it, for people."""


@dataclass(frozen=True, slots=True)
class FitReport:
    """What was learned from rows.

    Parameters
    ----------
    rows
        Rows that were given.
    used
        Those that were recorded.
    updates
        Those of them that changed a weight.
    skipped
        By reason, how many of the recorded did not.
    refused
        By row, why it was not recorded.
    trajectory_ids
        Of the recorded, in their order: for `score`, and for `why`.
    """

    rows: int
    used: int
    updates: int
    skipped: Mapping[str, int] = field(default_factory=dict)
    refused: Mapping[int, str] = field(default_factory=dict)
    trajectory_ids: tuple[uuid.UUID, ...] = ()


def fit_report(
    rows: int, ids: Iterable[uuid.UUID], became: Mapping[uuid.UUID, str], refused: Mapping[int, str]
) -> FitReport:
    """From what the ledger says of trajectories; of one that is not in it, that it waits."""
    recorded = tuple(ids)
    found = Counter(became.get(id, "waiting") for id in recorded)
    updates = sum(found.pop(said, 0) for said in TAUGHT)
    skipped = {SKIPPED.get(said, "not learned yet: flush again"): count for said, count in sorted(found.items())}
    return FitReport(rows, len(recorded), updates, skipped, dict(refused), recorded)
