"""``python -m benchmarks NAME [--quick] [--json]``: runs a benchmark, or all of them."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Sequence

from benchmarks.harness import Row, aligned
from sona_pg import kernels

NAMES = (
    "lora",
    "record",
    "ingest",
    "kmeans",
    "fisher",
    "phi",
    "consolidation",
    "digits",
    "search",
    "asynchronous",
    "strategist",
    "versions",
    "forget",
    "sql",
    "memory",
    "presets",
    "throughput",
    "process",
    "outage",
    "loops",
    "patterns",
    "background",
    "shards",
    "base",
    "dreams",
    "dreaming",
    "deep",
    "scaling",
)


def table(rows: Sequence[Row]) -> str:
    """The rows for a terminal."""
    head = ("name", "params", "median µs", "p99 µs", "rival", "rival µs", "ratio")
    lines = [
        (
            r.name,
            " ".join(f"{k}={v}" for k, v in r.params.items()),
            f"{r.median_us:,.2f}",
            f"{r.p99_us:,.2f}",
            r.rival,
            f"{r.rival_median_us:,.2f}",
            f"{r.ratio:,.2f}",
        )
        for r in rows
    ]
    return aligned([head, *lines])


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all without")
    parser.add_argument("--quick", action="store_true", help="under 60 s each")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in NAMES]
    if unknown:
        parser.error(f"no benchmark is called {unknown[0]!r}: choose from {', '.join(NAMES)}")
    rows: list[Row] = []
    for name in options.names or NAMES:
        print(f"{name} …", file=sys.stderr)
        rows += importlib.import_module(f"benchmarks.{name}").run(quick=options.quick)
    if options.json:
        print(json.dumps({"simd": kernels.active(), "rows": [r.as_dict() for r in rows]}, indent=2))
    else:
        print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
