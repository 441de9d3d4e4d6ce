# The sidecar alone: one static program, the authorities of the web, a user, and a folder for the decision log.
# docs/deploy.md says how to build, run and check it.
ARG BUILDER=docker.io/library/rust:1.95-slim-bookworm

FROM ${BUILDER} AS build
WORKDIR /src
COPY . .
ARG DPA_COMMIT=unknown
# With a target of its own, what runs only during the build (macros, build scripts) stays dynamic, as it has to be.
RUN RUSTFLAGS="-C target-feature=+crt-static" \
    cargo build --release --locked --target "$(rustc --print host-tuple)" \
    && install -D "target/$(rustc --print host-tuple)/release/dpa-sidecar" /image/dpa-sidecar \
    && install -D -m 0644 LICENSE /image/LICENSE \
    && install -D -m 0644 /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/ca-certificates.crt \
    && echo 'dpa-sidecar:x:65532:65532:dpa-sidecar:/:/sbin/nologin' >/image/etc/passwd \
    && echo 'dpa-sidecar:x:65532:' >/image/etc/group \
    && install -d -o 65532 -g 65532 -m 0750 /image/var/log/dpa-sidecar

FROM scratch
ARG DPA_COMMIT=unknown
LABEL org.opencontainers.image.title="dpa-sidecar" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${DPA_COMMIT}"
COPY --from=build /image /
# `demo` makes its files where a folder may be written to; there is no /tmp.
ENV TMPDIR=/var/log/dpa-sidecar
VOLUME /var/log/dpa-sidecar
USER 65532:65532
# Kubernetes does not look at it: there, probes ask /readyz and /livez.
HEALTHCHECK CMD ["/dpa-sidecar", "healthcheck", "--config", "/etc/dpa-sidecar/sidecar.yaml"]
ENTRYPOINT ["/dpa-sidecar"]
CMD ["run", "--config", "/etc/dpa-sidecar/sidecar.yaml"]
