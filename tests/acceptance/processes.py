"""Many processes on one space: ``python -m tests.acceptance.processes DIRECTORY...``

The stream of every split is dealt to 16 processes in turn; each answers from its own copy, learns its own events at
once and flushes every 10. What the space has learned then is measured on the held-out queries, beside one process that
was given the whole stream. Exits with 1 if an outcome is not in the ledger exactly once, or if the many gain less than
the one by more than TOLERANCE_POINTS.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import time
from dataclasses import replace
from multiprocessing.synchronize import Barrier
from pathlib import Path
from statistics import mean
from typing import NamedTuple
from uuid import uuid4

import numpy as np
from psycopg import sql

from sona_pg import SonaEngine
from sona_pg.evaluation.collection import Collection, load_collection
from sona_pg.evaluation.feedback import SPACE, Feedback
from sona_pg.evaluation.metrics import rank_documents, score_ranking
from sona_pg.evaluation.protocol import Stream, trajectory_id
from sona_pg.evaluation.splits import Split, SplitKind, make_split
from sona_pg.store.connection import Connection, connect, use_vector_schema
from sona_pg.store.migrate import migrate
from sona_pg.store.server import EmbeddedServer

from .audit import inconsistencies

ADAPTED = replace(SPACE, strategy="adapted")
"""What is measured is what the adapter has learned, proven or not."""
PROCESSES = 16
FLUSH_EVERY = 10
TOLERANCE_POINTS = 0.7
"""nDCG@10 points by which the many may gain less than the one, over all splits of a collection."""


def take_part(directory: Path, index: int, url: str, space: str, place: int, processes: int, ready: Barrier) -> None:
    """What one of the processes does: every event whose turn it is, once all of them are there."""
    collection = load_collection(directory)
    split = make_split(collection, SplitKind.RANDOM, index)
    stream = Stream(collection, split, Feedback.FULL)
    with SonaEngine.connect(url, space=space, background=False) as engine:
        ready.wait()
        for turn, event in enumerate(range(place, len(split.stream), processes), start=1):
            asked = engine.adapt(stream.query(event)[np.newaxis])
            engine.record(stream.trajectory(event, rank_documents(asked, collection.unit_docs)[0]))
            engine.learn()
            if turn % FLUSH_EVERY == 0:
                engine.flush()


class Outcome(NamedTuple):
    """What processes have learned together of one split."""

    gain: float
    rebased: float
    seconds: float
    wrong: list[str]


def learn_together(directory: Path, collection: Collection, split: Split, url: str, processes: int) -> Outcome:
    """Let so many processes share the stream; gives the gain in points, and what is wrong with the ledger."""
    space, table = f"processes-{uuid4().hex}", sql.Identifier("public", f"docs_{uuid4().hex}")
    with connect(url) as connection:
        _store_documents(connection, table, collection)
        dim = collection.docs.shape[1]
        with SonaEngine.connect(url, space=space, dim=dim, space_config=ADAPTED, background=False) as engine:
            engine.set_items(table.as_string(), "id", "embedding")
            key = engine.space.space_id
        context = multiprocessing.get_context("spawn")
        ready = context.Barrier(processes + 1)
        workers = [
            context.Process(target=take_part, args=(directory, split.index, url, space, place, processes, ready))
            for place in range(processes)
        ]
        for worker in workers:
            worker.start()
        ready.wait(timeout=300)
        started = time.perf_counter()
        for worker in workers:
            worker.join()
        seconds = time.perf_counter() - started
        wrong = [f"a process ended with {worker.exitcode}" for worker in workers if worker.exitcode]
        wrong += inconsistencies(connection, key)
        learned = connection.execute(
            "SELECT trajectory_id, revision FROM sona.learning_event WHERE space_id = %s", (key,)
        ).fetchall()
        if sorted(learned) != sorted((trajectory_id(collection, split, n), 0) for n in range(len(split.stream))):
            wrong.append(f"{len(learned)} ledger entries are not the {len(split.stream)} outcomes, once each")
        row = connection.execute(
            "SELECT avg(replayed::integer)::float8 FROM sona.learning_cycle WHERE space_id = %s", (key,)
        ).fetchone()
        with SonaEngine.connect(url, space=space, background=False) as engine:
            gain = _gain(collection, split, engine)
    return Outcome(gain, row[0] if row else 0.0, seconds, wrong)


def _store_documents(connection: Connection, table: sql.Identifier, collection: Collection) -> None:
    use_vector_schema(connection)
    connection.execute(sql.SQL("CREATE TABLE {} (id text PRIMARY KEY, embedding vector NOT NULL)").format(table))
    with connection.cursor().copy(sql.SQL("COPY {} FROM STDIN (FORMAT BINARY)").format(table)) as copy:
        copy.set_types(["text", "vector"])
        for row in zip(collection.doc_ids, collection.docs, strict=True):
            copy.write_row(row)


def _gain(collection: Collection, split: Split, engine: SonaEngine) -> float:
    """nDCG@10 points over the frozen embedding."""
    held_out = collection.queries[list(split.held_out)]
    relevant = [collection.relevant[query] for query in split.held_out]
    frozen, adapted = (
        float(score_ranking(rank_documents(queries, collection.unit_docs), relevant).ndcg10.mean())
        for queries in (held_out, engine.adapt(held_out))
    )
    return 100 * (adapted - frozen)


def main() -> None:
    """Measure every directory, and judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directories", nargs="+", type=Path)
    parser.add_argument("--splits", type=int, default=2)
    parser.add_argument("--processes", type=int, default=PROCESSES)
    arguments = parser.parse_args()
    wrong: list[str] = []
    print(f"{'collection':16} {'split':>5} {'processes':>9} {'gain':>7} {'rebased':>8} {'seconds':>8}")
    with tempfile.TemporaryDirectory() as home:
        server = EmbeddedServer(Path(home))
        try:
            url = server.start()
            migrate(url)
            for directory in arguments.directories:
                collection = load_collection(directory)
                gains: dict[int, list[float]] = {}
                for index in range(arguments.splits):
                    split = make_split(collection, SplitKind.RANDOM, index)
                    for processes in (1, arguments.processes):
                        found = learn_together(directory, collection, split, url, processes)
                        gains.setdefault(processes, []).append(found.gain)
                        wrong += [f"{collection.name}, split {index}, {processes}: {w}" for w in found.wrong]
                        print(
                            f"{collection.name:16} {index:5} {processes:9} {found.gain:+7.2f} {found.rebased:8.0%}"
                            f" {found.seconds:8.1f}",
                            flush=True,
                        )
                one, many = mean(gains[1]), mean(gains[arguments.processes])
                print(f"{collection.name:16}  mean {many:+.2f} by {arguments.processes} against {one:+.2f} by one")
                if many < one - TOLERANCE_POINTS:
                    wrong.append(f"{collection.name}: {many:+.2f} is more than {TOLERANCE_POINTS} below {one:+.2f}")
        finally:
            server.remove()
    for violation in wrong:
        print(f"violation: {violation}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
