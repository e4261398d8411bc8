# The ExecuTorch runners for 64-bit Arm and x86_64, compiled against the libraries of executorch's
# own wheels. The image holds nothing else: copy them out of it.
ARG TOOLCHAIN=edgekit-toolchain
FROM ${TOOLCHAIN} AS build
COPY constraints.txt /src/constraints.txt
RUN python3 -m venv /venv \
    && /venv/bin/pip install --no-cache-dir -c /src/constraints.txt numpy packaging rich typer \
    && /venv/bin/pip install --no-cache-dir -c /src/constraints.txt --no-deps executorch
COPY edgekit /src/edgekit
COPY targets /src/targets
RUN cd /src && /venv/bin/python -m edgekit runtimes build --output /runners

FROM scratch
COPY --from=build /runners /
