"""When a cycle is due: the time after a moment, by an interval or a cron expression."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from sona_pg.errors import ConfigError


def check_cron(cron: str, time_zone: str = "UTC") -> None:
    """Refuse a cron expression that says nothing.

    Raises
    ------
    ConfigError
        If it is malformed, no day is ever meant by it, or the time zone is unknown.
    """
    _next_by_cron(datetime.now(UTC), cron, time_zone)


def next_time(after: datetime, every_seconds: float | None, cron: str | None, time_zone: str) -> datetime | None:
    """When a cycle is due next; None if none is by time.

    Parameters
    ----------
    after
        A moment, with its time zone.
    every_seconds
        Time between two cycles.
    cron
        Five fields, as in crontab(5), in `time_zone`.

    Raises
    ------
    ConfigError
        If the expression is malformed, no day is ever meant by it, or the time zone is unknown.
    """
    if cron is not None:
        return _next_by_cron(after, cron, time_zone)
    return None if every_seconds is None else after + timedelta(seconds=every_seconds)


def _next_by_cron(after: datetime, cron: str, time_zone: str) -> datetime:
    try:
        zone = ZoneInfo(time_zone)
    except (OSError, ValueError, KeyError) as cause:
        raise ConfigError(f"there is no time zone {time_zone!r} here: expected one like Europe/Berlin") from cause
    if len(cron.split()) != 5:
        raise ConfigError(
            f"the cron expression {cron!r} has {len(cron.split())} fields, expected five, as in 0 3 * * 0"
        )
    try:
        return next(CronSim(cron, after.astimezone(zone)))
    except (CronSimError, StopIteration) as cause:
        raise ConfigError(
            f"the cron expression {cron!r} means no time ({cause}): expected five fields, as in 0 3 * * 0 for Sundays "
            "at three"
        ) from cause
