"""What every test run prints and shares."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from sona_pg import kernels


def pytest_report_header() -> str:
    return f"sona_pg kernels: {kernels.active()} (this CPU runs {', '.join(kernels.available())})"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What was logged of half a character, too, can be sent from one process of the run to the other."""
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report
