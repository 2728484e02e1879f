"""Imports go down, never up, and SQL stands in the store alone."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import sona_pg

PACKAGE = Path(sona_pg.__file__).parent
ROOT = PACKAGE.parent

BASE = {"errors", "config", "ids", "kernels", "types"}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "ids": set(),
    "calls": {"errors"},
    "files": {"errors"},
    "config": {"errors", "files"},
    "kernels": {"errors"},
    "steps": {"errors"},
    "types": {"errors", "config", "ids", "kernels"},
    "learning": BASE | {"files"},
    "store": BASE | {"calls", "files", "learning", "steps"},
    "loops": BASE | {"files", "learning", "steps", "store", "telemetry"},
    "signals": set(),
    "supervisor": BASE,
    "text": BASE | {"calls"},
    "exchange": BASE | {"files", "learning", "store", "loops"},
    "engine": BASE | {"calls", "files", "learning", "store", "loops", "text", "exchange"},
    "embedder_change": BASE | {"store", "loops"},
    "telemetry": BASE | {"store"},
    "worker": BASE | {"learning", "store", "loops", "telemetry"},
    "evaluation": BASE | {"learning", "store", "loops", "engine"},
    "data": BASE | {"evaluation"},
    "report": BASE | {"learning", "store"},
    "doctor": BASE | {"store"},
    "cli": BASE
    | {
        "learning",
        "store",
        "loops",
        "embedder_change",
        "engine",
        "exchange",
        "worker",
        "evaluation",
        "data",
        "report",
        "telemetry",
        "doctor",
        "signals",
        "supervisor",
        "package",
    },
    "package": BASE | {"learning", "store", "loops", "text", "embedder_change", "engine", "exchange"},
    "__main__": {"cli"},
}
"""What each layer may import besides itself. `package` is what `sona_pg/__init__.py` itself defines."""

# These stand in for an application with a table of its own.
APPLICATIONS = {PACKAGE / "cli" / "demo.py", PACKAGE / "evaluation" / "postgres.py"}
STATEMENT = re.compile(
    r"\s*(SELECT|INSERT|UPDATE|DELETE|MERGE|COPY|CREATE|ALTER|DROP|TRUNCATE|WITH|BEGIN|COMMIT|ROLLBACK|SAVEPOINT|SET"
    r"|SHOW|CALL|GRANT|REVOKE|LISTEN|NOTIFY|LOCK|VACUUM|ANALYZE)\s"
)

MODULES = sorted(PACKAGE.rglob("*.py"))


def layer_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "package" if first == "__init__" else first


def resolved(base: str, name: str) -> str:
    """The layer that ``from base import name`` reaches, `base` inside of sona_pg."""
    parts = base.split(".")[1:] or [name]
    inside = PACKAGE / parts[0]
    return parts[0] if inside.is_dir() or inside.with_suffix(".py").is_file() else "package"


def imported(path: Path, tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and layer of every import of sona_pg in a module, wherever in it."""
    package = ["sona_pg", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "sona_pg":
                    yield node.lineno, resolved(alias.name, "")
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])
            if base.split(".")[0] == "sona_pg":
                for alias in node.names:
                    yield node.lineno, resolved(base, alias.name)


def statements(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and text of every string that begins like an SQL statement; docstrings are none."""
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        text = isinstance(node, ast.Constant) and id(node) not in docstrings and node.value
        if isinstance(text, str) and STATEMENT.match(text):
            yield node.lineno, text[:60]  # type: ignore[attr-defined]


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def test_every_module_belongs_to_a_layer() -> None:
    assert {layer_of(path) for path in MODULES} == set(MAY_IMPORT)


@pytest.mark.parametrize("layer", MAY_IMPORT)
def test_imports_go_down_never_up(layer: str) -> None:
    upward = [
        f"{path.relative_to(ROOT)}:{line} imports {target}"
        for path in MODULES
        if layer_of(path) == layer
        for line, target in imported(path, parsed(path))
        if target != layer and target not in MAY_IMPORT[layer]
    ]
    assert not upward


def test_the_map_for_contributors_names_files_that_are_there() -> None:
    map_of_layers = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("## Layers")[1].split("## ")[0]
    named = re.findall(r"`((?:engine|loops|learning|store|sql)/[\w/]+\.\w+)`", map_of_layers)
    assert len(named) > 10
    assert [name for name in named if not (PACKAGE / name).is_file() and not (ROOT / name).is_file()] == []


def test_no_module_is_longer_than_500_lines() -> None:
    beside = [path for folder in ("tests", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    assert len(beside) > 100
    sources = [*MODULES, *(ROOT / "cython_ext").glob("*.pyx"), *beside]
    long = {
        str(path.relative_to(ROOT)): lines for path in sources if (lines := len(path.read_text().splitlines())) >= 500
    }
    assert not long


def test_layers_have_an_order() -> None:
    order: list[str] = []
    while len(order) < len(MAY_IMPORT):
        ready = [layer for layer, below in MAY_IMPORT.items() if layer not in order and below <= set(order)]
        assert ready
        order += ready


def test_compiled_kernels_import_errors_and_each_other_alone() -> None:
    sources = sorted((ROOT / "cython_ext").glob("*.pyx"))
    assert sources
    for source in sources:
        reached = re.findall(r"^\s*(?:from|import|cimport)\s+sona_pg\.(\w+)", source.read_text(), re.MULTILINE)
        assert set(reached) <= {"errors", "kernels"}, source.name


@pytest.mark.parametrize("layer", ["errors", "config", "ids", "types", "learning"])
def test_pure_layers_know_no_database_and_no_files(layer: str) -> None:
    forbidden = {"psycopg", "sqlalchemy", "alembic", "pgvector", "socket", "pathlib", "subprocess", "sqlite3"}
    for path in MODULES:
        if layer_of(path) == layer:
            names = {
                name.split(".")[0]
                for node in ast.walk(parsed(path))
                if isinstance(node, ast.Import | ast.ImportFrom)
                for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names])
            }
            assert not names & forbidden, path.name


def test_sql_stands_in_the_store_alone() -> None:
    elsewhere = [
        f"{path.relative_to(ROOT)}:{line}: {text}"
        for path in MODULES
        if layer_of(path) != "store" and path not in APPLICATIONS
        for line, text in statements(parsed(path))
    ]
    assert not elsewhere


def test_revisions_of_the_schema_import_nothing_of_the_package() -> None:
    revisions = sorted((ROOT / "migrations" / "versions").glob("0*.py"))
    assert revisions
    for path in revisions:
        assert "sona_pg" not in path.read_text(), path.name


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from sona_pg.store import spaces", ["store"]),
        ("import sona_pg.loops.instant", ["loops"]),
        ("from sona_pg import kernels, __version__", ["kernels", "package"]),
        ("from ..store.spaces import Space", ["store"]),
        ("from . import lora", ["learning"]),
        ("def f():\n    from sona_pg.engine import SonaEngine", ["engine"]),
        ("import numpy.sona_pg\nfrom sona_pgx import y", []),
    ],
)
def test_this_test_sees_every_kind_of_import(source: str, expected: list[str]) -> None:
    path = PACKAGE / "learning" / "example.py"
    assert [target for _, target in imported(path, ast.parse(source))] == expected


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ('f("SELECT 1")', True),
        ('f(f"UPDATE {table} SET x = 1")', True),
        ('f("""\n  INSERT INTO t VALUES (1)""")', True),
        ('def f():\n    """COPY of a thing."""', False),
        ('f("Select a space")', False),
        ('f("CREATED")', False),
    ],
)
def test_this_test_sees_sql(source: str, found: bool) -> None:
    assert bool(list(statements(ast.parse(source)))) == found
