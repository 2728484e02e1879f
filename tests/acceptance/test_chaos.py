"""The short form of the chaos: `make chaos` runs the full one."""

from __future__ import annotations

from pathlib import Path

from . import chaos, cycles


def test_processes_killed_at_every_step_lose_and_double_nothing(tmp_path: Path) -> None:
    report, violations, kills = chaos.run(
        tmp_path, seed=11, at_step=1, at_random=3, together=3, stops=["flush.after_learner", "evidence.after_state"]
    )
    print(report)
    assert not violations
    assert kills == 42


def test_workers_killed_at_every_step_of_a_cycle_lose_and_double_nothing(tmp_path: Path) -> None:
    report, violations, kills = cycles.run(tmp_path, seed=11, at_step=1, at_random=3, cuts=1, stops=1)
    print(report)
    assert not violations
    assert kills == len(cycles.AIMS) + 3 == 16
