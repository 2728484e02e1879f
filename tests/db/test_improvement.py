"""Metrics of improvement: each against its own computation in Python, on the same rows."""

from __future__ import annotations

import json
import uuid
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from sona_pg import ImprovementMetrics, SonaEngine, SpaceConfig
from sona_pg.cli.app import app
from sona_pg.learning.lift import confidence_sequence
from sona_pg.store import spaces
from sona_pg.store.connection import Connection, connect
from sona_pg.store.improvement import improvement_metrics, lift_days
from sona_pg.store.reader import read
from sona_pg.store.spaces import Space

DIM = 4


@dataclass(frozen=True)
class Answer:
    """An answer with an outcome, `days_ago` days ago, to a question whose best item is `item`."""

    days_ago: int
    value: float
    gain: float | None = None
    arm: str = "learned"
    propensity: float = 1.0
    contrast: float | None = None
    item: str | None = None
    strategy: str = "fusion"


def today() -> date:
    return datetime.now(UTC).date()


def noon(days_ago: int) -> datetime:
    """Of a day in UTC, so that no session's time zone moves it to another."""
    return datetime.combine(today() - timedelta(days=days_ago), datetime.min.time(), UTC) + timedelta(hours=12)


def write(connection: Connection, space: Space, answers: Sequence[Answer]) -> list[uuid.UUID]:
    """Write what answers were worth, as the strategist would, on days of the past."""
    ids = [uuid.uuid4() for _ in answers]
    with connection.transaction():
        for ordinal, (id, a) in enumerate(zip(ids, answers, strict=True)):
            connection.execute(
                "INSERT INTO sona.answer_outcome (space_id, trajectory_id, ordinal, answered_at, arm, strategy,"
                " version, propensity, value, contrast, gain) VALUES (%s, %s, %s, %s, %s, %s, 1, %s, %s, %s, %s)",
                (space.space_id, id, ordinal, noon(a.days_ago), a.arm, a.strategy, a.propensity, a.value)
                + (a.contrast, a.gain),
            )
            if a.item is not None:
                connection.execute(
                    "INSERT INTO sona.remembered_query (space_id, trajectory_id, embedding, ordinal, helped, rewards)"
                    " VALUES (%s, %s, %s, %s, %s, '{1}')",
                    (space.space_id, id, np.ones(DIM, dtype=np.float32), ordinal, [a.item]),
                )
    return ids


def rows(connection: Connection, space: Space) -> list[dict[str, Any]]:
    cursor = connection.execute("SELECT * FROM sona.improvement WHERE space = %s ORDER BY day", (space.name,))
    names = [column.name for column in cursor.description or ()]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def mixed(rng: np.random.Generator, days: Iterable[int], per_day: int = 80) -> list[Answer]:
    """Traffic of two arms on 12 questions, each with a gain of its own, that forgets a little."""
    answers = []
    for days_ago in days:
        for number in range(per_day):
            control = number % 4 == 0
            question = int(rng.integers(12))
            value = float(rng.uniform(0, 1))
            gain = None if control else float(0.02 * question - 0.04 + rng.normal(0, 0.05)) * (1 + days_ago / 50)
            answers.append(
                Answer(
                    days_ago,
                    value,
                    gain,
                    "control" if control else "learned",
                    0.25 if control else 0.75,
                    (-4 if control else 4 / 3) * (value - 0.5),
                    f"item {question}" if number % 3 else None,
                    "frozen" if control else "fusion",
                )
            )
    return answers


@pytest.fixture
def space(connection: Connection, space_name: str) -> Space:
    return spaces.create_space(connection, space_name, DIM)


def mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)


def retention_of(answers: Sequence[Answer], days: Iterable[int]) -> tuple[int, float, float, float]:
    """How many answers were asked again on these days; what their questions had gained, its error, and gain now."""
    by_question: dict[tuple[str, int], list[float]] = defaultdict(list)
    for a in answers:
        if a.item is not None and a.gain is not None:
            by_question[a.item, a.days_ago].append(a.gain)
    again, before = [], []
    for a in answers:
        if a.days_ago not in set(days) or a.item is None or a.gain is None:
            continue
        earlier = [g for d in range(a.days_ago + 1, a.days_ago + 8) for g in by_question.get((a.item, d), [])]
        if earlier:
            again.append(a.gain)
            before.append(mean(earlier))
    return len(again), mean(before), float(np.std(before) / np.sqrt(len(before))), mean(again)


class TestByDay:
    def test_every_figure_is_what_python_finds_in_the_rows(
        self, connection: Connection, space: Space, rng: np.random.Generator
    ) -> None:
        days = [*range(20, 10, -1), 5, 4, 0]
        answers = mixed(rng, days)
        write(connection, space, answers)
        found = rows(connection, space)
        assert [row["day"] for row in found] == [today() - timedelta(days=d) for d in days]
        so_far: list[float] = []
        weight = 0.0
        for row, days_ago in zip(found, days, strict=True):
            of_day = [a for a in answers if a.days_ago == days_ago]
            gains = [a.gain for a in of_day if a.gain is not None]
            contrasts = [a.contrast for a in of_day if a.contrast is not None]
            so_far += contrasts
            weight = max([weight, *(1 / a.propensity for a in of_day if a.contrast is not None)])
            assert row["answers"] == len(of_day)
            assert row["control_answers"] == sum(a.arm == "control" for a in of_day)
            assert row["quality"] == pytest.approx(mean(a.value for a in of_day))
            assert (row["judged"], row["gain"]) == (len(gains), pytest.approx(mean(gains)))
            assert float(row["harmed_share"]) == pytest.approx(mean(g < 0 for g in gains))
            assert row["lift"] == pytest.approx(mean(contrasts))
            n, deviation = len(so_far), float(np.std(so_far))
            margin = deviation * np.sqrt(2 * (0.01 * n + 1) / (0.01 * n * n) * np.log(np.sqrt(0.01 * n + 1) / 0.05))
            margin += weight * np.log(20) / n
            assert row["lift_so_far"] == pytest.approx(mean(so_far))
            assert row["upper"] - row["lower"] == pytest.approx(2 * margin)
            assert row["novel_connections"] is None
            scores = [(2, row["quality"]), (1, (1 + mean(so_far)) / 2), (1, (1 + mean(gains)) / 2)]
            scores.append((1, 1 - mean(g < 0 for g in gains)))
            if days_ago == 20:
                assert row["asked_again"] is row["retention"] is None
            else:
                asked, before, error, again = retention_of(answers, [days_ago])
                assert row["asked_again"] == asked >= 30
                assert (row["gain_before"], row["gain_again"]) == (pytest.approx(before), pytest.approx(again))
                assert row["gain_before_error"] == pytest.approx(error)
                assert before > 2 * error
                assert row["retention"] == pytest.approx(min(max(again / before, 0), 1))
                scores.append((1, row["retention"]))
            assert row["overall"] == pytest.approx(sum(w * s for w, s in scores) / sum(w for w, _ in scores))
            assert 0 <= row["overall"] <= 1
        assert any(0 < row["retention"] < 1 for row in found[1:])

    def test_what_python_draws_is_the_confidence_sequence_of_the_view(
        self, connection: Connection, space: Space, rng: np.random.Generator
    ) -> None:
        answers = mixed(rng, [3, 2, 1])
        write(connection, space, answers)
        contrasts = np.array([a.contrast for a in answers], dtype=np.float64)
        sequence = confidence_sequence(
            np.arange(1.0, len(contrasts) + 1),
            np.cumsum(contrasts),
            np.cumsum(contrasts**2),
            np.maximum.accumulate([0.0 if a.contrast is None else 1 / a.propensity for a in answers]),
        )
        ends = [79, 159, 239]
        for name, values in zip(("lift_so_far", "lower", "upper"), sequence, strict=True):
            assert [row[name] for row in rows(connection, space)] == pytest.approx(values[ends].tolist())

    def test_a_day_is_one_of_utc_whatever_the_session_says(self, connection: Connection, space: Space) -> None:
        (id,) = write(connection, space, [Answer(0, 0.5)])
        midnight = datetime(2024, 5, 2, tzinfo=UTC)
        for zone in ("Pacific/Kiritimati", "Pacific/Pago_Pago"):
            connection.execute("SELECT set_config('timezone', %s, false)", (zone,))
            for moment, day in ((midnight, midnight.date()), (midnight - timedelta(seconds=1), date(2024, 5, 1))):
                connection.execute(
                    "UPDATE sona.answer_outcome SET answered_at = %s WHERE trajectory_id = %s", (moment, id)
                )
                assert [row["day"] for row in rows(connection, space)] == [day]

    def test_without_a_control_arm_the_rest_is_told_all_the_same(self, connection: Connection, space: Space) -> None:
        write(connection, space, [Answer(0, 0.8, 0.1, item="a")] * 40)
        (row,) = rows(connection, space)
        assert row["lift"] is row["lift_so_far"] is row["lower"] is row["upper"] is row["retention"] is None
        # Quality counts twice; gain and unharmed answers once each.
        assert row["overall"] == pytest.approx((2 * 0.8 + 0.55 + 1) / 4)

    def test_of_answers_whose_gain_is_unknown_quality_alone_counts(self, connection: Connection, space: Space) -> None:
        write(connection, space, [Answer(0, 0.3)] * 3)
        (row,) = rows(connection, space)
        assert row["overall"] == pytest.approx(0.3)
        assert (row["judged"], row["gain"], row["harmed_share"]) == (0, None, None)

    @pytest.mark.parametrize(
        ("before", "again", "times", "retention"),
        [
            (0.2, 0.1, 30, 0.5),
            (0.2, 0.3, 30, 1.0),
            (0.2, -0.1, 30, 0.0),
            (0.2, 0.1, 29, None),
            (0.004, 0.004, 30, None),
            (-0.1, 0.1, 30, None),
        ],
    )
    def test_retention_is_the_share_that_is_kept_and_unknown_where_little_is_asked_again_or_was_gained(
        self, connection: Connection, space: Space, before: float, again: float, times: int, retention: float | None
    ) -> None:
        write(connection, space, [Answer(7, 0.5, before, item="a"), *[Answer(0, 0.5, again, item="a")] * times])
        expected = None if retention is None else pytest.approx(retention)
        assert rows(connection, space)[-1]["retention"] == expected
        assert read(connection, improvement_metrics, space).retention_rate_7d == expected

    def test_of_what_may_have_been_chance_no_share_is_told(self, connection: Connection, space: Space) -> None:
        chance = [Answer(1, 0.5, 0.9 if number % 2 else -0.8, item=f"{number}") for number in range(40)]
        again = [Answer(0, 0.5, 0.1, item=f"{number}") for number in range(40)]
        write(connection, space, [*chance, *again])
        row = rows(connection, space)[-1]
        assert (row["asked_again"], row["gain_before"]) == (40, pytest.approx(0.05))
        assert row["gain_before_error"] > 0.1
        assert row["retention"] is read(connection, improvement_metrics, space).retention_rate_7d is None

    def test_other_questions_and_older_weeks_say_nothing_of_what_is_kept(
        self, connection: Connection, space: Space
    ) -> None:
        old = [Answer(8, 0.5, 0.2, item="a"), Answer(1, 0.5, 0.2, item="b")]
        write(connection, space, [*old, *[Answer(0, 0.5, 0.0, item="a")] * 40])
        assert rows(connection, space)[-1]["asked_again"] is None

    def test_one_space_says_nothing_of_another(self, connection: Connection, space: Space, space_name: str) -> None:
        other = spaces.create_space(connection, f"{space_name} other", DIM)
        write(connection, space, [Answer(0, 1.0, 0.5, item="a")] * 20)
        write(connection, other, [Answer(1, 0.0, -0.5, item="a")] * 20)
        assert [row["quality"] for row in rows(connection, space)] == [1.0]
        assert [row["gain"] for row in rows(connection, other)] == [-0.5]


class TestMetrics:
    def test_each_is_what_python_finds_in_the_rows(
        self, connection: Connection, space: Space, rng: np.random.Generator
    ) -> None:
        answers = mixed(rng, range(69, -1, -1))
        write(connection, space, answers)

        def quality(since: int, until: int) -> float:
            return mean(a.value for a in answers if since <= a.days_ago < until)

        found = read(connection, improvement_metrics, space)
        week = [a for a in answers if a.days_ago < 7]
        gains = [a.gain for a in week if a.gain is not None]
        contrasts = [a.contrast for a in answers if a.contrast is not None]
        assert found.answers_7d == len(week)
        assert found.quality_7d == pytest.approx(quality(0, 7))
        assert found.quality_delta_7d == pytest.approx(quality(0, 7) - quality(7, 14))
        assert found.quality_delta_30d == pytest.approx(quality(0, 30) - quality(30, 60))
        assert found.gain_7d == pytest.approx(mean(gains))
        assert found.harmed_share_7d == pytest.approx(mean(g < 0 for g in gains))
        assert found.lift == pytest.approx(mean(contrasts))
        last = rows(connection, space)[-1]
        assert (found.lift_lower, found.lift_upper) == (last["lower"], last["upper"])
        assert found.weekly_gain_over == "control arm"
        control = mean(a.value for a in week if a.arm == "control")
        lift = mean(a.contrast for a in week if a.contrast is not None)
        assert found.weekly_gain == pytest.approx(lift / control)
        asked, before, error, again = retention_of(answers, range(7))
        assert asked >= 30
        assert before > 2 * error
        assert found.retention_rate_7d == pytest.approx(again / before)
        of_days = [row for row in rows(connection, space) if row["day"] > today() - timedelta(days=7)]
        assert found.overall == pytest.approx(mean(row["overall"] for row in of_days), abs=1e-12)
        assert found.novel_connections is None

    def test_a_control_answer_stands_for_as_many_as_it_was_improbable(
        self, connection: Connection, space: Space
    ) -> None:
        rare = [Answer(1, 0.2, None, "control", 0.05, -0.1)] * 30
        frequent = [Answer(1, 0.6, None, "control", 0.25, -0.1)] * 30
        learned = [Answer(1, 0.9, None, "learned", 0.75, 0.3)] * 60
        write(connection, space, [*rare, *frequent, *learned])
        control = (30 * 0.2 / 0.05 + 30 * 0.6 / 0.25) / (30 / 0.05 + 30 / 0.25)
        found = read(connection, improvement_metrics, space)
        assert found.weekly_gain == pytest.approx(0.1 / control)

    def test_an_empty_space_says_nothing(self, connection: Connection, space: Space) -> None:
        assert rows(connection, space) == []
        found = asdict(read(connection, improvement_metrics, space))
        assert found.pop("answers_7d") == 0
        assert set(found.values()) == {None}

    @pytest.mark.parametrize("answers", [29, 30])
    def test_one_day_is_no_trend_and_few_answers_are_no_figure(
        self, connection: Connection, space: Space, answers: int
    ) -> None:
        write(connection, space, [Answer(0, 0.5, 0.1, item="a")] * answers)
        found = asdict(read(connection, improvement_metrics, space))
        assert found.pop("answers_7d") == answers
        told = {name: value for name, value in found.items() if value is not None}
        if answers < 30:
            assert told == {}
        else:
            assert told == {
                "quality_7d": 0.5,
                "gain_7d": pytest.approx(0.1),
                "harmed_share_7d": 0.0,
                "overall": pytest.approx((1 + 0.55 + 1) / 4),
            }

    def test_without_a_control_arm_the_week_before_is_compared(self, connection: Connection, space: Space) -> None:
        write(connection, space, [*[Answer(8, 0.4)] * 30, *[Answer(1, 0.5)] * 40])
        found = read(connection, improvement_metrics, space)
        assert (found.weekly_gain, found.weekly_gain_over) == (pytest.approx(0.25), "week before")
        assert found.quality_delta_7d == pytest.approx(0.1)
        assert found.lift is found.lift_lower is found.lift_upper is None

    def test_with_too_few_control_answers_nothing_else_is_compared(self, connection: Connection, space: Space) -> None:
        control = [Answer(0, 0.4, None, "control", 0.05, 0.1)] * 29
        write(connection, space, [*[Answer(8, 0.4)] * 30, *control, *[Answer(0, 0.5, None, "learned", 0.95, 0.0)] * 60])
        found = read(connection, improvement_metrics, space)
        assert (found.weekly_gain, found.weekly_gain_over, found.lift) == (None, None, None)

    def test_a_week_before_that_was_worth_nothing_has_no_relative_gain(
        self, connection: Connection, space: Space
    ) -> None:
        write(connection, space, [*[Answer(8, 0.0)] * 30, *[Answer(1, 0.5)] * 30])
        found = read(connection, improvement_metrics, space)
        assert (found.weekly_gain, found.weekly_gain_over) == (None, None)
        assert found.quality_delta_7d == pytest.approx(0.5)

    def test_days_of_the_past_are_in_none_of_the_windows(self, connection: Connection, space: Space) -> None:
        write(connection, space, [Answer(days, 0.5, 0.1, item="a") for days in (7, 13, 60) for _ in range(40)])
        found = read(connection, improvement_metrics, space)
        assert (found.answers_7d, found.quality_7d, found.overall) == (0, None, None)

    def test_the_engine_tells_them(self, url: str, space_name: str) -> None:
        with SonaEngine.connect(
            url, space=space_name, dim=DIM, background=False, space_config=SpaceConfig(control_share=0.0)
        ) as engine:
            query = np.ones(DIM, dtype=np.float32)
            for event in range(40):
                engine.record(query, ["a", "b"], [1.0, 0.0], quality=event % 2)
            engine.flush()
            found = engine.improvement_metrics()
        assert isinstance(found, ImprovementMetrics)
        assert (found.answers_7d, found.lift) == (40, None)
        with connect(url) as connection:
            values = connection.execute(
                "SELECT value FROM sona.answer_outcome WHERE space_id = %s", (engine.space.space_id,)
            ).fetchall()
        assert found.quality_7d == pytest.approx(mean(value for (value,) in values))


class TestCommand:
    def test_the_lift_is_a_table_by_day(
        self, url: str, connection: Connection, space: Space, rng: np.random.Generator
    ) -> None:
        write(connection, space, mixed(rng, [2, 1, 0]))
        done = CliRunner().invoke(app, ["lift", space.name, "--url", url])
        assert done.exit_code == 0, done.output
        lines = done.output.splitlines()
        assert lines[0].split() == [
            "day",
            "learned",
            "control",
            "lift",
            "so",
            "far",
            "lower",
            "upper",
            "harmed",
            "gain",
        ]
        for line, day in zip(lines[2:5], lift_days(connection, space), strict=True):
            cells = line.split()
            assert cells[:3] == [str(day.day), "60", "20"]
            assert day.lift_so_far is not None
            assert day.harmed_share is not None
            assert (cells[4], cells[7]) == (f"{day.lift_so_far:+.3f}", f"{day.harmed_share:.1%}")
        assert "at 95 %" in lines[-1]

    @pytest.mark.parametrize(
        ("control", "says"), [(0.1, "worth more"), (0.9, "worth less"), (0.5, "that may be nothing")]
    )
    def test_it_says_what_the_interval_says(
        self, url: str, connection: Connection, space: Space, control: float, says: str
    ) -> None:
        answers = [
            Answer(0, 0.5, None, "learned", 0.5, 0.0),
            Answer(0, control, None, "control", 0.5, 2 * (0.5 - control)),
        ]
        write(connection, space, answers * 400)
        assert says in CliRunner().invoke(app, ["lift", space.name, "--url", url]).output

    def test_one_document_for_programs(self, url: str, connection: Connection, space: Space) -> None:
        write(connection, space, [Answer(0, 0.5, 0.1)] * 30)
        document = json.loads(CliRunner().invoke(app, ["lift", space.name, "--json", "--url", url]).stdout)
        assert document["space"] == space.name
        (day,) = document["days"]
        assert (day["day"], day["learned_answers"], day["lift"], day["harmed"]) == (str(today()), 30, None, 0)
        assert document["improvement"]["quality_7d"] == 0.5

    def test_a_space_without_outcomes_and_one_with_few_controls_say_so(
        self, url: str, connection: Connection, space: Space
    ) -> None:
        assert "no answer" in CliRunner().invoke(app, ["lift", space.name, "--url", url]).output
        write(connection, space, [Answer(0, 0.5, 0.1, "control", 0.05, 0.0)] * 3)
        assert (
            "3 answers of the control arm are known, too few"
            in CliRunner().invoke(app, ["lift", space.name, "--url", url]).output
        )
