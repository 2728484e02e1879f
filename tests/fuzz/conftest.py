"""A server and a database for the fuzz tests, and what they tried."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from db.conftest import make_database, server_url

from sona_pg.store.migrate import migrate

from . import budget

__all__ = ["make_database", "server_url"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The number of inputs for every entry, and in all."""
    if not budget.executed:
        return
    if budget.FULL:
        terminalreporter.section(f"fuzz, SONA_FUZZ_SEED={budget.SEED}")
        for entry, count in sorted(budget.executed.items()):
            kinds = {kind: n for (of, kind), n in sorted(budget.refused.items()) if of == entry}
            said = ", ".join(f"{kind} {n}" for kind, n in kinds.items())
            terminalreporter.write_line(f"{entry:40} {count:7}  {said}")
    terminalreporter.write_line(f"fuzz: {budget.executed.total()} inputs to {len(budget.executed)} entries")


@pytest.fixture(scope="package")
def url(make_database: Callable[[], str]) -> str:
    """A migrated database of the fuzz tests alone."""
    made = make_database()
    migrate(made)
    return made
