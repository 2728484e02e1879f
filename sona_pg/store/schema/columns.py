"""What columns of many tables are made of."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, DateTime, ForeignKey, MetaData, func, text

SCHEMA = "sona"

metadata = MetaData(
    schema=SCHEMA,
    naming_convention={
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "ck": "%(table_name)s_%(constraint_name)s_check",
        "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
        "pk": "%(table_name)s_pkey",
    },
)


def space_id(*, owned: bool = True) -> Column[int]:
    """The leading key column; `owned` rows go with their space."""
    if not owned:
        return Column(
            "space_id", BigInteger, primary_key=True, autoincrement=False, comment="space that the row belongs to"
        )
    reference = ForeignKey(f"{SCHEMA}.space.space_id", ondelete="CASCADE")
    return Column(
        "space_id",
        BigInteger,
        reference,
        primary_key=True,
        autoincrement=False,
        comment="space that the row belongs to",
    )


def now(name: str, comment: str) -> Column[object]:
    """A time that is that of the row where nobody says another one."""
    return Column(name, DateTime(timezone=True), nullable=False, server_default=func.now(), comment=comment)


def time(name: str, comment: str) -> Column[object]:
    """A time that may be unknown."""
    return Column(name, DateTime(timezone=True), comment=comment)


def flag(name: str, comment: str) -> Column[bool]:
    """A truth value, false by default."""
    return Column(name, Boolean, nullable=False, server_default=text("false"), comment=comment)


def whole(name: str, comment: str) -> Column[int]:
    """A count, 0 by default."""
    return Column(name, BigInteger, nullable=False, server_default=text("0"), comment=comment)
