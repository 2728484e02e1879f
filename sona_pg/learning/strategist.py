"""The strategist: scores every way of answering by outcomes before it learns from them, and says which is in force.

See `strategies` for what they are.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from sona_pg.config import QueryAdapterConfig, StrategyConfig
from sona_pg.kernels import fusion_features, shuffled_sums, unit
from sona_pg.learning.evidence import Comparison, Gate, SanityTest, Stake, Switch, Tally, log_rank_gain
from sona_pg.learning.fusion import SHARPNESS, Fusion, Vector
from sona_pg.learning.item_pool import ItemPool
from sona_pg.learning.learner import Learner
from sona_pg.learning.packing import expand, pack, squeeze, unpack
from sona_pg.learning.query_adapter import QueryAdapter
from sona_pg.learning.ranks import cosines, drawn, own_query_p_value, rank_p_value, ranks_among, ranks_at
from sona_pg.learning.regions import Regions, Verdict
from sona_pg.learning.remembered import FloatMatrix, JudgedEvent, Surroundings
from sona_pg.learning.strategies import RIVALS, InForce, Lesson, Restored, Scored, Strategy, Turn, gains_over_frozen
from sona_pg.types import FloatVector

STATE_FORMAT = 2
_ORDERS = 100
"""Orders of what was shown that a choice is compared with."""
CONTENDERS = 3
"""The fusion, the stake, and the fusion in a region: thresholds hold for all of them together (Bonferroni)."""


class _Part(Protocol):
    """Something with a state of its own."""

    def state(self) -> dict[str, NDArray[np.generic]]: ...

    def load_state(self, state: Mapping[str, NDArray[np.generic]]) -> None: ...


class _Asked(NamedTuple):
    """A query, and what does not change with the adapter that asks it: cosines (m,) of what is around."""

    query: FloatVector
    careful: FloatVector
    around: Surroundings
    frozen: FloatVector
    by_careful: FloatVector


_SMALL = ("fusion", "gate", "stake_gate", "related", "known", "strange", "unseen", "has_stake", "tally")
"""Parts of the state that say what answers, and are small."""


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
        self._related = Comparison(RIVALS, c.gate_threshold, c.gate_later)
        self._sanity = SanityTest(1, c.sanity_window, c.sanity_open, c.sanity_close)
        self._choice = SanityTest(2, c.choice_window, c.choice_open, c.sanity_close)
        self._known, self._strange = Stake(c.stake_keep, c.stake_prior), Stake(c.stake_keep, c.strange_prior)
        self._unseen = Stake(c.stake_keep, c.strange_prior)
        self._has_stake = Switch(c.stake_from)
        self._regions = Regions(dim, c, threshold)
        self._tally = Tally(len(Strategy), c.stake_keep, added=1)

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

    def evidence(self) -> bytes:
        """The small part of the state, which says what answers; see `restore`."""
        arrays = {f"{part}.{n}": a for part in _SMALL for n, a in self._parts[part].state().items()}
        arrays["is_open"] = np.array([self._sanity.is_open, self._choice.is_open], dtype=np.int64)
        return squeeze(pack({"format": STATE_FORMAT}, arrays), {})

    def restore(self, version: Restored) -> None:
        """Go back to a version: what answers is as it was then, and learning goes on from there.

        What only judges stays as it is: the windows of the sanity test, the adapters that are blind to a part of the
        answers, and the partition into regions. The evidence in the regions begins anew.

        Raises
        ------
        LearningError
            If a part is damaged, or belongs to another dimension or other settings.
        """
        data = version.evidence
        if data is None:
            data = Strategist(self._pool, self.config, self._adapter.config).evidence()
        arrays = unpack(expand(data, {}), {"format": STATE_FORMAT}, "strategist")
        for part in _SMALL:
            self._parts[part].load_state({n[len(part) + 1 :]: a for n, a in arrays.items() if n.startswith(f"{part}.")})
        self._sanity.is_open, self._choice.is_open = (bool(is_open) for is_open in arrays["is_open"])
        self._adapter.load_state(Learner.adapter_state(version.learner, self._adapter.dim, self._adapter.rank))
        # On a base, what was proven is one map with it, and the learner's own is as near to it as can be.
        if version.proven is not None and self._adapter.base is None:
            self._adapter.served.load(version.proven)
        if version.careful is not None:
            still = np.zeros_like(version.careful)
            self._careful.load_state(
                {
                    **self._careful.state(),
                    "trained": version.careful,
                    "served": version.careful,
                    "moment1": still,
                    "moment2": still,
                }
            )
        self._regions.restore(version.centroids, version.verdicts)

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
            "related": self._related,
            "sanity": self._sanity,
            "choice": self._choice,
            "known": self._known,
            "strange": self._strange,
            "unseen": self._unseen,
            "has_stake": self._has_stake,
            "regions": self._regions,
            "tally": self._tally,
        }

    @property
    def events(self) -> int:
        """How many events were scored."""
        return self._tally.count

    @property
    def in_force(self) -> Strategy:
        """The strategy of the space."""
        return self._in_force(Verdict.FOLLOWS)

    @property
    def answers(self) -> bool:
        """Whether anything but the frozen embedding answers anywhere."""
        return self._is_sane and (self.in_force is not Strategy.FROZEN or self._regions.has_better)

    @property
    def _is_sane(self) -> bool:
        return self._sanity.is_open and self._choice.is_open

    def strategy_for(self, query: FloatVector) -> Strategy:
        """The strategy that answers a unit query (dim,): that of the space, unless its region is an exception."""
        return self._in_force(self._regions.verdict(query))

    def _in_force(self, verdict: Verdict) -> Strategy:
        if not self._is_sane or verdict is Verdict.WORSE:
            return Strategy.FROZEN
        if verdict is Verdict.BETTER:
            return Strategy.FUSION
        rival = self._rival
        return Strategy.RELATED if self._related.beats(rival) else rival

    @property
    def _rival(self) -> Strategy:
        """What is proven of all that does not look at the memory graph."""
        if self._gate.is_open and not self._stake_gate.is_open:
            return Strategy.FUSION
        return Strategy.STAKE if self._has_stake.is_on else Strategy.FROZEN

    def describe(self) -> InForce:
        """What is in force, and all that it takes to answer by it."""
        return InForce(
            self.in_force,
            self._known.share,
            self._strange.share,
            self._unseen.share,
            self._fusion.served.copy(),
            self._adapter.map,
            self._careful.served,
            self._regions.describe(),
            self._is_sane,
            self.events,
            dict(zip(Strategy, self._tally.means(), strict=True)),
        )

    def answer(self, query: FloatVector, around: Surroundings) -> Scored:
        """Candidates for a unit query (dim,) under every strategy."""
        return self._score(self._asked(query, around), around.candidates(self.config.neighbours))

    def _score(self, asked: _Asked, rows: NDArray[np.int64]) -> Scored:
        table, familiar = self._look(asked, self._adapter, rows)
        scores = self._scores(table, asked.by_careful[rows], familiar)
        around, activation, reached = asked.around, asked.around.activation, rows
        # Where there is no activation it is the frozen ranking, bit for bit.
        scores[Strategy.RELATED] = scores[Strategy.FROZEN]
        if activation.any():
            reached = np.union1d(rows, np.flatnonzero(activation))
            scores[Strategy.RELATED] = SHARPNESS * (
                asked.frozen[reached].astype(np.float64) + self.config.related_weight * activation[reached]
            )
        return Scored(around, rows, scores, table, familiar, reached)

    def _asked(self, query: FloatVector, around: Surroundings) -> _Asked:
        careful = unit(self._careful.adapt(query))
        return _Asked(query, careful, around, cosines(around.embeddings, query), cosines(around.embeddings, careful))

    def _look(
        self, asked: _Asked, adapter: QueryAdapter, rows: NDArray[np.int64], unseen: NDArray[np.uint8] | None = None
    ) -> tuple[Vector, float]:
        """Features of candidates by their rows, and how familiar the ground is; as if what is `unseen` never helped."""
        around, c = asked.around, self.config
        adapted = unit(adapter.adapt(asked.query))
        table, _, familiar = fusion_features(
            asked.frozen,
            cosines(around.embeddings, adapted),
            float(cosines(adapted[np.newaxis], asked.query)[0]),
            rows,
            around.near,
            around.times_helped,
            unseen,
            neighbours=c.neighbours,
            misses_near=c.misses_near,
            vote_kernel=c.vote_kernel,
            familiar_from=c.familiar_from,
            familiar_width=c.familiar_width,
        )
        return table, familiar

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

    def adopt_adapter(self, learner: bytes) -> None:
        """Go on with the adapter of a learner, as that packs it: a cycle has given it another base.

        Raises
        ------
        LearningError
            If the state is damaged, or belongs to another dimension or rank; nothing was changed.
        """
        self._adapter.load_state(Learner.adapter_state(learner, self._adapter.dim, self._adapter.rank))

    def adopt_patterns(self, ids: Sequence[int], centroids: FloatMatrix) -> None:
        """Let regions be patterns, where they are near one; `centroids` (m, dim) are unit vectors."""
        self._regions.become(ids, centroids)

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
        if len(helpful) > self.config.most_helped:
            helpful = sorted(helpful, key=lambda item: (-event.helped[item], item))[: self.config.most_helped]
        event = replace(event, helped={item: event.helped[item] for item in sorted(helpful)})
        answer = np.zeros(len(around.items))
        answer[around.rows(event.helped)] = list(event.helped.values())
        asked, rows = self._asked(event.query, around), around.candidates(self.config.neighbours)
        scored = self._score(asked, rows)
        gains = gains_over_frozen(scored, answer)
        embeddings = around.embeddings[around.rows(event.helped)]
        region, has_turned = self._weigh(asked, scored.familiarity, embeddings, gains)
        self._test_sanity(event, scored, embeddings, others)
        self._learn_fusion(event, asked, answer, scored)
        self._learn_adapters(event, around, embeddings)
        return Lesson(here, gains, self._turns(space, here, region if has_turned else None))

    def _weigh(
        self, asked: _Asked, familiar: float, embeddings: FloatMatrix, gains: Mapping[Strategy, float]
    ) -> tuple[int, bool]:
        """Test: what the event says of the strategies as they were before it; its region, and whether that turned."""
        sample = self._pool.embeddings[: self.config.rank_items]
        difference = log_rank_gain(*(ranks_among(by, embeddings, sample) for by in (asked.query, asked.careful)))
        self._known.add(difference, familiar)
        self._strange.add(difference, 1.0 - familiar)
        self._has_stake.set(max(self._known.share, self._strange.share))
        self._gate.add(gains[Strategy.FUSION])
        self._stake_gate.add(gains[Strategy.STAKE] - gains[Strategy.FUSION])
        # Without a memory graph there is nothing to bet on; but what is open must be able to close.
        if asked.around.has_graph or self._related.beats_any:
            self._related.add([gains[Strategy.RELATED] - gains[rival] for rival in RIVALS])
        self._tally.add(list(gains.values()))
        return self._regions.add(asked.query, gains[Strategy.FUSION])

    def _test_sanity(self, event: JudgedEvent, scored: Scored, embeddings: FloatMatrix, others: FloatMatrix) -> None:
        """Whether what helped belongs to the query, and whether it does so given what was shown."""
        rewards = np.array(list(event.helped.values()), dtype=np.float32)
        draw = drawn(event.seed)
        self._sanity.add(own_query_p_value(event.query, others, rewards @ embeddings, draw))
        # What helped without having been shown was not selected by what was shown.
        unshown = np.array([item not in event.shown for item in event.helped])
        if unshown.any():
            own = own_query_p_value(event.query, others, rewards[unshown] @ embeddings[unshown], draw)
            self._choice.add(own, own)
            return
        place = {row: place for place, row in enumerate(scored.rows.tolist())}
        shown = [item for item in event.shown if scored.around.row.get(item) in place]
        given = np.array([event.helped.get(item, 0.0) for item in shown])
        if len(given) < 2:
            return
        if given.min() == given.max():
            # Nothing was chosen, which speaks for chance: else what helps whatever is shown would confirm itself.
            self._choice.add(draw, draw)
            return
        # By chance, what helped would stand as high as the rest of what was shown, by whatever was known before.
        table = scored.features[[place[scored.around.row[item]] for item in shown]]
        scores = np.stack([table[:, 0], self._fusion.score(table)])
        heights = scores.argsort(1, kind="stable").argsort(1).astype(np.float64)
        chance = shuffled_sums(given, heights, event.seed, _ORDERS)
        self._choice.add(*(rank_p_value(own, by, 1e-4, draw) for own, by in zip(heights @ given, chance, strict=True)))

    def _learn_fusion(self, event: JudgedEvent, asked: _Asked, answer: Vector, scored: Scored) -> None:
        around, answers = asked.around, (answer > 0).view(np.uint8)
        listed, table, total = scored.rows, scored.features, answer.sum()
        if np.count_nonzero(answer[listed]) < np.count_nonzero(answers):
            listed = np.union1d(listed, np.flatnonzero(answers))
            table, _ = self._look(asked, self._adapter, listed)
        gradient = self._fusion.gradient(table, answer[listed] / total)
        # The same event as if its answer had never been seen: it may not have been, the next time.
        rows, blind = around.candidates(self.config.neighbours, answers), self._blind[self._fold(event)]
        unseen, _ = self._look(asked, blind, rows, answers)
        places = np.flatnonzero(answer[rows])
        self._unseen.add(log_rank_gain(ranks_at(unseen[:, 0], places), ranks_at(self._fusion.score(unseen), places)))
        gradient += self.config.counterfactual_weight * self._fusion.gradient(unseen, answer[rows] / total)
        self._fusion.step(gradient)

    def _fold(self, event: JudgedEvent) -> int:
        """The part of the events that this one belongs to: that of the answer that helped most."""
        answer = min(event.helped, key=lambda item: (-event.helped[item], item))
        return zlib.crc32(answer.encode()) % self.config.folds

    def _learn_adapters(self, event: JudgedEvent, around: Surroundings, embeddings: FloatMatrix) -> None:
        missed = sorted(item for item in set(event.unhelpful).difference(event.helped) if item in around.row)
        items = [*embeddings, *around.embeddings[around.rows(missed)]]
        targets = [*event.helped.values(), *(0.0 for _ in missed)]
        rows = [row for item in [*event.helped, *missed] if (row := self._pool.row(item)) is not None]
        skip = np.array(rows, dtype=np.int64)
        fold = self._fold(event)
        blind = [adapter for place, adapter in enumerate(self._blind) if place != fold]
        # The one of the learner has learned what that has, and nothing else.
        own = () if event.is_withheld else (self._adapter,)
        for adapter in (*own, self._careful, *blind):
            adapter.learn(event.query, items, targets, pool=self._pool.embeddings, skip=skip, seed=event.seed)

    def _turns(self, before: Strategy, there: Strategy, turned: int | None) -> tuple[Turn, ...]:
        after, turns = self.in_force, []
        if after is not before:
            turns.append(Turn(None, before, after, self._reason(after)))
        if turned is not None:
            region = self._regions.describe()[turned]
            found = "better" if region.verdict is Verdict.BETTER else "worse"
            reason = (
                f"there the fusion is proven to be {found} than frozen, by {region.gain:+.3f} nDCG@10 in the mean; "
                f"proven among {self.config.regions} regions at odds of {self.config.gate_threshold:g}"
            )
            turns.append(Turn(turned, there, self._in_force(region.verdict), reason))
        return tuple(turns)

    def _reason(self, after: Strategy) -> str:
        capital = f"the sanity test stands at 10^{self._sanity.log_capital / np.log(10):.1f}"
        if after is Strategy.RELATED:
            odds = f"at odds of {self.config.gate_threshold:g}"
            return f"what the memory graph leads to is proven to beat {self._rival}, {odds}; {capital}"
        if after is Strategy.FUSION:
            return f"the fusion is proven to beat frozen, at odds of {self.config.gate_threshold:g}; {capital}"
        if after is Strategy.STAKE:
            shares = f"{self._known.share:.2f} on familiar ground, {self._strange.share:.2f} elsewhere"
            return f"the stake is {shares}; {capital}"
        return f"nothing is proven to beat frozen; {capital}"
