"""``python -m benchmarks.streams [--streams N] [--seed S] [--json] [DIR ...]``: what is served in bad times.

Closed loops: what is served is what feedback is on, and the loss is by what is truly relevant, whatever was fed back.

noise     nothing can be learned: frozen must answer at the end, and must not have cost anything on the way
to noise  outcomes are true for the first half, and noise from then on: frozen must answer at the end
change    the best strategy is another one in the second half: it must answer soon
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.closed_loop import CHOICES, HALF, NOISE, Lived, Noise, live_change, live_noise, live_to_noise
from benchmarks.grounds import ChangingGround, LoggedGround, Random, SyntheticGround, log_uniform
from benchmarks.harness import aligned
from sona_pg.evaluation.collection import Collection, load_collection
from sona_pg.learning.item_pool import ItemPool
from sona_pg.learning.strategies import Strategy

EVENTS = (30, 1000)
"""Of a stream of noise: the fewest and the most, drawn log-uniformly."""
CHANGE = 0.1
"""nDCG@10 by which another strategy is better."""


@dataclass(frozen=True, slots=True)
class Noisy:
    """Streams of one kind of noise. Losses are nDCG@10 points over the events of a stream.

    Parameters
    ----------
    kind
        What was said to have helped.
    streams, at_frozen, ever_left
        How many; of them with frozen everywhere at the end; with anything else served at any time.
    loss, worst
        Of a stream, in the mean and the largest; below 0 where answers got better.
    """

    kind: str
    streams: int
    at_frozen: int
    ever_left: int
    loss: float
    worst: float


@dataclass(frozen=True, slots=True)
class Followed:
    """Streams in which something changes half-way.

    Parameters
    ----------
    kind
        What changes.
    streams, in_time
        How many in which the strategy that should give way was in force before; of them, that were followed in time.
    left_out
        How many in which it was not.
    median, p90
        Events until it was followed; None where so many never were.
    proven_in
        The median, counted from where the better strategy was better by `CHANGE` for 100 events: without what it takes
        to learn to be; from the change where it never was so much. None where so many were not followed.
    gain_before, gain_after
        nDCG@10 points of the fusion over frozen in the last 100 events before, and from the 200th to the 300th after.
    loss
        nDCG@10 points of what was served against frozen in the 300 events after it.
    """

    kind: str
    streams: int
    in_time: int
    left_out: int
    median: float | None
    p90: float | None
    proven_in: float | None
    gain_before: float
    gain_after: float
    loss: float


def noisy(kind: str, lives: Sequence[Lived]) -> Noisy:
    """What came of streams of noise."""
    return Noisy(
        kind,
        len(lives),
        sum(life.ended is Strategy.FROZEN for life in lives),
        sum(life.has_left for life in lives),
        round(float(np.mean([life.loss for life in lives])), 3),
        round(max(life.loss for life in lives), 3),
    )


def followed(kind: str, lives: Sequence[Lived], until: Callable[[Lived], int | None]) -> Followed:
    """What came of streams with a change; `until` gives the events from there to what should follow."""
    after = {place: until(life) for place, life in enumerate(lives)}
    known = [lives[place] for place, events in after.items() if events != 0]
    times = [math.inf if events is None else events for events in after.values() if events != 0]
    spread = np.quantile(times, (0.5, 0.9), method="inverted_cdf") if times else np.full(2, math.inf)
    median, p90 = (float(events) if math.isfinite(events) else None for events in spread)

    def mean(values: Sequence[Sequence[float]]) -> float:
        return round(float(np.mean(values)), 1) if values else 0.0

    return Followed(
        kind,
        len(known),
        sum(events <= HALF for events in times),
        len(lives) - len(known),
        median,
        p90,
        _median_since(known, times),
        mean([life.gains[HALF - 100 : HALF] for life in known]),
        mean([life.gains[2 * HALF - 100 : 2 * HALF] for life in known]),
        mean([life.losses[HALF : 2 * HALF] for life in known]),
    )


def _median_since(lives: Sequence[Lived], times: Sequence[float]) -> float | None:
    """Median events from the first of 100 in which the fusion is as good, or as bad, as the change makes it."""
    since = []
    for life, events in zip(lives, times, strict=True):
        after = np.convolve(life.gains[HALF:], np.full(100, 0.01), mode="valid")
        is_worse = life.in_force[HALF] is Strategy.FUSION
        since.append(events - int(np.argmax((-after if is_worse else after) >= 100 * CHANGE)))
    median = float(np.quantile(since, 0.5, method="inverted_cdf")) if since else math.inf
    return median if math.isfinite(median) else None


def run_noise(kinds: Mapping[str, Noise], streams: int, seed: int) -> list[Noisy]:
    """Some streams of each kind on synthetic ground."""
    found = []
    for kind, noise in kinds.items():
        lives = []
        for random in _randoms(seed, kind, streams):
            ground = SyntheticGround(random)
            lives.append(live_noise(ground, noise, round(log_uniform(random, *EVENTS)), random))
        found.append(noisy(kind, lives))
    return found


def run_logged(collection: Collection, streams: int, seed: int) -> Noisy:
    """Some streams of logged queries, each with the outcome of another."""
    pool, lives = ItemPool(collection.doc_ids, collection.docs), []
    for random in _randoms(seed, collection.name, streams):
        ground = LoggedGround(collection, pool, random)
        events = min(round(log_uniform(random, *EVENTS)), len(ground))
        lives.append(live_noise(ground, NOISE["outcomes of other questions"], events, random))
    return noisy(f"{collection.name}, shuffled", lives)


def run_to_noise(streams: int, seed: int) -> list[Followed]:
    """Some streams of each kind that are true at first."""
    found = []
    for kind, noise in NOISE.items():
        randoms = _randoms(seed, f"to {kind}", streams)
        lives = [live_to_noise(SyntheticGround(random), noise, random) for random in randoms]
        found.append(followed(f"to {kind}", lives, _until_frozen))
    return found


def run_change(streams: int, seed: int) -> list[Followed]:
    """Some streams of each way in which the best strategy changes."""
    found = []
    for what, to_others in (("answers", False), ("questions", True)):
        for way, to_moved, until in (("to fusion", True, until_fusion), ("from fusion", False, until_left)):
            randoms = _randoms(seed, f"{what} {way}", streams)
            lives = [
                live_change(ChangingGround(random, to_moved=to_moved, to_others=to_others), random)
                for random in randoms
            ]
            found.append(followed(f"{way}, the {what} change", lives, until))
    return found


def _until_frozen(life: Lived) -> int | None:
    """Until frozen answers everywhere and for good."""
    left = [event for event, strategy in enumerate(life.served) if strategy is not Strategy.FROZEN]
    if life.served[HALF] is Strategy.FROZEN:
        return 0
    return left[-1] + 1 - HALF if life.ended is Strategy.FROZEN else None


def until_fusion(life: Lived) -> int | None:
    """Events from the change to the fusion in force."""
    return next((n for n, strategy in enumerate(life.in_force[HALF:]) if strategy is Strategy.FUSION), None)


def until_left(life: Lived) -> int | None:
    """Events from the change to another strategy than the fusion in force."""
    return next((n for n, strategy in enumerate(life.in_force[HALF:]) if strategy is not Strategy.FUSION), None)


def _randoms(seed: int, kind: str, streams: int) -> list[Random]:
    """One for each stream; that of a stream is the same however many there are."""
    return [np.random.default_rng([seed, zlib.crc32(kind.encode()), stream]) for stream in range(streams)]


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.streams", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dirs", nargs="*", type=Path, metavar="DIR", help="logged outcomes, as of `sona evaluate`")
    parser.add_argument("--streams", type=int, default=100, help="of noise in all; a fifth of them of everything else")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    options = parser.parse_args()
    if options.streams < len(NOISE):
        parser.error(f"--streams is {options.streams}, expected {len(NOISE)} or more: one of each kind of noise")
    each, seed = options.streams // len(NOISE), options.seed
    collections = [load_collection(path) for path in options.dirs]
    noise = run_noise(NOISE, each, seed)
    choices = run_noise(CHOICES, each, seed)
    logged = [run_logged(collection, each, seed) for collection in collections]
    to_noise = run_to_noise(each, seed)
    change = run_change(each, seed)
    if options.json:
        parts: dict[str, Sequence[Noisy | Followed]] = {
            "noise": noise,
            "choices": choices,
            "logged": logged,
            "to_noise": to_noise,
            "change": change,
        }
        document = {part: [asdict(row) for row in rows] for part, rows in parts.items()}
        print(json.dumps({"streams": options.streams, "seed": seed, **document}, indent=2))
        return 0
    print(
        _noise_table([*noise, _all(noise)]), "Known to be weak, not counted above:", _noise_table(choices), sep="\n\n"
    )
    if logged:
        print("", _noise_table(logged), sep="\n")
    print("", _change_table(to_noise), "", _change_table(change), sep="\n")
    return 0


def _all(rows: Sequence[Noisy]) -> Noisy:
    streams = sum(row.streams for row in rows)
    return Noisy(
        "all",
        streams,
        sum(row.at_frozen for row in rows),
        sum(row.ever_left for row in rows),
        round(sum(row.loss * row.streams for row in rows) / streams, 3),
        max(row.worst for row in rows),
    )


def _noise_table(rows: Sequence[Noisy]) -> str:
    head = ("noise", "streams", "at frozen", "ever left", "loss, points", "worst")
    return aligned(
        [head, *((r.kind, r.streams, r.at_frozen, r.ever_left, f"{r.loss:.3f}", f"{r.worst:.3f}") for r in rows)]
    )


def _change_table(rows: Sequence[Followed]) -> str:
    head = (
        "change",
        "streams",
        "in 300",
        "left out",
        "median",
        "p90",
        "since better",
        "fusion before",
        "fusion after",
        "loss, points",
    )
    cells = [
        (
            *(r.kind, r.streams, r.in_time, r.left_out),
            *("never" if events is None else f"{events:.0f}" for events in (r.median, r.p90, r.proven_in)),
            *(f"{r.gain_before:+.1f}", f"{r.gain_after:+.1f}", f"{r.loss:.1f}"),
        )
        for r in rows
    ]
    return aligned([head, *cells])


if __name__ == "__main__":
    sys.exit(main())
