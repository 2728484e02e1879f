"""Ways of answering, what they are worth, and which of them is in force.

frozen    the embedding as it is
adapted   the query as the adapter asks it
familiar  the adapted query, by as much as the ground is familiar
boosted   frozen, and items that helped near this query
stake     an adapter of low rank, by as much as it is sure to help: for small spaces
fusion    all above as features of a learned score; on unfamiliar ground by as much as it is sure to help there
related   frozen, and items to which activation spreads over the memory graph from those nearest to the query
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sona_pg.config import SHOWN
from sona_pg.kernels import LowRank, order_by_score
from sona_pg.learning.fusion import Vector
from sona_pg.learning.regions import Region
from sona_pg.learning.remembered import FloatMatrix, Surroundings

_DISCOUNTS = 1.0 / np.log2(np.arange(2, SHOWN + 2))


class Strategy(enum.StrEnum):
    """A way of answering."""

    FROZEN = "frozen"
    ADAPTED = "adapted"
    FAMILIAR = "familiar"
    BOOSTED = "boosted"
    STAKE = "stake"
    FUSION = "fusion"
    # The last one: states of before have none.
    RELATED = "related"


RIVALS = (Strategy.FROZEN, Strategy.STAKE, Strategy.FUSION)
"""What may answer while `related` does not: it is compared with each, at an error of its own for all together."""


@dataclass(frozen=True, slots=True)
class Scored:
    """Candidates for a query, as every strategy scores them.

    Parameters
    ----------
    around
        Where they come from.
    rows
        (n,) rows of the candidates in it, in the order of their ids.
    scores
        (n,) by strategy; higher is better. Those of `related` are of `reached`.
    features
        (n, len(FEATURES)).
    familiarity
        How familiar the ground is, 0 to 1.
    reached
        (m,) rows of the candidates and of what activation reaches beside them.
    """

    around: Surroundings
    rows: NDArray[np.int64]
    scores: Mapping[Strategy, Vector]
    features: Vector
    familiarity: float
    reached: NDArray[np.int64]

    def best(self, strategy: Strategy, k: int = SHOWN) -> NDArray[np.int64]:
        """Rows of the k best items by a strategy, best first; equal ones by id."""
        rows = self.reached if strategy is Strategy.RELATED else self.rows
        return rows[order_by_score(self.scores[strategy], k)]

    def ranking(self, strategy: Strategy, k: int = SHOWN) -> list[str]:
        """The k best items by a strategy, best first; equal ones by id."""
        return [self.around.items[row] for row in self.best(strategy, k)]


@dataclass(frozen=True, slots=True)
class Turn:
    """Another strategy is in force, or something else than before is proven in a region.

    Parameters
    ----------
    region
        Where; None is the whole space.
    before, after
        What answers there; the same where a region is proven to be what it was by other reasons.
    reason
        What was proven, for people.
    """

    region: int | None
    before: Strategy
    after: Strategy
    reason: str


@dataclass(frozen=True, slots=True)
class Lesson:
    """What an event has shown.

    Parameters
    ----------
    in_force
        The strategy that was in force before it, where it was asked.
    gains
        nDCG@10 over frozen by strategy, on the items that helped, before anything was learned from the event; empty if
        none of them is there.
    turns
        What changed by it.
    """

    in_force: Strategy
    gains: Mapping[Strategy, float]
    turns: tuple[Turn, ...] = ()


@dataclass(frozen=True, slots=True)
class InForce:
    """What answers, as far as it takes no memory: small enough to be a row.

    Parameters
    ----------
    strategy
        Of the space.
    known, strange
        How much of the careful adapter the stake serves, on familiar and on strange ground.
    unseen
        How much of the fusion is served on strange ground.
    weights
        Of the fusion.
    proven, careful
        The adapters that the fusion and the stake ask with; changed by the next event.
    regions
        Each with its evidence; those that are proven to be better or worse are exceptions.
    is_sane
        Whether outcomes have to do with queries; nothing but frozen answers without.
    events
        How many were scored.
    gains
        Mean gain of every strategy over frozen, over all events, and with recent ones counting more.
    """

    strategy: Strategy
    known: float
    strange: float
    unseen: float
    weights: Vector
    proven: LowRank
    careful: LowRank
    regions: list[Region]
    is_sane: bool
    events: int
    gains: Mapping[Strategy, tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Restored:
    """What a version brings back.

    Parameters
    ----------
    evidence
        What `Strategist.evidence` gave; None if nothing was scored by then.
    learner
        State of the learner, as it packs it: its adapter has learned the same events.
    proven, careful
        The maps that answered (2 rank, dim); None where they did not.
    centroids, verdicts
        Regions (n, dim) and their verdicts (n,); none where all followed the space.
    """

    evidence: bytes | None
    learner: bytes
    proven: FloatMatrix | None
    careful: FloatMatrix | None
    centroids: FloatMatrix
    verdicts: tuple[int, ...]


def gains_over_frozen(scored: Scored, answer: Vector) -> dict[Strategy, float]:
    """nDCG@10 of every strategy over frozen; `answer` is how much each item around helped."""
    ideal = float(np.sort(answer[answer > 0])[::-1][:SHOWN] @ _DISCOUNTS[: min(np.count_nonzero(answer), SHOWN)])
    found = {s: answer[scored.best(s)] for s in Strategy}
    quality = {s: float(of @ _DISCOUNTS[: len(of)]) / ideal for s, of in found.items()}
    return {s: value - quality[Strategy.FROZEN] for s, value in quality.items()}
