"""A bank's patterns and verdicts as JSON, for files and for other databases."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields

from sona_pg.errors import DimensionMismatch, InvalidInput
from sona_pg.kernels import owned
from sona_pg.learning.patterns import LearnedPattern
from sona_pg.learning.verdicts import Verdict
from sona_pg.types import Json

FORMAT = "sona reasoning bank 1"

_TEXTS = ("best_strategy", "title", "description", "content")
_WHOLE = ("id", "cluster_size", "access_count", "support", "abstraction_level")


def bank_to_json(
    dim: int, patterns: Sequence[LearnedPattern], verdicts: Mapping[int, Mapping[str, Verdict]]
) -> dict[str, Json]:
    """Patterns, and their verdicts by id and parameter, as JSON."""
    return {
        "format": FORMAT,
        "dimension": dim,
        "patterns": [pattern_to_json(pattern) for pattern in patterns],
        "verdicts": {str(id): [verdict.to_json() for verdict in known.values()] for id, known in verdicts.items()},
    }


def bank_from_json(
    exported: Mapping[str, Json], dim: int
) -> tuple[list[LearnedPattern], dict[int, dict[str, Verdict]]]:
    """What `bank_to_json` gave.

    Raises
    ------
    DimensionMismatch
        If it is of another dimension.
    InvalidInput
        If it is something else, or damaged.
    """
    if not isinstance(exported, Mapping) or str(exported.get("format")) != FORMAT:
        raise InvalidInput(f"this is no export of a reasoning bank: expected the format {FORMAT!r}")
    actual = exported.get("dimension")
    if not isinstance(actual, int) or isinstance(actual, bool):
        raise InvalidInput(f"the exported bank has dimension {actual!r}, expected {dim}")
    if actual != dim:
        raise DimensionMismatch(dim, actual, "the exported bank")
    try:
        patterns = [pattern_from_json(stored, dim) for stored in exported["patterns"]]  # type: ignore
        verdicts = {
            int(id): {v.parameter: v for v in map(Verdict.from_json, stored)}  # type: ignore
            for id, stored in exported["verdicts"].items()  # type: ignore
        }
    except (InvalidInput, DimensionMismatch):
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as cause:
        raise InvalidInput(f"the exported bank is damaged ({cause!r})") from cause
    ids = {pattern.id for pattern in patterns}
    if len(ids) != len(patterns) or not set(verdicts) <= ids:
        raise InvalidInput("the exported bank is damaged: an id stands twice, or a verdict has no pattern")
    return patterns, verdicts


def pattern_to_json(pattern: LearnedPattern) -> dict[str, Json]:
    """A pattern as JSON."""
    stored: dict[str, Json] = asdict(pattern)
    return stored | {
        "centroid": [float(component) for component in pattern.centroid],
        "children": list(pattern.children),
    }


def pattern_from_json(stored: Mapping[str, Json], dim: int) -> LearnedPattern:
    """What `pattern_to_json` gave.

    Raises
    ------
    InvalidInput
        If it is something else.
    """
    parts: dict[str, object] = {}
    for each in fields(LearnedPattern):
        value = stored[each.name]
        if each.name == "centroid":
            parts[each.name] = owned(value, dim, "centroid")  # type: ignore[arg-type]
            if not parts[each.name].any():  # type: ignore[attr-defined]
                raise InvalidInput("a centroid of the exported bank is zero")
        elif each.name in _TEXTS:
            if not (value is None or isinstance(value, str)):
                raise InvalidInput(f"{each.name} of an exported pattern is {value!r}, expected a text or null")
            parts[each.name] = value
        elif each.name == "children":
            parts[each.name] = tuple(int(child) for child in value)  # type: ignore
        else:
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise InvalidInput(f"{each.name} of an exported pattern is {value!r}, expected a number")
            if each.name in _WHOLE and (value < 0 or value != int(value)):
                raise InvalidInput(f"{each.name} of an exported pattern is {value!r}, expected a whole number from 0")
            parts[each.name] = int(value) if each.name in _WHOLE else float(value)
    return LearnedPattern(**parts)  # type: ignore[arg-type]
