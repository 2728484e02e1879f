"""The base LoRA: identity when fresh, exact gradients, a form that a Fisher penalty can protect, and its files."""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from sona_pg.config import LoraConfig
from sona_pg.errors import ConfigError, DimensionMismatch, InvalidInput, IoError, LearningError
from sona_pg.kernels import LowRank
from sona_pg.learning.base_lora import BaseLoRA, LoRALayer
from sona_pg.learning.lora import MicroLoRA
from sona_pg.learning.packing import pack
from sona_pg.learning.serving import Serving

from .samples import Floats, bits, unit_rows

DIM = 24
Doubles = NDArray[np.float64]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


def trained(rng: np.random.Generator, rank: int = 4, layers: int = 3, *, train_down: bool = False) -> BaseLoRA:
    base = BaseLoRA(DIM, rank, layers, config=LoraConfig(alpha=6.0, train_down=train_down))
    for layer in base.layers:
        layer.set_parameters(rng.standard_normal(layer.parameters.size) * 0.2)
    return base


def delta(layer: LowRank) -> Doubles:
    weights = layer.weights.astype(np.float64)
    product: Doubles = layer.scale * weights[: layer.rank].T @ weights[layer.rank :]
    return product


# ---- what it computes ------------------------------------------------------------------------------------------------


def test_a_fresh_layer_changes_no_bit(rng: np.random.Generator) -> None:
    base = BaseLoRA(DIM, rank=6, num_layers=2, items=rng.standard_normal((50, DIM)))
    odd = np.resize(np.array([-0.0, 0.0, 1e-45, -1e-45, 3.4e38, np.inf, np.nan], dtype=np.float32), (3, DIM))
    for index in range(2):
        out, rows = odd[0].copy(), odd.copy()
        base.forward_layer(index, np.ones(DIM), out)
        base.forward_layer(index, np.ones((3, DIM)), rows)
        assert bits(out) == bits(odd[0])
        assert bits(rows) == bits(odd)
        down = base.layers[index].weights[:6]
        np.testing.assert_allclose(down @ down.T, np.eye(6), atol=1e-5)
    model = rng.standard_normal((DIM, DIM))
    before = bits(model)
    base.merge_weights(model, 0)
    assert bits(model) == before


def test_layers_start_apart_unless_the_items_say_where() -> None:
    first, second = BaseLoRA(DIM, 4, 2, seed=3).layers
    assert bits(first.weights) != bits(second.weights)
    assert bits(BaseLoRA(DIM, 4, 2, seed=3).layers[1].weights) == bits(second.weights)
    assert [layer.layer_idx for layer in (first, second)] == [0, 1]


@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
def test_a_merged_matrix_does_what_model_and_layer_do(rng: np.random.Generator, kind: str) -> None:
    base = trained(rng)
    x = unit_rows(rng.standard_normal((7, DIM)))
    model = rng.standard_normal((DIM, DIM)).astype(kind)
    expected = x @ model.astype(np.float32)
    base.forward_layer(1, x, expected)
    for row, out in zip(x, expected, strict=True):
        single = row @ model.astype(np.float32)
        base.forward_layer(1, row, single)
        np.testing.assert_allclose(single, out, atol=1e-5)
    base.merge_weights(model, 1)
    np.testing.assert_allclose(x @ model.astype(np.float32), expected, atol=2e-2 if kind == "float16" else 2e-6)


def test_alpha_scales_every_layer(rng: np.random.Generator) -> None:
    base = trained(rng)
    assert base.alpha == 6.0
    assert [layer.scale for layer in base.layers] == [1.5] * 3
    before = delta(base.layers[2])
    base.set_alpha(12)
    assert base.alpha == 12
    np.testing.assert_allclose(delta(base.layers[2]), 2 * before)
    for alpha in (0, -1.0, np.nan, np.inf, "8", 10**400):
        with pytest.raises(ConfigError, match="alpha is"):
            base.set_alpha(alpha)  # type: ignore[arg-type]
    assert base.alpha == 12
    assert BaseLoRA(DIM, rank=4).alpha == 4.0
    assert BaseLoRA(DIM, rank=4).layers[0].scale == 1.0


def test_sizes() -> None:
    base = BaseLoRA(DIM, config=LoraConfig(rank=5, num_layers=3))
    assert (base.hidden_dim, base.rank, base.num_layers) == (DIM, 5, 3)
    assert base.param_count == 3 * 2 * 5 * DIM == sum(layer.param_count for layer in base.layers)
    assert base.layers[0].parameters.size == 5 * DIM
    assert BaseLoRA(DIM, config=LoraConfig(rank=5, train_down=True)).layers[0].parameters.size == 2 * 5 * DIM
    assert BaseLoRA(3).rank == 3
    assert (BaseLoRA(DIM).rank, BaseLoRA(DIM).num_layers) == (LoraConfig().rank, 1)


# ---- what a penalty protects -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("train_down", [False, True])
def test_gradient_is_that_of_the_mean_loss(rng: np.random.Generator, train_down: bool) -> None:
    layer = trained(rng, train_down=train_down).layers[0]
    x, goal = rng.standard_normal((9, DIM)), rng.standard_normal((9, DIM))

    def loss(parameters: Doubles) -> float:
        w = layer.weights.astype(np.float64)
        (w if train_down else w[layer.rank :])[...] = parameters.reshape(-1, DIM)
        return float(np.mean(((layer.scale * x @ w[: layer.rank].T @ w[layer.rank :] - goal) ** 2).sum(axis=1)) / 2)

    at = layer.parameters.astype(np.float64)
    found = layer.gradient(x, x @ delta(layer) - goal)
    for _ in range(8):
        direction = rng.standard_normal(at.size)
        direction /= np.linalg.norm(direction)
        expected = (loss(at + 1e-5 * direction) - loss(at - 1e-5 * direction)) / 2e-5
        assert found @ direction == pytest.approx(expected, rel=1e-3, abs=1e-4)
    before = loss(at)
    layer.step(found, 0.01)
    assert loss(layer.parameters.astype(np.float64)) < before


@pytest.mark.parametrize("train_down", [False, True])
def test_fisher_is_the_mean_of_the_squares_of_single_gradients(rng: np.random.Generator, train_down: bool) -> None:
    layer = trained(rng, train_down=train_down).layers[1]
    x, g = rng.standard_normal((150, DIM)), rng.standard_normal((150, DIM))
    single = np.stack([layer.gradient(one, of_output) for one, of_output in zip(x, g, strict=True)]).astype(np.float64)
    np.testing.assert_allclose(layer.gradient(x, g), single.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(layer.fisher(x, g), (single**2).mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(layer.fisher(x[0], g[0]), single[0] ** 2, rtol=1e-4, atol=1e-12)
    none = np.zeros((0, DIM))
    assert not layer.gradient(none, none).any()
    assert not layer.fisher(none, none).any()


@pytest.mark.parametrize("rank", [4, 6])
def test_orthonormalised_layer_is_the_same_function(rng: np.random.Generator, rank: int) -> None:
    layer = trained(rng, rank, train_down=True).layers[1]
    made = layer.orthonormalised()
    x = unit_rows(rng.standard_normal((30, DIM)))
    down = made.weights[:rank]
    np.testing.assert_allclose(down @ down.T, np.eye(rank), atol=1e-6)
    assert np.abs(Serving([made]).adapt(x) - Serving([layer]).adapt(x)).max() <= 1e-6
    assert (made.layer_idx, made.scale, made.train_down) == (1, layer.scale, True)
    # B moves ΔW as far as itself, whatever the direction.
    before, step = delta(made), rng.standard_normal((rank, DIM)).astype(np.float32)
    moved = made.orthonormalised()
    moved.load(np.vstack([down, made.weights[rank:] + step]))
    assert np.linalg.norm(delta(moved) - before) == pytest.approx(made.scale * np.linalg.norm(step), rel=1e-4)


def test_a_penalty_on_the_orthonormalised_layer_does_not_depend_on_the_factors(rng: np.random.Generator) -> None:
    """Theory §1: factor by factor, one function is charged 40.9 and 2629; here both are charged the same."""
    plain = trained(rng, rank=2, layers=1, train_down=True).layers[0]
    x, g = rng.standard_normal((40, DIM)), rng.standard_normal((40, DIM))
    by_factor, by_function = [], []
    for turn in (np.diag([2.0, 0.5]), np.diag([10.0, 0.1]), np.array([[1.0, 2.0], [-1.0, 0.5]])):
        layer = LoRALayer(DIM, 2, scale=plain.scale, train_down=True)
        w = plain.weights.astype(np.float64)
        layer.load(np.vstack([turn.T @ w[:2], np.linalg.solve(turn, w[2:])]))
        np.testing.assert_allclose(delta(layer), delta(plain), atol=1e-5)
        by_factor.append(float(plain.fisher(x, g) @ (layer.parameters - plain.parameters) ** 2))
        ours, theirs = plain.orthonormalised(), layer.orthonormalised()
        by_function.append(float(ours.fisher(x, g) @ (theirs.parameters - ours.parameters) ** 2))
        np.testing.assert_allclose(theirs.weights, ours.weights, atol=1e-5)
    assert min(by_factor) > 1
    assert max(by_function) < 1e-6


def test_of_a_fresh_layer_orthonormalised_keeps_the_span_of_a(rng: np.random.Generator) -> None:
    layer = LoRALayer(DIM, 4)
    layer.load(np.vstack([rng.standard_normal((4, DIM)) * 3, np.zeros((4, DIM))]))
    made = layer.orthonormalised()
    down, old = made.weights[:4], layer.weights[:4]
    assert made.is_zero
    np.testing.assert_allclose(down @ down.T, np.eye(4), atol=1e-6)
    np.testing.assert_allclose((old @ down.T) @ down, old, atol=1e-4)
    flat = LoRALayer(4, 4)
    flat.load(np.vstack([np.ones((4, 4)), np.zeros((4, 4))]))  # a span of one direction only
    down = flat.orthonormalised().weights[:4]
    np.testing.assert_allclose(down @ down.T, np.eye(4), atol=1e-6)


def test_tiers_above_become_part_of_the_layer(rng: np.random.Generator) -> None:
    layer = LoRALayer(DIM, 8, scale=0.5)
    layer.step(-rng.standard_normal(8 * DIM) * 0.05, 1.0)
    weights = layer.weights.copy()
    weights[8 + 4 :] = 0  # rank 4
    layer.load(weights)
    micro = MicroLoRA(DIM, 2)
    micro.load(rng.standard_normal((4, DIM)) * 0.2)
    x = unit_rows(rng.standard_normal((40, DIM)))
    expected = Serving([layer, micro]).adapt(x)
    error = layer.absorb([micro])
    assert error < 1e-6
    assert np.abs(Serving([layer]).adapt(x) - expected).max() <= 1e-6
    down = layer.weights[:8]
    np.testing.assert_allclose(down @ down.T, np.eye(8), atol=1e-6)
    assert layer.scale == 0.5
    wide = LowRank(DIM, 6)
    wide.load(rng.standard_normal((12, DIM)) * 0.2)
    assert layer.absorb([wide], queries=x) > 0.01
    before = bits(layer.weights)
    wide.weights[0, 0] = np.nan
    with pytest.raises(InvalidInput):
        layer.absorb([wide])
    with pytest.raises(DimensionMismatch):
        layer.absorb([LowRank(DIM + 1, 1)])
    assert bits(layer.weights) == before
    layer.set_scale(0.0)
    with pytest.raises(ConfigError, match="scale of the layer is 0"):
        layer.absorb([micro])
    with pytest.raises(ConfigError, match="scale of the layer is 0"):
        layer.orthonormalised()


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [0, -1, 16_001, 4.0, True, None, "8"])
def test_dimension_out_of_range(dim: object) -> None:
    with pytest.raises(ConfigError, match="dimension is"):
        BaseLoRA(dim)  # type: ignore[arg-type]


def test_settings_out_of_range() -> None:
    for arguments in ({"rank": 0}, {"rank": 17}, {"num_layers": 0}, {"rank": 4.0}, {"seed": -1}):
        with pytest.raises(ConfigError):
            BaseLoRA(DIM, **arguments)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="rank 8 exceeds the dimension 4"):
        BaseLoRA(4, rank=8)
    with pytest.raises(InvalidInput):
        BaseLoRA(DIM, items=np.full((3, DIM), np.nan))


def test_bad_input_changes_nothing(rng: np.random.Generator) -> None:
    base = trained(rng)
    layer = base.layers[0]
    state = {name: bits(part) for name, part in base.state().items()}
    out = np.ones((2, DIM), dtype=np.float32)
    for index in (-1, 3, 1.0, True, None):
        with pytest.raises(ConfigError, match="layer is"):
            base.forward_layer(index, out[0], out[1])  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="layer is"):
            base.merge_weights(np.eye(DIM), index)  # type: ignore[arg-type]
    bad_rows: list[object] = [np.full((2, DIM), np.nan), np.ones((2, DIM + 1)), np.ones((1, DIM)), np.ones(DIM), "x"]
    for rows in bad_rows:
        with pytest.raises((InvalidInput, DimensionMismatch)):
            base.forward_layer(0, rows, out)  # type: ignore[arg-type]
    for target in (out.astype(np.float64), out[:, ::2], out.T, np.broadcast_to(out[0], (2, DIM))):
        with pytest.raises((InvalidInput, DimensionMismatch)):
            base.forward_layer(0, np.ones((2, DIM)), target)
    assert (out == 1).all()
    model = np.eye(DIM)
    for weights in (
        np.eye(DIM + 1),
        np.eye(DIM).tolist(),
        np.eye(DIM, dtype=int),
        model * np.nan,
    ):
        with pytest.raises(InvalidInput):
            base.merge_weights(weights, 0)
    model.setflags(write=False)
    with pytest.raises(InvalidInput):
        base.merge_weights(model, 0)
    size = layer.parameters.size
    for vector in (np.ones(size - 1), np.full(size, np.inf), None, np.ones((1, size))):
        with pytest.raises((InvalidInput, DimensionMismatch)):
            layer.set_parameters(vector)  # type: ignore[arg-type]
        with pytest.raises((InvalidInput, DimensionMismatch)):
            layer.step(vector, 0.1)  # type: ignore[arg-type]
    for rate in (-0.1, np.nan, np.inf, "1", None):
        with pytest.raises(ConfigError, match="learning rate is"):
            layer.step(np.ones(size), rate)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput):
        layer.step(np.full(size, 3e38), 1e6)
    long = np.full((1, DIM), 1e8)
    for call in (layer.gradient, layer.fisher):
        for x, g in (
            (long * 1e3, long),
            (long * np.nan, long),
            (np.ones((2, DIM)), long),
            (np.ones(3), long),
            ([[1.0], [1.0, 2.0]], long),
        ):
            with pytest.raises((InvalidInput, DimensionMismatch)):
                call(x, g)  # type: ignore[arg-type]
    layer.set_scale(1e8)
    with pytest.raises(InvalidInput, match="range of float32"):
        layer.fisher(long, long)
    half = np.eye(DIM, dtype=np.float16)
    with pytest.raises(InvalidInput, match="or would"):
        base.merge_weights(half, 0)
    assert bits(half) == bits(np.eye(DIM, dtype=np.float16))
    layer.set_scale(1.5)
    assert {name: bits(part) for name, part in base.state().items()} == state


# ---- what is kept ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("train_down", [False, True])
def test_what_was_saved_comes_back_bit_for_bit(rng: np.random.Generator, tmp_path: Path, train_down: bool) -> None:
    base = trained(rng, train_down=train_down)
    for path in (tmp_path / "base.sona", str(tmp_path / "other")):
        base.save(path)
        read = BaseLoRA.load(path)
        assert read.config == base.config
        assert read.hidden_dim == DIM
        for ours, theirs in zip(base.layers, read.layers, strict=True):
            assert bits(ours.weights) == bits(theirs.weights)
            assert (ours.scale, ours.layer_idx, ours.train_down) == (theirs.scale, theirs.layer_idx, theirs.train_down)
        assert not theirs.is_zero
    assert sorted(os.listdir(tmp_path)) == ["base.sona", "other"]
    assert BaseLoRA.from_bytes(BaseLoRA(DIM).to_bytes()).layers[0].is_zero


def test_state_has_the_names_and_shapes_of_peft(rng: np.random.Generator) -> None:
    state = trained(rng).state()
    assert state["base_model.model.layers.2.lora_A.weight"].shape == (4, DIM)
    assert state["base_model.model.layers.2.lora_B.weight"].shape == (DIM, 4)


def test_a_damaged_state_is_refused_and_changes_nothing(rng: np.random.Generator) -> None:
    base, name = trained(rng), "base_model.model.layers.1.lora_B.weight"
    before = [bits(layer.weights) for layer in base.layers]
    for damaged in (
        {name: np.zeros((DIM, 5), np.float32)},
        {name: np.full((DIM, 4), np.nan, np.float32)},
        {name: np.zeros((DIM, 4))},
        {"alpha": np.array(-1.0)},
        {"alpha": np.array(np.inf)},
    ):
        with pytest.raises(LearningError):
            base.load_state({**base.state(), **damaged})
    with pytest.raises(LearningError, match="has no"):
        base.load_state({k: v for k, v in base.state().items() if k != name})
    assert [bits(layer.weights) for layer in base.layers] == before
    assert base.alpha == 6.0


def checked(archive: bytes) -> bytes:
    """An archive with a checksum that fits: whoever wrote it meant harm."""
    return hashlib.sha256(archive).digest() + archive


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return buffer.getvalue()


def npy(array: Floats | NDArray[np.uint8], claimed: tuple[int, ...] | None = None) -> bytes:
    buffer = io.BytesIO()
    head = {"descr": array.dtype.str, "fortran_order": False, "shape": claimed or array.shape}
    np.lib.format.write_array_header_1_0(buffer, head)
    return buffer.getvalue() + array.tobytes()


def header_of(**changed: object) -> NDArray[np.uint8]:
    header = {"base_lora": 1, "dim": DIM, "rank": 4, "layers": 1, "train_down": 0, **changed}
    return np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)


def hostile() -> dict[str, bytes]:
    good = BaseLoRA(DIM, 4).to_bytes()
    state = BaseLoRA(DIM, 4).state()
    header = json.loads(header_of().tobytes())
    names = [name for name in state if name != "alpha"]
    small = np.zeros((4, DIM), np.float32)
    return {
        "empty": b"",
        "a text": b"not a model",
        "truncated": good[:-1],
        "its head alone": good[:32],
        "one bit": good[:-9] + bytes([good[-9] ^ 1]) + good[-8:],
        "no archive": checked(b"x" * 100),
        "of a micro-LoRA": pack({"format": 1, "dim": DIM, "rank": 2}, MicroLoRA(DIM, 2).state()),
        "no header": checked(zipped({"alpha.npy": npy(small)})),
        "a header that is a list": checked(zipped({"header.npy": npy(np.frombuffer(b"[1]", dtype=np.uint8))})),
        "a header that is no JSON": checked(zipped({"header.npy": npy(np.frombuffer(b"{", dtype=np.uint8))})),
        "a deep header": checked(zipped({"header.npy": npy(np.frombuffer(b"[" * 100_000, dtype=np.uint8))})),
        "a bomb": checked(zipped({"header.npy": bytes(1 << 24)}, zipfile.ZIP_DEFLATED)),
        "an array that claims more": checked(
            zipped({"header.npy": npy(header_of()), "alpha.npy": npy(small, (1 << 50,))})
        ),
        "a pickle": checked(zipped({"header.npy": npy(header_of()), "alpha.npy": b"\x80\x04N."})),
        "another format": pack({**header, "base_lora": 2}, state),
        "too many layers": pack({**header, "layers": 1024}, state),
        "huge layers": pack({**header, "layers": 1 << 60}, state),
        "a rank that is a text": pack({**header, "rank": "4"}, state),
        "a dimension of another": pack({**header, "dim": 12}, state),
        "no dimension": pack({k: v for k, v in header.items() if k != "dim"}, state),
        "a part too many": pack(header, {**state, "more": small}),
        "a part too few": pack(header, {k: v for k, v in state.items() if k != names[0]}),
        "swapped shapes": pack(header, {**state, names[0]: state[names[0]].T}),
        "other numbers": pack(header, {**state, names[0]: state[names[0]].astype(np.float64)}),
        "NaN": pack(header, {**state, names[0]: np.full((4, DIM), np.nan, np.float32)}),
        "a scale of none": pack(header, {**state, "alpha": np.array(0.0)}),
        "a text for a scale": pack(header, {**state, "alpha": np.array("6")}),
    }


@pytest.mark.parametrize("kind", list(hostile()))
def test_what_is_no_base_lora_is_refused(tmp_path: Path, kind: str) -> None:
    data, path = hostile()[kind], tmp_path / "base"
    with pytest.raises(LearningError):
        BaseLoRA.from_bytes(data)
    path.write_bytes(data)
    with pytest.raises(IoError, match="holds no base LoRA"):
        BaseLoRA.load(path)


def test_every_truncation_is_refused() -> None:
    data = BaseLoRA(4, 1).to_bytes()
    for end in range(len(data)):
        with pytest.raises(LearningError):
            BaseLoRA.from_bytes(data[:end])


def test_files_that_cannot_be_written_or_read(tmp_path: Path) -> None:
    base = BaseLoRA(DIM)
    for path in (tmp_path / "no" / "where", tmp_path, "a\0b", None, 3.5):
        with pytest.raises(IoError, match="cannot be written"):
            base.save(path)  # type: ignore[arg-type]
        with pytest.raises(IoError, match="cannot be read"):
            BaseLoRA.load(path)  # type: ignore[arg-type]
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(IoError, match="cannot be read"):
        BaseLoRA.load(tmp_path / "pipe")
    assert os.listdir(tmp_path) == ["pipe"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "base"
    BaseLoRA(DIM, 4).save(path)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(IoError, match="No space left"):
        BaseLoRA(DIM, 5).save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["base"]
