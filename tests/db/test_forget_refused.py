"""A user is forgotten whole or not at all: by whom it may not be, by whom it was killed, and by the command."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable

import numpy as np
import pytest
from acceptance.audit import inconsistencies, replayed
from psycopg.conninfo import make_conninfo

from sona_pg import DatabaseBusy, IncompleteLedger, PermissionDenied, SonaEngine, StoreConfig
from sona_pg.steps import ENV_KILL_AT, FORGET
from sona_pg.store.connection import Connection, connect
from sona_pg.worker import InstantWorker

from .command_line import sona
from .conftest import DIM
from .forgetting import Matrix, _everything, _some
from .forgetting import open_space as open_space
from .forgetting import worker as worker

# Refused, or killed


def test_a_role_that_may_not_learn_is_refused_and_nothing_changes(
    url: str,
    role: Callable[..., str],
    open_space: Callable[[str], SonaEngine],
    connection: Connection,
    space_name: str,
    rng: np.random.Generator,
    items: tuple[str, Matrix],
) -> None:
    engine = open_space(space_name)
    _some(engine, "bob ann", rng)
    logins = {kind: role(f"forget_{kind}", f"sona_{kind}") for kind in ("reader", "app", "worker")}
    for kind, login in logins.items():
        connection.execute("SELECT sona.grant_space(%s, %s, %s)", (space_name, login, kind == "app"))
        connection.execute(f"GRANT SELECT ON {items[0]} TO {login}")
    before = _everything(connection, engine.space.space_id)
    for login in logins.values():
        with (
            SonaEngine.connect(make_conninfo(url, user=login), space=space_name, background=False) as other,
            pytest.raises(PermissionDenied),
        ):
            other.forget("ann")
    assert _everything(connection, engine.space.space_id) == before
    connection.execute("SELECT sona.grant_space(%s, %s)", (space_name, logins["worker"]))
    with SonaEngine.connect(make_conninfo(url, user=logins["worker"]), space=space_name, background=False) as may:
        assert may.forget("ann").trajectories == 1
    assert inconsistencies(connection, engine.space.space_id) == []


def test_a_space_that_is_held_is_refused_after_a_while_and_nothing_changes(
    url: str, open_space: Callable[[str], SonaEngine], connection: Connection, space_name: str, rng: np.random.Generator
) -> None:
    engine = open_space(space_name)
    key = engine.space.space_id
    _some(engine, "bob ann", rng)
    before = _everything(connection, key)
    impatient = StoreConfig(lock_timeout_seconds=1)
    with SonaEngine.connect(url, space=space_name, background=False, store=impatient) as other, connect(url) as holder:
        with holder.transaction():
            holder.execute("SELECT FROM sona.strategist WHERE space_id = %s FOR UPDATE", (key,))
            with pytest.raises(DatabaseBusy):
                other.forget("ann")
        assert _everything(connection, key) == before
        assert other.forget("ann").trajectories == 1


@pytest.mark.parametrize("step", FORGET)
def test_killed_at_any_step_it_has_forgotten_all_or_nothing(
    step: str,
    url: str,
    open_space: Callable[[str], SonaEngine],
    worker: InstantWorker,
    connection: Connection,
    space_name: str,
    rng: np.random.Generator,
) -> None:
    engine = open_space(space_name)
    key = engine.space.space_id
    _some(engine, "bob ann cid ann dan", rng)
    before = _everything(connection, key)
    killed = sona("forget", space_name, "ann", "--yes", url=url, **{ENV_KILL_AT: step})
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    # Its lock goes with its connection, which the server gives up a moment later.
    connection.execute("SELECT sona._lock_learner(%s)", (key,))
    after = _everything(connection, key)
    if step == "forget.after_commit":
        assert [len(after[table]) for table in ("trajectory", "learning_event", "remembered_query")] == [3, 6, 0]
        while worker.weigh():
            pass
        engine.flush()
    else:
        assert after == before
        assert engine.forget("ann").trajectories == 2
    assert inconsistencies(connection, key) == []
    assert connection.execute("SELECT unweighed FROM sona.status WHERE space = %s", (space_name,)).fetchall() == [(0,)]
    assert replayed(connection, engine)[0].to_bytes() == engine.instant.learner.to_bytes()


@pytest.mark.parametrize(
    ("kept", "says", "left"),
    [
        (("90 days", None), "1 trajectories of the ledger .*, and the steps of 0 others", ["cid", "cid"]),
        ((None, "90 days"), "0 trajectories of the ledger .*, and the steps of 1 others", ["bob", "bob", "cid", "cid"]),
    ],
)
def test_what_retention_has_deleted_is_lost_only_if_that_is_accepted(
    kept: tuple[str | None, str | None],
    says: str,
    left: list[str],
    open_space: Callable[[str], SonaEngine],
    connection: Connection,
    space_name: str,
    rng: np.random.Generator,
) -> None:
    engine = open_space(space_name)
    key = engine.space.space_id
    first, *_ = _some(engine, "bob ann cid", rng)
    connection.execute(
        "UPDATE sona.trajectory SET created_at = now() - interval '100 days'"
        " WHERE space_id = %s AND trajectory_id = %s",
        (key, first),
    )
    connection.execute("SELECT sona.set_retention(%s, %s::interval, %s::interval)", (space_name, *kept))
    assert connection.execute("SELECT sona.apply_retention(%s)", (space_name,)).fetchall() == [(1,)]
    before = _everything(connection, key)
    with pytest.raises(IncompleteLedger, match=says):
        engine.forget("ann")
    assert _everything(connection, key) == before
    report = engine.forget("ann", accept_lost=True)
    assert (report.trajectories, report.lost) == (1, 1)
    rows = connection.execute(
        "SELECT user_id FROM sona.learning_event JOIN sona.trajectory USING (space_id, trajectory_id)"
        " WHERE space_id = %s ORDER BY ordinal",
        (key,),
    ).fetchall()
    assert [user for (user,) in rows] == left
    assert inconsistencies(connection, key) == []
    assert replayed(connection, engine)[0].to_bytes() == engine.instant.learner.to_bytes()


def test_steps_that_retention_has_deleted_stay_lost_whatever_it_is_set_to_later(
    open_space: Callable[[str], SonaEngine], connection: Connection, space_name: str, rng: np.random.Generator
) -> None:
    engine = open_space(space_name)
    key = engine.space.space_id
    # Nothing came of it: by its ledger entry alone it may as well have been recorded without steps.
    engine.record(rng.standard_normal(DIM).astype(np.float32), ["1", "2"], user_id="bob")
    engine.flush()
    connection.execute(
        "UPDATE sona.trajectory SET created_at = now() - interval '100 days' WHERE space_id = %s", (key,)
    )
    _some(engine, "ann", rng)
    marks = []
    for kept in ("90 days", None, "120 days"):
        connection.execute("SELECT sona.set_retention(%s, steps => %s::interval)", (space_name, kept))
        connection.execute("SELECT sona.apply_retention(%s)", (space_name,))
        marks += connection.execute("SELECT steps_lost_before FROM sona.space WHERE space_id = %s", (key,)).fetchall()
    assert marks[0][0] is not None
    assert marks == [marks[0]] * 3
    with pytest.raises(IncompleteLedger, match="the steps of 1 others"):
        engine.forget("ann")
    assert engine.forget("ann", accept_lost=True).lost == 1


# The command


def test_the_command_asks_first_and_says_what_is_gone(
    url: str, open_space: Callable[[str], SonaEngine], connection: Connection, space_name: str, rng: np.random.Generator
) -> None:
    engine = open_space(space_name)
    _some(engine, "bob ann", rng)
    before = _everything(connection, engine.space.space_id)
    asked = sona("forget", space_name, "ann", url=url)
    assert asked.returncode == 1
    assert "for good?" in asked.stderr
    assert _everything(connection, engine.space.space_id) == before
    done = sona("forget", space_name, "ann", "--yes", "--json", url=url)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["trajectories"], found["steps"], found["entries"], found["version"]) == (1, 3, 2, 2)
    again = sona("forget", space_name, "ann", "--yes", url=url)
    assert (again.returncode, again.stdout) == (0, f"space {space_name!r} knows no user 'ann': nothing was changed\n")
    missing = sona("forget", "no such space", "ann", "--yes", url=url)
    assert missing.returncode == 1
    assert "no such space" in missing.stderr
