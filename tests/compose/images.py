"""Images for a machine without a registry: stand-ins of the same names, made of Debian's packages.

What is there already, or can be pulled, is left as it is.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

STANDINS = Path(__file__).parent / "standins"
ROOT = Path(__file__).resolve().parents[2]

DEBIAN = "debian:trixie-slim"
PYTHON = "python:3.13-slim"
DATABASE = "pgvector/pgvector:pg17"
PROMETHEUS = "prom/prometheus:v2.53.3"
RECIPES = {PYTHON: "python", DATABASE: "pgvector", PROMETHEUS: "prometheus"}
SONA = "sona-pg"
MIRROR = os.environ.get("DEBIAN_MIRROR", "http://deb.debian.org/debian")
PULL_SECONDS = 300
SLIM = "".join(f"path-exclude /usr/share/{folder}/*\n" for folder in ("doc", "man", "locale"))
OLD_MIRROR = 'Acquire::Check-Valid-Until "false";\nAcquire::Check-Date "false";\n'
"""For mirrors, and machines, that stand still at a day."""


def docker(*arguments: str, check: bool = True, **keywords: object) -> str:
    """What ``docker …`` prints, or an error with all that it said."""
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False, **keywords)  # type: ignore[call-overload]
    if check and done.returncode:
        raise RuntimeError(f"docker {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return str(done.stdout).strip()


def exists(image: str) -> bool:
    """Whether the engine has an image."""
    return bool(docker("images", "--quiet", image))


def ensure_images() -> list[str]:
    """See that all base images are there; gives those that are stand-ins.

    Raises
    ------
    RuntimeError
        If one is not there, cannot be pulled, and cannot be made.
    """
    made = []
    for image, recipe in RECIPES.items():
        if not exists(image) and not _pull(image):
            make_standin(image, recipe)
        if docker("image", "inspect", "--format", "{{index .Config.Labels `sona.standin`}}", image) == "yes":
            made.append(image)
    return made


def _pull(image: str) -> bool:
    try:
        return subprocess.run(["docker", "pull", image], capture_output=True, timeout=PULL_SECONDS).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def make_standin(image: str, recipe: str) -> None:
    """Build the stand-in for an image from its recipe in standins/."""
    if not exists(DEBIAN) and not _pull(DEBIAN):
        make_debian()
    with tempfile.TemporaryDirectory() as folder:
        context = Path(folder)
        for file in STANDINS.iterdir():
            shutil.copy(file, context)
        trusted = Path("/etc/ssl/certs/ca-certificates.crt")
        (context / trusted.name).write_bytes(trusted.read_bytes() if trusted.exists() else b"")
        command = ["build", "--network", "host", "--label", "sona.standin=yes", "--tag", image]
        docker(*command, "--file", str(context / f"{recipe}.Dockerfile"), str(context))


def make_debian() -> None:
    """The image of Debian's smallest system, by debootstrap."""
    with tempfile.TemporaryDirectory() as temporary:
        system = Path(temporary) / "system"
        command = ["debootstrap", "--variant=minbase", "--include=ca-certificates", "trixie", str(system), MIRROR]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr}")
        # As Debian's own slim images.
        for folder in ("usr/share/doc", "usr/share/man", "usr/share/locale", "var/cache/apt", "var/lib/apt/lists"):
            shutil.rmtree(system / folder)
            (system / folder).mkdir()
        (system / "etc/dpkg/dpkg.cfg.d/slim").write_text(SLIM)
        (system / "etc/apt/apt.conf.d/99dates").write_text(OLD_MIRROR)
        packed = subprocess.Popen(["tar", "-C", str(system), "-c", "."], stdout=subprocess.PIPE)
        docker("import", "-", DEBIAN, stdin=packed.stdout)
        if packed.wait():
            raise RuntimeError("the system of debootstrap could not be packed")


def build() -> None:
    """The image of sona_pg itself; on the host's network, as the engine may have no other way out."""
    docker("build", "--network", "host", "--tag", SONA, str(ROOT))


def megabytes(image: str) -> float:
    """Size of an image, its base included."""
    return int(docker("image", "inspect", "--format", "{{.Size}}", image)) / 1e6
