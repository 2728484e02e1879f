"""Settings from a file and from the environment: what is written there is a setting, or refused."""

from __future__ import annotations

import os
import tomllib
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import fields
from difflib import get_close_matches
from os import PathLike
from typing import Any

from sona_pg.config.checks import check_whole, refuse_unless_same
from sona_pg.config.limits import MAX_DIM
from sona_pg.config.sona import (
    BACKGROUND_PARTS,
    DEEP_PARTS,
    PART_TYPES,
    SAME,
    LearningMode,
    Name,
    SonaConfig,
    unknown_setting,
)
from sona_pg.errors import ConfigError
from sona_pg.files import read_file

PREFIXES: Mapping[str, tuple[str, ...]] = {
    "SONA_INSTANT_": ("instant_config",),
    "SONA_ADAPTER_": ("adapter_config",),
    "SONA_STRATEGY_": ("strategy_config",),
    "SONA_EVIDENCE_": ("evidence_config",),
    "SONA_SPACE_": ("space_config",),
    "SONA_STORE_": ("store_config",),
    "SONA_EMBEDDING_": ("embedding_config",),
    "SONA_LORA_": ("lora_config",),
    "SONA_BACKGROUND_": BACKGROUND_PARTS,
    "SONA_DEEP_": DEEP_PARTS,
}
"""By what variables begin with, the parts whose settings they name; workers know those of the last two, too."""


def from_toml(path: str | PathLike[str]) -> SonaConfig:
    """See `SonaConfig.from_toml`."""
    try:
        given = tomllib.loads(read_file(path).decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as cause:
        raise ConfigError(f"{str(path)!r} is no TOML: {cause}") from cause
    except RecursionError as cause:
        raise ConfigError(f"{str(path)!r} is nested too deeply") from cause
    return _made(given, str(path))


def _made(given: Mapping[str, Any], source: str) -> SonaConfig:
    known = [each.name for each in fields(SonaConfig)]
    values: dict[str, Any] = {}
    name = given.get("preset")
    config = SonaConfig() if name is None else SonaConfig.preset(name, _dim(given))
    for key, value in given.items():
        if key == "preset":
            continue
        if key not in known:
            raise unknown_setting(key, [*known, "preset"], f" in {source}")
        if key in PART_TYPES:
            if not isinstance(value, Mapping):
                raise ConfigError(f"{key} in {source} is {value!r}, expected a table of settings")
            values[key] = _part(key, value, config, source)
        elif key == "learning_loops":
            values[key] = _mode(value)
        else:
            values[key] = value
    config = config.replace(**values)
    for names in (*SAME, _DIMENSIONS):
        # Values that are the defaults, too: that they are said is known here alone.
        said = [(str(name), value) for name in names if (value := _said(given, name)) is not None]
        for other in said[1:]:
            refuse_unless_same(*said[0], *other)
    return config


_DIMENSIONS = (Name("embedding_dim"), Name("hidden_dim"), Name("pattern_config", "embedding_dim"))


def _said(given: Mapping[str, Any], name: Name) -> object:
    """What is said of a setting under this name; None if nothing is."""
    part = given.get(name.field)
    return part if name.setting is None or part is None else part.get(name.setting)


def _dim(given: Mapping[str, Any]) -> int | None:
    """The dimension that is said beside a preset, whose ranks it bounds."""
    for name in ("embedding_dim", "hidden_dim"):
        if given.get(name) is not None:
            check_whole(name, given[name], 1, MAX_DIM)
            return int(given[name])
    return None


def _part(key: str, given: Mapping[str, Any], config: SonaConfig, source: str) -> object:
    """A part with the settings that are given; the others are as they were."""
    kind = PART_TYPES[key]
    known = [each.name for each in fields(kind)]
    for name in given:
        if name not in known:
            raise unknown_setting(name, known, f" of {key} in {source}")
    before = getattr(config, key)
    rest = {} if before is None else {name: getattr(before, name) for name in known}
    return kind(**{**rest, **{name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}})


def _mode(given: object) -> LearningMode:
    for mode in LearningMode:
        if given == mode.value:
            return mode
    raise ConfigError(f"learning_loops is {given!r}, expected one of {', '.join(mode.value for mode in LearningMode)}")


# ---- environment -----------------------------------------------------------------------------------------------------


def variables() -> dict[str, tuple[str, str | None]]:
    """By environment variable the field that it sets, and the setting of it where it is a part."""
    found: dict[str, tuple[str, str | None]] = {}
    for each in fields(SonaConfig):
        if each.name not in PART_TYPES:
            found[f"SONA_{each.name}".upper()] = (each.name, None)
    for prefix, parts in PREFIXES.items():
        for part in parts:
            for each in fields(PART_TYPES[part]):
                # What several parts call by one name is that of the first; of the others it is set in a file alone.
                if _reader(PART_TYPES[part], each.name) is not None:
                    found.setdefault(f"{prefix}{each.name}".upper(), (part, each.name))
    return found


def from_environment(environment: Mapping[str, str] | None = None) -> SonaConfig:
    """See `SonaConfig.from_environment`."""
    given = os.environ if environment is None else environment
    if not isinstance(given, Mapping) or not all(isinstance(each, str) for pair in given.items() for each in pair):
        raise ConfigError(f"environment is {environment!r}, expected texts by name")
    known = variables()
    # Others begin with SONA_ as well, of the server, of dashboards: what is nearly a setting is meant for one.
    of_engine = [variable for variable, (_, setting) in known.items() if setting is None]
    values: dict[str, Any] = {}
    parts: dict[str, dict[str, Any]] = {}
    for variable, text in given.items():
        if variable == "SONA_PRESET" or not text:
            continue
        if variable not in known:
            is_near = variable.startswith("SONA_") and not variable.startswith(_OF_TESTS)
            if any(variable.startswith(prefix) for prefix in PREFIXES) or (
                is_near and get_close_matches(variable, of_engine, 1, cutoff=0.75)
            ):
                raise unknown_setting(variable, list(known), " that a variable sets")
            continue
        field, setting = known[variable]
        if setting is None:
            values[field] = text if field == "learning_loops" else _read(_reader(SonaConfig, field), variable, text)
        else:
            parts.setdefault(field, {})[setting] = _read(_reader(PART_TYPES[field], setting), variable, text)
    preset = {"preset": name} if (name := given.get("SONA_PRESET")) else {}
    return _made({**preset, **values, **parts}, "the environment")


_OF_TESTS = ("SONA_TEST_", "SONA_FUZZ")

Reader = Callable[[str], object]


def _flag(text: str) -> bool:
    try:
        return {"true": True, "1": True, "false": False, "0": False}[text.strip().lower()]
    except KeyError as cause:
        raise ValueError("neither true nor false") from cause


_READERS: Mapping[type, Reader] = {int: int, float: float, str: str, bool: _flag}


def _reader(kind: type, name: str) -> Reader | None:
    """What makes a value of a text, by the type that the setting has; None where a text is no way to say it."""
    hint = typing.get_type_hints(kind)[name]
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    simple = [option for option in options if option in _READERS]
    return _READERS[simple[0]] if simple else None


def _read(reader: Reader | None, variable: str, text: str) -> object:
    assert reader is not None
    try:
        return reader(text)
    except ValueError as cause:
        raise ConfigError(f"{variable} is {text!r}: {cause}") from cause
