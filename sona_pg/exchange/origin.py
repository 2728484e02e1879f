"""Of which embedding model a file is."""

from __future__ import annotations

from sona_pg.errors import EmbedderMismatch


def embedder_of(said: str | None, given: str | None) -> str | None:
    """The fingerprint of the embedding model, by what a file says and what its user does; None if neither does.

    Raises
    ------
    EmbedderMismatch
        If they contradict each other.
    """
    if said is not None and given is not None and said != given:
        raise EmbedderMismatch(
            f"the file belongs to the embedder {said!r}, not to {given!r}: leave the embedder out, or import what was "
            "learned with that one"
        )
    return given if said is None else said
