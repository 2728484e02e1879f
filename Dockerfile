# Compiled and installed in the first stage; the second has no compiler and runs as an ordinary user.
FROM python:3.12-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml setup.py README.md LICENSE ./
COPY cython_ext cython_ext
COPY sona_pg sona_pg
COPY migrations migrations
COPY sql sql
RUN python -m venv --without-pip /opt/sona && pip --python /opt/sona install --no-cache-dir .

FROM python:3.12-slim
RUN useradd --system --create-home sona
COPY --from=build /opt/sona /opt/sona
USER sona
ENV PATH=/opt/sona/bin:$PATH OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
ENTRYPOINT ["sona"]
CMD ["--help"]
