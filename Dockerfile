# The wheel is built in the first stage and installed without compiler, pip and tests in the second, for an ordinary user.
ARG PYTHON=python:3.13-slim

FROM ${PYTHON} AS build
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
ARG PIP_INDEX_URL=https://pypi.org/simple
WORKDIR /src
COPY pyproject.toml ./
# What it depends on first: that stays in the engine's cache while the code changes.
RUN python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' \
        > /requirements \
    && python -m venv --without-pip /opt/sona \
    && pip --python /opt/sona install --no-cache-dir --requirement /requirements
COPY setup.py README.md LICENSE ./
COPY cython_ext cython_ext
COPY sona_pg sona_pg
COPY migrations migrations
COPY sql sql
COPY examples examples
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .
RUN pip --python /opt/sona install --no-cache-dir --no-deps /wheels/*.whl \
    && find /opt/sona -path '*/sona_pg/*.so' -exec strip --strip-unneeded {} + \
    # numpy.testing imports one module from among the tests.
    && find /opt/sona -path '*/tests/*' -not -type d -not -path '*/numpy/_core/tests/_natype.py' \
        -not -path '*/numpy/_core/tests/__init__.py' -delete \
    && find /opt/sona -path '*/tests*' -type d -empty -delete

FROM ${PYTHON}
RUN groupadd --system --gid 10001 sona \
    && useradd --system --uid 10001 --gid sona --no-create-home --home-dir /var/lib/sona sona \
    && install --directory --owner sona --group sona /var/lib/sona
COPY --from=build /opt/sona /opt/sona
# A number, so that whoever runs it can see that it is not root.
USER 10001:10001
ENV PATH=/opt/sona/bin:$PATH SONA_HOME=/var/lib/sona OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
ENTRYPOINT ["sona"]
CMD ["--help"]
