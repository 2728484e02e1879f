"""The metrics: their names, and where each comes from.

Labels are `space`, of which there are at most `TelemetryConfig.max_spaces` and one without a name, and `loop`, of
which there are as many as the code names. A scrape has at most 18 series for every space and 20 for every loop.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

from sona_pg.telemetry.database import Look

BUCKETS_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0, 3600.0)
"""From one small flush to a cycle that takes an hour."""

PROCESS = {
    "sona_worker_info": "Always 1; the worker, its loop and the version of sona-pg.",
    "sona_learned_total": "Outcome events that this process has written to the ledger.",
    "sona_refused_total": "Trajectories and scores that this process has refused for what they are.",
    "sona_failures_total": "Cycles of this process that failed.",
    "sona_failing": "1 while what was tried last in the space has failed.",
    "sona_cycle_seconds": "How long cycles of this process took, those that failed as well.",
    "sona_last_success_timestamp_seconds": "When a cycle of this process last ended well.",
    "sona_last_turn_timestamp_seconds": "When the main loop last turned.",
    "sona_database_up": "1 if the database answers this process, 0 if not.",
}
"""What the process knows by itself: there whether the database is or not."""

DATABASE = {
    "sona_spaces": "Spaces that this worker's role sees.",
    "sona_pending": "Trajectories that wait for the instant worker.",
    "sona_pending_since_timestamp_seconds": "Since when the trajectory in front waits.",
    "sona_unweighed": "Ledger entries that the strategist has not taken in.",
    "sona_events_learned": "Outcome events that changed a weight; a deploy goes back, too.",
    "sona_last_learned_timestamp_seconds": "When the space was last learned in.",
    "sona_version": "The last published version; 0 for none.",
    "sona_version_timestamp_seconds": "When it was published.",
    "sona_dropped_total": "Trajectories and scores that processes could not keep, and have counted in sona.errors.",
    "sona_errors_last_day": "Entries in sona.errors of the last day.",
    "sona_lift": "What answers are worth above those of the control arm.",
    "sona_lift_lower": "Lower end of the lift, at 95 %.",
    "sona_lift_upper": "Upper end of the lift, at 95 %.",
    "sona_spool_bytes": "What waits in the spool of this machine.",
    "sona_spool_oldest_timestamp_seconds": "When the oldest file in the spool of this machine was begun.",
}
"""What lies in the database and in the spool; missing while the database is away."""

HELP = PROCESS | DATABASE


@dataclass(slots=True)
class Histogram:
    """Durations, by bucket."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS_SECONDS) + 1))
    total_seconds: float = 0.0

    def add(self, seconds: float) -> None:
        """Count a duration."""
        place = next((i for i, bound in enumerate(BUCKETS_SECONDS) if seconds <= bound), len(BUCKETS_SECONDS))
        self.counts[place] += 1
        self.total_seconds += seconds

    def buckets(self) -> list[tuple[str, float]]:
        """Bounds, and how many lie below each."""
        found, below = [], 0
        for bound, count in zip((*BUCKETS_SECONDS, None), self.counts, strict=True):
            below += count
            found.append(("+Inf" if bound is None else str(bound), float(below)))
        return found


def gauge(name: str, labels: Sequence[str] = (), samples: Mapping[tuple[str, ...], float] | None = None) -> Metric:
    """A gauge with its samples, by the values of its labels."""
    family = GaugeMetricFamily(name, HELP[name], labels=labels)
    for values, value in (samples or {}).items():
        family.add_metric(values, value)
    return family


def counter(name: str, labels: Sequence[str], samples: Mapping[tuple[str, ...], float]) -> Metric:
    """A counter with its samples, by the values of its labels."""
    family = CounterMetricFamily(name.removesuffix("_total"), HELP[name], labels=labels)
    for values, value in samples.items():
        family.add_metric(values, value)
    return family


def histogram(name: str, label: str, samples: Mapping[str, Histogram]) -> Metric:
    """A histogram for every value of a label."""
    family = HistogramMetricFamily(name, HELP[name], labels=(label,))
    for value, found in samples.items():
        family.add_metric((value,), found.buckets(), found.total_seconds)
    return family


def database_metrics(look: Look) -> Iterator[Metric]:
    """What was found in the database and in the spool."""
    label = ("space",)
    yield gauge("sona_spaces", samples={} if look.total is None else {(): look.total})
    found = {(each.space,): each for each in look.spaces}
    yield gauge("sona_pending", label, {key: each.pending for key, each in found.items()})
    yield _moments("sona_pending_since_timestamp_seconds", {key: each.pending_since for key, each in found.items()})
    yield gauge("sona_unweighed", label, {key: each.unweighed for key, each in found.items()})
    yield gauge("sona_events_learned", label, {key: each.learned for key, each in found.items()})
    yield _moments("sona_last_learned_timestamp_seconds", {key: each.last_learned_at for key, each in found.items()})
    yield gauge("sona_version", label, {key: each.version for key, each in found.items()})
    yield _moments("sona_version_timestamp_seconds", {key: each.version_at for key, each in found.items()})
    yield counter("sona_dropped_total", label, {key: each.dropped for key, each in found.items()})
    yield gauge("sona_errors_last_day", label, {key: each.errors for key, each in found.items()})
    yield gauge("sona_lift", label, {(space,): each.lift for space, each in look.lifts.items()})
    yield gauge("sona_lift_lower", label, {(space,): each.lower for space, each in look.lifts.items()})
    yield gauge("sona_lift_upper", label, {(space,): each.upper for space, each in look.lifts.items()})
    yield gauge("sona_spool_bytes", label, {(space,): held.bytes for space, held in look.spools.items()})
    yield _moments("sona_spool_oldest_timestamp_seconds", {(s,): held.oldest for s, held in look.spools.items()})


def _moments(name: str, samples: Mapping[tuple[str, ...], datetime | None]) -> Metric:
    return gauge(name, ("space",), {key: at.timestamp() for key, at in samples.items() if at is not None})
