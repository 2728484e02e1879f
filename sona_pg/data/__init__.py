"""Numbers that ship with the package: real outcomes for the demo; sources and licences in README.md."""

from __future__ import annotations

from importlib import resources

import numpy as np

from sona_pg.evaluation.collection import Collection


def load_demo() -> Collection:
    """FeedbackQA's CDC part: real questions, the passage that answers each, as embeddings and judgments."""
    with resources.files("sona_pg.data").joinpath("fbqa_cdc.npz").open("rb") as file, np.load(file) as arrays:
        docs, queries = arrays["docs"].astype(np.float32), arrays["queries"].astype(np.float32)
        relevant: list[dict[int, float]] = [{} for _ in queries]
        for query, doc, grade in arrays["qrels"].tolist():
            relevant[query][doc] = float(grade)
    return Collection("fbqa_cdc", [str(row) for row in range(len(docs))], docs, queries, relevant)
