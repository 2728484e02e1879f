"""``python -m benchmarks.harm``: a harmful strategy is planted into live traffic; when does the control arm find out?

Every stream is a space of its own in Postgres, answered by `SonaEngine.recall` with the default control arm. Its
adapter is fixed: it moves queries along one direction, by as much as changes nDCG@10 by the points that are asked for.
Exits with 1 if a harmless stream was given up.
"""

from __future__ import annotations

import argparse
import logging
import sys
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import aligned
from benchmarks.postgres import benchmark_engine
from sona_pg.config import QueryAdapterConfig, SpaceConfig
from sona_pg.engine import SonaEngine
from sona_pg.evaluation.metrics import rank_documents, score_ranking
from sona_pg.store.connection import Connection, connect

DIM, ITEMS, HELPFUL, SHOWN = 64, 1000, 3, 10
Matrix = NDArray[np.float32]


class Traffic:
    """Questions that lie off their answers along one direction."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.items = _unit(self.random.standard_normal((ITEMS, DIM)))
        self.direction = _unit(self.random.standard_normal(DIM))

    def ask(self) -> tuple[Matrix, list[int]]:
        """A question, and the items that answer it."""
        topic = _unit(self.random.standard_normal(DIM))
        helpful = np.argsort(-(self.items @ topic))[:HELPFUL]
        noise = 0.5 * _unit(self.random.standard_normal(DIM))
        return _unit(topic + noise + 0.25 * self.direction), [int(item) for item in helpful]

    def map_of(self, points: float) -> Matrix:
        """The adapter (2, dim) that changes nDCG@10 by so many points, found on questions of its own."""
        asked = [self.ask() for _ in range(2000)]
        queries = np.stack([query for query, _ in asked])
        relevant = [dict.fromkeys(helpful, 1.0) for _, helpful in asked]
        frozen = score_ranking(rank_documents(queries, self.items), relevant).ndcg10.mean()
        low, high = (-1.0, 0.0) if points > 0 else (0.0, 4.0)
        for _ in range(20):
            middle = (low + high) / 2
            moved = queries + (queries @ self.direction)[:, np.newaxis] * (middle * self.direction)
            gained = 100 * (score_ranking(rank_documents(moved, self.items), relevant).ndcg10.mean() - frozen)
            low, high = (middle, high) if gained > points else (low, middle)
        return np.stack([self.direction, np.float32(0.0 if points == 0 else middle) * self.direction])


@dataclass(frozen=True, slots=True)
class Found:
    """How a stream went."""

    given_up: int | None
    controls: float
    lost: float
    spread: float


def stream(engine: SonaEngine, traffic: Traffic, points: float, answers: int) -> Found:
    """So many answers, or until what answers is given up."""
    engine.instant.learner.adapter.served.load(planted := traffic.map_of(points))
    engine.instant.learner.adapter.trained.load(planted)
    values: list[float] = []
    controls, given_up = 0, None
    for answer in range(1, answers + 1):
        query, helpful = traffic.ask()
        found = engine.recall(query)
        controls += found.answer.arm == "control"
        shown = [int(item.item_id) for item in found.items]
        engine.record(found, rewards={str(item): float(item in helpful) for item in {*shown, *helpful}})
        values.append(_ndcg(shown, helpful))
        if answer % 10 == 0:
            engine.flush()
            if engine.evidence.served.strategy == "frozen":
                given_up = answer
                break
    return Found(given_up, controls / len(values), 100 * float(np.mean(values)), 100 * float(np.std(values)))


def _ndcg(shown: list[int], helpful: list[int]) -> float:
    discounts = 1 / np.log2(np.arange(2, SHOWN + 2))
    return float(discounts[[item in helpful for item in shown]].sum() / discounts[:HELPFUL].sum())


def _unit(rows: NDArray[np.floating]) -> Matrix:
    return np.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True), dtype=np.float32)


def _run(url: str, connection: Connection, seed: int, points: float, answers: int) -> Found:
    traffic, name = Traffic(seed), f"harm {points:g} {seed}"
    connection.execute("DROP TABLE IF EXISTS harm_items")
    connection.execute(f"CREATE TABLE harm_items (id integer PRIMARY KEY, embedding vector({DIM}))")
    with connection.cursor().copy("COPY harm_items FROM STDIN (FORMAT BINARY)") as copy:
        copy.set_types(["int4", "vector"])
        for row in enumerate(traffic.items):
            copy.write_row(row)
    with SonaEngine.connect(
        url,
        space=name,
        dim=DIM,
        background=False,
        space_config=SpaceConfig(strategy="adapted"),
        adapter=QueryAdapterConfig(rank=1, learning_rate=0.0),
    ) as engine:
        engine.set_items("harm_items", "id", "embedding")
        found = stream(engine, traffic, points, answers)
    connection.execute("SELECT sona.drop_space(%s)", (name,))
    return found


def main() -> int:
    """Streams of every kind, and a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.harm", description=__doc__.partition("\n")[0])
    parser.add_argument("--streams", type=int, default=20, help="of every kind")
    parser.add_argument("--answers", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    lines = [("points", "streams", "given up", "median", "worst", "share of controls", "sd of an answer")]
    wrongly = 0
    logging.getLogger("sona_pg").setLevel(logging.CRITICAL)  # it says whenever one is given up
    with benchmark_engine(DIM) as host, connect(host.url) as connection:
        for points in (-10.0, -5.0, 0.0, 5.0):
            runs = [
                _run(host.url, connection, options.seed + n, points, options.answers) for n in range(options.streams)
            ]
            ends = [run.given_up for run in runs if run.given_up is not None]
            wrongly += len(ends) * (points >= 0)
            lines.append(
                (
                    f"{points:+g}",
                    str(len(runs)),
                    str(len(ends)),
                    f"{np.median(ends):.0f}" if ends else "–",
                    str(max(ends)) if ends else "–",
                    f"{np.mean([run.controls for run in runs]):.3f}",
                    f"{np.mean([run.spread for run in runs]):.0f}",
                )
            )
            print(aligned(lines[-1:] if len(lines) > 2 else lines), flush=True)
    return int(wrongly > 0)


if __name__ == "__main__":
    sys.exit(main())
