"""Versions: what is deployed answers as it did, bit for bit, and learning goes on from there."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from typing import Any

import numpy as np
import psycopg
import pytest

from sona_pg import DamagedVersion, InvalidInput, PermissionDenied, SonaEngine, StoreConfig, UnknownVersion
from sona_pg.config import WorkerConfig
from sona_pg.store import spaces
from sona_pg.store.connection import Connection, connect, translated
from sona_pg.store.database import Database
from sona_pg.store.learning import read_state
from sona_pg.store.versions import read_version
from sona_pg.worker import InstantWorker

from .recurring import DIM, QUESTIONS, World

PUBLISH = StoreConfig(publish_every_events=50)


@pytest.fixture
def world(url: str, space_name: str) -> Iterator[World]:
    """Three versions, in the last of which the fusion may answer."""
    made = World(url, space_name)
    made.engine.close()
    made.engine = SonaEngine.connect(url, space=space_name, background=False, store=PUBLISH)
    yield made
    made.engine.close()


def _fingerprint(world: World, connection: Connection) -> tuple[object, ...]:
    """All that answers: the learner, and what Python and SQL give."""
    probes = np.random.default_rng(5).standard_normal((QUESTIONS, DIM)).astype(np.float32)
    adapted = [connection.execute("SELECT sona.adapt(%s, %s)", (world.name, p)).fetchall()[0][0] for p in probes]
    served = connection.execute(
        "SELECT tier, ordinal, down::text, up::text FROM sona.served_row WHERE space_id = %s"
        " AND tier IN ('adapter', 'micro') ORDER BY 1, 2",
        (world.engine.space.space_id,),
    ).fetchall()
    strategy = connection.execute(
        "SELECT in_force, is_sane, known, strange, unseen, weights FROM sona.strategist WHERE space_id = %s",
        (world.engine.space.space_id,),
    ).fetchall()
    return (
        world.engine.instant.learner.to_bytes(),
        world.engine.adapt(probes).tobytes(),
        b"".join(np.asarray(vector, dtype=np.float32).tobytes() for vector in adapted),
        served,
        strategy,
    )


def _taught(world: World, connection: Connection, events: int = 300) -> dict[int, tuple[object, ...]]:
    """Teach, and note how each version answered when it was published."""
    seen: dict[int, tuple[object, ...]] = {}
    for _ in range(0, events, 25):
        world.teach(25, flush_every=25)
        version = world.engine.instant.version
        if version and version not in seen and world.engine.instant.learner.events % 50 == 0:
            # The strategist has weighed since: publish once more what answers now.
            connection.execute("SELECT sona._publish(%s, 'for the test')", (world.engine.space.space_id,))
            world.engine.flush()
            seen[version + 1] = _fingerprint(world, connection)
    assert len(seen) >= 3
    return seen


def test_a_version_answers_as_it_did_bit_for_bit(world: World, connection: Connection) -> None:
    seen = _taught(world, connection)
    assert len({prints[4] == () or str(prints[4]) for prints in seen.values()}) > 1
    for version in sorted(seen, reverse=True):
        assert world.engine.deploy(version) == version
        assert _fingerprint(world, connection) == seen[version]
    for version, prints in seen.items():
        with translated():
            connection.execute("SELECT sona.deploy(%s, %s::bigint)", (world.name, version))
        world.engine.flush()
        assert _fingerprint(world, connection) == prints


def test_learning_goes_on_from_what_was_deployed(world: World, connection: Connection) -> None:
    seen = _taught(world, connection)
    first, *_, last = sorted(seen)
    before = world.engine.versions()[-1].version
    world.engine.deploy(first)
    world.teach(60)
    assert _fingerprint(world, connection) != seen[first]
    made = world.engine.versions()
    child = next(v for v in made if v.version > before)
    assert child.parent == first
    assert [v.version for v in made if v.is_in_force] == [child.version]
    assert connection.execute("SELECT unweighed FROM sona.status WHERE space = %s", (world.name,)).fetchall() == [(0,)]
    # Nothing of the ledger is learned twice, or lost.
    assert world.rows(
        "SELECT count(*), count(DISTINCT trajectory_id), max(ordinal) + 1 FROM sona.learning_event"
        " WHERE space_id = %(space)s"
    ) == [(360, 360, 360)]
    world.engine.deploy(last)
    assert _fingerprint(world, connection) == seen[last]


def test_latest_is_what_has_learned_from_most(world: World) -> None:
    world.teach(170)
    world.engine.deploy("rollback")
    world.teach(20)
    # The mistake is undone; what was learned meanwhile beside it does not become the latest.
    assert world.engine.deploy("latest") == 4
    assert [(v.version, v.parent) for v in world.engine.versions()][3:] == [(4, 3), (5, 2)]
    assert world.engine.deploy("latest") == 4
    world.teach(10)
    assert world.engine.deploy("latest") == 6


def test_the_strategist_goes_on_from_what_was_deployed(world: World, connection: Connection) -> None:
    seen = _taught(world, connection)
    version = max(seen)
    world.engine.deploy(version)
    in_force = world.engine.recall(world.ask(0)).answer.strategy
    world.teach(20)
    assert world.rows("SELECT restored, ordinal FROM sona.strategist WHERE space_id = %(space)s") == [(None, 320)]
    assert world.engine.recall(world.ask(0)).answer.strategy == in_force != "frozen"


def test_rollback_goes_to_the_parent_and_further(world: World, connection: Connection) -> None:
    world.teach(170)
    assert [v.version for v in world.engine.versions()] == [1, 2, 3]
    assert world.engine.deploy("rollback", "it got worse") == 2
    # What had been learned since version 3 was published has a way back, too.
    assert [(v.version, v.parent, v.cause) for v in world.engine.versions()][3:] == [
        (4, 3, "before version 2 was deployed")
    ]
    assert world.engine.deploy("rollback") == 1
    with pytest.raises(UnknownVersion, match=r"nothing before version 1: deploy '1' drops"):
        world.engine.deploy("rollback")
    assert world.engine.deploy("latest") == 4
    assert len(world.engine.versions()) == 4
    trail = connection.execute(
        "SELECT action, before, after, reason, actor FROM sona.deployments WHERE space = %s ORDER BY created_at",
        (world.name,),
    ).fetchall()
    who = connection.execute("SELECT session_user").fetchall()[0][0]
    assert ("deploy", "4", "2", "it got worse", who) in trail
    assert [row[:3] for row in trail if row[0] == "deploy"] == [
        ("deploy", "4", "2"), ("deploy", "2", "1"), ("deploy", "1", "4"),
    ]  # fmt: skip


def test_frozen_answers_as_if_nothing_was_learned_while_learning_goes_on(world: World, connection: Connection) -> None:
    world.teach(120)
    query = world.ask(0)
    world.engine.deploy("frozen", "to be safe")
    assert world.engine.adapt(query).tobytes() == query.tobytes()
    assert world.engine.recall(query).answer.strategy == "frozen"
    learned = world.engine.instant.learner.events
    world.teach(20)
    assert world.engine.instant.learner.events == learned + 20
    world.engine.deploy("frozen")  # twice is once
    assert world.engine.deploy("latest") == max(v.version for v in world.engine.versions())
    assert connection.execute("SELECT strategy FROM sona.status WHERE space = %s", (world.name,)).fetchall() == [
        ("learned",)
    ]


def test_a_fixed_strategy_comes_back_with_its_version(world: World, connection: Connection) -> None:
    world.teach(60)
    spaces.set_strategy(connection, world.name, "boosted")
    world.teach(60)
    spaces.set_strategy(connection, world.name, "adapted")
    assert world.engine.deploy(1) == 1
    assert [v.setting for v in world.engine.versions()[:2]] == ["learned", "boosted"]
    assert connection.execute("SELECT strategy FROM sona.status WHERE space = %s", (world.name,)).fetchall() == [
        ("learned",)
    ]
    world.engine.deploy(2)
    assert world.engine.recall(world.ask(0)).answer.strategy == "boosted"


def test_regions_that_were_exceptions_come_back(world: World, connection: Connection) -> None:
    world.teach(120)
    key = world.engine.space.space_id
    connection.execute("UPDATE sona.strategy_region SET verdict = -1 WHERE space_id = %s AND region = 0", (key,))
    regions = "SELECT region, centroid::text, verdict FROM sona.strategy_region WHERE space_id = %s ORDER BY region"
    before = connection.execute(regions, (key,)).fetchall()
    connection.execute("SELECT sona._publish(%s, 'for the test')", (key,))
    version = world.engine.versions()[-1].version
    connection.execute(
        "UPDATE sona.strategy_region r SET centroid = x.centroid FROM sona.strategy_region x"
        " WHERE r.space_id = %s AND x.space_id = r.space_id AND r.region = 1 AND x.region = 0",
        (key,),
    )
    connection.execute("UPDATE sona.strategy_region SET verdict = 0 WHERE space_id = %s", (key,))
    world.engine.deploy(version)
    assert connection.execute(regions, (key,)).fetchall() == before


def test_another_process_takes_over_what_was_deployed(world: World, url: str, connection: Connection) -> None:
    world.teach(120)
    with SonaEngine.connect(url, space=world.name, background=False) as other:
        world.engine.deploy(1)
        # With an event of its own in flight: it is learned on what was deployed.
        found = other.recall(world.ask(1))
        other.record(found, rewards={str(world.answers[1]): 1.0})
        other.learn()
        other.flush()
        world.engine.flush()
        assert other.instant.learner.to_bytes() == world.engine.instant.learner.to_bytes()
        assert other.instant.learner.events == 61
        assert other.metrics.replays == 1


def test_deploys_during_learning_lose_and_double_nothing(world: World, url: str, connection: Connection) -> None:
    world.teach(160)
    stop, failures = threading.Event(), []

    def deploy_all_the_time() -> None:
        rng = np.random.default_rng(3)
        with connect(url) as own:
            while not stop.is_set():
                try:
                    what = ("1", "2", "rollback", "latest", "frozen")[rng.integers(5)]
                    own.execute("SELECT sona.deploy(%s, %s)", (world.name, what))
                except psycopg.Error as error:
                    if error.sqlstate != "SN005":
                        failures.append(error)

    thread = threading.Thread(target=deploy_all_the_time)
    thread.start()
    ids = []
    for event in range(120):
        question = event % QUESTIONS
        ids.append(world.engine.record(world.engine.recall(world.ask(question)), rewards={str(question): 1.0}))
        if event % 3 == 0:
            world.engine.flush()
    stop.set()
    thread.join()
    world.engine.flush()
    assert not failures
    rows = connection.execute(
        "SELECT trajectory_id, ordinal FROM sona.learning_event WHERE space_id = %s ORDER BY ordinal",
        (world.engine.space.space_id,),
    ).fetchall()
    assert [row[1] for row in rows] == list(range(280))
    assert {row[0] for row in rows} >= set(ids)
    assert connection.execute("SELECT unweighed FROM sona.status WHERE space = %s", (world.name,)).fetchall() == [(0,)]
    assert not connection.execute("SELECT message FROM sona.errors WHERE space = %s", (world.name,)).fetchall()


# Bad input


@pytest.mark.parametrize(
    ("what", "error", "says"),
    [
        ("99", UnknownVersion, "there is no version 99, the newest is 2"),
        ("0", UnknownVersion, "there is no version 0"),
        ("best", InvalidInput, "there is no version 'best': use a number"),
        ("", InvalidInput, "use a number"),
        ("-1", InvalidInput, "use a number"),
        ("9" * 30, InvalidInput, "use a number"),
    ],
)
def test_an_unknown_version_is_refused(world: World, what: str, error: type[Exception], says: str) -> None:
    world.teach(100)
    with pytest.raises(error, match=says):
        world.engine.deploy(what)
    with pytest.raises(InvalidInput, match="expected a number"):
        world.engine.deploy(True)


def test_a_frozen_space_without_versions_thaws(world: World, connection: Connection) -> None:
    world.engine.deploy("frozen")
    assert world.engine.deploy("latest") == 0
    assert connection.execute("SELECT strategy FROM sona.status WHERE space = %s", (world.name,)).fetchall() == [
        ("learned",)
    ]


def test_what_was_frozen_thaws_with_the_evidence_that_it_has(world: World) -> None:
    world.teach(300)
    evidence = "SELECT events, in_force, restored FROM sona.strategist WHERE space_id = %(space)s"
    before, state = world.rows(evidence), world.engine.instant.learner.to_bytes()
    world.engine.deploy("frozen")
    # Published with the events learned last, before these were weighed: it is not what is restored.
    assert world.engine.deploy("latest") == 6
    assert world.rows("SELECT strategy, frozen_from FROM sona.space WHERE space_id = %(space)s") == [("learned", None)]
    assert world.engine.instant.learner.to_bytes() == state
    assert world.rows(evidence) == before


def test_a_shadow_stays_one_and_what_was_set_comes_back(world: World, connection: Connection) -> None:
    world.teach(120)
    setting = "SELECT strategy FROM sona.status WHERE space = %s"
    spaces.set_strategy(connection, world.name, "shadow")
    world.engine.deploy(1)
    assert connection.execute(setting, (world.name,)).fetchall() == [("shadow",)]
    spaces.set_strategy(connection, world.name, "boosted")
    world.engine.deploy("frozen")
    world.engine.deploy("latest")
    assert connection.execute(setting, (world.name,)).fetchall() == [("boosted",)]
    world.engine.deploy(1)
    assert connection.execute(setting, (world.name,)).fetchall() == [("learned",)]
    trail = connection.execute(
        "SELECT before, after FROM sona.deployments WHERE space = %s AND action = 'strategy' ORDER BY created_at",
        (world.name,),
    ).fetchall()
    assert trail[-1] == ("boosted", "learned")


def test_deploys_and_settings_do_not_wait_for_each_other_in_a_circle(world: World, url: str) -> None:
    world.teach(120)
    failures: list[psycopg.Error] = []

    def again_and_again(statements: list[str]) -> None:
        with connect(url) as own:
            for turn in range(60):
                try:
                    own.execute(statements[turn % len(statements)], (world.name,))  # type: ignore[arg-type]
                except psycopg.Error as error:
                    failures.append(error)

    threads = [
        threading.Thread(target=again_and_again, args=(statements,))
        for statements in (
            ["SELECT sona.deploy(%s, '1')", "SELECT sona.deploy(%s, 'frozen')"],
            ["SELECT sona.set_strategy(%s, 'fusion')", "SELECT sona.set_control_share(%s, 0.1)"],
        )
    ]
    for thread in threads:
        thread.start()
    for _ in range(10):
        world.teach(5, flush_every=1)
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.parametrize("gone", ["before", "while it is read"])
def test_a_version_that_is_deleted_while_it_is_taken_over_does_no_harm(
    world: World, connection: Connection, url: str, gone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _taught(world, connection)
    first, second = (version.version for version in world.engine.versions()[:2])
    world.engine.deploy(first)
    space = world.engine.space
    expected = {version: read_version(connection, space, version) for version in (first, second)}

    def deploy_another_and_delete() -> None:
        with connect(url) as other, other.transaction():
            other.execute("SELECT sona.deploy(%s, %s)", (world.name, second))
            for table in ("version_row", "adapter_version"):
                other.execute(f"DELETE FROM sona.{table} WHERE space_id = %s AND version = %s", (space.space_id, first))

    execute, statements = connection.execute, 0

    def interrupted(*given: Any, **more: Any) -> Any:  # noqa: ANN401
        nonlocal statements
        statements += 1
        if gone == "before" and statements == 2:
            deploy_another_and_delete()
        found = execute(*given, **more)
        if gone != "before" and statements == 2:
            deploy_another_and_delete()
        return found

    monkeypatch.setattr(connection, "execute", interrupted)
    assert read_state(connection, space) == expected[second if gone == "before" else first]


def test_a_version_that_is_yet_to_be_taken_over_is_not_pruned(world: World, connection: Connection) -> None:
    for turn in range(120):
        world.engine.record(world.ask(turn % QUESTIONS), ["a", "b"], [1.0, 0.0])
        world.engine.flush()
    world.engine.set_items(world.table, "id", "embedding")
    world.teach(120)
    world.engine.deploy(1)
    connection.execute("UPDATE sona.learner SET version = 3 WHERE space_id = %s", (world.engine.space.space_id,))
    connection.execute("DELETE FROM sona.trajectory WHERE space_id = %s", (world.engine.space.space_id,))
    connection.execute("SELECT sona.prune_versions(%s, 1)", (world.name,))
    assert 1 in [v.version for v in world.engine.versions()]


def test_before_the_first_version_there_is_nothing_to_deploy_but_frozen(world: World) -> None:
    for what in ("latest", "rollback", 1):
        with pytest.raises(UnknownVersion, match="has published no version yet"):
            world.engine.deploy(what)
    for what in ("", " 1", "best"):
        with pytest.raises(InvalidInput, match="use a number"):
            world.engine.deploy(what)
    assert world.engine.deploy("frozen") == 0


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE sona.adapter_version SET state = set_byte(state, 100, get_byte(state, 100) # 1)",
        "UPDATE sona.adapter_version SET weights[1] = weights[1] + 1e-12",
        "UPDATE sona.adapter_version SET in_force = 'boosted'",
        "UPDATE sona.version_row SET up = down WHERE tier = 'adapter' AND ordinal = 0",
        "DELETE FROM sona.version_row WHERE tier = 'adapter' AND ordinal = 0",
    ],
)
def test_a_damaged_version_is_refused(world: World, connection: Connection, damage: str) -> None:
    world.teach(170)
    before = _fingerprint(world, connection)
    connection.execute(
        f"{damage} {'AND' if 'WHERE' in damage else 'WHERE'} space_id = %s AND version = 1",  # type: ignore[arg-type]
        (world.engine.space.space_id,),
    )
    with pytest.raises(DamagedVersion, match="version 1 is damaged: its checksum differs: deploy another version"):
        world.engine.deploy(1)
    assert _fingerprint(world, connection) == before
    assert world.engine.deploy(2) == 2


def test_a_pruned_version_says_so(world: World, connection: Connection) -> None:
    world.teach(170)
    connection.execute(
        "DELETE FROM sona.adapter_version WHERE space_id = %s AND version = 2", (world.engine.space.space_id,)
    )
    with pytest.raises(UnknownVersion, match="version 2 was deleted: it was pruned"):
        world.engine.deploy(2)


def test_versions_are_pruned_that_nothing_refers_to(world: World, connection: Connection, url: str) -> None:
    world.teach(330)
    assert [v.version for v in world.engine.versions()] == [1, 2, 3, 4, 5, 6]
    prune = "SELECT sona.prune_versions(%s, %s)"
    # Every version has answered something that is still there.
    assert connection.execute(prune, (world.name, 2)).fetchall() == [(0,)]
    connection.execute("SELECT sona.set_retention(%s, '1 day', NULL)", (world.name,))
    connection.execute(
        "UPDATE sona.trajectory SET created_at = now() - interval '3 days' WHERE space_id = %s AND version < 4",
        (world.engine.space.space_id,),
    )
    world.engine.deploy(3)
    worker = InstantWorker(Database(url, StoreConfig()), WorkerConfig(keep_versions=2, retention_interval_seconds=0))
    while worker.step():
        pass
    worker.step()
    worker.close()
    left = [v.version for v in world.engine.versions()]
    assert left == [2, 3, 4, 5, 6, 7]  # the one in force, its parent, and those that answered what is left
    with pytest.raises(InvalidInput, match="keep is 0"), translated():
        connection.execute(prune, (world.name, 0))


def test_who_may_only_read_deploys_nothing(world: World, connection: Connection, url: str) -> None:
    world.teach(60)
    role = f"reads_{uuid.uuid4().hex[:8]}"
    connection.execute(f"CREATE ROLE {role} LOGIN IN ROLE sona_worker")  # type: ignore[arg-type]
    connection.execute("SELECT sona.grant_space(%s, %s, false)", (world.name, role))
    try:
        with connect(psycopg.conninfo.make_conninfo(url, user=role)) as own:
            for what in ("1", "frozen", "latest"):
                with pytest.raises(PermissionDenied), translated():
                    own.execute("SELECT sona.deploy(%s, %s)", (world.name, what))
        assert world.rows("SELECT epoch FROM sona.learner WHERE space_id = %(space)s") == [(0,)]
    finally:
        connection.execute("SELECT sona.revoke_space(%s, %s)", (world.name, role))
        connection.execute(f"DROP ROLE {role}")  # type: ignore[arg-type]


def test_a_version_is_published_after_an_hour_too(world: World, connection: Connection) -> None:
    world.teach(10)
    assert not world.engine.versions()
    connection.execute(
        "UPDATE sona.space SET created_at = now() - interval '2 hours' WHERE space_id = %s",
        (world.engine.space.space_id,),
    )
    world.teach(10)
    world.teach(10)
    assert [(v.version, v.events) for v in world.engine.versions()] == [(1, 20)]
