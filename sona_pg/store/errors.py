"""Entries of `sona.errors`: what went wrong, for people."""

from __future__ import annotations

from sona_pg.store.connection import Connection, translated


def storable(message: str) -> str:
    """A message as a column of type text takes it: no NUL, no half of a surrogate pair, and of bounded length."""
    return message.replace("\0", "␀").encode(errors="replace").decode()[:10_000]


def log_error(connection: Connection, space_id: int, source: str, worker: str, message: str) -> None:
    """Append an entry."""
    with translated():
        connection.execute(
            "INSERT INTO sona.error_log (space_id, source, worker, message) VALUES (%s, %s, %s, %s)",
            (space_id, source, worker, storable(message)),
        )
