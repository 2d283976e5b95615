# Image of retraining: docker build -f deploy/training.Dockerfile -t recsys-training .
# The digest and the lock files are renewed as those of the Dockerfile.
FROM python:3.12.15-slim-bookworm@sha256:34386ef0cb081344d7ec1c103ba398e6e9f64e9ab3a1509accc92a4e24a07258 AS build
WORKDIR /source
COPY locks locks
RUN python -m venv /opt/build \
    && /opt/build/bin/pip install --no-cache-dir --require-hashes -r locks/build.txt \
    && /opt/build/bin/pip wheel --no-cache-dir --no-build-isolation --require-hashes -r locks/all.txt -w /wheels
COPY pyproject.toml README.md LICENSE ./
COPY src src
COPY conf conf
RUN /opt/build/bin/pip wheel --no-cache-dir --no-build-isolation --no-deps . -w /wheels \
    && python -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir --no-index --no-deps /wheels/*.whl

FROM python:3.12.15-slim-bookworm@sha256:34386ef0cb081344d7ec1c103ba398e6e9f64e9ab3a1509accc92a4e24a07258
RUN groupadd --gid 10001 recsys \
    && useradd --uid 10001 --gid recsys --no-create-home --home-dir /tmp recsys
COPY --from=build /opt/venv /opt/venv
WORKDIR /tmp
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
USER recsys
ENTRYPOINT ["recsys"]
CMD ["--help"]
