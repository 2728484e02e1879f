"""Memory graphs in which what a query needs lies two hops from where it lands: a world by seed, and a collection.

Topics form chains a - b - c. Nodes are joined inside of a topic and between neighbouring topics, and at random by one
edge in eight. A query lands in topic a; relevant are nodes of topic c that share the most neighbours in b with where it
lands. So nothing that is relevant is one hop away, and nothing is near by cosine.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from sona_pg.config import DreamConfig, StrategyConfig
from sona_pg.learning.arrays import normalized_rows
from sona_pg.learning.associations import Associations
from sona_pg.learning.dream_walks import creative_edges, dream_walks
from sona_pg.learning.item_pool import ItemPool
from sona_pg.learning.memory_graph import MemoryGraph
from sona_pg.learning.remembered import InMemoryOutcomes, PoolIndex, look_around
from sona_pg.learning.strategies import Strategy
from sona_pg.learning.strategist import Strategist

Floats = NDArray[np.float32]
Pairs = NDArray[np.int64]

LANDING, FACTOR, SHOWN = 5, 0.7, 50
WALKS = 2000


@dataclass(frozen=True)
class TwoHop:
    """A graph with embeddings, queries (m, dim), and the relevant nodes (m, 5) of each."""

    graph: MemoryGraph
    query: Floats
    relevant: Pairs

    @classmethod
    def load(cls, path: Path) -> Self:
        """The collection ``two_hop.npz``; weights above 1 are edges that were seen twice, and count 1."""
        with np.load(path) as parts:
            edge, embedding = parts["edge"], parts["embedding"]
            weight = np.minimum(parts["weight"], 1)
            graph = MemoryGraph.from_edges(len(embedding), edge[:, 0], edge[:, 1], weight, embeddings=embedding)
            return cls(graph, parts["query"], parts["relevant"].astype(np.int64))

    @classmethod
    def made(cls, seed: int, *, topics: int = 42, size: int = 25, dim: int = 64, queries: int = 12) -> Self:
        """A world of `topics` topics, a multiple of 3, of `size` nodes, with `queries` queries for each chain."""
        random = np.random.default_rng(seed)
        n = topics * size
        around = random.standard_normal((topics, dim)).repeat(size, axis=0) + 0.9 * random.standard_normal((n, dim))
        embedding = normalized_rows(around.astype(np.float32))
        member = np.arange(n).reshape(topics, size)
        pairs: list[tuple[int, int]] = []

        def join(own: Pairs, other: Pairs, each: int) -> None:
            for node in own:
                pairs.extend((int(node), int(end)) for end in random.choice(other, each, replace=False) if end != node)

        for topic in member:
            join(topic, topic, 3)
        chains = member[random.permutation(topics)].reshape(-1, 3, size)
        for a, b, c in chains:
            join(a, b, 2)
            join(c, b, 3)
        weight = random.uniform(0.3, 1.0, len(pairs))
        clean = np.zeros((n, n), dtype=np.float32)
        for (i, j), w in zip(pairs, weight, strict=True):
            clean[i, j] = clean[j, i] = clean[i, j] + w
        noise = random.integers(0, n, (len(pairs) // 8, 2))
        ends = np.concatenate([np.array(pairs), noise])
        graph = MemoryGraph.from_edges(
            n,
            ends[:, 0],
            ends[:, 1],
            np.concatenate([weight, random.uniform(0.05, 0.3, len(noise))]),
            embeddings=embedding,
        )
        asked, relevant = [], []
        for a, b, c in chains:
            for _ in range(queries):
                query = embedding[random.choice(a)] + random.standard_normal(dim) / (2 * np.sqrt(dim))
                landing = a[np.argsort(-(embedding[a] @ query))[:LANDING]]
                shared = clean[np.ix_(landing, b)].sum(axis=0) @ clean[np.ix_(b, c)]
                asked.append(query)
                relevant.append(c[np.argsort(-shared)[:5]])
        return cls(graph, normalized_rows(np.array(asked, dtype=np.float32)), np.array(relevant, dtype=np.int64))

    def with_edges(self, source: NDArray[np.integer], target: NDArray[np.integer], weight: Floats) -> MemoryGraph:
        """The graph with more edges."""
        a, b, w = self.graph.edges()
        return MemoryGraph.from_edges(
            len(self.graph), np.concatenate([a, source]), np.concatenate([b, target]), np.concatenate([w, weight])
        )

    def dreamt(self, config: DreamConfig, walks: int = WALKS) -> MemoryGraph:
        """The graph with edges by dreams that begin anywhere."""
        begin = np.random.default_rng(config.seed).integers(0, len(self.graph), walks)
        made = creative_edges(self.graph, *dream_walks(self.graph, begin, config), config)
        return self.with_edges(made.source, made.target, made.weight)

    def at_random(self, config: DreamConfig) -> MemoryGraph:
        """The graph with as many edges between pairs drawn uniformly of those that have none."""
        random = np.random.default_rng([config.seed, 1])
        ends = random.integers(0, len(self.graph), (4 * config.max_edges, 2))
        ends = np.unique(np.sort(ends, axis=1), axis=0)
        free = (ends[:, 0] != ends[:, 1]) & (self.graph.weights_between(ends[:, 0], ends[:, 1]) == 0)
        ends = random.permutation(ends[free])[: config.max_edges]
        return self.with_edges(ends[:, 0], ends[:, 1], np.full(len(ends), config.edge_weight, dtype=np.float32))

    def recall(self, graph: MemoryGraph, hops: int) -> float:
        """Recall@50: activation of the nodes nearest to a query spreads over so many hops of a graph."""
        if self.graph.embeddings is None:
            return 0.0
        found = []
        for query, relevant in zip(self.query, self.relevant, strict=True):
            cosine = self.graph.embeddings @ query
            landing = np.argsort(-cosine, kind="stable")[:LANDING]
            mass = np.zeros(len(graph))
            mass[landing] = np.maximum(cosine[landing], 0)
            active = graph.spread(mass, hops, FACTOR)
            active[landing] = 0
            shown = np.argsort(-active, kind="stable")[:SHOWN]
            found.append(np.isin(relevant, shown[active[shown] > 0]).mean())
        return float(np.mean(found))

    def related(self, config: StrategyConfig) -> float:
        """Recall@50 of the strategy `related`; with a weight of 0, of the frozen ranking. All nodes are items."""
        if self.graph.embeddings is None:
            return 0.0
        pool = ItemPool([str(node) for node in range(len(self.graph))], self.graph.embeddings)
        memory, index = InMemoryOutcomes(self.query.shape[1]), PoolIndex(pool)
        associations, strategist = Associations(pool.ids, self.graph), Strategist(pool, config)
        found = []
        for query, relevant in zip(self.query, self.relevant, strict=True):
            around = look_around(query, memory, index, config, associations=associations)
            shown = strategist.answer(query, around).ranking(Strategy.RELATED, SHOWN)
            found.append(np.isin(relevant, [int(item) for item in shown]).mean())
        return float(np.mean(found))
