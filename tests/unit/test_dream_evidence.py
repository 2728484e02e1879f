"""Whether dreams help: yes on a real graph, no where there is nothing but degrees, and what is said of small graphs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.dreams import les_miserables, random_graph, rewired_graph
from benchmarks.two_hop import TwoHop
from sona_pg.config import DreamConfig, DreamEvidenceConfig
from sona_pg.learning.dream_evidence import area_under_curve, dreams_help
from sona_pg.learning.dream_walks import EDGE, co_occurrences, dream_walks
from sona_pg.learning.memory_graph import MemoryGraph


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
