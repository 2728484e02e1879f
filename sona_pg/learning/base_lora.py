"""The base LoRA: layers of rank 4 to 16 that change by the hour, and what a Fisher penalty needs to protect them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sona_pg.config import MAX_DIM, LoraConfig
from sona_pg.errors import ConfigError, InvalidInput, IoError, LearningError
from sona_pg.files import FilePath, read_file, write_file
from sona_pg.kernels import LowRank, as_vector
from sona_pg.learning.arrays import as_matrix, check_parts, is_matrix
from sona_pg.learning.lora import LARGEST_RATE, checked_seed, orthonormal_rows
from sona_pg.learning.merging import gauge_fixed, merge
from sona_pg.learning.packing import pack, unpack_any
from sona_pg.learning.query_adapter import initial_directions

FloatArray = NDArray[np.float32]

FILE_FORMAT = 1


class LoRALayer(LowRank):
    """One layer, ``out += scale · (x A) B`` with A (dim, rank) and B (rank, dim) (Hu et al. 2021).

    A fresh layer changes nothing, bit for bit: B is zero, and A orthonormal. What is trained, its `parameters`, is B
    alone, or A and B where `train_down` says so. With a frozen orthonormal A, ``ΔW = scale · A B`` moves as far as B
    does, so that a penalty on B is one on ΔW.

    Parameters
    ----------
    hidden_dim, rank
        Dimension of input and output; rank.
    layer_idx
        Its place among the layers.
    scale
        Factor of the output.
    train_down
        Whether A is trained, too.
    items
        Sample (n, dim) of what inputs are compared with, for A: its mean and principal directions; random orthonormal
        ones without.
    seed
        Of those.
    """

    layer_idx: int
    train_down: bool

    def __new__(
        cls,
        hidden_dim: int,
        rank: int,
        layer_idx: int = 0,
        *,
        scale: float = 1.0,
        train_down: bool = False,
        items: ArrayLike | None = None,
        seed: int = 0,
    ) -> Self:
        return super().__new__(cls, hidden_dim, rank, scale)  # type: ignore[return-value]

    def __init__(
        self,
        hidden_dim: int,
        rank: int,
        layer_idx: int = 0,
        *,
        scale: float = 1.0,
        train_down: bool = False,
        items: ArrayLike | None = None,
        seed: int = 0,
    ) -> None:
        self.layer_idx = layer_idx
        self.train_down = train_down
        if items is None:
            down = orthonormal_rows(rank, hidden_dim, checked_seed(seed))
        else:
            down = initial_directions(as_matrix(items, hidden_dim, "items"), rank, checked_seed(seed))
        self.load(np.vstack([down, np.zeros((rank, hidden_dim))]))

    @property
    def param_count(self) -> int:
        """How many weights there are, A and B."""
        return self.weights.size

    @property
    def parameters(self) -> FloatArray:
        """A copy of what is trained, as a vector: B, or A and B, row by row."""
        return self._trained.ravel().copy()

    @property
    def _trained(self) -> FloatArray:
        return self.weights if self.train_down else self.weights[self.rank :]

    def set_parameters(self, vector: ArrayLike) -> None:
        """Replace what is trained.

        Raises
        ------
        DimensionMismatch, InvalidInput
            If the vector has another length, or holds NaN or infinity; nothing was changed.
        """
        self._trained[...] = as_vector(vector, self._trained.size, "parameters").reshape(self._trained.shape)
        self.refresh()

    def gradient(self, x: ArrayLike, output_gradient: ArrayLike) -> FloatArray:
        """The mean gradient of the parameters over samples, given that of the output at each.

        Parameters
        ----------
        x, output_gradient
            One sample (dim,), or n of them (n, dim).

        Returns
        -------
        array
            In the order of `parameters`; zero without a sample.

        Raises
        ------
        DimensionMismatch, InvalidInput
            If the shapes do not fit, a number is not finite, or the result leaves the range of float32.
        """
        return self._of_samples(x, output_gradient, squares=False)

    def fisher(self, x: ArrayLike, output_gradient: ArrayLike) -> FloatArray:
        """The mean of the squares of the gradients of single samples: the diagonal of the empirical Fisher information.

        It is of single samples, whose gradients may cancel in the mean (gradients ±1 have a Fisher of 1). Arguments and
        errors are those of `gradient`; memory does not grow with n.
        """
        return self._of_samples(x, output_gradient, squares=True)

    def _of_samples(self, x: ArrayLike, output_gradient: ArrayLike, *, squares: bool) -> FloatArray:
        rows, gradients = self._rows(x, "input"), self._rows(output_gradient, "gradient")
        out = np.zeros(self._trained.shape, dtype=np.float32)
        method = self.fisher_batch if squares else self.backward_batch
        method(rows, gradients, out, 1 / max(len(rows), 1), up_only=not self.train_down)
        if not np.isfinite(out).all():
            raise InvalidInput("the gradient of the samples leaves the range of float32: scale them down")
        return out.ravel()

    def _rows(self, value: ArrayLike, what: str) -> FloatArray:
        if is_matrix(value):
            return as_matrix(value, self.dim, what)
        return as_vector(value, self.dim, what)[np.newaxis]

    def step(self, gradient: ArrayLike, learning_rate: float) -> None:
        """Move the parameters against a gradient.

        Raises
        ------
        ConfigError
            If the learning rate is out of range.
        DimensionMismatch, InvalidInput
            If the gradient has another length, a number is not finite, or the weights would leave the range of
            float32; nothing was changed.
        """
        if not isinstance(learning_rate, float | int) or not 0 <= learning_rate <= LARGEST_RATE:
            raise ConfigError(f"learning rate is {learning_rate!r}, expected 0 to {LARGEST_RATE:g}")
        direction = as_vector(gradient, self._trained.size, "gradient")
        with np.errstate(over="ignore"):
            self.set_parameters(self._trained.ravel() - np.float32(learning_rate) * direction)

    def absorb(self, maps: Sequence[LowRank], *, queries: ArrayLike | None = None) -> float:
        """Do what `maps` do from now on, besides what it does: the tiers above become part of it.

        Parameters
        ----------
        maps
            Low-rank maps of the same input; see `sona_pg.learning.merging.composed` for one on top of this layer.
        queries
            Sample (n, dim) of inputs, to decide what is kept where the joint rank exceeds that of the layer.

        Returns
        -------
        float
            What it differs by from the sum, relative to it; see `sona_pg.learning.merging.merge`.

        Raises
        ------
        DimensionMismatch, InvalidInput
            As `merge`; nothing was changed.
        ConfigError
            If the scale of the layer is 0.
        """
        merged, error = merge([self, *maps], self.rank, queries=queries)
        self._take(merged)
        return error

    def orthonormalised(self) -> LoRALayer:
        """The same layer with A orthonormal: B then holds the coordinates of ΔW, in the form that ΔW determines.

        Columns of A beyond the rank of ΔW, which B has nothing for, lie in the span of the old A, as far as that goes.

        Raises
        ------
        ConfigError
            If the scale of the layer is 0.
        """
        made = LoRALayer(self.dim, self.rank, self.layer_idx, scale=self.scale, train_down=self.train_down)
        made.load(self.weights)
        made._take(gauge_fixed(self))
        return made

    def _take(self, source: LowRank) -> None:
        """Take over a map with A orthonormal and of no larger rank; the rest of A stays as near as it can."""
        if not self.scale:
            raise ConfigError("the scale of the layer is 0: set_scale first, nothing that B holds can be seen")
        used = 0 if source.is_zero else source.rank
        first = source.weights[:used].astype(np.float64)
        own = self.weights[: self.rank].astype(np.float64)
        _, lengths, rest = np.linalg.svd(own - (own @ first.T) @ first, full_matrices=False)
        spare = orthonormal_rows(self.rank, self.dim, 0).astype(np.float64)
        q, r = np.linalg.qr(np.vstack([first, rest[lengths > 1e-6 * np.linalg.norm(own)], spare]).T)
        down = (q * np.where(np.diag(r) < 0, -1.0, 1.0)).T[: self.rank]
        up = np.zeros((self.rank, self.dim))
        if used:
            up[:used] = source.weights[used:].astype(np.float64) * (source.scale / self.scale)
        self.load(np.vstack([down, up]))


class BaseLoRA:
    """Layers that the background loop trains; a fresh one changes nothing, bit for bit.

    Parameters
    ----------
    hidden_dim
        Dimension of inputs and outputs.
    rank, num_layers
        As in `config`, where given.
    config
        Settings; the defaults for the dimension without.
    items
        Sample (n, dim) of what inputs are compared with, for the initial directions.
    seed
        Of random ones.

    Raises
    ------
    ConfigError
        If a setting is out of range, or the rank exceeds the dimension.

    Examples
    --------
    >>> import numpy as np
    >>> base = BaseLoRA(64, rank=4, num_layers=2)
    >>> base.layers[1].step(-np.ones(4 * 64), 0.1)
    >>> out = np.zeros(64, dtype=np.float32)
    >>> base.forward_layer(1, np.ones(64), out)
    >>> bool(out.any()), base.param_count
    (True, 1024)
    """

    def __init__(
        self,
        hidden_dim: int,
        rank: int | None = None,
        num_layers: int | None = None,
        *,
        config: LoraConfig | None = None,
        items: ArrayLike | None = None,
        seed: int = 0,
    ) -> None:
        if not isinstance(hidden_dim, int) or hidden_dim is True or not 1 <= hidden_dim <= MAX_DIM:
            raise ConfigError(f"dimension is {hidden_dim!r}, expected a whole number from 1 to {MAX_DIM}")
        settings = LoraConfig.for_dim(hidden_dim) if config is None else config
        settings = settings if rank is None else replace(settings, rank=rank)
        self.config = settings if num_layers is None else replace(settings, num_layers=num_layers)
        self.hidden_dim = hidden_dim
        first = checked_seed(seed)
        self.layers = tuple(
            LoRALayer(
                hidden_dim,
                self.config.rank,
                index,
                scale=self.alpha / self.config.rank,
                train_down=self.config.train_down,
                items=items,
                seed=(first + index) % (1 << 64),
            )
            for index in range(self.config.num_layers)
        )

    @property
    def num_layers(self) -> int:
        """How many layers there are."""
        return len(self.layers)

    @property
    def rank(self) -> int:
        """Rank of every layer."""
        return self.config.rank

    @property
    def alpha(self) -> float:
        """α; every layer's output is scaled by α / rank."""
        return float(self.rank if self.config.alpha is None else self.config.alpha)

    @property
    def param_count(self) -> int:
        """How many weights there are."""
        return sum(layer.param_count for layer in self.layers)

    def set_alpha(self, alpha: float) -> None:
        """Scale the output of every layer by ``alpha / rank`` from now on.

        Raises
        ------
        ConfigError
            If it is out of range.
        """
        self.config = replace(self.config, alpha=alpha)
        for layer in self.layers:
            layer.set_scale(self.alpha / self.rank)

    def forward_layer(self, layer_idx: int, x: ArrayLike, out: FloatArray) -> None:
        """Add a layer's output: ``out += (alpha / rank) · (x A) B``.

        Parameters
        ----------
        layer_idx
            From 0.
        x
            (dim,), or rows (n, dim).
        out
            float32 of the shape of x, contiguous and writeable; changed in place.

        Raises
        ------
        ConfigError
            If there is no such layer.
        DimensionMismatch, InvalidInput
            If a shape does not fit, or x holds NaN or infinity; `out` is then unchanged.
        """
        layer = self._layer(layer_idx)
        if not isinstance(out, np.ndarray) or out.ndim != 2:
            layer.forward(x, out)
            return
        if out.dtype != np.float32 or not (out.flags.c_contiguous and out.flags.writeable and out.flags.aligned):
            raise InvalidInput("output must be contiguous, writeable float32 rows: it is changed in place")
        layer.forward_batch(as_matrix(x, self.hidden_dim, "input"), out)

    def merge_weights(self, model_weights: NDArray[np.floating], layer_idx: int) -> None:
        """Fold a layer into a dense matrix: ``W += (alpha / rank) · A B``, for a model that computes ``x W``.

        Parameters
        ----------
        model_weights
            (dim, dim), of any float type, writeable; changed in place.
        layer_idx
            From 0.

        Raises
        ------
        ConfigError
            If there is no such layer.
        InvalidInput
            If the matrix is none, has another shape, holds NaN or infinity, or its sum would; it is then unchanged.
        """
        layer, d = self._layer(layer_idx), self.hidden_dim
        fits = (
            isinstance(model_weights, np.ndarray) and model_weights.dtype.kind == "f" and model_weights.flags.writeable
        )
        if not fits or model_weights.shape != (d, d):
            raise InvalidInput(f"weights of the model must be a writeable float array of shape {(d, d)}")
        with np.errstate(over="ignore", invalid="ignore"):
            delta = np.float32(layer.scale) * layer.weights[: self.rank].T @ layer.weights[self.rank :]
            merged = (model_weights + delta).astype(model_weights.dtype)
        if not np.isfinite(merged).all():
            raise InvalidInput("weights of the model hold NaN or infinity, or would: nothing was changed")
        if not layer.is_zero:
            model_weights[...] = merged

    def _layer(self, layer_idx: int) -> LoRALayer:
        if not isinstance(layer_idx, int) or layer_idx is True or not 0 <= layer_idx < len(self.layers):
            raise ConfigError(f"layer is {layer_idx!r}, expected a whole number from 0 to {len(self.layers) - 1}")
        return self.layers[layer_idx]

    def state(self) -> dict[str, NDArray[np.generic]]:
        """Everything that a continuation needs, as arrays; A (rank, dim) and B (dim, rank) are named as PEFT does."""
        parts: dict[str, NDArray[np.generic]] = {"alpha": np.array(self.alpha)}
        for layer in self.layers:
            parts[_name(layer.layer_idx, "A")] = layer.weights[: self.rank]
            parts[_name(layer.layer_idx, "B")] = layer.weights[self.rank :].T
        return parts

    def load_state(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Continue from what `state` gave; bit for bit.

        Raises
        ------
        LearningError
            If a part is missing, of another shape, or not finite; nothing was changed.
        """
        check_parts("base LoRA", state, self.state())
        try:
            self.set_alpha(float(state["alpha"]))
        except ConfigError as cause:
            raise LearningError(f"the base LoRA's state is damaged ({cause})") from cause
        for layer in self.layers:
            layer.load(np.vstack([state[_name(layer.layer_idx, "A")], state[_name(layer.layer_idx, "B")].T]))

    def to_bytes(self) -> bytes:
        """Everything that a continuation needs, after its SHA-256."""
        c = self.config
        header = {"base_lora": FILE_FORMAT, "dim": self.hidden_dim, "rank": c.rank, "layers": c.num_layers}
        return pack(header | {"train_down": int(c.train_down)}, self.state())

    @classmethod
    def from_bytes(cls, data: bytes) -> BaseLoRA:
        """The base LoRA that `to_bytes` gave, bit for bit.

        Raises
        ------
        LearningError
            If the data are damaged, or of something else.
        """
        header, arrays = unpack_any(data, "base LoRA")
        try:
            if not isinstance(header, dict):
                raise TypeError("its header is no object")
            if header["base_lora"] != FILE_FORMAT:
                raise ConfigError(f"format is {header['base_lora']!r}, expected {FILE_FORMAT}")
            dim, layers = header["dim"], header["layers"]
            config = LoraConfig(rank=header["rank"], num_layers=layers, train_down=bool(header["train_down"]))
            if set(arrays) != {"alpha", *(_name(index, part) for index in range(layers) for part in "AB")}:
                raise ConfigError("its parts are not those of its layers")
            # Before memory is taken for what the header claims.
            claimed = (layers, config.rank, dim)
            if sum(part.size for part in arrays.values()) != 1 + 2 * int(np.prod(claimed, dtype=object)):
                raise ConfigError(f"its parts are smaller or larger than {claimed}")
            made = cls(dim, config=config)
        except (KeyError, TypeError, ConfigError) as cause:
            raise LearningError(f"this is no state of a base LoRA, or a damaged one ({cause})") from cause
        made.load_state(arrays)
        return made

    def save(self, path: FilePath) -> None:
        """Write it to a file, whole or not at all.

        Raises
        ------
        IoError
            If the file cannot be written; what was there is unchanged.
        """
        write_file(path, self.to_bytes())

    @classmethod
    def load(cls, path: FilePath) -> BaseLoRA:
        """The base LoRA that `save` wrote, bit for bit.

        Raises
        ------
        IoError
            If the file cannot be read, is damaged, or of something else.
        """
        data = read_file(path)
        try:
            return cls.from_bytes(data)
        except LearningError as cause:
            raise IoError(f"{path!r} holds no base LoRA that can be read: {cause}") from cause


def _name(layer_idx: int, part: str) -> str:
    return f"base_model.model.layers.{layer_idx}.lora_{part}.weight"
