"""``sona demo``: the main job on real outcomes, through Postgres: record, learn, apply, and the SQL that shows it."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, dataclass, replace

import click
import numpy as np

from sona_pg.cli.output import print_json, print_table
from sona_pg.data import load_demo
from sona_pg.engine import SonaEngine
from sona_pg.evaluation.collection import Collection
from sona_pg.evaluation.feedback import SPACE, Feedback, judge
from sona_pg.evaluation.metrics import Quality, Ranking, score_ranking
from sona_pg.evaluation.protocol import trajectory_id
from sona_pg.evaluation.report import CHANGED, confidence_interval
from sona_pg.evaluation.splits import Split, SplitKind, make_split
from sona_pg.store import spaces
from sona_pg.store.connection import Connection, translated, use_vector_schema
from sona_pg.store.database import Database, open_database

SPACE_NAME = "sona-demo"
TABLE = "sona_demo.documents"
FLUSH_EVERY = 10
"""Events in one learning transaction: about what half a second of busy traffic brings."""
FAST_SHARE = 3
"""With --fast, one in so many events and held-out questions."""

QUERIES = (
    (
        "What was learned, and how much of it is durable?",
        "SELECT trajectories, events_learned, version, edges FROM sona.status WHERE space = 'sona-demo'",
    ),
    (
        "Which passages help most, and how often were they shown?",
        "SELECT item_id, count(*) FILTER (WHERE reward > 0) AS helped, count(position) AS shown\n"
        "FROM sona.trajectory_step JOIN sona.space USING (space_id) WHERE name = 'sona-demo'\n"
        "GROUP BY item_id ORDER BY helped DESC, item_id LIMIT 3",
    ),
    (
        "Which strategy answers, what would each have brought, and since when?",
        "SELECT strategy, in_force, round(recent_gain::numeric, 3) AS recent_gain,\n"
        "       (SELECT max(ordinal) FROM sona.turns t WHERE t.space = s.space AND t.after = s.strategy) AS since\n"
        "FROM sona.strategies s WHERE space = 'sona-demo' ORDER BY recent_gain DESC",
    ),
    (
        "How is a question asked now? (any table, any index: ORDER BY with the adapted query)",
        "SELECT id FROM sona_demo.documents\n"
        "ORDER BY embedding <=> (SELECT sona.adapt('sona-demo', query)\n"
        "                        FROM sona.trajectory JOIN sona.space USING (space_id)\n"
        "                        WHERE name = 'sona-demo' ORDER BY trajectory_id LIMIT 1)\n"
        "LIMIT 3",
    ),
)


@dataclass(frozen=True, slots=True)
class AskedQuery:
    """A statement and what it gave."""

    title: str
    sql: str
    columns: list[str]
    rows: list[list[object]]


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What the demo found; also the JSON document. Gains are fractions (0.038)."""

    frozen: Quality
    learned: Quality
    gain_ndcg10: float
    gain_ci95: tuple[float, float] | None
    held_out: int
    helped: int
    harmed: int
    unchanged: int
    events: int
    us_per_event: float
    recall_us: float
    seconds: float
    feedback: str
    data: str
    queries: list[AskedQuery]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option("--fast", is_flag=True, help=f"One in {FAST_SHARE} questions.")
@click.option("--url", metavar="URL", help="Database; SONA_DATABASE_URL or the embedded server without.")
def demo(as_json: bool, fast: bool, url: str | None) -> None:
    """See a retrieval system get better from real people's outcomes, everything in Postgres.

    Replays 1292 questions that people asked about COVID-19, each with the passage that answers it; then asks 861 others
    that were held out, before and after. The space and the documents stay, to be looked at with SQL.
    """
    began = time.perf_counter()
    collection = load_demo()
    click.echo("opening the database …", err=True)
    database = open_database(url)
    with database.connect() as connection, translated():
        use_vector_schema(connection)
        _prepare(connection, collection)
        with SonaEngine.connect(
            database.url, space=SPACE_NAME, dim=collection.docs.shape[1], space_config=SPACE, background=False
        ) as engine:
            engine.set_items(TABLE, "id", "embedding")
            split = make_split(collection, SplitKind.RANDOM, 0)
            stream = split.stream[::FAST_SHARE] if fast else split.stream
            held_out = split.held_out[::FAST_SHARE] if fast else split.held_out
            learn_us, recall_us = _replay(engine, collection, split, stream)
        relevant = [collection.relevant[query] for query in held_out]
        frozen = score_ranking(_rank(connection, collection, held_out), relevant)
        learned = score_ranking(_recall(connection, collection, held_out), relevant)
        shown = [_ask(connection, title, statement) for title, statement in QUERIES]
    differences = learned.ndcg10 - frozen.ndcg10
    gain = float(differences.mean())
    result = DemoResult(
        frozen=frozen.quality(),
        learned=learned.quality(),
        gain_ndcg10=gain,
        gain_ci95=confidence_interval(np.arange(len(differences)), differences, gain),
        held_out=len(differences),
        helped=int((differences > CHANGED).sum()),
        harmed=int((differences < -CHANGED).sum()),
        unchanged=int((np.abs(differences) <= CHANGED).sum()),
        events=len(stream),
        us_per_event=round(learn_us, 1),
        recall_us=round(recall_us, 1),
        seconds=round(time.perf_counter() - began, 1),
        feedback="full: the top 10 and up to 3 further are judged",
        data="FeedbackQA (CDC part), Apache-2.0: real crowd-written questions, one passage each",
        queries=shown,
    )
    if as_json:
        print_json(asdict(result))
    else:
        _print(result, database)


def _prepare(connection: Connection, collection: Collection) -> None:
    """A fresh space and the application's own table, as any application has one."""
    with translated():
        if spaces.find_space(connection, SPACE_NAME) is not None:
            spaces.drop_space(connection, SPACE_NAME)
        # Where it is there already, IF NOT EXISTS would still ask for the right to create one.
        if connection.execute("SELECT to_regnamespace('sona_demo') IS NULL").fetchone() == (True,):
            connection.execute("CREATE SCHEMA sona_demo")
        connection.execute("DROP TABLE IF EXISTS sona_demo.documents")
        connection.execute(
            f"CREATE TABLE sona_demo.documents (id integer PRIMARY KEY, embedding vector({collection.docs.shape[1]}))"
        )
        with connection.cursor().copy("COPY sona_demo.documents FROM STDIN (FORMAT BINARY)") as copy:
            copy.set_types(["int4", "vector"])
            for row, embedding in enumerate(collection.docs):
                copy.write_row((row, embedding))


def _replay(engine: SonaEngine, collection: Collection, split: Split, stream: tuple[int, ...]) -> tuple[float, float]:
    """Answer and record every question once; microseconds to record, learn and make durable, and to answer."""
    learning = answering = 0.0
    with click.progressbar(stream, label="record and learn", file=sys.stderr) as bar:
        for event, query in enumerate(bar):
            began = time.perf_counter()
            found = engine.recall(collection.queries[query])
            answering += time.perf_counter() - began
            outcome = judge(
                collection.relevant[query],
                [int(item.item_id) for item in found.items],
                Feedback.FULL,
                best_grade=collection.best_grade,
                seed=(0, event),
            )
            rewards = {collection.doc_ids[doc]: reward for doc, reward, _ in outcome}
            # Ids of their own make every run draw the same numbers, and learn the same.
            found = replace(found, trajectory_id=trajectory_id(collection, split, event))
            began = time.perf_counter()
            engine.record(found, rewards=rewards)
            engine.learn()
            if (event + 1) % FLUSH_EVERY == 0:
                engine.flush()
            learning += time.perf_counter() - began
    began = time.perf_counter()
    engine.flush()
    learning += time.perf_counter() - began
    return learning / len(stream) * 1e6, answering / len(stream) * 1e6


def _rank(connection: Connection, collection: Collection, queries: tuple[int, ...]) -> Ranking:
    """The ten documents nearest to each query."""
    statement = "SELECT id FROM sona_demo.documents ORDER BY embedding <=> %s::vector, id LIMIT 10"
    return _found(connection, collection, queries, statement)


def _recall(connection: Connection, collection: Collection, queries: tuple[int, ...]) -> Ranking:
    """The ten documents that the space recalls for each query."""
    statement = f"SELECT item_id::int FROM sona.recall('{SPACE_NAME}', %s, 10) ORDER BY rank"
    return _found(connection, collection, queries, statement)


def _found(connection: Connection, collection: Collection, queries: tuple[int, ...], statement: str) -> Ranking:
    ranking = np.empty((len(queries), 10), dtype=np.int64)
    with translated():
        for place, query in enumerate(queries):
            rows = connection.execute(statement, (collection.queries[query],)).fetchall()
            ranking[place] = [row[0] for row in rows]
    return ranking


def _ask(connection: Connection, title: str, statement: str) -> AskedQuery:
    with translated():
        cursor = connection.execute(statement)
        columns = [column.name for column in cursor.description or ()]
        return AskedQuery(title, statement, columns, [list(row) for row in cursor.fetchall()])


def _print(result: DemoResult, database: Database) -> None:
    click.echo(f"\n{result.held_out} held-out questions, after {result.events} others were recorded once\n")
    frozen, learned = result.frozen, result.learned
    pairs = (
        ("nDCG@10", frozen.ndcg10, learned.ndcg10),
        ("MRR@10", frozen.mrr10, learned.mrr10),
        ("hit@5", frozen.hit5, learned.hit5),
    )
    print_table(
        ("", "frozen", "learned", "change"),
        [(name, before, after, f"{after - before:+.3f}") for name, before, after in pairs],
    )
    interval = result.gain_ci95
    between = "" if interval is None else f" (95 % interval {100 * interval[0]:+.1f} … {100 * interval[1]:+.1f})"
    click.echo(
        f"\nnDCG@10 {100 * result.gain_ndcg10:+.1f} points{between}; "
        f"{result.helped} helped, {result.harmed} harmed, {result.unchanged} unchanged\n"
        f"{result.us_per_event} µs an event to record, learn and make durable; {result.recall_us} µs to answer; "
        f"{result.seconds} s in all\n"
        f"feedback: {result.feedback}\ndata: {result.data}"
    )
    for query in result.queries:
        click.echo(f"\n-- {query.title}\n{query.sql};")
        print_table(query.columns, query.rows)
    click.echo(f"\nGo on from here:  psql '{database.url}'")
