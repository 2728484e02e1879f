"""Whether a space gets better, in figures: what `sona.lift` and `sona.improvement` say, day by day and of late."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from typing import NamedTuple

from sona_pg.store.connection import Connection, transaction
from sona_pg.store.reader import Reader
from sona_pg.store.spaces import Space, space_gone

MIN_ANSWERS = 30
"""A figure of fewer answers says nothing, and is None."""
MIN_GAIN_TO_KEEP = 0.005
"""nDCG@10; of less, or less than two standard errors, no share can be told that was kept. As in `sona.improvement`."""
CONTROL_ARM = "control arm"
WEEK_BEFORE = "week before"


@dataclass(frozen=True, slots=True)
class ImprovementMetrics:
    """Whether a space gets better. None is what there are too few answers to say, fewer than 30 in one of its parts.

    The last 7 days are today and the six before, UTC.

    Parameters
    ----------
    answers_7d
        Answers of the last 7 days whose outcome is known.
    quality_7d
        What they were worth in the mean, 0 to 1.
    quality_delta_7d, quality_delta_30d
        Mean quality of the last 7, or 30, days minus that of as many days before.
    weekly_gain
        By how much answers of the last 7 days were worth more, a fraction: than those of the control arm; without such
        an arm, than those of the 7 days before, and then whatever else has changed counts as well.
    weekly_gain_over
        Which of the two it is: 'control arm' or 'week before'.
    lift, lift_lower, lift_upper
        What answers are worth above those of the control arm, so far, with its 95 % confidence sequence; by the first
        outcome of each, whatever is said of it later.
    gain_7d
        Mean nDCG@10 of what answered above the frozen embedding, over the judged answers of the last 7 days.
    harmed_share_7d
        Share of them to which the frozen embedding would have been better.
    retention_rate_7d
        Of what was gained on a question in the 7 days before a day, the share that is kept when it is asked again, 0 to
        1. Questions are the same whose best item is.
    novel_connections
        Edges by dreams that stand; None before the first cycle of the deep loop.
    phi, phi_by_chance
        Integration of those of the largest patterns that are most of one system, in the last deep cycle that could
        measure it, in nats, and the largest of as many without relations: below that it is chance.
    overall
        Mean of `sona.improvement.overall` over the answers of the last 7 days, 0 to 1.
    """

    answers_7d: int
    quality_7d: float | None
    quality_delta_7d: float | None
    quality_delta_30d: float | None
    weekly_gain: float | None
    weekly_gain_over: str | None
    lift: float | None
    lift_lower: float | None
    lift_upper: float | None
    gain_7d: float | None
    harmed_share_7d: float | None
    retention_rate_7d: float | None
    novel_connections: int | None
    phi: float | None
    phi_by_chance: float | None
    overall: float | None


@dataclass(frozen=True, slots=True)
class LiftDay:
    """A day of `sona.lift`.

    Parameters
    ----------
    day
        UTC.
    learned_answers, control_answers
        Answers of the two arms whose outcome is known.
    learned_value, control_value
        What they were worth in the mean, 0 to 1; None where there were none.
    lift
        Lift of the day; None where nothing was compared.
    lift_so_far, lower, upper
        The same of all days so far, with its 95 % confidence sequence.
    harmed, harmed_share
        Answers to which the frozen embedding would have been better, and their share of those that were judged.
    gain
        Mean nDCG@10 of what answered above the frozen embedding.
    """

    day: date
    learned_answers: int
    control_answers: int
    learned_value: float | None
    control_value: float | None
    lift: float | None
    lift_so_far: float | None
    lower: float | None
    upper: float | None
    harmed: int
    harmed_share: float | None
    gain: float | None


class _Day(NamedTuple):
    """A day of `sona.improvement`; `age` is how many days ago it was."""

    age: int
    answers: int
    control_answers: int
    quality: float
    lift_so_far: float | None
    lower: float | None
    upper: float | None
    judged: int
    harmed_share: float | None
    gain: float | None
    asked_again: int
    gain_before: float
    gain_before_error: float
    gain_again: float
    overall: float


class _Arms(NamedTuple):
    """What the arms of the last 7 days show."""

    compared: int
    controls: int
    lift: float | None
    control_quality: float | None


def lift_days(connection: Connection, space: Space) -> list[LiftDay]:
    """The lift of a space, day by day."""
    with transaction(connection):
        rows = connection.execute(
            "SELECT day, learned_answers, control_answers, learned_value, control_value, lift, lift_so_far, lower,"
            " upper, harmed, harmed_share::double precision, gain FROM sona.lift WHERE space = %s ORDER BY day",
            (space.name,),
        ).fetchall()
    return [LiftDay(*row) for row in rows]


async def improvement_metrics(reader: Reader, space: Space) -> ImprovementMetrics:
    """Whether a space gets better, by what its answers were worth.

    Raises
    ------
    UnknownSpace
        If the space is gone.
    """
    async with reader.transaction():
        if not await reader.rows("SELECT FROM sona.space WHERE space_id = %s", (space.space_id,)):
            raise space_gone(space.name)
        days = await _days(reader, space)
        arms = await _arms(reader, space)
        connections = await _novel_connections(reader, space)
        phi, chance = await _integration(reader, space)
    week, before = _aged(days, 0, 7), _aged(days, 7, 14)
    quality, quality_before = _mean_quality(week), _mean_quality(before)
    gain, over = _weekly_gain(arms, quality, quality_before)
    last = days[-1] if sum(day.control_answers for day in days) >= MIN_ANSWERS else None
    return ImprovementMetrics(
        answers_7d=sum(day.answers for day in week),
        quality_7d=quality,
        quality_delta_7d=_difference(quality, quality_before),
        quality_delta_30d=_difference(_mean_quality(_aged(days, 0, 30)), _mean_quality(_aged(days, 30, 60))),
        weekly_gain=gain,
        weekly_gain_over=over,
        lift=None if last is None else last.lift_so_far,
        lift_lower=None if last is None else last.lower,
        lift_upper=None if last is None else last.upper,
        gain_7d=_mean(week, lambda day: day.judged, lambda day: day.gain),
        harmed_share_7d=_mean(week, lambda day: day.judged, lambda day: day.harmed_share),
        retention_rate_7d=_retention(week),
        novel_connections=connections,
        phi=phi,
        phi_by_chance=chance,
        overall=_mean(week, lambda day: day.answers, lambda day: day.overall),
    )


async def _novel_connections(reader: Reader, space: Space) -> int | None:
    rows = await reader.rows(
        "SELECT (SELECT count(*) FROM sona.memory_edge e WHERE e.space_id = m.space_id AND e.kind = 'creative')"
        " FROM sona.memory_state m WHERE m.space_id = %s AND m.evidence IS NOT NULL",
        (space.space_id,),
    )
    return int(rows[0][0]) if rows else None


async def _integration(reader: Reader, space: Space) -> tuple[float | None, float | None]:
    rows = await reader.rows("SELECT phi, chance FROM sona.integration WHERE space = %s", (space.name,))
    return (rows[0][0], rows[0][1]) if rows else (None, None)


async def _days(reader: Reader, space: Space) -> list[_Day]:
    rows = await reader.rows(
        "SELECT (now() AT TIME ZONE 'UTC')::date - day, answers, control_answers, quality, lift_so_far, lower, upper,"
        " judged, harmed_share, gain, coalesce(asked_again, 0), coalesce(gain_before, 0),"
        " coalesce(gain_before_error, 0), coalesce(gain_again, 0), overall"
        " FROM sona.improvement WHERE space = %s ORDER BY day",
        (space.name,),
    )
    return [_Day(*row) for row in rows]


async def _arms(reader: Reader, space: Space) -> _Arms:
    # Shares may change within a week: each control answer stands for as many as its arm was improbable.
    (row,) = await reader.rows(
        "SELECT count(*), count(*) FILTER (WHERE arm = 'control'), avg(contrast),"
        " sum(value / propensity) FILTER (WHERE arm = 'control')"
        " / nullif(sum(1 / propensity) FILTER (WHERE arm = 'control'), 0)"
        " FROM sona.answer_outcome WHERE space_id = %s AND contrast IS NOT NULL"
        " AND answered_at >= ((now() AT TIME ZONE 'UTC')::date - 6)::timestamp AT TIME ZONE 'UTC'",
        (space.space_id,),
    )
    return _Arms(*row)


def _weekly_gain(arms: _Arms, quality: float | None, before: float | None) -> tuple[float | None, str | None]:
    """Arms are compared where there are any, never before with after."""
    if arms.compared:
        enough = arms.controls >= MIN_ANSWERS and arms.compared - arms.controls >= MIN_ANSWERS
        if not enough or not arms.control_quality or arms.lift is None:
            return None, None
        return arms.lift / arms.control_quality, CONTROL_ARM
    if quality is None or not before:
        return None, None
    return quality / before - 1, WEEK_BEFORE


def _retention(days: Sequence[_Day]) -> float | None:
    asked = sum(day.asked_again for day in days)
    if asked < MIN_ANSWERS:
        return None
    before = sum(day.asked_again * day.gain_before for day in days) / asked
    # Of the days' errors, the variance of all of these answers.
    squares = sum(d.asked_again * (d.gain_before**2 + d.asked_again * d.gain_before_error**2) for d in days) / asked
    error = math.sqrt(max(squares - before**2, 0.0) / asked)
    if before < max(MIN_GAIN_TO_KEEP, 2 * error):
        return None
    return min(max(sum(day.asked_again * day.gain_again for day in days) / asked / before, 0.0), 1.0)


def _aged(days: Sequence[_Day], since: int, until: int) -> list[_Day]:
    return [day for day in days if since <= day.age < until]


def _mean_quality(days: Sequence[_Day]) -> float | None:
    return _mean(days, lambda day: day.answers, lambda day: day.quality)


def _mean(days: Sequence[_Day], count: Callable[[_Day], int], value: Callable[[_Day], float | None]) -> float | None:
    """Mean over answers, from those of days; None where they are too few."""
    known = [(count(day), float(v)) for day in days if (v := value(day)) is not None]
    total = sum(n for n, _ in known)
    return sum(n * v for n, v in known) / total if total >= MIN_ANSWERS else None


def _difference(after: float | None, before: float | None) -> float | None:
    return None if after is None or before is None else after - before
