"""The report as one page of HTML that asks nothing of any network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path

from sona_pg.errors import ConfigError, IoError
from sona_pg.report.charts import draw_gain, draw_lift, draw_map
from sona_pg.report.facts import HARMED, Facts
from sona_pg.report.numbers import grouped, signed
from sona_pg.report.style import STYLE
from sona_pg.report.svg import check_matplotlib
from sona_pg.store.improvement import CONTROL_ARM, MIN_ANSWERS, ImprovementMetrics

SHOWN_VERSIONS = 20
UNKNOWN = "–"


def check_report(path: Path) -> None:
    """Refuse a report that could not be written, before anything is read for it.

    Raises
    ------
    ConfigError
        If the folder does not exist, or matplotlib is missing.
    """
    if not path.parent.is_dir():
        raise ConfigError(f"{path.parent} is not a directory: make it, or name another place for {path.name}")
    check_matplotlib()


def save_report(facts: Facts, path: Path) -> None:
    """Write what `render` gives.

    Raises
    ------
    ConfigError
        See `check_report`.
    IoError
        If the file cannot be written.
    """
    check_report(path)
    page = render(facts)
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as cause:
        raise IoError(f"the report {path} cannot be written ({cause})") from cause


def render(facts: Facts) -> str:
    """The whole page. Whatever comes from the database is escaped.

    Raises
    ------
    ConfigError
        If matplotlib is missing.
    """
    check_matplotlib()
    sections = [_answers, _strategies, _map, _harmed, _versions, _audit]
    body = "\n".join(section(facts) for section in sections) if _has_anything(facts) else _nothing(facts)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(facts.space)}: what was learned</title>
<style>{STYLE}</style>
</head>
<body>
{_header(facts)}
<main>
{body}
</main>
<footer>{_footer()}</footer>
</body>
</html>
"""


def _has_anything(facts: Facts) -> bool:
    return bool(facts.stretches or facts.versions or facts.queries)


def _header(facts: Facts) -> str:
    standing = facts.standing
    about = [f"{standing.dim} dimensions"]
    if standing.embedder is not None:
        about.append(_foreign(standing.embedder))
    about += [f"since {_day(standing.created_at)}", f"as of {_moment(facts.made_at)}"]
    return f"""<header>
<p class="over">What was learned, and what it brought</p>
<h1>{_foreign(facts.space)}</h1>
<p class="about">{" · ".join(about)}</p>
</header>"""


def _nothing(facts: Facts) -> str:
    recorded = _count(facts.standing.trajectories, "trajectory is", "trajectories are")
    return f"""<section class="nothing">
<h2>Nothing yet</h2>
<p>No answer of this space has an outcome so far; {recorded} recorded. Answers are those of the frozen embedding.</p>
<p>Record what answers were worth, with <code>sona.record</code> from SQL or <code>SonaEngine.record</code> from Python,
and make this report again.</p>
</section>"""


def _answers(facts: Facts) -> str:
    if not facts.stretches:
        return _section("What it brought", _lead(facts) + "<p>No answer has an outcome yet.</p>")
    charts = _figure(
        draw_gain(facts),
        "Above: nDCG@10 of what answered minus that of the frozen embedding, on the items that were judged, before "
        "each answer was learned from. Lines mark when another strategy was proven, dashed ones what was done by hand "
        "or by the lift. Below: what answered.",
    )
    return _section("What it brought", _lead(facts) + _tiles(facts) + charts) + _lift(facts)


def _lead(facts: Facts) -> str:
    standing, judged = facts.standing, sum(stretch.gains for stretch in facts.stretches)
    is_plain = standing.setting in ("learned", standing.in_force)
    setting = "" if is_plain else f" The space is set to {_foreign(standing.setting)}."
    version = f"version {standing.version}, " if standing.version else ""
    lead = (
        f"<strong>{_foreign(standing.in_force)}</strong> answers, from {version}learned from "
        f"{_count(standing.events, 'outcome', 'outcomes')}.{setting}"
        if standing.events
        else f"<strong>{_foreign(standing.in_force)}</strong> answers.{setting}"
    )
    if judged:
        gain = sum(stretch.gain for stretch in facts.stretches) / judged
        lead += (
            f" Over {_count(judged, 'judged answer', 'judged answers')} what answered brought"
            f" <strong>{_points(gain)} points</strong> of nDCG@10 above the frozen embedding."
        )
    return f'<p class="lead">{lead}</p>'


def _tiles(facts: Facts) -> str:
    m = facts.metrics
    controls = sum(stretch.controls for stretch in facts.stretches)
    tiles = [
        ("Gain, 7 days", _points(m.gain_7d), "points of nDCG@10 above the frozen embedding"),
        ("Lift", _points(m.lift), _lift_says(m, controls, facts.standing.control_share)),
        ("Weekly gain", UNKNOWN if m.weekly_gain is None else f"{signed(100 * m.weekly_gain)} %", _weekly_says(m)),
        ("Quality, 7 days", _decimal(m.quality_7d), _quality_says(m)),
        ("Harmed, 7 days", _percent(m.harmed_share_7d), "of judged answers would have been better frozen"),
        ("Kept, 7 days", _percent(m.retention_rate_7d), _kept_says(m)),
    ]
    cells = "\n".join(
        f"<div><dt>{name}</dt><dd><b>{value}</b><span>{says}</span></dd></div>" for name, value, says in tiles
    )
    return f'<dl class="tiles">\n{cells}\n</dl>'


def _lift_says(m: ImprovementMetrics, controls: int, share: float) -> str:
    if m.lift is not None and m.lift_lower is not None and m.lift_upper is not None:
        return f"points of value over the control arm, {_points(m.lift_lower)} to {_points(m.lift_upper)} at 95 %"
    if not controls and not share:
        return "there is no control arm to compare with"
    return f"{controls} of the {MIN_ANSWERS} control answers that it takes"


def _weekly_says(m: ImprovementMetrics) -> str:
    if m.weekly_gain is None:
        return "too few answers to compare"
    over = "those of the control arm" if m.weekly_gain_over == CONTROL_ARM else "the week before"
    return f"what answers are worth above {over}, 7 days"


def _kept_says(m: ImprovementMetrics) -> str:
    if m.retention_rate_7d is None:
        return "too little was gained before on questions that were asked again"
    return "of the gain on questions that were asked again"


def _quality_says(m: ImprovementMetrics) -> str:
    if m.quality_delta_7d is None:
        return "mean value of answers, 0 to 1"
    return f"mean value of answers, 0 to 1; {signed(m.quality_delta_7d, 3)} to the 7 days before"


def _lift(facts: Facts) -> str:
    compared = sum(stretch.contrasts for stretch in facts.stretches)
    controls = sum(stretch.controls for stretch in facts.stretches)
    if not compared:
        why = "The space has no control arm" if not facts.standing.control_share else "No arms were compared yet"
        return _section("Lift", f"<p>{why}: the lift is not known. <code>sona.set_control_share</code> sets one.</p>")
    few = (
        f" So far {_count(controls, 'control answer is', 'control answers are')} known, fewer than {MIN_ANSWERS}: the "
        "interval is not to be relied on."
        if controls < MIN_ANSWERS
        else ""
    )
    return _section(
        "Lift over the control arm",
        _figure(
            draw_lift(facts),
            f"What answers are worth above those of the control arm, {_count(controls, 'answer', 'answers')} that the "
            "frozen embedding gave, drawn at random; 100 points are the difference between the best and the worst. The "
            f"band holds the truth with 95 % at all times together, however often it is looked at.{few}",
        ),
    )


def _strategies(facts: Facts) -> str:
    if not facts.strategies:
        return ""
    rows = [
        (s.strategy + (" (answers)" if s.strategy == facts.standing.in_force else ""), grouped(s.events))
        + (_points(s.gain), _points(s.recent_gain))
        for s in facts.strategies
    ]
    table = _table((("Strategy", False), ("Events", True), ("Gain", True), ("Recently", True)), rows)
    return _section(
        "What every strategy would have brought",
        table
        + "<p class='note'>Points of nDCG@10 above frozen, on every event, whether it answered or not; recently: an "
        "event counts 1 % less than the next.</p>",
    )


def _map(facts: Facts) -> str:
    if not facts.queries:
        return ""
    drawn = _figure(
        draw_map(facts.queries, facts.regions),
        f"{_count(len(facts.queries), 'remembered query', 'remembered queries')}, spread evenly over the ledger. Near "
        "points are similar questions, as far as two dimensions can say; numbers are regions.",
    )
    rows = [(str(r.region), grouped(r.events), _points(r.gain), r.verdict) for r in facts.regions]
    head = (("Region", True), ("Events", True), ("Fusion's gain", True), ("Verdict", False))
    beside = f'<div class="beside">{drawn}{_table(head, rows)}</div>' if rows else drawn
    return _section("Where the questions lie", beside)


def _harmed(facts: Facts) -> str:
    rows = [
        (str(a.trajectory_id), _moment(a.answered_at), a.strategy, str(a.version), _decimal(a.value), _points(a.gain))
        + (a.in_force_because or "",)
        for a in facts.harmed
    ]
    head = (
        ("Trajectory", False), ("Answered", False), ("Strategy", False), ("Version", True), ("Value", True),
        ("Gain", True), ("In force because", False),
    )  # fmt: skip
    text = (
        f"<p class='note'>The {HARMED} that lost most, if there are as many. <code>sona.why(trajectory)</code> says "
        "what moved one.</p>"
    )
    return _section("Harmed answers", _table(head, rows) + text if rows else "<p>None is known.</p>")


def _versions(facts: Facts) -> str:
    shown = facts.versions[-SHOWN_VERSIONS:][::-1]
    rows = [
        (f"{v.version}" + (" (in force)" if v.is_in_force else ""), "" if v.parent is None else str(v.parent))
        + (_moment(v.created_at), v.cause, grouped(v.events), v.strategy, _bytes(v.nbytes))
        for v in shown
    ]
    head = (
        ("Version", False), ("From", True), ("Published", False), ("Cause", False), ("Outcomes", True),
        ("Proven", False), ("Size", True),
    )  # fmt: skip
    more = len(facts.versions) - len(shown)
    note = f"<p class='note'>And {grouped(more)} earlier ones: <code>sona versions</code>.</p>" if more else ""
    return _section("Versions", _table(head, rows) + note if rows else "<p>None was published yet.</p>")


def _audit(facts: Facts) -> str:
    rows = [
        (_moment(d.created_at), d.actor, d.action, d.before or "", d.after or "", d.reason or "") for d in facts.audit
    ]
    head = tuple((name, False) for name in ("When", "Who", "What", "Before", "After", "Why"))
    return _section("Audit trail", _table(head, rows) if rows else "<p>Nothing was changed by anybody yet.</p>")


def _footer() -> str:
    return (
        "<p>Figures that too few answers would have to carry are left out; times are UTC. <b>Gain</b> is by the items "
        "that were judged, and counts no answer of the control arm. <b>Lift</b> compares two arms that were drawn at "
        "random, by what answers were worth. <b>Kept</b>: of what was gained on a question in the week before, the "
        "share that is gained when it is asked again; questions are the same whose best item is.</p>"
    )


# Parts of the page ---------------------------------------------------------------------------------------------------


def _section(title: str, content: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n{content}\n</section>"


def _figure(svg: str, caption: str) -> str:
    return f"<figure>\n<div class='chart'>{svg}</div>\n<figcaption>{caption}</figcaption>\n</figure>\n"


def _table(head: Sequence[tuple[str, bool]], rows: Iterable[Sequence[str]]) -> str:
    """A table of texts that come from anywhere; columns that are marked hold numbers, which align."""
    marks = [' class="n"' if is_number else "" for _, is_number in head]
    titles = "".join(f"<th{mark}>{escape(title)}</th>" for mark, (title, _) in zip(marks, head, strict=True))
    lines = [
        "<tr>" + "".join(f"<td{mark}>{_foreign(cell)}</td>" for mark, cell in zip(marks, row, strict=True)) + "</tr>"
        for row in rows
    ]
    body = "\n".join(lines)
    return f'<div class="table"><table>\n<thead><tr>{titles}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'


def _foreign(text: str) -> str:
    """A text of somebody else's: no markup, and its direction of writing ends with it."""
    return f"<bdi>{escape(text)}</bdi>"


def _count(n: int, one: str, many: str) -> str:
    return f"{grouped(n)} {one if n == 1 else many}"


def _points(value: float | None) -> str:
    """A difference as points, hundredths."""
    return UNKNOWN if value is None else signed(100 * value)


def _percent(share: float | None) -> str:
    return UNKNOWN if share is None else f"{100 * share:.1f} %"


def _decimal(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.3f}"


def _moment(time: datetime) -> str:
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M}"


def _day(time: datetime) -> str:
    return f"{time.astimezone(UTC):%Y-%m-%d}"


def _bytes(n: int) -> str:
    return f"{n / 1024:,.0f} kB" if n < 1024 * 1024 else f"{n / 1024 / 1024:,.1f} MB"
