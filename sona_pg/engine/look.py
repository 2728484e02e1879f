"""Look: whether it gets better, why an answer was what it was, and the versions, with the way back."""

from __future__ import annotations

import uuid

from sona_pg.calls import at_once
from sona_pg.engine.session import Session
from sona_pg.errors import InvalidInput
from sona_pg.loops.admission import checked_text
from sona_pg.store import versions
from sona_pg.store.improvement import ImprovementMetrics
from sona_pg.store.versions import Version
from sona_pg.store.why import Why


class Looking(Session):
    """Says what was learned and what it brought, and takes it back."""

    def improvement_metrics(self) -> ImprovementMetrics:
        """Whether the space gets better: weekly gain, lift, harm and retention, by what its answers were worth.

        Raises
        ------
        UnknownSpace, DatabaseError
            If the space is gone, or the database cannot be asked.
        """
        return at_once(self._requests.improvement_metrics())

    def why(self, trajectory_id: uuid.UUID) -> Why:
        """Why an answer was what it was: what answered and why, what it remembered, and what moved its items.

        Parameters
        ----------
        trajectory_id
            What `record` gave, once it is flushed.

        Raises
        ------
        UnknownTrajectory
            If it is not there; says whether retention has deleted it.
        DatabaseError
            If the database cannot be asked.
        """
        return at_once(self._requests.why(trajectory_id))

    def versions(self) -> list[Version]:
        """What was published of the space, oldest first.

        Raises
        ------
        DatabaseError
            If the database cannot be asked.
        """
        return at_once(self._requests.versions())

    def deploy(self, version: int | str, reason: str | None = None) -> int:
        """Answer, and go on learning, from a version; what was learned since the last one is published first.

        Parameters
        ----------
        version
            Its number; 'rollback' for the one before; 'latest' for what has learned from most events; or 'frozen' for
            the embedding as it is, while learning goes on.
        reason
            For the audit trail, `sona.deployments`.

        Returns
        -------
        int
            The version in force.

        Raises
        ------
        UnknownVersion, DamagedVersion, InvalidInput, PermissionDenied
            If there is no such version, it is not what was published, or the role may not.
        """
        self.check_open()
        if isinstance(version, bool) or not isinstance(version, int | str):
            raise InvalidInput(f"version is {version!r}, expected a number, 'rollback', 'latest' or 'frozen'")
        if reason is not None:
            reason = checked_text(reason, "the reason")
        with self._connections.connection() as connection:
            deployed = versions.deploy(connection, self._space, str(version), reason)
        self._loop.flush_updates()
        self._evidence.refresh()
        return deployed
