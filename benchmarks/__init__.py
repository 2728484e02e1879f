"""Benchmarks: every figure beside a rival measured in the same process, interleaved."""

import os

# Two spinning thread pools on two cores were up to 40 times slower: set before NumPy is loaded.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"
