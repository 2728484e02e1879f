"""The picture of an evaluation: what it shows, as it stands in its axes and in its file; what it refuses, and when."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib.colors
import matplotlib.image
import numpy as np
import pytest
from click.testing import CliRunner, Result
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sona_pg.cli.app import app
from sona_pg.errors import ConfigError, InvalidInput, IoError
from sona_pg.evaluation import (
    Collection,
    CollectionReport,
    MemorySystem,
    SplitKind,
    Trace,
    evaluate_collection,
    load_collection,
    plot,
)
from sona_pg.evaluation.metrics import QueryScores
from sona_pg.evaluation.report import SplitResult, summarize
from sona_pg.learning.strategies import Lesson, Strategy, Turn

CURVES = {*(s.value for s in Strategy), "learned"}


def made_trace(events: int, turns: dict[int, Strategy], seed: int = 0) -> Trace:
    """A trace with these turns, and gains that rise."""
    random = np.random.RandomState(seed)
    lessons, in_force = [], Strategy.FROZEN
    for event in range(events):
        gains = {s: 0.01 * number + 0.02 * random.randn() for number, s in enumerate(Strategy)}
        gains[Strategy.FROZEN] = 0.0
        after = turns.get(event, in_force)
        turned = () if after is in_force else (Turn(None, in_force, after, "proven"),)
        lessons.append(Lesson(in_force, gains, turned))
        in_force = after
    return Trace(tuple(lessons), in_force)


def made_report(name: str, traces: Sequence[Trace], stream: int) -> CollectionReport:
    """A report with these traces; only the first `stream` events belong to the stream."""
    collection = Collection(name, ["0", "1"], np.eye(2, dtype=np.float32), np.eye(2, dtype=np.float32), [{0: 1.0}, {}])
    scores = {name: QueryScores(*np.zeros((4, 1))) for name in ("frozen", "learned")}
    return summarize(
        collection,
        [
            SplitResult(number, (0,), min(stream, len(trace.lessons)), 1.0, "learned", scores, {}, trace)
            for number, trace in enumerate(traces)
        ],
    )


FIRST = made_trace(200, {50: Strategy.STAKE, 120: Strategy.FUSION})
SECOND = made_trace(180, {60: Strategy.STAKE}, seed=1)


def places(axes: Axes, label: str) -> list[float]:
    """Where vertical lines of this label stand."""
    return [float(np.ravel(line.get_xdata())[0]) for line in axes.get_lines() if line.get_label() == label]


def curves(axes: Axes) -> dict[str, np.ndarray]:
    lines = [line for line in axes.get_lines() if not str(line.get_label()).startswith("_")]
    return {str(line.get_label()): np.asarray(line.get_ydata()) for line in lines}


class TestFigure:
    def test_a_panel_for_each_collection_and_a_line_for_each_strategy(self) -> None:
        figure = plot.draw_gains([made_report("first", [FIRST, SECOND], 200), made_report("second", [SECOND], 180)])
        assert [axes.get_title(loc="left") for axes in figure.axes] == ["first", "second"]
        assert all(set(curves(axes)) == CURVES for axes in figure.axes)
        (legend,) = figure.legends
        assert {text.get_text() for text in legend.get_texts()} == CURVES

    def test_curves_are_running_means_averaged_as_far_as_all_splits_go(self) -> None:
        (axes,) = plot.draw_gains([made_report("first", [FIRST, SECOND], 200)]).axes
        found = curves(axes)
        assert found["frozen"].tolist() == [0, 0]
        for event in (0, 77, 179):
            seen = [trace.lessons[: event + 1] for trace in (FIRST, SECOND)]
            fusion = np.mean([np.mean([lesson.gains[Strategy.FUSION] for lesson in of_split]) for of_split in seen])
            learned = np.mean([np.mean([lesson.gains[lesson.in_force] for lesson in of_split]) for of_split in seen])
            assert found["fusion"][event] == pytest.approx(100 * fusion)
            assert found["learned"][event] == pytest.approx(100 * learned)
        assert len(found["fusion"]) == len(found["learned"]) == 180
        assert axes.get_xlim() == (0, 199), "a turn of the longest split would still be seen"

    def test_what_is_in_force_stands_out(self) -> None:
        (axes,) = plot.draw_gains([made_report("first", [FIRST], 200)]).axes
        width = {str(line.get_label()): line.get_linewidth() for line in axes.get_lines()}
        assert all(width["learned"] >= 1.8 * width[name] for name in CURVES - {"learned"})
        assert len(set(plot.COLOURS.values())) == len(plot.COLOURS) == len(CURVES)

    def test_turns_of_the_first_split_are_lines_those_of_others_ticks(self) -> None:
        (axes,) = plot.draw_gains([made_report("first", [FIRST, SECOND], 200)]).axes
        assert places(axes, plot.TURN) == [50, 120]
        assert {(text.get_text(), text.xy[0]) for text in axes.texts} == {("stake", 50), ("fusion", 120)}  # type: ignore[attr-defined]
        (ticks,) = [c for c in axes.collections if c.get_label() == plot.OTHER_TURNS]
        ((bottom, top),) = ticks.get_segments()  # type: ignore[attr-defined]
        assert (bottom[0], bottom[1], top[0]) == (60, 0, 60)
        assert top[1] < 0.1
        assert not places(axes, plot.HELD_OUT)

    def test_where_the_held_out_part_begins(self) -> None:
        (axes,) = plot.draw_gains([made_report("first", [FIRST, SECOND], 160)]).axes
        assert places(axes, plot.HELD_OUT) == [160]
        assert "held-out part" in {text.get_text() for text in axes.texts}

    def test_labels_never_lie_on_each_other_and_the_longest_stay_keeps_its_own(self) -> None:
        flaps = {100 + 4 * n: (Strategy.STAKE, Strategy.FROZEN)[n % 2] for n in range(50)}
        trace = made_trace(3000, {**flaps, 301: Strategy.FUSION})
        figure = plot.draw_gains([made_report("flapping", [trace], 3000)])
        (axes,) = figure.axes
        assert len(places(axes, plot.TURN)) == len(flaps) + 1
        figure.draw_without_rendering()
        boxes = {text: text.get_window_extent() for text in axes.texts}
        assert "fusion" in {text.get_text() for text in boxes}
        assert 1 < len(boxes) < len(flaps)
        assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes.values(), 2))
        title = next(t for t in axes.get_children() if getattr(t, "get_text", str)() == "flapping")
        assert not any(box.overlaps(title.get_window_extent()) for box in boxes.values())

    def test_the_first_events_do_not_set_the_scale(self) -> None:
        wild = {s: (1.0 if s is Strategy.FUSION else 0.0) for s in Strategy}
        trace = Trace((Lesson(Strategy.FROZEN, wild), *FIRST.lessons), FIRST.in_force)
        (axes,) = plot.draw_gains([made_report("wild", [trace], 201)]).axes
        low, high = axes.get_ylim()
        assert low < 0 < high < 30
        assert high > curves(axes)["fusion"][20:].max()

    @pytest.mark.parametrize("events", [1, 2, 5])
    def test_a_stream_in_which_nothing_helped(self, events: int) -> None:
        trace = Trace((Lesson(Strategy.FROZEN, {}),) * events, Strategy.FROZEN)
        (axes,) = plot.draw_gains([made_report("nothing", [trace], events)]).axes
        assert np.isnan(curves(axes)["learned"]).all()
        assert axes.get_ylim() == (-1, 1)

    def test_a_system_that_tells_nothing_of_events_is_refused(self) -> None:
        random = np.random.RandomState(0)
        docs, queries = random.randn(2, 12, 4).astype(np.float32)
        silent = Collection("silent", [str(row) for row in range(12)], docs, queries, [{row: 1.0} for row in range(12)])
        report = evaluate_collection(silent, splits=1, system_factory=MemorySystem)
        with pytest.raises(InvalidInput, match="evaluation of silent says nothing of single events"):
            plot.draw_gains([report])


class TestFile:
    REPORTS = [made_report("first", [FIRST, SECOND], 160), made_report("second", [SECOND], 180)]  # noqa: RUF012

    def test_png_holds_the_lines_in_their_colours(self, tmp_path: Path) -> None:
        plot.save_plot(self.REPORTS, tmp_path / "out.png")
        image = matplotlib.image.imread(tmp_path / "out.png")
        height = round(plot.DPI * (2 * plot.PANEL_HEIGHT + plot.LEGEND_HEIGHT))
        assert image.shape == (height, round(plot.DPI * plot.WIDTH), 4)
        for colour in plot.COLOURS.values():
            near = np.abs(image[..., :3] - np.array(matplotlib.colors.to_rgb(colour))).max(axis=2) < 0.02
            assert near.any(axis=0).sum() > 200, f"{colour} spans the panels"

    @pytest.mark.parametrize(("name", "begins"), [("out.SVG", b"<?xml"), ("out.pdf", b"%PDF"), ("out.png", b"\x89PNG")])
    def test_the_ending_says_the_format(self, tmp_path: Path, name: str, begins: bytes) -> None:
        plot.save_plot(self.REPORTS[1:], tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(begins)

    def test_settings_of_the_user_do_not_change_it(self, tmp_path: Path) -> None:
        plot.save_plot(self.REPORTS[1:], tmp_path / "one.png")
        with matplotlib.rc_context({"lines.linewidth": 9, "savefig.bbox": "tight", "axes.facecolor": "black"}):
            plot.save_plot(self.REPORTS[1:], tmp_path / "two.png")
        assert (matplotlib.image.imread(tmp_path / "one.png") == matplotlib.image.imread(tmp_path / "two.png")).all()

    def test_a_file_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "out.png").mkdir()
        with pytest.raises(IoError, match=r"out.png cannot be written"):
            plot.save_plot(self.REPORTS[1:], tmp_path / "out.png")


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])


class TestCommand:
    @pytest.fixture
    def logs(self, tmp_path: Path) -> Path:
        """Questions that recur, in words that are far from their answers: remembering them is soon proven."""
        random = np.random.RandomState(0)
        docs, questions = random.randn(2, 40, 8)
        questions += docs
        logs = tmp_path / "logs"
        logs.mkdir()
        np.save(logs / "docs.npy", docs)
        np.save(logs / "queries.npy", questions[np.arange(200) % 40] + 0.1 * random.randn(200, 8))
        (logs / "qrels.tsv").write_text("".join(f"{query}\t{query % 40}\t1\n" for query in range(200)))
        return logs

    def test_draws_what_the_evaluation_found(self, logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        drawn: list[Figure] = []
        draw = plot.draw_gains

        def spy(reports: Sequence[CollectionReport]) -> Figure:
            drawn.append(draw(reports))
            return drawn[-1]

        monkeypatch.setattr(plot, "draw_gains", spy)
        out = tmp_path / "gains.png"
        done = run(logs, "--splits", "2", "--split", "disjoint", "--continue", "--plot", out)
        assert done.exit_code == 0, done.output
        assert "learned" in done.output
        assert "fusion" in done.output
        assert matplotlib.image.imread(out).std() > 0.05
        report = evaluate_collection(load_collection(logs), splits=2, split_kind=SplitKind.DISJOINT, continuing=True)
        trace = report.splits[0].trace
        assert trace is not None
        assert trace.turns
        (axes,) = drawn[0].axes
        assert places(axes, plot.TURN) == [event for event, _ in trace.turns]
        assert places(axes, plot.HELD_OUT) == [report.splits[0].events]

    # The folder holds no logs: had the evaluation begun, it would say so instead.
    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("out.jpeg", "ends in '.jpeg', expected .png, .svg, .pdf"),
            ("out", "ends in '', expected .png"),
            ("missing/out.png", "missing is not a directory: make it"),
        ],
    )
    def test_what_cannot_be_drawn_is_refused_first(self, tmp_path: Path, name: str, message: str) -> None:
        refused = run(tmp_path, "--plot", tmp_path / name)
        assert isinstance(refused.exception, ConfigError)
        assert message in str(refused.exception)

    def test_without_matplotlib_the_way_out_is_named_first(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        refused = run(tmp_path, "--plot", tmp_path / "out.png")
        assert isinstance(refused.exception, ConfigError)
        assert "pip install 'sona-pg[plot]'" in str(refused.exception)

    def test_a_folder_in_place_of_a_file_and_postgres_are_wrong_usage(self, tmp_path: Path) -> None:
        (tmp_path / "out.png").mkdir()
        assert run(tmp_path, "--plot", tmp_path / "out.png").exit_code == 2
        refused = run(tmp_path, "--plot", tmp_path / "other.png", "--through-postgres")
        assert (refused.exit_code, "leave --through-postgres out" in refused.output) == (2, True)

    def test_nothing_but_a_plot_loads_matplotlib(self, logs: Path) -> None:
        code = (
            "import sys; from sona_pg.cli.app import app; "
            f"app(['evaluate', {str(logs)!r}, '--splits', '1'], standalone_mode=False); "
            "sys.exit('matplotlib' in sys.modules)"
        )
        assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
