"""A database for the benchmarks: SONA_DATABASE_URL, or an embedded server in a folder that goes afterwards."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sona_pg.config import InstantLoopConfig, SpaceConfig
from sona_pg.engine import SonaEngine
from sona_pg.store.connection import connect
from sona_pg.store.database import ENV_URL
from sona_pg.store.server import EmbeddedServer

SPACE = "sona-benchmark"


@contextlib.contextmanager
def benchmark_engine(
    dim: int,
    *,
    instant: InstantLoopConfig | None = None,
    space_config: SpaceConfig | None = None,
    background: bool = False,
) -> Iterator[SonaEngine]:
    """An engine on a fresh space, which goes afterwards."""
    with contextlib.ExitStack() as stack:
        home = None
        if not os.environ.get(ENV_URL):
            home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sona-benchmark-")))
            stack.callback(EmbeddedServer(home).remove)
        engine = SonaEngine.connect(
            home=home, space=SPACE, dim=dim, background=background, instant=instant, space_config=space_config
        )
        try:
            yield engine
        finally:
            engine.close()
            with connect(engine.url) as connection:
                connection.execute("SELECT sona.drop_space(%s)", (SPACE,))


def set_random_items(engine: SonaEngine, dim: int, count: int) -> None:
    """A table of random items, `benchmark_items`, for the space of an engine; an index is for whoever wants one."""
    random = np.random.default_rng(0)
    with connect(engine.url) as connection:
        connection.execute("DROP TABLE IF EXISTS benchmark_items")
        connection.execute(f"CREATE TABLE benchmark_items (id integer PRIMARY KEY, body text, embedding vector({dim}))")
        with connection.cursor().copy("COPY benchmark_items FROM STDIN (FORMAT BINARY)") as copy:
            copy.set_types(["int4", "text", "vector"])
            for item in range(count):
                copy.write_row((item, f"This is what item {item} says.", random.standard_normal(dim, dtype=np.float32)))
    engine.set_items("benchmark_items", "id", "embedding")
