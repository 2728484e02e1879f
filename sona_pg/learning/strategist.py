"""The strategist: scores every way of answering by outcomes before it learns from them, and says which is in force.

frozen    the embedding as it is
adapted   the query as the adapter asks it
familiar  the adapted query, by as much as the ground is familiar
boosted   frozen, and items that helped near this query
stake     an adapter of low rank, by as much as it is sure to help: for small spaces
fusion    all of these as features of a learned score; on unfamiliar ground by as much as it is sure to help there
"""

from __future__ import annotations

import enum
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sona_pg.config import SHOWN, QueryAdapterConfig, StrategyConfig
from sona_pg.kernels import LowRank, dot_rows, unit
from sona_pg.learning.evidence import Gate, SanityTest, Stake, log_rank_gain
from sona_pg.learning.fusion import SHARPNESS, Cosines, Fusion, Vector, features
from sona_pg.learning.item_pool import ItemPool
from sona_pg.learning.packing import pack, unpack
from sona_pg.learning.query_adapter import QueryAdapter
from sona_pg.learning.regions import Region, Regions, Verdict
from sona_pg.learning.remembered import FloatMatrix, JudgedEvent, Neighbourhood, Remembered, Surroundings
from sona_pg.types import FloatVector

STATE_FORMAT = 2
_ORDERS = 100
"""Orders of what was shown that a choice is compared with."""
CONTENDERS = 3
"""The fusion, the stake, and the fusion in a region: thresholds hold for all of them together (Bonferroni)."""
_WORD = (1 << 64) - 1
_DISCOUNTS = 1.0 / np.log2(np.arange(2, SHOWN + 2))


class _Part(Protocol):
    """Something with a state of its own."""

    def state(self) -> dict[str, NDArray[np.generic]]: ...

    def load_state(self, state: Mapping[str, NDArray[np.generic]]) -> None: ...


class Strategy(enum.StrEnum):
    """A way of answering."""

    FROZEN = "frozen"
    ADAPTED = "adapted"
    FAMILIAR = "familiar"
    BOOSTED = "boosted"
    STAKE = "stake"
    FUSION = "fusion"


@dataclass(frozen=True, slots=True)
class Scored:
    """Candidates for a query, as every strategy scores them.

    Parameters
    ----------
    items
        The candidates, in the order of their ids.
    scores
        (n,) by strategy; higher is better.
    features
        (n, len(FEATURES)).
    familiarity
        How familiar the ground is, 0 to 1.
    """

    items: list[str]
    scores: Mapping[Strategy, Vector]
    features: Vector
    familiarity: float

    def ranking(self, strategy: Strategy, k: int = SHOWN) -> list[str]:
        """The k best items by a strategy, best first; equal ones by id."""
        order = np.argsort(-self.scores[strategy], kind="stable")[:k]
        return [self.items[place] for place in order]


@dataclass(frozen=True, slots=True)
class Turn:
    """Another strategy is in force.

    Parameters
    ----------
    region
        Where; None is the whole space.
    before, after
        The strategies. A region that is no exception any more is named by what the space does.
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
    careful
        The careful adapter; changed by the next event.
    regions
        Each with its evidence; those that are proven to be better or worse are exceptions.
    """

    strategy: Strategy
    known: float
    strange: float
    unseen: float
    weights: Vector
    careful: LowRank
    regions: list[Region]


class Strategist:
    """Learns which strategy answers best. Safe against noise: anything but frozen must be proven first.

    Parameters
    ----------
    pool
        Sample of the items.
    config, adapter
        Settings.
    """

    def __init__(
        self, pool: ItemPool, config: StrategyConfig | None = None, adapter: QueryAdapterConfig | None = None
    ) -> None:
        self.config = c = StrategyConfig() if config is None else config
        dim = pool.embeddings.shape[1]
        recipe = QueryAdapterConfig.for_dim(dim) if adapter is None else adapter
        careful = QueryAdapterConfig(
            rank=min(c.stake_rank, dim),
            learning_rate=c.stake_learning_rate,
            temperature=c.stake_temperature,
            negatives=c.stake_negatives,
        )
        self._pool = pool
        self._adapter = QueryAdapter(dim, recipe, items=pool.embeddings)
        self._careful = QueryAdapter(dim, careful, items=pool.embeddings)
        # Each has not seen the answers of a part of the events: the counterfactual asks the one that has not seen this.
        self._blind = [QueryAdapter(dim, recipe, items=pool.embeddings) for _ in range(c.folds)]
        self._fusion = Fusion(c)
        threshold = CONTENDERS * c.gate_threshold
        self._gate, self._stake_gate = Gate(threshold, c.gate_later), Gate(threshold, c.gate_later)
        """Open where the stake is proven to beat the fusion."""
        self._sanity = SanityTest(1, c.sanity_window, c.sanity_open, c.sanity_close)
        self._choice = SanityTest(2, c.choice_window, c.choice_open, c.sanity_close)
        self._known, self._strange = Stake(c.stake_keep), Stake(c.stake_keep)
        self._unseen = Stake(c.stake_keep)
        self._regions = Regions(dim, c, threshold)

    def to_bytes(self) -> bytes:
        """Everything that a continuation needs but the memory; see `packing`."""
        return pack(
            self._header, {f"{part}.{n}": a for part, owner in self._parts.items() for n, a in owner.state().items()}
        )

    def load_bytes(self, data: bytes) -> None:
        """Continue from what `to_bytes` gave; bit for bit.

        Raises
        ------
        LearningError
            If the data are damaged, or belong to another dimension or other settings.
        """
        arrays = unpack(data, self._header, "strategist")
        for part, owner in self._parts.items():
            owner.load_state({n[len(part) + 1 :]: a for n, a in arrays.items() if n.startswith(f"{part}.")})

    @property
    def _header(self) -> dict[str, int]:
        return {
            "format": STATE_FORMAT,
            "dim": self._adapter.dim,
            "rank": self._adapter.rank,
            "careful": self._careful.rank,
        }

    @property
    def _parts(self) -> dict[str, _Part]:
        return {
            "adapter": self._adapter,
            "careful": self._careful,
            **{f"blind{place}": adapter for place, adapter in enumerate(self._blind)},
            "fusion": self._fusion,
            "gate": self._gate,
            "stake_gate": self._stake_gate,
            "sanity": self._sanity,
            "choice": self._choice,
            "known": self._known,
            "strange": self._strange,
            "unseen": self._unseen,
            "regions": self._regions,
        }

    @property
    def in_force(self) -> Strategy:
        """The strategy of the space."""
        return self._in_force(Verdict.FOLLOWS)

    def strategy_for(self, query: FloatVector) -> Strategy:
        """The strategy that answers a unit query (dim,): that of the space, unless its region is an exception."""
        return self._in_force(self._regions.verdict(query))

    def _in_force(self, verdict: Verdict) -> Strategy:
        if not (self._sanity.is_open and self._choice.is_open) or verdict is Verdict.WORSE:
            return Strategy.FROZEN
        if verdict is Verdict.BETTER or (self._gate.is_open and not self._stake_gate.is_open):
            return Strategy.FUSION
        return Strategy.STAKE if self._known.share > 0 or self._strange.share > 0 else Strategy.FROZEN

    def describe(self) -> InForce:
        """What is in force, and all that it takes to answer by it."""
        return InForce(
            self.in_force,
            self._known.share,
            self._strange.share,
            self._unseen.share,
            self._fusion.served.copy(),
            self._careful.served,
            self._regions.describe(),
        )

    def answer(self, query: FloatVector, around: Surroundings) -> Scored:
        """Candidates for a unit query (dim,) under every strategy."""
        events = around.visible((), self.config.neighbours)
        return self._look(query, around, events, around.candidates(events), self._adapter)

    def _look(
        self,
        query: FloatVector,
        around: Surroundings,
        events: Sequence[Remembered],
        rows: NDArray[np.int64],
        adapter: QueryAdapter,
        unseen: Mapping[str, float] | None = None,
    ) -> Scored:
        """Candidates by their rows, and their scores; as if `unseen` had never helped."""
        near = Neighbourhood(events, self.config)
        items = [around.items[row] for row in rows]
        if not items:
            empty = np.zeros((0, len(self._fusion.served)))
            return Scored([], dict.fromkeys(Strategy, empty[:, 0]), empty, near.gate)
        adapted, careful = unit(adapter.adapt(query)), unit(self._careful.adapt(query))
        familiar = unit(query + np.float32(near.gate) * (adapted - query))
        frozen, by_adapter, by_familiar, by_careful = (
            _dots(around.embeddings[rows], asked) for asked in (query, adapted, familiar, careful)
        )
        counts = around.times_helped[rows]
        if unseen is not None:
            counts = np.where([item in unseen for item in items], 0, counts)
        table = features(items, Cosines(frozen, by_adapter, by_familiar), near, counts, float(frozen.max()))
        return Scored(items, self._scores(table, by_careful, near.gate), table, near.gate)

    def _scores(self, table: Vector, careful: FloatVector, familiar: float) -> dict[Strategy, Vector]:
        frozen = table[:, 0]
        known = familiar * self._known.share + (1 - familiar) * self._strange.share
        trusted = familiar + (1 - familiar) * self._unseen.share
        return {
            Strategy.FROZEN: frozen,
            Strategy.ADAPTED: frozen + table[:, 2],
            Strategy.FAMILIAR: frozen + table[:, 1],
            Strategy.BOOSTED: frozen + SHARPNESS * 0.5 * np.expm1(table[:, 6] / 2),
            Strategy.STAKE: (1 - known) * frozen + known * SHARPNESS * careful,
            Strategy.FUSION: (1 - trusted) * frozen + trusted * self._fusion.score(table),
        }

    # Learning --------------------------------------------------------------------------------------------------

    def learn(self, event: JudgedEvent, around: Surroundings, others: FloatMatrix) -> Lesson:
        """Score every strategy on an event, then learn from it.

        Parameters
        ----------
        event
            What helped and what did not.
        around
            What was around its query before it.
        others
            Unit queries (n, dim) that were remembered before it.
        """
        space, here = self.in_force, self.strategy_for(event.query)
        helpful = [item for item in event.helped if item in around.row]
        if not helpful:
            return Lesson(here, {})
        helpful.sort(key=lambda item: (-event.helped[item], item))
        helpful = sorted(helpful[: self.config.most_helped])
        event = replace(event, helped={item: event.helped[item] for item in helpful})
        embeddings = around.embeddings[[around.row[item] for item in helpful]]
        events = around.visible((), self.config.neighbours)
        rows = around.candidates(events)
        scored = self._look(event.query, around, events, rows, self._adapter)
        quality = {s: _ndcg(scored.ranking(s), event.helped) for s in Strategy}
        gains = {s: quality[s] - quality[Strategy.FROZEN] for s in Strategy}
        turned = self._weigh(event, scored, embeddings, gains)
        self._test_sanity(event, scored, embeddings, others)
        self._learn_fusion(event, around, events, rows, scored)
        self._learn_adapters(event, around, embeddings)
        return Lesson(here, gains, self._turns(space, turned))

    def _weigh(
        self, event: JudgedEvent, scored: Scored, embeddings: FloatMatrix, gains: Mapping[Strategy, float]
    ) -> int | None:
        """Test: what the event says of the strategies as they were before it; the region whose verdict turned."""
        careful, sample = unit(self._careful.adapt(event.query)), self._pool.embeddings[: self.config.rank_items]
        ranks = [_ranks(asked, embeddings, sample) for asked in (event.query, careful)]
        difference = log_rank_gain(*ranks)
        self._known.add(difference, scored.familiarity)
        self._strange.add(difference, 1.0 - scored.familiarity)
        self._gate.add(gains[Strategy.FUSION])
        self._stake_gate.add(gains[Strategy.STAKE] - gains[Strategy.FUSION])
        region, has_turned = self._regions.add(event.query, gains[Strategy.FUSION])
        return region if has_turned else None

    def _test_sanity(self, event: JudgedEvent, scored: Scored, embeddings: FloatMatrix, others: FloatMatrix) -> None:
        """Whether what helped belongs to the query, and whether it does so given what was shown."""
        rewards = np.array(list(event.helped.values()), dtype=np.float32)
        draw = _uniform(event.seed)
        self._sanity.add(_own_query(event.query, others, rewards @ embeddings, draw))
        # What helped without having been shown was not selected by what was shown.
        unshown = np.array([item not in event.shown for item in event.helped])
        if unshown.any():
            own = _own_query(event.query, others, rewards[unshown] @ embeddings[unshown], draw)
            self._choice.add(own, own)
            return
        place = {item: row for row, item in enumerate(scored.items)}
        shown = [item for item in event.shown if item in place]
        given = np.array([event.helped.get(item, 0.0) for item in shown])
        if not len(given) or given.min() == given.max():
            return
        # By chance, what helped would stand as high as the rest of what was shown, by whatever was known before.
        table = scored.features[[place[item] for item in shown]]
        random = np.random.RandomState([event.seed & 0xFFFF_FFFF, event.seed >> 32])
        orders = random.rand(_ORDERS, len(given)).argsort(1)
        p_values = []
        for score in (table[:, 0], self._fusion.score(table)):
            height = score.argsort(kind="stable").argsort().astype(np.float64)
            p_values.append(_rank_p_value(float(given @ height), given[orders] @ height, 1e-4, draw))
        self._choice.add(*p_values)

    def _learn_fusion(
        self,
        event: JudgedEvent,
        around: Surroundings,
        events: Sequence[Remembered],
        rows: NDArray[np.int64],
        scored: Scored,
    ) -> None:
        listed = around.candidates(events, event.helped)
        if len(listed) > len(rows):
            scored = self._look(event.query, around, events, listed, self._adapter)
        gradient = self._fusion.gradient(scored.features, _targets(scored.items, event.helped))
        # The same event as if its answer had never been seen: it may not have been, the next time.
        events = around.visible(event.helped, self.config.neighbours)
        rows, blind = around.candidates(events, event.helped), self._blind[self._fold(event)]
        unseen = self._look(event.query, around, events, rows, blind, event.helped)
        targets = _targets(unseen.items, event.helped)
        places = np.flatnonzero(targets)
        self._unseen.add(
            log_rank_gain(
                _places(unseen.scores[Strategy.FROZEN], places), _places(self._fusion.score(unseen.features), places)
            )
        )
        gradient += self.config.counterfactual_weight * self._fusion.gradient(unseen.features, targets)
        self._fusion.step(gradient)

    def _fold(self, event: JudgedEvent) -> int:
        """The part of the events that this one belongs to: that of the answer that helped most."""
        answer = min(event.helped, key=lambda item: (-event.helped[item], item))
        return zlib.crc32(answer.encode()) % self.config.folds

    def _learn_adapters(self, event: JudgedEvent, around: Surroundings, embeddings: FloatMatrix) -> None:
        missed = sorted(item for item in set(event.unhelpful).difference(event.helped) if item in around.row)
        items = [*embeddings, *around.embeddings[[around.row[item] for item in missed]]]
        targets = [*event.helped.values(), *(0.0 for _ in missed)]
        rows = [row for item in [*event.helped, *missed] if (row := self._pool.row(item)) is not None]
        skip = np.array(rows, dtype=np.int64)
        fold = self._fold(event)
        blind = [adapter for place, adapter in enumerate(self._blind) if place != fold]
        for adapter in (self._adapter, self._careful, *blind):
            adapter.learn(event.query, items, targets, pool=self._pool.embeddings, skip=skip, seed=event.seed)

    def _turns(self, before: Strategy, turned: int | None) -> tuple[Turn, ...]:
        after, turns = self.in_force, []
        if after is not before:
            turns.append(Turn(None, before, after, self._reason(after)))
        if turned is not None:
            region = self._regions.describe()[turned]
            there = self._in_force(region.verdict)
            found = "better" if region.verdict is Verdict.BETTER else "worse"
            reason = (
                f"there the fusion is proven to be {found} than frozen, by {region.gain:+.3f} nDCG@10 in the mean; "
                f"proven among {self.config.regions} regions at odds of {self.config.gate_threshold:g}"
            )
            turns.append(Turn(turned, after, there, reason))
        return tuple(turns)

    def _reason(self, after: Strategy) -> str:
        capital = f"the sanity test stands at 10^{self._sanity.log_capital / np.log(10):.1f}"
        if after is Strategy.FUSION:
            return f"the fusion is proven to beat frozen, at odds of {self.config.gate_threshold:g}; {capital}"
        if after is Strategy.STAKE:
            shares = f"{self._known.share:.2f} on familiar ground, {self._strange.share:.2f} elsewhere"
            return f"the stake is {shares}; {capital}"
        return f"nothing is proven to beat frozen; {capital}"


def _dots(rows: FloatMatrix, x: FloatVector) -> FloatVector:
    """Inner products (n,) of rows (n, dim) with x; by our own kernel, whose order of summation never changes."""
    out = np.empty(len(rows), dtype=np.float32)
    dot_rows(np.ascontiguousarray(rows), np.ascontiguousarray(x), out)
    return out


def _uniform(seed: int) -> float:
    """A number from 0 to 1 that any seed gives as a draw would (the finaliser of SplitMix64, Steele et al. 2014)."""
    value = (seed + 0x9E37_79B9_7F4A_7C15) & _WORD
    value = (value ^ value >> 30) * 0xBF58_476D_1CE4_E5B9 & _WORD
    value = (value ^ value >> 27) * 0x94D0_49BB_1331_11EB & _WORD
    return ((value ^ value >> 31) >> 11) / (1 << 53)


def _own_query(query: FloatVector, others: FloatMatrix, helped: FloatVector, draw: float) -> float:
    """p-value of the own query among others (n, dim), by nearness to what helped."""
    middle = unit(helped)
    return _rank_p_value(float(query @ middle), _dots(others, middle), 1e-6, draw)


def _rank_p_value(own: float, others: NDArray[np.floating], tie: float, draw: float) -> float:
    """Share of what is as large as `own` by chance, itself included; ties are drawn, so that it is uniform."""
    larger, equal = int((others > own + tie).sum()), int((np.abs(others - own) <= tie).sum())
    return (larger + draw * (equal + 1)) / (len(others) + 1)


def _targets(items: Sequence[str], helped: Mapping[str, float]) -> Vector:
    targets = np.array([helped.get(item, 0.0) for item in items])
    return np.asarray(targets / targets.sum())


def _ndcg(ranking: Sequence[str], helped: Mapping[str, float]) -> float:
    found = np.array([helped.get(item, 0.0) for item in ranking])
    ideal = np.sort(list(helped.values()))[::-1][:SHOWN]
    return float(found @ _DISCOUNTS[: len(found)] / (ideal @ _DISCOUNTS[: len(ideal)]))


def _ranks(query: FloatVector, items: FloatMatrix, among: FloatMatrix) -> NDArray[np.int64]:
    """1-based ranks of items (m, dim) among rows (n, dim) by cosine to a query."""
    cosines = _dots(among, query)
    return np.array([1 + int((cosines > item).sum()) for item in _dots(items, query)])


def _places(scores: Vector, at: NDArray[np.intp]) -> NDArray[np.int64]:
    """1-based ranks of candidates by their scores."""
    return np.array([1 + int((scores > scores[place]).sum()) for place in at])
