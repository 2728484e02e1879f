"""Apply: what was learned, to queries."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sona_pg.config import SHOWN
from sona_pg.engine.answering import Known
from sona_pg.engine.recalled import Recall
from sona_pg.engine.session import Session
from sona_pg.errors import InvalidInput
from sona_pg.ids import new_trajectory_id
from sona_pg.kernels import as_vector
from sona_pg.learning.arrays import as_matrix, is_matrix
from sona_pg.learning.lift import CONTROL
from sona_pg.learning.patterns import LearnedPattern
from sona_pg.learning.recommendation import NearPattern, Recommendation, expected_quality, optimized_params
from sona_pg.loops.admission import checked_text, private_json
from sona_pg.store import pattern_search, spaces
from sona_pg.store.search import Filter
from sona_pg.types import Answer, FloatVector, Json


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
        """
        if self._loop.has_moved:
            self._check_open()
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
        return self.recall_batch([query], k, filter=filter)[0]

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
        self._check_open()
        check_k(k)
        if filter is not None:
            filter = private_json(filter, "filter")
        if (
            isinstance(queries, str)
            or not isinstance(queries, Sequence | np.ndarray)
            or (isinstance(queries, np.ndarray) and not queries.ndim)
        ):
            raise InvalidInput(f"queries is a {type(queries).__name__}, expected a list of vectors")
        vectors = [as_vector(query, self._space.dim, "query").copy() for query in queries]
        return [self._answer(new_trajectory_id(), vector, k, filter) for vector in vectors]

    def _answer(self, id: uuid.UUID, query: FloatVector, k: int, filter: Filter | None) -> Recall:
        served = self._evidence.served
        arm, propensity = served.arm(id)
        strategy = "frozen" if arm == CONTROL else served.strategy_for(query)
        if strategy in ("frozen", "adapted"):
            # Nothing but the items table is asked: that is planned once.
            asked = self._loop.serving.adapt(query) if strategy == "adapted" else query
            items, version = self._search.nearest(asked, k, filter), self._loop.version
        else:
            items, version, strategy = self._search.answer(query, k, filter)
        return Recall(id, query, tuple(items), Answer(arm, version, strategy, propensity))

    def nothing_found(self, query: ArrayLike) -> Recall:
        """An answer without items to a query (dim,), for what found them elsewhere, or has none; to be recorded.

        Raises
        ------
        DimensionMismatch, InvalidInput
            If the query is not valid.
        """
        self._check_open()
        vector = as_vector(query, self._space.dim, "query").copy()
        id = new_trajectory_id()
        arm, propensity = self._evidence.served.arm(id)
        return Recall(id, vector, (), Answer(arm, self._loop.version, "frozen", propensity))

    def predict_one(self, query: ArrayLike, k: int = SHOWN) -> list[str]:
        """Ids of the k best items for a query (dim,), best first. Writes nothing.

        Raises
        ------
        DimensionMismatch, InvalidInput, DatabaseError
            As `recall`.
        """
        return [item.item_id for item in self.recall(query, k).items]

    def item_texts(self, ids: Sequence[str], column: str | None) -> dict[str, str | None]:
        """Texts of items by id, from a column of the items table; nothing without a column.

        Raises
        ------
        DatabaseError
            If there is no such column, or it cannot be read.
        """
        self._check_open()
        if isinstance(ids, str) or not isinstance(ids, Sequence):
            raise InvalidInput(f"ids is a {type(ids).__name__}, expected a list of item ids")
        checked = [checked_text(id, "item id") for id in ids]
        return self._search.texts(checked, checked_text(column, "column")) if checked and column is not None else {}

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
        self._check_open()
        names = (
            checked_text(items, "items table"),
            checked_text(id_column, "id column"),
            checked_text(embedding_column, "embedding column"),
        )
        if isinstance(filter_columns, str) or not isinstance(filter_columns, Sequence):
            raise InvalidInput(f"filter_columns is {filter_columns!r}, expected a list of column names")
        columns = [checked_text(column, "filter column") for column in filter_columns]
        with self._search.connection() as connection:
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
        self._check_open()
        check_k(k)
        vector = as_vector(query, self._space.dim, "query")
        with self._search.connection() as connection:
            found = pattern_search.find_patterns(connection, self._space, vector, k)
        self._accesses.found(pattern.id for pattern, _ in found)
        return found

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
        given = {} if defaults is None else private_json(defaults, "defaults")
        near, width = self._near(query, k)
        return optimized_params(near, width, given)

    def known_of(self, query: ArrayLike, k: int = 5) -> Known:
        """What is known of answers to such queries, by the k patterns nearest to it.

        Raises
        ------
        DimensionMismatch, InvalidInput, DatabaseError
            As `optimized_params`.
        """
        near, width = self._near(query, k)
        return Known(optimized_params(near, width), expected_quality(near, width), len(near))

    def _near(self, query: ArrayLike, k: int) -> tuple[list[NearPattern], float]:
        self._check_open()
        check_k(k)
        vector = as_vector(query, self._space.dim, "query")
        with self._search.connection() as connection:
            near, width = pattern_search.near_patterns(connection, self._space, vector, k)
        self._accesses.found(pattern.id for pattern in near)
        return near, width


def check_k(k: int) -> None:
    if not isinstance(k, int) or isinstance(k, bool) or not 1 <= k <= 10_000:
        raise InvalidInput(f"k is {k!r}, expected a whole number from 1 to 10000")
