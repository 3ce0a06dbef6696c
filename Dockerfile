# The image: one binary, the libraries it needs, the demo pair; no shell, no package manager, nobody is root.
# deploy/image/contents lists what is in it; deploy/image/pack makes the same root without an engine.

FROM docker.io/library/rust:1.90-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends python3 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry cargo build --release --locked --bin cascadia
RUN deploy/image/pack root /image

FROM scratch
LABEL org.opencontainers.image.title="cascadia" org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /image/ /
WORKDIR /
USER 65532:65532
EXPOSE 8080 50051 9090
ENTRYPOINT ["/usr/local/bin/cascadia"]
