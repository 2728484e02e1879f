"""Builds the kernels of cython_ext/ into sona_pg.kernels; everything else stands in pyproject.toml."""

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup

COMPILE = ["-O3", "-std=c11", "-fno-math-errno", "-Wall", "-Wno-unused-function", "-Wno-unused-const-variable"]
DEFINE = [("NPY_NO_DEPRECATED_API", "NPY_1_23_API_VERSION"), ("NPY_TARGET_VERSION", "NPY_1_23_API_VERSION")]

setup(
    ext_modules=cythonize(
        [
            Extension(
                f"sona_pg.kernels.{name}",
                [f"cython_ext/{name}.pyx"],
                include_dirs=["cython_ext", numpy.get_include()],
                depends=[
                    f"cython_ext/{header}"
                    for header in (
                        "simd_types.h",
                        "simd.h",
                        "outer.h",
                        "panels.h",
                        "listwise.h",
                        "fusion.h",
                        "kmeans.h",
                        "ring.h",
                        "ewc.h",
                        "phi.h",
                    )
                ],
                define_macros=DEFINE,
                extra_compile_args=COMPILE,
            )
            for name in ("_simd", "_lora", "_fusion", "_kmeans", "_ring", "_wire", "_ewc", "_phi")
        ],
        include_path=["."],
        language_level=3,
    )
)
