"""A database and its copy: what both must answer, learn and allow alike."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from sona_pg import SonaEngine, SpaceConfig
from sona_pg.config import BackgroundConfig, PatternConfig, StoreConfig
from sona_pg.loops.background import background_loop
from sona_pg.loops.coordinator import LoopCoordinator
from sona_pg.loops.deep import DEEP
from sona_pg.store.connection import connect
from sona_pg.store.database import Database

DIM, ITEMS, EVENTS = 16, 60, 60
SPACES = {"adapts": "adapted", "fuses": "fusion"}
BACKGROUND = background_loop(BackgroundConfig(minimum=1), PatternConfig(k_clusters=4, min_cluster_size=2))


def _unit(rng: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    made = rng.standard_normal((*shape, DIM)).astype(np.float32)
    return made / np.linalg.norm(made, axis=-1, keepdims=True)


def record(engine: SonaEngine, first: int, count: int) -> None:
    """Record events by number: the same ones whenever the numbers are the same."""
    for number in range(first, first + count):
        rng = np.random.default_rng(number)
        shown = [str(item) for item in rng.choice(ITEMS, 5, replace=False)]
        id = uuid.UUID(int=number + 1)
        engine.record(_unit(rng), shown, [1.0, 0.0, 1.0, None, 0.5], trajectory_id=id, user_id=f"user {number % 3}")
        if number % 4 == 3:
            engine.score(id, 1.0, shown[3], score_id=f"late {number}")


def build(url: str) -> None:
    """Two spaces that have learned, of which every loop has run a cycle, in a migrated database."""
    with connect(url) as connection:
        connection.execute(f"CREATE TABLE public.doc (id integer PRIMARY KEY, embedding vector({DIM}) NOT NULL)")
        for item, embedding in enumerate(_unit(np.random.default_rng(1), ITEMS)):
            connection.execute("INSERT INTO public.doc VALUES (%s, %s)", (item, embedding))
    for name, strategy in SPACES.items():
        config = SpaceConfig(strategy=strategy, control_share=0.0)
        with SonaEngine.connect(url, space=name, dim=DIM, background=False, space_config=config) as engine:
            engine.set_items("public.doc", "id", "embedding")
            record(engine, 0, EVENTS)
            engine.flush()
    with connect(url) as connection:
        for loop in (BACKGROUND, DEEP):
            for name in SPACES:
                connection.execute("SELECT sona.run_cycle(%s, %s)", (name, loop.name))
            coordinator = LoopCoordinator(Database(url, StoreConfig()), loop)
            coordinator.step()
            coordinator.close()
            assert coordinator.failing == []
        connection.execute("SELECT sona.grant_space('adapts', 'sona_reader', false)")


def answers(url: str, count: int) -> Iterator[tuple[object, ...]]:
    """Of every space, what `sona.adapt` and `recall` give for so many queries: vector, items, scores and the answer."""
    queries = _unit(np.random.default_rng(2), count)
    for name in SPACES:
        with connect(url) as connection, SonaEngine.connect(url, space=name, background=False) as engine:
            for query, recalled in zip(queries, engine.recall_batch(queries, 10), strict=True):
                row = connection.execute("SELECT sona.adapt(%s, %s)", (name, query), binary=True).fetchone()
                assert row is not None
                yield row[0].tobytes(), engine.adapt(query).tobytes(), recalled.items, recalled.answer


def learned(url: str) -> list[tuple[object, ...]]:
    """What is known in all spaces, bit for bit."""
    with connect(url) as connection:
        return [
            *connection.execute(
                "SELECT l.space_id, l.epoch, l.revision, l.events, l.ordinal, l.state, g.ordinal, g.in_force, g.state"
                " FROM sona.learner l JOIN sona.strategist g USING (space_id) ORDER BY 1"
            ).fetchall(),
            *connection.execute(
                "SELECT space_id, tier, ordinal, down::text, up::text FROM sona.served_row ORDER BY 1, 2, 3"
            ).fetchall(),
        ]


def learned_from(url: str, first: int, count: int) -> list[tuple[object, ...]]:
    """Record these events in every space; gives what is known then."""
    for name in SPACES:
        with SonaEngine.connect(url, space=name, background=False) as engine:
            record(engine, first, count)
            engine.flush()
            assert engine.metrics.refused == 0
    return learned(url)


def access(url: str) -> list[tuple[object, ...]]:
    """Who may do what in schema sona: row policies, grants, and what functions run as."""
    with connect(url) as connection:
        return connection.execute(
            "SELECT 'policy', p::text, '' FROM pg_policies p WHERE schemaname = 'sona'"
            " UNION ALL SELECT 'table', relname, concat(relrowsecurity, relforcerowsecurity) FROM pg_class"
            " WHERE relnamespace = 'sona'::regnamespace AND relkind = 'r'"
            " UNION ALL SELECT 'function', oid::regprocedure::text, concat(prosecdef, proconfig::text) FROM pg_proc"
            " WHERE pronamespace = 'sona'::regnamespace"
            " UNION ALL SELECT 'space', name, g::text FROM sona.space_grant g JOIN sona.space USING (space_id)"
            # What the owner may do without being granted it stands in a dump as a grant, or not at all.
            " UNION ALL SELECT 'right', a.name, concat_ws(' ', x.grantor::regrole, x.grantee::regrole,"
            "  x.privilege_type, x.is_grantable) FROM ("
            "  SELECT relname, coalesce(relacl,"
            "   acldefault(CASE relkind WHEN 'S' THEN 's' ELSE 'r' END::\"char\", relowner))"
            "   FROM pg_class WHERE relnamespace = 'sona'::regnamespace AND relkind IN ('r', 'v', 'S')"
            "  UNION ALL SELECT concat(attrelid::regclass, '.', attname), attacl FROM pg_attribute"
            "   JOIN pg_class c ON c.oid = attrelid WHERE relnamespace = 'sona'::regnamespace"
            "  UNION ALL SELECT oid::regprocedure::text, coalesce(proacl, acldefault('f', proowner)) FROM pg_proc"
            "   WHERE pronamespace = 'sona'::regnamespace"
            "  UNION ALL SELECT 'schema', nspacl FROM pg_namespace WHERE nspname = 'sona'"
            ") a (name, acl), aclexplode(a.acl) x"
            " ORDER BY 1, 2, 3"
        ).fetchall()
