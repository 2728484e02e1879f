"""Which dreams may leave something behind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from sona_pg.config import DreamConfig, DreamEvidenceConfig, PhiConfig
from sona_pg.errors import InvalidInput
from sona_pg.learning.arrays import rows_at
from sona_pg.learning.dream_evidence import DreamEvidence, dreams_help
from sona_pg.learning.dream_gate import PhiEvaluator
from sona_pg.learning.dreams import Dream, generate_dreams
from sona_pg.learning.memory_graph import MemoryGraph
from sona_pg.types import is_whole


@dataclass(frozen=True, slots=True)
class JudgedDream:
    """A dream, and whether it is integrated into memory.

    Parameters
    ----------
    dream
        The dream.
    phi
        Integration of its nodes that have an embedding; 0 where fewer than two have.
    level
        φ that it had to reach: what random paths of as many nodes reach in this space.
    refusal
        Why it is not integrated; empty where it is.
    """

    dream: Dream
    phi: float
    level: float
    refusal: str

    @property
    def is_integrated(self) -> bool:
        """Whether it may connect what it has brought together."""
        return not self.refusal


def judged_dreams(
    dreams: Sequence[Dream],
    graph: MemoryGraph,
    evaluator: PhiEvaluator,
    evidence: DreamEvidence,
    *,
    check_stop: Callable[[], None] = lambda: None,
) -> list[JudgedDream]:
    """Judge dreams by their integration, and all of them by what held-out edges say of dreams in this space.

    Parameters
    ----------
    graph
        Over which was dreamt.
    check_stop
        Called between units of work; what it raises ends the judgement.
    """
    known = np.flatnonzero(graph.has_embedding)
    none = np.zeros((0, 1), dtype=np.float32)
    rows = none if graph.embeddings is None else rows_at(graph.embeddings, graph.places, known)
    place = np.full(len(graph), -1, dtype=np.int64)
    place[known] = np.arange(len(known))
    center = rows.mean(axis=0, dtype=np.float64) if len(rows) else None
    levels: dict[int, float] = {}
    judged = []
    for dream in dreams:
        check_stop()
        nodes = list(dict.fromkeys(int(at) for at in place[list(dream.nodes)] if at >= 0))
        if len(nodes) < 2:
            judged.append(JudgedDream(dream, 0.0, 0.0, "fewer than two of its nodes have an embedding"))
            continue
        if len(nodes) not in levels:
            levels[len(nodes)] = evaluator.calibrate(evaluator.random_path_values(rows, len(nodes), center))
        phi, level = evaluator.evaluate(nodes, rows, center).value, levels[len(nodes)]
        if phi < level:
            refusal = f"integration is {phi:.3f}, expected {level:.3f}, what random paths reach here"
        elif not evidence.confirmed:
            refusal = "dreams have not shown that they help here: " + evidence.reason
        else:
            refusal = ""
        judged.append(JudgedDream(dream, phi, level, refusal))
    return judged


@dataclass(frozen=True, slots=True, eq=False)
class DreamNight:
    """The dreams of a cycle.

    Parameters
    ----------
    evidence
        Whether dreams help in this graph.
    dreams
        All of them, judged.
    """

    evidence: DreamEvidence
    dreams: tuple[JudgedDream, ...]

    @property
    def integrated(self) -> list[Dream]:
        """Those that may connect what they have brought together."""
        return [judged.dream for judged in self.dreams if judged.is_integrated]


def dream_night(
    graph: MemoryGraph,
    count: int,
    dreams: DreamConfig,
    evidence: DreamEvidenceConfig,
    phi: PhiConfig,
    *,
    observed: MemoryGraph | None = None,
    events: Sequence[ArrayLike] | None = None,
    first: int = 0,
    check_stop: Callable[[], None] = lambda: None,
) -> DreamNight:
    """Dream over a graph, and judge it; of an empty graph there are no dreams.

    Parameters
    ----------
    count
        How many dreams.
    dreams, evidence, phi
        Settings.
    observed
        Whose edges say whether dreams help; the graph's own if None.
    events
        From which its edges come, as `dreams_help` takes them.
    first
        Id of the first dream; the next ones follow.
    check_stop
        Called between units of work; what it raises ends the night.

    Raises
    ------
    InvalidInput
        If `count` is no whole number from 0 to a million.
    MemoryGraphError
        If dreams are to start at anchors and no node has an embedding.
    """
    if not is_whole(count) or count < 0:
        raise InvalidInput(f"count is {count!r}, expected a whole number from 0")
    tested = graph if observed is None else observed
    found = dreams_help(tested, dreams, evidence, events=events, seed=dreams.seed, check_stop=check_stop)
    check_stop()
    made = generate_dreams(graph, count, dreams, first=first, check_stop=check_stop) if count and len(graph) else []
    judged = judged_dreams(made, graph, PhiEvaluator(phi), found, check_stop=check_stop)
    return DreamNight(found, tuple(judged))
