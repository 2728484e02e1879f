"""The drawings of a report: what was gained, what answered, the lift, and where the questions lie."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from sona_pg.config import STRATEGIES
from sona_pg.learning.lift import confidence_sequence
from sona_pg.report.facts import Facts
from sona_pg.report.numbers import grouped, signed
from sona_pg.report.svg import colour, drawing, to_svg
from sona_pg.store.history import CONTROL_ARM, Deployment, RegionRow, Stretch
from sona_pg.types import FloatVector

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = NDArray[np.float64]

WIDTH = 9.0
"""Inches; a page scales it."""
LEFT, RIGHT = 0.065, 0.85
"""Of a drawing's width; labels of lines stand to the right."""
SHARE_OF_MEAN, LEAST_OF_MEAN = 0.1, 20
"""The moving mean takes in this share of the answers, and this many at least."""
SHARE_OF_BANDS = 0.025
"""What answered is told of this share of the answers, and of as many as the moving mean at least."""
MANY_DAYS = 5
"""From so many days on the lift is drawn over time, below over answers."""
STEADY = 0.15
"""Means of the first answers swing widely, and do not set a scale."""
BAND_POINTS, BAND_LABEL, LEAST_BAND = 121, 13, 0.18
"""Points of a band, how many a word needs, and how high, as a share."""
LABEL_ROWS = 3
MAP_WIDTH = 5.4
LABEL_APART = 24.0
"""Labels of regions, pixels."""
OTHER = "other"
ANSWERED = (
    (CONTROL_ARM, "control"),
    ("frozen", "frozen"),
    ("adapted", "adapted"),
    ("familiar", "familiar"),
    ("boosted", "boosted"),
    ("stake", "stake"),
    ("fusion", "fusion"),
    ("related", "related"),
    (OTHER, "other"),
)
"""What answers, from below, and its colour."""
REGION_COLOURS = 8


class Mark(NamedTuple):
    """Something that happened after so many answers; `weight` says whose label stays where there is no room."""

    place: float
    label: str
    colour: str
    weight: int


def draw_gain(facts: Facts) -> str:
    """What was gained, answer by answer; and below it, at the same places, what answered."""
    places = _places(facts.stretches)
    with drawing(WIDTH, 5.0) as figure:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3.1, 1))
        figure.subplots_adjust(LEFT, 0.085, RIGHT, 0.9, hspace=0.1)
        mean = _draw_means(above, facts.stretches, places)
        above.set_xlim(0, places[-1])
        _draw_marks(above, _marks(facts, places))
        _draw_publications(above, facts, places)
        _draw_answered(below, facts.stretches, places)
        says = f"Gain in nDCG@10 over {grouped(places[-1])} answers"
        says += "" if mean is None else f": {signed(mean)} points"
        return to_svg(figure, "gain", says)


def draw_lift(facts: Facts) -> str:
    """The lift so far with its confidence sequence, over days, or over answers where there are few days."""
    stretches = facts.stretches
    counts, sums, squares = (
        np.cumsum([getattr(stretch, name) for stretch in stretches], dtype=np.float64)
        for name in ("contrasts", "contrast", "squares")
    )
    weights = np.maximum.accumulate([stretch.weight for stretch in stretches])
    mean, lower, upper = (100 * values for values in confidence_sequence(counts, sums, squares, weights))
    times = _times(stretches)
    by_day = len({time.date() for time in times}) >= MANY_DAYS
    with drawing(WIDTH, 2.9) as figure:
        axes = figure.subplots()
        figure.subplots_adjust(LEFT, 0.15, RIGHT, 0.93)
        places = np.array([time.replace(tzinfo=None) for time in times]) if by_day else _places(stretches)
        if not by_day:
            _label_answers(axes)
        axes.axhline(0, color=colour("muted"), linewidth=1.0)
        axes.fill_between(places, lower, upper, color=colour("adapted"), alpha=0.16, linewidth=0)
        axes.plot(places, mean, color=colour("adapted"), linewidth=2.0)
        steady = slice(round(STEADY * len(places)), None)
        axes.set_ylim(*_limits([lower[steady], upper[steady]], most=100.0))
        axes.set_xlim(places[0] if by_day else 0, places[-1])
        axes.set_ylabel("lift, points of value")
        _label_ends(
            axes,
            [
                (upper[-1], f"{signed(upper[-1])} upper bound", "muted", False),
                (mean[-1], f"{signed(mean[-1])} lift so far", "adapted", True),
                (lower[-1], f"{signed(lower[-1])} lower bound", "muted", False),
            ],
        )
        says = f"Lift so far {signed(mean[-1])} points, between {signed(lower[-1])} and {signed(upper[-1])}"
        return to_svg(figure, "lift", says)


def draw_map(queries: Sequence[FloatVector], regions: Sequence[RegionRow]) -> str:
    """Remembered queries in the plane in which they differ most, each in the colour of its region."""
    rows = _unit(np.asarray(queries, dtype=np.float64))
    points, explained = project(rows)
    belongs = _nearest(rows, regions)
    with drawing(MAP_WIDTH, MAP_WIDTH) as figure:
        axes = figure.subplots()
        figure.subplots_adjust(0.0, 0.05, 1.0, 1.0)
        axes.set_aspect("equal", adjustable="datalim")
        for number in np.unique(belongs):
            mine = points[belongs == number]
            axes.scatter(
                mine[:, 0],
                mine[:, 1],
                s=9,
                # More regions than colours that all people tell apart: the second round has another shape.
                marker="o" if number < REGION_COLOURS else "^",
                color=colour("other" if number < 0 else f"region-{number % REGION_COLOURS}"),
                alpha=0.75,
                linewidths=0,
            )
        axes.grid(visible=False)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
        axes.set_xlabel(f"the two directions in which queries differ most: {100 * explained:.0f} % of their variance")
        axes.apply_aspect()
        numbers = np.unique(belongs[belongs >= 0])
        centres = np.array([np.median(points[belongs == number], axis=0) for number in numbers]).reshape(-1, 2)
        to_screen = axes.transData
        apart = to_screen.inverted().transform(spread(to_screen.transform(centres), LABEL_APART))
        for number, (x, y) in zip(numbers, apart, strict=True):
            axes.text(
                x, y, f"{number}", ha="center", va="center", fontsize=8.5, fontweight="bold", color=colour("ink"),
                bbox={"boxstyle": "round,pad=0.25", "facecolor": colour("paper"), "edgecolor": colour("grid")},
            )  # fmt: skip
        says = f"{grouped(len(rows))} remembered queries of {len(regions)} regions, in two dimensions"
        return to_svg(figure, "map", says)


def spread(centres: Floats, apart: float) -> Floats:
    """Push points (n, 2) away from each other until they are that far apart, or nearly."""
    moved = centres.copy()
    # Two on the same spot go apart sideways.
    moved[:, 0] += 1e-3 * np.arange(len(moved))
    for _ in range(100):
        away = moved[:, None] - moved[None]
        distance = np.linalg.norm(away, axis=2) + np.eye(len(moved)) * apart
        push = np.clip(apart - distance, 0, None) / 2
        if not push.any():
            break
        moved += (away / distance[..., None] * push[..., None]).sum(axis=1) / 2
    return moved


def project(rows: Floats) -> tuple[Floats, float]:
    """Principal components: points (n, 2), and the share of the variance that they hold.

    The largest coordinate of either axis is positive, so that the same rows always give the same picture.

    Parameters
    ----------
    rows
        (n, dim), at least one.
    """
    centred = rows - rows.mean(axis=0)
    # Of the two products that have the same eigenvalues, the smaller one.
    is_tall = centred.shape[0] > centred.shape[1]
    values, vectors = np.linalg.eigh(centred.T @ centred if is_tall else centred @ centred.T)
    largest = vectors[:, ::-1][:, :2]
    points = np.zeros((len(rows), 2))
    found = centred @ largest if is_tall else largest * np.sqrt(np.maximum(values[::-1][:2], 0.0))
    points[:, : found.shape[1]] = found
    at = np.argmax(np.abs(points), axis=0)
    points *= np.where(points[at, [0, 1]] < 0, -1.0, 1.0)
    total = float(np.maximum(values, 0.0).sum())
    return points, float(np.maximum(values[::-1][:2], 0.0).sum()) / total if total else 0.0


def moving_mean(places: Floats, counts: Floats, sums: Floats, width: float) -> Floats:
    """Mean over the last `width` answers at each place; NaN before there are as many, and where none is known.

    Parameters
    ----------
    places
        Answers so far, at the end of each stretch.
    counts, sums
        Of how many of the stretch something is known, and their sum.
    width
        Answers.
    """
    ends = np.concatenate(([0.0], places))
    known = np.concatenate(([0.0], np.cumsum(counts)))
    total = np.concatenate(([0.0], np.cumsum(sums)))
    begins = places - width
    n = known[1:] - np.interp(begins, ends, known)
    difference = total[1:] - np.interp(begins, ends, total)
    mean = np.full(len(places), np.nan)
    np.divide(difference, n, out=mean, where=(n > 0.5) & (begins >= 0))
    return mean


def _places(stretches: Sequence[Stretch]) -> Floats:
    return np.cumsum([stretch.answers for stretch in stretches], dtype=np.float64)


def _times(stretches: Sequence[Stretch]) -> list[datetime]:
    """When each stretch was over; outcomes may come late, and time goes forward all the same."""
    times: list[datetime] = []
    for stretch in stretches:
        until = stretch.until.astimezone(UTC)
        times.append(max(until, times[-1]) if times else until)
    return times


def _draw_means(axes: Axes, stretches: Sequence[Stretch], places: Floats) -> float | None:
    """The means of the gain, points; gives that of all answers so far."""
    counts = np.array([stretch.gains for stretch in stretches], dtype=np.float64)
    sums = 100 * np.array([stretch.gain for stretch in stretches], dtype=np.float64)
    width = max(LEAST_OF_MEAN, round(SHARE_OF_MEAN * places[-1]))
    moving = moving_mean(places, counts, sums, width)
    so_far = np.full(len(places), np.nan)
    np.divide(np.cumsum(sums), np.cumsum(counts), out=so_far, where=np.cumsum(counts) > 0)
    axes.axhline(0, color=colour("muted"), linewidth=1.0)
    axes.fill_between(places, 0, moving, color=colour("fusion"), alpha=0.14, linewidth=0)
    axes.plot(places, so_far, color=colour("muted"), linewidth=1.3)
    axes.plot(places, moving, color=colour("fusion"), linewidth=2.0)
    axes.set_ylim(*_limits([moving, so_far[places >= width]]))
    axes.set_ylabel("gain, points of nDCG@10")
    ends = [(so_far[-1], f"{signed(so_far[-1])} mean of all", "muted", False)]
    ends.append((moving[-1], f"{signed(moving[-1])} last {grouped(width)}", "fusion", True))
    _label_ends(axes, ends)
    return None if np.isnan(so_far[-1]) else float(so_far[-1])


def _marks(facts: Facts, places: Floats) -> list[Mark]:
    """Turns of the strategy of the whole space, and what was done by hand, at the answers after which they came."""
    ordinals = np.maximum.accumulate([stretch.ordinal for stretch in facts.stretches])
    marks = []
    for turn in facts.turns:
        if turn.region is None:
            name = _answering(turn.after)
            marks.append(Mark(_place(places, np.searchsorted(ordinals, turn.ordinal)), name, name, 0))
    times = _times(facts.stretches)
    for change in reversed(facts.changes):
        at = np.searchsorted([time.timestamp() for time in times], change.created_at.timestamp(), side="right")
        marks.append(Mark(_place(places, at - 1), _label_of(change), "ink", 1))
    return marks


def _label_of(change: Deployment) -> str:
    # Nothing that was written by others is drawn, only what it is known to mean.
    after = change.after or ""
    if change.action == "deploy":
        return f"version {after}" if after.isascii() and after.isdigit() else "deploy"
    return "frozen" if change.action == "freeze" else f"set to {after if after in STRATEGIES else OTHER}"


def _answering(name: str) -> str:
    """What answered, as far as it is known; an application may record answers of anything."""
    return name if name in dict(ANSWERED) else OTHER


def _place(places: Floats, at: np.intp | int) -> float:
    return 0.0 if at < 0 else float(places[min(int(at), len(places) - 1)])


def _draw_marks(axes: Axes, marks: Sequence[Mark]) -> None:
    """Vertical lines, and above the panel as many of their labels as there is room for."""
    colours = dict(ANSWERED)
    span = axes.get_xlim()[1]
    rows: list[list[tuple[float, float]]] = [[] for _ in range(LABEL_ROWS)]
    for mark in sorted(marks, key=lambda m: -m.weight):
        line = mark.colour if mark.colour == "ink" else colours.get(mark.colour, "other")
        style = (0, (3, 2)) if mark.weight else "solid"
        axes.axvline(mark.place, color=colour(line), linewidth=1.0, linestyle=style, alpha=0.8, zorder=1.5)
        # A letter takes about as much as half its height.
        half = 0.5 * len(mark.label) * 4.4 / (72 * WIDTH * (RIGHT - LEFT)) * span
        begin, end = mark.place - half, mark.place + half
        for row, taken in enumerate(rows):
            if all(end < other_begin or begin > other_end for other_begin, other_end in taken):
                taken.append((begin - 0.006 * span, end + 0.006 * span))
                axes.annotate(
                    mark.label, (mark.place, 1), (0, 3 + 10 * row), xycoords=axes.get_xaxis_transform(),
                    textcoords="offset points", ha="center", fontsize=8, annotation_clip=False,
                    color=colour("muted" if line == "frozen" else line),
                )  # fmt: skip
                break


def _draw_publications(axes: Axes, facts: Facts, places: Floats) -> None:
    times = [time.timestamp() for time in _times(facts.stretches)]
    published = [
        _place(places, np.searchsorted(times, version.created_at.timestamp(), side="right") - 1)
        for version in facts.versions
    ]
    if not published:
        return
    at_bottom = axes.get_xaxis_transform()
    axes.plot(
        published, [0.012] * len(published), linestyle="none", marker="^", markersize=4.5, color=colour("ink"),
        markeredgewidth=0, transform=at_bottom, clip_on=False, zorder=4,
    )  # fmt: skip
    axes.annotate(
        "▲ version published", (1, 0), (8, 0), xycoords="axes fraction", textcoords="offset points", fontsize=8,
        color=colour("muted"), annotation_clip=False,
    )  # fmt: skip


def _draw_answered(axes: Axes, stretches: Sequence[Stretch], places: Floats) -> None:
    """Shares of what answered, stacked; each named where it has most room, or beside its end."""
    half = max(LEAST_OF_MEAN, SHARE_OF_BANDS * places[-1]) / 2
    middles = np.linspace(0, places[-1], BAND_POINTS)
    begins, ends = np.maximum(middles - half, 0), np.minimum(middles + half, places[-1])
    starts = np.concatenate(([0.0], places))
    bottom, thin = np.zeros(BAND_POINTS), []
    for name, band in ANSWERED:
        counts = [sum(n for s, n in stretch.strategies.items() if _answering(s) == name) for stretch in stretches]
        if not any(counts):
            continue
        total = np.concatenate(([0.0], np.cumsum(counts)))
        top = bottom + (np.interp(ends, starts, total) - np.interp(begins, starts, total)) / (ends - begins)
        axes.fill_between(middles, bottom, top, color=colour(band), linewidth=0.4)
        low, high = (sliding_window_view(edge, BAND_LABEL) for edge in (bottom, top))
        floors, ceilings = low.max(axis=1), high.min(axis=1)
        best = int(np.argmax(ceilings - floors))
        if ceilings[best] - floors[best] > LEAST_BAND:
            at, height = middles[best + BAND_LABEL // 2], (floors[best] + ceilings[best]) / 2
            axes.text(at, height, name, ha="center", va="center", fontsize=8, color=colour("band-ink"))
        elif top[-1] > bottom[-1]:
            thin.append(((bottom[-1] + top[-1]) / 2, name, "muted", False))
        bottom = top
    axes.set_ylim(0, 1)
    _label_ends(axes, thin)
    axes.set_yticks([0, 0.5, 1], ["0", "50 %", "100 %"])
    axes.grid(visible=False)
    axes.set_ylabel("answered by")
    _label_answers(axes)


def _label_answers(axes: Axes) -> None:
    axes.set_xlabel("answers whose outcome is known")
    axes.xaxis.set_major_formatter(lambda place, _: grouped(place))


def _label_ends(axes: Axes, ends: Sequence[tuple[float, str, str, bool]]) -> None:
    """Name lines where they end, one above the other where they end together: value, words, colour, bold."""
    low, high = axes.get_ylim()
    # As high as a line of text.
    room = 11.5 / 72 * axes.figure.dpi / axes.bbox.height * (high - low)
    at = -np.inf
    placed = []
    for value, words, line, is_bold in sorted((end for end in ends if not np.isnan(end[0])), key=lambda end: end[0]):
        at = max(min(max(value, low), high), at + room)
        placed.append((at, words, line, is_bold))
    # What was pushed out above goes down again, all of it.
    over = max(0.0, placed[-1][0] - high) if placed else 0.0
    for at, words, line, is_bold in placed:
        axes.annotate(
            words, (1, at - over), (8, 0), xycoords=axes.get_yaxis_transform(), textcoords="offset points",
            va="center", fontsize=8.5, fontweight="bold" if is_bold else "normal", color=colour(line),
            annotation_clip=False,
        )  # fmt: skip


def _limits(curves: Sequence[Floats], most: float = np.inf) -> tuple[float, float]:
    """Of a scale that holds 0 and these curves, up to `most` on either side."""

    def values() -> Iterator[float]:
        yield 0.0
        for curve in curves:
            yield from np.clip(curve[~np.isnan(curve)], -most, most).tolist()

    found = list(values())
    low, high = min(found), max(found)
    margin = 0.08 * (high - low) or 1.0
    return low - margin, high + margin


def _unit(rows: Floats) -> Floats:
    unit: Floats = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    return unit


def _nearest(rows: Floats, regions: Sequence[RegionRow]) -> NDArray[np.intp]:
    """Number of the region (n,) that each query belongs to; -1 where there are none."""
    if not regions:
        return np.full(len(rows), -1, dtype=np.intp)
    numbers = np.array([region.region for region in regions], dtype=np.intp)
    centroids = np.asarray([region.centroid for region in regions], dtype=np.float64)
    nearest: NDArray[np.intp] = numbers[np.argmax(rows @ centroids.T, axis=1)]
    return nearest
