"""Published versions: the immutable rows, and what is deployed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sona_pg.errors import UnknownVersion
from sona_pg.kernels import LowRank
from sona_pg.learning.packing import expand, squeeze
from sona_pg.store.connection import Connection, bounded, translated
from sona_pg.store.reader import Reader
from sona_pg.store.served_rows import served_map, served_rows
from sona_pg.store.spaces import Space

SERVED = "adapter.served"
"""Part of the learner's state that the rows of a version hold as well."""


@dataclass(frozen=True, slots=True)
class Version:
    """A published version.

    Parameters
    ----------
    version, parent
        Its number, and that of the version that it was learned from.
    created_at, cause
        When and why it was published.
    events
        Outcome events learned by then.
    setting, strategy
        What the space was set to, and what was proven to be best.
    is_in_force
        Whether what is learned now comes from it.
    nbytes
        What it takes.
    """

    version: int
    parent: int | None
    created_at: datetime
    cause: str
    events: int
    setting: str
    strategy: str
    is_in_force: bool
    nbytes: int

    @property
    def answers_by(self) -> str:
        """The strategy by which it answers, regions that are exceptions left aside."""
        if self.setting == "learned":
            return self.strategy
        return "frozen" if self.setting == "shadow" else self.setting


async def versions(reader: Reader, space: Space) -> list[Version]:
    """The published versions of a space, oldest first."""
    return [Version(*row) for row in await reader.rows("SELECT * FROM sona.versions(%s)", (space.name,))]


def deploy(connection: Connection, space: Space, what: str, reason: str | None) -> int:
    """Deploy a version, 'rollback', 'latest' or 'frozen'; the version in force.

    Raises
    ------
    UnknownVersion, DamagedVersion, InvalidInput, PermissionDenied
        If there is no such version, it is not what was published, or the role may not.
    DatabaseBusy
        If another session holds the space.
    """
    with bounded(connection):
        row = connection.execute("SELECT sona.deploy(%s, %s::text, %s)", (space.name, what, reason)).fetchone()
    assert row is not None
    return int(row[0])


def spaces_with_more(connection: Connection, keep: int) -> list[str]:
    """Names of the spaces that have more versions than this."""
    with translated():
        rows = connection.execute(
            "SELECT s.name FROM sona.space s JOIN sona.adapter_version v USING (space_id)"
            " GROUP BY s.space_id HAVING count(*) > %s ORDER BY s.space_id",
            (keep,),
        ).fetchall()
    return [row[0] for row in rows]


def prune(connection: Connection, name: str, keep: int) -> int:
    """Delete versions of a space but the newest `keep` and those that something refers to; gives how many."""
    with translated():
        row = connection.execute("SELECT sona.prune_versions(%s, %s)", (name, keep)).fetchone()
    return 0 if row is None else int(row[0])


def publish(connection: Connection, space: Space, cause: str, state: bytes, served: LowRank) -> int:
    """Publish the state of a learner, whose lock is held and whose served rows are written; the version's number."""
    squeezed = squeeze(state, {} if served.is_zero else {SERVED: served_rows(served)})
    row = connection.execute("SELECT sona._publish(%s, %s, %s)", (space.space_id, cause, squeezed)).fetchone()
    assert row is not None
    return int(row[0])


def read_version(connection: Connection, space: Space, version: int) -> bytes:
    """The learner's state of a version, as the learner packs it.

    Raises
    ------
    UnknownVersion
        If it is gone.
    """
    with translated():
        # One statement, and so one snapshot: the version may be deleted at this moment, with its rows.
        found = connection.execute(
            "SELECT -1 AS ordinal, state, NULL AS down, NULL AS up FROM sona.adapter_version"
            " WHERE space_id = %(space)s AND version = %(version)s"
            " UNION ALL SELECT ordinal, NULL, down, up FROM sona.version_row"
            " WHERE space_id = %(space)s AND version = %(version)s AND tier = 'adapter' ORDER BY ordinal",
            {"space": space.space_id, "version": version},
            binary=True,
        ).fetchall()
    rows = [(down, up) for _, state, down, up in found if state is None]
    state = next((state for _, state, _, _ in found if state is not None), None)
    if state is None:
        raise UnknownVersion(f"version {version} of space {space.name!r} is gone: deploy another one")
    served = served_map(rows)
    return expand(bytes(state), {} if served is None else {SERVED: served})
