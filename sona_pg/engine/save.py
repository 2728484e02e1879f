"""Save: all that a space has recorded and learned, to a file that another database can load."""

from __future__ import annotations

from sona_pg.engine.session import Session
from sona_pg.files import FilePath
from sona_pg.loops.archiving import LoadReport, SaveReport, save_space


class Saving(Session):
    """Saves the space; `SonaEngine.load` makes an engine of what was saved."""

    _loaded: LoadReport | None = None

    @property
    def loaded(self) -> LoadReport | None:
        """What `load` has brought; None of an engine that was connected."""
        return self._loaded

    def save(self, path: FilePath) -> SaveReport:
        """Write the space to a file, as it is at one moment; what this process has recorded is flushed before.

        Others go on recording and learning meanwhile. The file holds embeddings, texts and ids of users as they were
        recorded: it is as confidential as the database.

        Parameters
        ----------
        path
            The file; one that is there is replaced, once all of the new one is written.

        Returns
        -------
        SaveReport
            How many rows of each table, the size of the file and its SHA-256.

        Raises
        ------
        IoError
            If the file cannot be written; what was there is unchanged.
        DatabaseError
            If the database cannot be asked, or does not take what was recorded.
        """
        self.flush()
        with self._database.connect() as connection:
            return save_space(connection, self._space.name, path)
