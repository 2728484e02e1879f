"""What very many trajectories in very many spaces need: measured unit costs here, the rest by stated assumptions.

``python -m benchmarks.scaling --trajectories 1e9 --spaces 100000`` prints rows, bytes, hours of cycles and cost. As a
benchmark, the seconds per 1,000 trajectories stand beside reading the same again.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.background import DIM, ITEMS, SHOWN, TABLE, work
from benchmarks.bank_worlds import Floats, embeddings, noisy
from benchmarks.harness import Row, aligned, row
from benchmarks.postgres import SPACE, benchmark_engine
from benchmarks.scaling_model import DAYS_OF_MONTH, GRAPH, Assumptions, Totals, Units, extrapolate
from sona_pg.config import InstantLoopConfig
from sona_pg.engine import SonaEngine
from sona_pg.store.connection import Connection, connect

HELPED, BATCH = 2, 500
GROWING = ("trajectory", "trajectory_step", "learning_event", "answer_outcome", "remembered_query", *GRAPH)
"""Tables whose rows grow with trajectories; of the others a space has a bounded number."""


def run(*, quick: bool) -> list[Row]:
    """Unit costs from 6,000 trajectories; from 4,000 with --quick."""
    units, reading = measure(1000, 2000 if quick else 4000)
    params: dict[str, int | float | str] = {"d": DIM, "shown": SHOWN, "measured": units.measured}
    params["bytes"] = round(sum(units.bytes.values()) + units.index_bytes)
    fixed, per_new, per_read = units.background
    deep_fixed, per_row = units.deep
    per_thousand = {
        "1,000 trajectories: A": 1e3 * units.record_seconds,
        "1,000 trajectories: B": 1e3 * (per_new + per_read) + fixed,
        "1,000 trajectories: C": 1e3 * per_row * units.graph_rows + deep_fixed,
        "1,000 trajectories: admitted": 1e3 * units.admit_seconds,
    }
    rival = np.array([reading * 1e9])
    return [row(name, params, np.array([s * 1e6]), "reading them", rival) for name, s in per_thousand.items()]


def measure(few: int, many: int) -> tuple[Units, float]:
    """Load `few`, `many` and `few` trajectories into a space, with cycles after each; and seconds to read one again."""
    source = embeddings()
    items = noisy(source, ITEMS, DIM, 1)
    instant = InstantLoopConfig(max_pending_signals=BATCH)
    with benchmark_engine(DIM, instant=instant) as engine, connect(engine.url) as connection:
        connection.execute(f"DROP TABLE IF EXISTS {TABLE}")
        connection.execute(f"CREATE TABLE {TABLE} (id integer PRIMARY KEY, embedding vector)")
        connection.cursor().executemany(f"INSERT INTO {TABLE} VALUES (%s, %s)", list(enumerate(items)))
        engine.set_items(TABLE, "id", "embedding")
        spent = _core_seconds(connection)
        background, deep, graph, taken = [], [], [], 0.0
        for seed, n in enumerate((few, many, few)):
            seconds = _record(engine, noisy(source, n, DIM, 2 + seed), items, spent)
            taken = seconds if n == many else taken
            _rest(connection)
            background.append(_cycle(connection, engine.url, "background", spent))
            deep.append(_cycle(connection, engine.url, "deep", spent))
            graph.append(_count(connection, engine, "memory_edge") + _count(connection, engine, "memory_node"))
        measured = 2 * few + many
        rows = {table: _count(connection, engine, table) / measured for table in GROWING}
        # Before all are admitted at once, which no space does that has grown: its tail is small.
        sizes = {table: _size(connection, table) / measured for table in GROWING}
        began = spent()
        (admitted,) = connection.execute("SELECT sona.admit_queries(%s, 0)", (SPACE,)).fetchone() or (0,)
        admit_seconds = (spent() - began) / max(admitted, 1)
        began = spent()
        for table in ("trajectory", "trajectory_step"):
            statement = f"SELECT * FROM sona.{table} WHERE space_id = %s"
            connection.execute(statement, (engine.space.space_id,), binary=True).fetchall()
        reading = (spent() - began) / measured
        once, version = _bounded(connection, engine)
        units = Units(
            measured=measured,
            rows=rows,
            bytes=sizes,
            index_bytes=_size_of_index(connection, engine) / _count(connection, engine, "remembered_query"),
            version_bytes=version,
            space_bytes=once,
            record_seconds=taken / many,
            admit_seconds=admit_seconds,
            background=_three_parts(background, few, many),
            deep=_line(deep, graph),
            graph_rows=graph[-1] / measured,
        )
        connection.execute(f"DROP TABLE {TABLE}")
    return units, reading


def _core_seconds(connection: Connection) -> Callable[[], float]:
    """A clock of what cores have done: this process, its children that have ended, and the server."""
    (data,) = connection.execute("SELECT current_setting('data_directory')").fetchone() or ("",)
    try:
        postmaster = int((Path(data) / "postmaster.pid").read_text().partition("\n")[0])
    except OSError as cause:
        raise RuntimeError(f"the server must be on this machine, its time is counted too: {cause}") from cause

    def clock() -> float:
        # Of the server's processes those that have ended are in the times of the postmaster.
        ticks = sum(map(int, _stat(str(postmaster))[11:15]))
        for process in os.listdir("/proc"):
            if process.isdecimal() and (stat := _stat(process)) and int(stat[1]) == postmaster:
                ticks += int(stat[11]) + int(stat[12])
        return sum(os.times()[:4]) + ticks / os.sysconf("SC_CLK_TCK")

    return clock


def _stat(process: str) -> list[str]:
    """Fields of /proc/PID/stat from the state on; none of a process that has ended."""
    try:
        return Path(f"/proc/{process}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    except OSError:
        return []


def _record(engine: SonaEngine, queries: Floats, items: Floats, spent: Callable[[], float]) -> float:
    """Seconds to record what was shown, and what of it helped: two items, by a map that can be learned."""
    turned = np.roll(queries, 1, axis=1)
    taken = 0.0
    for start in range(0, len(queries), BATCH):
        block = slice(start, start + BATCH)
        near = np.argpartition(-(queries[block] @ items.T), SHOWN)[:, :SHOWN]
        liked = np.argsort(-np.einsum("nkd,nd->nk", items[near], turned[block]), axis=1)[:, :HELPED]
        began = spent()
        for query, shown, best in zip(queries[block], near, liked, strict=True):
            rewards = [float(place in best) for place in range(SHOWN)]
            engine.record(query, [str(item) for item in shown], rewards)
        engine.flush()
        taken += spent() - began
    return taken


def _cycle(connection: Connection, url: str, loop: str, spent: Callable[[], float]) -> float:
    """Seconds of a cycle of a loop, in a process of its own, but for its start."""
    began = spent()
    work(url, loop)
    idle = spent() - began
    connection.execute("SELECT sona.run_cycle(%s, %s)", (SPACE, loop))
    began = spent()
    work(url, loop)
    seconds = spent() - began - idle
    ((state, facts),) = connection.execute(
        "SELECT state, facts FROM sona.runs WHERE space = %s AND loop = %s ORDER BY run_id DESC LIMIT 1",
        (SPACE, loop),
    ).fetchall()
    if state != "done":
        raise RuntimeError(f"the {loop} cycle is {state}: {facts}")
    return max(seconds, 0.0)


def _three_parts(seconds: list[float], few: int, many: int) -> tuple[float, float, float]:
    """Of any cycle, per new trajectory, per trajectory that is read: from cycles of few, many and few new ones."""
    per_read = max((seconds[2] - seconds[0]) / (few + many), 0.0)
    per_new = max((seconds[1] - seconds[0] - per_read * many) / max(many - few, 1), 0.0) if many > few else 0.0
    return max(seconds[0] - few * (per_new + per_read), 0.0), per_new, per_read


def _line(seconds: list[float], rows: list[int]) -> tuple[float, float]:
    slope = max((seconds[1] - seconds[0]) / max(rows[1] - rows[0], 1), 0.0)
    return max(seconds[0] - slope * rows[0], 0.0), slope


def _rest(connection: Connection) -> None:
    for table in GROWING:
        connection.execute(f"VACUUM ANALYZE sona.{table}")
    connection.execute("CHECKPOINT")


def _count(connection: Connection, engine: SonaEngine, table: str) -> int:
    statement = f"SELECT count(*) FROM sona.{table} WHERE space_id = %s"
    (count,) = connection.execute(statement, (engine.space.space_id,)).fetchone() or (0,)
    return int(count)


def _size(connection: Connection, table: str) -> float:
    """Bytes of a table with its indexes, but for those of HNSW."""
    (size,) = connection.execute(
        "SELECT pg_total_relation_size(c.oid) - coalesce(sum(pg_relation_size(i.indexrelid))"
        "  FILTER (WHERE i.indexrelid::regclass::text LIKE '%%\\_hnsw\\_%%'), 0)"
        " FROM pg_class c JOIN pg_index i ON i.indrelid = c.oid WHERE c.oid = to_regclass(%s) GROUP BY c.oid",
        (f"sona.{table}",),
    ).fetchone() or (0,)
    return float(size)


def _size_of_index(connection: Connection, engine: SonaEngine) -> float:
    statement = "SELECT coalesce(pg_relation_size(sona._queries_index(%s)), 0)"
    (size,) = connection.execute(statement, (engine.space.space_id,)).fetchone() or (0,)
    return float(size)


def _bounded(connection: Connection, engine: SonaEngine) -> tuple[float, float]:
    """Bytes of what a space has once, and of one version."""
    once, versions = 0.0, 0.0
    for (table,) in connection.execute(
        "SELECT c.relname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid WHERE a.attname = 'space_id'"
        " AND c.relnamespace = 'sona'::regnamespace AND c.relkind = 'r' AND c.relname <> ALL(%s)",
        (list(GROWING),),
    ).fetchall():
        statement = f"SELECT coalesce(sum(pg_column_size(t.*)), 0) FROM sona.{table} t WHERE space_id = %s"
        (size,) = connection.execute(statement, (engine.space.space_id,)).fetchone() or (0,)
        if table in ("adapter_version", "version_row"):
            versions += float(size)
        else:
            once += float(size)
    return once, versions / max(_count(connection, engine, "adapter_version"), 1)


def report(units: Units, assumed: Assumptions, totals: Totals) -> str:
    """Measured, in all, the largest space and the median one."""
    middle = len(totals.sizes) // 2
    days = assumed.days

    def line(name: str, unit: str, one: float, values: np.typing.NDArray[np.float64], scale: float) -> list[str]:
        shown = [one, float(values.sum()), float(values[0]), float(values[middle])]
        return [name, unit, f"{shown[0]:,.3g}", *(f"{value / scale:,.3g}" for value in shown[1:])]

    lines = [["", "unit", "of one, measured", "in all", "largest space", "median space"]]
    lines.append(line("trajectories", "1,000", 0.001, totals.sizes, 1e3))
    for table, values in totals.rows.items():
        lines.append(line(f"rows of {table}", "1,000", units.rows.get(table, 0.0), values, 1e3))
    for table, values in totals.bytes.items():
        each = {"HNSW of remembered_query": units.index_bytes, "adapter_version": units.version_bytes}
        one = each.get(table, units.bytes.get(table, units.space_bytes))
        lines.append(line(f"bytes: {table}", "GB", one, values, 1e9))
    stored = np.sum(list(totals.bytes.values()), axis=0)
    lines.append(line("bytes, all", "GB", float(stored.sum() / totals.sizes.sum()), stored, 1e9))
    fixed, per_new, per_read = units.background
    measured = {
        "A: record, learn, weigh": units.record_seconds,
        "index admission": units.admit_seconds,
        "B: hourly cycles": per_new + per_read,
        "C: weekly cycles": units.deep[1] * units.graph_rows,
    }
    for name, values in totals.seconds.items():
        lines.append(line(f"core: {name}", "hours", measured[name], values, 3600.0))
    hours = np.sum(list(totals.seconds.values()), axis=0) / 3600
    lines.append(line("core, all", "hours", 0.0, hours, 1.0))
    for name, values in totals.cycles.items():
        lines.append(line(f"cycles of {name}", "1,000", 0.0, values, 1e3))
    cores = hours.sum() * assumed.core_hour
    disk = stored.sum() / 1e9 * assumed.copies * assumed.gigabyte_month
    busiest = totals.sizes[0] / (days * 86_400)
    return "\n".join(
        [
            aligned(lines),
            "",
            f"cores: {hours.sum() / (days * 24):,.1f} busy on average, {cores:,.0f} in {days:g} days"
            f" at {assumed.core_hour:g} per core-hour",
            f"disk: {disk:,.0f} a month at the end, {assumed.copies} copies at {assumed.gigabyte_month:g} per GB-month;"
            f" {disk * days / DAYS_OF_MONTH / 2:,.0f} in {days:g} days, as it grows evenly",
            f"largest space: {busiest:,.2f} trajectories/s arrive, a core takes {1 / units.record_seconds:,.0f}",
            f"a cycle, measured: B {fixed:.2f} s + {1e3 * per_new:.3f} s per 1,000 new + {1e3 * per_read:.3f} s per"
            f" 1,000 read; C {units.deep[0]:.2f} s + {1e3 * units.deep[1]:.3f} s per 1,000 nodes and edges",
        ]
    )


def main() -> int:
    """Measure, extrapolate, print."""
    default = Assumptions()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="unit costs of 4,000 trajectories instead of 6,000")
    for name in Assumptions.__dataclass_fields__:
        value = getattr(default, name)
        kind = int if isinstance(value, int) else float
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=value, help=f"default {value:g}")
    options = vars(parser.parse_args())
    quick = options.pop("quick")
    assumed = Assumptions(**options)
    units, _ = measure(1000, 2000 if quick else 4000)
    print(report(units, assumed, extrapolate(units, assumed)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
