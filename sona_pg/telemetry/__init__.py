"""What a worker process says of itself: which cycle a log line belongs to, metrics, and whether it is healthy.

The libraries behind the metrics are imported with `sona_pg.telemetry.served`, by whoever wants them, and not here.
"""

from sona_pg.telemetry.progress import Cycle, NoTelemetry, current_cycle

__all__ = ["Cycle", "NoTelemetry", "current_cycle"]
