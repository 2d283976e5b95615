# One image for every role of `recsys serve`. It holds no torch and no compiler.
#
# The digest is that of an index of all platforms. To renew it, and then the one in compose.yaml:
#   docker buildx imagetools inspect python:3.12-slim-bookworm
# `make locks` renews the lock files, whose hashes pip checks.
FROM python:3.12.15-slim-bookworm@sha256:34386ef0cb081344d7ec1c103ba398e6e9f64e9ab3a1509accc92a4e24a07258 AS build
WORKDIR /source
COPY locks locks
RUN python -m venv /opt/build \
    && /opt/build/bin/pip install --no-cache-dir --require-hashes -r locks/build.txt \
    && /opt/build/bin/pip wheel --no-cache-dir --no-build-isolation --require-hashes -r locks/serving.txt -w /wheels
COPY pyproject.toml README.md LICENSE ./
COPY src src
COPY conf conf
# The extra lists what serving imports; a test checks that it is enough. Every wheel is checked or built here.
RUN /opt/build/bin/pip wheel --no-cache-dir --no-build-isolation --no-deps . -w /wheels \
    && python -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir --no-index --no-deps /wheels/*.whl

FROM python:3.12.15-slim-bookworm@sha256:34386ef0cb081344d7ec1c103ba398e6e9f64e9ab3a1509accc92a4e24a07258
# /store holds releases, read-only. /data holds what a server writes: events and item updates.
RUN groupadd --gid 10001 recsys \
    && useradd --uid 10001 --gid recsys --no-create-home --home-dir /app recsys \
    && install -d -o recsys -g recsys /app /data \
    && install -d /store
COPY --from=build /opt/venv /opt/venv
WORKDIR /app
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    OMP_NUM_THREADS=1
USER recsys
VOLUME /data
EXPOSE 8080
# Ready as soon as tower and index have passed the self-check of their release.
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8080/readyz', timeout=2)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["recsys", "serve", "host=0.0.0.0", "port=8080", "store=/store"]
# access.hosts=[] as at a loopback address, which is where the documentation publishes the port.
CMD ["role=all", "release=production", "events=/data/events.sqlite", "changes=/data/changes.journal", "access.hosts=[]"]
