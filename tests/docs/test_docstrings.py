"""Docstrings of everything public: what they call parameters are parameters, and nothing public is without one."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

import pytest

import sona_pg

_PARAMETERS = re.compile(r"^Parameters\n-+\n(.*?)(?=\n\n?\w[^\n]*\n-+$|\Z)", re.MULTILINE | re.DOTALL)


def _public() -> Iterator[tuple[str, object]]:
    """Public names and the methods that they have, each once."""
    for name in sorted(set(sona_pg.__all__) - {"__version__"}):
        value = getattr(sona_pg, name)
        yield name, value
        if inspect.isclass(value):
            for method, found in inspect.getmembers(value, inspect.isroutine):
                if not method.startswith("_") and str(getattr(found, "__module__", "")).startswith("sona_pg"):
                    yield f"{name}.{method}", found


PUBLIC = dict(_public())


def documented(doc: str) -> list[str]:
    """Names under Parameters."""
    at = _PARAMETERS.search(inspect.cleandoc(doc))
    lines = [] if at is None else re.findall(r"^(\*{0,2}\w[\w, *]*)$", at[1], re.MULTILINE)
    return [name.strip(" *") for line in lines for name in line.split(",")]


def wrong(value: object) -> list[str]:
    """Documented parameters that there are not."""
    try:
        known = set(inspect.signature(value).parameters)  # type: ignore[arg-type]
    except ValueError:
        return []  # of the compiler
    return [name for name in documented(value.__doc__ or "") if name not in known]


@pytest.mark.parametrize("name", PUBLIC)
def test_a_docstring_is_there_and_names_parameters_that_are(name: str) -> None:
    assert (PUBLIC[name].__doc__ or "").strip(), f"{name} has no docstring"
    assert wrong(PUBLIC[name]) == []


def test_a_parameter_that_is_not_there_is_seen() -> None:
    def f(a: int) -> None:
        """Do.

        Parameters
        ----------
        a, b
            Numbers (n,).
        c
            Another one.

        Raises
        ------
        ValueError
            Never.
        """

    assert documented(f.__doc__ or "") == ["a", "b", "c"]
    assert wrong(f) == ["b", "c"]
    assert sum(bool(documented(value.__doc__ or "")) for value in PUBLIC.values()) > 100
