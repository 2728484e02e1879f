"""An adapter as a directory in the layout of PEFT: `adapter_model.safetensors`, `adapter_config.json`, `sona.json`.

It is LoRA on one linear layer without a bias, whose own weight is the identity: ``x ↦ x + (x A) B``, with A as
`lora_A.weight` (rank, dim) and B as `lora_B.weight` (dim, rank). Nothing that is read here can run code.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import cast

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from sona_pg.config import MAX_DIM
from sona_pg.errors import DimensionMismatch, InvalidInput
from sona_pg.files import FilePath, read_inside, write_directory
from sona_pg.kernels import LowRank
from sona_pg.learning.stacking import map_of
from sona_pg.loops.admission import checked_text
from sona_pg.types import Json

WEIGHTS, CONFIG, CARD = "adapter_model.safetensors", "adapter_config.json", "sona.json"
FORMAT = "sona adapter 1"
MODULE = "linear"
"""What the layer is called; so is that of the Dense module of sentence-transformers."""

_MOST_JSON = 1 << 20
_TENSOR = re.compile(r"base_model\.model\.(?P<module>[\w.]+)\.lora_(?P<part>[AB])(\.default)?\.weight")
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_INITIAL = (True, False, None, "gaussian", "orthogonal", "eva")
"""How a layer may have begun: the other ways change its own weight, too."""
_OTHER_LAYERS = (
    *("use_dora", "use_qalora", "use_bdlora", "lora_bias", "modules_to_save", "rank_pattern", "alpha_pattern"),
    *("layer_replication", "target_parameters", "trainable_token_indices", "alora_invocation_tokens"),
    *("arrow_config", "kasa_config", "monteclora_config", "velora_config"),
)
"""Settings of PEFT with which a layer computes something else."""


@dataclass(frozen=True, slots=True)
class AdapterCard:
    """What an exported adapter says of itself.

    Parameters
    ----------
    dim
        Dimension of queries.
    embedder
        Fingerprint of the embedding model; None if the space had none declared.
    space, space_key
        Where it was learned: name, and what names it beyond its database.
    version
        Version that it is, or that its learning has come to since; 0 before the first.
    events
        Outcome events learned.
    weights_sha256
        Of A and B as float32, row by row.
    """

    dim: int
    embedder: str | None
    space: str
    space_key: uuid.UUID
    version: int
    events: int
    weights_sha256: str

    def to_json(self) -> dict[str, Json]:
        """As JSON."""
        return {"format": FORMAT, **asdict(self), "space_key": str(self.space_key)}

    @classmethod
    def from_json(cls, stored: Json) -> AdapterCard:
        """What `to_json` gave.

        Raises
        ------
        InvalidInput
            If it is something else.
        """
        try:
            if not isinstance(stored, dict) or stored.keys() != {"format", *(each.name for each in fields(cls))}:
                raise ValueError("other keys than an export has")
            if stored["format"] != FORMAT:
                raise ValueError(f"format {shown(stored['format'])}, expected {FORMAT!r}")
            dim, version, events = (_whole(stored[name]) for name in ("dim", "version", "events"))
            embedder = None if stored["embedder"] is None else _text(stored["embedder"])
            space, key, digest = (_text(stored[name]) for name in ("space", "space_key", "weights_sha256"))
            return cls(dim, embedder, space, uuid.UUID(key), version, events, digest)
        except ValueError as cause:
            raise InvalidInput(f"the card of the exported adapter is damaged: {str(cause)[:300]}") from cause


@dataclass(frozen=True, slots=True, eq=False)
class AdapterFiles:
    """An adapter that was read.

    Parameters
    ----------
    low_rank
        The map, of scale 1.
    card
        What it says of itself; None of one that PEFT has written.
    """

    low_rank: LowRank
    card: AdapterCard | None


def weights_sha256(low_rank: LowRank) -> str:
    """Of A and B as float32, row by row."""
    return hashlib.sha256(np.ascontiguousarray(low_rank.weights, dtype="<f4").tobytes()).hexdigest()


def write_adapter(path: FilePath, low_rank: LowRank, card: AdapterCard) -> None:
    """Write a map of scale 1 into a directory that is not there yet, or is empty.

    Raises
    ------
    IoError
        If something is there already, or it cannot be written; nothing is left then.
    """
    rank, described = low_rank.rank, card.to_json()
    tensors = {
        f"base_model.model.{MODULE}.lora_A.weight": low_rank.weights[:rank],
        f"base_model.model.{MODULE}.lora_B.weight": np.ascontiguousarray(low_rank.weights[rank:].T),
    }
    config: dict[str, Json] = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "target_modules": [MODULE],
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
    }
    write_directory(
        path,
        {
            WEIGHTS: save(tensors, {"format": "pt", "sona": json.dumps(described)}),
            CONFIG: _printed(config),
            CARD: _printed(described),
        },
    )


def read_adapter(path: FilePath) -> AdapterFiles:
    """What `write_adapter`, or PEFT for one square layer, has written; all of it is checked.

    Raises
    ------
    IoError
        If a file is not there, is a link, or cannot be read.
    InvalidInput
        If one is damaged or hostile, or holds something else than LoRA on one layer.
    DimensionMismatch
        If the layer is not square.
    """
    config = _read_json(path, CONFIG)
    data = read_inside(path, WEIGHTS)
    first, then, metadata = _tensors(data)
    scale = _scale(config, len(first))
    low_rank = map_of(first, then, scale)
    card = None
    if "sona" in metadata:
        card = AdapterCard.from_json(_parsed(metadata["sona"].encode(), f"the metadata of {WEIGHTS}"))
        if card.dim != low_rank.dim:
            raise DimensionMismatch(card.dim, low_rank.dim, f"the layer in {WEIGHTS}")
        held = np.ascontiguousarray(np.vstack([first, then]), dtype="<f4").tobytes()
        if hashlib.sha256(held).hexdigest() != card.weights_sha256:
            raise InvalidInput(f"the weights in {WEIGHTS} are not those that were exported: their checksum differs")
        if scale != 1.0:
            raise InvalidInput(
                f"{CONFIG} sets a scale of {scale:g} (lora_alpha, use_rslora), and was exported with that of 1: it was "
                "changed; put back what was exported"
            )
        # Whoever copied the two files of PEFT alone has all that counts.
        if os.path.lexists(os.path.join(path, CARD)) and _read_json(path, CARD) != card.to_json():
            raise InvalidInput(f"{CARD} is not what {WEIGHTS} says of itself: one of them was changed")
    return AdapterFiles(low_rank, card)


def _tensors(data: bytes) -> tuple[NDArray[np.floating], NDArray[np.floating], dict[str, str]]:
    """Aᵀ and B (rank, dim), and the metadata."""
    try:
        # It checks the header: its length, names, shapes and offsets, against each other and against the data.
        found = deserialize(data)  # type: ignore[no-untyped-call]
    except (SafetensorError, ValueError, MemoryError) as cause:
        raise InvalidInput(f"{WEIGHTS} is no file of safetensors, or a damaged one: {cause}") from cause
    parts: dict[str, NDArray[np.floating]] = {}
    modules = set()
    for name, tensor in found:
        matched = _TENSOR.fullmatch(name)
        if matched is None or matched["part"] in parts:
            raise InvalidInput(
                f"{WEIGHTS} holds a tensor {name[:100]!r}, expected lora_A.weight and lora_B.weight of one layer alone"
            )
        parts[matched["part"]] = _array(name, tensor)
        modules.add(matched["module"])
    if len(parts) != 2 or len(modules) != 1:
        raise InvalidInput(f"{WEIGHTS} holds {len(found)} tensors, expected lora_A.weight and lora_B.weight of a layer")
    first, then = parts["A"], parts["B"]
    rank, dim = first.shape
    if then.shape[0] != dim:
        raise DimensionMismatch(dim, then.shape[0], "the output of the exported layer")
    if not (1 <= rank <= dim <= MAX_DIM) or then.shape[1] != rank:
        raise InvalidInput(
            f"lora_A.weight is of shape {first.shape} and lora_B.weight of {then.shape}, expected (rank, dim) and "
            f"(dim, rank) with a rank of at most dim, and dim at most {MAX_DIM}"
        )
    size = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + size]).get("__metadata__", {})
    return first, then.T, metadata


def _array(name: str, tensor: Mapping[str, object]) -> NDArray[np.floating]:
    """A matrix of floats of a tensor as safetensors gives it."""
    kind, shape = str(tensor["dtype"]), cast(list[int], tensor["shape"])
    if kind not in _DTYPES or len(shape) != 2:
        raise InvalidInput(f"{name} is {kind} of shape {shape}, expected a matrix of {', '.join(_DTYPES)}")
    array = np.frombuffer(cast(bytearray, tensor["data"]), dtype=_DTYPES[kind]).reshape(shape)
    if kind == "BF16":
        # The upper half of a float32.
        array = (array.astype(np.uint32) << 16).view(np.float32)
    return array


def _scale(config: Json, rank: int) -> float:
    """What a layer multiplies B (A x) by, of a config of PEFT."""
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        found = config.get("peft_type") if isinstance(config, dict) else None
        raise InvalidInput(f"{CONFIG} is of peft_type {shown(found)}, expected 'LORA'")
    for name in _OTHER_LAYERS:
        if config.get(name):
            raise InvalidInput(f"{CONFIG} sets {name}: such a layer computes something else than x + (x A) B")
    if config.get("bias", "none") != "none":
        raise InvalidInput(f"{CONFIG} sets bias, expected 'none': the map has no bias")
    initial = config.get("init_lora_weights", True)
    if initial not in _INITIAL:
        raise InvalidInput(
            f"{CONFIG} sets init_lora_weights to {shown(initial)}, which changes the layer's own weights: "
            "convert it to plain LoRA when saving (save_pretrained(path_initial_model_for_weight_conversion=…))"
        )
    given, alpha, root = config.get("r"), config.get("lora_alpha"), config.get("use_rslora", False)
    if given != rank or isinstance(given, bool):
        raise InvalidInput(f"{CONFIG} says r = {shown(given)}, the tensors have rank {rank}")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < 1e9:
        raise InvalidInput(f"{CONFIG} says lora_alpha = {shown(alpha)}, expected a number above 0")
    if not isinstance(root, bool):
        raise InvalidInput(f"{CONFIG} says use_rslora = {shown(root)}, expected true or false")
    return alpha / (math.sqrt(rank) if root else rank)


def shown(value: object) -> str:
    """A value from a file in a message: short, whatever it is."""
    return repr(value)[:100] if value is None or isinstance(value, bool | int | float | str) else type(value).__name__


def _read_json(path: FilePath, name: str) -> Json:
    return _parsed(read_inside(path, name, _MOST_JSON), name)


def _parsed(data: bytes, what: str) -> Json:
    try:
        return cast(Json, json.loads(data))
    except (ValueError, RecursionError) as cause:
        raise InvalidInput(f"{what} is no JSON that can be read ({str(cause)[:200]})") from cause


def _printed(value: Mapping[str, Json]) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def _whole(value: Json) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 63:
        raise ValueError(f"{shown(value)} is no whole number from 0")
    return value


def _text(value: Json) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{shown(value)} is no text")
    return checked_text(value, "a text")
