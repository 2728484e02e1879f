"""Spaces and their items: what they declare, and the sample that learning uses."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, LiteralString

import numpy as np
from psycopg import sql
from psycopg.types.json import Jsonb

from sona_pg.config import InstantLoopConfig, QueryAdapterConfig, SpaceConfig
from sona_pg.errors import ConfigError, EmbedderMismatch, InvalidInput, SonaError, UnknownSpace
from sona_pg.store.connection import Connection, bound_locks, bounded, transaction, translated
from sona_pg.types import FloatVector

_LEARNING_SETTINGS = ("micro_lora_rank", "micro_lora_lr", "edge_update_scale")
"""Settings of the instant loop that decide what is learned; the others belong to the process."""


@dataclass(frozen=True, slots=True)
class Space:
    """A space as the database has it.

    Parameters
    ----------
    space_id, name
        Its key, and how applications call it.
    dim
        Components of every vector.
    embedder
        Fingerprint of the embedding model, once declared.
    config
        What it declares about its traffic.
    key
        Names it beyond its database.
    standby_of
        Space beside which it is kept while that changes its embedder; None of one that answers.
    """

    space_id: int
    name: str
    dim: int
    embedder: str | None
    config: SpaceConfig
    key: uuid.UUID
    standby_of: int | None = None


def space_gone(name: str, kind: type[SonaError] = UnknownSpace) -> SonaError:
    """What to raise where a space is not there any more, as the kind of error that the caller promises."""
    return kind(f"space {name!r} is gone: somebody deleted it")


def create_space(
    connection: Connection, name: str, dim: int, *, embedder: str | None = None, config: SpaceConfig | None = None
) -> Space:
    """Create a space.

    Raises
    ------
    InvalidInput
        If the name is taken or empty, or the dimension out of range.
    DatabaseBusy
        If another session is about to create it.
    """
    c = SpaceConfig() if config is None else config
    with bounded(connection):
        connection.execute(
            "SELECT sona.create_space(%s, %s, %s, %s, %s, %s, %s, %s::real[], %s)",
            (name, dim, embedder, c.reward_min, c.reward_max, c.implicit_feedback, c.strategy)
            + (None if c.examination is None else list(c.examination), c.control_share),
        )
    return get_space(connection, name)


def get_space(connection: Connection, name: str) -> Space:
    """The space called `name`.

    Raises
    ------
    UnknownSpace
        If there is none, or the role may not see it.
    """
    found = find_space(connection, name)
    if found is None:
        raise UnknownSpace(
            f"there is no space {name!r}, or this role may not see it: "
            "create it with create_space(name, dim), or connect with dim= to have it created"
        )
    return found


def find_space(connection: Connection, name: str) -> Space | None:
    """The space called `name`, or None."""
    with translated():
        row = connection.execute(
            "SELECT space_id, name, dim, embedder, space_key, reward_min, reward_max, implicit_feedback, strategy,"
            " examination, control_share, standby_of FROM sona.space WHERE name = %s",
            (name,),
        ).fetchone()
    if row is None:
        return None
    space_id, found, dim, embedder, key, low, high, implicit, strategy, examination, share, standby = row
    config = SpaceConfig(low, high, implicit, strategy, None if examination is None else tuple(examination), share)
    return Space(space_id, found, dim, embedder, config, key, standby)


def is_named(connection: Connection, space: Space) -> bool:
    """Whether the space still has its name: one of another embedder may have taken its place."""
    found = find_space(connection, space.name)
    return found is not None and found.space_id == space.space_id


def check_embedder(connection: Connection, space: Space, embedder: str | None) -> None:
    """Declare the embedder of a space that has none yet; refuse another one.

    Raises
    ------
    EmbedderMismatch
    """
    if embedder is None or embedder == space.embedder:
        return
    with bounded(connection):
        row = connection.execute(
            "UPDATE sona.space SET embedder = coalesce(embedder, %s) WHERE space_id = %s RETURNING embedder",
            (embedder, space.space_id),
        ).fetchone()
    if row is None or row[0] != embedder:
        held = space.embedder if row is None else row[0]
        raise EmbedderMismatch(
            f"space {space.name!r} belongs to the embedder {held!r}, not to {embedder!r}: its vectors cannot be "
            "compared; embed with that model, create a space of its own for this one, or move the space to it: "
            "sona space re-embed"
        )


def is_blank(connection: Connection, space: Space, embedder: str) -> bool:
    """Whether the space is this embedder's, or nobody's, and has neither items nor trajectories."""
    with translated():
        row = connection.execute(
            "SELECT s.embedder, EXISTS (SELECT FROM sona.item_source i WHERE i.space_id = s.space_id)"
            " OR EXISTS (SELECT FROM sona.trajectory t WHERE t.space_id = s.space_id)"
            " FROM sona.space s WHERE s.space_id = %s",
            (space.space_id,),
        ).fetchone()
    return row is not None and (row[0] == embedder or (row[0] is None and not row[1]))


def declared_settings(connection: Connection, space: Space) -> tuple[InstantLoopConfig, QueryAdapterConfig] | None:
    """The settings that the space is learned with; None as long as nobody has declared any."""
    with translated():
        row = connection.execute("SELECT settings FROM sona.learner WHERE space_id = %s", (space.space_id,)).fetchone()
    return _as_held(InstantLoopConfig(), row[0]) if row is not None and row[0] else None


def claim_settings(
    connection: Connection, space: Space, instant: InstantLoopConfig | None, adapter: QueryAdapterConfig | None
) -> tuple[InstantLoopConfig, QueryAdapterConfig]:
    """The settings that a space is learned with: the first that are asked for, and those alone from then on.

    Weights of other settings cannot be continued, and a replay must give the same ones. A setting that is not given is
    taken from the space; what belongs to the process alone (buffers, intervals) is free.

    Raises
    ------
    ConfigError
        If a setting is given that differs from the space's.
    """
    given_instant, given_adapter = instant or InstantLoopConfig(), adapter or QueryAdapterConfig.for_dim(space.dim)
    if given_adapter.rank > space.dim:
        raise ConfigError(f"rank {given_adapter.rank} exceeds the dimension {space.dim}: choose a lower rank")
    asked = {"adapter": asdict(given_adapter), **{name: getattr(given_instant, name) for name in _LEARNING_SETTINGS}}
    statement, key = (
        "SELECT settings, has_column_privilege('sona.learner', 'settings', 'UPDATE') FROM sona.learner"
        " WHERE space_id = %s",
        (space.space_id,),
    )
    with bounded(connection):
        row = connection.execute(statement, key).fetchone()
        if row is not None and not row[0] and row[1]:
            connection.execute(
                "UPDATE sona.learner SET settings = %s WHERE space_id = %s AND settings = '{}'::jsonb",
                (Jsonb(asked), space.space_id),
            )
            row = connection.execute(statement, key).fetchone()
    # A role that may only read cannot declare them: it goes by what it asks for until somebody has.
    held = row[0] if row is not None and row[0] else asked
    for given, name in ((adapter, "adapter"), *((instant, name) for name in _LEARNING_SETTINGS)):
        if given is not None and held[name] != asked[name]:
            raise ConfigError(
                f"space {space.name!r} is learned with {name} = {held[name]}, not {asked[name]}: "
                "give the same, leave the setting out, or create another space"
            )
    return _as_held(given_instant, held)


def _as_held(instant: InstantLoopConfig, held: Mapping[str, Any]) -> tuple[InstantLoopConfig, QueryAdapterConfig]:
    """Settings of a process, with those that a space holds."""
    return (
        replace(instant, **{name: held[name] for name in _LEARNING_SETTINGS}),
        QueryAdapterConfig(**held["adapter"]),
    )


def lock_space(connection: Connection, space: Space) -> None:
    """Keep whoever schedules, learns, deploys or forgets there waiting until the transaction ends.

    Raises
    ------
    UnknownSpace
        If it is gone.
    PermissionDenied
        If this role may not learn there.
    DatabaseBusy
        If the locks are not to be had.
    """
    with translated():
        bound_locks(connection)
        # Before all else, as a cycle does that writes: in another order each might wait for the other.
        connection.execute(
            "SELECT FROM sona.loop_schedule WHERE space_id = %s ORDER BY loop FOR NO KEY UPDATE", (space.space_id,)
        )
        connection.execute("SELECT sona._lock_learner(%s)", (space.space_id,))
        row = connection.execute(
            "SELECT FROM sona.strategist WHERE space_id = %s FOR UPDATE", (space.space_id,)
        ).fetchone()
        if row is None:
            raise space_gone(space.name)


def hold_space(connection: Connection, space: Space) -> None:
    """Keep whoever deletes the space waiting until the transaction ends, as sona.record does.

    Raises
    ------
    UnknownSpace
        If it is gone.
    """
    connection.execute("SELECT pg_advisory_xact_lock_shared(hashtextextended('sona.record', %s))", (space.space_id,))
    if connection.execute("SELECT FROM sona.space WHERE space_id = %s", (space.space_id,)).fetchone() is None:
        raise space_gone(space.name)


def shut_space(connection: Connection, space: Space) -> None:
    """Before a space is deleted: wait for who records there, and keep others waiting until the transaction ends.

    Before the locks of rows, as sona.drop_space takes these.

    Raises
    ------
    DatabaseBusy
        If somebody who records there does not end.
    """
    with translated():
        bound_locks(connection)
        connection.execute(
            "SELECT pg_advisory_xact_lock(hashtextextended('sona.drop_queries_index', 0))"
            " WHERE sona._queries_index(%(id)s) IS NOT NULL OR sona._vectors_index('pattern', %(id)s) IS NOT NULL"
            " OR sona._vectors_index('memory_node', %(id)s) IS NOT NULL",
            {"id": space.space_id},
        )
        connection.execute("SELECT pg_advisory_xact_lock(hashtextextended('sona.record', %s))", (space.space_id,))


def set_items(
    connection: Connection,
    space: Space,
    items: str,
    id_column: str,
    embedding_column: str,
    filter_columns: Sequence[str] = (),
) -> int:
    """Name the application's table of items; returns the size of the sample that was taken."""
    with bounded(connection):
        found = connection.execute("SELECT to_regclass(%s)", (items,)).fetchone()
        if found is None or found[0] is None:
            raise InvalidInput(f"there is no table {items!r}: give its name as SQL would, with its schema")
        row = connection.execute(
            "SELECT sona.set_items(%s, %s::regclass, %s, %s, filter_columns => %s)",
            (space.name, items, id_column, embedding_column, list(filter_columns)),
        ).fetchone()
    return 0 if row is None else int(row[0])


def item_sample(connection: Connection, space: Space) -> tuple[list[str], FloatVector]:
    """Ids and embeddings (n, dim) of the sample, in its order."""
    with translated():
        rows = connection.execute(
            "SELECT item_id, embedding FROM sona.item_sample WHERE space_id = %s ORDER BY ordinal",
            (space.space_id,),
            binary=True,
        )
        block = np.zeros((rows.rowcount, space.dim), dtype=np.float32)
        # Earlier versions sampled every row of an id that a table has several times: the first one stands for it.
        place: dict[str, int] = {}
        # One by one, into where they stay: a sample is the largest thing that a process has.
        for item, embedding in rows:
            if item not in place:
                block[len(place)] = embedding
                place[item] = len(place)
    return list(place), block[: len(place)]


def item_embeddings(connection: Connection, space: Space, ids: list[str]) -> dict[str, FloatVector]:
    """Embeddings of items of the application's table, by id; those that are not there, or NULL, are left out.

    Raises
    ------
    ConfigError
        If the table, or a column that was named, is gone.
    """
    rows = _of_items(connection, space, ids, "SELECT DISTINCT ON (1) {id}::text, {embedding}", "ORDER BY 1, 2")
    return {item: vector for item, vector in rows if vector is not None and vector.size == space.dim}


def items_present(connection: Connection, space: Space, ids: list[str]) -> set[str]:
    """Which of these items have an embedding in the application's table.

    Raises
    ------
    ConfigError
        If the table, or a column that was named, is gone.
    """
    rows = _of_items(connection, space, ids, "SELECT DISTINCT {id}::text", "AND {embedding} IS NOT NULL")
    return {item for (item,) in rows}


def _of_items(
    connection: Connection, space: Space, ids: list[str], select: LiteralString, rest: LiteralString
) -> list[tuple[Any, ...]]:
    """Rows of these items of the application's table; none where no table was named."""
    if not ids:
        return []
    # A savepoint: what is wrong with the application's table must not undo the transaction around.
    with transaction(connection):
        source = connection.execute(
            "SELECT items::text, id_column, id_type, embedding_column FROM sona._items_of(%s)", (space.space_id,)
        ).fetchone()
        if source is None or source[0] is None:
            return []
        table, id_column, id_type, embedding_column = source
        # The ids are cast to the column's type, so that its index serves; one that is no value of it is no item.
        # Of several rows with the same id, the one that the sample would hold.
        statement = sql.SQL(
            select + " FROM {table} WHERE {id} = ANY(ARRAY("
            "SELECT CASE WHEN pg_input_is_valid(i, {type_name}) THEN i::{type} END FROM unnest(%s::text[]) i)) " + rest
        ).format(
            id=sql.Identifier(id_column),
            embedding=sql.Identifier(embedding_column),
            table=sql.SQL(table),
            type=sql.SQL(id_type),
            type_name=sql.Literal(id_type),
        )
        return connection.execute(statement, (ids,), binary=True).fetchall()


def set_strategy(connection: Connection, name: str, strategy: str, reason: str | None = None) -> None:
    """Set what answers in a space; the reason is for the audit trail.

    Raises
    ------
    InvalidInput
        If there is no such strategy, or the reason is too long.
    """
    with translated():
        connection.execute("SELECT sona.set_strategy(%s, %s, %s)", (name, strategy, reason))


def set_control_share(connection: Connection, name: str, share: float) -> None:
    """Set the share of answers, 0 to 0.5, that the frozen embedding gives, to measure the lift by.

    Raises
    ------
    InvalidInput
        If it is not within.
    """
    with translated():
        connection.execute("SELECT sona.set_control_share(%s, %s)", (name, share))


def drop_space(connection: Connection, name: str) -> None:
    """Delete a space and everything recorded and learned in it."""
    with translated():
        connection.execute("SELECT sona.drop_space(%s)", (name,))


def spaces_with_pending(connection: Connection) -> list[str]:
    """Names of the spaces in which something waits to be learned that SQL clients recorded."""
    with translated():
        rows = connection.execute(
            "SELECT s.name FROM sona.space s"
            " WHERE EXISTS (SELECT FROM sona.pending_trajectory p WHERE p.space_id = s.space_id) ORDER BY s.space_id"
        ).fetchall()
    return [row[0] for row in rows]


def spaces_of_keys(connection: Connection, keys: list[uuid.UUID]) -> dict[uuid.UUID, str]:
    """Names of the spaces with these keys, of those that are there."""
    with translated():
        rows = connection.execute(
            "SELECT space_key, name FROM sona.space WHERE space_key = ANY(%s)", (keys,)
        ).fetchall()
    return dict(rows)


def admit_queries(connection: Connection, space: Space, keep_exact: int) -> int:
    """Move the fresh tail of remembered queries into the HNSW index, where there are more than `keep_exact`."""
    with translated():
        row = connection.execute("SELECT sona.admit_queries(%s, %s)", (space.name, keep_exact)).fetchone()
    return 0 if row is None else int(row[0])


def retention(connection: Connection, space: Space) -> tuple[str | None, str | None]:
    """How long trajectories and their steps are kept, as intervals of Postgres; None is for ever."""
    with translated():
        row = connection.execute(
            "SELECT trajectory_retention::text, step_retention::text FROM sona.space WHERE space_id = %s",
            (space.space_id,),
        ).fetchone()
    return (None, None) if row is None else (row[0], row[1])


def set_retention(connection: Connection, space: Space, trajectories: str | None, steps: str | None) -> None:
    """Set how long trajectories and their steps are kept.

    Raises
    ------
    InvalidInput
        If one is no positive interval, or steps are to be kept longer than their trajectories.
    """
    with translated():
        connection.execute(
            "SELECT sona.set_retention(%s, %s::interval, %s::interval)", (space.name, trajectories, steps)
        )


def apply_retention(connection: Connection, name: str, batch: int) -> int:
    """Delete one batch of what is past its retention; gives of how many trajectories, 0 when nothing is left."""
    with translated():
        row = connection.execute("SELECT sona.apply_retention(%s, %s)", (name, batch)).fetchone()
    return 0 if row is None else int(row[0])


def spaces_with_retention(connection: Connection) -> list[str]:
    """Names of the spaces that do not keep everything for ever."""
    with translated():
        rows = connection.execute(
            "SELECT name FROM sona.space WHERE trajectory_retention IS NOT NULL OR step_retention IS NOT NULL"
            " ORDER BY space_id"
        ).fetchall()
    return [row[0] for row in rows]


def status(connection: Connection, name: str | None = None) -> list[dict[str, object]]:
    """Rows of `sona.status`, of all spaces or of one, each with the key of its space."""
    with translated():
        cursor = connection.execute(
            "SELECT v.*, s.space_key FROM sona.status v JOIN sona.space s ON s.name = v.space"
            " WHERE v.space = coalesce(%s, v.space) ORDER BY v.space",
            (name,),
        )
        head = [column.name for column in cursor.description or ()]
        return [dict(zip(head, row, strict=True)) for row in cursor.fetchall()]
