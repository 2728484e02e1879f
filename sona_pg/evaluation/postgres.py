"""The system under evaluation, with everything that it records and learns in Postgres."""

from __future__ import annotations

import uuid
from collections.abc import Mapping

import numpy as np
from psycopg import sql

from sona_pg.engine import SonaEngine
from sona_pg.evaluation.collection import Collection
from sona_pg.evaluation.feedback import SPACE
from sona_pg.evaluation.metrics import FloatMatrix, Ranking, rank_documents
from sona_pg.evaluation.report import ADAPTED
from sona_pg.store import spaces
from sona_pg.store.connection import connect, use_vector_schema
from sona_pg.store.database import open_database
from sona_pg.types import QueryTrajectory

FLUSH_EVERY = 100
"""Events in one learning transaction."""


class PostgresSystem:
    """A fresh space with the collection's documents as its items table; both go when it is closed.

    Answers come from the engine's local copy, as in an application. Held-out queries are adapted by ``sona.adapt`` in
    SQL, from what was committed.

    Parameters
    ----------
    collection
        Where the documents come from.
    url
        Database; the embedded server without.
    """

    served = ADAPTED

    def __init__(self, collection: Collection, url: str | None = None) -> None:
        self._docs = collection.unit_docs
        self._name = f"evaluate-{uuid.uuid4().hex}"
        self._table = sql.Identifier("public", f"sona_{self._name.replace('-', '_')}")
        database = open_database(url)
        self._connection = connect(database.url)
        use_vector_schema(self._connection)
        dim = collection.docs.shape[1]
        self._connection.execute(
            sql.SQL("CREATE TABLE {} (id text PRIMARY KEY, embedding vector NOT NULL)").format(self._table)
        )
        with self._connection.cursor().copy(sql.SQL("COPY {} FROM STDIN (FORMAT BINARY)").format(self._table)) as copy:
            copy.set_types(["text", "vector"])
            for doc_id, embedding in zip(collection.doc_ids, collection.docs, strict=True):
                copy.write_row((doc_id, embedding))
        self._engine = SonaEngine.connect(database.url, space=self._name, dim=dim, space_config=SPACE, background=False)
        self._engine.set_items(self._table.as_string(), "id", "embedding")
        self._observed = 0

    def answer(self, queries: FloatMatrix) -> Mapping[str, Ranking]:
        """Documents by cosine to the adapted queries: a single one by the local copy, several by SQL, after a flush."""
        return {ADAPTED: rank_documents(self._adapt(queries), self._docs)}

    def _adapt(self, queries: FloatMatrix) -> FloatMatrix:
        if len(queries) == 1:
            return self._engine.adapt(queries)
        self._engine.flush()
        adapted = np.empty_like(queries)
        for row, query in enumerate(queries):
            found = self._connection.execute("SELECT sona.adapt(%s, %s)", (self._name, query), binary=True).fetchone()
            assert found is not None
            adapted[row] = found[0]
        return adapted

    def observe(self, trajectory: QueryTrajectory) -> None:
        """Record and learn; durable with the next flush."""
        self._engine.record(trajectory)
        self._engine.learn()
        self._observed += 1
        if self._observed % FLUSH_EVERY == 0:
            self._engine.flush()

    def close(self) -> None:
        """Flush, and remove the space and the table."""
        self._engine.close()
        spaces.drop_space(self._connection, self._name)
        self._connection.execute(sql.SQL("DROP TABLE {}").format(self._table))
        self._connection.close()
