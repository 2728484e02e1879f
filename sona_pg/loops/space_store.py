"""A space in the database, as a loop holds it: one connection, made anew after it has ended."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

from sona_pg.config import StoreConfig
from sona_pg.errors import SonaError
from sona_pg.store import errors
from sona_pg.store.connection import Connection, is_over
from sona_pg.store.spaces import Space
from sona_pg.store.spool import Spool

log = logging.getLogger("sona_pg")


class SpaceStore:
    """A space in the database, over one connection that is made anew after it has ended.

    Parameters
    ----------
    space
        The space.
    connect
        Makes a connection.
    config
        Settings.
    spools
        Folder of the spools, which take what the database cannot; None keeps no spool.
    """

    def __init__(
        self,
        space: Space,
        connect: Callable[[], Connection],
        config: StoreConfig | None = None,
        spools: Path | None = None,
    ) -> None:
        self.space = space
        self.config = StoreConfig() if config is None else config
        self.worker = self.worker_name()
        self.spool = None if spools is None else Spool(spools, space.key, self.config)
        self._connect = connect
        self._connection: Connection | None = None

    @staticmethod
    def worker_name() -> str:
        """What the ledger calls this process: host and process."""
        return f"{socket.gethostname()}:{os.getpid()}"

    def connection(self) -> Connection:
        """The connection, alive as far as is known without asking the server; in a transaction that of the transaction.

        Its owner must learn that it has ended: what comes over another one would not be part of the transaction.
        """
        if self._connection is None or is_over(self._connection):
            self.discard()
            self._connection = self._connect()
        return self._connection

    def log_errors(self, source: str, messages: Sequence[str]) -> None:
        """Append to `sona.errors`."""
        try:
            for message in messages:
                errors.log_error(self.connection(), self.space.space_id, source, self.worker, message)
        except SonaError as error:
            log.warning("the entry could not be written to sona.errors: %s", error)

    def discard(self) -> None:
        """Close the connection; the next use makes another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def close(self) -> None:
        """Disconnect, and leave the spool to whoever opens the space next."""
        self.discard()
        if self.spool is not None:
            self.spool.close()
