"""The base, hour by hour: what its cycles do to held-out queries, and what the gate says of good and of shuffled hours.

On the collections in ``SONA_DATA``; without, on the one that the package brings along, and on a synthetic one. Figures
stand among the parameters, in nDCG@10 points over the frozen embedding, means over splits: `online` is the query
adapter alone at the end of the stream, `base` the base alone, `worst` the smallest difference that a cycle made, and
`single` that in one split. Times are of a cycle, beside what the instant tier needs for the hour.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from benchmarks.bank_worlds import DATA
from benchmarks.harness import Row, row
from benchmarks.hours import Cycle, Hours, synthetic
from benchmarks.two_tasks import two_tasks
from sona_pg.config import GateConfig
from sona_pg.data import load_demo
from sona_pg.errors import InvalidInput
from sona_pg.evaluation.collection import Collection, load_collection
from sona_pg.evaluation.feedback import Feedback
from sona_pg.evaluation.protocol import Stream
from sona_pg.evaluation.splits import SplitKind

HOURS = (1, 5, 20)
GATED_HOURS = 5
WAYS: dict[str, dict[str, bool]] = {
    "held": {},
    "EWC++ alone": {"distils": False},
    "free": {"penalises": False, "distils": False},
}
"""How the first of two tasks is held while the second is learned."""


def run(*, quick: bool) -> list[Row]:
    """10 splits, and 40 hours of each kind; 2 and 10 with --quick."""
    rows: list[Row] = []
    splits = 2 if quick else 10
    for collection in collections():
        for kind in SplitKind:
            for hours in HOURS[: 2 if quick else 3]:
                rows += _quality(collection, kind, hours, splits)
        rows.append(_gate(collection, 2 if quick else 8))
    return [*rows, *_tasks(1 if quick else 3)]


def collections() -> Iterator[Collection]:
    """What is measured on."""
    found = sorted(path.parent for path in DATA.glob("*/qrels.tsv"))
    if not found:
        yield load_demo()
    for path in found:
        yield load_collection(path)
    yield synthetic(0)


def _quality(collection: Collection, kind: SplitKind, hours: int, splits: int) -> Iterator[Row]:
    runs: list[list[Cycle]] = []
    points: list[tuple[float, float]] = []
    try:
        for index in range(splits):
            stream = Hours(collection, kind, index)
            runs.append(stream.run(hours))
            points.append((_online(collection, kind, index) - stream.frozen, runs[-1][-1].after - stream.frozen))
    except InvalidInput:
        return  # every query is linked to every other one
    change = 100 * np.array([[cycle.after - cycle.before for cycle in run] for run in runs])
    online, base = 100 * np.array(points).mean(axis=0)
    yield row(
        "base cycle",
        {
            "collection": collection.name,
            "split": str(kind),
            "hours": hours,
            "online": round(float(online), 2),
            "base": round(float(base), 2),
            "worst": round(float(change.mean(axis=0).min()), 2),
            "single": round(float(change.min()), 2),
        },
        1e6 * np.array([cycle.seconds for run in runs for cycle in run]),
        "answering and learning the hour",
        1e6 * np.array([cycle.hour_seconds for run in runs for cycle in run]),
    )


def _tasks(splits: int) -> Iterator[Row]:
    """Two collections in sequence: how much of the first is lost where it is held, and where it is not."""
    found = [collection for collection in collections() if collection.docs.shape[1] == 384]
    for first, second in itertools.permutations([c for c in found if len(c.queries) >= 200], 2):
        for reservoir in (200, 50):
            kept = {
                way: [two_tasks(first, second, i, reservoir=reservoir, **how) for i in range(splits)]
                for way, how in WAYS.items()
            }
            lost = {way: np.array([each.first - each.first_kept for each in runs]) for way, runs in kept.items()}
            gained = {way: float(np.mean([each.second for each in runs])) for way, runs in kept.items()}
            yield row(
                "points of the first task that are lost",
                {
                    "first": first.name,
                    "second": second.name,
                    "reservoir": reservoir,
                    "of": round(float(np.mean([each.first for each in kept["held"]])), 2),
                    "lost, EWC++ alone": round(float(np.median(lost["EWC++ alone"])), 2),
                    **{f"second, {way}": round(points, 2) for way, points in gained.items()},
                },
                lost["held"],
                "free",
                lost["free"],
            )


def _online(collection: Collection, kind: SplitKind, index: int) -> float:
    """Of the query adapter without any base, at the end of the stream."""
    stream = Hours(collection, kind, index)
    stream.learn(range(len(stream.split.stream)))
    return stream.quality(stream.served)


def _gate(collection: Collection, splits: int) -> Row:
    """Every hour once as it is and once with its outcomes shuffled, from the same state."""
    published = refused = hours = 0
    harm: list[float] = []
    seconds: list[float] = []
    learning: list[float] = []
    for index in range(splits):
        stream = Hours(collection, SplitKind.RANDOM, index, gate=GateConfig())
        true, shuffled = stream.stream, Stream(collection, stream.split, Feedback.FULL, shuffle_outcomes=True)
        for events in np.array_split(np.arange(len(stream.split.stream)), GATED_HOURS):
            hours += 1
            state = stream.state()
            stream.stream = shuffled
            refused += not stream.cycle(events.tolist()).decision.publishes
            stream.restore(state)
            stream.stream = true
            cycle = stream.cycle(events.tolist())
            published += cycle.decision.publishes
            harm.append(100 * (cycle.after - cycle.before))
            seconds.append(cycle.seconds)
            learning.append(cycle.hour_seconds)
    return row(
        "gate",
        {
            "collection": collection.name,
            "hours": hours,
            "good published": published,
            "shuffled refused": refused,
            "single": round(min(harm), 2),
        },
        1e6 * np.array(seconds),
        "answering and learning the hour",
        1e6 * np.array(learning),
    )
