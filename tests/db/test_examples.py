"""The examples in other languages run as they stand, and what they record is learned once."""

from __future__ import annotations

import shutil
import subprocess
import uuid
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from sona_pg import SonaEngine
from sona_pg.config import StoreConfig
from sona_pg.store.connection import Connection
from sona_pg.store.database import Database
from sona_pg.store.server_account import binaries_of
from sona_pg.worker import InstantWorker

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def c_client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C example, compiled against the libpq that comes with the embedded Postgres."""
    installation = binaries_of(18).parent
    compiled = tmp_path_factory.mktemp("examples") / "client"
    command = ["cc", "-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", str(EXAMPLES / "client.c")]
    command += [f"-I{installation / 'include'}", f"-L{installation / 'lib'}", f"-Wl,-rpath,{installation / 'lib'}"]
    done = subprocess.run([*command, "-lpq", "-o", str(compiled)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return compiled


def _learn(url: str) -> int:
    worker = InstantWorker(Database(url, StoreConfig()))
    learned = 0
    while batch := worker.step():
        learned += batch
    worker.close()
    return learned


def _ledger(connection: Connection, space: str) -> list[tuple[object, ...]]:
    return connection.execute(
        "SELECT trajectory_id, revision, learned FROM sona.ledger WHERE space = %s ORDER BY ordinal", (space,)
    ).fetchall()


def test_a_client_in_c_searches_records_and_scores(
    connection: Connection, url: str, engine: SonaEngine, items: tuple[str, NDArray[np.float32]], c_client: Path
) -> None:
    space, table = engine.space.name, items[0].removeprefix("public.")
    question = str((items[1][3] + items[1][9]).tolist())
    learned: list[tuple[object, ...]] = []
    answers = []
    for _ in range(2):  # before and after something was learned
        recalled = connection.execute(
            "SELECT rank::text, item_id, score::text FROM sona.recall(%s, %s, 3) ORDER BY rank", (space, question)
        ).fetchall()
        done = subprocess.run([c_client, url, space, table, question], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        lines = [line.split(maxsplit=1) for line in done.stdout.splitlines()]
        said = [what for what, _ in lines]
        assert said == ["search"] * 3 + ["recall"] * 3 + ["recorded", "score", "score", "refused"]
        assert [tuple(rest.split()) for what, rest in lines if what == "recall"] == recalled
        assert [rest.split()[1] for what, rest in lines if what == "search"] == [item for _, item, _ in recalled]
        assert [rest for what, rest in lines if what == "score"] == ["t", "f"]
        assert lines[-1][1] == "SN002 the vector has 2 dimensions, expected 16"
        id = uuid.UUID(lines[6][1])
        steps = connection.execute(
            "SELECT item_id, position, reward FROM sona.trajectory_step WHERE trajectory_id = %s ORDER BY ordinal",
            (id,),
        ).fetchall()
        shown = [item for _, item, _ in recalled]
        assert steps == [(shown[0], 1, 1.0), (shown[1], 2, 0.0), (shown[2], 3, None)]
        assert (_learn(url), _learn(url)) == (1, 0)
        learned += [(id, 0, "adapter"), (id, 1, "adapter")]
        assert _ledger(connection, space) == learned
        answers.append([score for _, _, score in recalled])
    assert answers[0] != answers[1]
    engine.flush()
    assert engine.instant.learner.events == 4


def test_the_c_client_says_what_went_wrong(url: str, c_client: Path) -> None:
    done = subprocess.run(
        [c_client, url, "no such space", "pg_class", "[1]"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "ERROR" in done.stderr


def test_the_lines_for_psql_run_and_teach(connection: Connection, url: str, space_name: str) -> None:
    bundled = binaries_of(18) / "psql"
    psql = bundled if bundled.exists() else shutil.which("psql")
    assert psql is not None
    space = f"s{uuid.uuid4().hex[:8]}"
    command = [psql, "-X", "-v", "ON_ERROR_STOP=1", "-v", f"space={space}", "-f", EXAMPLES / "client.sql", url]
    for learned in (1, 2):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert "Change the e-mail address" in done.stdout
        assert _learn(url) == 1
        outcomes = [(revision, what) for _, revision, what in _ledger(connection, space)]
        assert outcomes == [(0, "no outcome"), (1, "adapter")] * learned
    rows = connection.execute(
        "SELECT trajectories, pending, events_learned, trajectory_retention FROM sona.status WHERE space = %s", (space,)
    ).fetchall()
    assert rows == [(2, 0, 2, "1 year")]
