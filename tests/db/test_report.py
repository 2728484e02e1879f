"""The report of a space: what it says, that it stands alone, and that nothing foreign becomes markup."""

from __future__ import annotations

import re
import sys
import uuid
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from sona_pg.cli.app import app
from sona_pg.errors import ConfigError, IoError, UnknownSpace
from sona_pg.learning.lift import confidence_sequence
from sona_pg.report import Facts, check_report, gather, render, save_report
from sona_pg.report.facts import AUDITED, HARMED
from sona_pg.report.numbers import signed
from sona_pg.store import history, spaces
from sona_pg.store.connection import Connection, connect
from sona_pg.store.spaces import Space

from .conftest import World as Tenants
from .recurring import World
from .test_improvement import DIM, Answer, mixed, write

HOSTILE = """</title></style><script>alert("x")</script><img src=x onerror='y'>&amp;\u202e"""
VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """A page, refused where its elements do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1] if self.open else "", " ".join(data.split())))

    def of(self, tag: str) -> list[str]:
        return [text for inside, text in self.texts if inside == tag]

    @property
    def all_text(self) -> str:
        return " ".join(text for inside, text in self.texts if inside != "style")


def check_stands_alone(text: str) -> Page:
    """Nothing is asked of a network, nothing runs, and every reference is to the page itself."""
    page = Page(text)
    assert not re.search(r"https?:|//[a-z]|@import|javascript:|data:", text)
    assert not {"script", "link", "img", "iframe", "object", "base", "form", "image"} & set(page.tags)
    assert not [a for a in page.attributes if a[1] in {"src", "srcset", "action"} or a[1].startswith("on")]
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    references = [value for _, name, value in page.attributes if name.endswith("href")]
    references += re.findall(r"url\(([^)]*)\)", text)
    assert {reference.removeprefix("#") for reference in references} <= set(ids)
    assert all(reference.startswith("#") for reference in references)
    assert ("meta", "content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes
    return page


def report_of(connection: Connection, space: Space) -> Page:
    return check_stands_alone(render(gather(connection, space)))


@pytest.fixture
def space(connection: Connection, space_name: str) -> Space:
    return spaces.create_space(connection, space_name, DIM)


@pytest.fixture(scope="module")
def told(url: str) -> Iterator[tuple[World, Facts]]:
    """A space that has proven something over ten days, was frozen and deployed again, all under hostile names."""
    world = World(url, f"{HOSTILE} {uuid.uuid4().hex[:8]}", control_share=0.2)
    key = world.engine.space.space_id
    world.teach(330)
    with connect(url) as connection:
        connection.execute("SELECT sona._publish(%s, %s)", (key, HOSTILE))
    world.engine.deploy("frozen", HOSTILE)
    world.teach(30)
    world.engine.deploy("latest", "it was the index")
    world.teach(40)
    with connect(url) as connection:
        connection.execute(
            "UPDATE sona.answer_outcome o SET answered_at = now() - interval '10 days' + interval '36 minutes' * x.n"
            " FROM (SELECT trajectory_id, row_number() OVER (ORDER BY ordinal) AS n FROM sona.answer_outcome"
            " WHERE space_id = %s) x WHERE o.space_id = %s AND o.trajectory_id = x.trajectory_id",
            (key, key),
        )
        connection.execute("UPDATE sona.space SET embedder = %s WHERE space_id = %s", (HOSTILE, key))
        connection.execute(
            "UPDATE sona.answer_outcome SET strategy = %s WHERE space_id = %s AND ordinal < 5 AND arm = 'learned'",
            (HOSTILE, key),
        )
        facts = gather(connection, spaces.get_space(connection, world.name))
    yield world, facts
    world.engine.close()


class TestPage:
    def test_it_stands_alone_and_holds_every_part(self, told: tuple[World, Facts]) -> None:
        page = check_stands_alone(render(told[1]))
        assert page.tags["svg"] == 3
        assert page.of("h2") == [
            "What it brought",
            "Lift over the control arm",
            "What every strategy would have brought",
            "Where the questions lie",
            "Harmed answers",
            "Versions",
            "Audit trail",
        ]

    def test_hostile_names_are_texts(self, told: tuple[World, Facts]) -> None:
        world, facts = told
        page = check_stands_alone(render(facts))
        name = " ".join(world.name.split())
        assert page.of("title") == [f"{name}: what was learned"]
        foreign = page.of("bdi")
        assert foreign[0] == name
        assert foreign.count(HOSTILE) >= 4, "the embedder, why a version was published, also in the audit trail, frozen"

    def test_what_answers_and_what_it_brought_stand_first(self, told: tuple[World, Facts]) -> None:
        world, facts = told
        page = Page(render(facts))
        ((gain, judged),) = world.rows(
            "SELECT avg(gain), count(gain) FROM sona.answer_outcome WHERE space_id = %(space)s"
        )
        assert isinstance(gain, float)
        assert page.of("strong") == [f"{signed(100 * gain)} points"]
        assert f"Over {judged} judged answers" in page.all_text
        assert "fusion" in page.of("bdi")[2]
        m = facts.metrics
        assert m.gain_7d is not None
        assert m.harmed_share_7d is not None
        assert {signed(100 * m.gain_7d), f"{100 * m.harmed_share_7d:.1f} %"} <= set(page.of("b"))

    def test_turns_and_what_was_done_by_hand_are_marked(self, told: tuple[World, Facts]) -> None:
        labels = Page(render(told[1])).of("text")
        (latest,) = {change.after for change in told[1].changes if change.action == "deploy"}
        assert {"fusion", "frozen", f"version {latest}", "▲ version published", "control arm"} <= set(labels)
        assert "answers whose outcome is known" in labels
        assert any(label.endswith("lift so far") for label in labels)

    def test_lists_are_bounded_and_ordered(self, told: tuple[World, Facts]) -> None:
        world, facts = told
        assert len(facts.audit) <= AUDITED
        assert [d.created_at for d in facts.audit] == sorted((d.created_at for d in facts.audit), reverse=True)
        worst = world.rows(
            "SELECT gain FROM sona.answer_outcome WHERE space_id = %(space)s AND gain < -1e-9 ORDER BY gain LIMIT 10"
        )
        assert [a.gain for a in facts.harmed] == [gain for (gain,) in worst]
        assert len(facts.harmed) <= HARMED
        page = Page(render(facts))
        assert all(str(answer.trajectory_id) in page.all_text for answer in facts.harmed)
        assert {change.action for change in facts.changes} == {"deploy", "freeze", "strategy"}

    def test_an_empty_space_says_that_there_is_nothing_yet(self, connection: Connection, space: Space) -> None:
        page = report_of(connection, space)
        assert page.of("h2") == ["Nothing yet"]
        assert page.tags["svg"] == 0

    def test_without_a_control_arm_there_is_no_lift(self, connection: Connection, space: Space) -> None:
        connection.execute("SELECT sona.set_control_share(%s, 0)", (space.name,))
        write(connection, space, [Answer(days, 0.5, 0.1, item="a") for days in (3, 2, 1) for _ in range(20)])
        page = report_of(connection, space)
        assert "The space has no control arm" in page.all_text
        assert "there is no control arm to compare with" in page.of("span")
        # What was gained, and where the questions lie.
        assert page.tags["svg"] == 2

    def test_few_control_answers_are_said_not_to_be_relied_on(self, connection: Connection, space: Space) -> None:
        control = [Answer(0, 0.4, None, "control", 0.1, -1.0)] * 5
        write(connection, space, [*control, *[Answer(0, 0.5, 0.1, "learned", 0.9, 0.1)] * 40])
        page = report_of(connection, space)
        assert "5 control answers are known, fewer than 30" in page.all_text
        assert "5 of the 30 control answers that it takes" in page.of("span")

    @pytest.mark.parametrize(("days", "over_answers"), [([0], 2), ([3, 2, 1, 0], 2), ([4, 3, 2, 1, 0], 1)])
    def test_the_lift_of_few_days_is_drawn_over_answers(
        self, connection: Connection, space: Space, rng: np.random.Generator, days: list[int], over_answers: int
    ) -> None:
        write(connection, space, mixed(rng, days))
        assert report_of(connection, space).of("text").count("answers whose outcome is known") == over_answers

    @pytest.mark.parametrize("gain", [None, 0.2])
    def test_a_single_answer_is_a_page(self, connection: Connection, space: Space, gain: float | None) -> None:
        write(connection, space, [Answer(0, 0.5, gain, "learned", 0.9, 0.1, "a")])
        page = report_of(connection, space)
        assert ("Over 1 judged answer " in page.all_text) is (gain is not None)
        assert page.tags["svg"] == 3


class TestFacts:
    def test_stretches_are_bounded_and_lose_nothing(
        self, connection: Connection, space: Space, rng: np.random.Generator
    ) -> None:
        answers = mixed(rng, [9, 6, 3, 0])
        write(connection, space, answers)
        for most in (1, 7, 100, 319, 320, 1000):
            found = history.stretches(connection, space, most)
            assert len(found) == min(most, len(answers))
            sizes = [s.answers for s in found]
            assert max(sizes) - min(sizes) <= 1
            ends = np.cumsum(sizes)
            for stretch, begin, end in zip(found, [0, *ends], ends, strict=False):
                part = answers[begin:end]
                gains = [a.gain for a in part if a.gain is not None]
                contrasts = [a.contrast for a in part if a.contrast is not None]
                assert (stretch.ordinal, stretch.gains, stretch.contrasts) == (end - 1, len(gains), len(contrasts))
                assert stretch.gain == pytest.approx(sum(gains))
                assert stretch.squares == pytest.approx(sum(c * c for c in contrasts))
                kinds = Counter("control arm" if a.arm == "control" else a.strategy for a in part)
                assert (stretch.strategies, stretch.controls) == (dict(kinds), kinds["control arm"])

    def test_the_lift_that_is_drawn_is_that_of_the_view(
        self, connection: Connection, space: Space, rng: np.random.Generator
    ) -> None:
        write(connection, space, mixed(rng, [2, 1, 0]))
        found = history.stretches(connection, space, 13)
        sums = [np.cumsum([getattr(s, n) for s in found]) for n in ("contrasts", "contrast", "squares")]
        weights = np.maximum.accumulate([s.weight for s in found])
        mean, lower, upper = confidence_sequence(*(np.asarray(s, dtype=np.float64) for s in sums), weights)
        row = connection.execute(
            "SELECT lift_so_far, lower, upper FROM sona.lift WHERE space = %s ORDER BY day DESC LIMIT 1", (space.name,)
        ).fetchone()
        assert (mean[-1], lower[-1], upper[-1]) == pytest.approx(row)

    def test_a_sample_of_what_is_remembered_is_bounded_and_even(self, connection: Connection, space: Space) -> None:
        assert history.remembered_sample(connection, space, 10) == []
        with connection.transaction():
            for ordinal in [*range(100), *range(500, 600)]:
                connection.execute(
                    "INSERT INTO sona.remembered_query (space_id, trajectory_id, embedding, ordinal)"
                    " VALUES (%s, %s, %s, %s)",
                    (space.space_id, uuid.uuid4(), np.full(DIM, ordinal, dtype=np.float32), ordinal),
                )
        assert len(history.remembered_sample(connection, space, 1000)) == 200
        few = [int(vector[0]) for vector in history.remembered_sample(connection, space, 60)]
        # Every tenth, and the one that follows the gap.
        assert few == [*range(0, 100, 10), *range(500, 600, 10)]

    def test_a_reader_may_make_one_of_what_it_may_see(self, world: Tenants) -> None:
        with connect(world.login("alpha_reader")) as reader:
            page = report_of(reader, spaces.get_space(reader, "alpha"))
            with pytest.raises(UnknownSpace):
                spaces.get_space(reader, "beta")
        assert "What it brought" in page.of("h2")
        assert str(world.trajectories["beta"]) not in page.all_text


class TestCommand:
    def test_it_writes_the_page(self, url: str, told: tuple[World, Facts], tmp_path: Path) -> None:
        path = tmp_path / "report.html"
        done = CliRunner().invoke(app, ["report", told[0].name, "--html", str(path), "--url", url])
        assert done.exit_code == 0, done.output
        assert done.stdout == ""
        page = check_stands_alone(path.read_text(encoding="utf-8"))
        assert page.of("h2")[0] == "What it brought"

    def test_a_place_that_is_none_is_told_before_anything_is_read(self, tmp_path: Path) -> None:
        arguments = ["report", "any", "--html", str(tmp_path / "none" / "x.html"), "--url", "host=/nowhere"]
        done = CliRunner().invoke(app, arguments)
        assert isinstance(done.exception, ConfigError)
        assert "is not a directory" in str(done.exception)

    def test_a_file_that_cannot_be_written_is_told(self, told: tuple[World, Facts], tmp_path: Path) -> None:
        with pytest.raises(IoError, match="cannot be written"):
            save_report(told[1], tmp_path)

    def test_without_matplotlib_it_says_what_to_install(
        self, told: tuple[World, Facts], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        for attempt in (lambda: check_report(tmp_path / "x.html"), lambda: render(told[1])):
            with pytest.raises(ConfigError, match=re.escape("pip install 'sona-pg[plot]'")):
                attempt()
        assert not list(tmp_path.iterdir())

    def test_a_space_that_is_not_there_is_told(self, url: str, tmp_path: Path) -> None:
        done = CliRunner().invoke(app, ["report", "nowhere", "--html", str(tmp_path / "x.html"), "--url", url])
        assert isinstance(done.exception, UnknownSpace)
        assert not list(tmp_path.iterdir())
