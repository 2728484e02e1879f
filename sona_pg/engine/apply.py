"""Apply: what was learned, to queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sona_pg.calls import at_once
from sona_pg.config import SHOWN
from sona_pg.engine.recalled import Known, Recall
from sona_pg.engine.session import Session
from sona_pg.errors import InvalidInput
from sona_pg.kernels import as_vector
from sona_pg.learning.arrays import as_matrix, is_matrix
from sona_pg.learning.patterns import LearnedPattern
from sona_pg.learning.recommendation import Recommendation
from sona_pg.loops.admission import checked_text
from sona_pg.store import spaces
from sona_pg.store.search import Filter
from sona_pg.types import Json


class Applying(Session):
    """Answers queries by what was learned; nothing here writes what an answer depends on but `set_items`."""

    def adapt(self, query: ArrayLike) -> NDArray[np.float32]:
        """The query (dim,), or queries (n, dim), as the strategy in force asks; the same bits while that is frozen.

        Raises
        ------
        DimensionMismatch, InvalidInput
            If it has another dimension, or holds NaN or infinity.
        EmbedderMismatch
            If the space has moved to another embedder.
        ConfigError
            If the engine is closed.
        """
        if self._loop.has_moved or self._closed:
            self.check_open()
        if self._evidence.served.strategy == "adapted":
            return self._loop.serving.adapt(query)
        if is_matrix(query):
            return self._evidence.served.adapt_rows(as_matrix(query, self._space.dim, "queries"))
        vector = as_vector(query, self._space.dim, "query")
        return self._evidence.served.adapt(vector).copy()

    def recall(self, query: ArrayLike, k: int = SHOWN, *, filter: Filter | None = None) -> Recall:
        """The k best items for a query, from the application's own table. Writes nothing.

        Parameters
        ----------
        query
            Vector (dim,) of finite numbers.
        k
            How many items.
        filter
            What the items must be, by declared columns: {"column": value}, {"column": [values]}, or {"column":
            {"gte": value}} with eq, ne, lt, lte, gt, gte and in.

        Raises
        ------
        DimensionMismatch, InvalidInput
            If the query, k or the filter is not valid.
        DatabaseError
            If the table cannot be searched.
        """
        return at_once(self._requests.recall(query, k, filter=filter))

    def recall_batch(
        self, queries: Sequence[ArrayLike] | NDArray[np.floating], k: int = SHOWN, *, filter: Filter | None = None
    ) -> list[Recall]:
        """`recall` for several queries (n, dim), over one connection.

        Raises
        ------
        DimensionMismatch, InvalidInput
            If a query, k or the filter is not valid.
        DatabaseError
            If the table cannot be searched.
        """
        return at_once(self._requests.recall_batch(queries, k, filter=filter))

    def nothing_found(self, query: ArrayLike) -> Recall:
        """An answer without items to a query (dim,), for what found them elsewhere, or has none; to be recorded.

        Raises
        ------
        DimensionMismatch, InvalidInput
            If the query is not valid.
        """
        return self._requests.nothing_found(query)

    def predict_one(self, query: ArrayLike, k: int = SHOWN) -> list[str]:
        """Ids of the k best items for a query (dim,), best first. Writes nothing.

        Raises
        ------
        DimensionMismatch, InvalidInput, DatabaseError
            As `recall`.
        """
        return at_once(self._requests.predict_one(query, k))

    def item_texts(self, ids: Sequence[str], column: str | None) -> dict[str, str | None]:
        """Texts of items by id, from a column of the items table; nothing without a column.

        Raises
        ------
        InvalidInput
            If there is no such column.
        DatabaseError
            If it cannot be read.
        """
        return at_once(self._requests.item_texts(ids, column))

    def set_items(
        self, items: str, id_column: str, embedding_column: str, *, filter_columns: Sequence[str] = ()
    ) -> int:
        """Name the application's own table of items, which `recall` searches.

        Parameters
        ----------
        items
            The table, as SQL would name it.
        id_column, embedding_column
            Its columns of item ids and of embeddings.
        filter_columns
            Columns that `recall` may filter by.

        Returns
        -------
        int
            Size of the sample that learning uses.

        Raises
        ------
        InvalidInput, DimensionMismatch, DatabaseError
            If there is no such table or column, or its vectors have another dimension.
        """
        self.check_open()
        names = (
            checked_text(items, "items table"),
            checked_text(id_column, "id column"),
            checked_text(embedding_column, "embedding column"),
        )
        if isinstance(filter_columns, str) or not isinstance(filter_columns, Sequence):
            raise InvalidInput(f"filter_columns is {filter_columns!r}, expected a list of column names")
        columns = [checked_text(column, "filter column") for column in filter_columns]
        with self._connections.connection() as connection:
            size = spaces.set_items(connection, self._space, *names, columns)
        self._search.look_again()
        self._loop.flush_updates()
        return size

    def find_patterns(self, query: ArrayLike, k: int = 5) -> list[tuple[LearnedPattern, float]]:
        """The k patterns nearest to a query, nearest first, with the cosine, as the background loop has left them.

        Writes nothing: that a pattern was found is counted in this process, and written now and then, by `flush` and by
        `close`.

        Raises
        ------
        DimensionMismatch, InvalidInput
            If the query or k is not valid.
        DatabaseError
            If the database cannot be asked.
        """
        return at_once(self._requests.find_patterns(query, k))

    def optimized_params(
        self, query: ArrayLike, defaults: Mapping[str, Json] | None = None, *, k: int = 5
    ) -> dict[str, Recommendation]:
        """Parameters for a query, from what worked in the k patterns nearest to it.

        Numbers are interpolated, of anything else one value wins; patterns count by how near they are, and by how sure
        it is that what they say is better than what else was used there.

        Parameters
        ----------
        query
            Vector (dim,).
        defaults
            By parameter, what to use where nothing is known; a parameter that was never used is answered by it.
        k
            How many patterns are asked.

        Returns
        -------
        dict
            By parameter the value, the ids of the patterns that it comes from, and how sure it is.

        Raises
        ------
        DimensionMismatch, InvalidInput
            If the query, k or the defaults are not valid.
        DatabaseError
            If the database cannot be asked.
        """
        return at_once(self._requests.optimized_params(query, defaults, k=k))

    def known_of(self, query: ArrayLike, k: int = 5) -> Known:
        """What is known of answers to such queries, by the k patterns nearest to it.

        Raises
        ------
        DimensionMismatch, InvalidInput, DatabaseError
            As `optimized_params`.
        """
        return at_once(self._requests.known_of(query, k))
