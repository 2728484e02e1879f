"""Settings of the slow loops on the command line: option, then environment, then the default of `sona_pg.config`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple, TypeVar

import click

from sona_pg.config import (
    BackgroundConfig,
    BaseTrainingConfig,
    ConsolidationConfig,
    DeepLoopConfig,
    DreamConfig,
    GateConfig,
    PatternConfig,
    ShardConfig,
    SonaConfig,
)
from sona_pg.config.sona import PART_TYPES
from sona_pg.config.sources import of_process
from sona_pg.engine import cycles
from sona_pg.errors import ConfigError
from sona_pg.loops.catalog import LOOPS
from sona_pg.loops.cycle import Loop

Value = int | float | str
Kind = (
    type[BackgroundConfig]
    | type[PatternConfig]
    | type[BaseTrainingConfig]
    | type[GateConfig]
    | type[DeepLoopConfig]
    | type[ConsolidationConfig]
    | type[DreamConfig]
    | type[ShardConfig]
)
Command = TypeVar("Command", bound=Callable[..., object])


@dataclass(frozen=True, slots=True)
class Setting:
    """A field of a loop's configuration that operators set.

    Parameters
    ----------
    config
        Its class, which has the default and refuses what is out of range.
    field
        Its name there, and that of the option.
    help
        What the option says of it.
    """

    config: Kind
    field: str
    help: str

    @property
    def option(self) -> str:
        """As it is given on the command line."""
        return "--" + self.field.replace("_", "-")

    @property
    def default(self) -> Value:
        """As the configuration has it."""
        value = getattr(self.config(), self.field)
        assert isinstance(value, int | float | str)
        return value

    def variable(self, loop: str) -> str:
        """The environment variable that is asked where the option is not given."""
        return f"SONA_{loop}_{self.field}".upper()


SETTINGS: Mapping[str, Sequence[Setting]] = {
    "background": (
        Setting(BackgroundConfig, "minimum", "New outcomes without which a cycle is skipped."),
        Setting(BackgroundConfig, "max_trajectories", "Outcomes of which patterns are made, the newest."),
        Setting(BackgroundConfig, "max_vector_bytes", "Memory for their queries; fewer are read where it takes more."),
        Setting(PatternConfig, "k_clusters", "Clusters of a cycle, at most."),
        Setting(PatternConfig, "min_cluster_size", "A cluster of fewer outcomes begins no pattern."),
        Setting(PatternConfig, "match_threshold", "Cosine from which a cluster may be a pattern that is there."),
        Setting(PatternConfig, "merge_threshold", "Patterns with a cosine above this become one."),
        Setting(PatternConfig, "half_life_seconds", "Time in which the weight of a pattern halves."),
        Setting(PatternConfig, "quality_threshold", "Mean quality below which a pattern may be pruned."),
        Setting(PatternConfig, "prune_accesses", "One that was found so often is not pruned, whatever its quality."),
        Setting(PatternConfig, "prune_age_seconds", "Others are, once they were neither fed nor found for this long."),
        Setting(
            GateConfig,
            "withheld",
            "Share of outcomes that judges a base; at 0 none is published, all are learned.",
        ),
        Setting(BaseTrainingConfig, "rank", "Rank of the base."),
        Setting(BaseTrainingConfig, "epochs", "How often a judged list is learned in a cycle."),
        Setting(BaseTrainingConfig, "reservoir", "Judged lists that are learned again in every cycle."),
        Setting(BackgroundConfig, "shard_rows", "Of more outcomes several parts are made, for several processes."),
        Setting(ShardConfig, "processes", "Processes that these are read and clustered by; 1: the worker itself."),
        Setting(ShardConfig, "scheduler", "Address of a Dask scheduler whose workers do it instead, tcp://HOST:PORT."),
        Setting(ShardConfig, "without_scheduler", "What is done while it cannot be reached: 'fail' or 'local'."),
    ),
    "deep": (
        Setting(DeepLoopConfig, "dreams_per_cycle", "Dreams of a cycle, at least; with 0 there are none."),
        Setting(DeepLoopConfig, "dreams_per_node", "In a larger graph so many for each node."),
        Setting(DeepLoopConfig, "most_dreams", "But no more than this."),
        Setting(DeepLoopConfig, "phi_threshold", "Integration from which a dream may connect what it met."),
        Setting(DeepLoopConfig, "consolidation_threshold", "Value of both ends from which an edge is strengthened."),
        Setting(DeepLoopConfig, "max_cycle_seconds", "Work that would begin later is left to the next cycle."),
        Setting(DeepLoopConfig, "max_vector_bytes", "Memory for embeddings; fewer are compared where it takes more."),
        Setting(DeepLoopConfig, "keep_archive_seconds", "For so long what was removed can be restored."),
        Setting(DreamConfig, "max_edges", "Edges by dreams that stand at once, at most."),
        Setting(DreamConfig, "edge_weight", "Weight of an edge by a dream."),
        Setting(ConsolidationConfig, "half_life_seconds", "Time in which an edge that is not strengthened halves."),
        Setting(ConsolidationConfig, "creative_half_life_seconds", "Time in which an edge by a dream halves."),
        Setting(ConsolidationConfig, "prune_weight", "An edge below this weight goes to the archive."),
        Setting(ConsolidationConfig, "merge_threshold", "Nodes of one kind with a cosine above this become one."),
        Setting(ConsolidationConfig, "prune_value", "A node below this value may go to the archive."),
        Setting(ConsolidationConfig, "prune_accesses", "One that was used so often does not, whatever its value."),
        Setting(ConsolidationConfig, "prune_age_seconds", "Others do, once they were not used for this long."),
    ),
}
"""By loop what may be set; no two fields of a loop have one name."""


def settings_options(loop: str) -> Callable[[Command], Command]:
    """A decorator that gives a command the options of a loop's settings, and the file that says others."""

    def decorate(command: Command) -> Command:
        for setting in reversed(SETTINGS.get(loop, ())):
            command = click.option(
                setting.option,
                type=type(setting.default),
                default=setting.default,
                show_default=True,
                envvar=setting.variable(loop),
                show_envvar=True,
                help=setting.help,
            )(command)
        return config_option(partial(of_config, loop))(command)

    return decorate


class ProcessSettings(NamedTuple):
    """What a process is told by its environment, and by the file that it was given."""

    path: str | None
    config: SonaConfig


def config_option(defaults: Callable[[SonaConfig], Mapping[str, Value]]) -> Callable[[Command], Command]:
    """A decorator that gives a command the settings of its environment and of a file.

    Parameters
    ----------
    defaults
        By field, what they say of the other options where those are not given.
    """

    def read(context: click.Context, _: click.Parameter, path: str | None) -> ProcessSettings:
        config = of_process(path)
        context.default_map = {**(context.default_map or {}), **defaults(config)}
        return ProcessSettings(path, config)

    return click.option(
        "--config",
        metavar="FILE",
        # Before the others: it says what they are where they are not given.
        is_eager=True,
        callback=read,
        help="A file of settings, see docs/configuration.md; options and variables come before it.",
    )


def of_config(loop: str, config: SonaConfig) -> dict[str, Value]:
    """The settings of a loop as a configuration has them."""
    config = config.settled
    return {
        setting.field: getattr(getattr(config, _FIELDS[setting.config]), setting.field)
        for setting in SETTINGS.get(loop, ())
    }


_FIELDS = {kind: field for field, kind in PART_TYPES.items()}


def as_options(loop: str, given: Mapping[str, Value]) -> list[str]:
    """The options that give another process the same settings of a loop."""
    return [f"{setting.option}={given[setting.field]}" for setting in SETTINGS.get(loop, ())]


def loop_of(name: str, given: Mapping[str, Value], config: SonaConfig | None = None) -> Loop:
    """A loop with its settings.

    Parameters
    ----------
    name
        Of the loop.
    given
        By field, the settings that operators may give.
    config
        All others; the defaults if None.

    Raises
    ------
    ConfigError
        If a setting is out of range, or there is no such loop.
    """
    if name not in LOOPS:
        there = " or ".join(["instant", *LOOPS])
        raise ConfigError(f"this version of sona-pg has no loop {name!r}, expected {there}")
    # What has several names is under the first of them, that of an option.
    config = (SonaConfig() if config is None else config).settled
    values: dict[Kind, dict[str, Value]] = {}
    for setting in SETTINGS.get(name, ()):
        values.setdefault(setting.config, {})[setting.field] = given[setting.field]
    changes: dict[str, object] = {}
    for kind, own in values.items():
        changes[_FIELDS[kind]] = replace(getattr(config, _FIELDS[kind]), **own)
    return cycles.loop_of(name, config.replace(**changes)) if name in SETTINGS else LOOPS[name]
