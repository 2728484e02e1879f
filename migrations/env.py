"""Alembic's entry: runs on the connection that `sona_pg.store.migrate` hands over, or on SONA_DATABASE_URL."""

from __future__ import annotations

import os

import sqlalchemy as sa
from alembic import context

from sona_pg.store.connection import engine_url
from sona_pg.store.schema import SCHEMA, metadata


def run(connection: sa.Connection) -> None:
    """Run the revisions on a connection, inside its transaction."""
    context.configure(
        connection=connection,
        target_metadata=metadata,
        version_table_schema=SCHEMA,
        include_schemas=True,
        include_name=lambda name, kind, parents: kind != "schema" or name == SCHEMA,
        on_version_apply=context.config.attributes.get("on_version_apply", ()),
    )
    with context.begin_transaction():
        context.run_migrations()


given = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    with sa.create_engine(engine_url(os.environ["SONA_DATABASE_URL"])).begin() as made:
        run(made)
