"""Dreams: the kernels on a graph of 50,000 nodes and a million edges, and whether dreams are of any use.

Figures of use stand among the parameters. Held-out edges: `auc` is how often one scores above a pair without an edge,
`rewired` the same on graphs of the same degrees, over 10 seeds. Two hops: one-hop recall@50 with edges by dreams, with
as many random edges (`random`), and without (`without`), on worlds by seed, and on ``two_hop`` in ``SONA_DATA``.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator

import networkx as nx
import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from benchmarks.bank_worlds import DATA
from benchmarks.harness import Row, compare, row
from benchmarks.two_hop import TwoHop
from sona_pg import kernels
from sona_pg.config import DreamConfig, StrategyConfig
from sona_pg.kernels import graph_reference
from sona_pg.kernels.graph_reference import EDGE, JUMP, RESTART, START
from sona_pg.learning.dream_evidence import DreamEvidence, area_under_curve, dreams_help
from sona_pg.learning.dreams import DreamQuality, evaluate_dream, generate_dreams
from sona_pg.learning.memory_graph import MemoryGraph

NODES, EDGES = 50_000, 1_000_000
DREAMS, LENGTH = 50, 15
RESTART_PROB, JUMP_PROB = 0.1, 0.3

Pairs = NDArray[np.int64]


def run(*, quick: bool) -> list[Row]:
    """The kernels, then the evidence."""
    rounds = 10 if quick else 40
    return [*_kernels(rounds), *_held_out(10 if quick else 40), *_two_hops(10)]


# ---- kernels ---------------------------------------------------------------------------------------------------------


def _edges() -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]]:
    """Degrees are far from equal, as they are in memories."""
    random = np.random.default_rng(0)
    source = (NODES * random.random(EDGES) ** 2).astype(np.int32)
    target = ((source + 1 + (NODES - 1) * random.random(EDGES) ** 2).astype(np.int64) % NODES).astype(np.int32)
    return source, np.where(target == source, (target + 1) % NODES, target), random.random(EDGES, dtype=np.float32)


def _kernels(rounds: int) -> Iterator[Row]:
    source, target, weight = _edges()
    params: dict[str, int | float | str] = {"nodes": NODES, "edges": EDGES}

    def scipy_rows() -> sp.csr_matrix:
        ends = np.concatenate([source, target]), np.concatenate([target, source])
        rows = sp.coo_matrix((np.concatenate([weight, weight]), ends), (NODES, NODES)).tocsr()
        rows.sort_indices()
        return rows

    yield compare(
        "rows of a graph", params, lambda: kernels.adjacency(NODES, source, target, weight), "scipy.sparse", scipy_rows,
        rounds=rounds // 2, inner=1,
    )  # fmt: skip
    yield compare(
        "MemoryGraph.from_edges, checked", params, lambda: MemoryGraph.from_edges(NODES, source, target, weight),
        "scipy.sparse, unchecked", scipy_rows, rounds=rounds // 2, inner=1,
    )  # fmt: skip
    graph = MemoryGraph.from_edges(NODES, source, target, weight)
    entries = len(graph.indices)
    held = graph.indptr.nbytes + graph.indices.nbytes + graph.weights.nbytes + graph.cumulative().nbytes
    walks: dict[str, int | float | str] = {
        **params, "walks": DREAMS, "length": LENGTH, "bytes/entry": round(held / entries, 1),
    }  # fmt: skip
    starts = np.random.default_rng(1).integers(0, NODES, DREAMS).astype(np.int32)
    given = graph.indptr, graph.indices, graph.cumulative(), starts, LENGTH, RESTART_PROB, JUMP_PROB, 0
    # Other walks every time: the same ones would find their rows in the cache.
    ours, theirs = itertools.count(), itertools.count()
    for rival_name, rival in (
        ("Python, bisect", lambda: graph_reference.walk(*given, first=DREAMS * next(theirs))),
        ("NumPy, all walks at once", lambda: _numpy_walk(graph, starts, next(theirs))),
    ):
        yield compare(
            "walks", walks, lambda: kernels.walk(*given, first=DREAMS * next(ours)), rival_name, rival,
            rounds=rounds, inner=5,
        )  # fmt: skip
    config = DreamConfig()

    def in_python() -> list[DreamQuality]:
        walked, kinds = graph_reference.walk(*given, first=DREAMS * next(theirs))
        return [evaluate_dream(nodes, reached, graph, config) for nodes, reached in zip(walked, kinds, strict=True)]

    yield compare(
        "dreams, evaluated", walks, lambda: generate_dreams(graph, DREAMS, config, first=DREAMS * next(ours)),
        "walked in Python, then evaluated", in_python, rounds=rounds, inner=2,
    )  # fmt: skip
    yield from _activation(graph, params, rounds)


def _numpy_walk(
    graph: MemoryGraph, starts: NDArray[np.int32], seed: int
) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    """The same distribution, step by step for all walks together; every node of the graph has an edge."""
    random, sums = np.random.default_rng(seed), graph.cumulative()
    nodes = np.empty((len(starts), LENGTH), dtype=np.int32)
    kinds = np.empty((len(starts), LENGTH), dtype=np.uint8)
    nodes[:, 0], kinds[:, 0] = starts, START
    for i in range(1, LENGTH):
        now, (drawn, where) = nodes[:, i - 1], random.random((2, len(starts)))
        begin, end = graph.indptr[now], graph.indptr[now + 1]
        base = np.where(begin > 0, sums[begin - 1], 0.0)
        at = np.searchsorted(sums, base + where * (sums[end - 1] - base), side="right")
        other = (where * (len(graph) - 1)).astype(np.int32)
        kinds[:, i] = np.where(drawn < RESTART_PROB, RESTART, np.where(drawn < RESTART_PROB + JUMP_PROB, JUMP, EDGE))
        along = np.where(kinds[:, i] == JUMP, other + (other >= now), graph.indices[np.minimum(at, end - 1)])
        nodes[:, i] = np.where(kinds[:, i] == RESTART, starts, along)
    return nodes, kinds


def _activation(graph: MemoryGraph, params: dict[str, int | float | str], rounds: int) -> Iterator[Row]:
    mass = np.zeros(NODES)
    mass[np.random.default_rng(2).integers(0, NODES, 5)] = 0.2
    weights = sp.csr_matrix((graph.weights.astype(np.float64), graph.indices, graph.indptr), (NODES, NODES))
    strength = np.asarray(weights.sum(axis=1)).ravel()
    transition = (sp.diags(1 / np.where(strength > 0, strength, 1)) @ weights).T.tocsr()

    def scipy_spread() -> NDArray[np.float64]:
        first = 0.7 * (transition @ mass)
        return np.asarray(mass + first + 0.7 * (transition @ first))

    def scipy_rank() -> NDArray[np.float64]:
        now, s = mass, mass
        while True:
            then = 0.85 * (transition @ now) + 0.15 * s
            if np.abs(then - now).sum() * 0.85 <= 1e-8 * 0.15:
                return np.asarray(then)
            now = then

    assert np.abs(scipy_rank() - graph.personalised_pagerank(mass)).sum() < 1e-7
    yield compare(
        "spreading activation, 2 hops", params, lambda: graph.spread(mass, 2, 0.7), "scipy.sparse, normalised before",
        scipy_spread, rounds=rounds, inner=1,
    )  # fmt: skip
    yield compare(
        "personalised PageRank to 1e-8", params, lambda: graph.personalised_pagerank(mass),
        "scipy.sparse, normalised before", scipy_rank, rounds=max(rounds // 4, 3), inner=1,
    )  # fmt: skip


# ---- use -------------------------------------------------------------------------------------------------------------


def les_miserables() -> MemoryGraph:
    """Who meets whom in the novel, by the number of scenes (Knuth 1993): 77 nodes, 254 edges."""
    graph = nx.convert_node_labels_to_integers(nx.les_miserables_graph())
    edges = np.array([(a, b, scenes) for a, b, scenes in graph.edges(data="weight")])
    return MemoryGraph.from_edges(len(graph), edges[:, 0], edges[:, 1], edges[:, 2] / edges[:, 2].max())


def random_graph(seed: int, nodes: int = 77, edges: int = 254) -> MemoryGraph:
    """Any pair of nodes may have an edge (Erdős & Rényi 1959)."""
    pairs = np.array(nx.gnm_random_graph(nodes, edges, seed=seed).edges())
    return MemoryGraph.from_edges(nodes, pairs[:, 0], pairs[:, 1])


def rewired_graph(graph: MemoryGraph, seed: int) -> MemoryGraph:
    """One with the same degrees and weights, where nothing else is left."""
    ends = kernels.rewired(graph.indptr, graph.indices, 20 * graph.edge_count, seed)
    return MemoryGraph.from_edges(len(graph), *ends, graph.edges()[2])


def _timed(call: Callable[[], DreamEvidence]) -> tuple[DreamEvidence, float]:
    began = time.perf_counter()
    return call(), 1e6 * (time.perf_counter() - began)


def _held_out(seeds: int) -> Iterator[Row]:
    characters = les_miserables()
    allocation, allocating = np.array([_resource_allocation(characters, seed) for seed in range(10)]).T
    worlds: dict[str, tuple[int, Callable[[int], MemoryGraph]]] = {
        "Les Misérables": (10, lambda seed: characters),
        "Les Misérables, rewired": (seeds, lambda seed: rewired_graph(characters, seed)),
        "random": (seeds, random_graph),
        "two hops": (3, lambda seed: TwoHop.made(seed).graph),
    }
    for name, (count, world) in worlds.items():
        runs = [_timed(lambda s=seed, w=world: dreams_help(w(s), seed=s)) for seed in range(count)]  # type: ignore[misc]
        auc = np.array([evidence.auc for evidence, _ in runs])
        params: dict[str, int | float | str] = {
            "graph": name,
            "auc": round(float(auc.mean()), 3),
            "sd": round(float(auc.std(ddof=1)), 3),
            "rewired": round(float(np.mean([evidence.control for evidence, _ in runs])), 3),
            "confirmed": f"{sum(evidence.confirmed for evidence, _ in runs)}/{count}",
        }
        if world is worlds["Les Misérables"][1]:
            params["resource allocation"] = round(float(allocation.mean()), 3)
        yield row(
            "held-out edges",
            params,
            np.array([us for _, us in runs]),
            "resource allocation, networkx, one hold-out",
            allocating,
        )


def _resource_allocation(graph: MemoryGraph, seed: int) -> tuple[float, float]:
    """AUC, and microseconds, of Zhou, Lü & Zhang (2009) on the same task; it looks at every common neighbour."""
    source, target, _ = graph.edges()
    order = np.random.default_rng(seed).permutation(len(source))
    held, rest = np.split(order, [round(0.2 * len(order))])
    seen = nx.Graph()
    seen.add_nodes_from(range(len(graph)))
    seen.add_edges_from(zip(source[rest].tolist(), target[rest].tolist(), strict=True))
    every = np.array(np.triu_indices(len(graph), 1))
    free = every[:, graph.weights_between(*every) == 0]
    pairs = np.concatenate([np.array([source[held], target[held]]), free], axis=1)
    began = time.perf_counter()
    score = np.array([s for _, _, s in nx.resource_allocation_index(seen, [tuple(pair) for pair in pairs.T.tolist()])])
    seconds = time.perf_counter() - began
    return area_under_curve(score[: len(held)], score[len(held) :]), 1e6 * seconds


def _two_hops(seeds: int) -> Iterator[Row]:
    path = DATA / "two_hop" / "two_hop.npz"
    worlds = {"two_hop": TwoHop.load(path)} if path.exists() else {}
    worlds |= {f"made {seed}": TwoHop.made(seed) for seed in range(3)}
    for name, world in worlds.items():
        dreamt, random, taken, rival = [], [], [], []
        for seed in range(seeds):
            config = DreamConfig(seed=seed)
            began = time.perf_counter()
            graph = world.dreamt(config)
            taken.append(time.perf_counter() - began)
            began = time.perf_counter()
            control = world.at_random(config)
            rival.append(time.perf_counter() - began)
            dreamt.append(world.recall(graph, 1))
            random.append(world.recall(control, 1))
        yield row(
            "one-hop recall@50, edges by dreams",
            {
                "world": name,
                "without": round(world.recall(world.graph, 1), 3),
                "recall": round(float(np.mean(dreamt)), 3),
                "sd": round(float(np.std(dreamt, ddof=1)), 3),
                "least": round(min(dreamt), 3),
                "random": round(float(np.mean(random)), 3),
                "two hops": round(world.recall(world.graph, 2), 3),
                "frozen": round(world.related(StrategyConfig(candidates=200, related_weight=0.0)), 3),
                "related": round(world.related(StrategyConfig(candidates=200)), 3),
                "related, by activation alone": round(
                    world.related(StrategyConfig(candidates=200, related_weight=10.0)), 3
                ),
            },
            1e6 * np.array(taken),
            "as many random edges",
            1e6 * np.array(rival),
        )
