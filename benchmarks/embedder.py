"""``python -m benchmarks.embedder [COLLECTION…]``: how much of what was learned survives a change of the embedder?

A space in Postgres answers and learns the stream of a split, as ``sona evaluate`` does. Then it moves to another model,
made of the first by arithmetic, and what `recall` gives for the held-out queries is measured: nDCG@10, in points. A
fresh space has learned nothing, and answers by the frozen embedding. Then it goes back, and moves to the next model.
With ``--trajectories N``: how long a change takes, and how long nobody can learn, in a space of so many, 64 dimensions.
"""

from __future__ import annotations

import argparse
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from psycopg import sql

from benchmarks.forget import Traffic
from benchmarks.harness import aligned
from sona_pg import RecordedQuery, SonaEngine, abort_embedder, change_embedder
from sona_pg.evaluation.collection import Collection, load_collection
from sona_pg.evaluation.feedback import SPACE, Feedback
from sona_pg.evaluation.metrics import rank_documents, score_ranking
from sona_pg.evaluation.protocol import Stream
from sona_pg.evaluation.splits import SplitKind, make_split
from sona_pg.store import spaces
from sona_pg.store.connection import Connection, connect
from sona_pg.store.database import open_database

FLUSH_EVERY = 10
Matrix = NDArray[np.float32]


@dataclass(frozen=True)
class Model:
    """A model: its name, documents and queries (n, dim), and those of which only the old embedding is known."""

    name: str
    docs: Matrix
    queries: Matrix
    recorded: Matrix


def models(collection: Collection) -> list[Model]:
    """Other models of the same texts."""
    random = np.random.default_rng(0)
    docs, queries = _unit(collection.docs), _unit(collection.queries)
    dim = docs.shape[1]
    turn = np.linalg.qr(random.standard_normal((dim + 128, dim + 128)))[0][:dim].astype(np.float32)
    axes = np.linalg.svd(docs, full_matrices=False)[2][: dim // 4].T
    # Every text is turned by as much again as it is long, into a direction of its own: cosines to before of .71.
    doc_noise, query_noise = (
        _unit(random.standard_normal((len(rows), dim + 128)).astype(np.float32)) for rows in (docs, queries)
    )
    noisy_docs, noisy_queries = _unit(docs @ turn + doc_noise), _unit(queries @ turn + query_noise)
    # What maps the old embeddings of the documents to the new ones, for queries whose texts are gone.
    ridge = np.linalg.solve(docs.T @ docs + np.eye(dim, dtype=np.float32), docs.T @ noisy_docs)
    made = [
        ("rotated", docs @ turn, queries @ turn, None),
        ("a quarter of the axes", _unit(docs @ axes), _unit(queries @ axes), None),
        ("signs alone", _unit(np.sign(docs @ turn)), _unit(np.sign(queries @ turn)), None),
        ("noisy", noisy_docs, noisy_queries, None),
        ("noisy, recorded queries mapped", noisy_docs, noisy_queries, _unit(queries @ ridge)),
    ]
    return [Model(name, d, q, q if recorded is None else recorded) for name, d, q, recorded in made]


def _unit(rows: Matrix) -> Matrix:
    unit: Matrix = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return unit


class Moves:
    """A space that learns the stream of a split, and is moved to one model after the other."""

    def __init__(self, collection: Collection, url: str, events: int | None) -> None:
        self._collection, self._url = collection, url
        split = make_split(collection, SplitKind.RANDOM, 0)
        self._held_out = list(split.held_out)
        self._stream = Stream(collection, split, Feedback.FULL)
        self._events = len(split.stream) if events is None else min(events, len(split.stream))
        self._asked = list(split.stream)
        self._name = f"benchmark-{uuid.uuid4().hex}"
        self._table = sql.Identifier("public", self._name)
        self._row = {item: row for row, item in enumerate(collection.doc_ids)}

    def run(self) -> list[tuple[str, ...]]:
        """Rows of the table."""
        with connect(self._url) as connection:
            connection.execute(sql.SQL("CREATE TABLE {} (id text PRIMARY KEY)").format(self._table))
            connection.cursor().executemany(
                sql.SQL("INSERT INTO {} VALUES (%s)").format(self._table), [(id,) for id in self._collection.doc_ids]
            )
            try:
                return list(self._rows(connection))
            finally:
                spaces.drop_space(connection, self._name)
                connection.execute(sql.SQL("DROP TABLE {}").format(self._table))

    def _rows(self, connection: Connection) -> list[tuple[str, ...]]:
        collection = self._collection
        self._add_column(connection, "embedding", collection.docs)
        dim = collection.docs.shape[1]
        with SonaEngine.connect(
            self._url, space=self._name, dim=dim, embedder="first", space_config=SPACE, background=False
        ) as engine:
            engine.set_items(self._table.as_string(), "id", "embedding")
            recorded: dict[uuid.UUID, int] = {}
            for event in range(self._events):
                found = engine.recall(self._stream.query(event))
                shown = np.array([self._row[item.item_id] for item in found.items])
                trajectory = self._stream.trajectory(event, shown)
                recorded[trajectory.id] = self._asked[event]
                engine.record(trajectory)
                if event % FLUSH_EVERY == FLUSH_EVERY - 1:
                    engine.flush()
            engine.flush()
            rows = [self._measured("the first", engine, collection.docs, collection.queries)]
        for number, model in enumerate(models(collection)):

            def embed(queries: Sequence[RecordedQuery], model: Model = model) -> list[Matrix]:
                return [model.recorded[recorded[query.trajectory_id]] for query in queries]

            column = f"model{number}"
            self._add_column(connection, column, model.docs)
            report = change_embedder(
                self._url, self._name, embed, embedder=model.name, dim=model.docs.shape[1], embedding_column=column
            )
            with SonaEngine.connect(self._url, space=self._name, embedder=model.name, background=False) as engine:
                row = self._measured(model.name, engine, model.docs, model.queries)
            rows.append((*row[:-2], f"{report.seconds:.0f}", f"{report.locked_seconds:.2f}"))
            abort_embedder(self._url, self._name)
        return rows

    def _add_column(self, connection: Connection, name: str, docs: Matrix) -> None:
        column = sql.Identifier(name)
        connection.execute(sql.SQL("ALTER TABLE {} ADD COLUMN {} vector").format(self._table, column))
        connection.cursor().executemany(
            sql.SQL("UPDATE {} SET {} = %s WHERE id = %s").format(self._table, column),
            [(np.ascontiguousarray(vector), id) for id, vector in zip(self._collection.doc_ids, docs, strict=True)],
        )

    def _measured(self, name: str, engine: SonaEngine, docs: Matrix, queries: Matrix) -> tuple[str, ...]:
        asked = queries[self._held_out]
        relevant = [self._collection.relevant[query] for query in self._held_out]
        found = engine.recall_batch(asked)
        learned = np.array([[self._row[item.item_id] for item in answer.items] for answer in found])
        adapted = rank_documents(engine.instant.serving.adapt(asked), _unit(docs))
        frozen, *rest = (
            100 * float(np.mean(score_ranking(ranking, relevant).ndcg10))
            for ranking in (rank_documents(asked, _unit(docs)), adapted, learned)
        )
        strategy = found[0].answer.strategy
        gains = (f"{value - frozen:+.1f}" for value in rest)
        return self._collection.name, name, f"{frozen:.1f}", *gains, strategy, "", ""


def scale(url: str, trajectories: int) -> str:
    """What a change takes in a space of so many trajectories, without the time of a model."""
    traffic, name = Traffic(64, trajectories), f"benchmark-{uuid.uuid4().hex}"
    table = sql.Identifier("public", name)
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((96, 96)))[0][:64].astype(np.float32)
    with connect(url) as connection:
        connection.execute(sql.SQL("CREATE TABLE {} (id text PRIMARY KEY, a vector, b vector)").format(table))
        connection.cursor().executemany(
            sql.SQL("INSERT INTO {} VALUES (%s, %s, %s)").format(table),
            [(str(item), vector, vector @ turn) for item, vector in enumerate(traffic.items)],
        )
        try:
            with SonaEngine.connect(url, space=name, dim=64, background=False) as engine:
                engine.set_items(table.as_string(), "id", "a")
                traffic.record(engine)

            def embed(queries: Sequence[RecordedQuery]) -> list[Matrix]:
                return [query.query @ turn for query in queries]

            ready = change_embedder(url, name, embed, embedder="b", dim=96, embedding_column="b", switch=False)
            done = change_embedder(url, name, embed, embedder="b", dim=96, embedding_column="b")
            began = time.perf_counter()
            abort_embedder(url, name)
            back = time.perf_counter() - began
        finally:
            spaces.drop_space(connection, name)
            connection.execute(sql.SQL("DROP TABLE {}").format(table))
    return (
        f"{ready.embedded} trajectories, {ready.relearned} ledger entries: made ready in {ready.seconds:.0f} s, "
        f"switched in {done.seconds:.2f} s, of which locked {done.locked_seconds:.2f} s; back in {back:.2f} s"
    )


HEAD = ("collection", "model", "frozen", "adapted", "recall", "by", "seconds", "locked s")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.embedder", description=__doc__)
    parser.add_argument("collections", nargs="*", type=Path, metavar="COLLECTION")
    parser.add_argument("--url", help="database; the embedded server without")
    parser.add_argument("--events", type=int, help="only so many of the stream")
    parser.add_argument("--trajectories", type=int, help="how long it takes in a space of so many")
    options = parser.parse_args()
    url = open_database(options.url).url
    if options.trajectories:
        print(scale(url, options.trajectories))
    if not options.collections:
        return
    rows: list[tuple[str, ...]] = [HEAD]
    for path in options.collections:
        rows += Moves(load_collection(path), url, options.events).run()
    print(aligned(rows))


if __name__ == "__main__":
    main()
