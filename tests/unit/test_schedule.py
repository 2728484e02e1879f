"""When a cycle is due: intervals, cron expressions, time zones, and what says nothing."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from sona_pg.config import BACKGROUND_SCHEDULE, ScheduleConfig
from sona_pg.errors import ConfigError
from sona_pg.loops.schedule import check_cron, next_time

FRIDAY = datetime(2026, 10, 23, 12, 0, tzinfo=UTC)


def test_an_interval_counts_from_the_moment() -> None:
    assert next_time(FRIDAY, 90.0, None, "UTC") == FRIDAY + timedelta(seconds=90)


def test_nothing_is_due_by_time_without_either() -> None:
    assert next_time(FRIDAY, None, None, "UTC") is None


def test_sundays_at_three() -> None:
    assert next_time(FRIDAY, None, "0 3 * * 0", "UTC") == datetime(2026, 10, 25, 3, 0, tzinfo=UTC)


def test_a_cron_expression_is_of_its_time_zone_also_over_the_change_of_the_clock() -> None:
    # On that Sunday, Berlin goes from +02:00 to +01:00 at three.
    assert next_time(FRIDAY, None, "0 4 * * 0", "Europe/Berlin") == datetime(2026, 10, 25, 3, 0, tzinfo=UTC)
    assert next_time(FRIDAY, None, "0 4 * * 6", "Europe/Berlin") == datetime(2026, 10, 24, 2, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    "cron", ["", "0 3 * *", "0 3 * * 0 0", "0 25 * * *", "0 3 31 2 *", "every day at three o'clock"]
)
def test_an_expression_that_means_no_time_is_refused(cron: str) -> None:
    with pytest.raises(ConfigError, match="cron expression"):
        check_cron(cron)


@pytest.mark.parametrize("zone", ["Europe/Nowhere", "", "../etc/passwd"])
def test_an_unknown_time_zone_is_refused(zone: str) -> None:
    with pytest.raises(ConfigError, match="time zone"):
        check_cron("0 3 * * 0", zone)


def test_the_hourly_loop_is_hourly() -> None:
    assert BACKGROUND_SCHEDULE.every_seconds == 3600


def test_a_schedule_has_an_interval_or_a_cron_expression() -> None:
    with pytest.raises(ConfigError, match="one of the two"):
        ScheduleConfig(every_seconds=60.0, cron="0 3 * * 0")
