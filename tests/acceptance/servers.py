"""What chaos does to a server."""

from __future__ import annotations

from sona_pg.store.server import EmbeddedServer
from sona_pg.store.server_account import account_of, binaries_of, run_as


def stop_without_warning(server: EmbeddedServer) -> None:
    """End a server at once, as a power cut would: what was not committed is lost, and it recovers at its next start."""
    data = server.directory / "data"
    command = [str(binaries_of(server.major) / "pg_ctl"), "stop", "-D", str(data), "-m", "immediate"]
    stopped = run_as(account_of(data), command)
    assert stopped.returncode == 0, stopped.stdout
