"""What the instant loop has to say to people: in the log at once, and in `sona.errors` where everybody can see it."""

from __future__ import annotations

import logging
import time

from sona_pg.errors import SonaError
from sona_pg.loops.space_store import SpaceStore
from sona_pg.store import spaces
from sona_pg.store.observation import DROPPED

log = logging.getLogger("sona_pg")

_DROPPED_SECONDS = 60.0
"""Longest time between two entries in `sona.errors` of how many were dropped; an overload drops all the time."""


class Complaints:
    """What is to be written to `sona.errors` once the database is free for it."""

    def __init__(self) -> None:
        self._messages: list[str] = []
        self._dropped_told = 0
        self._tell_dropped_at = 0.0
        self._lost_told = 0

    def add(self, message: str) -> None:
        """Say it in the log and, once the database is free for it, in `sona.errors`."""
        log.error("%s", message)
        self._messages.append(message)

    def write(self, store: SpaceStore, dropped: int) -> None:
        """Write them; and now and then how many trajectories and scores were `dropped` so far."""
        if self._messages:
            messages, self._messages = self._messages, []
            store.log_errors("instant", messages)
        if time.monotonic() >= self._tell_dropped_at:
            self.write_dropped(store, dropped)

    def write_dropped(self, store: SpaceStore, dropped: int) -> None:
        """What was dropped is counted where everybody can see it, too: the process takes its own counts along."""
        more = dropped - self._dropped_told
        if more:
            store.log_errors(DROPPED, [f"{more} trajectories and scores were dropped: the buffers were full"])
            self._dropped_told, self._tell_dropped_at = dropped, time.monotonic() + _DROPPED_SECONDS

    def find_given_up(self, store: SpaceStore, lost: int) -> str | None:
        """Where another space has the name of this one, which is gone: say so, and what is `lost` with this one there.

        Gives what to tell whoever goes on; None where no other space has the name, or nobody can say.
        """
        try:
            heir = spaces.find_space(store.connection(), store.space.name)
        except SonaError:
            return None  # the next flush looks again
        if heir is None:
            return None
        if lost > self._lost_told:
            more = (
                f"{lost - self._lost_told} trajectories and scores were dropped: the embedder {store.space.embedder!r} "
                "was given up before they were durable"
            )
            SpaceStore(heir, store.connection, store.config).log_errors(DROPPED, [more])
            self._lost_told = lost
        return (
            f"space {store.space.name!r} is another one by now, of the embedder {heir.embedder!r}: the one of "
            f"{store.space.embedder!r} was given up (sona space re-embed --abort, --finish), or deleted, and {lost} "
            "trajectories and scores that were not durable are lost with it; embed with that model and connect again"
        )
