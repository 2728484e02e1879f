"""Domains in sequence: figures by hand, an adapter per space forgets nothing, and what the command prints."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from sona_pg.cli.app import app
from sona_pg.errors import ConfigError, DimensionMismatch
from sona_pg.evaluation import Collection
from sona_pg.evaluation.continual import (
    CONSOLIDATED,
    DISTILLED,
    SEPARATE,
    SEQUENTIAL,
    Continual,
    ContinualReport,
    continual_json,
    evaluate_continual,
    rotated,
)

DIM, DOCS, QUERIES = 24, 60, 500


def domain(seed: int, dim: int = DIM, *, sense: float = 1.0) -> Collection:
    """Every query is its document, turned in a plane in which documents differ much, and noise."""
    random = np.random.RandomState(seed)
    docs = random.randn(DOCS, dim) * np.where(np.arange(dim) < 4, 3.0, 1.0)
    docs /= np.linalg.norm(docs, axis=1, keepdims=True)
    wanted = random.randint(0, DOCS, QUERIES)
    queries = docs[wanted].copy()
    queries[:, [0, 1]] = sense * np.stack([-docs[wanted, 1], docs[wanted, 0]], axis=1)
    queries += 0.05 * random.randn(QUERIES, dim)
    return Collection(
        f"domain {seed}",
        [str(row) for row in range(DOCS)],
        docs.astype(np.float32),
        queries.astype(np.float32),
        [{int(doc): 1.0} for doc in wanted],
    )


@pytest.fixture(scope="module")
def report() -> ContinualReport:
    # What the second one teaches is the opposite of what the first one does.
    return evaluate_continual([domain(0), domain(1, sense=-1.0), rotated(domain(0), 3)], seeds=2)


def write(collection: Collection, path: Path) -> str:
    path.mkdir()
    np.save(path / "docs.npy", collection.docs)
    np.save(path / "queries.npy", collection.queries)
    lines = [f"{q}\t{d}\t{g:g}" for q, grades in enumerate(collection.relevant) for d, g in grades.items()]
    (path / "qrels.tsv").write_text("\n".join(lines))
    return str(path)


class TestFigures:
    def test_by_hand(self) -> None:
        gains = np.array([[0.10, 0.02, -0.01], [0.12, 0.20, 0.03], [0.07, 0.15, 0.30]])
        run = Continual((0.5, 0.4, 0.3), gains)
        assert run.gain == pytest.approx((0.07 + 0.15 + 0.30) / 3)
        assert run.acc == pytest.approx(0.4 + run.gain)
        assert run.bwt == pytest.approx(((0.07 - 0.10) + (0.15 - 0.20)) / 2)
        assert run.fwt == pytest.approx((0.02 + 0.03) / 2)
        assert run.forgetting == pytest.approx(((0.12 - 0.07) + (0.20 - 0.15)) / 2)

    def test_an_adapter_per_space_forgets_nothing(self, report: ContinualReport) -> None:
        for run in report.methods[SEPARATE]:
            assert run.forgetting == 0.0
            assert run.bwt == 0.0
            assert run.fwt == 0.0
            assert (np.diag(run.gains) > 0.02).all()

    def test_all_methods_begin_alike(self, report: ContinualReport) -> None:
        firsts = [[run.gains[0, 0] for run in runs] for runs in report.methods.values()]
        assert all(first == firsts[0] for first in firsts)

    def test_protection_keeps_the_first_domain(self, report: ContinualReport) -> None:
        lost = {
            name: report.mean(name, lambda run: float(run.gains[0, 0] - run.gains[-1, 0])) for name in report.methods
        }
        assert lost[SEQUENTIAL] > 0.03
        assert lost[DISTILLED] < 0.5 * lost[SEQUENTIAL]
        assert lost[CONSOLIDATED] < 0.5 * lost[SEQUENTIAL]

    def test_the_same_seeds_give_the_same(self) -> None:
        first, again = (evaluate_continual([domain(0), domain(1)], seeds=1) for _ in range(2))
        for name, runs in first.methods.items():
            np.testing.assert_array_equal(runs[0].gains, again.methods[name][0].gains)

    def test_json(self, report: ContinualReport) -> None:
        document = json.loads(json.dumps(continual_json(report, {"splits": 2})))
        assert set(document["methods"]) == {SEPARATE, SEQUENTIAL, DISTILLED, CONSOLIDATED}
        assert document["methods"][SEQUENTIAL]["share_of_shared_gain"] == 1.0
        assert document["methods"][SEPARATE]["forgetting_by_seed"] == [0.0, 0.0]
        assert np.array(document["methods"][DISTILLED]["gains"]).shape == (3, 3)
        assert [domain["name"] for domain in document["domains"]] == ["domain 0", "domain 1", "domain 0 rotated"]


class TestRotation:
    def test_cosines_stay_and_axes_do_not(self) -> None:
        plain, turned = domain(0), rotated(domain(0), 1)
        np.testing.assert_allclose(turned.queries @ turned.docs.T, plain.queries @ plain.docs.T, atol=1e-5)
        assert np.abs(turned.docs - plain.docs).max() > 0.1
        np.testing.assert_array_equal(turned.docs, rotated(plain, 1).docs)
        assert np.abs(turned.docs - rotated(plain, 2).docs).max() > 0.1


class TestRefusals:
    def test_one_domain(self) -> None:
        with pytest.raises(ConfigError, match="at least two"):
            evaluate_continual([domain(0)], seeds=1)

    def test_no_seed(self) -> None:
        with pytest.raises(ConfigError, match="at least 1"):
            evaluate_continual([domain(0), domain(1)], seeds=0)

    def test_another_dimension(self) -> None:
        with pytest.raises(DimensionMismatch, match="domain 1"):
            evaluate_continual([domain(0), domain(1, DIM + 1)], seeds=1)


class TestCommand:
    def test_table_and_json(self, tmp_path: Path) -> None:
        first, second = write(domain(0), tmp_path / "first"), write(domain(1), tmp_path / "second")
        arguments = ["evaluate", "--continual", first, second, "--rotated", first, "--splits", "1"]
        table = CliRunner().invoke(app, arguments)
        assert table.exit_code == 0, table.output
        assert "forgetting" in table.output
        assert "first rotated" in table.output
        as_json = CliRunner().invoke(app, [*arguments, "--json"])
        document = json.loads(as_json.stdout)
        assert [found["name"] for found in document["domains"]] == ["first", "second", "first rotated"]
        assert document["config"]["splits"] == 1

    @pytest.mark.parametrize("option", ["--through-postgres", "--continue", "--shuffle-outcomes", "--baselines"])
    def test_options_that_do_not_go_together(self, tmp_path: Path, option: str) -> None:
        path = write(domain(0), tmp_path / "first")
        result = CliRunner().invoke(app, ["evaluate", "--continual", path, path, option])
        assert result.exit_code == 2
        assert "--continual goes with" in result.output

    def test_rotated_alone_is_refused(self, tmp_path: Path) -> None:
        path = write(domain(0), tmp_path / "first")
        result = CliRunner().invoke(app, ["evaluate", path, "--rotated", path])
        assert result.exit_code == 2
        assert "--rotated goes with --continual" in result.output

    def test_dimensions_that_differ_are_refused_clearly(self, tmp_path: Path) -> None:
        first, second = write(domain(0), tmp_path / "first"), write(domain(1, DIM + 1), tmp_path / "second")
        result = CliRunner().invoke(app, ["evaluate", "--continual", first, second, "--splits", "1"])
        assert result.exit_code != 0
        assert "second" in result.output + str(result.exception)
