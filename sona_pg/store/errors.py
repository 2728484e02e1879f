"""Entries of `sona.errors`: what went wrong, for people."""

from __future__ import annotations

from sona_pg.store.connection import Connection, translated


def log_error(connection: Connection, space_id: int, source: str, worker: str, message: str) -> None:
    """Append an entry."""
    with translated():
        connection.execute(
            "INSERT INTO sona.error_log (space_id, source, worker, message) VALUES (%s, %s, %s, %s)",
            (space_id, source, worker, message.replace("\0", "␀")[:10_000]),
        )
