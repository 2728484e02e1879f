"""The pure parts of a report: means, projection, labels, numbers, and SVG that belongs to its page."""

from __future__ import annotations

import re

import numpy as np
import pytest

from sona_pg.report.charts import moving_mean, project, spread
from sona_pg.report.numbers import grouped, signed
from sona_pg.report.svg import COLOURS, colour, drawing, to_svg


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


@pytest.mark.parametrize("shape", [(200, 12), (12, 200), (12, 12)])
def test_a_projection_is_the_two_principal_components(rng: np.random.Generator, shape: tuple[int, int]) -> None:
    rows = rng.standard_normal(shape) * np.linspace(3, 0.5, shape[1])
    points, explained = project(rows)
    left, values, _ = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
    expected = left[:, :2] * values[:2]
    np.testing.assert_allclose(np.abs(points), np.abs(expected), atol=1e-8)
    assert explained == pytest.approx((values[:2] ** 2).sum() / (values**2).sum())
    largest = np.argmax(np.abs(points), axis=0)
    assert (points[largest, [0, 1]] > 0).all()


@pytest.mark.parametrize("rows", [np.ones((1, 4)), np.ones((5, 4)), np.ones((5, 1)), np.arange(3.0)[:, None]])
def test_queries_that_hardly_differ_are_projected_all_the_same(rows: np.ndarray) -> None:
    points, explained = project(rows)
    assert points.shape == (len(rows), 2)
    assert np.isfinite(points).all()
    assert 0 <= explained <= 1


def test_a_moving_mean_is_that_of_the_last_answers(rng: np.random.Generator) -> None:
    gains = np.where(rng.uniform(size=100) < 0.3, np.nan, rng.standard_normal(100))
    known = ~np.isnan(gains)
    found = moving_mean(np.arange(1.0, 101), known.astype(float), np.where(known, gains, 0.0), 10)
    assert np.isnan(found[:9]).all()
    for place in range(9, 100):
        window = gains[place - 9 : place + 1]
        assert found[place] == pytest.approx(np.nanmean(window))


def test_a_moving_mean_of_unknown_gains_is_unknown() -> None:
    assert np.isnan(moving_mean(np.arange(1.0, 31), np.zeros(30), np.zeros(30), 5)).all()


def test_labels_are_pushed_apart_and_those_with_room_stay() -> None:
    centres = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0], [500.0, 500.0]])
    moved = spread(centres, 20.0)
    distances = np.linalg.norm(moved[:, None] - moved[None], axis=2) + 1e3 * np.eye(4)
    assert distances.min() > 18
    np.testing.assert_allclose(moved[3], centres[3], atol=0.1)
    assert spread(np.zeros((0, 2)), 20.0).shape == (0, 2)


def test_numbers_have_signs_and_groups() -> None:
    assert [signed(v) for v in (4.26, -0.5, 0.04, -0.04, 0.0)] == ["+4.3", "−0.5", "±0.0", "±0.0", "±0.0"]
    assert signed(-0.0314, 3) == "−0.031"
    assert [grouped(n) for n in (7, 1234, 1234567)] == ["7", "1,234", "1,234,567"]


def test_a_drawing_takes_fonts_and_colours_from_its_page() -> None:
    with drawing(3, 2) as figure:
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=colour("fusion"))
        axes.fill_between([0, 1], [0, 1], color=colour("stake"))
        axes.text(0, 0, "<b>$x_1 & more", color=colour("ink"))
        drawn = to_svg(figure, "one", 'a "quoted" <thing>')
    assert drawn.startswith('<svg role="img" aria-label="a &quot;quoted&quot; &lt;thing&gt;" viewBox="0 0 216 144">')
    assert {"var(--fusion)", "var(--stake)", "var(--ink)"} <= set(re.findall(r"var\(--[a-z0-9-]+\)", drawn))
    assert "&lt;b&gt;$x_1 &amp; more" in drawn
    assert not re.search(r"font-family|xmlns|http|<style|<metadata", drawn)
    assert not any(colour(name) in drawn for name in COLOURS)


def test_the_same_drawing_is_the_same_text_and_another_has_other_ids() -> None:
    def draw(name: str) -> str:
        with drawing(3, 2) as figure:
            figure.subplots().scatter([0, 1], [0, 1], color=colour("fusion"))
            return to_svg(figure, name, "")

    assert draw("one") == draw("one")
    ids = [set(re.findall(r'id="([^"]+)"', draw(name))) for name in ("one", "other")]
    assert all(ids)
    assert not ids[0] & ids[1]
