"""An exported adapter keeps the rules of PEFT; and what is damaged, hostile or something else is refused."""

from __future__ import annotations

import json
import os
import pickle
import struct
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save

from sona_pg.errors import DimensionMismatch, InvalidInput, IoError, SonaError
from sona_pg.exchange.peft_files import (
    CARD,
    CONFIG,
    WEIGHTS,
    AdapterCard,
    read_adapter,
    weights_sha256,
    write_adapter,
)
from sona_pg.kernels import LowRank
from sona_pg.learning.serving import Serving

DIM, RANK = 12, 3
A, B = "base_model.model.linear.lora_A.weight", "base_model.model.linear.lora_B.weight"
Tensors = dict[str, np.ndarray]


def random_map(dim: int = DIM, rank: int = RANK) -> LowRank:
    made = LowRank(dim, rank)
    made.load(np.random.default_rng(rank).standard_normal((2 * rank, dim)))
    return made


def card_of(low_rank: LowRank, **other: object) -> AdapterCard:
    given = {"dim": low_rank.dim, "embedder": "a model", "space": "support", "space_key": uuid.UUID(int=7)}
    return AdapterCard(**{**given, "version": 3, "events": 40, "weights_sha256": weights_sha256(low_rank), **other})


@pytest.fixture
def written(tmp_path: Path) -> Path:
    low_rank = random_map()
    write_adapter(tmp_path / "adapter", low_rank, card_of(low_rank))
    return tmp_path / "adapter"


def plain(written: Path, tensors: Tensors | None = None, **config: object) -> Path:
    """As PEFT writes it: of these tensors and settings, without anything of ours."""
    (written / CARD).unlink(missing_ok=True)
    tensors = load((written / WEIGHTS).read_bytes()) if tensors is None else tensors
    (written / WEIGHTS).write_bytes(save(tensors, {"format": "pt"}))
    held = json.loads((written / CONFIG).read_text())
    (written / CONFIG).write_text(json.dumps(held | config))
    return written


def tensors_of(low_rank: LowRank) -> Tensors:
    rank = low_rank.rank
    return {A: low_rank.weights[:rank], B: np.ascontiguousarray(low_rank.weights[rank:].T)}


def test_the_layout_is_that_of_peft(written: Path) -> None:
    low_rank = random_map()
    assert sorted(os.listdir(written)) == sorted([WEIGHTS, CONFIG, CARD])
    tensors = load((written / WEIGHTS).read_bytes())
    assert {name: (t.dtype, t.shape) for name, t in tensors.items()} == {
        A: (np.float32, (RANK, DIM)),
        B: (np.float32, (DIM, RANK)),
    }
    config = json.loads((written / CONFIG).read_text())
    assert config["peft_type"] == "LORA"
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (RANK, RANK, ["linear"])
    # What PEFT computes: base(x) + (lora_alpha / r) · lora_B(lora_A(x)), the base layer being the identity.
    x = np.random.default_rng(1).standard_normal((20, DIM)).astype(np.float32)
    scaling = config["lora_alpha"] / config["r"]
    computed = x + scaling * (x.astype(np.float64) @ tensors[A].T) @ tensors[B].T
    np.testing.assert_allclose(computed, Serving([low_rank]).adapt(x), atol=1e-5)


def test_what_was_written_is_read_to_the_last_bit(written: Path) -> None:
    found = read_adapter(written)
    x = np.random.default_rng(1).standard_normal((20, DIM)).astype(np.float32)
    np.testing.assert_array_equal(Serving([found.low_rank]).adapt(x), Serving([random_map()]).adapt(x))
    assert found.card == card_of(random_map())


def test_the_card_is_in_the_metadata_of_the_weights_too(written: Path) -> None:
    (written / CARD).unlink()
    assert read_adapter(written).card == card_of(random_map())


def test_an_adapter_of_peft_needs_nothing_of_ours(written: Path) -> None:
    found = read_adapter(plain(written))
    assert found.card is None
    np.testing.assert_allclose(found.low_rank.weights[:RANK].T @ found.low_rank.weights[RANK:],
                               random_map().weights[:RANK].T @ random_map().weights[RANK:], rtol=1e-5)  # fmt: skip


@pytest.mark.parametrize(
    ("config", "scale"),
    [({"lora_alpha": 6}, 2.0), ({"lora_alpha": 1.5}, 0.5), ({"lora_alpha": 3, "use_rslora": True}, 3**0.5)],
)
def test_the_scale_is_that_of_the_config(written: Path, config: dict[str, Any], scale: float) -> None:
    found = read_adapter(plain(written, **config)).low_rank
    delta = scale * random_map().weights[:RANK].T @ random_map().weights[RANK:]
    np.testing.assert_allclose(found.weights[:RANK].T @ found.weights[RANK:], delta, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["<f2", "<f8"])
def test_other_floats_are_read(written: Path, kind: str) -> None:
    tensors = {name: t.astype(kind) for name, t in tensors_of(random_map()).items()}
    found = read_adapter(plain(written, tensors)).low_rank
    expected = tensors[A].T.astype(np.float64) @ tensors[B].T.astype(np.float64)
    np.testing.assert_allclose(found.weights[:RANK].T @ found.weights[RANK:], expected, rtol=1e-5, atol=1e-5)


def raw_file(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def test_bfloat16_is_read(written: Path) -> None:
    tensors = tensors_of(random_map())
    halves = {name: (np.ascontiguousarray(t).view(np.uint32) >> 16).astype("<u2") for name, t in tensors.items()}
    end = 2 * RANK * DIM
    header = {
        A: {"dtype": "BF16", "shape": [RANK, DIM], "data_offsets": [0, end]},
        B: {"dtype": "BF16", "shape": [DIM, RANK], "data_offsets": [end, 2 * end]},
    }
    plain(written)
    data = halves[A].tobytes() + halves[B].tobytes()
    (written / WEIGHTS).write_bytes(raw_file(json.dumps(header).encode(), data))
    found = read_adapter(written).low_rank
    np.testing.assert_allclose(
        found.weights[:RANK].T @ found.weights[RANK:], tensors[A].T @ tensors[B].T, rtol=0.05, atol=0.05
    )


class Runs:
    """A pickle of it leaves a file behind when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def headers(shape: list[Any], offsets: list[Any], second: list[Any] | None = None) -> bytes:
    end = 4 * RANK * DIM
    other = {"dtype": "F32", "shape": [DIM, RANK], "data_offsets": second or [end, 2 * end]}
    return json.dumps({A: {"dtype": "F32", "shape": shape, "data_offsets": offsets}, B: other}).encode()


WHOLE = 4 * RANK * DIM
BODY = b"\0" * (2 * WHOLE)
DAMAGED: dict[str, bytes] = {
    "empty": b"",
    "short": b"\1\2\3",
    "a header of 2^63 bytes": struct.pack("<Q", 1 << 63) + b"{}",
    "a header of 2^64 - 1 bytes": b"\xff" * 8 + b"{}",
    "a header longer than the file": struct.pack("<Q", 1 << 20) + b"{}",
    "no JSON": raw_file(b"{" * 50),
    "nested JSON": raw_file(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "no object": raw_file(b"[]"),
    "no tensors": raw_file(b"{}"),
    "overlapping": raw_file(headers([RANK, DIM], [0, WHOLE], [WHOLE - 4, 2 * WHOLE - 4]), BODY),
    "the same bytes": raw_file(headers([RANK, DIM], [0, WHOLE], [0, WHOLE]), BODY[:WHOLE]),
    "backwards": raw_file(headers([RANK, DIM], [WHOLE, 0]), BODY),
    "beyond the end": raw_file(headers([RANK, DIM], [0, WHOLE], [1 << 40, (1 << 40) + WHOLE]), BODY),
    "a shape that overflows": raw_file(headers([1 << 33, 1 << 33], [0, WHOLE]), BODY),
    "a shape of 2^64": raw_file(headers([1 << 64, 1], [0, WHOLE]), BODY),
    "a negative shape": raw_file(headers([-RANK, -DIM], [0, WHOLE]), BODY),
    "a shape of zeros": raw_file(headers([0, 0], [0, 0], [0, WHOLE]), BODY[:WHOLE]),
    "less data": raw_file(headers([RANK, DIM], [0, WHOLE]), BODY[:-4]),
    "more data": raw_file(headers([RANK, DIM], [0, WHOLE]), BODY + b"\0"),
    "another dtype": raw_file(headers([RANK, DIM], [0, WHOLE]).replace(b"F32", b"Q99"), BODY),
    "whole numbers": raw_file(headers([RANK, DIM], [0, WHOLE]).replace(b"F32", b"I32"), BODY),
    "a vector": raw_file(headers([RANK * DIM], [0, WHOLE]), BODY),
    "a zip": b"PK\3\4" + b"\0" * 100,
}


@pytest.mark.parametrize("name", DAMAGED)
def test_files_that_are_no_safetensors_are_refused(written: Path, name: str) -> None:
    (written / WEIGHTS).write_bytes(DAMAGED[name])
    with pytest.raises((InvalidInput, DimensionMismatch)) as refused:
        read_adapter(written)
    assert len(str(refused.value)) < 1000


def test_a_pickle_is_refused_and_never_run(written: Path, tmp_path: Path) -> None:
    trap = tmp_path / "sprung"
    data = pickle.dumps(Runs(trap))
    (written / WEIGHTS).write_bytes(data)
    with pytest.raises(InvalidInput):
        read_adapter(written)
    # Where there is nothing but what PyTorch pickles, it is not looked at.
    (written / WEIGHTS).unlink()
    (written / "adapter_model.bin").write_bytes(data)
    with pytest.raises(IoError, match=WEIGHTS):
        read_adapter(written)
    assert not trap.exists()


@pytest.mark.parametrize("cut", [0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("file", [WEIGHTS, CONFIG, CARD])
def test_files_that_are_cut_off_are_refused(written: Path, file: str, cut: float) -> None:
    data = (written / file).read_bytes()
    (written / file).write_bytes(data[: min(int(len(data) * cut), len(data) - 3)])
    with pytest.raises(InvalidInput):
        read_adapter(written)


def test_a_bit_that_fell_over_is_noticed(written: Path) -> None:
    data = bytearray((written / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (written / WEIGHTS).write_bytes(data)
    with pytest.raises(InvalidInput, match="checksum"):
        read_adapter(written)


@pytest.mark.parametrize(
    "other",
    [{"lora_alpha": 2 * RANK}, {"lora_alpha": 0}, {"lora_alpha": -3}, {"use_rslora": True}, {"r": RANK + 1}],
    ids=str,
)
@pytest.mark.parametrize("beside", [True, False])
def test_a_scale_other_than_was_exported_is_refused(written: Path, other: dict[str, Any], beside: bool) -> None:
    held = json.loads((written / CONFIG).read_text())
    (written / CONFIG).write_text(json.dumps(held | other))
    if not beside:
        (written / CARD).unlink()
    with pytest.raises(InvalidInput, match=CONFIG):
        read_adapter(written)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 3e38])
def test_weights_that_are_not_finite_are_refused(written: Path, bad: float) -> None:
    for name in (A, B):
        tensors = {key: t.copy() for key, t in tensors_of(random_map()).items()}
        tensors[name][1, 1] = bad
        with pytest.raises(InvalidInput):
            read_adapter(plain(written, tensors))


OTHER_TENSORS: dict[str, Callable[[Tensors], Tensors]] = {
    "one alone": lambda t: {A: t[A]},
    "another beside": lambda t: t | {"base_model.model.linear.lora_magnitude_vector": np.ones(DIM, np.float32)},
    "two layers": lambda t: t | {name.replace("linear", "other"): tensor for name, tensor in t.items()},
    "of two layers": lambda t: {A: t[A], B.replace("linear", "other"): t[B]},
    "a path": lambda t: {"../../etc/passwd": t[A], B: t[B]},
    "both shapes swapped": lambda t: {A: t[B], B: t[A]},
    "ranks that differ": lambda t: {A: t[A], B: np.ones((DIM, RANK + 1), np.float32)},
    "above the dimension": lambda t: {A: np.ones((DIM + 1, DIM), np.float32), B: np.ones((DIM, DIM + 1), np.float32)},
}


@pytest.mark.parametrize("name", OTHER_TENSORS)
def test_other_tensors_are_refused(written: Path, name: str) -> None:
    with pytest.raises((InvalidInput, DimensionMismatch)):
        read_adapter(plain(written, OTHER_TENSORS[name](tensors_of(random_map()))))


def test_a_layer_that_is_not_square_is_refused(written: Path) -> None:
    tensors = tensors_of(random_map()) | {B: np.ones((DIM + 1, RANK), np.float32)}
    with pytest.raises(DimensionMismatch):
        read_adapter(plain(written, tensors))


OTHER_SETTINGS: list[dict[str, Any]] = [
    {"peft_type": "LOHA"},
    {"peft_type": None},
    {"r": RANK + 1},
    {"r": True},
    {"r": "3"},
    {"lora_alpha": "3"},
    {"lora_alpha": True},
    {"lora_alpha": None},
    {"lora_alpha": float("nan")},
    {"lora_alpha": 1e300},
    {"lora_alpha": 0},
    {"lora_alpha": -3},
    {"lora_alpha": [[[[]]]]},
    {"use_rslora": 1},
    {"use_dora": True},
    {"bias": "all"},
    {"modules_to_save": ["head"]},
    {"rank_pattern": {"linear": 1}},
    {"alpha_pattern": {"linear": 1}},
    {"init_lora_weights": "pissa"},
    {"init_lora_weights": {"a": 1}},
]


@pytest.mark.parametrize("config", OTHER_SETTINGS, ids=str)
def test_layers_that_compute_something_else_are_refused(written: Path, config: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=CONFIG):
        read_adapter(plain(written, **config))


BAD_JSON = {
    "nothing": b"",
    "a list": b"[]",
    "deep": b"[" * 100_000,
    "deep object": b'{"a":' * 5_000 + b"1" + b"}" * 5_000,
    "a long number": b'{"r":' + b"9" * 5_000 + b"}",
    "not Unicode": b'{"r":"\xff"}',
    "a surrogate": b'{"peft_type":"\\ud800"}',
}


@pytest.mark.parametrize("file", [CONFIG, CARD])
@pytest.mark.parametrize("name", BAD_JSON)
def test_json_bombs_are_refused(written: Path, file: str, name: str) -> None:
    (written / file).write_bytes(BAD_JSON[name])
    with pytest.raises(InvalidInput) as refused:
        read_adapter(written)
    assert len(str(refused.value)) < 1000


def test_json_without_an_end_is_not_read(written: Path) -> None:
    with (written / CONFIG).open("ab") as file:
        file.truncate(10 << 30)
    with pytest.raises(IoError, match="more than"):
        read_adapter(written)


@pytest.mark.parametrize(
    "other",
    [{"dim": DIM + 1}, {"embedder": "another"}, {"version": 4}, {"weights_sha256": "0" * 64}, {"space": "other"}],
    ids=str,
)
def test_a_card_that_was_changed_is_refused(written: Path, other: dict[str, Any]) -> None:
    (written / CARD).write_text(json.dumps(card_of(random_map(), **other).to_json()))
    with pytest.raises(InvalidInput, match=CARD):
        read_adapter(written)


@pytest.mark.parametrize(
    "said",
    [
        *({"dim": value} for value in (None, -1, 1.5, True, "12", 1 << 64)),
        *({"embedder": value} for value in (3, [], True, "", "a\0b", "\ud800", "x" * 501)),
        *({"space": value} for value in (None, "", "a\0b", "\ud800")),
        *({"space_key": value} for value in (None, "x", 7)),
        {"format": "sona adapter 99"},
        {"more": 1},
    ],
    ids=str,
)
def test_metadata_that_are_no_card_are_refused(written: Path, said: dict[str, Any]) -> None:
    tensors = tensors_of(random_map())
    (written / CARD).unlink()
    card = card_of(random_map()).to_json() | said
    (written / WEIGHTS).write_bytes(save(tensors, {"sona": json.dumps(card)}))
    with pytest.raises(InvalidInput, match="card"):
        read_adapter(written)


@pytest.mark.parametrize("file", [WEIGHTS, CONFIG, CARD])
def test_links_and_missing_files_are_refused(written: Path, tmp_path: Path, file: str) -> None:
    kept = tmp_path / "kept"
    (written / file).rename(kept)
    if file != CARD:
        with pytest.raises(IoError):
            read_adapter(written)
    (written / file).symlink_to(kept)
    with pytest.raises(IoError):
        read_adapter(written)


@pytest.mark.parametrize("path", ["nowhere", "\0", "", 3, None, b"x"])
def test_no_directory_is_refused(path: str) -> None:
    with pytest.raises(SonaError):
        read_adapter(path)


def test_nothing_is_overwritten(written: Path) -> None:
    with pytest.raises(IoError, match="already"):
        write_adapter(written, random_map(), card_of(random_map()))
    assert read_adapter(written).card == card_of(random_map())
