# syntax=docker/dockerfile:1
# The operator's image: pinned dependencies, checked by hash, and the project's wheel on a slim Python.

FROM python:3.13-slim AS build
ENV UV_NO_CACHE=1 UV_PYTHON_DOWNLOADS=never UV_LINK_MODE=copy
WORKDIR /src
# Dependencies first: they change less often than the code.
COPY requirements requirements
RUN pip install --no-cache-dir --require-hashes -r requirements/uv.txt \
 && uv venv /opt/specdecode \
 && uv pip install --python /opt/specdecode --compile-bytecode --only-binary :all: --require-hashes \
      -r requirements/operator.txt
COPY pyproject.toml README.md LICENSE ./
COPY operator operator
RUN uv build --wheel --require-hashes --build-constraints requirements/dev.txt --out-dir /dist . \
 && uv pip install --python /opt/specdecode --compile-bytecode --no-deps --offline /dist/*.whl

FROM python:3.13-slim
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="specdecode-operator" \
      org.opencontainers.image.description="Runs speculative decoding on vLLM by itself" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/specdecode /opt/specdecode
# HOME and LOGNAME: libraries ask for them, and the user has no entry in /etc/passwd.
ENV PATH=/opt/specdecode/bin:$PATH HOME=/tmp LOGNAME=specdecode PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 65532:65532
# Health and metrics.
EXPOSE 8080 9090
ENTRYPOINT ["specdecode"]
CMD ["operator", "run"]
