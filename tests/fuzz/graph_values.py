"""As `python_values`: arguments for the memory graph, dreams, integration and the deep loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st

import sona_pg
from sona_pg import (
    DeepLoopConfig,
    Dream,
    DreamConfig,
    DreamEngine,
    DreamEvidenceConfig,
    LearnedPattern,
    MemoryGraph,
    MemoryNode,
    PhiConfig,
)
from sona_pg.config import NODE_KINDS, ConsolidationConfig, HierarchyConfig
from sona_pg.learning.dreams import DreamQuality
from sona_pg.learning.memory_archive import ArchivedEdge, ArchivedNode, EdgeBefore, NodeBefore
from sona_pg.learning.memory_graph import NodeFacts

from .anything import DIM, Any_, anything, arrays, numbers, texts, typed_arrays, vectors
from .objects import bank, ewc

NODES = 5

_evidence = DreamEvidenceConfig(repeats=3, min_edges=10, walks=2)
_phi = PhiConfig(random_paths=5, shuffles=1)


def graph() -> MemoryGraph:
    """A ring, of which a node has no embedding."""
    rows = np.vstack([np.eye(DIM), np.zeros(DIM)])
    return MemoryGraph.from_edges(NODES, [0, 1, 2, 3, 4], [1, 2, 3, 4, 0], np.full(NODES, 0.5), embeddings=rows)


def engine() -> DreamEngine:
    """A ring with an edge by a dream."""
    made = DreamEngine(DreamConfig(path_length=6))
    for id in range(NODES):
        made.add_memory_node(MemoryNode(id, np.eye(DIM)[id % DIM], created=0.0))
    for id in range(NODES):
        made.add_edge(id, (id + 1) % NODES, 0.5)
    made.integrate_dreams(made.generate_dreams(2), at=0.0)
    return made


def loop() -> sona_pg.DeepLoop:
    """One with something to do in every phase, and something in its archive."""
    settings = sona_pg.DeepConfig(
        loop=DeepLoopConfig(dreams_per_cycle=2),
        dreams=engine().config,
        evidence=_evidence,
        phi=_phi,
        consolidation=ConsolidationConfig(prune_value=0.5),
    )
    made = sona_pg.DeepLoop(engine=engine(), ewc=ewc(), bank=bank(), settings=settings)
    made.run_cycle(now=1e8)
    made.dream_engine().add_memory_node(MemoryNode(100, [1.0, 0.0, 0.0, 0.0]))
    return made


def _facts(column: Any_) -> Any_:
    return st.one_of(st.none(), st.builds(NodeFacts, column, column, column, column))


_places = st.lists(st.integers(0, NODES - 1), max_size=4)
_place = st.integers(0, NODES - 1)
_mass = st.lists(st.floats(0.1, 1), min_size=NODES, max_size=NODES)
_hostile_places = st.one_of(st.lists(numbers, max_size=4), arrays, anything)
_counts = st.one_of(st.integers(-2, 9), st.sampled_from((2**31, 2**63, 10**400, True, 1.5, None)), texts, arrays)
"""Sizes of what is made: others in between are memory, and nothing else."""
_quality = st.just(DreamQuality(0.0, 0.0, 0.0, 0.0, 0.0, 0.0))
_good_dreams = st.builds(lambda n: engine().generate_dreams(n + 1)[n], st.integers(0, 3))
_hostile_dreams = st.one_of(
    _good_dreams,
    st.builds(
        Dream,
        st.integers(),
        st.lists(st.one_of(_place, numbers), max_size=4).map(tuple),
        st.lists(st.one_of(st.integers(0, 3), numbers), max_size=4).map(tuple),
        _quality,
        st.lists(st.builds(MemoryNode, st.integers(0, 9)), max_size=3).map(tuple),
    ),
    anything,
)
_nodes = st.builds(MemoryNode, st.integers(-2, 9), st.one_of(st.none(), vectors), st.floats(-1e9, 1e9))
_archived_nodes = st.builds(ArchivedNode, _nodes, st.integers(0, 9), st.just("gone"))
_archived_edges = st.builds(
    ArchivedEdge, st.integers(0, 9), st.integers(0, 9), st.floats(0, 1), st.none(), st.booleans(), st.just("gone")
)
_nodes_before = st.builds(NodeBefore, _nodes, _nodes)
_edges_before = st.builds(
    EdgeBefore, st.integers(0, 9), st.integers(0, 9), st.floats(0, 1), st.none(), st.booleans(),
    st.floats(0.1, 1), st.integers(0, 3),
)  # fmt: skip
_walks: dict[str, Any_] = {
    "starts": _places,
    "length": st.just(5),
    "restart": st.just(0.1),
    "jump": st.just(0.3),
    "first": st.just(0),
    "temperature": st.just(0.5),
}


def _columns(kinds: dict[str, type]) -> dict[str, Any_]:
    return {name: st.just(np.zeros(2, dtype=kind)) for name, kind in kinds.items()}


_node_columns = {
    **_columns({"kinds": np.int64, "access_count": np.int64, "has_embedding": np.bool_}),
    **_columns(dict.fromkeys(("created", "last_access", "quality", "importance"), np.float64)),
    "ids": st.just(np.arange(2)),
    "embeddings": st.just(np.eye(2, DIM, dtype=np.float32)),
    "places": st.sampled_from((None, np.array([1, 0]))),
    "judged": st.sampled_from((None, np.array([[3, 1], [0, 0]]))),
}
_edge_columns = _columns(
    {"source": np.int64, "target": np.int64, "origin": np.int64, "weight": np.float64, "decayed_at": np.float64}
)
_hostile_columns = st.one_of(
    arrays,
    st.sampled_from((np.nan, np.inf, -1.0, 2.0)).map(lambda x: np.full(2, x)),
    st.sampled_from((-1, 9, 1 << 62)).map(lambda x: np.full(2, x, dtype=np.int64)),
    st.just(np.full((2, DIM), np.nan, dtype=np.float32)),
    anything,
)
_deep_config = {
    "loop": st.sampled_from((DeepLoopConfig(), DeepLoopConfig(phi_threshold=0.0))),
    "consolidation": st.just(ConsolidationConfig()),
    "hierarchy": st.just(HierarchyConfig(levels=1)),
    "dreams": st.just(DreamConfig()),
    "evidence": st.just(_evidence),
    "phi": st.just(_phi),
    "transfer": st.just(sona_pg.TransferConfig()),
}
_loops = {
    "config": st.sampled_from((None, DeepLoopConfig(dreams_per_cycle=1))),
    "engine": st.one_of(st.none(), st.builds(engine)),
    "ewc": st.one_of(st.none(), st.builds(ewc)),
    "bank": st.one_of(st.none(), st.builds(bank)),
    "settings": st.sampled_from((None, sona_pg.DeepConfig(loop=DeepLoopConfig(dreams_per_cycle=2)))),
}
_judged = {"evidence": st.just(_evidence), "phi": st.just(_phi), "check_stop": st.just(lambda: None)}
_events = st.one_of(st.none(), st.lists(st.lists(_place, max_size=3), max_size=3))
_consolidation = st.sampled_from((None, ConsolidationConfig(threshold=0.0)))
_embeddings = st.just(np.random.default_rng(0).standard_normal((NODES, DIM)))
_path = st.lists(_place, max_size=6)
_center = st.one_of(st.none(), vectors)

GOOD_OF: dict[str, dict[str, Any_]] = {
    "DeepConfig.__init__": _deep_config,
    "DeepLoop.__init__": _loops,
    "DeepLoopConfig.dreams_of": {"nodes": st.integers(0, 100)},
    "DeepLoop.restore": {"ids": st.sampled_from((None, [], [1], [1, 2]))},
    "DeepLoop.run_cycle": {
        "now": st.sampled_from((None, 0.0, 1e9)),
        "series": st.one_of(st.none(), st.just(np.random.default_rng(0).standard_normal((20, 2)))),
        "events": _events,
    },
    "DreamEngine.__init__": {"config": st.sampled_from((None, DreamConfig(path_length=3)))},
    "DreamEngine.add_edge": {"a": _place, "b": _place, "weight": st.just(0.5), "at": st.sampled_from((None, 1.0))},
    "DreamEngine.add_memory_node": {"node": _nodes},
    "DreamEngine.columns": {"now": st.just(1e9)},
    "DreamEngine.consolidate": {"now": st.sampled_from((0.0, 1e9)), "config": _consolidation},
    "DreamEngine.generate_dream": {"creative": st.booleans()},
    "DreamEngine.generate_dreams": {"count": st.integers(0, 3), "creative": st.booleans()},
    "DreamEngine.integrate_dream": {"dream": _good_dreams},
    "DreamEngine.integrate_dreams": {
        "dreams": st.lists(_good_dreams, max_size=2),
        "at": st.sampled_from((None, 1.0)),
    },
    "DreamEngine.judged_dreams": {"count": st.integers(0, 3), "events": _events, **_judged},
    "DreamEngine.restore_edge": {"archived": _archived_edges},
    "DreamEngine.restore_edge_before": {"archived": _edges_before},
    "DreamEngine.restore_node": {"archived": _archived_nodes},
    "DreamEngine.restore_node_before": {"archived": _nodes_before},
    "MemoryEdges.__init__": _edge_columns,
    "MemoryEdges.check": {"nodes": st.just(2)},
    "MemoryEdges.where": {"chosen": st.just(np.array([True, False]))},
    "MemoryGraph.__init__": {
        "indptr": st.builds(lambda: graph().indptr),
        "indices": st.builds(lambda: graph().indices),
        "weights": st.builds(lambda: graph().weights),
        "embeddings": st.one_of(st.none(), _embeddings),
        "places": st.none(),
        "facts": st.one_of(st.none(), st.just(NodeFacts.unknown(NODES))),
        "self_loops": st.just(0),
    },
    "MemoryGraph.cumulative": {"temperature": st.just(0.5)},
    "MemoryGraph.degree": {"node": _place},
    "MemoryGraph.from_edges": {
        "n": st.just(NODES),
        "source": st.just([0, 1]),
        "target": st.just([1, 2]),
        "weight": st.one_of(st.none(), st.just([0.5, 1.0])),
        "embeddings": st.one_of(st.none(), _embeddings),
        "places": st.none(),
        "facts": st.one_of(st.none(), st.just(NodeFacts.unknown(NODES))),
    },
    "MemoryGraph.has_edge": {"a": _place, "b": _place},
    "MemoryGraph.neighbours": {"node": _place},
    "MemoryGraph.personalised_pagerank": {"mass": _mass, "restart": st.just(0.15), "tolerance": st.just(1e-6)},
    "MemoryGraph.spread": {"mass": _mass, "hops": st.integers(0, 3), "factor": st.just(0.5)},
    "MemoryGraph.subgraph": {"nodes": st.sets(_place).map(sorted)},
    "MemoryGraph.walk": _walks,
    "MemoryGraph.weight": {"a": _place, "b": _place},
    "MemoryGraph.weights_between": {"source": st.just([0, 1]), "target": st.just([1, 3])},
    "MemoryNode.__init__": {
        "id": st.integers(),
        "access_count": st.integers(0, 99),
        "importance": st.floats(0, 1),
        "kind": st.sampled_from(NODE_KINDS),
        "consolidation_count": st.just(0),
        "created": st.one_of(st.none(), st.just(0.0)),
    },
    "MemoryNodes.__init__": _node_columns,
    "PhiEvaluator.__init__": {"config": st.sampled_from((None, _phi))},
    "PhiEvaluator.calibrate": {"random_path_values": st.lists(st.floats(0, 1), min_size=1, max_size=4)},
    "PhiEvaluator.evaluate": {"path": _path, "embeddings": _embeddings, "center": _center},
    "PhiEvaluator.evaluate_dream": {
        "dream": st.one_of(_path, _good_dreams),
        "embeddings": _embeddings,
        "center": _center,
    },
    "PhiEvaluator.random_path_values": {"embeddings": _embeddings, "nodes": st.integers(0, NODES), "center": _center},
    "ReasoningBank.find_similar": {
        "query": vectors,
        "k": st.integers(0, 9),
        "now": st.sampled_from((None, 1.0)),
        "min_quality": st.sampled_from((None, 0.5)),
        "level": st.integers(0, 2),
    },
    "ReasoningBank.put_back": {
        "pattern": st.builds(lambda id: bank().patterns[id % 2], st.integers(0, 1)),
        "verdicts": st.just({}),
    },
    "ReasoningBank.verdicts": {"id": st.just(1)},
}

_hostile_facts = _facts(st.one_of(arrays, st.just(np.full(NODES, 0.5)), st.just(np.full(NODES, np.nan))))

HOSTILE_OF: dict[str, dict[str, Any_]] = {
    "DeepConfig.__init__": _deep_config,
    "DeepLoop.__init__": _loops,
    "DreamEngine.__init__": GOOD_OF["DreamEngine.__init__"],
    "DreamEngine.add_memory_node": {
        "node": st.one_of(st.builds(MemoryNode, st.integers(), st.sampled_from((None, [1.0], np.ones(99)))), anything)
    },
    "DreamEngine.consolidate": {"config": _consolidation},
    "DreamEngine.generate_dreams": {"count": _counts},
    "DreamEngine.integrate_dream": {"dream": _hostile_dreams},
    "DreamEngine.integrate_dreams": {"dreams": st.one_of(st.lists(_hostile_dreams, max_size=2), anything)},
    "DreamEngine.judged_dreams": {"count": _counts, **_judged},
    "DreamEngine.restore_edge": {
        "archived": st.one_of(
            st.builds(
                ArchivedEdge,
                numbers,
                numbers,
                numbers,
                st.one_of(st.none(), numbers),
                anything,
                texts,
                version=st.one_of(st.just(0), anything),
            ),
            anything,
        )
    },
    "DreamEngine.restore_edge_before": {
        "archived": st.one_of(
            st.builds(
                EdgeBefore,
                st.one_of(st.integers(0, 9), numbers),
                st.integers(0, 9),
                numbers,
                st.one_of(st.none(), numbers),
                anything,
                numbers,
                st.one_of(st.integers(0, 3), anything),
            ),
            anything,
        )
    },
    "DreamEngine.restore_node": {"archived": st.one_of(st.builds(ArchivedNode, _nodes, numbers, texts), anything)},
    "DreamEngine.restore_node_before": {
        "archived": st.one_of(st.builds(NodeBefore, st.one_of(_nodes, anything), _nodes), anything)
    },
    "MemoryEdges.__init__": dict.fromkeys(_edge_columns, _hostile_columns),
    "MemoryGraph.__init__": {
        **{name: GOOD_OF["MemoryGraph.__init__"][name] for name in ("indptr", "indices", "weights")},
        "facts": _hostile_facts,
    },
    "MemoryGraph.from_edges": {"n": _counts, "facts": _hostile_facts},
    "MemoryGraph.walk": {"starts": _hostile_places, "length": _counts},
    "MemoryNodes.__init__": dict.fromkeys(_node_columns, _hostile_columns),
    "PhiEvaluator.__init__": GOOD_OF["PhiEvaluator.__init__"],
    "PhiEvaluator.evaluate_dream": {"dream": st.one_of(_hostile_dreams, _hostile_places)},
    "ReasoningBank.put_back": {
        "pattern": st.one_of(
            st.builds(
                lambda id, centroid: LearnedPattern(id, centroid, 1, 1.0, 0.5, 0.0, 0.0),
                numbers,
                st.one_of(typed_arrays, arrays),
            ),
            anything,
        ),
        "verdicts": st.just({}),
    },
}

MAKERS: dict[str, Callable[[], Any]] = {
    "DeepLoop": loop,
    "DeepLoopConfig": DeepLoopConfig,
    "DreamEngine": engine,
    "MemoryEdges": lambda: sona_pg.MemoryEdges(**{name: np.zeros(2, dtype=d) for name, d in _EDGE_TYPES.items()}),
    "MemoryGraph": graph,
    "PhiEvaluator": lambda: sona_pg.PhiEvaluator(_phi),
}

_EDGE_TYPES = {"source": np.int64, "target": np.int64, "weight": float, "decayed_at": float, "origin": np.int64}


def _numbers_of_engine(made: DreamEngine) -> list[Any]:
    nodes, edges = made.columns(1e9)
    weights = [edge.weight for edge in made.creative_edges]
    return [nodes.embeddings, nodes.created, edges.weight, edges.decayed_at, made.graph.weights, np.array(weights)]


NUMBERS_OF: dict[str, Callable[[Any], list[Any]]] = {
    "DeepLoop": lambda made: _numbers_of_engine(made.dream_engine()),
    "DreamEngine": _numbers_of_engine,
    "MemoryGraph": lambda made: [made.weights, made.cumulative()],
}
