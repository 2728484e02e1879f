"""A read replica answers: `sona.recall` and `sona.adapt` write nothing, and give there what they give here."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from sona_pg import SonaEngine, SpaceConfig, StoreConfig
from sona_pg.store.connection import connect
from sona_pg.store.migrate import migrate
from sona_pg.store.server import EmbeddedServer
from sona_pg.store.server_account import account_of, binaries_of, make_private, run_as

DIM = 16


@pytest.fixture
def primary(home: Path) -> EmbeddedServer:
    server = EmbeddedServer(home)
    server.start()
    return server


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path, that every user may pass to: a socket stands in it."""
    made = Path(tempfile.mkdtemp(prefix="sona-replica-", dir="/tmp"))
    made.chmod(0o711)
    yield made
    shutil.rmtree(made)


@pytest.fixture
def replica(primary: EmbeddedServer, folder: Path) -> Iterator[str]:
    """A standby that follows by streaming; its connection string."""
    binaries, account = binaries_of(primary.major), account_of(primary.directory / "data")
    data, run = folder / "data", folder / "run"
    for private in (data, run):
        make_private(private, account)
    source = make_conninfo(primary.url, dbname="postgres")
    done = run_as(
        account,
        [f"{binaries}/pg_basebackup", "-d", source, "-D", str(data), "--write-recovery-conf", "--checkpoint=fast"],
    )
    assert done.returncode == 0, done.stdout
    # The settings that the primary includes stand beside its data, and are its own.
    (data / "postgresql.auto.conf").open("a").write(
        f"listen_addresses = ''\nport = 5432\nunix_socket_directories = '{run}'\nhot_standby = on\n"
    )
    settings = data / "postgresql.conf"
    settings.write_text(settings.read_text().replace("include '../sona.conf'", ""))
    pg_ctl = [f"{binaries}/pg_ctl", "-D", str(data), "-w"]
    started = run_as(account, [*pg_ctl, "-l", str(run / "log"), "start"])
    assert started.returncode == 0, started.stdout + (run / "log").read_text()
    yield make_conninfo(primary.url, host=str(run))
    run_as(account, [*pg_ctl, "-m", "immediate", "stop"])


def _caught_up(primary: str, replica: str) -> None:
    with connect(primary, vectors=False) as here, connect(replica, vectors=False) as there:
        (position,) = here.execute("SELECT pg_current_wal_lsn()::text").fetchone() or (None,)
        for _ in range(3000):
            reached = there.execute("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", (position,)).fetchone()
            if reached == (True,):
                return
            time.sleep(0.01)
    raise AssertionError(f"the standby has not come to {position}")


def test_a_standby_answers_as_the_primary_does(primary: EmbeddedServer, replica: str, rng: np.random.Generator) -> None:
    url = primary.url
    migrate(url)
    items = rng.standard_normal((60, DIM)).astype(np.float32)
    with connect(url) as connection:
        connection.execute(f"CREATE TABLE items (id integer PRIMARY KEY, kind text, embedding vector({DIM}))")
        for row, embedding in enumerate(items):
            connection.execute("INSERT INTO items VALUES (%s, %s, %s)", (row, f"k{row % 3}", embedding))
    # With what is learned in all that they ask: the memory, the base, the control arm.
    with SonaEngine.connect(
        url, space="docs", dim=DIM, background=False, space_config=SpaceConfig(strategy="fusion", control_share=0.1),
        store=StoreConfig(publish_every_events=4),
    ) as engine:  # fmt: skip
        engine.set_items("items", "id", "embedding", filter_columns=["kind"])
        for _ in range(40):
            query = rng.standard_normal(DIM).astype(np.float32)
            shown = [str(i) for i in np.argsort(-(items @ query))[:5]]
            engine.record(query, shown, [0.0, 1.0, 0.0, 0.0, 0.0])
        engine.flush()
    _caught_up(url, replica)
    with connect(url) as here, connect(replica) as there:
        assert there.execute("SELECT pg_is_in_recovery()").fetchone() == (True,)
        for _ in range(20):
            query = rng.standard_normal(DIM).astype(np.float32)
            # What is random in an answer is its id, which decides its arm.
            adapt = "SELECT sona.adapt('docs', %(query)s)::text, (sona.find_patterns('docs', %(query)s, 3)).pattern_id"
            recall = (
                "SELECT item_id, rank, score, arm, version, strategy FROM sona.recall('docs', %(query)s, 5)"
                " ORDER BY rank"
            )
            filtered = "SELECT item_id FROM sona.recall('docs', %(query)s, 5, '{\"kind\": \"k1\"}') ORDER BY rank"
            assert here.execute(adapt, {"query": query}).fetchall() == there.execute(adapt, {"query": query}).fetchall()
            answers = [[c.execute(recall, {"query": query}).fetchall() for _ in range(4)] for c in (here, there)]
            by_arm = [{rows[0][3]: rows for rows in found} for found in answers]
            for arm in by_arm[0].keys() & by_arm[1].keys():
                assert by_arm[0][arm] == by_arm[1][arm]
            assert len(there.execute(filtered, {"query": query}).fetchall()) == 5
        for statement in (
            "SELECT * FROM sona.nearest_queries('docs', %s, 3)",
            "SELECT * FROM sona.related('docs', %s, 3)",
            "SELECT * FROM sona.strategies WHERE %s::public.vector IS NOT NULL ORDER BY strategy",
        ):
            assert here.execute(statement, (query,)).fetchall() == there.execute(statement, (query,)).fetchall()
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            there.execute("SELECT sona.record('docs', %s, '{1}', '{1}')", (query,))
