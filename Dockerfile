# The image of this package, for Docker, for `docker:` in cluster.yaml and for KubeRay (docs/deployment.md). Two variants:
#   docker build -t ray-pcasgd:cuda .                               torch with the CUDA that requirements.lock pins
#   docker build -t ray-pcasgd:cpu --build-arg TORCH_BACKEND=cpu .  torch and torchvision without CUDA
# The wheels of torch hold CUDA's libraries themselves, so both variants stand on the same small base; the machine gives
# the driver: 580 or newer for CUDA 13.
ARG BASE=debian:bookworm-slim

FROM ${BASE} AS build
ARG UV_VERSION=0.13.9
# What uv calls a backend: cpu, cu130, ...; empty, torch comes from the package index as it is pinned.
ARG TORCH_BACKEND=""
# Packages of the pinned set beyond the package's own: what the head of `ray up` needs to start machines of its cloud.
ARG PACKAGES="boto3"
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/uv \
    && /opt/uv/bin/pip install --no-cache-dir "uv==${UV_VERSION}" \
    && python3 -m venv --without-pip /opt/ray_pcasgd
ENV PATH=/opt/uv/bin:$PATH VIRTUAL_ENV=/opt/ray_pcasgd UV_LINK_MODE=copy
WORKDIR /source
# What changes rarely goes first: a change of the package leaves the gigabytes of its dependencies as they are.
COPY pyproject.toml requirements.lock ./
# PACKAGES holds several words.
# hadolint ignore=SC2086
RUN --mount=type=cache,id=uv,target=/root/.cache/uv \
    uv pip install ${TORCH_BACKEND:+--torch-backend "${TORCH_BACKEND}"} --compile-bytecode \
        --constraint requirements.lock --requirements pyproject.toml ${PACKAGES}
COPY README.md LICENSE ./
COPY ray_pcasgd ray_pcasgd
RUN --mount=type=cache,id=uv,target=/root/.cache/uv uv pip install --compile-bytecode --no-deps .

FROM ${BASE}
# gcc and the headers: agents, and Triton on GPUs, compile their loops over long vectors. wget: KubeRay's probes. rsync,
# ssh: `ray up`. tini: ends what agents leave behind, else `ray stop` waits for it.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates gcc libc6-dev openssh-client python3 python3-dev rsync tini wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 --shell /bin/bash ray \
    # Login shells, which `ray up` uses, set PATH anew.
    && echo "export PATH=/opt/ray_pcasgd/bin:\$PATH" > /etc/profile.d/ray_pcasgd.sh
COPY --from=build /opt/ray_pcasgd /opt/ray_pcasgd
# HOME: `ray up` reads it from the image. NVIDIA_...: NVIDIA's container runtime gives the image GPUs by these.
ENV PATH=/opt/ray_pcasgd/bin:$PATH HOME=/home/ray LANG=C.UTF-8 \
    RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
# A number, so that Kubernetes can see that it is not root.
USER 1000
WORKDIR /home/ray
ENTRYPOINT ["tini", "--"]
CMD ["bash"]
