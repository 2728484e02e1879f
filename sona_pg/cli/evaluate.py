"""``sona evaluate``: would it help on these logged outcomes?"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from sona_pg import kernels
from sona_pg.cli.continual import evaluate_in_sequence
from sona_pg.cli.output import print_json, print_table
from sona_pg.cli.progress import progress_bar
from sona_pg.config import QueryAdapterConfig
from sona_pg.evaluation.collection import load_collection
from sona_pg.evaluation.feedback import Feedback
from sona_pg.evaluation.plot import check_plot, save_plot
from sona_pg.evaluation.protocol import SPLITS, SystemFactory, evaluate_collection
from sona_pg.evaluation.report import CollectionReport, StrategyReport, report_json
from sona_pg.evaluation.splits import SplitKind
from sona_pg.evaluation.strategies import StrategySystem
from sona_pg.types import Json


@click.command()
@click.argument("directories", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--splits", type=click.IntRange(min=1), default=SPLITS, show_default=True, help="Streams.")
@click.option(
    "--split",
    "kind",
    type=click.Choice([k.value for k in SplitKind]),
    default=SplitKind.RANDOM.value,
    show_default=True,
    help="disjoint: no judged item in common between stream and held-out queries.",
)
@click.option(
    "--feedback",
    type=click.Choice([f.value for f in Feedback]),
    default=Feedback.FULL.value,
    show_default=True,
    help="Judged: full, the top 10 and up to 3 further; shown, the top 10; thumb, the first.",
)
@click.option("--events", type=click.IntRange(min=1), help="Only the first so many events of each stream.")
@click.option("--through-postgres", is_flag=True, help="Record, learn and recall in Postgres.")
@click.option("--continue", "continuing", is_flag=True, help="Go on learning through the held-out part.")
@click.option("--shuffle-outcomes", is_flag=True, help="Give every event another's outcome: nothing can be learned.")
@click.option("--baselines", is_flag=True, help="Run rivals on the same splits.")
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Draw the gains event by event: .png, .svg or .pdf.",
)
@click.option(
    "--continual",
    is_flag=True,
    help="Learn the directories one after the other; what is forgotten of the earlier ones?",
)
@click.option(
    "--rotated",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    multiple=True,
    help="With --continual: a further domain, this directory turned by a seeded orthogonal matrix.",
)
@click.option("--url", metavar="URL", help="Database for --through-postgres; the embedded server without.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def evaluate(
    directories: tuple[Path, ...],
    splits: int,
    kind: str,
    feedback: str,
    events: int | None,
    through_postgres: bool,
    continuing: bool,
    shuffle_outcomes: bool,
    baselines: bool,
    plot: Path | None,
    continual: bool,
    rotated: tuple[Path, ...],
    url: str | None,
    as_json: bool,
) -> None:
    """Replay the logged outcomes in each directory of DIRECTORIES, and measure on queries that were held out.

    A directory holds docs.npy, queries.npy and qrels.tsv. Each event of the stream is answered by the strategy that
    is proven best so far, and learned once; the held-out queries are never learned from. Every strategy is reported.
    """
    if rotated and not continual:
        raise click.UsageError("--rotated goes with --continual")
    if continual:
        if through_postgres or continuing or shuffle_outcomes or baselines or plot or events:
            raise click.UsageError("--continual goes with --splits, --split, --feedback, --rotated and --json alone")
        evaluate_in_sequence(directories, rotated, splits, SplitKind(kind), Feedback(feedback), as_json=as_json)
        return
    if url is not None and not through_postgres:
        raise click.UsageError("--url goes with --through-postgres")
    if plot is not None and through_postgres:
        raise click.UsageError("--plot shows every strategy, Postgres answers by one: leave --through-postgres out")
    if plot is not None:
        check_plot(plot)
    factory: SystemFactory = StrategySystem
    if through_postgres:
        from sona_pg.evaluation.postgres import PostgresSystem

        factory = partial(PostgresSystem, url=url)
    reports = []
    for directory in directories:
        collection = load_collection(directory)
        with progress_bar(collection.name) as progress:
            reports.append(
                evaluate_collection(
                    collection,
                    splits=splits,
                    split_kind=SplitKind(kind),
                    feedback=Feedback(feedback),
                    system_factory=factory,
                    events=events,
                    continuing=continuing,
                    shuffle_outcomes=shuffle_outcomes,
                    baselines=baselines,
                    progress=progress,
                )
            )
    recipe = QueryAdapterConfig()
    config: dict[str, Json] = {
        "splits": splits,
        "split": kind,
        "feedback": feedback,
        "events": events,
        "through_postgres": through_postgres,
        "continue": continuing,
        "shuffle_outcomes": shuffle_outcomes,
        "simd": kernels.active(),
        "rank": recipe.rank,
        "learning_rate": recipe.learning_rate,
        "temperature": recipe.temperature,
        "negatives": recipe.negatives,
    }
    document = report_json(reports, config)
    if as_json:
        print_json(document)
    else:
        _print_reports(reports, f"{feedback} feedback, {splits} {kind} splits")
    if plot is not None:
        save_plot(reports, plot)


def _print_reports(reports: list[CollectionReport], protocol: str) -> None:
    head = (
        "collection",
        "strategy",
        "nDCG@10",
        "gain",
        "sd",
        "95 % interval",
        "MRR@10",
        "Recall@10",
        "helped",
        "harmed",
        "unchanged",
        "µs/event",
    )
    rows: list[tuple[object, ...]] = []
    for report in reports:
        named = {**report.strategies, **{f"{name} (baseline)": b for name, b in report.baselines.items()}}
        for name, strategy in named.items():
            speed = f"{report.us_per_event:.0f}" if strategy is report.learned else ""
            rows.append((report.name, name, *_cells(strategy), speed))
    print_table(head, rows)
    mean = sum(report.learned.gain_ndcg10 for report in reports) / len(reports)
    click.echo(f"\nnDCG@10 gains in points over the frozen embedding, {protocol}; mean gain {100 * mean:+.2f}")


def _cells(strategy: StrategyReport) -> tuple[object, ...]:
    quality, interval = strategy.quality, strategy.gain_ci95
    between = "" if interval is None else f"{100 * interval[0]:+.2f} … {100 * interval[1]:+.2f}"
    return (
        quality.ndcg10,
        f"{100 * strategy.gain_ndcg10:+.2f}",
        f"{100 * strategy.gain_sd:.2f}",
        between,
        quality.mrr10,
        quality.recall10,
        strategy.helped,
        strategy.harmed,
        strategy.unchanged,
    )
