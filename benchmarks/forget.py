"""One of 50 users is forgotten: how long the space is locked, and how long it takes until all is as without them.

The rival is what gives the same without it: to record everything anew in another space, without the user. What both
have learned is compared bit for bit; with --quick, what both have weighed as well (a space of more remembered queries
than `StoreConfig.exact_search_rows` is searched through an index, which is approximate). To weigh 50,000 trajectories
takes ten minutes and more, so that it is done at the smaller dimension alone.
"""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from benchmarks.harness import Row, row
from benchmarks.postgres import benchmark_engine
from sona_pg.config import InstantLoopConfig
from sona_pg.engine import SonaEngine
from sona_pg.store.connection import Connection, connect

USERS, ITEMS, QUESTIONS, FLUSH_EVERY = 50, 2_000, 500, 500
FORGOTTEN = "user 7"
NEVER = "sona-benchmark-never"


def run(*, quick: bool) -> list[Row]:
    """A space of 2,000 trajectories; or of 50,000, at both dimensions."""
    if quick:
        return list(_forget(64, 2_000, weigh=True, compare_weighed=True))
    return [*_forget(384, 50_000, weigh=False), *_forget(64, 50_000, weigh=True)]


class Traffic:
    """Events of 50 users in turn, with 3 to 5 items each; every tenth is scored later."""

    def __init__(self, dim: int, trajectories: int) -> None:
        numbers = np.random.default_rng(0)
        self.items = numbers.standard_normal((ITEMS, dim), dtype=np.float32)
        self._topics = numbers.standard_normal((QUESTIONS, dim), dtype=np.float32)
        self._ids = [uuid.UUID(int=int(numbers.integers(1 << 62)) << 64 | event) for event in range(trajectories)]
        self._dim = dim

    def record(self, engine: SonaEngine, without: str = "") -> float:
        """Record and learn everything; gives the seconds."""
        began = time.perf_counter()
        for event, id in enumerate(self._ids):
            user = f"user {event % USERS}"
            if user != without:
                self._event(engine, event, id, user)
            if event % FLUSH_EVERY == FLUSH_EVERY - 1:
                engine.instant.flush_updates()
        engine.instant.flush_updates()
        return time.perf_counter() - began

    def _event(self, engine: SonaEngine, event: int, id: uuid.UUID, user: str) -> None:
        numbers = np.random.default_rng(event)
        question = int(numbers.integers(QUESTIONS))
        query = self._topics[question] + 0.3 * numbers.standard_normal(self._dim, dtype=np.float32)
        shown = [str(item) for item in (question * 3 + np.arange(3 + event % 3)) % ITEMS]
        helped = [float(place == question % 3) for place in range(len(shown))]
        engine.record(query, shown, helped, user_id=user, trajectory_id=id)
        if event % 10 == 0:
            engine.score(id, 0.5, shown[-1], score_id=f"late {event}")


_LEARNED = (
    "SELECT events, ordinal, state FROM sona.learner WHERE space_id = %s",
    "SELECT tier, ordinal, down, up FROM sona.served_row WHERE space_id = %s AND tier IN ('adapter', 'micro')"
    " ORDER BY 1, 2",
    "SELECT source, target, weight FROM sona.memory_edge WHERE space_id = %s ORDER BY 1, 2",
    "SELECT ordinal, trajectory_id, revision, learned FROM sona.learning_event WHERE space_id = %s ORDER BY 1",
)
_WEIGHED = (
    "SELECT ordinal, events, in_force, state, evidence FROM sona.strategist WHERE space_id = %s",
    "SELECT tier, ordinal, down, up FROM sona.served_row WHERE space_id = %s ORDER BY 1, 2",
    "SELECT strategy, events, gain, recent_gain FROM sona.strategy_evidence WHERE space_id = %s ORDER BY 1",
    "SELECT region, centroid, events, verdict FROM sona.strategy_region WHERE space_id = %s ORDER BY 1",
    "SELECT ordinal, region, before, after, reason FROM sona.strategy_turn WHERE space_id = %s ORDER BY 1",
    "SELECT trajectory_id, ordinal, helped, is_prototype FROM sona.remembered_query WHERE space_id = %s ORDER BY 2",
    "SELECT item_id, helped FROM sona.item_outcome WHERE space_id = %s AND helped > 0 ORDER BY 1",
    "SELECT trajectory_id, ordinal, value, contrast, gain FROM sona.answer_outcome WHERE space_id = %s ORDER BY 2",
)


def _forget(dim: int, trajectories: int, *, weigh: bool, compare_weighed: bool = False) -> Iterator[Row]:
    traffic = Traffic(dim, trajectories)
    instant = InstantLoopConfig(max_pending_signals=2 * FLUSH_EVERY)
    with (
        benchmark_engine(dim, instant=instant) as engine,
        connect(engine.url) as connection,
        _items(connection, traffic.items) as table,
    ):
        engine.set_items(table, "id", "embedding")
        _say(f"{trajectories} trajectories at d={dim} recorded and learned in {traffic.record(engine):.1f} s")
        began = time.perf_counter()
        if weigh:
            engine.evidence.settle()
        weighed = time.perf_counter() - began
        _say(f"weighed in {weighed:.1f} s")
        report = engine.forget(FORGOTTEN, wait=weigh)
        _say(f"{report}")
        with SonaEngine.connect(engine.url, space=NEVER, dim=dim, background=False, instant=instant) as never:
            try:
                never.set_items(table, "id", "embedding")
                anew = traffic.record(never, without=FORGOTTEN)
                statements: tuple[str, ...] = _LEARNED
                if compare_weighed:
                    never.evidence.settle()
                    statements += _WEIGHED
                for statement in statements:
                    if _rows(connection, statement, engine) != _rows(connection, statement, never):
                        raise AssertionError(f"it is not what it were without the user: {statement}")
            finally:
                never.close()
                connection.execute("SELECT sona.drop_space(%s)", (NEVER,))
    params: dict[str, int | float | str] = {
        "d": dim,
        "trajectories": trajectories,
        "of_user": report.trajectories,
        "entries_replayed": report.replayed,
    }
    weighing = report.weighing_seconds or 0.0
    measured = [
        ("forget, the space locked", report.locked_seconds, "record all others anew", anew),
        ("forget, learned again", report.seconds - weighing, "record all others anew", anew),
    ]
    if weigh:
        measured.append(("forget, weighed again", weighing, "weigh at first", weighed))
    for name, seconds, rival, rival_seconds in measured:
        yield row(name, params, np.array([seconds * 1e6]), rival, np.array([rival_seconds * 1e6]))


def _rows(connection: Connection, statement: str, engine: SonaEngine) -> list[list[object]]:
    found = connection.execute(statement, (engine.space.space_id,), binary=True)
    return [[v.tobytes() if isinstance(v, np.ndarray) else v for v in values] for values in found]


@contextmanager
def _items(connection: Connection, items: np.typing.NDArray[np.float32]) -> Iterator[str]:
    """An application's table of items, which goes afterwards."""
    table = "public.benchmark_item"
    connection.execute(f"DROP TABLE IF EXISTS {table}")
    connection.execute(f"CREATE TABLE {table} (id integer PRIMARY KEY, embedding vector({items.shape[1]}))")
    with connection.cursor().copy(f"COPY {table} FROM STDIN (FORMAT BINARY)") as copy:
        copy.set_types(["int4", "vector"])
        for place, item in enumerate(items):
            copy.write_row((place, item))
    try:
        yield table
    finally:
        connection.execute(f"DROP TABLE {table}")


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)
