"""A space that changes its embedder: the successor that is filled beside it, the switch, and the way back.

The successor is a space of its own, with its dimension, fingerprint and column of item embeddings, and the trajectories
and the ledger of the space under the same ids. Nothing of the space is changed until the switch, and then nothing but
its name: what it has learned stays whole, for the way back.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from psycopg import sql

from sona_pg.errors import ConfigError, EmbedderMismatch, IncompleteLedger, InvalidInput, LockLost
from sona_pg.store import spaces
from sona_pg.store.connection import Connection, translated, writing
from sona_pg.store.recorded_queries import carry_scores, count_lacking
from sona_pg.store.spaces import Space, create_space, lock_space, shut_space

_MAX_NAME_BYTES = 500
"""What sona.create_space takes, and an index holds."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a space is to move to.

    Parameters
    ----------
    embedder, dim
        Fingerprint of the embedding model, and components of its vectors.
    items, id_column, embedding_column
        Where the items are that are embedded by it; the table and its ids are as before where they are None.
    """

    embedder: str
    dim: int
    items: str | None = None
    id_column: str | None = None
    embedding_column: str | None = None


@dataclass(frozen=True, slots=True)
class Standby:
    """What is kept beside a space: its successor or, once `replaced_at` says when, its predecessor."""

    space: Space
    replaced_at: datetime | None


def find_standby(connection: Connection, space: Space) -> Standby | None:
    """What is kept beside a space; None where it is not changing its embedder."""
    with translated():
        row = connection.execute(
            "SELECT name, replaced_at FROM sona.space WHERE standby_of = %s", (space.space_id,)
        ).fetchone()
    return None if row is None else Standby(spaces.get_space(connection, row[0]), row[1])


def open_space(connection: Connection, name: str) -> Space:
    """The space called `name`, which is not kept beside another.

    Raises
    ------
    UnknownSpace
        If there is none.
    ConfigError
        If it is kept beside another.
    """
    space = spaces.get_space(connection, name)
    if space.standby_of is not None:
        raise ConfigError(f"space {name!r} is kept beside another, which changes its embedder: name that one")
    return space


def _held(connection: Connection, space: Space) -> Space:
    """The space as it is now, under its lock."""
    held = open_space(connection, space.name)
    if held.space_id != space.space_id:
        raise LockLost(f"another process has changed the embedder of space {space.name!r} meanwhile: look again")
    return held


def prepare(connection: Connection, space: Space, target: Target) -> Standby:
    """The successor of a space, made if there is none; or its predecessor, where the switch was made already.

    Raises
    ------
    EmbedderMismatch
        If the space is changing to another embedder, or with other items.
    ConfigError
        If it belongs to that embedder already, or its adapter cannot have that dimension.
    InvalidInput, DimensionMismatch
        If the table of items is not there, or its vectors have another dimension; or if a name that is needed beside
        that of the space is taken, or too long.
    """
    with writing(connection):
        lock_space(connection, space)
        held = _held(connection, space)
        standby = find_standby(connection, held)
        is_new = standby is None
        if standby is None:
            if held.embedder == target.embedder:
                raise ConfigError(
                    f"space {space.name!r} belongs to the embedder {target.embedder!r} already: "
                    "give the fingerprint of the model that it is to move to"
                )
            standby = Standby(_make_successor(connection, held, target), None)
        goal = held if standby.replaced_at is not None else standby.space
        if (goal.embedder, goal.dim) != (target.embedder, target.dim):
            done = "has changed" if standby.replaced_at is not None else "is changing"
            raise EmbedderMismatch(
                f"space {space.name!r} {done} to the embedder {goal.embedder!r} of {goal.dim} dimensions, not to "
                f"{target.embedder!r} of {target.dim}: go on with that, or go back before (sona space re-embed "
                f"{space.name} --abort)"
            )
        if not is_new:
            target = _named_items(connection, held, goal, target)
        if standby.replaced_at is None:
            for role in ("previous", "given up"):
                free_name(connection, held, role)  # what will be needed must not be missed after all the work
            _name_items(connection, held, standby.space, target)
        return standby


def _make_successor(connection: Connection, space: Space, target: Target) -> Space:
    row = connection.execute(
        "SELECT l.settings -> 'adapter' ->> 'rank' FROM sona.learner l WHERE l.space_id = %s", (space.space_id,)
    ).fetchone()
    if row is not None and row[0] is not None and int(row[0]) > target.dim:
        raise ConfigError(
            f"the adapter of space {space.name!r} has rank {row[0]}, the new embedder {target.dim} dimensions: "
            "create a space of its own for it"
        )
    made = create_space(
        connection, free_name(connection, space, "next"), target.dim, embedder=target.embedder, config=space.config
    )
    key = {"from": space.space_id, "to": made.space_id}
    connection.execute("UPDATE sona.space SET standby_of = %(from)s WHERE space_id = %(to)s", key)
    copy_grants(connection, key)
    for table in ("learner", "strategist"):
        connection.execute(
            f"UPDATE sona.{table} SET settings = (SELECT settings FROM sona.{table} WHERE space_id = %(from)s)"
            " WHERE space_id = %(to)s",
            key,
        )
    return spaces.get_space(connection, made.name)


def free_name(connection: Connection, space: Space, role: str) -> str:
    """What a space is called that has a role beside another; refused where it is taken, or too long."""
    name = f"{space.name}/{role}"
    if len(name.encode()) > _MAX_NAME_BYTES:
        raise InvalidInput(
            f"the name of space {space.name!r} is too long for what would be kept beside it, {name!r}: expected at "
            f"most {_MAX_NAME_BYTES} bytes of that; rename the space before"
        )
    if spaces.find_space(connection, name) is not None:
        raise InvalidInput(f"there is already a space {name!r}, which is what would be made: rename or drop it")
    return name


def copy_grants(connection: Connection, key: Mapping[str, int]) -> None:
    """Let the same roles use the space `to` as the space `from`."""
    connection.execute(
        "INSERT INTO sona.space_grant (space_id, role_name, may_write) SELECT %(to)s, role_name, may_write"
        " FROM sona.space_grant WHERE space_id = %(from)s"
        " ON CONFLICT (space_id, role_name) DO UPDATE SET may_write = excluded.may_write",
        key,
    )
    connection.execute(
        "DELETE FROM sona.space_grant g WHERE g.space_id = %(to)s AND NOT EXISTS (SELECT FROM sona.space_grant f"
        " WHERE f.space_id = %(from)s AND f.role_name = g.role_name)",
        key,
    )


def _named_items(connection: Connection, space: Space, goal: Space, target: Target) -> Target:
    """The target with the items that were named when the change began; other ones are refused.

    Raises
    ------
    EmbedderMismatch
    """
    row = connection.execute(
        "SELECT items::text, id_column, embedding_column, to_regclass(%s)::text FROM (SELECT) one"
        " LEFT JOIN sona.item_source ON space_id = %s",
        (target.items, goal.space_id),
    ).fetchone()
    assert row is not None
    *named, table = row
    asked = (table or target.items, target.id_column, target.embedding_column)
    for option, has, wants in zip(("table", "column of ids", "embedding column"), named, asked, strict=True):
        if wants is not None and wants != has:
            raise EmbedderMismatch(
                f"the change of space {space.name!r} to the embedder {goal.embedder!r} has begun with the {option} "
                f"{has!r} of the items, not {wants!r}, and would mix two models: go on with that, or go back before "
                f"(sona space re-embed {shlex.quote(space.name)} --abort)"
            )
    return Target(target.embedder, target.dim, *named)


def _name_items(connection: Connection, space: Space, successor: Space, target: Target) -> None:
    """Name the items that are embedded by the new model, and sample them."""
    row = connection.execute(
        "SELECT items::text, id_column, embedding_column, filter_columns FROM sona._items_of(%s)", (space.space_id,)
    ).fetchone()
    before, id_before, embedding_before, filters = (None, None, None, []) if row is None else row
    if target.embedding_column is None:
        if before is not None:
            raise InvalidInput(
                f"space {space.name!r} has its items in {before}: embed them with the new model in another column, or "
                "another table, and name that (embedding_column=, --embedding-column)"
            )
        return
    items, id_column = target.items or before, target.id_column or id_before
    if items is None or id_column is None:
        raise InvalidInput(f"space {space.name!r} has no items table: name it and its column of ids, too")
    spaces.set_items(connection, successor, items, id_column, target.embedding_column, filters or [])
    row = connection.execute(
        "SELECT count(*) FROM sona.item_source a JOIN sona.item_source b ON b.space_id = %s"
        " AND a.items = b.items AND a.embedding_column = b.embedding_column WHERE a.space_id = %s",
        (space.space_id, successor.space_id),
    ).fetchone()
    if row is not None and row[0]:
        raise InvalidInput(
            f"{items} has the embeddings of the model before in its column {embedding_before!r}: embed the items with "
            "the new model in another column, or there is no way back"
        )


def count_bare_items(connection: Connection, older: Space, newer: Space) -> int:
    """How many items have an embedding for one space and none for the other, where both are columns of one table."""
    with translated():
        row = connection.execute(
            "SELECT a.items::text, a.embedding_column, b.embedding_column FROM sona._items_of(%s) a"
            " JOIN sona._items_of(%s) b ON b.items = a.items",
            (older.space_id, newer.space_id),
        ).fetchone()
        if row is None:
            return 0
        table, before, after = row
        counted = connection.execute(
            sql.SQL("SELECT count(*) FROM {} t WHERE t.{} IS NOT NULL AND t.{} IS NULL").format(
                sql.SQL(table), sql.Identifier(before), sql.Identifier(after)
            )
        ).fetchone()
    return 0 if counted is None else int(counted[0])


def exchange(connection: Connection, space: Space, other: Space) -> None:
    """Let another space have the name of a space, and keep that beside it."""
    kept = free_name(connection, space, "previous")
    name_it = "UPDATE sona.space SET name = %s, standby_of = %s, replaced_at = {} WHERE space_id = %s"
    connection.execute(name_it.format("clock_timestamp()"), (kept, other.space_id, space.space_id))
    connection.execute(name_it.format("NULL"), (space.name, None, other.space_id))
    _raise_epochs(connection, space)
    log_change(connection, other, space.embedder, other.embedder, "the embedder was changed")


def _raise_epochs(connection: Connection, space: Space) -> None:
    """Who holds a copy of what the space has learned looks again, and finds that it has moved."""
    for table in ("learner", "strategist"):
        connection.execute(f"UPDATE sona.{table} SET epoch = epoch + 1 WHERE space_id = %s", (space.space_id,))


def log_change(connection: Connection, space: Space, before: str | None, after: str | None, reason: str) -> None:
    """An entry of the audit trail."""
    connection.execute(
        "SELECT sona._log_deployment(%s, 'embedder', %s, %s, %s)", (space.space_id, before, after, reason)
    )


def finish(connection: Connection, space: Space, *, accept_lost: bool) -> None:
    """Delete the predecessor of a space: there is no way back from then on. Outcomes that came to it late are carried.

    Raises
    ------
    ConfigError
        If there is none.
    IncompleteLedger
        If it has recorded trajectories since the switch that the space does not have, and that is not accepted.
    """
    with writing(connection):
        standby = _locked_standby(connection, space, ends_standby=True)
        if standby.replaced_at is None:
            raise ConfigError(f"space {space.name!r} has not changed its embedder yet: run the change to its end first")
        late = count_lacking(connection, standby.space, space)
        if late and not accept_lost:
            raise IncompleteLedger(
                f"{late} trajectories were recorded with the embedder before since space {space.name!r} has changed "
                "it: run the change again, which carries them over, or consent that they are lost (accept_lost=True, "
                "--accept-lost)"
            )
        carry_scores(connection, standby.space, space)
        log_change(connection, space, standby.space.embedder, space.embedder, "the embedder before was given up")
        spaces.drop_space(connection, standby.space.name)


def abort(connection: Connection, space: Space, *, accept_lost: bool) -> None:
    """Give up the successor of a space or, after the switch, go back to its predecessor as a whole.

    Raises
    ------
    ConfigError
        If it is not changing its embedder.
    IncompleteLedger
        If trajectories were recorded since the switch, and it is not accepted that they are lost.
    """
    with writing(connection):
        standby = _locked_standby(connection, space, ends_standby=False)
        if standby.replaced_at is None:
            spaces.drop_space(connection, standby.space.name)
            log_change(connection, space, standby.space.embedder, space.embedder, "the change of embedder was given up")
            return
        late = count_lacking(connection, space, standby.space)
        if late and not accept_lost:
            raise IncompleteLedger(
                f"{late} trajectories were recorded with the embedder {space.embedder!r} since space {space.name!r} "
                "has changed to it, and the one before cannot have them: consent that they are lost (accept_lost=True, "
                "--accept-lost), or finish this change and then change back, which embeds them again"
            )
        lock_space(connection, standby.space)
        carry_scores(connection, space, standby.space)
        given_up = free_name(connection, space, "given up")
        connection.execute("UPDATE sona.space SET name = %s WHERE space_id = %s", (given_up, space.space_id))
        connection.execute(
            "UPDATE sona.space SET name = %s, standby_of = NULL, replaced_at = NULL WHERE space_id = %s",
            (space.name, standby.space.space_id),
        )
        copy_grants(connection, {"from": space.space_id, "to": standby.space.space_id})
        _raise_epochs(connection, standby.space)
        log_change(
            connection, standby.space, space.embedder, standby.space.embedder, "went back to the embedder before"
        )
        spaces.drop_space(connection, given_up)


def _locked_standby(connection: Connection, space: Space, *, ends_standby: bool) -> Standby:
    """What is kept beside a space, under the lock of that; nobody records in the one of both that is to be deleted."""
    before = find_standby(connection, space)
    if before is not None:
        ends_standby = ends_standby or before.replaced_at is None
        shut_space(connection, before.space if ends_standby else space)
    lock_space(connection, space)
    standby = find_standby(connection, _held(connection, space))
    if standby != before:
        raise LockLost(f"another process has changed the embedder of space {space.name!r} meanwhile: look again")
    if standby is None:
        raise ConfigError(f"space {space.name!r} is not changing its embedder: nothing is kept beside it")
    return standby
