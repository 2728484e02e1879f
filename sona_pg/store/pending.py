"""Which spaces have something to learn that SQL clients recorded, and what went wrong with them."""

from __future__ import annotations

from sona_pg.store.connection import Connection, translated


def spaces_with_pending(connection: Connection) -> list[str]:
    """Names of the spaces in which something waits to be learned."""
    with translated():
        rows = connection.execute(
            "SELECT s.name FROM sona.space s"
            " WHERE EXISTS (SELECT FROM sona.pending_trajectory p WHERE p.space_id = s.space_id) ORDER BY s.space_id"
        ).fetchall()
    return [row[0] for row in rows]


def log_error(connection: Connection, space_id: int, source: str, worker: str, message: str) -> None:
    """Append an entry to `sona.errors`."""
    with translated():
        connection.execute(
            "INSERT INTO sona.error_log (space_id, source, worker, message) VALUES (%s, %s, %s, %s)",
            (space_id, source, worker, message),
        )
