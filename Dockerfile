# CPU:  docker build -t facenet .
# CUDA: docker build -t facenet:cuda --build-arg EXTRA=cuda12 .     (run with --gpus all)
# run:  docker run --rm -v "$PWD/runs:/work/runs" -v DATA:/data facenet train --config configs/demo.py
FROM python:3.11-slim

ARG EXTRA=""

WORKDIR /opt/facenet
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY facenet_jax facenet_jax
COPY data_tfds data_tfds
COPY configs configs
# The CUDA libraries come as packages of JAX; their versions are JAX's to choose, so no constraints.
# hadolint ignore=DL3013
RUN if [ -z "$EXTRA" ]; then pip install --no-cache-dir -c constraints.txt ".[report,search,tables]"; \
    else pip install --no-cache-dir ".[report,search,tables,$EXTRA]"; fi \
    && useradd --create-home --uid 1000 facenet && mkdir /work && chown facenet /work

USER 1000
WORKDIR /work
ENTRYPOINT ["facenet"]
CMD ["--help"]
