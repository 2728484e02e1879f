"""The listwise step of the low-rank map, on every instruction set."""

from __future__ import annotations

import contextlib
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from sona_pg.errors import ConfigError, DimensionMismatch, InvalidInput, LearningError
from sona_pg.kernels import ListwiseTrainer, LowRank, reference

from .layouts import Floats, Layout, bits, read_only
from .lora_maps import BAD, Doubles, assert_is_gradient, make, position_classes, some

NO_POOL = np.zeros((0, 0), dtype=np.float32)


def unit_rows(rng: np.random.Generator, *shape: int) -> Floats:
    rows = rng.standard_normal(shape)
    return np.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True), dtype=np.float32)


class Case(NamedTuple):
    """One judged list and the pool that negatives are drawn from."""

    x: Floats
    items: list[Floats]
    targets: list[float]
    pool: Floats
    skip: NDArray[np.int64]
    seed: int
    negatives: int

    def candidates(self) -> tuple[Floats, Floats]:
        """What the step must work on: the items, then the drawn rows, whose target is zero."""
        rows = reference.draw(self.seed, len(self.pool), self.negatives, self.skip)
        drawn = [self.pool[row] for row in rows]
        target = np.zeros(len(self.items) + len(drawn), dtype=np.float32)
        target[: len(self.items)] = np.array(self.targets) / sum(self.targets)
        return np.array([*self.items, *drawn], dtype=np.float32), target


class Shape(NamedTuple):
    items: int
    pool: int
    negatives: int
    skips: int


SHAPES = {
    "items only": Shape(4, 0, 0, 0),
    "one item": Shape(1, 0, 0, 0),
    "no pool": Shape(3, 0, 8, 0),
    "pool without negatives": Shape(5, 9, 0, 0),
    "pool": Shape(3, 40, 8, 0),
    "pool and skip": Shape(2, 12, 20, 5),
    "all of the pool skipped": Shape(3, 6, 20, 6),
}


@pytest.fixture(params=list(SHAPES.values()), ids=list(SHAPES))
def shape(request: pytest.FixtureRequest) -> Shape:
    chosen: Shape = request.param
    return chosen


def make_case(dim: int, shape: Shape, rng: np.random.Generator) -> Case:
    return Case(
        x=unit_rows(rng, dim),
        items=list(unit_rows(rng, shape.items, dim)),
        targets=[1.0, *rng.choice([0.0, 0.5, 2.0], shape.items - 1).tolist()],
        pool=unit_rows(rng, shape.pool, dim) if shape.pool else NO_POOL,
        skip=rng.permutation(shape.pool)[: shape.skips].astype(np.int64),
        seed=int(rng.integers(2**63)),
        negatives=shape.negatives,
    )


class Constants(NamedTuple):
    temperature: float = 0.07
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8


USUAL = Constants()
OTHER = Constants(0.5, 0.6, 0.7, 0.2)  # an epsilon that is not lost beside the root, and fast averages


def make_trainer(dim: int, rng: np.random.Generator, constants: Constants = USUAL) -> ListwiseTrainer:
    rank = min(dim, 5)
    weights = np.vstack([some(rng, rank, dim), some(rng, rank, dim) / 10])
    return ListwiseTrainer(make(weights, 0.7), make(weights, 0.7), *constants)


def run_step(trainer: ListwiseTrainer, case: Case, learning_rate: float = 1e-3, average: float = 0.8) -> float:
    return trainer.step(*case._replace(items=list(case.items)), learning_rate, average)


def blocks_of(trainer: ListwiseTrainer) -> tuple[Floats, ...]:
    return trainer.trained.weights, trainer.moment1, trainer.moment2, trainer.served.weights


def all_of(trainer: ListwiseTrainer) -> tuple[object, ...]:
    """Everything that a step changes."""
    return *map(bits, blocks_of(trainer)), trainer.steps, trainer.trained.is_zero, trainer.served.is_zero


@pytest.mark.parametrize("constants", [USUAL, OTHER], ids=["usual", "other"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_consecutive_steps_are_the_reference(
    isa: str, dim: int, shape: Shape, dtype: type[np.floating], constants: Constants, rng: np.random.Generator
) -> None:
    trainer = make_trainer(dim, rng, constants)
    weights, moment1, moment2, served = (block.astype(dtype) for block in blocks_of(trainer))
    state = reference.ListwiseState(weights, moment1, moment2, served)
    for step in range(1, 7):
        case = make_case(dim, shape, rng)
        candidates, target = case.candidates()
        # The constants as the kernel holds them: in float32, 1 - 0.999 has lost digits.
        expected = reference.listwise_step(
            state, case.x.astype(dtype), candidates.astype(dtype), target.astype(dtype), scale=trainer.trained.scale,
            temperature=trainer.temperature, learning_rate=1e-3, beta1=trainer.beta1, beta2=trainer.beta2,
            epsilon=trainer.epsilon, average=0.8,
        )  # fmt: skip
        assert run_step(trainer, case) == pytest.approx(expected, rel=2e-6, abs=2e-6)
        assert trainer.steps == state.steps == step
        for found, wanted in ((trainer.moment1, state.moment1), (trainer.moment2, state.moment2)):
            assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()
        # A step moves a weight by up to 1e-3.
        assert np.abs(trainer.trained.weights - state.weights).max() <= 5e-6
        assert np.abs(trainer.served.weights - state.served).max() <= 5e-6


def test_what_else_is_part_of_the_loss_comes_as_its_gradient(
    isa: str, dim: int, shape: Shape, rng: np.random.Generator
) -> None:
    trainer = make_trainer(dim, rng, OTHER)
    state = reference.ListwiseState(*(block.copy() for block in blocks_of(trainer)))
    for _ in range(3):
        case, extra = make_case(dim, shape, rng), some(rng, *trainer.trained.weights.shape)
        expected = reference.listwise_step(
            state, case.x, *case.candidates(), scale=trainer.trained.scale, temperature=trainer.temperature,
            learning_rate=1e-3, beta1=trainer.beta1, beta2=trainer.beta2, epsilon=trainer.epsilon, average=0.8,
            extra=extra,
        )  # fmt: skip
        assert trainer.step(*case, 1e-3, 0.8, extra) == pytest.approx(expected, rel=2e-6, abs=2e-6)
        assert np.abs(trainer.moment1 - state.moment1).max() <= 1e-5 * np.abs(state.moment1).max()
        assert np.abs(trainer.moment2 - state.moment2).max() <= 1e-5 * np.abs(state.moment2).max()
        assert np.abs(trainer.trained.weights - state.weights).max() <= 5e-6
        assert np.abs(trainer.served.weights - state.served).max() <= 5e-6


@pytest.mark.parametrize("damage", [np.nan, np.inf, 1e20])
def test_a_gradient_that_is_out_of_range_or_of_another_shape_changes_nothing(
    isa: str, damage: float, rng: np.random.Generator
) -> None:
    trainer, case = make_trainer(17, rng), make_case(17, SHAPES["pool"], rng)
    run_step(trainer, case)
    before, extra = all_of(trainer), np.zeros_like(trainer.trained.weights)
    extra[-1, -1] = damage
    with pytest.raises(LearningError, match="out of range"):
        trainer.step(*case, 1e-3, 0.8, extra)
    with pytest.raises(InvalidInput, match=r"extra has shape \(9, 17\), expected \(10, 17\)"):
        trainer.step(*case, 1e-3, 0.8, extra[1:])
    assert all_of(trainer) == before


def exact_loss(weights: Doubles, scale: float, temperature: float, x: Floats, candidates: Floats, t: Floats) -> float:
    rank = len(weights) // 2
    u = x + scale * (weights[:rank] @ x.astype(np.float64)) @ weights[rank:]
    score = candidates.astype(np.float64) @ (u / np.linalg.norm(u)) / temperature
    return float(np.log(np.exp(score - score.max()).sum()) + score.max() - t.astype(np.float64) @ score)


def test_step_follows_the_gradient_of_the_loss(isa: str, dim: int, shape: Shape, rng: np.random.Generator) -> None:
    # Without memory, the moments are the gradient and its square.
    trainer = make_trainer(dim, rng, Constants(temperature=0.2, beta1=0, beta2=0))
    case, weights = make_case(dim, shape, rng), trainer.trained.weights.copy()
    candidates, target = case.candidates()

    def loss(w: Doubles) -> float:
        return exact_loss(w, trainer.trained.scale, trainer.temperature, case.x, candidates, target)

    before = loss(weights.astype(np.float64))
    assert run_step(trainer, case) == pytest.approx(before, rel=2e-6, abs=2e-6)
    assert_is_gradient(trainer.moment1, loss, weights, rng)
    np.testing.assert_allclose(trainer.moment2, trainer.moment1**2, rtol=1e-5, atol=1e-30)
    if dim > 1 and len(candidates) > 1:
        assert loss(trainer.trained.weights.astype(np.float64)) < before


def test_small_temperature_does_not_overflow(isa: str, rng: np.random.Generator) -> None:
    trainer, case = make_trainer(33, rng, Constants(temperature=1e-3)), make_case(33, SHAPES["pool"], rng)
    weights = trainer.trained.weights.astype(np.float64)
    expected = exact_loss(weights, trainer.trained.scale, trainer.temperature, case.x, *case.candidates())
    assert run_step(trainer, case) == pytest.approx(expected, rel=1e-3)
    assert all(np.isfinite(block).all() for block in blocks_of(trainer))


def test_damaged_row_that_is_skipped_does_no_harm(isa: str, rng: np.random.Generator) -> None:
    trainer, case = make_trainer(33, rng), make_case(33, SHAPES["pool and skip"], rng)
    pool = case.pool.copy()
    pool[case.skip] = np.nan
    assert run_step(trainer, case._replace(pool=pool)) >= 0
    assert all(np.isfinite(block).all() for block in blocks_of(trainer))


def test_only_the_ratio_of_targets_counts(isa: str, rng: np.random.Generator) -> None:
    weights, case = some(rng, 4, 17), make_case(17, SHAPES["pool"], rng)
    states = []
    for factor in (1, 8):
        trainer = ListwiseTrainer(make(weights), make(weights), *USUAL)
        run_step(trainer, case._replace(targets=[factor * target for target in case.targets]))
        states.append(all_of(trainer))
    assert states[0] == states[1]


def test_step_takes_any_layout_and_changes_no_input(isa: str, dim: int, layout: Layout) -> None:
    results = []
    for change in (np.copy, layout):
        rng = np.random.default_rng(3)
        trainer, case = make_trainer(dim, rng), make_case(dim, SHAPES["pool and skip"], rng)
        x, *items = (v.astype(np.float16).astype(np.float32) for v in (case.x, *case.items))
        given = case._replace(
            x=change(x),  # type: ignore[arg-type]
            items=[change(item) for item in items],  # type: ignore[misc]
            pool=read_only(case.pool),
            skip=read_only(case.skip),
        )
        loss = run_step(trainer, given)
        results.append((loss, *all_of(trainer)))
        for before, after in zip((x, *items), (given.x, *given.items), strict=True):
            assert bits(np.array(after, dtype=np.float32)) == bits(before)
    assert results[0] == results[1]


def test_first_step_ends_being_zero(isa: str, rng: np.random.Generator) -> None:
    weights = np.vstack([some(rng, 2, 9), np.zeros((2, 9))])
    trainer = ListwiseTrainer(make(weights), make(weights), *USUAL)
    assert trainer.trained.is_zero
    assert trainer.served.is_zero
    run_step(trainer, make_case(9, SHAPES["pool"], rng))
    assert not trainer.trained.is_zero
    assert not trainer.served.is_zero


def damage(vector: Floats, position: int, value: float) -> Floats:
    copy = vector.copy()
    copy[position] = value
    return copy


def wrong_cases(case: Case) -> list[tuple[str, type[Exception], Case]]:
    """Every way in which a case can be wrong, and the error for it."""
    dim, second = len(case.x), case.items[1]
    wrong: list[tuple[str, type[Exception], Case]] = [
        ("zero query", LearningError, case._replace(x=np.zeros(dim, np.float32))),
        ("longer query", DimensionMismatch, case._replace(x=np.ones(dim + 1, np.float32))),
        ("query of two dimensions", InvalidInput, case._replace(x=case.x[None])),
        ("longer item", DimensionMismatch, case._replace(items=[*case.items[:-1], np.ones(dim + 1, np.float32)])),
        ("no number", InvalidInput, case._replace(items=[*case.items[:-1], None])),  # type: ignore[list-item]
        ("no items", InvalidInput, case._replace(items=[], targets=[])),
        ("a target too few", InvalidInput, case._replace(targets=case.targets[:-1])),
        ("a target too many", InvalidInput, case._replace(targets=[*case.targets, 1.0])),
        ("other pool", DimensionMismatch, case._replace(pool=np.ones((5, dim + 1), np.float32))),
        ("fewer than no negatives", ConfigError, case._replace(negatives=-1)),
    ]
    for targets in ([0.0, 0.0, 0.0], [1.0, -0.5, 1.0], [-0.1, 0.0, 0.0], [1.0, 1.0, np.nan], [np.inf, 1.0, 1.0],
                    [1e39, 1.0, 1.0], [1e-60, 0.0, 0.0]):  # fmt: skip
        wrong.append((f"targets {targets}", InvalidInput, case._replace(targets=targets)))
    for position in position_classes(dim):
        for bad in BAD:
            found = f"{bad} at {position}"
            wrong.append((f"query {found}", InvalidInput, case._replace(x=damage(case.x, position, bad))))
            items = [case.items[0], damage(second, position, bad), case.items[2]]
            wrong.append((f"item {found}", InvalidInput, case._replace(items=items)))
            pool = case.pool.copy()
            pool[reference.draw(case.seed, len(pool), case.negatives, case.skip)[-1], position] = bad
            wrong.append((f"drawn row {found}", LearningError, case._replace(pool=pool)))
    return wrong


@pytest.mark.parametrize("steps", [0, 2])
def test_wrong_input_is_refused_and_changes_nothing(isa: str, dim: int, steps: int, rng: np.random.Generator) -> None:
    trainer = make_trainer(dim, rng)
    for _ in range(steps):
        run_step(trainer, make_case(dim, SHAPES["pool"], rng))
    case, before = make_case(dim, SHAPES["pool"], rng), all_of(trainer)
    for what, error, wrong in wrong_cases(case):
        with pytest.raises(error) as caught:
            run_step(trainer, wrong)
        assert type(caught.value) is error, what
        assert all_of(trainer) == before, what
    assert run_step(trainer, case) >= 0
    assert all_of(trainer) != before


def test_pool_and_skip_are_taken_only_as_they_are_stored(isa: str, rng: np.random.Generator) -> None:
    trainer, case = make_trainer(9, rng), make_case(9, SHAPES["pool and skip"], rng)
    before = all_of(trainer)
    for pool in (case.pool.astype(np.float64), case.pool.T.copy().T, case.pool[0]):
        with pytest.raises((TypeError, ValueError)):
            run_step(trainer, case._replace(pool=pool))  # type: ignore[arg-type]
    for skip in (case.skip.astype(np.int32), np.repeat(case.skip, 2)[::2]):
        with pytest.raises((TypeError, ValueError)):
            run_step(trainer, case._replace(skip=skip))  # type: ignore[arg-type]
    assert all_of(trainer) == before


def test_loss_that_is_not_finite_changes_nothing(isa: str, dim: int, rng: np.random.Generator) -> None:
    case = make_case(dim, SHAPES["pool"], rng)
    for row in (0, -1):
        for bad in BAD:
            trainer = make_trainer(dim, rng)
            trainer.trained.weights[row, -1] = bad
            before = all_of(trainer)
            with pytest.raises(LearningError, match="not finite"):
                run_step(trainer, case)
            assert all_of(trainer) == before
    trainer = make_trainer(dim, rng)
    before = all_of(trainer)
    for huge in (1e25, 1e38):
        with pytest.raises(LearningError, match="not finite"):
            run_step(trainer, case._replace(x=case.x * np.float32(huge)))
    assert all_of(trainer) == before


def test_item_of_huge_length_leaves_the_state_finite(isa: str, rng: np.random.Generator) -> None:
    trainer, case = make_trainer(33, rng), make_case(33, SHAPES["pool"], rng)
    for huge in (1e21, 1e30, 3e38):
        with contextlib.suppress(LearningError):
            run_step(trainer, case._replace(items=[case.items[0] * np.float32(huge), *case.items[1:]]))
    assert all(np.isfinite(block).all() for block in blocks_of(trainer))


def test_maps_of_a_trainer_must_agree() -> None:
    for served in (LowRank(8, 2), LowRank(9, 3)):
        with pytest.raises(ConfigError, match="differ in dimension or rank"):
            ListwiseTrainer(LowRank(9, 2), served, *USUAL)
    with pytest.raises(TypeError):
        ListwiseTrainer(LowRank(9, 2), None, *USUAL)  # type: ignore[arg-type]
