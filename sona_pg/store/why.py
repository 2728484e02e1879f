"""Why an answer was what it was, as `sona.why` says it."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from psycopg.rows import TupleRow

from sona_pg.store.reader import Reader
from sona_pg.store.strategy_evidence import StrategyEvidence


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a strategy answered.

    Parameters
    ----------
    kind
        'turn': it was proven; 'setting': the space was set to it; 'arm': it was drawn to compare with.
    text
        What was found, for people.
    since
        When that was; None where it was so from the beginning.
    region
        Part of the query space that is an exception; None where it is none.
    trajectory_id
        The event by which it was proven; None if it was not by one.
    actor, given
        Who set it, and the reason that was given; None where nobody did.
    """

    kind: str
    text: str
    since: datetime | None
    region: int | None
    trajectory_id: uuid.UUID | None
    actor: str | None
    given: str | None


@dataclass(frozen=True, slots=True)
class Neighbour:
    """An event near the query that was remembered when it was answered.

    Parameters
    ----------
    trajectory_id
        Its trajectory.
    similarity
        Cosine of the queries.
    answered_at
        When it was answered; None if its trajectory is gone.
    helped
        Items that helped in it, with how much.
    unhelpful
        Items that were shown and did not help.
    """

    trajectory_id: uuid.UUID
    similarity: float
    answered_at: datetime | None
    helped: Mapping[str, float]
    unhelpful: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MovedItem:
    """An item, and what moved it. What is not known is None.

    Its score is ``cosine + adapter + memory + rest``.

    Parameters
    ----------
    item_id
        The item.
    place
        Where it was shown, from 1; None if it was not.
    frozen_place
        Where the frozen embedding would have shown it; None where that is beyond 100.
    moved
        Places that it was moved up; negative is down.
    score
        The score with which it was shown.
    frozen
        Its cosine to the query.
    cosine
        What that gives to the score: a factor that is the same for every item.
    adapter, memory
        What the adapted query gives, and what remembered outcomes do.
    rest
        What is not explained: more was learned since the version was published, or the item has changed.
    helped_in, missed_in
        The nearest events in which it helped, and in which it did not, nearest first; at most 10 of each.
    """

    item_id: str
    place: int | None
    frozen_place: int | None
    moved: int | None
    score: float | None
    frozen: float | None
    cosine: float | None
    adapter: float | None
    memory: float | None
    rest: float | None
    helped_in: tuple[uuid.UUID, ...]
    missed_in: tuple[uuid.UUID, ...]


@dataclass(frozen=True, slots=True)
class Why:
    """Why an answer was what it was. What is not known is None, and `notes` say it.

    Parameters
    ----------
    trajectory_id, space
        The answer, and the space that it is of.
    strategy, version, arm, propensity
        What answered, and how probable that arm was; version 0 is before any was published.
    setting
        What the space was set to.
    answered_at, recorded_at
        When it was answered, and when it was recorded.
    published_at, cause, events
        When and why the version was published, and the outcome events that it had learned.
    worth, gain
        What the answer was worth, 0 to 1, and its nDCG@10 above that of frozen, on the items that were judged.
    explained_by
        The version by which it is worked out what moved the items: the one that is nearest to what answered. None is
        what is learned at present, or that the strategy needs none.
    reason
        Why that strategy answered.
    strategies
        What every strategy had brought by then, best first.
    neighbours
        What was remembered near the query, nearest first; at most 10.
    items, dropped
        What was shown, and what the frozen embedding would have shown that was not.
    notes
        What is not known any more.
    """

    trajectory_id: uuid.UUID
    space: str
    strategy: str
    version: int
    arm: str
    propensity: float
    setting: str
    answered_at: datetime
    recorded_at: datetime
    published_at: datetime | None
    cause: str | None
    events: int | None
    worth: float | None
    gain: float | None
    explained_by: int | None
    reason: Reason
    strategies: tuple[StrategyEvidence, ...]
    neighbours: tuple[Neighbour, ...]
    items: tuple[MovedItem, ...]
    dropped: tuple[MovedItem, ...]
    notes: tuple[str, ...]


async def why(reader: Reader, trajectory_id: uuid.UUID, space: str | None = None) -> Why:
    """Why an answer was what it was.

    Parameters
    ----------
    reader
        Any; nothing is written.
    trajectory_id
        The answer.
    space
        Name of its space; None where only one has a trajectory of that id.

    Raises
    ------
    UnknownTrajectory
        If it is not there; says whether retention has deleted it.
    UnknownSpace, InvalidInput
        If there is no such space, or several spaces have that trajectory.
    """
    rows = await reader.rows(
        "SELECT part, place, item_id, trajectory_id, amount, reason, detail FROM sona.why(%s, %s)",
        (trajectory_id, space),
    )
    parts: dict[str, list[TupleRow]] = {}
    for part, *row in rows:
        parts.setdefault(part, []).append(tuple(row))
    _, _, _, worth, cause, answer = parts["answer"][0]
    reason, *gains = parts["evidence"]
    return Why(
        trajectory_id,
        answer["space"],
        answer["strategy"],
        answer["version"],
        answer["arm"],
        answer["propensity"],
        answer["setting"],
        datetime.fromisoformat(answer["answered_at"]),
        datetime.fromisoformat(answer["recorded_at"]),
        _time(answer["published_at"]),
        cause,
        answer["events"],
        worth,
        answer["gain"],
        answer["explained_by"],
        _reason(reason),
        tuple(_gain(row) for row in gains),
        tuple(_neighbour(row) for row in parts.get("neighbour", ())),
        tuple(_item(row) for row in parts.get("item", ())),
        tuple(_item(row, is_shown=False) for row in parts.get("dropped", ())),
        tuple(row[4] for row in parts.get("note", ())),
    )


def _time(found: str | None) -> datetime | None:
    return None if found is None else datetime.fromisoformat(found)


def _reason(row: TupleRow) -> Reason:
    _, _, event, _, text, detail = row
    return Reason(
        detail["kind"],
        text,
        _time(detail.get("at")),
        detail.get("region"),
        event,
        detail.get("actor"),
        detail.get("given"),
    )


def _gain(row: TupleRow) -> StrategyEvidence:
    _, _, _, gain, _, detail = row
    return StrategyEvidence(detail["strategy"], detail["events"], gain, detail["recent_gain"])


def _neighbour(row: TupleRow) -> Neighbour:
    _, _, event, similarity, _, detail = row
    return Neighbour(event, similarity, _time(detail["at"]), detail["helped"], tuple(detail["unhelpful"]))


def _item(row: TupleRow, *, is_shown: bool = True) -> MovedItem:
    place, item, _, _, _, detail = row
    return MovedItem(
        item,
        place if is_shown else None,
        detail["frozen_place"],
        detail["moved"],
        detail["score"],
        detail["frozen"],
        detail["cosine"],
        detail["adapter"],
        detail["memory"],
        detail["rest"],
        tuple(uuid.UUID(event) for event in detail["helped_in"]),
        tuple(uuid.UUID(event) for event in detail["missed_in"]),
    )
