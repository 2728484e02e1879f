"""The control arm, and what it shows: shares, lift, harm that is given up, and the shadow that only reports."""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterator
from datetime import timedelta

import numpy as np
import pytest

from sona_pg import ConfigError, InvalidInput, SpaceConfig
from sona_pg.config import StoreConfig, StrategyConfig
from sona_pg.learning.lift import is_control
from sona_pg.store import spaces
from sona_pg.store.connection import Connection, connect, translated
from sona_pg.store.database import Database
from sona_pg.worker import InstantWorker

from .recurring import QUESTIONS, World

SHARE = 0.3


@pytest.fixture
def world(url: str, space_name: str) -> Iterator[World]:
    made = World(url, space_name, control_share=SHARE)
    yield made
    made.engine.close()


def _worth(world: World, answers: int, learned: float, control: float, seed: int = 0) -> None:
    """Answers of random worth, which depends on the arm alone."""
    rng = np.random.default_rng(seed)
    for answer in range(answers):
        found = world.engine.recall(world.ask(answer % QUESTIONS))
        mean = control if found.answer.arm == "control" else learned
        world.engine.record(found, quality=float(np.clip(rng.normal(mean, 0.2), 0.0, 1.0)))
        if answer % 20 == 19:
            world.engine.flush()
    world.engine.flush()


def _fix(world: World, connection: Connection, strategy: str = "adapted") -> None:
    spaces.set_strategy(connection, world.name, strategy)
    world.engine.flush()


def test_the_arm_is_drawn_by_the_id_and_the_control_gets_the_frozen_embedding(
    world: World, connection: Connection
) -> None:
    world.teach(120)
    _fix(world, connection, "fusion")
    bare = f"SELECT id::text FROM {world.table} ORDER BY embedding <=> %s LIMIT 10"
    arms = []
    for question in range(60):
        query = world.ask(question % QUESTIONS)
        frozen = [row[0] for row in connection.execute(bare, (query,)).fetchall()]  # type: ignore[arg-type]
        found = world.engine.recall(query)
        rows = connection.execute(
            "SELECT trajectory_id, item_id, arm, strategy, propensity, version FROM sona.recall(%s, %s) ORDER BY rank",
            (world.name, query),
        ).fetchall()
        for id, items, arm, strategy, propensity in (
            (found.trajectory_id, [item.item_id for item in found.items], found.answer.arm, found.answer.strategy,
             found.answer.propensity),
            (rows[0][0], [row[1] for row in rows], *rows[0][2:5]),
        ):  # fmt: skip
            assert arm == ("control" if is_control(id, np.float32(SHARE)) else "learned")
            assert strategy == ("frozen" if arm == "control" else "fusion")
            assert propensity == pytest.approx(SHARE if arm == "control" else 1 - SHARE, abs=1e-6)
            if arm == "control":
                assert items == frozen
            arms.append((arm, items == frozen))
    assert 15 <= sum(arm == "control" for arm, _ in arms) <= 60
    assert any(arm == "learned" and not same for arm, same in arms)


def test_without_a_control_arm_there_is_none(world: World, connection: Connection) -> None:
    spaces.set_control_share(connection, world.name, 0.0)
    world.engine.flush()
    for question in range(40):
        answer = world.engine.recall(world.ask(question % QUESTIONS)).answer
        assert (answer.arm, answer.propensity) == ("learned", 1.0)
    assert connection.execute(
        "SELECT DISTINCT arm, propensity FROM generate_series(1, 40), sona.recall(%s, %s)", (world.name, world.ask(0))
    ).fetchall() == [("learned", 1.0)]
    _worth(world, 20, 0.5, 0.5)
    rows = connection.execute("SELECT lift, lower, upper FROM sona.lift WHERE space = %s", (world.name,)).fetchall()
    assert rows == [(None, None, None)]


def test_the_view_is_what_the_answers_say(world: World, connection: Connection) -> None:
    _fix(world, connection)
    _worth(world, 100, 0.7, 0.5)
    connection.execute(
        "UPDATE sona.answer_outcome SET answered_at = answered_at - interval '1 day' WHERE space_id = %s"
        " AND ordinal < 40",
        (world.engine.space.space_id,),
    )
    outcomes = world.rows(
        "SELECT ordinal, arm, value, contrast, propensity FROM sona.answer_outcome WHERE space_id = %(space)s"
        " ORDER BY ordinal"
    )
    assert len(outcomes) == 100
    rows = connection.execute(
        "SELECT day, learned_answers, control_answers, learned_value, control_value, lift, lift_so_far, lower, upper"
        " FROM sona.lift WHERE space = %s ORDER BY day",
        (world.name,),
    ).fetchall()
    assert rows[1][0] - rows[0][0] == timedelta(days=1)
    contrasts = np.array([row[3] for row in outcomes], dtype=float)
    for row, part in zip(rows, (outcomes[:40], outcomes[40:]), strict=True):
        for arm, count, mean in (("learned", row[1], row[3]), ("control", row[2], row[4])):
            values = [float(str(o[2])) for o in part if o[1] == arm]
            assert count == len(values)
            assert mean == pytest.approx(np.mean(values))
        assert row[5] == pytest.approx(np.mean([float(str(o[3])) for o in part]))
    for row, n in zip(rows, (40, 100), strict=True):
        so_far = contrasts[:n]
        margin = so_far.std() * math.sqrt(2 * (n * 0.01 + 1) / (n**2 * 0.01) * math.log(math.sqrt(n * 0.01 + 1) / 0.05))
        margin += max(1 / float(str(o[4])) for o in outcomes[:n]) * math.log(20) / n
        assert row[6] == pytest.approx(so_far.mean())
        assert row[7:] == pytest.approx((so_far.mean() - margin, so_far.mean() + margin))
    assert rows[1][7] < 0.2 < rows[1][8]


def test_harm_is_given_up_with_an_entry_and_comes_back_only_when_told(world: World, connection: Connection) -> None:
    _fix(world, connection)
    _worth(world, 400, 0.4, 0.6)
    status = "SELECT strategy, in_force, unweighed FROM sona.status WHERE space = %s"
    assert connection.execute(status, (world.name,)).fetchall() == [("frozen", "frozen", 0)]
    query = world.ask(0)
    assert world.engine.recall(query).answer.strategy == "frozen"
    assert world.engine.adapt(query).tobytes() == query.tobytes()
    messages = connection.execute("SELECT source, message FROM sona.errors WHERE space = %s", (world.name,)).fetchall()
    assert len(messages) == 1
    assert messages[0][0] == "lift"
    assert "adapted is given up" in messages[0][1]
    trail = "SELECT action, before, after FROM sona.deployments WHERE space = %s ORDER BY created_at DESC LIMIT 1"
    assert connection.execute(trail, (world.name,)).fetchall() == [("freeze", "adapted", "frozen")]
    learned = world.engine.instant.learner.events
    _worth(world, 200, 0.4, 0.6)  # nothing more happens while it is frozen
    assert len(connection.execute("SELECT FROM sona.errors WHERE space = %s", (world.name,)).fetchall()) == 1
    world.teach(20)
    assert world.engine.instant.learner.events == learned + 20
    _fix(world, connection)
    _worth(world, 60, 0.6, 0.6)
    assert connection.execute(status, (world.name,)).fetchall() == [("adapted", "adapted", 0)]


def test_what_helps_is_not_given_up(world: World, connection: Connection) -> None:
    _fix(world, connection)
    _worth(world, 400, 0.6, 0.5)
    assert connection.execute("SELECT strategy FROM sona.status WHERE space = %s", (world.name,)).fetchall() == [
        ("adapted",)
    ]
    assert not connection.execute("SELECT FROM sona.errors WHERE space = %s", (world.name,)).fetchall()


def test_the_control_arm_grows_while_harm_is_suspected_and_for_nobody_who_has_none(
    world: World, connection: Connection
) -> None:
    _fix(world, connection)
    share = StrategyConfig().suspected_share
    shares = "SELECT control_share FROM sona.status WHERE space = %s"
    for turn in range(20):
        _worth(world, 3, 0.4, 0.6, seed=turn)
        if connection.execute(shares, (world.name,)).fetchall() == [(share,)]:
            break
    assert connection.execute(shares, (world.name,)).fetchall() == [(share,)]
    assert {world.engine.recall(world.ask(0)).answer.propensity for _ in range(20)} <= {share, 1 - share}
    spaces.set_control_share(connection, world.name, 0.0)
    world.engine.flush()
    assert connection.execute(shares, (world.name,)).fetchall() == [(0.0,)]
    assert world.engine.recall(world.ask(0)).answer.propensity == 1.0


def test_a_late_outcome_counts_once_and_a_correction_changes_the_value(world: World, connection: Connection) -> None:
    _fix(world, connection)
    found = world.engine.recall(world.ask(0))
    id = world.engine.record(found)
    world.engine.flush()
    outcome = "SELECT value, contrast FROM sona.answer_outcome WHERE space_id = %(space)s"
    assert world.rows(outcome) == []
    first = found.items[0].item_id
    world.engine.score(id, 1.0, first)
    world.engine.flush()
    ((value, contrast),) = world.rows(outcome)
    assert value == pytest.approx(1.0)
    world.engine.score(id, 0.0, first)
    world.engine.score(id, 1.0, found.items[1].item_id)
    world.engine.flush()
    ((corrected, same),) = world.rows(outcome)
    assert corrected == pytest.approx(1 / math.log2(3))
    assert same == contrast


def test_an_answer_of_no_arm_says_nothing_of_the_lift(world: World) -> None:
    world.engine.record(world.ask(0), ["1", "2"], [0.0, 1.0])
    world.engine.flush()
    outcome = "SELECT strategy, value, contrast, gain FROM sona.answer_outcome WHERE space_id = %(space)s"
    assert world.rows(outcome) == [("unknown", pytest.approx(1 / math.log2(3)), None, None)]
    assert world.rows("SELECT learned_answers, control_answers, gain FROM sona.lift WHERE space = %(name)s") == [
        (0, 0, None)
    ]


@pytest.mark.parametrize(("arm", "propensity"), [("control", 1e-37), ("learned", 1e-6), ("control", 0.9), ("it", 0.5)])
def test_an_arm_that_cannot_be_says_nothing_of_the_lift(world: World, arm: str, propensity: float) -> None:
    with connect(world.url) as connection:
        connection.execute(
            "SELECT sona.record(%s, %s, '{1}', quality => 0, arm => %s, propensity => %s, strategy => 'adapted')",
            (world.name, world.ask(0), arm, propensity),
        )
    worker = InstantWorker(Database(world.url, StoreConfig()))
    while worker.step() + worker.weigh():
        pass
    worker.close()
    assert world.rows("SELECT value, contrast FROM sona.answer_outcome WHERE space_id = %(space)s") == [(0.0, None)]


def test_a_correction_leaves_the_gain_of_the_first_outcome(world: World) -> None:
    spaces_of = "SELECT trajectory_id, gain FROM sona.answer_outcome WHERE space_id = %(space)s ORDER BY 1"
    world.teach(120)
    before = world.rows(spaces_of)
    assert any(gain is not None for _, gain in before)
    for id, _ in before:
        world.engine.score(uuid.UUID(str(id)), 1.0, "7")
    world.engine.flush()
    after = dict(world.rows(spaces_of))
    assert all(after[id] == gain for id, gain in before if gain is not None)


def test_late_outcomes_of_what_was_given_up_do_not_harm_what_replaced_it(world: World, connection: Connection) -> None:
    _fix(world, connection)
    answered = [world.engine.recall(world.ask(turn % QUESTIONS)) for turn in range(200)]
    ids = [world.engine.record(found) for found in answered]
    world.engine.flush()
    _fix(world, connection, "familiar")
    for id, found in zip(ids, answered, strict=True):
        world.engine.score(id, 0.9 if found.answer.arm == "control" else 0.1)
    world.engine.flush()
    assert world.rows("SELECT count(contrast) FROM sona.answer_outcome WHERE space_id = %(space)s") == [(200,)]
    assert world.rows("SELECT strategy, control_share FROM sona.status WHERE space = %(name)s") == [
        ("familiar", pytest.approx(SHARE))
    ]


def test_shadow_learns_and_reports_while_answers_are_frozen(url: str, space_name: str, connection: Connection) -> None:
    world = World(url, space_name, strategy="shadow", control_share=SHARE)
    query = world.ask(0)
    for _ in range(300 // 60):
        world.teach(60)
        answer = world.engine.recall(query).answer
        assert (answer.arm, answer.strategy, answer.propensity) == ("shadow", "frozen", 1.0)
        assert world.engine.adapt(query).tobytes() == query.tobytes()
    (row,) = connection.execute(
        "SELECT strategy, in_force, proven, control_share FROM sona.status WHERE space = %s", (world.name,)
    ).fetchall()
    assert row[:2] == ("shadow", "frozen")
    assert row[2] in ("stake", "fusion")
    assert row[3] == 0
    gains = world.rows(
        "SELECT arm, strategy, avg(gain) FILTER (WHERE ordinal > 200) > 0 FROM sona.answer_outcome"
        " WHERE space_id = %(space)s GROUP BY 1, 2"
    )
    assert gains == [("shadow", "frozen", True)]
    assert (
        connection.execute("SELECT sona.adapt(%s, %s)", (world.name, query)).fetchall()[0][0].tobytes()
        == query.tobytes()
    )
    spaces.set_strategy(connection, world.name, "learned")
    world.engine.flush()
    assert world.engine.evidence.served.strategy == row[2]
    world.engine.close()


def test_harmed_answers_are_listed_with_why_what_answered_was_in_force(world: World, connection: Connection) -> None:
    world.teach(330)
    # What the frozen embedding shows first is right from now on.
    world.teach(30, helped=lambda question: str(int(np.argmax(world.items @ world.topics[question]))))
    rows = connection.execute(
        "SELECT h.trajectory_id, h.gain, h.strategy, h.in_force_because, o.arm FROM sona.harmed h"
        " JOIN sona.answer_outcome o USING (trajectory_id) WHERE h.space = %s",
        (world.name,),
    ).fetchall()
    counted = connection.execute("SELECT sum(harmed)::int FROM sona.lift WHERE space = %s", (world.name,)).fetchall()
    assert counted == [(len(rows),)]
    assert all(gain < 0 and arm == "learned" and strategy != "frozen" for _, gain, strategy, _, arm in rows)
    assert rows
    expected = world.rows("SELECT count(*) FROM sona.answer_outcome WHERE space_id = %(space)s AND gain < -1e-9")
    assert expected == [(len(rows),)]


@pytest.mark.parametrize("share", [-0.1, 0.6, math.nan, 1e-9, None])
def test_a_share_that_is_none_is_refused(world: World, connection: Connection, share: float | None) -> None:
    with pytest.raises(InvalidInput, match=r"expected 0, or 0\.001 to 0\.5"), translated():
        connection.execute("SELECT sona.set_control_share(%s, %s)", (world.name, share))
    if share is not None:
        with pytest.raises(ConfigError):
            SpaceConfig(control_share=share)
