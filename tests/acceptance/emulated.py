"""The wheel on a CPU without AVX2: built, installed in an empty environment, and the kernels' tests run there.

``python -m tests.acceptance.emulated`` needs ``qemu-x86_64`` (Debian's package qemu-user), and exits with 1 where the
wheel chooses instructions that the CPU does not have, or a test fails.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ("pytest", "hypothesis", "networkx", "scikit-learn")

# Its truth is /proc/cpuinfo, which tells of the real CPU.
NOT_EMULATED = "tests/kernels/test_simd.py::test_available_is_what_the_cpu_says"

# What a test starts is to be emulated, too.
_RUN_TESTS = "import sys, pytest; sys.executable = {python!r}; sys.exit(pytest.main(sys.argv[1:]))"
_ASK = "from sona_pg import kernels; print(kernels.active(), *kernels.available())"


def main(arguments: Sequence[str] | None = None) -> int:
    """Build, install, and test."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", default="Nehalem", help="model of qemu-x86_64; Nehalem has SSE4.2 and no AVX")
    parser.add_argument("--expect", default="scalar", help="instruction set that is to be chosen on it")
    parser.add_argument("--wheel", type=Path, help="a wheel that was built before")
    options, pytest_options = parser.parse_known_args(arguments)
    emulator = shutil.which("qemu-x86_64") or shutil.which("qemu-x86_64-static")
    if emulator is None:
        parser.error("there is no qemu-x86_64: install it (Debian and Ubuntu: apt-get install qemu-user)")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        python = _emulated(place, [emulator, "-cpu", options.cpu], _installed(place, options.wheel))
        chosen = _run([python, "-c", _ASK], place).split()
        refused = subprocess.run(
            [python, "-c", _ASK], cwd=place, env=_environment("avx512"), capture_output=True, text=True, check=False
        )
        print(f"{options.cpu}: auto chooses {chosen[0]}, of {', '.join(chosen[1:])}", flush=True)
        if chosen[0] != options.expect or "this CPU only runs" not in refused.stderr:
            print(f"expected {options.expect}, and avx512 to be refused: {refused.stderr}", file=sys.stderr)
            return 1
        shutil.copytree(ROOT / "tests" / "kernels", place / "tests" / "kernels")
        (place / "tests" / "__init__.py").touch()
        tests = ["-q", "-p", "no:cacheprovider", "--deselect", NOT_EMULATED, "tests/kernels", *pytest_options]
        command = [python, "-c", _RUN_TESTS.format(python=python), *tests]
        return subprocess.run(command, cwd=place, env=_environment("auto"), check=False).returncode


def _installed(place: Path, wheel: Path | None) -> Path:
    """The interpreter of an environment that has the wheel."""
    if wheel is None:
        _run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(place), "."], ROOT)
        (wheel,) = place.glob("*.whl")
    environment = place / "venv"
    _run([sys.executable, "-m", "venv", str(environment)], place)
    _run([str(environment / "bin/pip"), "install", "--quiet", str(wheel.resolve()), *NEEDED], place)
    return environment / "bin/python"


def _emulated(place: Path, emulator: Sequence[str], python: Path) -> str:
    """A command that runs Python emulated, whoever starts it."""
    script = place / "python"
    script.write_text(f'#!/bin/sh\nexec {" ".join(emulator)} {python} "$@"\n')
    script.chmod(0o755)
    return str(script)


def _environment(simd: str) -> dict[str, str]:
    # What was chosen for the real CPU is wrong on the emulated one.
    own = {key: value for key, value in os.environ.items() if not key.startswith(("OPENBLAS_", "PYTHON", "NPY_"))}
    return own | {"SONA_SIMD": simd, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def _run(command: Sequence[str], place: Path) -> str:
    done = subprocess.run(command, cwd=place, env=_environment("auto"), stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        # The shell's way: a signal is told by its number, and SIGILL is what this looks for.
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
