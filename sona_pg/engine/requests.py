"""What a request asks and what is made of it, written once: SonaEngine waits for it, AsyncSonaEngine awaits it."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sona_pg.config import SHOWN
from sona_pg.engine.recalled import Known, Recall
from sona_pg.errors import InvalidInput
from sona_pg.ids import new_trajectory_id
from sona_pg.kernels import as_vector
from sona_pg.learning.lift import CONTROL
from sona_pg.learning.patterns import LearnedPattern
from sona_pg.learning.recommendation import NearPattern, Recommendation, expected_quality, optimized_params
from sona_pg.loops.accesses import AccessCounts
from sona_pg.loops.admission import checked_text, private_json
from sona_pg.loops.evidence import EvidenceLoop
from sona_pg.loops.instant import InstantLoop
from sona_pg.store import improvement, pattern_search, versions
from sona_pg.store.improvement import ImprovementMetrics
from sona_pg.store.pool import Readers
from sona_pg.store.reader import Reader
from sona_pg.store.search import Filter, ItemSearch
from sona_pg.store.spaces import Space
from sona_pg.store.versions import Version
from sona_pg.store.why import Why, why
from sona_pg.types import Answer, FloatVector, Json


class Requests:
    """Answers requests on a space. Its coroutines suspend where its readers do; they are documented at `SonaEngine`.

    Parameters
    ----------
    space
        The space.
    loop, evidence
        Loop A, and the loop that finds the strategy: what answers is in memory.
    search
        The items.
    accesses
        Where it is counted which patterns were found.
    readers
        Who is asked.
    check
        Raises where the engine cannot be used.
    """

    def __init__(
        self,
        space: Space,
        loop: InstantLoop,
        evidence: EvidenceLoop,
        search: ItemSearch,
        accesses: AccessCounts,
        readers: Readers,
        check: Callable[[], None],
    ) -> None:
        self._space = space
        self._loop = loop
        self._evidence = evidence
        self._search = search
        self._accesses = accesses
        self._readers = readers
        self._check = check

    def over(self, readers: Readers, check: Callable[[], None]) -> Requests:
        """The same by other readers, with a check of their own."""
        return Requests(self._space, self._loop, self._evidence, self._search, self._accesses, readers, check)

    async def recall(self, query: ArrayLike, k: int = SHOWN, *, filter: Filter | None = None) -> Recall:
        """The k best items for a query."""
        return (await self.recall_batch([query], k, filter=filter))[0]

    async def recall_batch(
        self, queries: Sequence[ArrayLike] | NDArray[np.floating], k: int = SHOWN, *, filter: Filter | None = None
    ) -> list[Recall]:
        """`recall` for several queries."""
        self._check()
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
        async with self._readers.reader() as reader:
            return [await self._answer(reader, new_trajectory_id(), vector, k, filter) for vector in vectors]

    async def _answer(self, reader: Reader, id: uuid.UUID, query: FloatVector, k: int, filter: Filter | None) -> Recall:
        served = self._evidence.served
        arm, propensity = served.arm(id)
        strategy = "frozen" if arm == CONTROL else served.strategy_for(query)
        if strategy in ("frozen", "adapted"):
            # Nothing but the items table is asked: that is planned once.
            asked = self._loop.serving.adapt(query) if strategy == "adapted" else query
            version = self._loop.version
            items = await self._search.nearest(reader, asked, k, filter)
        else:
            items, version, strategy = await self._search.answer(reader, query, k, filter)
        return Recall(id, query, tuple(items), Answer(arm, version, strategy, propensity))

    def nothing_found(self, query: ArrayLike) -> Recall:
        """An answer without items."""
        self._check()
        vector = as_vector(query, self._space.dim, "query").copy()
        id = new_trajectory_id()
        arm, propensity = self._evidence.served.arm(id)
        return Recall(id, vector, (), Answer(arm, self._loop.version, "frozen", propensity))

    async def predict_one(self, query: ArrayLike, k: int = SHOWN) -> list[str]:
        """Ids of the k best items."""
        return [item.item_id for item in (await self.recall(query, k)).items]

    async def item_texts(self, ids: Sequence[str], column: str | None) -> dict[str, str | None]:
        """Texts of items by id."""
        self._check()
        if isinstance(ids, str) or not isinstance(ids, Sequence):
            raise InvalidInput(f"ids is a {type(ids).__name__}, expected a list of item ids")
        checked = [checked_text(id, "item id") for id in ids]
        if not checked or column is None:
            return {}
        name = checked_text(column, "column")
        async with self._readers.reader() as reader:
            return await self._search.texts(reader, checked, name)

    async def find_patterns(self, query: ArrayLike, k: int = 5) -> list[tuple[LearnedPattern, float]]:
        """The k patterns nearest to a query, with the cosine."""
        vector = self._asked(query, k)
        async with self._readers.reader() as reader:
            found = await pattern_search.find_patterns(reader, self._space, vector, k)
        self._accesses.found(pattern.id for pattern, _ in found)
        return found

    async def optimized_params(
        self, query: ArrayLike, defaults: Mapping[str, Json] | None = None, *, k: int = 5
    ) -> dict[str, Recommendation]:
        """Parameters for a query, from what worked."""
        given = {} if defaults is None else private_json(defaults, "defaults")
        near, width = await self._near(query, k)
        return optimized_params(near, width, given)

    async def known_of(self, query: ArrayLike, k: int = 5) -> Known:
        """What is known of answers to such queries."""
        near, width = await self._near(query, k)
        return Known(optimized_params(near, width), expected_quality(near, width), len(near))

    async def _near(self, query: ArrayLike, k: int) -> tuple[list[NearPattern], float]:
        vector = self._asked(query, k)
        async with self._readers.reader() as reader:
            near, width = await pattern_search.near_patterns(reader, self._space, vector, k)
        self._accesses.found(pattern.id for pattern in near)
        return near, width

    def _asked(self, query: ArrayLike, k: int) -> FloatVector:
        self._check()
        check_k(k)
        # The caller may change its array while this waits.
        return as_vector(query, self._space.dim, "query").copy()

    async def improvement_metrics(self) -> ImprovementMetrics:
        """Whether the space gets better."""
        self._check()
        async with self._readers.reader() as reader:
            return await improvement.improvement_metrics(reader, self._space)

    async def why(self, trajectory_id: uuid.UUID) -> Why:
        """Why an answer was what it was."""
        self._check()
        if not isinstance(trajectory_id, uuid.UUID):
            raise InvalidInput(f"trajectory id is {trajectory_id!r}, expected a UUID")
        async with self._readers.reader() as reader:
            return await why(reader, trajectory_id, self._space.name)

    async def versions(self) -> list[Version]:
        """What was published of the space, oldest first."""
        self._check()
        async with self._readers.reader() as reader:
            return await versions.versions(reader, self._space)


def check_k(k: int) -> None:
    if not isinstance(k, int) or isinstance(k, bool) or not 1 <= k <= 10_000:
        raise InvalidInput(f"k is {k!r}, expected a whole number from 1 to 10000")
