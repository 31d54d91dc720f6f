# A hospital's node.
#
#   docker build -f deploy/node.Dockerfile -t fedcare/node .
#
#   BASE_IMAGE     Debian 12 with Python 3.11; a mirror's name in an air-gapped hospital
#   PIP_INDEX_URL  the package index; not used if deploy/wheelhouse holds wheels
#   TORCH          cpu, or cuda (some GB; with TORCH_INDEX of the CUDA release that the driver takes)
#   TORCH_INDEX    the index torch comes from; not used if deploy/wheelhouse holds wheels
#
# Written for the classic builder as well: no RUN --mount, nothing that needs BuildKit.

ARG BASE_IMAGE=python:3.11-slim-bookworm

# These two stages are the same in both Dockerfiles: what one build made, the other finds in the cache.
FROM ${BASE_IMAGE} AS locked
ARG PIP_INDEX_URL=https://pypi.org/simple
WORKDIR /src
COPY deploy/wheelhouse deploy/wheelhouse
COPY deploy/image/install.sh deploy/image/
COPY deploy/build.lock deploy/coordinator.lock deploy/node.lock deploy/simulation.lock deploy/
COPY requirements-torch.txt ./
RUN deploy/image/install.sh locks /build deploy/build.lock
RUN deploy/image/install.sh locks /opt/fedcare deploy/coordinator.lock

FROM locked AS wheel
COPY pyproject.toml setup.py README.md LICENSE ./
COPY protos protos
COPY studies studies
COPY common common
COPY coordinator coordinator
COPY hospital_node hospital_node
COPY researcher researcher
RUN deploy/image/install.sh wheel

FROM locked AS build
ARG TORCH=cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN deploy/image/install.sh locks /opt/fedcare deploy/node.lock
RUN deploy/image/install.sh torch /opt/fedcare "${TORCH}"
COPY --from=wheel /wheel /wheel
RUN deploy/image/install.sh product /opt/fedcare && deploy/image/install.sh compile /opt/fedcare

FROM ${BASE_IMAGE} AS node
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="FedCare hospital node" \
      org.opencontainers.image.description="Trains on a hospital's own records; masked updates leave, nothing else" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.vendor="FedCare"
COPY deploy/image/strip.sh deploy/image/user.sh /image/
RUN /image/strip.sh && /image/user.sh /etc/fedcare /etc/fedcare-tls /data /var/lib/fedcare && rm -r /image
COPY --from=build /opt/fedcare /opt/fedcare
ENV PATH=/opt/fedcare/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/tmp \
    PYTHONSAFEPATH=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
WORKDIR /
USER 10001:10001
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=10s --start-period=20s --retries=3 \
    CMD ["fedcare", "node", "health", "--config", "/etc/fedcare/node.yaml"]
ENTRYPOINT ["fedcare"]
CMD ["node", "serve", "--config", "/etc/fedcare/node.yaml"]
