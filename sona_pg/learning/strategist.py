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
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sona_pg.config import QueryAdapterConfig, StrategyConfig
from sona_pg.kernels import unit
from sona_pg.learning.evidence import Gate, SanityTest, Stake, log_rank_gain
from sona_pg.learning.fusion import SHARPNESS, Cosines, Fusion, Vector, features
from sona_pg.learning.item_pool import ItemPool
from sona_pg.learning.packing import pack, unpack
from sona_pg.learning.query_adapter import QueryAdapter
from sona_pg.learning.remembered import JudgedEvent, Neighbourhood, OutcomeMemory
from sona_pg.types import FloatVector

FloatMatrix = NDArray[np.float32]

STATE_FORMAT = 1
SHOWN = 10
_ORDERS = 100
"""Orders of what was shown that a choice is compared with."""
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


class ItemIndex(Protocol):
    """Where items are found."""

    def nearest(self, queries: FloatMatrix, k: int) -> Collection[str]:
        """The items among the k nearest to any of these unit queries (n, dim), by cosine."""
        ...

    def embeddings(self, items: Sequence[str]) -> tuple[Sequence[str], FloatMatrix]:
        """Those of the items that there are, and their unit embeddings (n, dim)."""
        ...


class PoolIndex:
    """The items of a pool, searched exactly.

    Parameters
    ----------
    pool
        The items.
    """

    def __init__(self, pool: ItemPool) -> None:
        self._pool = pool

    def nearest(self, queries: FloatMatrix, k: int) -> set[str]:
        """As `ItemIndex.nearest`."""
        cosines = queries @ self._pool.embeddings.T
        few = min(k, len(self._pool))
        rows = np.argpartition(-cosines, few - 1, axis=1)[:, :few] if few else np.zeros((1, 0), dtype=np.int64)
        return {self._pool.ids[row] for row in rows.ravel()}

    def embeddings(self, items: Sequence[str]) -> tuple[list[str], FloatMatrix]:
        """As `ItemIndex.embeddings`."""
        rows = [(item, row) for item in items if (row := self._pool.row(item)) is not None]
        return [item for item, _ in rows], self._pool.embeddings[[row for _, row in rows]]


@dataclass(frozen=True, slots=True)
class Scored:
    """Candidates for a query, as every strategy scores them.

    Parameters
    ----------
    items
        The candidates, sorted.
    scores
        (n,) by strategy; higher is better.
    features
        (n, len(FEATURES)).
    around
        What the nearest events say.
    """

    items: list[str]
    scores: Mapping[Strategy, Vector]
    features: Vector
    around: Neighbourhood

    def ranking(self, strategy: Strategy, k: int = SHOWN) -> list[str]:
        """The k best items by a strategy, best first; equal ones by id."""
        order = np.argsort(-self.scores[strategy], kind="stable")[:k]
        return [self.items[place] for place in order]


@dataclass(frozen=True, slots=True)
class Lesson:
    """What an event has shown.

    Parameters
    ----------
    in_force
        The strategy that was in force before it.
    gains
        nDCG@10 over frozen by strategy, on the items that helped, before anything was learned from the event.
    turned
        Why another strategy is in force after it; None if it is the same.
    """

    in_force: Strategy
    gains: Mapping[Strategy, float]
    turned: str | None


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
        self._gate = Gate(c.gate_threshold, c.gate_later)
        self._stake_gate = Gate(c.gate_threshold, c.gate_later)
        """Open where the stake is proven to beat the fusion."""
        self._sanity = SanityTest(1, c.sanity_window, c.sanity_open, c.sanity_close)
        self._choice = SanityTest(2, c.choice_window, c.choice_open, c.sanity_close)
        self._known, self._strange = Stake(c.stake_keep), Stake(c.stake_keep)
        self._unseen = Stake(c.stake_keep)

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
        }

    @property
    def in_force(self) -> Strategy:
        """The strategy that answers."""
        if self._sanity.is_open and self._choice.is_open:
            if self._gate.is_open and not self._stake_gate.is_open:
                return Strategy.FUSION
            if self._known.share > 0 or self._strange.share > 0:
                return Strategy.STAKE
        return Strategy.FROZEN

    def answer(self, query: FloatVector, memory: OutcomeMemory, index: ItemIndex) -> Scored:
        """Candidates for a unit query (dim,) under every strategy."""
        around = Neighbourhood(memory.near(query, self.config.neighbours), self.config)
        return self._look(query, around, self._adapter, memory, index)

    def _look(
        self,
        query: FloatVector,
        around: Neighbourhood,
        adapter: QueryAdapter,
        memory: OutcomeMemory,
        index: ItemIndex,
        also: Collection[str] = (),
        *,
        is_unseen: bool = False,
    ) -> Scored:
        """Candidates, `also` among them, and their scores; as if those had never helped, if they are `is_unseen`."""
        adapted, careful = unit(adapter.adapt(query)), unit(self._careful.adapt(query))
        familiar = unit(query + np.float32(around.gate) * (adapted - query))
        asked = np.stack([query, adapted, familiar, careful])
        wanted = {*index.nearest(asked, self.config.candidates), *around.nearest_help, *also}
        names, embeddings = index.embeddings(sorted(wanted))
        items = list(names)
        frozen, by_adapter, by_familiar, by_careful = asked @ embeddings.T
        counts = list(memory.times_helped(items))
        if is_unseen:
            counts = [0 if item in also else count for item, count in zip(items, counts, strict=True)]
        best = float(frozen.max()) if items else 0.0
        table = features(items, Cosines(frozen, by_adapter, by_familiar), around, counts, best)
        return Scored(items, self._scores(table, by_careful, around), table, around)

    def _scores(self, table: Vector, careful: FloatVector, around: Neighbourhood) -> dict[Strategy, Vector]:
        frozen = table[:, 0]
        familiar, known = around.gate, around.gate * self._known.share + (1 - around.gate) * self._strange.share
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

    def learn(self, event: JudgedEvent, memory: OutcomeMemory, index: ItemIndex) -> Lesson:
        """Score every strategy on an event, then learn from it. The memory must not hold the event yet."""
        before = self.in_force
        scored = self.answer(event.query, memory, index)
        helpful, embeddings = index.embeddings(sorted(event.helped))
        if not helpful:
            return Lesson(before, {}, None)
        if len(helpful) > self.config.most_helped:
            best = sorted(helpful, key=lambda item: (-event.helped[item], item))[: self.config.most_helped]
            helpful, embeddings = index.embeddings(sorted(best))
        event = replace(event, helped={item: event.helped[item] for item in helpful})
        quality = {s: _ndcg(scored.ranking(s), event.helped) for s in Strategy}
        gains = {s: quality[s] - quality[Strategy.FROZEN] for s in Strategy}
        self._weigh(event, scored, embeddings, gains)
        self._test_sanity(event, scored, embeddings, memory.latest(self.config.sanity_events))
        self._learn_fusion(event, scored, memory, index)
        self._learn_adapters(event, embeddings, index)
        after = self.in_force
        return Lesson(before, gains, None if after is before else self._reason(after))

    def _weigh(
        self, event: JudgedEvent, scored: Scored, embeddings: FloatMatrix, gains: Mapping[Strategy, float]
    ) -> None:
        """Test: what the event says of the strategies as they were before it."""
        careful = unit(self._careful.adapt(event.query))
        ranks = [_ranks(asked, embeddings, self._pool.embeddings) for asked in (event.query, careful)]
        difference = log_rank_gain(*ranks)
        self._known.add(difference, scored.around.gate)
        self._strange.add(difference, 1.0 - scored.around.gate)
        self._gate.add(gains[Strategy.FUSION])
        self._stake_gate.add(gains[Strategy.STAKE] - gains[Strategy.FUSION])

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

    def _learn_fusion(self, event: JudgedEvent, scored: Scored, memory: OutcomeMemory, index: ItemIndex) -> None:
        missing = set(event.helped).difference(scored.items)
        listed = scored
        if missing:
            listed = self._look(event.query, scored.around, self._adapter, memory, index, event.helped)
        gradient = self._fusion.gradient(listed.features, _targets(listed.items, event.helped))
        around = Neighbourhood(memory.near(event.query, self.config.neighbours, without=event.helped), self.config)
        blind = self._blind[self._fold(event)]
        unseen = self._look(event.query, around, blind, memory, index, event.helped, is_unseen=True)
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

    def _learn_adapters(self, event: JudgedEvent, embeddings: FloatMatrix, index: ItemIndex) -> None:
        missed, others = index.embeddings(sorted(set(event.unhelpful).difference(event.helped)))
        items = [*embeddings, *others]
        targets = [*event.helped.values(), *(0.0 for _ in missed)]
        rows = [row for item in [*event.helped, *missed] if (row := self._pool.row(item)) is not None]
        skip = np.array(rows, dtype=np.int64)
        fold = self._fold(event)
        blind = [adapter for place, adapter in enumerate(self._blind) if place != fold]
        for adapter in (self._adapter, self._careful, *blind):
            adapter.learn(event.query, items, targets, pool=self._pool.embeddings, skip=skip, seed=event.seed)

    def _reason(self, after: Strategy) -> str:
        capital = f"the sanity test stands at 10^{self._sanity.log_capital / np.log(10):.1f}"
        if after is Strategy.FUSION:
            return f"the fusion is proven to beat frozen at 1 in {self.config.gate_threshold:g}; {capital}"
        if after is Strategy.STAKE:
            shares = f"{self._known.share:.2f} on familiar ground, {self._strange.share:.2f} elsewhere"
            return f"the stake is {shares}; {capital}"
        return f"nothing is proven to beat frozen; {capital}"


def _uniform(seed: int) -> float:
    """A number from 0 to 1 that any seed gives as a draw would (the finaliser of SplitMix64, Steele et al. 2014)."""
    value = (seed + 0x9E37_79B9_7F4A_7C15) & _WORD
    value = (value ^ value >> 30) * 0xBF58_476D_1CE4_E5B9 & _WORD
    value = (value ^ value >> 27) * 0x94D0_49BB_1331_11EB & _WORD
    return ((value ^ value >> 31) >> 11) / (1 << 53)


def _own_query(query: FloatVector, others: FloatMatrix, helped: FloatVector, draw: float) -> float:
    """p-value of the own query among others (n, dim), by nearness to what helped."""
    middle = unit(helped)
    return _rank_p_value(float(query @ middle), others @ middle, 1e-6, draw)


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
    cosines = among @ query
    return np.array([1 + int((cosines > item).sum()) for item in items @ query])


def _places(scores: Vector, at: NDArray[np.intp]) -> NDArray[np.int64]:
    """1-based ranks of candidates by their scores."""
    return np.array([1 + int((scores > scores[place]).sum()) for place in at])
