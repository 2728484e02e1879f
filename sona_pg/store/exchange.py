"""What an export reads, all of it as of one moment, and the transaction by which an import writes."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from sona_pg.errors import EmbedderMismatch, LockLost, UnknownVersion
from sona_pg.kernels import LowRank
from sona_pg.learning.patterns import LearnedPattern
from sona_pg.learning.resumed_bank import Advance, Verdicts
from sona_pg.store.connection import Connection, require_right, snapshot_transaction, translated, writing
from sona_pg.store.learning import Head, read_head, read_state
from sona_pg.store.ledger import LOOP
from sona_pg.store.patterns import (
    FORGOTTEN_PATTERNS,
    PATTERN_COLUMNS,
    add_accesses,
    pattern_of,
    read_patterns,
    read_verdicts,
    write_patterns,
)
from sona_pg.store.served_rows import write_served
from sona_pg.store.spaces import Space, check_embedder, lock_space, space_gone
from sona_pg.store.versions import publish, read_version

_READ_AT_ONCE = 500
"""Rows that the driver holds."""

IMPORT = "import"
"""Action of the audit trail."""


class Learned(NamedTuple):
    """What a space has learned.

    Parameters
    ----------
    version, events
        The version that it is, or that its learning has come to since, and the events that it has learned.
    state
        As the learner packs it; None before anything was learned.
    """

    version: int
    events: int
    state: bytes | None


@contextlib.contextmanager
def export_reader(connection: Connection, space: Space) -> Iterator[ExportReader]:
    """Reads what an export writes, all of it as of one moment."""
    with snapshot_transaction(connection):
        yield ExportReader(connection, space)


class ExportReader:
    """Reads, in one transaction, in bounded memory."""

    def __init__(self, connection: Connection, space: Space) -> None:
        self._connection, self._space = connection, space

    def learned(self, version: int | None) -> Learned:
        """What the space has learned by now, or had by a version.

        Raises
        ------
        UnknownVersion
            If there is no such version.
        """
        if version is None:
            head = read_head(self._connection, self._space)
            return Learned(head.version, head.events, read_state(self._connection, self._space))
        row = self._connection.execute(
            "SELECT events FROM sona.adapter_version WHERE space_id = %s AND version = %s",
            (self._space.space_id, version),
        ).fetchone()
        if row is None:
            raise UnknownVersion(
                f"there is no version {version} of space {self._space.name!r}: use one of sona versions"
            )
        return Learned(version, row[0], read_version(self._connection, self._space, version))

    def count_patterns(self) -> int:
        """How many patterns there are."""
        row = self._connection.execute(
            "SELECT count(*) FROM sona.pattern WHERE space_id = %s", (self._space.space_id,)
        ).fetchone()
        assert row is not None
        return int(row[0])

    def patterns(self) -> Iterator[tuple[LearnedPattern, Sequence[object]]]:
        """All patterns with their text, by id, each with its verdicts as they are stored."""
        with self._connection.cursor(name="sona_export", binary=True) as cursor:
            cursor.itersize = _READ_AT_ONCE
            cursor.execute(
                f"SELECT {PATTERN_COLUMNS}, (SELECT coalesce(jsonb_agg(v.state ORDER BY v.parameter), '[]')"
                "  FROM sona.verdict v WHERE v.space_id = p.space_id AND v.pattern_id = p.pattern_id)"
                " FROM sona.pattern p LEFT JOIN sona.pattern_access a USING (space_id, pattern_id)"
                " WHERE p.space_id = %s ORDER BY p.pattern_id",
                (self._space.space_id,),
            )
            for *row, verdicts in cursor:
                yield pattern_of(row), verdicts

    def trajectories(self) -> Iterator[list[uuid.UUID]]:
        """All trajectories that were learned from, in the order in which that was, some at a time."""
        with self._connection.cursor(name="sona_export", binary=True) as cursor:
            cursor.itersize = _READ_AT_ONCE
            cursor.execute(
                "SELECT trajectory_id FROM sona.learning_event WHERE space_id = %s AND loop = %s AND revision = 0"
                " ORDER BY ordinal",
                (self._space.space_id, LOOP),
            )
            while rows := cursor.fetchmany(_READ_AT_ONCE):
                yield [id for (id,) in rows]


@contextlib.contextmanager
def import_transaction(connection: Connection, space: Space, embedder: str | None) -> Iterator[ImportTransaction]:
    """Begin a transaction that imports; commits at the end, rolls back on any error.

    Parameters
    ----------
    embedder
        Of what is imported: declared, where the space has none yet.

    Raises
    ------
    EmbedderMismatch
        If the space is of another embedder, or has changed it since it was opened.
    PermissionDenied
        If this role may not learn in the space.
    DatabaseBusy
        If the locks are not to be had.
    """
    with writing(connection):
        require_right(connection, "import", "sona.learner", "INSERT", "UPDATE")
        lock_space(connection, space)
        row = connection.execute(
            "SELECT embedder FROM sona.space WHERE space_id = %s AND standby_of IS NULL", (space.space_id,)
        ).fetchone()
        if row is None:
            raise EmbedderMismatch(
                f"space {space.name!r} has changed its embedder since it was opened, and nothing was imported: connect "
                "again"
            )
        if embedder is None and row[0] is not None:
            raise EmbedderMismatch(
                f"what is imported does not say of which embedding model it is, and space {space.name!r} is of "
                f"{row[0]!r}: pass its fingerprint (embedder=, --embedder) if it is of that one"
            )
        check_embedder(connection, space, embedder)
        yield ImportTransaction(connection, space)


class ImportTransaction:
    """A transaction under the locks of a space: nobody learns or weighs there until it ends."""

    def __init__(self, connection: Connection, space: Space) -> None:
        self._connection, self._space = connection, space
        self._key = {"space": space.space_id}

    def head(self) -> Head:
        """Where the learner stands."""
        return read_head(self._connection, self._space)

    def state(self) -> bytes | None:
        """The learner's state; None before anything was learned."""
        return read_state(self._connection, self._space)

    def publish_before(self, cause: str, state: bytes, served: LowRank) -> None:
        """Publish what answers by now, unless there is a version of it: what takes its place must have a way back."""
        row = self._connection.execute(
            "SELECT version > 0 AND sona._is_published(space_id) FROM sona.learner WHERE space_id = %(space)s",
            self._key,
        ).fetchone()
        if row is None or not row[0]:
            publish(self._connection, self._space, cause, state, served)

    def publish(self, cause: str, state: bytes, served: Mapping[str, LowRank]) -> int:
        """Put a state in the place of the learner's, and publish it; the version's number.

        Whoever is flushing finds another epoch, and learns its events on this one. The strategist goes on with it, and
        the lift is measured anew.
        """
        self._connection.execute(
            "UPDATE sona.learner SET epoch = epoch + 1, revision = revision + 1, state = %(state)s, restored = NULL,"
            " updated_at = now() WHERE space_id = %(space)s",
            self._key | {"state": state},
        )
        self._connection.execute(
            "DELETE FROM sona.served_row WHERE space_id = %(space)s AND tier = ANY(%(tiers)s)",
            self._key | {"tiers": list(served)},
        )
        write_served(self._connection, self._space.space_id, served)
        version = publish(self._connection, self._space, cause, state, served["adapter"])
        self._connection.execute(
            "INSERT INTO sona.base_state (space_id, version) VALUES (%(space)s, %(version)s)"
            " ON CONFLICT (space_id) DO UPDATE SET version = excluded.version",
            self._key | {"version": version},
        )
        self._connection.execute(
            "UPDATE sona.strategist SET epoch = epoch + 1, suspected_share = 0, changed_at = clock_timestamp()"
            " WHERE space_id = %(space)s",
            self._key,
        )
        return version

    def imported_patterns(self) -> dict[uuid.UUID, str]:
        """What was imported since patterns were last forgotten: SHA-256 of the newest import, by key of its space."""
        rows = self._connection.execute(
            "SELECT split_part(d.after, ' ', 1)::uuid, split_part(d.after, ' ', 2) FROM sona.deployment d"
            " WHERE d.space_id = %(space)s AND d.action = %(import)s AND d.deployment_id > coalesce(("
            "  SELECT max(f.deployment_id) FROM sona.deployment f WHERE f.space_id = %(space)s"
            "  AND f.action = 'forget' AND f.after = %(gone)s), 0) ORDER BY d.deployment_id",
            self._key | {"import": IMPORT, "gone": FORGOTTEN_PATTERNS},
        ).fetchall()
        return dict(rows)

    def bank(self) -> tuple[dict[int, LearnedPattern], Verdicts, int, float]:
        """Patterns and verdicts, the last id that was given, and the time, in seconds since the epoch."""
        row = self._connection.execute(
            "SELECT coalesce((SELECT last_id FROM sona.pattern_state WHERE space_id = %(space)s), 0),"
            " extract(epoch FROM clock_timestamp())::float8",
            self._key,
        ).fetchone()
        assert row is not None
        patterns = read_patterns(self._connection, self._space.space_id)
        return patterns, read_verdicts(self._connection, self._space), *row

    def write_bank(
        self,
        advance: Advance,
        texts: Sequence[tuple[int, str | None, str | None, str | None]],
        accesses: Sequence[tuple[int, int, float]],
        origin: str,
        reason: str,
    ) -> None:
        """Write what an import makes of patterns, with an entry of the audit trail; cycles in flight begin anew.

        Parameters
        ----------
        texts
            Title, description and content by id, of those that have any; what is there already stays.
        accesses
            How often patterns were found, and when last, by id.
        origin
            Key of the space that they come from, and SHA-256 of them.
        """
        space_id = self._space.space_id
        row = self._connection.execute(
            "INSERT INTO sona.pattern_state AS p (space_id, last_id, generation) VALUES (%(space)s, %(last)s, 1)"
            " ON CONFLICT (space_id) DO UPDATE SET generation = p.generation + 1, last_id = excluded.last_id"
            " RETURNING generation",
            self._key | {"last": advance.last_id},
        ).fetchone()
        if row is None:
            raise space_gone(self._space.name, LockLost)
        write_patterns(self._connection, space_id, advance)
        self._connection.cursor().executemany(
            "UPDATE sona.pattern SET title = coalesce(title, %s), description = coalesce(description, %s),"
            " content = coalesce(content, %s) WHERE space_id = %s AND pattern_id = %s",
            [(*given, space_id, id) for id, *given in texts],
        )
        add_accesses(self._connection, space_id, accesses)
        self._connection.execute(
            "SELECT sona._log_deployment(%s, %s, NULL, %s, %s)", (space_id, IMPORT, origin, reason)
        )


def has_prompts(connection: Connection, space: Space, key: str) -> bool:
    """Whether the metadata of any trajectory hold a text under a key."""
    with translated():
        row = connection.execute(
            "SELECT EXISTS (SELECT FROM sona.trajectory WHERE space_id = %s"
            " AND jsonb_typeof(metadata -> %s) = 'string')",
            (space.space_id, key),
        ).fetchone()
    return row is not None and bool(row[0])


def prompts(connection: Connection, space: Space, ids: Sequence[uuid.UUID], key: str) -> dict[uuid.UUID, str]:
    """What the metadata of trajectories hold as a text under a key, of those that do; in the caller's transaction."""
    rows = connection.execute(
        "SELECT trajectory_id, metadata ->> %(key)s FROM sona.trajectory WHERE space_id = %(space)s"
        " AND trajectory_id = ANY(%(ids)s) AND jsonb_typeof(metadata -> %(key)s) = 'string'",
        {"key": key, "space": space.space_id, "ids": list(ids)},
    ).fetchall()
    return dict(rows)
