"""The system under evaluation, with everything that it records and learns in Postgres."""

from __future__ import annotations

import uuid
from collections.abc import Mapping

import numpy as np
from psycopg import sql

from sona_pg.config import LearningMode, SonaConfig
from sona_pg.engine import SonaEngine
from sona_pg.evaluation.collection import Collection
from sona_pg.evaluation.feedback import SPACE
from sona_pg.evaluation.metrics import FloatMatrix, Ranking
from sona_pg.evaluation.report import LEARNED
from sona_pg.store import spaces
from sona_pg.store.connection import use_vector_schema
from sona_pg.store.database import open_database
from sona_pg.types import QueryTrajectory

FLUSH_EVERY = 10
"""Events in one learning transaction; what they prove answers after it."""


class PostgresSystem:
    """A fresh space with the collection's documents as its items table; both go when it is closed.

    Everything is recorded, learned and proven in Postgres, and `recall` answers.

    Parameters
    ----------
    collection
        Where the documents come from.
    url
        Database; the embedded server without.
    config
        Settings of the engine; the defaults if None.
    """

    served = LEARNED

    def __init__(self, collection: Collection, url: str | None = None, config: SonaConfig | None = None) -> None:
        self._row = {item: row for row, item in enumerate(collection.doc_ids)}
        self._name = f"evaluate-{uuid.uuid4().hex}"
        self._table = sql.Identifier("public", f"sona_{self._name.replace('-', '_')}")
        config = SonaConfig() if config is None else config
        database = open_database(url, config=config.store_config)
        self._connection = database.connect()
        use_vector_schema(self._connection)
        dim = collection.docs.shape[1]
        self._connection.execute(
            sql.SQL("CREATE TABLE {} (id text PRIMARY KEY, embedding vector NOT NULL)").format(self._table)
        )
        with self._connection.cursor().copy(sql.SQL("COPY {} FROM STDIN (FORMAT BINARY)").format(self._table)) as copy:
            copy.set_types(["text", "vector"])
            for doc_id, embedding in zip(collection.doc_ids, collection.docs, strict=True):
                copy.write_row((doc_id, embedding))
        self._engine = SonaEngine(
            config.replace(
                database_url=database.url,
                space=self._name,
                embedding_dim=dim,
                space_config=SPACE,
                learning_loops=LearningMode.MANUAL,
            )
        )
        self._engine.set_items(self._table.as_string(), "id", "embedding")
        self._observed = 0

    def answer(self, queries: FloatMatrix) -> Mapping[str, Ranking]:
        """What `recall` gives; for several queries after a flush, so that all that was observed counts."""
        if len(queries) > 1:
            self._engine.flush()
        found = self._engine.recall_batch(queries)
        return {LEARNED: np.array([[self._row[item.item_id] for item in f.items] for f in found], dtype=np.int64)}

    def observe(self, trajectory: QueryTrajectory) -> None:
        """Record and learn; durable, and weighed, with the next flush."""
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
