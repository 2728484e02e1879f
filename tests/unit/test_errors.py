"""The errors: one root, typed, and with a message also where none is given."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest

import sona_pg
from sona_pg import errors
from sona_pg.errors import (
    ConfigError,
    DatabaseError,
    DimensionMismatch,
    InvalidInput,
    IoError,
    LearningError,
    MemoryGraphError,
    PatternExtractionError,
    SonaError,
)

EVERY = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, SonaError)]
PLAIN = [each for each in EVERY if each is not DimensionMismatch]


def name_of(error: SonaError) -> str:
    return type(error).__name__


def test_there_is_one_root() -> None:
    for each in EVERY:
        assert issubclass(each, SonaError)
    assert issubclass(SonaError, Exception)
    families = [ConfigError, IoError, DatabaseError, PatternExtractionError, LearningError, MemoryGraphError]
    for family in [*families, DimensionMismatch]:
        assert SonaError in family.__bases__


def test_errors_are_also_what_python_calls_them() -> None:
    assert issubclass(IoError, OSError)
    for each in (ConfigError, InvalidInput, DimensionMismatch):
        assert issubclass(each, ValueError)
    assert issubclass(InvalidInput, LearningError)


@pytest.mark.parametrize("name", ["EmbedderMismatch"])
def test_settings_that_do_not_fit_are_config_errors(name: str) -> None:
    assert issubclass(getattr(errors, name), ConfigError)


@pytest.mark.parametrize(
    "name",
    [
        *["DatabaseUnavailable", "ServerError", "UnsupportedServer", "PermissionDenied", "SchemaMismatch"],
        "UnknownSpace",
    ],
)
def test_what_the_database_refuses_is_a_database_error(name: str) -> None:
    assert issubclass(getattr(errors, name), DatabaseError)


@pytest.mark.parametrize("each", PLAIN)
def test_default_message_is_the_docstring(each: type[SonaError]) -> None:
    assert str(each()) == (each.__doc__ or "").strip().splitlines()[0]
    assert str(each()).endswith(".")
    assert str(each("found this")) == "found this"


def test_error_without_a_docstring_has_a_message_too() -> None:
    class OwnError(SonaError):
        pass

    assert str(OwnError("found this")) == "found this"
    assert str(OwnError())


def test_dimension_mismatch_says_what_was_found_and_the_way_out() -> None:
    error = DimensionMismatch(384, 256, "query embedding")
    assert (error.expected, error.actual) == (384, 256)
    assert str(error).startswith("query embedding has 256 dimensions, expected 384: ")
    assert "create a space of that dimension" in str(error)
    assert str(DimensionMismatch(3, 2)).startswith("vector has 2 dimensions, expected 3")
    with pytest.raises(ValueError, match="has 2 dimensions"):
        raise DimensionMismatch(3, 2)


@pytest.mark.parametrize(
    "error", [*(each("found this") for each in PLAIN), DimensionMismatch(3, 2, "query")], ids=name_of
)
def test_errors_reach_another_process_as_they_are(error: SonaError) -> None:
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is type(error)
        assert str(again) == str(error)
        assert vars(again) == vars(error)


def test_every_error_can_be_imported_from_the_package() -> None:
    for each in EVERY:
        assert getattr(sona_pg, each.__name__) is each
        assert each.__name__ in sona_pg.__all__
