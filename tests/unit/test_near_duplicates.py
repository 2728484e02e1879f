"""Near duplicates: which nodes stand for which, what they leave to them, and embeddings of few nodes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from sona_pg.config import DreamConfig
from sona_pg.errors import InvalidInput, MemoryGraphError
from sona_pg.learning import leaders as leaders_module
from sona_pg.learning.clusters import near_duplicates
from sona_pg.learning.consolidation import apply_plan, compression, consolidation_plan, merged_into
from sona_pg.learning.dreams import generate_dreams
from sona_pg.learning.leaders import leaders
from sona_pg.learning.memory_columns import Origin
from sona_pg.learning.memory_graph import MemoryGraph

from .graph_rows import CONFIG, DAY, edges_of, nodes_of, with_origins

# ---- near duplicates -------------------------------------------------------------------------------------------------


def by_hand(rows: NDArray[np.float32], threshold: float) -> list[int]:
    unit = rows.astype(np.float64) / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    into: list[int] = []
    for i in range(len(unit)):
        into.append(next((j for j in range(i) if into[j] == j and float(unit[i] @ unit[j]) > threshold), i))
    return into


@pytest.mark.parametrize("dim", [1, 3, 64, 200, 384])
@pytest.mark.parametrize("spread", [0.0, 0.15, 1.0])
def test_leaders_are_those_of_a_search_by_hand(dim: int, spread: float, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(dim)
    centres = random.standard_normal((12, dim))
    rows = (centres[random.integers(0, 12, 300)] + spread * random.standard_normal((300, dim))).astype(np.float32)
    rows *= np.exp2(random.integers(-60, 60, (300, 1))).astype(np.float32)
    expected = by_hand(rows, 0.98)
    assert leaders(rows, 0.98).tolist() == expected
    # Blocks are no part of the result.
    monkeypatch.setattr(leaders_module, "_BLOCK_ROWS", 7)
    monkeypatch.setattr(leaders_module, "_BLOCK_COLUMNS", 3)
    monkeypatch.setattr(leaders_module, "_VERIFIED", 1)
    assert leaders(rows, 0.98).tolist() == expected


@pytest.mark.parametrize("dim", [97, 384])
def test_few_duplicates_among_many_directions_are_found(dim: int) -> None:
    # Most of a row lies outside of the directions of the bound.
    random = np.random.default_rng(dim)
    rows = random.standard_normal((600, dim)).astype(np.float32)
    rows[500:] = rows[random.integers(0, 500, 100)] + random.uniform(0, 0.4, (100, 1)) * rows[500:]
    found = leaders(rows, 0.98)
    assert found.tolist() == by_hand(rows, 0.98)
    assert 20 < np.count_nonzero(found != np.arange(600)) < 90


@pytest.mark.parametrize(
    "merged", [leaders, lambda rows, threshold: near_duplicates(rows, np.ones(len(rows)), threshold)]
)
def test_at_a_threshold_of_one_nothing_is_a_duplicate_not_even_of_equal_rows(
    merged: Callable[[NDArray[np.float32], float], NDArray[np.int64]],
) -> None:
    """A cosine of a row with itself is above 1 by a rounding, or below, as the row has it."""
    rows = np.random.default_rng(0).standard_normal((40, 16)).astype(np.float32)
    twice = np.concatenate([rows, rows])
    assert merged(twice, 1.0).tolist() == list(range(80))
    assert len(set(merged(twice, 0.9999).tolist())) == 40


def test_edges_are_chosen_by_a_column_of_truth_and_by_nothing_else() -> None:
    every = edges_of((0, 1, 0.5), (1, 2, 0.25), (0, 2, 0.125))
    chosen = every.where(np.array([True, False, True]))
    assert (chosen.weight.tolist(), chosen.target.tolist()) == ([0.5, 0.125], [1, 2])
    for wrong in (None, [True, False, True], np.array([True]), np.array([0, 2])):
        with pytest.raises(InvalidInput, match="column chosen"):
            every.where(wrong)  # type: ignore[arg-type]


def test_leaders_in_a_narrow_cone_where_bounds_exclude_nothing() -> None:
    random = np.random.default_rng(0)
    axis = np.zeros(384)
    axis[0] = 20.0
    rows = (axis + random.standard_normal((200, 384)) * 0.145).astype(np.float32)
    found = leaders(rows, 0.98)
    assert found.tolist() == by_hand(rows, 0.98)
    assert 1 < len(set(found.tolist())) < 200


def test_chains_do_not_drift() -> None:
    # Neighbours are nearer to each other than the threshold allows, the ends are not.
    angle = np.arange(6) * np.arccos(0.985)
    rows = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
    into = leaders(rows, 0.98)
    assert into.tolist() == [0, 0, 2, 2, 4, 4]


def test_the_more_valuable_stands_then_the_older_and_kinds_are_kept_apart() -> None:
    embeddings = [[1, 0]] * 4 + [[0, 0]] * 2
    nodes = nodes_of(6, ids=[4, 3, 2, 1, 5, 6], kinds=[0, 0, 0, 1, 0, 0], embeddings=embeddings)
    assert merged_into(nodes, np.array([0.2, 0.5, 0.5, 0.9, 0.1, 0.1]), CONFIG).tolist() == [2, 2, 2, 3, 4, 5]
    without = replace(nodes, has_embedding=np.array([True, True, False, True, True, True]))
    assert merged_into(without, np.full(6, 0.5), CONFIG).tolist() == [1, 1, 2, 3, 4, 5]


def test_a_merged_node_leaves_its_accesses_and_edges() -> None:
    nodes = nodes_of(
        4, access_count=[9, 4, 7, 5], quality=[0.9, 0.4, 0.5, np.nan], importance=[0.1, 0.8, 0, 0],
        created=[50, 20, 0, 0], last_access=[60, 90, 0, 0], embeddings=[[1, 0], [1, 0.01], [0, 1], [-1, 0]],
    )  # fmt: skip
    edges = edges_of((0, 2, 0.5), (2, 1, 0.4), (1, 0, 0.9), (3, 1, 0.3), (2, 0, 0.7), at=100.0)
    edges = with_origins(edges, Origin.CO_ACCESS, Origin.PATTERN, Origin.CO_ACCESS, Origin.CO_ACCESS, Origin.CREATIVE)
    plan = consolidation_plan(nodes, edges, 100.0)
    assert plan.merged.tolist() == [[1, 0]]
    # The loop vanishes, two real edges are one, the dream beside them is nothing, the last one has moved.
    assert plan.edge_into.tolist() == [0, 0, -1, 3, 0]
    left, kept = apply_plan(nodes, edges, plan)
    assert left.ids.tolist() == [1, 3, 4]
    assert left.access_count.tolist() == [13, 7, 5]
    assert left.quality[0] == pytest.approx((0.9 * 10 + 0.4 * 5) / 15)
    assert (left.created[0], left.last_access[0], left.importance[0]) == (20, 90, 0.8)
    assert left.embeddings[0].tolist() == [1, 0]
    assert (kept.source.tolist(), kept.target.tolist()) == ([0, 0], [1, 2])
    assert kept.weight == pytest.approx([1 - 0.5 * 0.6, 0.3])
    assert kept.origin.tolist() == [Origin.CO_ACCESS, Origin.CO_ACCESS]


def test_the_prior_of_merged_nodes_counts_once() -> None:
    """0 helped 9 times of 10, 1 never of 2, 2 was never judged; 3 has a quality of its own."""
    nodes = nodes_of(
        5, access_count=[9, 0, 4, 5, 5], quality=[10 / 12, 1 / 4, np.nan, 0.5, 0.2],
        embeddings=[[1, 0, 0], [1, 0.01, 0], [1, 0, 0.01], [0, 1, 0], [0, 1, 0.01]],
    )  # fmt: skip
    nodes = replace(nodes, judged=np.array([[10, 9], [2, 0], [0, 0], [0, 0], [0, 0]]))
    edges = edges_of((0, 3, 0.5))
    plan = consolidation_plan(nodes, edges, 0.0)
    left, kept = apply_plan(nodes, edges, plan)
    assert plan.merged.tolist() == [[1, 0], [2, 0], [4, 3]]
    assert left.quality.tolist() == [(9 + 1) / (12 + 2), pytest.approx(0.35)]
    assert left.judged is not None
    assert left.judged.tolist() == [[12, 9], [0, 0]]
    assert consolidation_plan(left, kept, 0.0).value_after == pytest.approx(plan.value_after[plan.node_stays])
    for wrong in (np.zeros((5, 2)), np.zeros((4, 2), np.int64), np.full((5, 2), -1), np.array([[1, 2]] * 5)):
        with pytest.raises(InvalidInput, match="judged"):
            replace(nodes, judged=wrong)


def test_dreams_of_one_thing_become_the_heaviest() -> None:
    nodes = nodes_of(3, embeddings=[[1, 0], [1, 0], [0, 1]])
    edges = edges_of((0, 2, 0.1), (1, 2, 0.15), origin=Origin.CREATIVE)
    _, kept = apply_plan(nodes, edges, consolidation_plan(nodes, edges, 0.0))
    assert (kept.weight.tolist(), kept.origin.tolist()) == ([0.15], [Origin.CREATIVE])


# ---- embeddings of few nodes -----------------------------------------------------------------------------------------


def test_embeddings_may_be_those_of_few_nodes_alone() -> None:
    """The same plan, the same columns after it and the same dreams, without a row for each node."""
    random = np.random.default_rng(2)
    n, known = 60, np.array([3, 8, 9, 20, 21, 33, 40, 41, 59])
    rows = random.standard_normal((len(known), 4)).astype(np.float32)
    rows[4], rows[7] = rows[3], 0
    dense, has = np.zeros((n, 4), dtype=np.float32), np.isin(np.arange(n), known)
    dense[known] = rows
    order = random.permutation(len(known))
    places = np.full(n, len(known))
    places[known[order]] = np.arange(len(known))
    compact = np.concatenate([rows[order], np.zeros((1, 4), dtype=np.float32)])
    edges = edges_of(*((a, (7 * a + 1) % n, 0.5) for a in range(n) if a != (7 * a + 1) % n))
    whole = nodes_of(n, embeddings=dense, has_embedding=has)
    few = replace(whole, embeddings=compact, places=places)
    plans = [consolidation_plan(nodes, edges, DAY, CONFIG) for nodes in (whole, few)]
    assert plans[0].merged.tolist() == plans[1].merged.tolist() != []
    assert compression(whole, plans[0]) == compression(few, plans[1])
    first, second = (apply_plan(nodes, edges, plan)[0] for nodes, plan in zip((whole, few), plans, strict=True))
    assert len(first) == len(second) < n
    left = np.flatnonzero(first.has_embedding)
    assert second.places is not None
    assert (second.has_embedding == first.has_embedding).all()
    assert (first.embeddings[left] == second.embeddings[second.places[left]]).all()
    graphs = [
        MemoryGraph.from_edges(n, edges.source, edges.target, edges.weight, embeddings=given, places=at)
        for given, at in ((dense, None), (compact, places))
    ]
    anchored = DreamConfig(start="anchors")
    assert generate_dreams(graphs[0], 20, anchored) == generate_dreams(graphs[1], 20, anchored)
    assert (graphs[0].has_embedding == graphs[1].has_embedding).all()
    assert (graphs[0].subgraph(known).embeddings == graphs[1].subgraph(known).embeddings).all()
    for wrong in (places[1:], places + 1, places.astype(float)):
        with pytest.raises(InvalidInput, match="places"):
            replace(few, places=wrong)
        with pytest.raises(MemoryGraphError, match="60 rows of 10 embeddings"):
            MemoryGraph.from_edges(n, [0], [1], embeddings=compact, places=wrong)
