"""The instruction sets and their choice; `as_vector`, `dot_rows`, `add_rows` and `unit` on each of them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sona_pg import kernels
from sona_pg.errors import ConfigError, DimensionMismatch, InvalidInput
from sona_pg.kernels import _simd, reference

from .layouts import EPS, Array, Floats, Layout, bits, read_only, strided, unaligned, wide_range

NAMES = ("avx512", "avx2", "scalar")
LARGEST = float(np.finfo(np.float32).max)
NOT_FINITE = (0x7FC00000, 0xFFC00000, 0x7F800001, 0x7F800000, 0xFF800000)  # NaN, -NaN, signalling NaN, inf, -inf
ROOT = Path(kernels.__file__).parents[2]


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a new interpreter, with these variables set."""
    own = {key: value for key, value in os.environ.items() if key != "SONA_SIMD"}
    path = os.pathsep.join([str(ROOT), *sys.path])
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**own, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# ---- the choice of an instruction set --------------------------------------------------------------------------------


def test_available_is_what_the_cpu_says() -> None:
    flags: set[str] = set()
    if sys.platform == "linux" and os.uname().machine == "x86_64":
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        flags = set(next(line for line in lines if line.startswith("flags")).split())
    needed = {"avx512": {"avx512f", "avx512dq", "avx512vl"}, "avx2": {"avx2", "fma"}, "scalar": set()}
    assert kernels.available() == tuple(name for name in NAMES if needed[name] <= flags)


def test_use_and_auto(isa: str) -> None:
    assert kernels.active() == isa
    kernels.use("auto")
    assert kernels.active() == kernels.available()[0]


def test_unknown_name_is_refused_and_changes_nothing(isa: str) -> None:
    for name in ("sse9", "AVX2", "", "scalar "):
        with pytest.raises(ConfigError, match="expected one of auto, avx512, avx2, scalar"):
            kernels.use(name)
        assert kernels.active() == isa


def test_name_that_this_cpu_lacks_is_refused_and_changes_nothing(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_simd, "_NAMES", ("neon", *NAMES))
    assert "neon" not in kernels.available()
    with pytest.raises(ConfigError, match=r"asks for 'neon', but this CPU only runs .*scalar: choose one of these"):
        kernels.use("neon")
    assert kernels.active() == isa


PRINT_ACTIVE = "from sona_pg import kernels; print(kernels.active())"


@pytest.mark.parametrize("asked", ["", "auto", *NAMES])
def test_environment_chooses(asked: str) -> None:
    done = python(PRINT_ACTIVE, SONA_SIMD=asked)
    if asked in NAMES and asked not in kernels.available():
        assert done.returncode != 0
        assert f"SONA_SIMD asks for '{asked}', but this CPU only runs" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == (asked if asked in NAMES else kernels.available()[0])


def test_unknown_environment_is_refused() -> None:
    done = python(PRINT_ACTIVE, SONA_SIMD="sse9")
    assert done.returncode != 0
    assert "ConfigError: SONA_SIMD is 'sse9', expected one of auto, avx512, avx2, scalar" in done.stderr


# ---- as_vector -------------------------------------------------------------------------------------------------------


def test_vector_of_any_layout_is_converted(isa: str, n: int, layout: Layout, rng: np.random.Generator) -> None:
    x = rng.standard_normal(n).astype(np.float16).astype(np.float32)
    given_value = layout(x.copy())
    vector = kernels.as_vector(given_value, n)
    assert type(vector) is np.ndarray
    assert vector.dtype == np.dtype("=f4")
    assert vector.shape == (n,)
    assert vector.flags.c_contiguous
    assert bits(vector) == bits(x)
    assert bits(np.array(given_value, dtype=np.float32)) == bits(x)  # the given one is as before


def test_vector_that_is_one_already_is_not_copied(isa: str, n: int) -> None:
    for vector in (np.zeros(n, dtype=np.float32), read_only(np.zeros(n, dtype=np.float32))):
        assert kernels.as_vector(vector) is vector
        assert kernels.as_vector(vector, n) is vector


def test_integers_and_booleans_are_numbers(isa: str) -> None:
    for value in ([3, 0, 1], np.array([3, 0, 1], dtype=np.uint8), np.array([3, 0, 1], dtype=np.int64)):
        assert kernels.as_vector(value).tolist() == [3, 0, 1]
    assert kernels.as_vector(np.array([True, False])).tolist() == [1, 0]


@settings(deadline=None, database=None, max_examples=60)
@given(st.lists(st.floats(width=32, allow_nan=True, allow_infinity=True), max_size=40), st.data())
def test_vector_is_taken_exactly_if_it_is_finite(values: list[float], data: st.DataObject) -> None:
    before = kernels.active()
    expected = np.array(values, dtype=np.float32)
    value = data.draw(st.sampled_from([values, expected, expected.astype(np.float64)]))
    try:
        for name in kernels.available():
            kernels.use(name)
            if np.isfinite(expected).all():
                assert bits(kernels.as_vector(value)) == bits(expected)  # type: ignore[arg-type]
            else:
                with pytest.raises(InvalidInput, match="holds NaN or infinity"):
                    kernels.as_vector(value)  # type: ignore[arg-type]
    finally:
        kernels.use(before)


@pytest.mark.parametrize("pattern", NOT_FINITE, ids=hex)
def test_not_finite_is_refused_at_every_position(isa: str, n: int, pattern: int, rng: np.random.Generator) -> None:
    x = rng.standard_normal(n).astype(np.float32)
    other = unaligned(x)
    for position in range(n):
        for vector in (x, other):
            kept = vector[position]
            vector.view(np.uint32)[position] = pattern
            with pytest.raises(InvalidInput, match=r"^query holds NaN or infinity"):
                kernels.as_vector(vector, n, "query")
            vector[position] = kept
    assert kernels.as_vector(x) is x


def test_not_finite_is_refused_in_every_layout(isa: str, dim: int, layout: Layout) -> None:
    for bad in (np.nan, np.inf, -np.inf):
        for position in (0, dim // 2, dim - 1):
            x = np.ones(dim, dtype=np.float32)
            x[position] = bad
            with pytest.raises(InvalidInput):
                kernels.as_vector(layout(x))


def test_infinities_of_both_signs_do_not_cancel(isa: str, n: int) -> None:
    x = np.tile(np.array([np.inf, -np.inf], dtype=np.float32), n)[:n]
    if n:
        with pytest.raises(InvalidInput):
            kernels.as_vector(x)


def test_extreme_finite_numbers_are_kept(isa: str, n: int) -> None:
    extremes = np.array([LARGEST, -LARGEST, 1e-45, -1e-45, -0.0, 1.2e-38], dtype=np.float32)
    x = np.resize(extremes, n)
    assert bits(kernels.as_vector(x)) == bits(x)
    assert bits(kernels.as_vector(x.astype(np.float64))) == bits(x)


def test_number_beyond_float32_is_refused(isa: str) -> None:
    for value in ([1e39], np.array([0.0, -1e300]), np.array([1e39], dtype=np.longdouble)):
        with pytest.raises(InvalidInput, match="holds NaN or infinity"):
            kernels.as_vector(value)


@pytest.mark.parametrize(
    "value",
    [
        np.zeros((2, 3), dtype=np.float32),
        np.zeros((1, 1)),
        np.array(3, dtype=np.float32),
        [[1.0, 2.0]],
        [[1.0], [1.0, 2.0]],
        ["1.0"],
        "1.0",
        b"1.0",
        None,
        [None],
        {1.0: 2.0},
        object(),
        [1 + 2j],
        np.zeros(2, dtype="M8[s]"),
        [1 << 200],
        3.0,
    ],
    ids=lambda value: re.sub(r" at 0x\w+", "", repr(value)),
)
def test_what_is_no_vector_is_refused(value: object) -> None:
    with pytest.raises(InvalidInput, match="embedding"):
        kernels.as_vector(value, what="embedding")  # type: ignore[arg-type]


def test_other_dimension_is_refused(layout: Layout) -> None:
    with pytest.raises(DimensionMismatch, match="query has 4 dimensions, expected 3") as caught:
        kernels.as_vector(layout(np.zeros(4, dtype=np.float32)), 3, "query")
    assert (caught.value.expected, caught.value.actual) == (3, 4)
    with pytest.raises(DimensionMismatch):
        kernels.as_vector([], 1)


# ---- dot_rows and add_rows -------------------------------------------------------------------------------------------


COUNTS = (0, 1, 2, 3, 4, 5, 7)  # rows are taken by four, by two and singly


@pytest.mark.parametrize("change", [np.copy, unaligned, read_only])
def test_dot_rows(isa: str, n: int, change: Layout, rng: np.random.Generator) -> None:
    for count in COUNTS:
        rows, x = wide_range(rng, count, n), wide_range(rng, n)
        around = np.full(count + 2, 7, dtype=np.float32)
        out = around[1:-1]
        kernels.dot_rows(change(rows), change(x), out)  # type: ignore[arg-type]
        exact = rows.astype(np.float64) @ x.astype(np.float64)
        bound = 2 * n * EPS * (np.abs(rows.astype(np.float64)) @ np.abs(x.astype(np.float64)))
        assert (np.abs(out - exact) <= bound).all()
        assert (np.abs(out - reference.dot_rows(rows, x)) <= 2 * bound).all()
        assert around[0] == around[-1] == 7


@pytest.mark.parametrize("change", [np.copy, unaligned, read_only])
def test_add_rows(isa: str, n: int, change: Layout, rng: np.random.Generator) -> None:
    for count in COUNTS:
        rows, weight, before = wide_range(rng, count, n), wide_range(rng, count), wide_range(rng, n)
        around = np.concatenate([[7], before, [7]], dtype=np.float32)
        if change is unaligned:
            around = unaligned(around)
        out = around[1:-1]
        kernels.add_rows(change(rows), change(weight), out)  # type: ignore[arg-type]
        exact = before + weight.astype(np.float64) @ rows.astype(np.float64)
        magnitude = np.abs(before) + np.abs(weight.astype(np.float64)) @ np.abs(rows.astype(np.float64))
        bound = 2 * (count + 1) * EPS * magnitude
        by_reference = before.copy()
        reference.add_rows(rows, weight, by_reference)
        assert (np.abs(out - exact) <= bound).all()
        assert (np.abs(out - by_reference) <= 2 * bound).all()
        assert around[0] == around[-1] == 7
        if count == 0:
            assert bits(out) == bits(before)


def test_dot_and_add_take_only_contiguous_float32(isa: str) -> None:
    rows, x, out = np.ones((2, 3), dtype=np.float32), np.ones(3, dtype=np.float32), np.full(2, 7, dtype=np.float32)
    wrong = (np.ones(3), x.astype(np.float16), strided(x), x.astype(">f4"), [1.0, 1.0, 1.0])
    for bad in wrong:
        with pytest.raises((TypeError, ValueError)):
            kernels.dot_rows(rows, bad, out)  # type: ignore[arg-type]
        with pytest.raises((TypeError, ValueError)):
            kernels.add_rows(rows.T.copy(), bad, out)  # type: ignore[arg-type]
    for bad_rows in (rows.T.copy().T, rows.astype(np.float64), rows[0]):
        with pytest.raises((TypeError, ValueError)):
            kernels.dot_rows(bad_rows, x, out)  # type: ignore[arg-type]
    for bad_out in (read_only(out), out.astype(np.float64), strided(out)):
        with pytest.raises((TypeError, ValueError)):
            kernels.dot_rows(rows, x, bad_out)  # type: ignore[arg-type]
        with pytest.raises((TypeError, ValueError)):
            kernels.add_rows(rows.T.copy(), x, bad_out)  # type: ignore[arg-type]
        assert bad_out.tolist() == [7, 7]
    assert out.tolist() == [7, 7]


def test_dot_and_add_refuse_other_shapes(isa: str) -> None:
    rows, out = np.ones((2, 3), dtype=np.float32), np.full(4, 7, dtype=np.float32)

    def ones(n: int) -> Floats:
        return np.ones(n, dtype=np.float32)

    for wrong in (0, 2, 4):
        with pytest.raises(DimensionMismatch):
            kernels.dot_rows(rows, ones(wrong), out[:2])
        with pytest.raises(DimensionMismatch):
            kernels.add_rows(rows, ones(2), out[:wrong])
    for wrong in (0, 1, 3):
        with pytest.raises(DimensionMismatch):
            kernels.dot_rows(rows, ones(3), out[:wrong])
        with pytest.raises(DimensionMismatch):
            kernels.add_rows(rows, ones(wrong), out[:3])
    assert out.tolist() == [7, 7, 7, 7]


# ---- unit ------------------------------------------------------------------------------------------------------------


def test_unit_has_length_one(isa: str, dim: int, rng: np.random.Generator) -> None:
    for x in (wide_range(rng, dim), rng.standard_normal(dim).astype(np.float32)):
        before = bits(x)
        unit = kernels.unit(read_only(x))
        exact = x.astype(np.float64)
        exact /= np.linalg.norm(exact)
        assert unit.dtype == np.float32
        assert (np.abs(unit - exact) <= (dim + 4) * EPS * np.abs(exact)).all()
        assert kernels.unit(unit) is unit
        assert bits(x) == before


def test_unit_vector_keeps_its_bits_and_so_does_zero(isa: str, dim: int) -> None:
    x = np.zeros(dim, dtype=np.float32)
    assert kernels.unit(x) is x
    x[-1] = -1
    assert kernels.unit(x) is x
    assert kernels.unit(np.zeros(0, dtype=np.float32)).shape == (0,)


def test_unit_takes_only_contiguous_float32() -> None:
    x = np.ones(3, dtype=np.float32)
    bad: Array
    for bad in (x.astype(np.float64), strided(x), x.astype(">f4"), np.ones((1, 3), dtype=np.float32)):
        with pytest.raises(InvalidInput, match="as_vector"):
            kernels.unit(bad)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        kernels.unit([1.0])  # type: ignore[arg-type]


def test_unit_of_a_bare_number_is_refused() -> None:
    code = "import numpy as np; from sona_pg import kernels; kernels.unit(np.array(3, dtype=np.float32))"
    assert "InvalidInput" in python(code).stderr


# ---- memory ----------------------------------------------------------------------------------------------------------

# A page without rights on either side of every array: one byte too far, read or written, ends the process.
GUARDED = """
import ctypes, mmap
import numpy as np
from sona_pg import kernels

protect = ctypes.CDLL(None, use_errno=True).mprotect
protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
pages = []

def guarded(x, at_end):
    page = mmap.PAGESIZE
    room = -(-max(x.nbytes, 1) // page) * page
    area = mmap.mmap(-1, room + 2 * page)
    pages.append(area)
    begin = ctypes.addressof(ctypes.c_char.from_buffer(area))
    for closed in (begin, begin + page + room):
        assert protect(closed, page, 0) == 0
    offset = page + (room - x.nbytes if at_end else 0)
    copy = np.frombuffer(area, dtype=np.uint8)[offset : offset + x.nbytes].view(np.float32).reshape(x.shape)
    copy[...] = x
    return copy

random = np.random.default_rng(1)
for name in kernels.available():
    kernels.use(name)
    for n in (1, 7, 8, 9, 15, 16, 17, 31, 33, 384):
        for at_end in (False, True):
            def some(*shape):
                return guarded(random.standard_normal(shape).astype(np.float32), at_end)

            x = some(n)
            kernels.as_vector(x)
            kernels.unit(x)
            for count in (1, 2, 3, 4, 5, 7):
                kernels.dot_rows(some(count, n), x, some(count))
                kernels.add_rows(some(count, n), some(count), some(n))
            rank = min(n, 7)
            low_rank, served = kernels.LowRank(n, rank), kernels.LowRank(n, rank)
            low_rank.forward(x, some(n))
            low_rank.load(random.standard_normal((2 * rank, n)))
            low_rank.forward(x, some(n))
            low_rank.forward_batch(some(3, n), some(3, n))
            low_rank.backward(x, some(n), some(2 * rank, n))
            low_rank.add(some(2 * rank, n), 0.01)
            trainer = kernels.ListwiseTrainer(low_rank, served, 1.0, 0.9, 0.99, 1e-8)
            skip = np.zeros(1, dtype=np.int64)
            trainer.step(x, [some(n), some(n), some(n)], [1.0, 0.0, 2.0], some(6, n), skip, 3, 9, 0.01, 0.5)
print("done", kernels.available())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="protects pages by Linux's mprotect")
def test_nothing_is_read_or_written_beside_the_arrays() -> None:
    done = python(GUARDED)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("done")
