"""Exchange: what was learned as files that other programs read, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from sona_pg.calls import at_once
from sona_pg.engine.session import Session
from sona_pg.errors import InvalidInput
from sona_pg.files import FilePath
from sona_pg.loops.admission import checked_text

if TYPE_CHECKING:
    from sona_pg.exchange.patterns import PatternImport
    from sona_pg.exchange.peft_files import AdapterFiles


class Exchanging(Session):
    """Exports what was learned, and imports it."""

    def save_pretrained(self, path: FilePath, *, version: int | None = None) -> None:
        """Write the adapter of queries into a new directory, in the layout of PEFT; see docs/export.md.

        Parameters
        ----------
        path
            A directory that is not there yet, or is empty.
        version
            One that was published; all that was learned by now if None.

        Raises
        ------
        IoError
            If something is there already, or it cannot be written; nothing is left then.
        UnknownVersion, DatabaseError
            If there is no such version, or the database cannot be asked.
        """
        from sona_pg.exchange.adapters import export_adapter

        if version is not None and (isinstance(version, bool) or not isinstance(version, int) or version < 0):
            raise InvalidInput(f"version is {version!r}, expected a number")
        self.flush()
        with self._connections.connection() as connection:
            export_adapter(connection, self._space, path, version)

    def import_adapter(self, path: FilePath, *, embedder: str | None = None) -> int:
        """Go on with an adapter that `save_pretrained` or PEFT has written; the version that is published of it.

        What was learned until now is published before, so that `deploy` leads back. The optimiser's moments begin anew.

        Parameters
        ----------
        path
            The directory.
        embedder
            Fingerprint of the embedding model, for an adapter that does not say it.

        Raises
        ------
        IoError, InvalidInput
            If it cannot be read, is damaged, or holds something else; nothing was changed.
        DimensionMismatch, EmbedderMismatch
            If it is of another dimension, or another embedding model; nothing was changed.
        PermissionDenied, DatabaseError
            If this role may not learn in the space, or the database does not take it.
        """
        from sona_pg.exchange.peft_files import read_adapter

        self.check_open()
        said = None if embedder is None else checked_text(embedder, "embedder")
        return self._go_on_with(read_adapter(path), said)

    def _go_on_with(self, files: AdapterFiles, embedder: str | None) -> int:
        from sona_pg.exchange.adapters import import_adapter

        self.flush()
        with self._connections.connection() as connection:
            version = import_adapter(connection, self._space, files, embedder=embedder)
        self._loop.flush_updates()
        self._weigh_now()
        return version

    def export_patterns(self, path: FilePath) -> int:
        """Write the patterns with their verdicts to a new file, *.jsonl or *.parquet; gives how many.

        Raises
        ------
        ConfigError
            If the name says neither, or Parquet and pyarrow is not installed.
        IoError, DatabaseError
            If something is there already, it cannot be written, or the database cannot be asked; no file is left.
        """
        from sona_pg.exchange.patterns import export_patterns

        self.check_open()
        with self._connections.connection() as connection:
            return export_patterns(connection, self._space, path)

    def import_patterns(self, path: FilePath, *, embedder: str | None = None) -> PatternImport:
        """Take over the patterns of a file, all or none: near ones are merged; what was imported changes nothing.

        Parameters
        ----------
        path
            What `export_patterns` has written.
        embedder
            Fingerprint of the embedding model, for a file that does not say it.

        Raises
        ------
        ConfigError, IoError, InvalidInput
            If the file cannot be read, is damaged, or is another export of a space whose patterns were imported.
        DimensionMismatch, EmbedderMismatch
            If it is of another dimension, or another embedding model.
        PermissionDenied, DatabaseError
            If this role may not learn in the space, or the database does not take it.
        """
        from sona_pg.exchange.patterns import import_patterns, read_patterns

        self.check_open()
        said = None if embedder is None else checked_text(embedder, "embedder")
        file = read_patterns(path)
        with self._connections.connection() as connection:
            return import_patterns(connection, self._space, file, embedder=said)

    def export_preferences(
        self, path: FilePath, *, text_column: str | None = None, prompt_key: str | None = None
    ) -> int:
        """Write which of two judged items was worth more, by query, to a new file, *.jsonl or *.parquet; how many.

        Parameters
        ----------
        text_column
            Column of the items table with their texts; ids alone are written without.
        prompt_key
            Key of the metadata under which the queries' texts were recorded; embeddings alone are written without.

        Raises
        ------
        ConfigError
            If the name says neither, or Parquet and pyarrow is not installed.
        IoError, DatabaseError
            If something is there already, it cannot be written, or the database cannot be asked; no file is left.
        """
        from sona_pg.exchange.preferences import export_preferences

        column = None if text_column is None else checked_text(text_column, "text_column")
        key = None if prompt_key is None else checked_text(prompt_key, "prompt_key")
        self.flush()

        def texts(ids: Sequence[str]) -> Mapping[str, str | None]:
            return at_once(self._requests.item_texts(ids, column))

        with self._connections.connection() as connection:
            return export_preferences(
                connection, self._space, path, texts=None if column is None else texts, prompt_key=key
            )
