# One image for every role of serve.py, and nothing that trains: no torch, no compiler.
FROM python:3.12-slim-bookworm AS build
COPY constraints.txt /tmp/
# Of what the package depends on, this is what serving imports (a test keeps it so).
RUN python -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir -c /tmp/constraints.txt \
        aiohttp faiss-cpu filelock httptools hydra-core msgspec numpy omegaconf onnx onnxruntime prometheus-client pyarrow redis starlette uvicorn uvloop xxhash

FROM python:3.12-slim-bookworm
# /store holds releases, read only; /data what a server writes: events, and changes of items.
RUN groupadd --gid 10001 recsys \
    && useradd --uid 10001 --gid recsys --no-create-home --home-dir /app recsys \
    && install -d -o recsys -g recsys /app /data \
    && install -d /store
COPY --from=build /opt/venv /opt/venv
WORKDIR /app
COPY src src
COPY conf conf
COPY serve.py ./
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/app/src \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    OMP_NUM_THREADS=1
USER recsys
VOLUME /data
EXPOSE 8080
# Ready when tower and index have answered the self-check of their release.
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8080/readyz', timeout=2)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["python", "serve.py", "host=0.0.0.0", "port=8080", "store=/store"]
CMD ["role=all", "release=production", "events=/data/events.sqlite", "changes=/data/changes.journal"]
