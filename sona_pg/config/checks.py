"""How settings are checked when they are given."""

from __future__ import annotations

from sona_pg.errors import ConfigError


def check_whole(name: str, value: int, low: int, high: int) -> None:
    """Refuse what is no whole number from `low` to `high`, with a `ConfigError`."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise ConfigError(f"{name} is {value!r}, expected a whole number from {low} to {high}")
    check_within(name, value, low, high)


def check_within(name: str, value: float, low: float, high: float) -> None:
    """Refuse what is no number from `low` to `high`, NaN and truth values included, with a `ConfigError`."""
    if not isinstance(value, float | int) or isinstance(value, bool) or not low <= value <= high:
        raise ConfigError(f"{name} is {value!r}, expected {low} to {high}")


def check_flag(name: str, value: bool) -> None:
    """Refuse what is neither True nor False, with a `ConfigError`."""
    if not isinstance(value, bool):
        raise ConfigError(f"{name} is {value!r}, expected True or False")


def rank_within(dim: int, rank: int) -> int:
    """A default rank, or the largest that maps of vectors of `dim` components can have; 1 at the least."""
    if not isinstance(dim, int):
        raise ConfigError(f"dimension is {dim!r}, expected a whole number")
    return max(1, min(rank, dim))


def said_once(*places: tuple[str, object, object]) -> object:
    """The value of a setting that has several names: what one of them says, or the default of the first.

    Parameters
    ----------
    *places
        Name, value and default of each; a value that is the default says nothing.

    Raises
    ------
    ConfigError
        If two say something else; names both.
    """
    said = [(name, value) for name, value, default in places if value != default]
    for name, value in said[1:]:
        refuse_unless_same(*said[0], name, value)
    return said[0][1] if said else places[0][2]


def refuse_unless_same(name: str, value: object, other: str, of_other: object) -> None:
    """Refuse a setting that says two things under two names.

    Raises
    ------
    ConfigError
        If it does.
    """
    if value != of_other:
        raise ConfigError(f"{name} is {value!r} and {other} {of_other!r}, which are one setting: say it once")
