"""MicroLoRA: the identity when fresh, the exact gradient of its input, and signed by quality."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sona_pg.config import SignalConfig
from sona_pg.errors import ConfigError, DimensionMismatch, InvalidInput
from sona_pg.learning.lora import MicroLoRA, orthonormal_rows
from sona_pg.types import LearningSignal, SignalMetadata

from .samples import Floats, axis, bits, floats, unit_rows

DIM = 48


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


def moved(lora: MicroLoRA, x: Floats) -> Floats:
    out = np.zeros(lora.hidden_dim, dtype=np.float32)
    lora.forward(x, out)
    return out


def advantage(query: Floats, gradient: Floats) -> LearningSignal:
    """A signal whose gradient says already what was better."""
    return LearningSignal(query, gradient, 0.5, metadata=SignalMetadata(has_advantage=True))


NOT_CENTRED = SignalConfig(centring_signals=0)


def trained(rng: np.random.Generator, rank: int, dim: int = DIM, *, signal: SignalConfig | None = None) -> MicroLoRA:
    lora = MicroLoRA(dim, rank, signal=signal)
    lora.load(rng.standard_normal((2 * rank, dim)).astype(np.float32))
    return lora


@pytest.mark.parametrize("rank", [1, 2])
def test_fresh_adapter_leaves_the_bits_of_the_output_alone(rng: np.random.Generator, rank: int) -> None:
    lora = MicroLoRA(DIM, rank)
    out = rng.standard_normal(DIM).astype(np.float32)
    out[:4] = [-0.0, 0.0, np.nan, -np.inf]
    before = bits(out)
    lora.forward(rng.standard_normal(DIM), out)
    assert bits(out) == before
    assert lora.is_zero


@pytest.mark.parametrize("rank", [1, 2])
def test_accessors_say_what_it_is(rank: int) -> None:
    lora = MicroLoRA(DIM, rank)
    assert (lora.rank, lora.hidden_dim, lora.param_count) == (rank, DIM, 2 * rank * DIM)
    assert lora.scale == pytest.approx(1 / math.sqrt(rank))
    down = lora.weights[:rank].astype(np.float64)
    np.testing.assert_allclose(down @ down.T, np.eye(rank), atol=1e-6)


@pytest.mark.parametrize("rank", [0, 3, 4, -1, 1.5, "1", None])
def test_rank_other_than_one_or_two_is_refused(rank: object) -> None:
    with pytest.raises(ConfigError, match=r"rank is .*, expected 1 or 2"):
        MicroLoRA(DIM, rank)  # type: ignore[arg-type]


@pytest.mark.parametrize("dim", [0, -1, 16_001])
def test_dimension_out_of_range_is_refused(dim: int) -> None:
    with pytest.raises(ConfigError, match=f"dimension is {dim}, expected 1 to 16000"):
        MicroLoRA(dim, 1)


def test_rank_above_the_dimension_is_refused() -> None:
    with pytest.raises(ConfigError, match="rank 2 exceeds the dimension 1"):
        MicroLoRA(1, 2)


@pytest.mark.parametrize("rank", [1, 2])
def test_forward_adds_the_scaled_map(rng: np.random.Generator, rank: int) -> None:
    lora = trained(rng, rank)
    x, out = rng.standard_normal(DIM).astype(np.float32), rng.standard_normal(DIM).astype(np.float32)
    w = lora.weights.astype(np.float64)
    expected = out + lora.scale * (w[:rank] @ x.astype(np.float64)) @ w[rank:]
    lora.forward(x, out)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rank", [1, 2])
def test_forward_forward_scalar_and_forward_batch_agree(rng: np.random.Generator, rank: int) -> None:
    for dim in (2, 7, 48, 129, 384):
        lora = trained(rng, rank, dim)
        rows = rng.standard_normal((5, dim)).astype(np.float32)
        batch = np.zeros_like(rows)
        lora.forward_batch(rows, batch)
        for x, of_batch in zip(rows, batch, strict=True):
            scalar = np.zeros(dim, dtype=np.float32)
            lora.forward_scalar(x, scalar)
            np.testing.assert_allclose(moved(lora, x), scalar, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(of_batch, scalar, rtol=1e-4, atol=1e-5)


def test_scale_is_the_factor_of_the_output(rng: np.random.Generator) -> None:
    lora, x = trained(rng, 1), rng.standard_normal(DIM).astype(np.float32)
    lora.set_scale(1.0)
    once = moved(lora, x)
    lora.set_scale(-2.0)
    assert lora.scale == -2.0
    np.testing.assert_allclose(moved(lora, x), -2 * once, rtol=1e-6)
    for bad in (math.nan, math.inf):
        with pytest.raises(ConfigError, match=f"scale is {bad}, expected a finite number"):
            lora.set_scale(bad)
    assert lora.scale == -2.0


def centred_rows(queries: list[Floats], rank: int) -> np.ndarray:
    """The columns of A by hand: the direction of the mean query, then the second initial one without its part of it."""
    mean = np.sum(queries, axis=0, dtype=np.float64)
    first = mean / np.linalg.norm(mean)
    other = orthonormal_rows(2, DIM, 0)[1].astype(np.float64)
    other -= (other @ first) * first
    return np.stack([first, other / np.linalg.norm(other)])[:rank]


@pytest.mark.parametrize("rank", [1, 2])
def test_first_sixteen_signals_turn_it_to_the_mean_of_their_queries(rng: np.random.Generator, rank: int) -> None:
    lora = trained(rng, rank)
    queries = list(unit_rows(rng.standard_normal((16, DIM)) + 0.5))
    for count, query in enumerate(queries, 1):
        up = bits(lora.weights[rank:])
        lora.accumulate_gradient(advantage(query, axis(0, DIM)))
        assert bits(lora.weights[rank:]) == up
        np.testing.assert_allclose(lora.weights[:rank], centred_rows(queries[:count], rank), rtol=1e-4, atol=1e-6)
    down = lora.weights[:rank].astype(np.float64)
    np.testing.assert_allclose(down @ down.T, np.eye(rank), atol=1e-6)
    after = bits(lora.weights)
    lora.accumulate_gradient(advantage(axis(3, DIM), axis(0, DIM)))
    assert bits(lora.weights) == after


@pytest.mark.parametrize("count", [0, 1, 3])
def test_number_of_signals_that_turn_it_is_a_setting(rng: np.random.Generator, count: int) -> None:
    assert SignalConfig().centring_signals == 16
    lora = MicroLoRA(DIM, 1, signal=SignalConfig(centring_signals=count))
    queries = list(unit_rows(rng.standard_normal((5, DIM)) + 0.5))
    for query in queries:
        lora.accumulate_gradient(advantage(query, axis(0, DIM)))
    expected = centred_rows(queries[:count], 1) if count else orthonormal_rows(1, DIM, 0)
    np.testing.assert_allclose(lora.weights[:1], expected, rtol=1e-4, atol=1e-6)


def test_queries_without_a_mean_leave_the_direction_as_it_was() -> None:
    lora, x = MicroLoRA(DIM, 1), axis(5, DIM)
    fresh = bits(lora.weights)
    lora.accumulate_gradient(advantage(np.zeros(DIM, dtype=np.float32), axis(0, DIM)))
    assert bits(lora.weights) == fresh
    lora.accumulate_gradient(advantage(x, axis(0, DIM)))
    lora.accumulate_gradient(advantage(-x, axis(0, DIM)))  # cancels the one before
    assert lora.weights[0].tolist() == x.tolist()


@pytest.mark.parametrize("rank", [1, 2])
def test_state_continues_bit_for_bit_while_it_is_still_turning(rng: np.random.Generator, rank: int) -> None:
    signals = [LearningSignal.with_gradient(*unit_rows(rng.standard_normal((2, DIM))), q) for q in rng.random(20)]

    def learn(lora: MicroLoRA, part: list[LearningSignal]) -> MicroLoRA:
        for signal in part:
            lora.accumulate_gradient(signal)
            lora.apply_accumulated(0.1)
        return lora

    through = learn(MicroLoRA(DIM, rank), signals)
    state = {name: part.copy() for name, part in learn(MicroLoRA(DIM, rank), signals[:7]).state().items()}
    after = learn(MicroLoRA(DIM, rank), signals[10:13])
    after.accumulate_gradient(signals[0])  # waits, and is forgotten
    after.load_state(state)
    assert after.accumulated == 0
    learn(after, signals[7:])
    for name, part in through.state().items():
        assert bits(after.state()[name]) == bits(part), name


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("rank", [1, 2])
def test_step_is_the_exact_gradient_of_both_factors(rng: np.random.Generator, rank: int, centred: bool) -> None:
    lora = trained(rng, rank, signal=None if centred else NOT_CENTRED)
    x, g = rng.standard_normal(DIM).astype(np.float32), rng.standard_normal(DIM).astype(np.float32)
    before = lora.weights.astype(np.float64)
    if centred:
        before[:rank] = centred_rows([x], rank)
    lora.accumulate_gradient(advantage(x, g))
    lora.apply_accumulated(0.01)
    # ∂/∂A_k = s (B_k·g) x and ∂/∂B_k = s (x·A_k) g
    down = np.outer(before[rank:] @ g.astype(np.float64), x)
    up = np.outer(before[:rank] @ x.astype(np.float64), g)
    np.testing.assert_allclose(lora.weights, before + 0.01 * lora.scale * np.vstack([down, up]), rtol=1e-4, atol=1e-5)


def test_step_raises_the_output_along_the_gradient_at_its_input(rng: np.random.Generator) -> None:
    for seed in range(50):
        lora = MicroLoRA(DIM, 1 + seed % 2, seed=seed)
        x, g = unit_rows(rng.standard_normal((2, DIM)))
        lora.accumulate_gradient(advantage(x, g))
        lora.apply_accumulated(0.1)
        assert moved(lora, x) @ g > 0


def test_accumulated_gradients_are_applied_as_their_mean_and_forgotten(rng: np.random.Generator) -> None:
    x, g, h = unit_rows(rng.standard_normal((3, DIM)))
    together, mean = MicroLoRA(DIM, 1), MicroLoRA(DIM, 1)
    together.accumulate_gradient(advantage(x, g))
    together.accumulate_gradient(advantage(x, h))
    assert together.accumulated == 2
    assert together.is_zero  # nothing has moved yet
    together.apply_accumulated(0.1)
    assert together.accumulated == 0
    mean.accumulate_gradient(advantage(x, (g + h) / 2))
    mean.apply_accumulated(0.1)
    np.testing.assert_allclose(together.weights, mean.weights, rtol=1e-5, atol=1e-7)
    after = bits(together.weights)
    together.apply_accumulated(0.1)
    assert bits(together.weights) == after


def test_reset_forgets_what_was_accumulated_and_keeps_the_weights(rng: np.random.Generator) -> None:
    lora = trained(rng, 2, signal=NOT_CENTRED)
    before = bits(lora.weights)
    lora.accumulate_gradient(advantage(axis(0, DIM), axis(1, DIM)))
    assert bits(lora.weights) == before
    lora.reset()
    assert lora.accumulated == 0
    lora.apply_accumulated(1.0)
    assert bits(lora.weights) == before


def test_adapter_to_which_nothing_was_applied_is_still_the_identity() -> None:
    lora = MicroLoRA(DIM, 1)
    lora.apply_accumulated(0.1)
    lora.accumulate_gradient(advantage(np.zeros(DIM, dtype=np.float32), axis(1, DIM)))  # a zero query moves nothing
    lora.apply_accumulated(0.1)
    out = floats([-0.0] * DIM)
    lora.forward(axis(0, DIM), out)
    assert bits(out) == bits(floats([-0.0] * DIM))


@pytest.mark.parametrize("rate", [math.nan, math.inf, -0.1])
def test_learning_rate_out_of_range_is_refused_and_what_was_accumulated_stays(rate: float) -> None:
    lora = MicroLoRA(DIM, 1)
    lora.accumulate_gradient(advantage(lora.weights[0].copy(), axis(1, DIM)))
    with pytest.raises(ConfigError, match="learning rate is"):
        lora.apply_accumulated(rate)
    assert lora.is_zero
    lora.apply_accumulated(0.1)
    assert not lora.is_zero


def test_input_that_it_does_not_read_is_not_moved(rng: np.random.Generator) -> None:
    x, y, g = unit_rows(rng.standard_normal((3, DIM)))
    y -= (x @ y) * x
    lora = MicroLoRA(DIM, 1)
    lora.load(np.vstack([x, np.zeros(DIM)]))  # reads along x
    for _ in range(20):
        lora.accumulate_gradient(advantage(x, g))
        lora.apply_accumulated(0.1)
    assert moved(lora, x) @ g > 1
    assert np.linalg.norm(moved(lora, y)) < 1e-5 * np.linalg.norm(moved(lora, x))


def test_opposite_lessons_at_two_inputs_are_both_learned(rng: np.random.Generator) -> None:
    x, y, g = unit_rows(rng.standard_normal((3, DIM)))
    y = unit_rows(y - (x @ y) * x)
    lora = MicroLoRA(DIM, 2)
    for _ in range(200):
        lora.accumulate_gradient(advantage(x, g))
        lora.accumulate_gradient(advantage(y, -g))
        lora.apply_accumulated(0.1)
    assert moved(lora, x) @ g > 0.1
    assert moved(lora, y) @ g < -0.1


def test_random_orthogonal_inputs_are_moved_no_way_in_particular(rng: np.random.Generator) -> None:
    x, g = unit_rows(rng.standard_normal((2, 256)))
    others = rng.standard_normal((400, 256))
    others = unit_rows(others - np.outer(others @ x, x))
    along_at_input, along_elsewhere = [], []
    for seed in range(40):
        lora = MicroLoRA(256, 1, seed=seed)
        lora.accumulate_gradient(advantage(x, g))
        lora.apply_accumulated(1.0)
        along_at_input.append(moved(lora, x) @ g)
        out = np.zeros_like(others)
        lora.forward_batch(others, out)
        along_elsewhere.append((out @ g).mean())
    assert np.mean(np.abs(along_elsewhere)) < 0.1 * np.mean(along_at_input)


def test_own_gradient_is_signed_by_quality_against_the_running_mean() -> None:
    g = axis(1, DIM)

    def along(*qualities: float) -> float:
        """How far the last of these signals moved its output along its gradient."""
        lora = MicroLoRA(DIM, 1)
        x = lora.weights[0].copy()
        for quality in qualities[:-1]:
            lora.accumulate_gradient(LearningSignal.with_gradient(x, g, quality))
        lora.reset()
        lora.accumulate_gradient(LearningSignal.with_gradient(x, g, qualities[-1]))
        lora.apply_accumulated(0.1)
        return float(moved(lora, x) @ g)

    assert along(0.9) > 0
    assert along(0.1) < 0
    assert along(*[0.9] * 20, 0.7) < 0  # worse than usual here
    assert along(*[0.1] * 20, 0.3) > 0  # better than usual here
    assert along(0.9) == pytest.approx(2 * along(0.7), rel=1e-5)


@pytest.mark.parametrize(
    ("signal", "error"),
    [
        (LearningSignal(axis(0, DIM + 1), axis(0, DIM + 1), 0.9), DimensionMismatch),
        (LearningSignal(axis(0, DIM), axis(0, DIM - 1), 0.9), DimensionMismatch),
        (LearningSignal(axis(0, DIM, np.nan), axis(0, DIM), 0.9), InvalidInput),
        (LearningSignal(axis(0, DIM), axis(0, DIM, np.inf), 0.9), InvalidInput),
        (LearningSignal(axis(0, DIM), axis(0, DIM), math.nan), InvalidInput),
        (LearningSignal(axis(0, DIM), axis(0, DIM), math.inf), InvalidInput),
        (LearningSignal(axis(0, DIM), axis(0, DIM), None), InvalidInput),  # type: ignore[arg-type]
        (LearningSignal(axis(0, DIM, 1.1e9), axis(0, DIM), 0.9), InvalidInput),
        (LearningSignal(axis(0, DIM), axis(0, DIM, -1.1e9), 0.9), InvalidInput),
        (LearningSignal(axis(0, DIM, -3e38), axis(0, DIM, 3e38), 0.9), InvalidInput),
    ],
    ids=[
        *["query dim", "gradient dim", "query NaN", "gradient infinite", "quality NaN", "quality infinite"],
        *["quality None", "query large", "gradient large", "both huge"],
    ],
)
def test_bad_signal_is_refused_and_nothing_is_accumulated(signal: LearningSignal, error: type[Exception]) -> None:
    lora = MicroLoRA(DIM, 1)
    before = {name: bits(part) for name, part in lora.state().items()}
    with pytest.raises(error):
        lora.accumulate_gradient(signal)
    assert lora.accumulated == 0
    assert {name: bits(part) for name, part in lora.state().items()} == before
    lora.apply_accumulated(1.0)
    assert lora.is_zero


def test_same_seed_gives_the_same_orthonormal_rows() -> None:
    assert bits(orthonormal_rows(8, 64, 3)) == bits(orthonormal_rows(8, 64, 3))
    assert bits(orthonormal_rows(8, 64, 3)) != bits(orthonormal_rows(8, 64, 4))
    for rank, dim in ((1, 1), (5, 5), (8, 384)):
        rows = orthonormal_rows(rank, dim, 0).astype(np.float64)
        np.testing.assert_allclose(rows @ rows.T, np.eye(rank), atol=1e-6)
    with pytest.raises(ConfigError, match="rank 3 exceeds the dimension 2"):
        orthonormal_rows(3, 2, 0)
