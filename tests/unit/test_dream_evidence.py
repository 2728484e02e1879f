"""Whether dreams help: yes on a real graph, no where there is nothing but degrees, and what is said of small graphs."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.dreams import les_miserables, random_graph, rewired_graph
from benchmarks.two_hop import TwoHop
from sona_pg.config import DreamConfig, DreamEvidenceConfig
from sona_pg.errors import InvalidInput, MemoryGraphError
from sona_pg.learning.dream_evidence import _Together, area_under_curve, dreams_help
from sona_pg.learning.dream_walks import EDGE, co_occurrences, dream_walks
from sona_pg.learning.memory_graph import MemoryGraph, Rows


def test_dreams_find_held_out_edges_of_a_real_graph() -> None:
    """Theory: AUC at least .80, and .10 above the rewired control, 10 seeds."""
    found = [dreams_help(les_miserables(), seed=seed) for seed in range(10)]
    assert np.mean([evidence.auc for evidence in found]) >= 0.80
    assert np.mean([evidence.auc - evidence.control for evidence in found]) >= 0.10
    assert all(evidence.confirmed for evidence in found)
    assert dreams_help(les_miserables(), seed=3) == found[3]
    assert "AUC of" in found[0].reason
    assert len(found[0].repeats) == 10


def test_windows_across_jumps_would_be_worse() -> None:
    graph, config = les_miserables(), DreamConfig()
    source, target, weight = graph.edges()
    free = np.array(np.triu_indices(len(graph), 1))
    free = free[:, graph.weights_between(*free) == 0]
    cut, uncut = [], []
    for seed in range(5):
        held, rest = np.split(np.random.default_rng(seed).permutation(len(source)), [51])
        seen = MemoryGraph.from_edges(len(graph), source[rest], target[rest], weight[rest])
        walks, kinds = dream_walks(seen, np.repeat(np.arange(77), 20), config, seed=seed)
        for found, reached in ((cut, kinds), (uncut, np.full_like(kinds, EDGE))):
            met = co_occurrences(walks, reached, config.window, seen.degrees)
            score = np.zeros((len(graph), len(graph)))
            score[met.source, met.target] = met.score
            found.append(area_under_curve(score[source[held], target[held]], score[*free]))
    assert np.mean(cut) >= np.mean(uncut) + 0.05


@pytest.mark.parametrize("kind", ["random", "rewired"])
def test_the_gate_stays_shut_where_there_is_nothing_but_degrees(kind: str) -> None:
    characters = les_miserables()
    opened = 0
    for seed in range(40):
        graph = random_graph(seed) if kind == "random" else rewired_graph(characters, seed)
        opened += dreams_help(graph, seed=seed).confirmed
    assert opened / 40 <= 0.05


def test_a_graph_in_which_things_lie_two_hops_away_is_confirmed() -> None:
    evidence = dreams_help(TwoHop.made(4, topics=12).graph)
    assert evidence.confirmed
    assert evidence.auc - evidence.control >= 0.1


def _of_events(n: int, events: list[Rows]) -> MemoryGraph:
    """As the instant loop makes edges: each event takes a twentieth of what a weight lacks to 1."""
    pairs = np.concatenate([event[np.array(np.triu_indices(len(event), 1))] for event in events], axis=1)
    keys, times = np.unique(np.sort(pairs, axis=0), axis=1, return_counts=True)
    return MemoryGraph.from_edges(n, *keys, 1 - 0.95**times)


def _noise(seed: int, size: int, power: float, events: int = 300, n: int = 240) -> list[Rows]:
    random, popularity = np.random.default_rng(seed), 1 / np.arange(1, n + 1) ** power
    return [random.choice(n, size, replace=False, p=popularity / popularity.sum()) for _ in range(events)]


def _rings(seed: int, events: int) -> list[Rows]:
    """Twelve topics of twenty items, of which three neighbours in a ring help together."""
    random = np.random.default_rng(seed)
    topic, first = random.integers(0, 12, events), random.integers(0, 20, events)
    return [20 * t + (f + np.arange(3)) % 20 for t, f in zip(topic, first, strict=True)]


@pytest.mark.parametrize(("size", "power"), [(2, 0.0), (3, 0.0), (4, 0.0), (3, 0.8), (4, 0.8)])
def test_events_at_random_confirm_nothing(size: int, power: float) -> None:
    """All items of an event are connected with each other: held out edge by edge, that looks like structure."""
    for seed in range(6):
        events = _noise(seed, size, power)
        evidence = dreams_help(_of_events(240, events), events=events, seed=seed)
        assert not evidence.confirmed
        assert abs(evidence.auc - evidence.control) < 0.08
    if size > 2:
        assert dreams_help(_of_events(240, events), seed=seed).confirmed


def test_events_that_overlap_in_rings_are_confirmed() -> None:
    for seed in range(4):
        events = _rings(seed, 300)
        graph = _of_events(240, events)
        evidence = dreams_help(graph, events=events, seed=seed)
        assert evidence.confirmed
        assert evidence == dreams_help(graph, events=[event[::-1].tolist() for event in events], seed=seed)
        # An event of one node says nothing of what belongs together.
        assert evidence == dreams_help(graph, events=[*events, [3], []], seed=seed)


def test_a_held_out_event_leaves_nothing_of_itself_in_the_graph() -> None:
    events = [np.array(nodes) for nodes in ([0, 1, 2], [1, 2, 3], [4, 0])]
    source, target, weight = _of_events(6, events).edges()
    graph = MemoryGraph.from_edges(6, [*source, 3], [*target, 5], [*weight, 0.7])  # 3 - 5 comes from no event
    seen, only = _Together.of(events, graph).without(np.array([True, False, False]))
    source, target, weight = _of_events(6, events[1:]).edges()
    expected = MemoryGraph.from_edges(6, [*source, 3], [*target, 5], [*weight, 0.7])
    assert [part.tolist() for part in seen.edges()[:2]] == [part.tolist() for part in expected.edges()[:2]]
    assert seen.edges()[2] == pytest.approx(expected.edges()[2])
    assert only.tolist() == [0 * 6 + 1, 0 * 6 + 2]


def test_events_that_say_too_little_confirm_nothing() -> None:
    events = _rings(0, 300)
    graph = _of_events(240, events)
    for none in ([], [[1], [2]]):
        evidence = dreams_help(graph, events=none)
        assert not evidence.confirmed
        assert (
            "0 pairs of held-out events are in no other of the 0 with several nodes, fewer than 10" in evidence.reason
        )
    often = _rings(0, 3000)
    assert "too few to be found again" in dreams_help(_of_events(240, often), events=often).reason
    many = dreams_help(graph, None, DreamEvidenceConfig(min_pairs=100), events=events)
    assert "fewer than 100" in many.reason


@pytest.mark.parametrize(
    ("event", "error", "says"),
    [
        ([0.5, 1.0], InvalidInput, "event 1 is float64 (2,), expected a sequence of whole numbers"),
        ([[0, 1], [2]], InvalidInput, "event 1 is no sequence of nodes"),
        (3, InvalidInput, "event 1 is int64 ()"),
        ([0, 240], MemoryGraphError, "event 1 has nodes 0 to 240, expected nodes from 0 below 240"),
        ([-1, 2], MemoryGraphError, "event 1 has nodes -1 to 2"),
    ],
)
def test_events_that_are_none_are_refused(event: object, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=re.escape(says)):
        dreams_help(_of_events(240, _rings(0, 100)), events=[[0, 1], event])  # type: ignore[list-item]


def test_what_cannot_be_tested_is_not_confirmed() -> None:
    few = MemoryGraph.from_edges(50, np.arange(49), np.arange(1, 50))
    evidence = dreams_help(few)
    assert not evidence.confirmed
    assert "49 edges, fewer than 50" in evidence.reason
    assert np.isnan(evidence.auc)
    full = MemoryGraph.from_edges(12, *np.triu_indices(12, 1))
    assert "every pair of nodes has an edge" in dreams_help(full).reason
    assert not dreams_help(MemoryGraph.from_edges(0, [], [])).confirmed
    # Nothing can be swapped in a star: the control is the graph itself.
    star = MemoryGraph.from_edges(80, np.zeros(79, dtype=int), np.arange(1, 80))
    evidence = dreams_help(star)
    assert not evidence.confirmed
    assert evidence.auc == evidence.control


def test_settings_of_the_test_are_honoured() -> None:
    graph = les_miserables()
    usual = DreamEvidenceConfig()
    assert not dreams_help(graph, None, replace(usual, margin=0.45)).confirmed
    assert not dreams_help(graph, None, replace(usual, alpha=1e-9)).confirmed
    assert "fewer than 300" in dreams_help(graph, None, replace(usual, min_edges=300)).reason
    assert len(dreams_help(graph, None, replace(usual, repeats=4)).repeats) == 4
    assert dreams_help(graph, None, replace(usual, held_out=0.5)).auc < dreams_help(graph).auc
    assert dreams_help(graph, None, replace(usual, walks=1)).auc < dreams_help(graph).auc
    # One more swap hardly changes a rewired graph; as many as it has edges make another one.
    seen = np.array([control for _, control in dreams_help(graph).repeats])
    still = np.array([control for _, control in dreams_help(graph, None, replace(usual, max_swaps=1)).repeats])
    assert seen[0] == still[0]
    assert (seen[1:] != still[1:]).all()
    assert dreams_help(graph, None, replace(usual, swaps=1)).control != dreams_help(graph).control
    sampled = dreams_help(graph, None, replace(usual, max_pairs=10))
    assert np.std([auc for auc, _ in sampled.repeats]) > np.std([auc for auc, _ in dreams_help(graph).repeats])


def test_area_under_the_curve() -> None:
    random = np.random.default_rng(0)
    positive, negative = random.integers(0, 5, 40).astype(float), random.integers(0, 5, 30).astype(float)
    pairs = positive[:, np.newaxis] - negative
    assert area_under_curve(positive, negative) == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean())
