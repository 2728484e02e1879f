"""Benchmarks: every figure beside a rival measured in the same process, interleaved."""
