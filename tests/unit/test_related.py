"""The strategy `related`: frozen without a graph, in force where a graph is proven to help, and only there."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.worlds import DIM, QUESTIONS, Space, World
from sona_pg.config import StrategyConfig
from sona_pg.errors import LearningError, MemoryGraphError
from sona_pg.learning.arrays import normalized_rows
from sona_pg.learning.associations import Associations
from sona_pg.learning.evidence import Comparison, Tally
from sona_pg.learning.item_pool import ItemPool
from sona_pg.learning.memory_graph import MemoryGraph
from sona_pg.learning.packing import expand, pack, squeeze, unpack_any
from sona_pg.learning.strategies import RIVALS, Restored, Strategy
from sona_pg.learning.strategist import Strategist

ITEMS = 1000


class PairedWorld(Space):
    """Questions that never recur: each is about another item, and what that was used with is needed, too.

    Nothing but the graph, which was there before, knows which that is: it is one of a hundred as near.
    """

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        rows = normalized_rows(self.rng.standard_normal((ITEMS, DIM)).astype(np.float32))
        super().__init__(ItemPool([f"i{row}" for row in range(ITEMS)], rows))
        order = np.argsort(-(rows @ rows.T), axis=1)
        self.partner = order[np.arange(ITEMS), self.rng.integers(15, 100, ITEMS)]
        self.associations = self.joined(self.partner)

    def joined(self, partner: NDArray[np.int64]) -> Associations:
        """The graph in which every item has an edge to its partner."""
        pairs = {(f"i{min(a, b)}", f"i{max(a, b)}") for a, b in enumerate(partner.tolist()) if a != b}
        return Associations.of_pairs((pair, 0.3) for pair in sorted(pairs))

    def live(self, events: int, *, is_noise: bool = False) -> set[Strategy]:
        """Ask about items, and learn what was needed or, as noise, what some other question needed; what answered."""
        served = set()
        for event in range(events):
            about = int(self.rng.integers(ITEMS))
            words = self.pool.embeddings[about] + 0.05 * self.rng.standard_normal(DIM)
            query = normalized_rows(words[np.newaxis].astype(np.float32))[0]
            meant = int(self.rng.integers(ITEMS)) if is_noise else about
            served.add(self.learn(query, {f"i{meant}": 1.0, f"i{self.partner[meant]}": 1.0}, event))
        return served


def test_activation_by_hand() -> None:
    # a - b of weight .6, a - c of .2, c - d of .4: from a, .75 goes to b and .25 to c.
    associations = Associations.of_pairs([(("a", "b"), 0.6), (("a", "c"), 0.2), (("c", "d"), 0.4)])
    once = StrategyConfig(related_hops=1, related_factor=0.5)
    assert associations.activation({"a": 2.0}, once) == pytest.approx({"b": 1.0, "c": 1 / 3})
    # Of what c has, a third comes back to a; all that b has does.
    twice = StrategyConfig(related_hops=2, related_factor=0.5)
    reached = {"b": 0.75, "c": 0.25, "a": (0.75 + 0.25 / 3) / 2, "d": 0.25 * 2 / 3 / 2}
    expected = {item: share / 0.75 for item, share in reached.items()}
    assert associations.activation({"a": 2.0}, twice) == pytest.approx(expected, rel=1e-6)
    assert list(associations.activation({"a": 2.0}, twice)) == ["b", "a", "c", "d"]
    # A quarter of what starts is known.
    assert associations.activation({"a": 1.0, "x": 3.0, "b": 0.0, "d": -1.0}, once) == pytest.approx(
        {"b": 0.25, "c": 0.25 / 3}
    )


def test_what_activation_passes_through_need_not_be_an_item() -> None:
    graph = MemoryGraph.from_edges(3, [0, 1], [2, 2], [0.5, 0.5])
    active = Associations(["a", "b"], graph).activation({"a": 1.0}, StrategyConfig())
    assert active == pytest.approx({"a": 1.0, "b": 1.0})


@pytest.mark.parametrize(
    ("starts", "config"),
    [
        ({}, StrategyConfig()),
        ({"x": 1.0}, StrategyConfig()),
        ({"a": 0.0}, StrategyConfig()),
        ({"a": 1.0}, StrategyConfig(related_hops=0)),
        ({"a": 1.0}, StrategyConfig(related_factor=0.0)),
    ],
)
def test_where_nothing_arrives_nothing_is_active(starts: Mapping[str, float], config: StrategyConfig) -> None:
    assert Associations.of_pairs([(("a", "b"), 0.5)]).activation(starts, config) == {}
    assert Associations.of_pairs([]).activation(starts, config) == {}


def test_no_more_items_than_asked_for_are_active_and_equal_ones_go_by_name() -> None:
    associations = Associations.of_pairs([(("hub", f"i{row:02}"), 0.5) for row in range(30)][::-1])
    active = associations.activation({"hub": 1.0}, StrategyConfig(candidates=4, related_hops=1))
    assert list(active) == ["i00", "i01", "i02", "i03"]


def test_names_that_are_not_those_of_the_nodes_are_refused() -> None:
    graph = MemoryGraph.from_edges(2, [0], [1])
    for names in (["a", "b", "c"], ["a", "a"]):
        with pytest.raises(MemoryGraphError, match="name the first nodes"):
            Associations(names, graph)


def test_what_was_merged_starts_at_what_it_became_part_of() -> None:
    graph = MemoryGraph.from_edges(3, [0], [1], [0.5])
    plain = Associations(["a", "b", "c"], graph)
    merged = Associations(["a", "b", "c"], graph, {"twin": "a"})
    config = StrategyConfig()
    assert merged.activation({"a": 0.25, "twin": 0.5, "c": 0.25}, config) == plain.activation(
        {"a": 0.75, "c": 0.25}, config
    )
    back = Associations.from_bytes(merged.to_bytes())
    assert (back.items, back.merged, back.to_bytes()) == (merged.items, {"twin": "a"}, merged.to_bytes())
    assert Associations.from_bytes(plain.to_bytes()).merged == {}
    for wrong in ({"twin": "unknown"}, {"b": "a"}):
        with pytest.raises(MemoryGraphError, match="was merged into"):
            Associations(["a", "b", "c"], graph, wrong)


def test_a_snapshot_comes_back_and_damage_is_refused() -> None:
    graph = MemoryGraph.from_edges(4, [0, 1, 2], [1, 2, 3], [0.25, 0.5, 0.75])
    one = Associations(["ä", "", "b\n"], graph)
    two = Associations.from_bytes(one.to_bytes())
    assert two.items == one.items
    assert [part.tobytes() for part in two.graph.edges()] == [part.tobytes() for part in one.graph.edges()]
    assert len(Associations.from_bytes(Associations.of_pairs([]).to_bytes())) == 0
    header, arrays = unpack_any(one.to_bytes(), "snapshot")
    assert header == {"format": 1, "nodes": 4}
    damaged = [b"", one.to_bytes()[:-1], pack({"format": 9, "nodes": 4}, arrays), pack({"format": 1}, arrays)]
    damaged.append(pack({"format": 1, "nodes": 2}, arrays))
    damaged.append(pack({"format": 1, "nodes": 4}, {n: a for n, a in arrays.items() if n != "names"}))
    for data in damaged:
        with pytest.raises(LearningError):
            Associations.from_bytes(data)


def test_without_a_graph_or_activation_it_is_the_frozen_ranking_bit_for_bit() -> None:
    world = World()
    nowhere = Associations.of_pairs([(("not an item", "neither"), 0.5)])
    for event in range(60):
        world.associations = (None, Associations.of_pairs([]), nowhere)[event % 3]
        query = world.ask(event % QUESTIONS)
        scored = world.answer(query)
        assert scored.scores[Strategy.RELATED].tobytes() == scored.scores[Strategy.FROZEN].tobytes()
        assert scored.ranking(Strategy.RELATED, 20) == scored.ranking(Strategy.FROZEN, 20)
        world.learn(query, {f"i{world.answers[event % QUESTIONS]}": 1.0}, event)
    assert world.strategist.describe().gains[Strategy.RELATED] == (0.0, 0.0)


def test_a_graph_changes_nothing_but_the_strategy_that_looks_at_it() -> None:
    one, two = World(4), World(4)
    two.associations = Associations.of_pairs([((f"i{row}", f"i{row + 1}"), 0.5) for row in range(200)])
    for event in range(80):
        helped = {f"i{one.answers[event % QUESTIONS]}": 1.0}
        query, same = one.ask(event % QUESTIONS), two.ask(event % QUESTIONS)
        assert query.tobytes() == same.tobytes()
        for strategy in set(Strategy) - {Strategy.RELATED}:
            assert one.answer(query).ranking(strategy) == two.answer(query).ranking(strategy), strategy
        assert one.learn(query, helped, event) is two.learn(query, helped, event)
    first, second = one.strategist.describe(), two.strategist.describe()
    assert first.weights.tobytes() == second.weights.tobytes()
    assert (first.known, first.strange, first.unseen) == (second.known, second.strange, second.unseen)
    assert second.gains[Strategy.RELATED] != (0.0, 0.0)


def test_scores_are_cosines_and_activation_beside_them() -> None:
    world = PairedWorld()
    query = world.pool.embeddings[3]
    scored = world.answer(query)
    partner = int(world.partner[3])
    assert f"i{partner}" not in scored.ranking(Strategy.FROZEN)
    assert f"i{partner}" in scored.ranking(Strategy.RELATED)
    row = scored.reached.tolist().index(scored.around.row[f"i{partner}"])
    active = scored.around.activation[scored.around.row[f"i{partner}"]]
    cosine = float(query @ world.pool.embeddings[partner])
    assert scored.scores[Strategy.RELATED][row] == pytest.approx(20 * (cosine + active), rel=1e-5)


def test_a_graph_that_helps_is_proven_and_given_up_when_it_does_no_more() -> None:
    world = PairedWorld()
    served = world.live(400)
    assert world.strategist.in_force is Strategy.RELATED
    assert served <= {Strategy.FROZEN, Strategy.STAKE, Strategy.RELATED}
    gains = world.strategist.describe().gains
    assert gains[Strategy.RELATED][0] > 0.05 + max(gain for s, (gain, _) in gains.items() if s is not Strategy.RELATED)
    # Other edges, of which none leads to what is needed.
    world.associations = world.joined(world.rng.permutation(ITEMS))
    world.live(400)
    assert world.strategist.in_force is not Strategy.RELATED


def test_what_is_open_closes_where_the_graph_is_gone_and_something_else_is_better() -> None:
    comparison = Comparison(RIVALS, 20.0, 0.2)
    for _ in range(100):
        comparison.add([0.5, 0.4, 0.05])
    assert [comparison.beats(rival) for rival in RIVALS] == [True, True, False]
    assert comparison.beats_any
    for _ in range(100):
        comparison.add([0.0, -0.3, -0.3])
    assert [comparison.beats(rival) for rival in RIVALS] == [True, False, False]


@pytest.mark.parametrize("seed", range(6))
def test_under_shuffled_outcomes_it_never_answers(seed: int) -> None:
    world = PairedWorld(seed)
    assert world.live(300, is_noise=True) == {Strategy.FROZEN}
    assert world.strategist.in_force is Strategy.FROZEN


@pytest.mark.parametrize("seed", range(6))
def test_a_graph_that_says_nothing_never_answers(seed: int) -> None:
    world = PairedWorld(seed)
    world.associations = world.joined(world.rng.permutation(ITEMS))
    assert Strategy.RELATED not in world.live(300)


def test_a_comparison_opens_without_a_difference_no_more_often_than_promised() -> None:
    rng, opened, streams = np.random.default_rng(0), 0, 400
    for _ in range(streams):
        comparison = Comparison(("a", "b", "c"), 20.0, 0.2)
        for own, *others in rng.uniform(0, 1, (150, 4)):
            comparison.add([own - other for other in others])
            if comparison.beats_any:
                opened += 1
                break
    assert opened <= streams / 20


def test_a_continuation_goes_on_bit_for_bit() -> None:
    one, two = PairedWorld(2), PairedWorld(2)
    one.live(60)
    two.live(60)
    continued = Strategist(two.pool)
    continued.load_bytes(two.strategist.to_bytes())
    two.strategist = continued
    one.live(60)
    two.live(60)
    assert one.strategist.to_bytes() == two.strategist.to_bytes()


def _before(data: bytes) -> bytes:
    """A state as it was before there was `related`."""
    header, arrays = unpack_any(data, "strategist")
    assert isinstance(header, dict)
    old = {n: array for n, array in arrays.items() if not n.startswith("related.") and n != "tally.added"}
    assert len(old) == len(arrays) - 1 - 2 * len(RIVALS)
    assert len(old["tally.sums"]) == len(Strategy) - 1
    return pack(header, old)


def test_a_state_from_before_it_is_continued() -> None:
    world = PairedWorld(3)
    world.associations = None
    world.live(40)
    same = world.strategist.to_bytes()
    continued = Strategist(world.pool)
    continued.load_bytes(_before(same))
    assert continued.to_bytes() == same
    version = Restored(
        squeeze(_before(expand(world.strategist.evidence(), {})), {}), b"", None, None, np.zeros((0, DIM)), ()
    )
    with pytest.raises(LearningError, match="checksum"):  # of the learner's state: the evidence is read before it
        continued.restore(version)


def test_a_tally_comes_back_and_damage_is_refused() -> None:
    tally = Tally(3, 0.99, added=1)
    tally.add([1.0, 2.0, 3.0])
    again = Tally(3, 0.99, added=1)
    again.load_state(tally.state())
    assert again.means() == tally.means() == [(1.0, 1.0), (2.0, 2.0), (3.0, 3.0)]
    for sums in (np.zeros((3, 2)), np.zeros(2), np.zeros((2, 3))):
        with pytest.raises(LearningError):
            again.load_state({"sums": sums, "weight": np.zeros(2)})
    with pytest.raises(LearningError):
        again.load_state({"weight": np.zeros(2)})
    assert again.means() == tally.means()
