"""What becomes known about an answer: the simulated user."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sona_pg.config import SpaceConfig
from sona_pg.evaluation.metrics import Grades

SPACE = SpaceConfig(implicit_feedback=True, control_share=0.0)
"""What the traffic of an evaluation is: rewards from 0 to 1, and what was shown beside what helped did not help."""

FURTHER = 3
"""Most relevant documents that are marked beside the shown ones."""


class Feedback(enum.StrEnum):
    """How much becomes known about an answer."""

    FULL = "full"
    """Every shown document is judged, and up to 3 further relevant ones are marked."""
    SHOWN = "shown"
    """Every shown document is judged."""
    THUMB = "thumb"
    """The first shown document is judged."""


class Judgement(NamedTuple):
    """A document of an answer: `reward` is None where it is unjudged, `position` None where it was not shown."""

    doc: int
    reward: float | None
    position: int | None


def judge(
    grades: Grades, shown: Sequence[int], feedback: Feedback, *, best_grade: float, seed: tuple[int, int]
) -> list[Judgement]:
    """The outcome of an answer.

    Parameters
    ----------
    grades
        Grades above 0 of the query.
    shown
        Rows of the documents, best first.
    feedback
        How much becomes known.
    best_grade
        Grade that is worth a reward of 1.
    seed
        Of the draw of further documents: split and event.

    Returns
    -------
    list of Judgement
        The shown documents in their order, then the further ones.
    """
    judged = 1 if feedback is Feedback.THUMB else len(shown)
    outcome = [
        Judgement(doc, grades.get(doc, 0.0) / best_grade if position <= judged else None, position)
        for position, doc in enumerate(shown, start=1)
    ]
    if feedback is Feedback.FULL:
        further = sorted(grades.keys() - set(shown))
        if len(further) > FURTHER:
            # RandomState's numbers are frozen (NEP 19): the same events in every version of NumPy.
            drawn = np.random.RandomState(list(seed)).choice(further, FURTHER, replace=False)
            further = [int(doc) for doc in drawn]
        outcome += [Judgement(doc, grades[doc] / best_grade, None) for doc in further]
    return outcome
