"""The short form of the chaos: `make chaos` runs the full one."""

from __future__ import annotations

from pathlib import Path

from . import chaos
from .cycle_chaos import aims_of, run
from .cycles import DemonstrationChaos
from .deep_cycles import DeepChaos
from .pattern_cycles import PatternChaos


def test_processes_killed_at_every_step_lose_and_double_nothing(tmp_path: Path) -> None:
    report, violations, kills = chaos.run(
        tmp_path, seed=11, at_step=1, at_random=3, together=3, stops=["flush.after_learner", "evidence.after_state"]
    )
    print(report, *violations, sep="\n")
    assert not violations
    assert kills == 42


def test_workers_killed_at_every_step_of_a_cycle_lose_and_double_nothing(tmp_path: Path) -> None:
    report, violations, kills = run(DemonstrationChaos, tmp_path, seed=11, at_step=1, at_random=3, cuts=1, stops=1)
    print(report, *violations, sep="\n")
    assert not violations
    assert kills == len(aims_of(DemonstrationChaos.loop)) + 3 == 16


def test_workers_killed_while_they_make_patterns_count_every_outcome_once(tmp_path: Path) -> None:
    report, violations, kills = run(PatternChaos, tmp_path, seed=11, at_step=1, at_random=2, cuts=1, stops=1)
    print(report, *violations, sep="\n")
    assert not violations
    assert kills == len(aims_of(PatternChaos.loop)) + 2 >= 15


def test_workers_killed_while_they_restructure_memory_lose_no_edge_and_number_nothing_twice(tmp_path: Path) -> None:
    # At each of them in tests/db/test_deep_kill.py.
    report, violations, kills = run(DeepChaos, tmp_path, seed=11, at_step=1, at_random=2, cuts=1, stops=1, every=4)
    print(report, *violations, sep="\n")
    assert not violations
    assert kills == len(aims_of(DeepChaos.loop)[::4]) + 2 >= 10
