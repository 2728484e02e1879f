"""The site: its navigation has every page, the reference what is public, and tuning the defaults of the code."""

from __future__ import annotations

import ast
import operator
import re

import pytest
import yaml

import sona_pg
from sona_pg import config

from .pages import DOCS, ROOT, prose_of


def _entries(nav: object) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    parts = nav.values() if isinstance(nav, dict) else nav
    assert not isinstance(parts, str | None)
    return [entry for part in parts for entry in _entries(part)]  # type: ignore[attr-defined]


def test_every_page_is_in_the_navigation_once() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    pages = sorted(page.relative_to(DOCS).as_posix() for page in DOCS.glob("**/*.md"))
    assert sorted(_entries(site["nav"])) == pages


def test_nothing_is_fetched_for_the_site() -> None:
    theme = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["theme"]
    assert theme["font"] is False
    for picture in DOCS.glob("assets/*"):
        assert not re.search(r"(href|src)=.https?:|@import|url\(https?:", picture.read_text()), picture.name


def test_pages_do_not_link_to_files_outside_the_site() -> None:
    for page in DOCS.glob("**/*.md"):
        for target in re.findall(r"\]\((?!https?:|#)([^()\s#]+)", prose_of(page)):
            assert (page.parent / target).resolve().is_relative_to(DOCS), f"{page.name}: {target}"


def test_every_public_name_is_in_the_reference_once() -> None:
    named = [
        name
        for page in (DOCS / "reference").glob("*.md")
        for name in re.findall(r"^::: sona_pg\.(\w+)$", page.read_text(), re.MULTILINE)
    ]
    assert sorted(named) == sorted(set(sona_pg.__all__) - {"__version__"})


TUNED = re.findall(r"^\| `(\w+)\.(\w+)` \| `([^`]*)` \|", (DOCS / "tuning.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize(("owner", "setting", "default"), TUNED)
def test_tuning_quotes_the_defaults_of_the_code(owner: str, setting: str, default: str) -> None:
    found = getattr(config, owner).__dataclass_fields__[setting].default
    assert _value(ast.parse(default, mode="eval").body) == found


def test_tuning_names_settings() -> None:
    assert len(TUNED) >= 15


def _value(node: ast.expr) -> object:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.LShift):
        return operator.lshift(_value(node.left), _value(node.right))
    return ast.literal_eval(node)
