"""Environment variables that begin with ``SONA_``: which there are, and what they say of an engine's settings."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import fields
from difflib import get_close_matches
from typing import Any

from sona_pg.config.sona import BACKGROUND_PARTS, DEEP_PARTS, PART_TYPES, SonaConfig
from sona_pg.errors import ConfigError

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
"""By what variables begin with, the parts whose settings they name."""

PRESET = "SONA_PRESET"

OTHERS = (
    # Of every process: logs, and the code of the kernels.
    "SONA_LOG",
    "SONA_SIMD",
    # Of docker-compose.yml.
    "SONA_DB_CPUS",
    "SONA_DB_MEMORY",
    "SONA_DB_PASSWORD",
    "SONA_DB_PASSWORD_FILE",
    "SONA_DB_PORT",
    "SONA_GRAFANA_PASSWORD",
    "SONA_GRAFANA_PASSWORD_FILE",
    "SONA_GRAFANA_PORT",
    "SONA_PROMETHEUS_PORT",
    "SONA_USER_PASSWORD",
    "SONA_USER_PASSWORD_FILE",
    # Of benchmarks and tests.
    "SONA_DATA",
    "SONA_FUZZ",
    "SONA_FUZZ_SEED",
)
"""What is known besides the settings of an engine; tests have theirs under `OF_TESTS`."""

OF_TESTS = "SONA_TEST_"

_OF_SERVICES = re.compile(r"_SERVICE_(HOST|PORT(_[A-Z0-9_]+)?)$|_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?$")
"""How Kubernetes calls what it says in every container of a service, whose name may begin with sona; NAME_PORT, too."""

Reader = Callable[[str], object]


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


def said_by(environment: Mapping[str, str], *, is_ours: bool) -> dict[str, Any]:
    """The settings that variables name, as a file has them: parts are tables.

    Parameters
    ----------
    environment
        Texts by name.
    is_ours
        Whether the process is one of ``sona``, for which nobody else names variables: everything that begins with
        ``SONA_`` is known then, or refused. In an application only what is nearly a setting is.

    Raises
    ------
    ConfigError
        If a variable is unknown, or what it says is of another type.
    """
    known = variables()
    of_engine = [PRESET, *(variable for variable, (_, setting) in known.items() if setting is None)]
    found: dict[str, Any] = {}
    for variable, text in environment.items():
        if not text:
            continue
        if variable == PRESET:
            found["preset"] = text
        elif variable in known:
            field, setting = known[variable]
            if setting is not None:
                part = found.setdefault(field, {})
                part[setting] = _read(_reader(PART_TYPES[field], setting), variable, text)
            else:
                mode = field == "learning_loops"
                found[field] = text if mode else _read(_reader(SonaConfig, field), variable, text)
        elif _is_wrong(variable, text, of_engine, is_ours):
            near = get_close_matches(variable, [*known, PRESET, *OTHERS], 1)
            way_out = f"did you mean {near[0]}?" if near else "docs/configuration.md has their names, leave it out"
            raise ConfigError(f"there is no setting {variable!r} that a variable sets: {way_out}")
    return found


def _is_wrong(variable: str, text: str, of_engine: list[str], is_ours: bool) -> bool:
    """Whether a variable that is no setting was meant for one."""
    if not variable.startswith("SONA_") or variable in OTHERS or variable.startswith(OF_TESTS):
        return False
    if _OF_SERVICES.search(variable) or (variable.endswith("_PORT") and "://" in text):
        return False
    if is_ours or variable.startswith(tuple(PREFIXES)):
        return True
    return bool(get_close_matches(variable, of_engine, 1, cutoff=0.75))


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
