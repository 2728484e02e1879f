"""Figures of matplotlib as SVG that belongs to its page: its fonts, its colours, light or dark."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING

from sona_pg.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = (
    "ink",
    "muted",
    "grid",
    "paper",
    "band-ink",
    "frozen",
    "adapted",
    "familiar",
    "boosted",
    "stake",
    "fusion",
    "related",
    "control",
    "other",
    *(f"region-{n}" for n in range(8)),
)
"""What the style of the page gives a value to, as ``--ink`` and so on."""

_PLACEHOLDERS: Mapping[str, str] = {name: f"#0b0a{n:02x}" for n, name in enumerate(COLOURS)}
"""matplotlib wants to know colours; these are nobody's."""


def check_matplotlib() -> None:
    """Refuse to draw before anything is read for it.

    Raises
    ------
    ConfigError
        If matplotlib is missing.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as cause:
        raise ConfigError("a report needs matplotlib, which is missing: pip install 'sona-pg[plot]'") from cause


def colour(name: str) -> str:
    """What to hand to matplotlib for a colour of the page."""
    return _PLACEHOLDERS[name]


@contextmanager
def drawing(width: float, height: float) -> Iterator[Figure]:
    """A figure of that size, inches, which looks the same whatever a matplotlibrc says."""
    import matplotlib.style
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    ink, muted = colour("ink"), colour("muted")
    look = {
        "font.size": 8.5,
        "text.color": ink,
        "axes.labelcolor": muted,
        "axes.edgecolor": muted,
        "axes.linewidth": 0.7,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "grid.color": colour("grid"),
        "grid.linewidth": 0.7,
        "xtick.color": muted,
        "ytick.color": muted,
        "xtick.major.size": 3,
        "ytick.major.size": 0,
        "date.converter": "concise",
        # Words stay words, in the font of the page.
        "svg.fonttype": "none",
        "text.parse_math": False,
    }
    # Not by pyplot: it would want to know of a display.
    with matplotlib.style.context(["default", look]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        figure = Figure((width, height))
        FigureCanvasSVG(figure)
        yield figure


def to_svg(figure: Figure, name: str, says: str) -> str:
    """A figure as an element of a page.

    Parameters
    ----------
    figure
        Made by `drawing`, inside of it.
    name
        Tells its ids from those of other figures on the page.
    says
        What it shows, for who cannot see it.
    """
    import matplotlib

    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata=nothing, transparent=True)
    drawn = buffer.getvalue()
    # A page needs no prologue, no name spaces, no style that would hold for all of it, and every id once.
    drawn = drawn[drawn.index("<svg") :]
    width, height = (72 * inches for inches in figure.get_size_inches())
    head = f'<svg role="img" aria-label="{escape(says)}" viewBox="0 0 {width:g} {height:g}">'
    drawn = re.sub(r"\A<svg[^>]*>", lambda _: head, drawn)
    drawn = re.sub(r"<style[^>]*>.*?</style>", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r'<g id="[^"]*"', "<g", drawn).replace("xlink:href", "href")
    drawn = re.sub(r"font-family: [^;\"]*;? ?", "", drawn)
    drawn = re.sub(r"font: (\d+ )?([\d.]+px) [^;\"]*", r"font-size: \2", drawn)
    for name_, placeholder in _PLACEHOLDERS.items():
        drawn = re.sub(rf"((?:fill|stroke): ){placeholder}", rf"\1var(--{name_})", drawn)
    return re.sub(r"\s*\n\s*", "\n", drawn).strip()
