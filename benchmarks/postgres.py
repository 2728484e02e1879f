"""A database for the benchmarks: SONA_DATABASE_URL, or an embedded server in a folder that goes afterwards."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from sona_pg.config import InstantLoopConfig
from sona_pg.engine import SonaEngine
from sona_pg.store.connection import connect
from sona_pg.store.database import ENV_URL
from sona_pg.store.server import EmbeddedServer

SPACE = "sona-benchmark"


@contextlib.contextmanager
def benchmark_engine(dim: int, *, instant: InstantLoopConfig | None = None) -> Iterator[SonaEngine]:
    """An engine on a fresh space, which goes afterwards."""
    with contextlib.ExitStack() as stack:
        home = None
        if not os.environ.get(ENV_URL):
            home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sona-benchmark-")))
            stack.callback(EmbeddedServer(home).remove)
        engine = SonaEngine.connect(home=home, space=SPACE, dim=dim, background=False, instant=instant)
        try:
            yield engine
        finally:
            engine.close()
            with connect(engine.url) as connection:
                connection.execute("SELECT sona.drop_space(%s)", (SPACE,))
