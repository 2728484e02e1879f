"""A picture of an evaluation: what every strategy gained, event by event, and when another one took over."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sona_pg.errors import ConfigError, InvalidInput, IoError
from sona_pg.evaluation.report import FROZEN, LEARNED, CollectionReport
from sona_pg.evaluation.trace import Trace, running_mean
from sona_pg.learning.strategies import Strategy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

FORMATS = ("png", "svg", "pdf")
"""What a picture may be, by the ending of its file."""

TURN, OTHER_TURNS, HELD_OUT = "_turn", "_turns of other splits", "_held-out part"
"""Labels of what is drawn beside the gains; an underscore keeps them out of the legend."""

# Eight colours that the colour-blind tell apart (Okabe & Ito 2008), on white.
COLOURS: Mapping[str, str] = {
    FROZEN: "#8C8C8C",
    Strategy.ADAPTED: "#0072B2",
    Strategy.FAMILIAR: "#56B4E9",
    Strategy.BOOSTED: "#E69F00",
    Strategy.STAKE: "#CC79A7",
    Strategy.FUSION: "#009E73",
    Strategy.RELATED: "#D55E00",
    LEARNED: "#000000",
}
INK, GRID = "#333333", "#E6E6E6"

WIDTH, PANEL_HEIGHT, LEGEND_HEIGHT = 9.0, 3.4, 0.9
"""Inches."""
DPI = 150
UNSTEADY_SHARE, UNSTEADY_EVENTS = 0.05, 10
"""A mean of fewer events than either swings widely, and does not set the scale."""
LABEL_RISE, LABEL_HEIGHT, LABEL_ROWS = 3, 10, 2
"""Labels above a panel, points."""
LABEL_GAP = 2.0
"""To either side of a label, pixels."""
TITLE_RISE = LABEL_RISE + LABEL_ROWS * LABEL_HEIGHT + 4


def check_plot(path: Path) -> None:
    """Refuse a picture that could not be written, before anything is computed for it.

    Raises
    ------
    ConfigError
        If the ending is of no known format, the folder does not exist, or matplotlib is missing.
    """
    if path.suffix.lower().removeprefix(".") not in FORMATS:
        raise ConfigError(f"the plot {path} ends in {path.suffix!r}, expected .{', .'.join(FORMATS)}")
    if not path.parent.is_dir():
        raise ConfigError(f"{path.parent} is not a directory: make it, or name another place for {path.name}")
    try:
        import matplotlib  # noqa: F401
    except ImportError as cause:
        raise ConfigError("a plot needs matplotlib, which is missing: pip install 'sona-pg[plot]'") from cause


def save_plot(reports: Sequence[CollectionReport], path: Path) -> None:
    """Draw what `draw_gains` draws, in the format that the file's ending says.

    Raises
    ------
    ConfigError
        See `check_plot`.
    InvalidInput
        If a report has no trace.
    IoError
        If the file cannot be written.
    """
    check_plot(path)
    figure = draw_gains(reports)
    try:
        with _style():
            figure.savefig(path, dpi=DPI)
    except OSError as cause:
        raise IoError(f"the plot {path} cannot be written ({cause})") from cause


def draw_gains(reports: Sequence[CollectionReport]) -> Figure:
    """One panel for each collection: running means of the gain over frozen, tested before each event was learned from.

    Means over the splits, as far as all of them go. Vertical lines are the events at which another strategy took over
    in the first split, in its colour; ticks at the bottom those of the other splits.

    Parameters
    ----------
    reports
        At least one, each of a system that is `Traced`.

    Raises
    ------
    InvalidInput
        If a report has no trace.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    traces = [_traces(report) for report in reports]
    # Not by pyplot: it would want to know of a display.
    with _style():
        figure = Figure((WIDTH, PANEL_HEIGHT * len(reports) + LEGEND_HEIGHT), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(len(reports), squeeze=False)[:, 0]
        labels = [
            _draw_panel(axes, report, of_splits)
            for axes, report, of_splits in zip(panels, reports, traces, strict=True)
        ]
        panels[-1].set_xlabel("event", color=INK)
        figure.suptitle(_caption(reports), fontsize=9, color=INK, linespacing=1.5)
        lines, names = panels[0].get_legend_handles_labels()
        figure.legend(lines, names, loc="outside lower center", ncols=len(names), frameon=False, handlelength=1.6)
        # Only the finished layout says which labels would lie on each other.
        figure.draw_without_rendering()
        for of_panel in labels:
            _spread(of_panel)
    return figure


def gain_curves(traces: Sequence[Trace]) -> dict[str, NDArray[np.float64]]:
    """Running mean of the gain, points, of every strategy but frozen and of the one in force; the mean over splits.

    Parameters
    ----------
    traces
        One for each split, at least one. The shortest says where the curves end.
    """
    events = min(len(trace.lessons) for trace in traces)
    wanted = {s.value: s for s in Strategy if s is not Strategy.FROZEN} | {LEARNED: None}
    return {
        name: np.mean([100 * running_mean(trace.gains(strategy)[:events]) for trace in traces], axis=0)
        for name, strategy in wanted.items()
    }


def _traces(report: CollectionReport) -> list[Trace]:
    traces = [split.trace for split in report.splits if split.trace is not None]
    if len(traces) < len(report.splits):
        raise InvalidInput(
            f"the evaluation of {report.name} says nothing of single events: plot that of a system that is Traced"
        )
    return traces


def _style() -> AbstractContextManager[None]:
    """The same picture whatever a matplotlibrc says."""
    import matplotlib.style

    return matplotlib.style.context(["default", {"font.size": 9}])


def _caption(reports: Sequence[CollectionReport]) -> str:
    several = any(len(report.splits) > 1 for report in reports)
    where = " in the first split, ticks: in the others" if several else ""
    return (
        "Gain in nDCG@10 over the frozen embedding, points: running mean, tested before each event was learned\n"
        f"Vertical lines: another strategy took over{where}"
    )


def _draw_panel(axes: Axes, report: CollectionReport, traces: Sequence[Trace]) -> list[Text]:
    """Draw a collection; gives the labels of vertical lines, the most important first."""
    curves = gain_curves(traces)
    events = max(len(trace.lessons) for trace in traces)
    begin = report.splits[0].events
    _draw_frame(axes, report, events)
    axes.set_ylim(*_limits(list(curves.values())))
    labels = []
    if begin < len(traces[0].lessons):
        axes.axvline(begin, color=INK, linewidth=1.0, linestyle=(0, (1, 1.5)), label=HELD_OUT, zorder=2)
        labels.append(_label(axes, begin, "held-out part", INK))
    axes.axhline(0, color=COLOURS[FROZEN], linewidth=1.4, label=FROZEN, zorder=2.5)
    for name, curve in curves.items():
        is_learned = name == LEARNED
        axes.plot(curve, color=COLOURS[name], linewidth=2.6 if is_learned else 1.3, label=name, zorder=4 - is_learned)
    labels += _draw_turns(axes, traces[0])
    at_bottom = axes.get_xaxis_transform()
    for trace in traces[1:]:
        places = [event for event, _ in trace.turns]
        colours = [COLOURS[turn.after] for _, turn in trace.turns]
        axes.vlines(places, 0, 0.035, colors=colours, linewidths=1.0, transform=at_bottom, label=OTHER_TURNS, zorder=3)
    return labels


def _draw_frame(axes: Axes, report: CollectionReport, events: int) -> None:
    axes.set_title(report.name, loc="left", fontsize=10, fontweight="bold", color=INK, pad=TITLE_RISE)
    count = len(report.splits)
    axes.set_title(f"{count} {'split' if count == 1 else 'splits'}", loc="right", fontsize=8, color=INK, pad=TITLE_RISE)
    axes.set_xlim(0, events - 1 or 1)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, length=3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)


def _draw_turns(axes: Axes, trace: Trace) -> list[Text]:
    turns = trace.turns
    for event, turn in turns:
        axes.axvline(event, color=COLOURS[turn.after], linewidth=0.9, alpha=0.6, label=TURN, zorder=1.5)
    ends = [*(event for event, _ in turns), len(trace.lessons)]
    stays = sorted(zip(pairwise(ends), turns, strict=True), key=lambda stay: stay[0][0] - stay[0][1])
    return [_label(axes, begin, turn.after.value, COLOURS[turn.after]) for (begin, _), (_, turn) in stays]


def _label(axes: Axes, event: int, name: str, colour: str) -> Text:
    """A word above a vertical line; the title leaves room for it."""
    text = axes.annotate(
        name,
        (event, 1),
        xycoords=axes.get_xaxis_transform(),
        xytext=(0, LABEL_RISE),
        textcoords="offset points",
        ha="center",
        fontsize=8,
        color=colour,
        annotation_clip=False,
    )
    text.set_in_layout(False)
    return text


def _spread(labels: Sequence[Text]) -> None:
    """Leave each label in the first row where it has room beside those before it; else its line's colour must do."""
    kept: list[Bbox] = []
    for label in labels:
        for row in range(LABEL_ROWS):
            label.set_position((0, LABEL_RISE + row * LABEL_HEIGHT))
            box = label.get_window_extent().padded(LABEL_GAP, 0)
            if not box.count_overlaps(kept):
                kept.append(box)
                break
        else:
            label.remove()


def _limits(curves: Sequence[NDArray[np.float64]]) -> tuple[float, float]:
    """Of the scale: what the curves are once they have steadied, and 0."""

    def steady() -> Iterator[float]:
        yield 0.0
        for curve in curves:
            known = curve[~np.isnan(curve)]
            later = known[max(UNSTEADY_EVENTS, round(UNSTEADY_SHARE * len(known))) :]
            yield from (later if len(later) else known)

    values = list(steady())
    low, high = min(values), max(values)
    margin = 0.08 * (high - low) or 1.0
    return low - margin, high + margin
