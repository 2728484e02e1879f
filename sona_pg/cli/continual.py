"""``sona evaluate --continual``: what is forgotten of domains that were learned one after the other?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from sona_pg import kernels
from sona_pg.cli.output import print_json, print_table
from sona_pg.cli.progress import progress_bar
from sona_pg.config import DistillationConfig, EwcConfig, QueryAdapterConfig
from sona_pg.evaluation.collection import load_collection
from sona_pg.evaluation.continual import ContinualReport, continual_json, evaluate_continual
from sona_pg.evaluation.continual import rotated as turned
from sona_pg.evaluation.feedback import Feedback
from sona_pg.evaluation.splits import SplitKind
from sona_pg.types import Json


def evaluate_in_sequence(
    directories: Sequence[Path],
    rotated: Sequence[Path],
    seeds: int,
    kind: SplitKind,
    feedback: Feedback,
    *,
    as_json: bool,
) -> None:
    """Learn the directories one after the other, then those of `rotated` turned; print what became of each."""
    collections = [load_collection(path) for path in directories]
    collections += [turned(load_collection(path)) for path in rotated]
    recipe, distillation, ewc = QueryAdapterConfig(), DistillationConfig(), EwcConfig()
    with progress_bar("domains") as progress:
        report = evaluate_continual(
            collections,
            seeds=seeds,
            split_kind=kind,
            feedback=feedback,
            distillation=distillation,
            ewc=ewc,
            progress=progress,
        )
    config: dict[str, Json] = {
        "splits": seeds,
        "split": str(kind),
        "feedback": str(feedback),
        "simd": kernels.active(),
        "rank": recipe.rank,
        "learning_rate": recipe.learning_rate,
        "remembered_queries": distillation.queries,
        "distillation_weight": distillation.weight,
        "ewc_lambda": ewc.initial_lambda,
    }
    if as_json:
        print_json(continual_json(report, config))
    else:
        _print_report(report, seeds)


def _print_report(report: ContinualReport, seeds: int) -> None:
    head = ("method", "ACC", "gain", "BWT", "FWT", "forgetting", "of the shared gain", *report.domains)
    rows: list[tuple[object, ...]] = []
    for name, runs in report.methods.items():
        share = report.share(name)
        rows.append(
            (
                name,
                report.mean(name, lambda run: run.acc),
                _points(report.mean(name, lambda run: run.gain)),
                _points(report.mean(name, lambda run: run.bwt)),
                _points(report.mean(name, lambda run: run.fwt)),
                f"{report.mean(name, lambda run: run.forgetting):.4f}",
                "" if share is None else f"{share:.0%}",
                *(_points(sum(run.gains[-1, place] for run in runs) / seeds) for place in range(len(report.domains))),
            )
        )
    print_table(head, rows)
    click.echo(f"\ngain, BWT, FWT and domains at the end in nDCG@10 points over the frozen embedding; {seeds} seeds")


def _points(value: float) -> str:
    return f"{100 * value:+.2f}"
