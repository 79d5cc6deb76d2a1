# The server with an agent that needs no model; yours takes its place: docs/deployment.md.
#
# Both images are named by tags, which move to new patch releases. To build from exactly the same files again, name
# digests: docker build --build-arg PYTHON_IMAGE=python@sha256:… --build-arg UV_IMAGE=ghcr.io/astral-sh/uv@sha256:… .
ARG PYTHON_IMAGE=python:3.13-slim-bookworm
ARG UV_IMAGE=ghcr.io/astral-sh/uv:0.13.9

FROM ${UV_IMAGE} AS uv


FROM ${PYTHON_IMAGE} AS build
COPY --from=uv /uv /usr/local/bin/uv
# Another package index: docker build --build-arg UV_DEFAULT_INDEX=https://…
ARG UV_DEFAULT_INDEX
# Bytecode is made here, because whoever runs the image cannot write it. Hard links do not reach out of a cache mount.
ENV UV_COMPILE_BYTECODE=1 \
    UV_LINK_MODE=copy \
    UV_PYTHON_DOWNLOADS=never \
    VIRTUAL_ENV=/opt/agentrun
WORKDIR /build
RUN uv venv "$VIRTUAL_ENV"

# Packages come before the code: they change less often. Of each file the lock knows the hash, and no package gets to
# run code of its own here, as one that is built from source would.
COPY requirements.lock ./
RUN --mount=type=cache,target=/root/.cache/uv \
    uv pip install --require-hashes --no-deps --only-binary :all: -r requirements.lock

COPY pyproject.toml requirements-build.lock README.md LICENSE ./
COPY agentrun_server agentrun_server/
COPY middleware middleware/
RUN --mount=type=cache,target=/root/.cache/uv \
    uv build --wheel --require-hashes --build-constraints requirements-build.lock --out-dir dist \
    && uv pip install --no-deps dist/*.whl \
    && uv pip check \
    && rm "$VIRTUAL_ENV/.lock"


FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="agentrun-server" \
      org.opencontainers.image.description="Put any Python agent behind the OpenAI API" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0"

# Debian keeps only the newest version of a package: one that is pinned cannot be installed for long.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/*

# A user with a name: libraries ask for it, and Kubernetes can tell from the number that it is not root. The folders are
# for volumes, one with API keys and one with what the server stores: an empty volume takes over whose its folder is.
# Nothing else here belongs to the user.
RUN groupadd --gid 10001 agentrun \
    && useradd --uid 10001 --gid agentrun --home-dir /app --no-create-home --shell /usr/sbin/nologin agentrun \
    && install --directory --owner agentrun --group agentrun --mode 0700 /etc/agentrun /var/lib/agentrun

COPY --from=build /opt/agentrun /opt/agentrun
ENV PATH=/opt/agentrun/bin:$PATH \
    AGENTRUN_HOME=/var/lib/agentrun \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
WORKDIR /app
COPY deploy/app.py ./
USER 10001:10001

# What is stored can be written also where nothing else can, and goes with the container unless the volume has a name.
VOLUME /var/lib/agentrun
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 CMD ["agentrun-server", "healthcheck"]
CMD ["agentrun-server", "run", "app:server", "--host", "0.0.0.0"]
