"""A help desk that answers, records and learns: the data of docs/sql.md, the same at every run.

``python examples/support.py URL`` fills the space ``support`` of a migrated database, which goes first if it is there.
"""

from __future__ import annotations

import subprocess
import sys
import uuid
from dataclasses import replace

import numpy as np
import psycopg

from sona_pg import Recall, SonaEngine, SpaceConfig, StoreConfig

SPACE, TABLE, DIM = "support", "public.articles", 16
KINDS = ("login", "refunds", "delivery", "invoices")
MODELS, EF_SEARCH = ("small", "large"), (40, 80)
BEST = {"login": ("small", 40), "refunds": ("large", 40), "delivery": ("large", 80), "invoices": ("small", 80)}
QUESTIONS = 3
"""Of a kind."""
ARTICLES, ANSWERS, DAYS = 48, 400, 4
CONTROL_EVERY = 10
FIRST_DAY = "2025-01-06"


def main(url: str) -> None:
    """Fill the space."""
    random = np.random.default_rng(1)
    articles = _units(random.standard_normal((ARTICLES, DIM)))
    kinds = _units(random.standard_normal((len(KINDS), DIM)))
    questions = _units(np.repeat(kinds, QUESTIONS, axis=0) + 0.05 * random.standard_normal((12, DIM)))
    # What solves a question is not what is nearest to it.
    solved_by = np.argsort(-questions @ articles.T, axis=1)[np.arange(12), random.integers(1, 6, 12)]
    _prepare(url, articles)
    settings = SpaceConfig(control_share=1 / CONTROL_EVERY)
    store = StoreConfig(publish_every_events=150)
    with SonaEngine.connect(url, space=SPACE, dim=DIM, space_config=settings, store=store, background=False) as sona:
        sona.set_items(TABLE, "id", "embedding")
        for number in range(ANSWERS):
            question = int(random.integers(len(questions)))
            kind = KINDS[question // QUESTIONS]
            query = (questions[question] + 0.05 * random.standard_normal(DIM)).astype(np.float32)
            model, ef_search = MODELS[random.integers(2)], EF_SEARCH[random.integers(2)]
            found = _answered(sona, query, "learned" if number % CONTROL_EVERY else "control")
            solution = str(solved_by[question])
            shown = [item.item_id for item in found.items]
            rewards = dict.fromkeys(shown, 0.0) | ({solution: 1.0} if solution in shown or number % 2 else {})
            best_model, best_ef = BEST[kind]
            quality = 0.3 + 0.3 * (solution in shown) + 0.3 * (model == best_model) + 0.1 * (ef_search == best_ef)
            sona.record(
                replace(found, trajectory_id=uuid.UUID(int=number)),
                rewards=rewards,
                quality=float(np.clip(quality + 0.05 * random.standard_normal(), 0, 1)) if number % 4 else None,
                user_id=f"user {number % 40}",
                metadata={"parameters": {"model": model, "ef_search": ef_search}},
            )
            if number % 20 == 19:
                sona.flush()
            if number in (ANSWERS // 2, ANSWERS - 1):
                sona.flush()
                _cycle(url)
        _cycle(url, "deep")
    with psycopg.connect(url) as connection:
        connection.execute("SELECT sona.set_retention(%s, '1 year', '90 days')", (SPACE,))
        # As if they had been answered on several days; an application has no need to write to this table.
        connection.execute(
            "UPDATE sona.answer_outcome SET answered_at = %s::date AT TIME ZONE 'UTC' + make_interval(days =>"
            " ('x' || right(trajectory_id::text, 8))::bit(32)::integer * %s / %s) WHERE space_id ="
            " (SELECT space_id FROM sona.space WHERE name = %s)",
            (FIRST_DAY, DAYS, ANSWERS, SPACE),
        )


def _answered(sona: SonaEngine, query: np.ndarray, arm: str) -> Recall:
    """An answer of an arm. It is drawn by the answer's id: an application takes what comes."""
    while True:
        found = sona.recall(query, k=5)
        if found.answer.arm == arm:
            return found


def _units(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def _prepare(url: str, articles: np.ndarray) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SELECT sona.drop_space(name) FROM sona.space WHERE name = %s", (SPACE,))
        connection.execute(f"DROP TABLE IF EXISTS {TABLE}")
        connection.execute(f"CREATE TABLE {TABLE} (id integer PRIMARY KEY, embedding vector({DIM}))")
        for id, row in enumerate(articles):
            connection.execute(f"INSERT INTO {TABLE} VALUES (%s, %s::vector)", (id, str(row.tolist())))


def _cycle(url: str, loop: str = "background") -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SELECT sona.run_cycle(%s, %s)", (SPACE, loop))
    subprocess.run([sys.executable, "-m", "sona_pg", "worker", loop, "--once", "--url", url], check=True)


if __name__ == "__main__":
    main(sys.argv[1])
