"""Entry of ``sona``: turns every error into one line on stderr and an exit status."""

from __future__ import annotations

import os
import sys
from pathlib import Path

THREADS = ("OMP", "OPENBLAS", "MKL", "BLIS", "NUMEXPR")
"""Libraries whose NAME_NUM_THREADS says how many threads they start when they are loaded."""


def main() -> None:
    """Run the command line; exit status 0 done, 1 failed, 2 wrong usage."""
    from sona_pg.errors import ConfigError, SonaError

    if sys.argv[1:2] == ["worker"]:
        # One process per loop, one thread each: threads of several workers would spin against each other.
        for library in THREADS:
            os.environ.setdefault(f"{library}_NUM_THREADS", "1")
    try:
        read_password()
        # Imported here, since the kernels refuse a wrong SONA_SIMD when they are loaded.
        from sona_pg.cli.app import app

        app(prog_name="sona")
    except SonaError as error:
        print(f"sona: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ConfigError) else 1)
    except BrokenPipeError:
        # The reader of stdout went away; nothing is left to say to it.
        sys.stderr.close()
        sys.exit(1)


def read_password() -> None:
    """Set PGPASSWORD, which libpq takes, to the first line of the file that PGPASSWORD_FILE names, unless it is set.

    Raises
    ------
    ConfigError
        If the file cannot be read, or its first line is empty.
    """
    from sona_pg.errors import ConfigError

    file = os.environ.get("PGPASSWORD_FILE")
    if not file or os.environ.get("PGPASSWORD"):
        return
    try:
        password = Path(file).read_text(encoding="utf-8").split("\n", 1)[0].removesuffix("\r")
    except (OSError, UnicodeDecodeError) as cause:
        raise ConfigError(
            f"PGPASSWORD_FILE cannot be read ({cause}): name a file in UTF-8 that user {os.getuid()} may read"
        ) from cause
    if not password or "\0" in password:
        raise ConfigError(f"the first line of {file} is no password, as PGPASSWORD_FILE says: write it there")
    os.environ["PGPASSWORD"] = password
