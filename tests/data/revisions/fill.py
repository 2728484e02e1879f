"""Fills a database by the code that is installed, whatever its revision: ``fill.py URL``.

It runs by every version of sona_pg from revision 0001 on, and uses nothing that one of them lacks without asking. What
`adapt` answers at the end stands in public.answer, as real[].
"""

from __future__ import annotations

import subprocess
import sys
import uuid
from dataclasses import fields

import numpy as np
import psycopg

from sona_pg import SonaEngine, SpaceConfig, StoreConfig
from sona_pg.config import SCHEMA_REVISION
from sona_pg.store.migrate import migrate

DIM = 8
ITEMS = 24
EVENTS = 120


def vector(rng: np.random.Generator) -> np.ndarray:
    """A unit vector, float32."""
    made = rng.standard_normal(DIM).astype(np.float32)
    return made / np.float32(np.linalg.norm(made))


def main() -> None:
    """Record, score, flush, publish and, where the code has it, run a background cycle."""
    url = sys.argv[1]
    migrate(url)
    rng = np.random.default_rng(3)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE TABLE public.article (id text PRIMARY KEY, embedding vector({DIM}) NOT NULL)")
        for item in range(ITEMS):
            connection.execute(
                "INSERT INTO public.article VALUES (%s, %s::real[]::vector)", (str(item), vector(rng).tolist())
            )
        known = {field.name for field in fields(SpaceConfig)}
        config = SpaceConfig(**{k: v for k, v in (("strategy", "adapted"), ("control_share", 0.0)) if k in known})
        engine = SonaEngine.connect(
            url,
            space="shop",
            dim=DIM,
            background=False,
            space_config=config,
            store=StoreConfig(publish_every_events=40),
        )
        engine.set_items("public.article", "id", "embedding")
        for event in range(EVENTS):
            shown = [str(item) for item in rng.choice(ITEMS, 4, replace=False)]
            key = uuid.UUID(int=event + 1)
            engine.record(
                vector(rng),
                shown,
                [1.0, 0.0, 1.0, None],
                user_id=f"user {event % 3}",
                metadata={"model": "ab"[event % 2]},
                trajectory_id=key,
            )
            if event >= 4:
                engine.score(uuid.UUID(int=event - 3), float(event % 2), str(event % ITEMS), score_id=f"late {event}")
            if event % 20 == 19:
                engine.flush()
        engine.close()
        if SCHEMA_REVISION >= "0002":
            # What an SQL client recorded, and nobody has learned yet.
            connection.execute(
                "SELECT sona.record('shop', %s::real[]::vector, '{1,2}', '{1,0}')", (vector(rng).tolist(),)
            )
        if SCHEMA_REVISION >= "0006":
            connection.execute("SELECT sona.run_cycle('shop', 'background')")
            worker = [sys.executable, "-m", "sona_pg", "worker", "background", "--once", "--url", url]
            subprocess.run(worker, check=True)
        connection.execute("CREATE TABLE public.answer (query real[] NOT NULL, adapted real[] NOT NULL)")
        engine = SonaEngine.connect(url, space="shop", background=False)
        for _ in range(5):
            query = vector(rng)
            adapted = engine.adapt(query)
            connection.execute("INSERT INTO public.answer VALUES (%s, %s)", (query.tolist(), adapted.tolist()))
        engine.close()
    print(f"filled at revision {SCHEMA_REVISION}")


if __name__ == "__main__":
    main()
