"""Whether dreams help: on a graph's own edges, taken out and to be found again, beside graphs with its degrees alone.

A dream's claim is that what walks bring together belongs together. Edges are held out, the rest is walked on, and the
held-out edges are ranked against pairs that have no edge (Liben-Nowell & Kleinberg 2007). Hubs are easy to guess; so
the same is done on a rewired graph of the same degrees (Maslov & Sneppen 2002), and only what is above that counts.

Things that helped together in an event are all connected with each other. One of these edges is found by way of the
others even where events are noise, so what is held out of such a graph is events.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from sona_pg import kernels
from sona_pg.config import DreamConfig, DreamEvidenceConfig
from sona_pg.errors import InvalidInput, MemoryGraphError
from sona_pg.learning.dream_walks import co_occurrences, dream_walks
from sona_pg.learning.memory_graph import Doubles, Flags, Floats, MemoryGraph, Nodes, Rows
from sona_pg.learning.significance import Moments, two_sided

_CHOICE, _REWIRING = 3, 4
"""What a stream of random numbers is for."""


@dataclass(frozen=True, slots=True)
class DreamEvidence:
    """What held-out edges say of dreams.

    Parameters
    ----------
    confirmed
        Whether dreams have shown that they help.
    reason
        Why, or why not; for people.
    auc
        Mean over repeats: how often a held-out edge scores above a pair without one, ties half; NaN where nothing was
        measured.
    control
        The same on rewired graphs.
    p
        One-sided, of no difference.
    repeats
        AUC and control of each.
    """

    confirmed: bool
    reason: str
    auc: float = math.nan
    control: float = math.nan
    p: float = 1.0
    repeats: tuple[tuple[float, float], ...] = ()


def dreams_help(
    graph: MemoryGraph,
    config: DreamConfig | None = None,
    evidence: DreamEvidenceConfig | None = None,
    *,
    events: Sequence[ArrayLike] | None = None,
    seed: int = 0,
    check_stop: Callable[[], None] = lambda: None,
) -> DreamEvidence:
    """Whether dreams over a graph find its held-out edges better than its degrees alone explain.

    Where edges come from events, in each of which several things were used together, pass the events. Then whole events
    are held out; the others' share of each weight is walked on, and what is ranked is pairs that no other event has.
    Edges alone would confirm noise: every pair of an event is found by way of a third node of the same event. What else
    was made of the events, such as edges of patterns, does not belong into the graph.

    Confirmed where the AUC is above that on rewired graphs by `margin` in the mean of the repeats, and a one-sided
    t-test of the differences is below `alpha`. Repeats share edges, so the variance of their mean is
    ``s² (1/repeats + held out / rest)`` (Nadeau & Bengio 2003).

    Parameters
    ----------
    graph
        What was observed.
    config
        How dreams walk; `max_edges` and `start` do not matter here.
    evidence
        How it is tested.
    events
        Nodes that were used together, those of an event in any order; the graph's edges between nodes of no event are
        walked on as they are. None: the edges are held out one by one. An empty one says that no event is known, and
        confirms nothing.
    seed
        Of which edges or events are held out; the same seed gives the same evidence.
    check_stop
        Called between repeats; what it raises ends the test.

    Raises
    ------
    InvalidInput, MemoryGraphError
        If an event is no sequence of whole numbers, or has one that is no node.
    """
    dreams, test = config or DreamConfig(), evidence or DreamEvidenceConfig()
    together = None if events is None else _Together.of(events, graph)
    edges = graph.edge_count
    if edges < test.min_edges:
        return DreamEvidence(False, f"{edges} edges, fewer than {test.min_edges}: too few to hold some out")
    known = graph if together is None else together.known
    if 2 * known.edge_count == len(graph) * (len(graph) - 1):
        return DreamEvidence(False, "every pair of nodes has an edge: nothing is left to propose")
    if together is None:
        return _judged(np.array(list(_by_edge(graph, dreams, test, seed, check_stop))), test)
    repeats = []
    for repeat in range(test.repeats):
        check_stop()
        found = _by_event(together, dreams, test, seed, repeat)
        if isinstance(found, int):
            return DreamEvidence(
                False,
                f"{found} pairs of held-out events are in no other of the {together.count} with several nodes, fewer "
                f"than {test.min_pairs}: too few to be found again",
            )
        repeats.append(found)
    return _judged(np.array(repeats), test)


def _by_edge(
    graph: MemoryGraph, dreams: DreamConfig, test: DreamEvidenceConfig, seed: int, check_stop: Callable[[], None]
) -> Iterator[tuple[float, float]]:
    """AUC and control of each repeat, edges held out."""
    control, edges = graph, graph.edge_count
    for repeat in range(test.repeats):
        check_stop()
        tries = test.swaps * edges if repeat == 0 else min(test.swaps * edges, test.max_swaps)
        control = _rewired(control, tries, _number(seed, repeat, _REWIRING))
        yield _auc(graph, dreams, test, seed, repeat), _auc(control, dreams, test, seed, repeat)


@dataclass(frozen=True, slots=True, eq=False)
class _Together:
    """What events say of a graph.

    Parameters
    ----------
    graph
        What was observed.
    known
        The same with all pairs of events: some may have faded.
    count
        Events with at least one pair.
    pairs
        Keys (p,) of their different pairs, sorted.
    event, pair
        (q,) of every pair in every event: its event, and its place in `pairs`.
    edge
        (m,) place in `pairs` of each of the graph's edges; -1 where no event has it.
    """

    graph: MemoryGraph
    known: MemoryGraph
    count: int
    pairs: Rows
    event: Rows
    pair: Rows
    edge: Rows

    @classmethod
    def of(cls, events: Sequence[ArrayLike], graph: MemoryGraph) -> _Together:
        n, found = len(graph), []
        for number, given in enumerate(events):
            nodes = _as_event(number, given, n)
            first, second = np.triu_indices(len(nodes), 1)
            if len(first):
                found.append(_keys(nodes[first], nodes[second], n))
        keys = np.concatenate([np.empty(0, dtype=np.int64), *found])
        pairs, pair = np.unique(keys, return_inverse=True)
        source, target, weight = graph.edges()
        own = _keys(source, target, n)
        place = np.searchsorted(pairs, own)
        edge = np.where(np.append(pairs, -1)[place] == own, place, -1)
        new = np.setdiff1d(pairs, own, assume_unique=True)
        known = MemoryGraph.from_edges(
            n,
            np.concatenate([source, new // n if n else new]),
            np.concatenate([target, new % n if n else new]),
            np.concatenate([weight, np.ones(len(new), dtype=np.float32)]),
        )
        event = np.repeat(np.arange(len(found)), [len(own) for own in found])
        return cls(graph, known, len(found), pairs, event, pair.astype(np.int64), edge)

    def without(self, is_out: Flags) -> tuple[MemoryGraph, Rows]:
        """The graph that events would have left without some of them, and keys of the pairs that only those have."""
        rest = np.bincount(self.pair[~is_out[self.event]], minlength=len(self.pairs))
        share = np.append(rest / np.bincount(self.pair, minlength=len(self.pairs)), 1.0)[self.edge]
        source, target, weight = self.graph.edges()
        # Every event takes the same share of what a weight lacks to 1.
        left = np.where(share == 1, weight, 1 - (1 - weight.astype(np.float64)) ** share)
        return MemoryGraph.from_edges(len(self.graph), source, target, left), self.pairs[rest == 0]


def _as_event(number: int, given: ArrayLike, n: int) -> Rows:
    """The different nodes of an event."""
    try:
        nodes = np.asarray(given)
    except ValueError as cause:
        raise InvalidInput(f"event {number} is no sequence of nodes ({cause})") from cause
    if nodes.ndim != 1 or (nodes.size and nodes.dtype.kind not in "iu"):
        raise InvalidInput(f"event {number} is {nodes.dtype} {nodes.shape}, expected a sequence of whole numbers")
    different = np.unique(nodes.astype(np.int64))
    if len(different) and not (different[0] >= 0 and different[-1] < n):
        raise MemoryGraphError(
            f"event {number} has nodes {different[0]} to {different[-1]}, expected nodes from 0 below {n}"
        )
    return different


def _by_event(
    together: _Together, dreams: DreamConfig, test: DreamEvidenceConfig, seed: int, repeat: int
) -> tuple[float, float] | int:
    """AUC and control of one repeat, events held out; how many pairs these alone have, where those are too few."""
    random = np.random.default_rng([seed, repeat, _CHOICE])
    is_out = np.zeros(together.count, dtype=bool)
    is_out[random.permutation(together.count)[: max(round(test.held_out * together.count), 1)]] = True
    seen, only = together.without(is_out)
    if len(only) < test.min_pairs:
        return len(only)
    tested, n = random.permutation(only)[: test.max_pairs], len(seen)
    without = _pairs_without_edge(together.known, test.max_pairs, random)
    source = np.concatenate([(tested // n).astype(np.int32), without[0]])
    target = np.concatenate([(tested % n).astype(np.int32), without[1]])
    control = _rewired(seen, test.swaps * seen.edge_count, _number(seed, repeat, _REWIRING))
    walked = _number(seed, repeat, _CHOICE)
    scores = [_scores(graph, source, target, dreams, test, walked) for graph in (seen, control)]
    auc, chance = (area_under_curve(score[: len(tested)], score[len(tested) :]) for score in scores)
    return auc, chance


def _rewired(graph: MemoryGraph, tries: int, seed: int) -> MemoryGraph:
    """One with the same degrees; every edge keeps its weight, wherever it leads now."""
    source, target = kernels.rewired(graph.indptr, graph.indices, tries, seed)
    return MemoryGraph.from_edges(len(graph), source, target, graph.edges()[2])


def _judged(repeats: Doubles, test: DreamEvidenceConfig) -> DreamEvidence:
    auc, control = (float(mean) for mean in repeats.mean(axis=0))
    difference = Moments.of((repeats[:, 0] - repeats[:, 1]).tolist())
    error = math.sqrt(difference.variance * (1 / len(repeats) + test.held_out / (1 - test.held_out)))
    if error > 0:
        t = difference.mean / error
        half = two_sided(t, len(repeats) - 1) / 2
        p = half if t > 0 else 1 - half
    else:
        p = 0.0 if difference.mean > 0 else 1.0
    confirmed = difference.mean >= test.margin and p <= test.alpha
    against = "" if confirmed else f", expected {test.margin} and p at most {test.alpha}"
    return DreamEvidence(
        confirmed=confirmed,
        reason=(
            f"held-out edges are found with an AUC of {auc:.3f}, {control:.3f} on rewired graphs: "
            f"{difference.mean:+.3f}, p {p:.2g}{against}"
        ),
        auc=auc,
        control=control,
        p=p,
        repeats=tuple((float(a), float(b)) for a, b in repeats),
    )


def _auc(graph: MemoryGraph, dreams: DreamConfig, test: DreamEvidenceConfig, seed: int, repeat: int) -> float:
    """Of one repeat on one graph."""
    random = np.random.default_rng([seed, repeat, _CHOICE])
    source, target, weight = graph.edges()
    order = random.permutation(len(source))
    held = max(round(test.held_out * len(source)), 1)
    out, rest = order[:held], np.sort(order[held:])
    seen = MemoryGraph.from_edges(len(graph), source[rest], target[rest], weight[rest])
    tested = out[: test.max_pairs]
    without = _pairs_without_edge(graph, test.max_pairs, random)
    pairs = np.concatenate([source[tested], without[0]]), np.concatenate([target[tested], without[1]])
    score = _scores(seen, *pairs, dreams, test, _number(seed, repeat, _CHOICE))
    return area_under_curve(score[: len(tested)], score[len(tested) :])


def _scores(
    graph: MemoryGraph, source: Nodes, target: Nodes, dreams: DreamConfig, test: DreamEvidenceConfig, seed: int
) -> Doubles:
    """Co-occurrence (m,) of pairs in as many walks from each of their nodes."""
    begin = np.repeat(np.unique(np.concatenate([source, target])), test.walks)
    walks, kinds = dream_walks(graph, begin, dreams, seed=seed)
    met = co_occurrences(walks, kinds, dreams.window, graph.degrees)
    n = len(graph)
    keys, own = _keys(met.source, met.target, n), _keys(source, target, n)
    place = np.searchsorted(keys, own)
    found = np.append(keys, -1)[place] == own
    return np.where(found, np.append(met.score, 0.0)[place], 0.0)


def _pairs_without_edge(graph: MemoryGraph, most: int, random: np.random.Generator) -> tuple[Nodes, Nodes]:
    """Different pairs drawn uniformly of those that have no edge; all of them where there are not many more."""
    n = len(graph)
    free = n * (n - 1) // 2 - graph.edge_count
    if free <= 2 * most:
        first, second = np.triu_indices(n, 1)
        keys = np.setdiff1d(_keys(first, second, n), _keys(*graph.edges()[:2], n), assume_unique=True)
        keys = random.permutation(keys)[:most]
    else:
        keys = np.empty(0, dtype=np.int64)
        while len(keys) < most:
            a, b = (random.integers(0, n, 2 * most).astype(np.int32) for _ in range(2))
            new = (a != b) & (graph.weights_between(a, b) == 0)
            keys = _first_of_each(np.concatenate([keys, _keys(a[new], b[new], n)]))
        keys = keys[:most]
    return (keys // n).astype(np.int32), (keys % n).astype(np.int32)


def _first_of_each(keys: Rows) -> Rows:
    """Different keys in the order in which they came: sorted, the first ones would be of low nodes."""
    return keys[np.sort(np.unique(keys, return_index=True)[1])]


def _keys(a: Rows | Nodes, b: Rows | Nodes, n: int) -> Rows:
    keys: Rows = np.minimum(a, b).astype(np.int64) * n + np.maximum(a, b)
    return keys


def _number(seed: int, repeat: int, purpose: int) -> int:
    return int(np.random.SeedSequence([seed, repeat, purpose]).generate_state(1, np.uint64)[0])


def area_under_curve(positive: Doubles | Floats, negative: Doubles | Floats) -> float:
    """How often a positive score is above a negative one, ties half (Mann & Whitney 1947).

    Examples
    --------
    >>> area_under_curve(np.array([1.0, 2.0]), np.array([0.0, 1.0]))
    0.875
    """
    ordered = np.sort(negative)
    below = np.searchsorted(ordered, positive, side="left") + np.searchsorted(ordered, positive, side="right")
    return float(below.mean() / 2 / len(ordered))
