# Compilers for this machine and for 64-bit Arm, and what makes a device's root file system.
ARG BASE=debian:bookworm
FROM ${BASE}
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        ca-certificates debian-archive-keyring g++ g++-aarch64-linux-gnu mmdebstrap \
        openssh-client python3 python3-venv util-linux \
    && rm -rf /var/lib/apt/lists/*
