"""Would it help you? Replays logged outcomes through Postgres, and measures on questions that were held out.

``python -m sona_pg.examples.first_steps [DIR]``: docs.npy and queries.npy are embeddings of your items and of what was
asked, qrels.tsv says what helped (query row, item row, grade above 0). Without DIR the log is made up.
"""

from __future__ import annotations

import argparse

import numpy as np
import psycopg

from sona_pg import SonaEngine, SpaceConfig
from sona_pg.evaluation.collection import Collection, load_collection
from sona_pg.evaluation.metrics import ndcg_at_10, rank_documents
from sona_pg.evaluation.report import confidence_interval
from sona_pg.evaluation.splits import SplitKind, make_split
from sona_pg.store.database import open_database

SPACE, TABLE = "first-steps", "public.first_steps"
# What was shown beside what helped did not help; one answer in ten is the frozen embedding's, for `sona lift`.
TRAFFIC = SpaceConfig(implicit_feedback=True, control_share=0.1)


def main() -> None:
    """Replay, measure, and say what came of it."""
    parser = argparse.ArgumentParser(description="Would it help on logged outcomes?")
    parser.add_argument("dir", nargs="?", help="with docs.npy, queries.npy and qrels.tsv")
    parser.add_argument("--shuffle-outcomes", action="store_true", help="give each question the outcome of another")
    arguments = parser.parse_args()
    log = load_collection(arguments.dir) if arguments.dir else made_up()
    split = make_split(log, SplitKind.RANDOM, 0)  # 60 % to learn from
    judged_as = np.random.RandomState(0).permutation(split.stream) if arguments.shuffle_outcomes else split.stream
    with prepared(log) as sona:
        for event, (query, outcome) in enumerate(zip(split.stream, judged_as, strict=True), start=1):
            found = sona.recall(log.queries[query])
            worth = {str(item): grade / log.best_grade for item, grade in log.relevant[outcome].items()}
            sona.record(found, rewards={item.item_id: worth.pop(item.item_id, 0.0) for item in found.items})
            for item_id in sorted(worth, key=worth.__getitem__)[-3:]:  # found in another way, and known a little later
                sona.score(found.trajectory_id, worth[item_id], item_id=item_id)
            if event % 20 == 0:
                sona.flush()  # an application need not: the engine does it every half second
        sona.flush()
        answers = {query: sona.recall(log.queries[query]) for query in split.held_out}
    # The control arm is frozen by design: the others are measured, if there are any.
    answers = {query: found for query, found in answers.items() if found.answer.arm != "control"} or answers
    learned = np.array([[int(item.item_id) for item in found.items] for found in answers.values()])
    relevant = [log.relevant[query] for query in answers]
    before = ndcg_at_10(rank_documents(log.queries[list(answers)], log.unit_docs), relevant)
    gains = ndcg_at_10(learned, relevant) - before
    gain = float(gains.mean())
    low, high = confidence_interval(np.arange(len(gains)), gains, gain) or (np.nan, np.nan)
    proven = ", ".join(sorted({found.answer.strategy for found in answers.values()} - {"frozen"}))
    print(f"{len(split.stream)} outcomes learned; proven to be better than the frozen embedding: {proven or 'nothing'}")
    print(f"{len(answers)} held-out questions; nDCG@10 {before.mean():.3f} frozen, {before.mean() + gain:.3f} learned")
    print(f"gain {100 * gain:+.1f} points (95 % interval {100 * low:+.1f} … {100 * high:+.1f})")


def prepared(log: Collection) -> SonaEngine:
    """A space over a table of the items, as an application has one; what an earlier run has left goes."""
    url, dim = open_database().url, log.docs.shape[1]
    with psycopg.connect(url) as connection:
        connection.execute("SELECT sona.drop_space(name) FROM sona.space WHERE name = %s", (SPACE,))
        connection.execute(f"DROP TABLE IF EXISTS {TABLE}")
        connection.execute(f"CREATE TABLE {TABLE} (id integer PRIMARY KEY, embedding vector({dim}))")
        rows = [(id, str(embedding)) for id, embedding in enumerate(log.docs.tolist())]
        connection.cursor().executemany(f"INSERT INTO {TABLE} VALUES (%s, %s::vector)", rows)
    sona = SonaEngine.connect(url, space=SPACE, dim=dim, space_config=TRAFFIC, background=False)
    sona.set_items(TABLE, "id", "embedding")
    return sona


def made_up() -> Collection:
    """40 questions, each in 25 wordings; what answers one is among the items near it, and is not the nearest."""
    random = np.random.default_rng(1)
    docs, topics = random.standard_normal((400, 64)), random.standard_normal((40, 64))
    answers = np.argsort(-topics @ docs.T)[np.arange(40), random.integers(2, 15, 40)]
    queries = np.repeat(topics, 25, axis=0) + 0.5 * random.standard_normal((1000, 64))
    helped = [{int(item): 1.0} for item in np.repeat(answers, 25)]
    return Collection("made up", [str(id) for id in range(400)], docs.astype("f4"), queries.astype("f4"), helped)


if __name__ == "__main__":
    main()
