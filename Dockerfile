# syntax=docker/dockerfile:1
#
#   docker build -t tollkeeper .
#   docker run -p 4000:4000 -v tollkeeper:/var/lib/tollkeeper -v ./config.yaml:/app/config.yaml:ro tollkeeper
#
# Needs BuildKit (the default since Docker 23) for the build caches.

FROM rust:slim-bookworm AS build
# cmake, g++ and make: zlib-ng, SQLite and jemalloc are compiled in.
RUN rm -f /etc/apt/apt.conf.d/docker-clean
RUN --mount=type=cache,target=/var/cache/apt,sharing=locked \
    --mount=type=cache,target=/var/lib/apt,sharing=locked \
    apt-get update && apt-get install -y --no-install-recommends cmake g++ make pkg-config
WORKDIR /src
COPY . .
# The target directory is a cache and no layer, so the binary is taken out of it in the same step.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target,sharing=locked \
    cargo build --profile dist --locked --bin tollkeeper \
 && install -D target/dist/tollkeeper /out/tollkeeper

FROM debian:bookworm-slim
# curl, because compose files written for LiteLLM have a healthcheck that calls it. For one that calls
# python3: --build-arg EXTRA_PACKAGES=python3, or take it out: the image has its own.
ARG EXTRA_PACKAGES=""
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates curl ${EXTRA_PACKAGES} \
 && rm -rf /var/lib/apt/lists/*
# The uid is fixed, so that what it owns on a volume stays its own in the next image.
RUN groupadd --system --gid 10001 tollkeeper \
 && useradd --system --uid 10001 --gid 10001 --home-dir /var/lib/tollkeeper --no-create-home \
      --shell /usr/sbin/nologin tollkeeper \
 && install -d -m 0700 -o 10001 -g 10001 /var/lib/tollkeeper
COPY --from=build /out/tollkeeper /usr/local/bin/tollkeeper
COPY LICENSE NOTICE /usr/share/doc/tollkeeper/
# Serves what the environment has keys for; a config mounted here takes its place.
COPY contrib/docker/config.yaml /app/config.yaml
ARG VERSION=0.1.0
ARG REVISION=""
LABEL org.opencontainers.image.title="tollkeeper" \
      org.opencontainers.image.description="The edge and the gate in front of every model" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="docker.io/library/debian:bookworm-slim"
ENV TOLLKEEPER_DATA_DIR=/var/lib/tollkeeper
WORKDIR /app
USER 10001:10001
VOLUME ["/var/lib/tollkeeper"]
EXPOSE 4000
STOPSIGNAL SIGTERM
# The address is the config's first listener; with another --port set TOLLKEEPER_URL.
HEALTHCHECK --interval=30s --timeout=5s --start-period=20s --retries=3 \
  CMD ["tollkeeper", "healthcheck"]
# The first process only starts the gateway and stays when `tollkeeper upgrade` replaces it; whatever is
# given to `docker run` goes to `tollkeeper`, and its exit code is the container's.
ENTRYPOINT ["tollkeeper", "supervise", "--"]
