"""What every test run prints and shares."""

from __future__ import annotations

from sona_pg import kernels


def pytest_report_header() -> str:
    return f"sona_pg kernels: {kernels.active()} (this CPU runs {', '.join(kernels.available())})"
