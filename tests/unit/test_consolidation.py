"""Consolidation: values, edges over time, what goes, and plans that are empty the second time."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sona_pg.config import ConsolidationConfig
from sona_pg.errors import ConfigError, InvalidInput
from sona_pg.learning.consolidation import (
    apply_plan,
    compression,
    consolidation_plan,
    decayed_weights,
    node_strengths,
    node_values,
    strengthened_weights,
)
from sona_pg.learning.memory_columns import MemoryEdges, MemoryNodes, Origin

from .graph_rows import CONFIG, DAY, edges_of, graphs, nodes_of, with_origins

WEEK = 7 * DAY


def same(first: object, second: object) -> bool:
    return all(
        np.array_equal(getattr(first, f.name), getattr(second, f.name), equal_nan=f.name == "quality")
        for f in fields(first)  # type: ignore[arg-type]
    )


# ---- value -----------------------------------------------------------------------------------------------------------


def test_value_is_the_weighted_mean_of_its_parts() -> None:
    nodes = nodes_of(3, access_count=[0, 3, 15], quality=[np.nan, 1.0, 0.2], last_access=[0, 30 * DAY, 60 * DAY])
    value = node_values(nodes, np.array([0.0, 1.0, 3.0]), 60 * DAY, CONFIG)
    expected = [
        0.2 * 0.25 + 0.3 * 0.5,
        0.3 * 0.5 + 0.2 * 0.5 + 0.3 * 1.0 + 0.2 * 0.5,
        0.3 * 1.0 + 0.2 * 1.0 + 0.3 * 0.2 + 0.2 * 1.0,
    ]
    assert value == pytest.approx(expected)


def test_value_where_nothing_was_accessed_and_nothing_is_connected() -> None:
    value = node_values(nodes_of(2, access_count=[0, 0], quality=[0, 1]), np.zeros(2), 0.0, CONFIG)
    assert value == pytest.approx([0.2, 0.5])
    # What will be accessed in the future, by another clock, is as recent as can be.
    assert node_values(nodes_of(2), np.zeros(2), -WEEK, CONFIG) == pytest.approx(
        node_values(nodes_of(2), np.zeros(2), 0.0, CONFIG)
    )


def test_strength_counts_neither_dreams_nor_loops() -> None:
    edges = with_origins(
        edges_of((0, 1, 0.5), (1, 2, 0.25), (2, 2, 0.75), (0, 2, 0.4)),
        Origin.CO_ACCESS, Origin.PATTERN, Origin.CO_ACCESS, Origin.CREATIVE,
    )  # fmt: skip
    assert node_strengths(3, edges).tolist() == [0.5, 0.75, 0.25]


# ---- edges over time -------------------------------------------------------------------------------------------------


def test_decay_halves_in_a_half_life_and_faster_for_dreams() -> None:
    edges = with_origins(edges_of((0, 1, 0.8), (0, 2, 0.8)), Origin.CO_ACCESS, Origin.CREATIVE)
    assert decayed_weights(edges, 90 * DAY, CONFIG)[0] == pytest.approx(0.4)
    assert decayed_weights(edges, 14 * DAY, CONFIG)[1] == pytest.approx(0.4)
    assert decayed_weights(edges, -DAY, CONFIG).tolist() == [0.8, 0.8]


times = st.floats(0, 1e9)


@given(weight=st.floats(0, 1), first=times, second=times, creative=st.booleans())
def test_decay_composes(weight: float, first: float, second: float, creative: bool) -> None:
    edges = edges_of((0, 1, weight), origin=Origin.CREATIVE if creative else Origin.CO_ACCESS)
    early, late = sorted((first, second))
    between = replace(edges, weight=decayed_weights(edges, early, CONFIG), decayed_at=np.array([early]))
    assert decayed_weights(between, late, CONFIG) == pytest.approx(decayed_weights(edges, late, CONFIG), abs=1e-12)
    assert decayed_weights(between, early, CONFIG).tolist() == between.weight.tolist()


@given(weight=st.floats(0, 1), share=st.floats(0, 1))
def test_strengthening_composes_within_an_interval_and_is_nothing_at_one_instant(weight: float, share: float) -> None:
    edges = edges_of((0, 1, weight))
    whole = strengthened_weights(edges, WEEK, CONFIG)
    assert whole == pytest.approx([weight + 0.1 * (1 - weight)])
    between = replace(
        edges, weight=strengthened_weights(edges, share * WEEK, CONFIG), decayed_at=np.array([share * WEEK])
    )
    assert strengthened_weights(between, WEEK, CONFIG) == pytest.approx(whole, abs=1e-12)
    assert strengthened_weights(between, share * WEEK, CONFIG).tolist() == between.weight.tolist()
    # Weeks that were left out are not made up for.
    assert strengthened_weights(edges, 9 * WEEK, CONFIG).tolist() == whole.tolist()


def test_edges_between_valuable_nodes_are_strengthened_and_the_rest_decays() -> None:
    nodes = nodes_of(3, access_count=[100, 90, 1], quality=[0.9, 0.9, 0.1], last_access=[WEEK] * 3)
    edges = edges_of((0, 1, 0.6), (1, 2, 0.6), (0, 1, 0.6))
    edges = with_origins(edges, Origin.CO_ACCESS, Origin.CO_ACCESS, Origin.CREATIVE)
    plan = consolidation_plan(nodes, edges, WEEK)
    assert (plan.value >= 0.7).tolist() == [True, True, False]
    # The dream beside the real edge has vanished into it.
    assert (plan.strengthened.tolist(), plan.decayed.tolist(), plan.edge_into.tolist()) == ([0], [1], [0, 1, 0])
    assert plan.edges.weight[:2] == pytest.approx([0.64, 0.6 * 2 ** (-7 / 90)])
    # A dream alone is never strengthened, whatever it is between.
    alone = consolidation_plan(nodes, edges_of((0, 1, 0.6), origin=Origin.CREATIVE), WEEK, replace(CONFIG, threshold=0))
    assert (alone.strengthened.tolist(), alone.decayed.tolist()) == ([], [0])


def test_weak_edges_go() -> None:
    edges = edges_of((0, 1, 0.03), (1, 2, 0.5), (0, 2, 0.02))
    plan = consolidation_plan(nodes_of(3), edges, 90 * DAY)
    assert (plan.pruned.tolist(), plan.edge_into.tolist()) == ([0, 2], [-1, 1, -1])


# ---- what goes -------------------------------------------------------------------------------------------------------


def test_only_what_is_of_little_value_and_unused_and_old_goes() -> None:
    now = 100 * DAY
    columns: dict[str, object] = {
        "quality": [0.1, 0.9, 0.1, 0.1, 0.1, 0.1],
        "access_count": [1, 1, 50, 1, 0, 1],
        "created": [0, 0, 0, 50 * DAY, 0, 0],
        "last_access": [0, 0, 0, 0, 50 * DAY, 0],
    }
    nodes = nodes_of(6, **columns)
    plan = consolidation_plan(nodes, edges_of((5, 2, 0.9), at=now), now)
    # The last one is held by what is used.
    assert plan.archived.tolist() == [0]
    kept, _ = apply_plan(nodes, edges_of((5, 2, 0.9), at=now), plan)
    assert kept.ids.tolist() == [2, 3, 4, 5, 6]


def test_what_is_unused_and_old_does_not_hold_up_each_other() -> None:
    now = 100 * DAY
    nodes = nodes_of(4, access_count=[1, 1, 1, 50], quality=[0.0, 0.0, 0.0, 0.9])
    edges = edges_of((0, 1, 0.9), (1, 2, 0.9), (0, 2, 0.9), at=now)
    plan = consolidation_plan(nodes, edges, now)
    assert plan.archived.tolist() == [0, 1, 2]
    assert plan.edge_into.tolist() == [-1, -1, -1]
    assert consolidation_plan(*apply_plan(nodes, edges, plan), now).is_empty


# ---- invariants ------------------------------------------------------------------------------------------------------

CONFIGS = (CONFIG, ConsolidationConfig(threshold=0.4, prune_value=0.4, prune_accesses=4, prune_weight=0.1))


@settings(max_examples=200, deadline=None)
@given(graph=graphs(), config=st.sampled_from(CONFIGS))
def test_twice_at_one_instant_changes_nothing(
    graph: tuple[MemoryNodes, MemoryEdges, float], config: ConsolidationConfig
) -> None:
    nodes, edges, now = graph
    first = consolidation_plan(nodes, edges, now, config)
    once = apply_plan(nodes, edges, first)
    again = consolidation_plan(*once, now, config)
    assert again.is_empty
    np.testing.assert_allclose(again.value, first.value_after[first.node_stays], rtol=0, atol=1e-12)
    np.testing.assert_allclose(again.value_after, again.value, rtol=0, atol=1e-12)
    twice = apply_plan(*once, again)
    assert same(once[0], twice[0])
    assert same(once[1], twice[1])


@settings(max_examples=200, deadline=None)
@given(graph=graphs(), config=st.sampled_from(CONFIGS))
def test_what_holds_of_every_plan(graph: tuple[MemoryNodes, MemoryEdges, float], config: ConsolidationConfig) -> None:
    nodes, edges, now = graph
    before = [column.copy() for column in (nodes.access_count, edges.weight, nodes.embeddings)]
    plan = consolidation_plan(nodes, edges, now, config)
    left, kept = apply_plan(nodes, edges, plan)
    for column, was in zip((nodes.access_count, edges.weight, nodes.embeddings), before, strict=True):
        assert np.array_equal(column, was)
    assert ((plan.value >= 0) & (plan.value <= 1)).all()
    # Accesses are conserved: what is not there any more is with whom it became part of, or archived.
    into = plan.merged_into
    archived = nodes.access_count[np.isin(into, plan.archived)].sum()
    assert left.access_count.sum() + archived == nodes.access_count.sum()
    # Whoever is merged is near to whom it became part of, and no two that are left are near to each other.
    for row, other in plan.merged:
        assert into[other] == other
        assert nodes.kinds[row] == nodes.kinds[other]
        assert plan.value[row] <= plan.value[other]
        a, b = nodes.embeddings[row].astype(np.float64), nodes.embeddings[other].astype(np.float64)
        assert a @ b / np.sqrt((a @ a) * (b @ b)) > config.merge_threshold - 1e-12
    # Edges: none twice, none to itself, none weak, all between nodes that are there. Those by hand are by themselves.
    is_given = kept.origin == Origin.GIVEN
    low, high = np.minimum(kept.source, kept.target), np.maximum(kept.source, kept.target)
    ends = list(zip(low, high, is_given, strict=True))
    assert len(set(ends)) == len(ends)
    assert (kept.source != kept.target).all()
    assert (kept.weight[~is_given] >= config.prune_weight).all()
    kept.check(len(left))
    # A pair that had a real edge has a real one.
    stays = plan.edge_stays
    for row in np.flatnonzero((edges.origin != Origin.CREATIVE) & (plan.edge_into >= 0)):
        assert edges.origin[plan.edge_into[row]] != Origin.CREATIVE
        assert stays[plan.edge_into[row]]
    assert not set(plan.strengthened) & set(plan.decayed)
    report = compression(nodes, plan)
    assert report.nodes == (len(nodes), len(left))
    assert report.edges == (len(edges), len(kept))
    assert report.total_bytes[1] <= report.total_bytes[0]
    assert report.total_bytes[1] == report.embedding_bytes[1] + sum(
        getattr(columns, f.name).nbytes
        for columns in (left, kept)
        for f in fields(columns)
        if f.name not in ("embeddings", "places", "judged")
    )


@settings(deadline=None)
@given(graph=graphs(), seed=st.integers(0, 100))
def test_the_order_of_rows_is_no_part_of_the_result(graph: tuple[MemoryNodes, MemoryEdges, float], seed: int) -> None:
    nodes, edges, now = graph
    # Sums are of eighths, so that their order is nothing.
    edges = replace(edges, weight=np.round(edges.weight * 8) / 8, decayed_at=np.full(len(edges), now))
    order = np.random.default_rng(seed).permutation(len(nodes))
    place = np.argsort(order)
    columns = {f.name: getattr(nodes, f.name) for f in fields(MemoryNodes)}
    shuffled = MemoryNodes(**{name: column[order] for name, column in columns.items() if column is not None})
    moved = replace(edges, source=place[edges.source], target=place[edges.target])
    first, second = consolidation_plan(nodes, edges, now), consolidation_plan(shuffled, moved, now)
    ids, other_ids = nodes.ids[first.merged_into], shuffled.ids[second.merged_into][place]
    assert ids.tolist() == other_ids.tolist()
    assert first.edge_into.tolist() == second.edge_into.tolist()
    assert nodes.ids[first.archived].tolist() == [i for i in nodes.ids if i in set(shuffled.ids[second.archived])]


# ---- bad input -------------------------------------------------------------------------------------------------------


def test_an_empty_graph_one_node_and_no_embeddings() -> None:
    assert consolidation_plan(nodes_of(0), edges_of(), 0.0).is_empty
    assert compression(nodes_of(0), consolidation_plan(nodes_of(0), edges_of(), 0.0)).total_bytes == (0, 0)
    plan = consolidation_plan(nodes_of(1), edges_of((0, 0, 0.5)), 0.0)
    assert plan.edge_into.tolist() == [-1]
    assert consolidation_plan(nodes_of(3, has_embedding=[False] * 3), edges_of(), 0.0).is_empty
    # What is not looked at may be anything.
    odd = nodes_of(2, embeddings=[[1, 0], [np.nan, 0]], has_embedding=[True, False])
    assert consolidation_plan(odd, edges_of(), 0.0).is_empty


@pytest.mark.parametrize(
    "columns",
    [
        {"quality": [0.5, 1.5]},
        {"quality": [0.5, -0.1]},
        {"quality": [0.5, np.inf]},
        {"importance": [np.nan, 0.1]},
        {"access_count": [1, -1]},
        {"ids": [1, 1]},
        {"created": [0, np.inf]},
        {"last_access": [np.nan, 0]},
        {"embeddings": [[1, 0], [np.nan, 0]]},
        {"embeddings": [[1, 0]]},
        {"embeddings": [1, 0]},
        {"kinds": [0]},
    ],
)
def test_bad_nodes_are_refused(columns: dict[str, object]) -> None:
    with pytest.raises(InvalidInput):
        nodes_of(2, **columns)


def test_bad_edges_and_times_are_refused() -> None:
    for weight in (-0.1, 1.1, np.nan, np.inf):
        with pytest.raises(InvalidInput):
            edges_of((0, 1, weight))
    with pytest.raises(InvalidInput):
        edges_of((0, 1, 0.5), at=np.nan)
    with pytest.raises(InvalidInput, match="origin"):
        replace(edges_of((0, 1, 0.5)), origin=np.array([9]))
    with pytest.raises(InvalidInput, match="float64"):
        replace(edges_of((0, 1, 0.5)), weight=np.array([0.5], dtype=np.float32))
    with pytest.raises(InvalidInput, match="node 2"):
        consolidation_plan(nodes_of(2), edges_of((0, 2, 0.5)), 0.0)
    with pytest.raises(InvalidInput, match="node -1"):
        consolidation_plan(nodes_of(2), edges_of((-1, 1, 0.5)), 0.0)
    for now in (np.nan, np.inf, True, "now"):
        with pytest.raises(InvalidInput, match="seconds"):
            consolidation_plan(nodes_of(2), edges_of(), now)  # type: ignore[arg-type]
    plan = consolidation_plan(nodes_of(2), edges_of(), 0.0)
    with pytest.raises(InvalidInput, match="make a plan"):
        apply_plan(nodes_of(3), edges_of(), plan)


def test_settings_are_refused_out_of_range() -> None:
    with pytest.raises(ConfigError, match="together"):
        ConsolidationConfig(frequency_weight=0.5)
    with pytest.raises(ConfigError):
        ConsolidationConfig(creative_half_life_seconds=91 * DAY)
    with pytest.raises(ConfigError):
        ConsolidationConfig(threshold=1.1)


# ---- embeddings of few nodes -----------------------------------------------------------------------------------------


def test_what_is_given_by_hand_neither_becomes_part_of_what_was_observed_nor_goes_because_it_is_weak() -> None:
    nodes = nodes_of(4)
    edges = with_origins(
        edges_of((0, 1, 0.4), (0, 1, 0.3), (2, 3, 0.001)), Origin.CO_ACCESS, Origin.GIVEN, Origin.GIVEN
    )
    plan = consolidation_plan(nodes, edges, 0.0, CONFIG)
    assert plan.edge_into.tolist() == [0, 1, 2]
    assert plan.edges.weight.tolist() == [0.4, 0.3, 0.001]
