"""Settings from a file and from the environment: what is written there is a setting, or refused."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from os import PathLike
from typing import Any

from sona_pg.config.checks import check_whole, refuse_unless_same
from sona_pg.config.limits import MAX_DIM
from sona_pg.config.sona import (
    AS_DECLARED,
    PART_TYPES,
    SAME,
    LearningMode,
    Name,
    SonaConfig,
    unknown_setting,
)
from sona_pg.config.variables import said_by
from sona_pg.errors import ConfigError
from sona_pg.files import read_file


def from_toml(path: str | PathLike[str]) -> SonaConfig:
    """See `SonaConfig.from_toml`."""
    return _made(_read_toml(path), str(path))


def _read_toml(path: str | PathLike[str]) -> dict[str, Any]:
    try:
        return tomllib.loads(read_file(path).decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as cause:
        raise ConfigError(f"{str(path)!r} is no TOML: {cause}") from cause
    except RecursionError as cause:
        raise ConfigError(f"{str(path)!r} is nested too deeply") from cause


def _made(given: Mapping[str, Any], source: str) -> SonaConfig:
    known = [each.name for each in fields(SonaConfig)]
    values: dict[str, Any] = {}
    name = given.get("preset")
    config = SonaConfig() if name is None else SonaConfig.preset(name, _dim(given))
    for names in SAME:
        if any(_said(given, name) is not None for name in names):
            # What is said comes before the preset, which may have it under another name.
            config = config.replace(**{name.field: name.unsaid(config) for name in names})
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
    if name.setting is None:
        return part
    if not isinstance(part, Mapping):
        return None
    # What is None by default says all of its settings as soon as it is there.
    default = getattr(PART_TYPES[name.field](), name.setting) if name.field in AS_DECLARED else None
    return part.get(name.setting, default)


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


def from_environment(environment: Mapping[str, str] | None = None) -> SonaConfig:
    """See `SonaConfig.from_environment`."""
    given = os.environ if environment is None else environment
    if not isinstance(given, Mapping) or not all(isinstance(each, str) for pair in given.items() for each in pair):
        raise ConfigError(f"environment is {environment!r}, expected texts by name")
    return _made(said_by(given, is_ours=False), _ENVIRONMENT)


def of_process(path: str | PathLike[str] | None) -> SonaConfig:
    """Settings of a process of ``sona``: those of a file, where there is one, and before them those of its environment.

    Raises
    ------
    IoError
        If the file cannot be read.
    ConfigError
        If it is no TOML, a setting or a variable that begins with ``SONA_`` is unknown, or refused; says which.
    """
    said = said_by(os.environ, is_ours=True)
    if path is None:
        return _made(said, _ENVIRONMENT)
    given = _read_toml(path)
    _made(given, str(path))  # what is wrong in it is wrong, whatever variables say
    for names in (*SAME, _DIMENSIONS):
        if any(_said(said, name) is not None for name in names):
            # A variable comes before the file, whatever the setting is called there.
            for name in names:
                _forget(given, name)
    for field, value in said.items():
        given[field] = {**given.get(field, {}), **value} if isinstance(value, Mapping) else value
    return _made(given, f"{path} and the environment")


def _forget(given: dict[str, Any], name: Name) -> None:
    if name.setting is None or name.field in AS_DECLARED:
        given.pop(name.field, None)
    elif name.field in given:
        given[name.field] = {setting: value for setting, value in given[name.field].items() if setting != name.setting}


_ENVIRONMENT = "the environment"
