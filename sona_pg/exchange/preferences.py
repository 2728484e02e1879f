"""Preference pairs of a space as files, in the columns that TRL trains on (DPO, reward models)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from sona_pg.config import SpaceConfig
from sona_pg.exchange.rows import Columns, Kind, Row, write_rows
from sona_pg.files import FilePath
from sona_pg.learning.preferences import preferences
from sona_pg.store.connection import Connection
from sona_pg.store.exchange import export_reader, prompts
from sona_pg.store.ledger import judged_events
from sona_pg.store.spaces import Space
from sona_pg.types import Json, QueryTrajectory

Texts = Callable[[Sequence[str]], Mapping[str, str | None]]
"""Texts of items by id."""

_IDS: Columns = {
    "trajectory_id": Kind.TEXT,
    "query": Kind.VECTOR,
    "chosen_id": Kind.TEXT,
    "rejected_id": Kind.TEXT,
    "chosen_reward": Kind.NUMBER,
    "rejected_reward": Kind.NUMBER,
    "margin": Kind.NUMBER,
}


def export_preferences(
    connection: Connection, space: Space, path: FilePath, *, texts: Texts | None = None, prompt_key: str | None = None
) -> int:
    """Write the preference pairs of all trajectories, in the order in which they were learned; gives how many.

    Parameters
    ----------
    texts
        Of items; a pair of which one item has none is left out. Ids alone are written without.
    prompt_key
        Key of the metadata of trajectories under which the application has recorded the query's text; one without it
        is left out.

    Raises
    ------
    ConfigError, IoError, DatabaseError
        If the file cannot be written, or the space not be read; no file is left then.
    """
    columns = dict(_IDS)
    if prompt_key is not None:
        columns["prompt"] = Kind.TEXT
    if texts is not None:
        columns |= {"chosen": Kind.TEXT, "rejected": Kind.TEXT}
    return write_rows(path, columns, _rows(connection, space, texts, prompt_key))


def _rows(connection: Connection, space: Space, texts: Texts | None, prompt_key: str | None) -> Iterator[Row]:
    with export_reader(connection, space) as reader:
        for ids in reader.trajectories():
            asked = None if prompt_key is None else prompts(connection, space, ids, prompt_key)
            judged = [event.trajectory for event in judged_events(connection, space, ids, with_activations=False)]
            known = None if texts is None else texts(_items(judged))
            for trajectory in judged:
                if asked is None:
                    yield from _pairs(trajectory, space.config, known)
                elif trajectory.id in asked:
                    prompt: Row = {"prompt": asked[trajectory.id]}
                    yield from ({**pair, **prompt} for pair in _pairs(trajectory, space.config, known))


def _items(judged: Sequence[QueryTrajectory]) -> list[str]:
    shown = (step.item_id for trajectory in judged for step in trajectory.steps)
    return list(dict.fromkeys(item for item in shown if item is not None))


def _pairs(
    trajectory: QueryTrajectory, config: SpaceConfig, known: Mapping[str, str | None] | None
) -> Iterator[dict[str, Json]]:
    query = [float(component) for component in trajectory.query_embedding]
    for pair in preferences(trajectory, config):
        row: dict[str, Json] = {
            "trajectory_id": str(trajectory.id),
            "query": query,
            "chosen_id": pair.chosen,
            "rejected_id": pair.rejected,
            "chosen_reward": pair.chosen_reward,
            "rejected_reward": pair.rejected_reward,
            "margin": pair.margin,
        }
        if known is not None:
            chosen, rejected = known.get(pair.chosen), known.get(pair.rejected)
            if chosen is None or rejected is None:
                continue
            row |= {"chosen": chosen, "rejected": rejected}
        yield row
