# The system of an emulated Raspberry Pi, as an image for 64-bit Arm: Python, an SSH server, and
# nothing of edgekit's, which a deploy brings along. No Arm program runs while it is built.
ARG TOOLCHAIN=edgekit-toolchain
FROM ${TOOLCHAIN} AS build
ARG OS=bookworm
ARG MIRROR=
COPY edgekit /src/edgekit
COPY targets /src/targets
RUN PYTHONPATH=/src python3 -m edgekit.targets.virtual.image --os "${OS}" --mirror "${MIRROR}" /device

FROM --platform=linux/arm64 scratch
COPY --from=build /device /
EXPOSE 22
CMD ["/usr/local/sbin/device-start"]
