"""The flags of `vllm serve` that the simulator knows and that change nothing in it."""

from __future__ import annotations

VALUE_FLAGS = """
additional-config all2all-backend allowed-headers allowed-local-media-path allowed-methods allowed-origins
api-server-count attention-backend attention-config block-size chat-template chat-template-content-format
code-revision collect-detailed-traces compilation-config config-format convert cpu-offload-gb cuda-graph-sizes
cudagraph-capture-sizes custom-histogram-buckets data-parallel-address data-parallel-backend data-parallel-rank
data-parallel-rpc-port data-parallel-size-local data-parallel-start-rank decode-context-parallel-size
default-mm-loras device distributed-executor-backend download-dir ec-transfer-config eplb-config
expert-placement-strategy generation-config guided-decoding-backend hf-config-path hf-overrides hf-token
ignore-patterns interleave-mm-strings kernel-config kv-cache-dtype kv-cache-memory-bytes kv-cache-metrics-sample
kv-events-config kv-offloading-backend kv-offloading-size kv-sharing-fast-prefill kv-transfer-config
limit-mm-per-prompt load-format log-config-file logits-processor-pattern logprobs-mode long-prefill-token-threshold
lora-dtype mamba-cache-dtype mamba-ssm-cache-dtype master-addr master-port max-cpu-loras max-cudagraph-capture-size
max-log-len max-logprobs max-long-partial-prefills max-lora-rank max-loras max-num-partial-prefills
max-parallel-loading-workers max-seq-len-to-capture media-io-kwargs middleware mm-processor-cache-gb
mm-processor-kwargs model-impl model-loader-extra-config moe-backend nnodes node-rank num-gpu-blocks-override
num-lookahead-slots num-scheduler-steps optimization-level otlp-traces-endpoint override-generation-config
override-pooler-config performance-mode pipeline-parallel-size pooler-config
preemption-mode prefill-context-parallel-size prefix-caching-hash-algo profiler-config reasoning-parser
response-role return-tokens-as-token-ids revision root-path rope-scaling rope-theta runner scheduler-cls
scheduling-policy show-hidden-metrics-for-version skip-mm-profiling ssl-ca-certs ssl-cert-reqs ssl-certfile
ssl-keyfile structured-outputs-config swap-space task tokenizer tokenizer-mode tokenizer-revision tool-call-parser
tool-parser-plugin uds uvicorn-log-level worker-cls worker-extension-cls
""".split()  # noqa: SIM905
"""Flags with one value."""

SWITCHES = """
allow-credentials calculate-kv-scales data-parallel-external-lb data-parallel-hybrid-lb disable-async-output-proc
disable-cascade-attn disable-custom-all-reduce disable-frontend-multiprocessing disable-hybrid-kv-cache-manager
disable-log-requests disable-log-stats disable-sliding-window disable-uvicorn-access-log enable-auto-tool-choice
enable-chunked-prefill enable-dbo enable-eplb enable-expert-parallel enable-force-include-usage
enable-layerwise-nvtx-tracing enable-log-outputs enable-log-requests enable-lora enable-lora-bias enable-mfu-metrics
enable-prompt-embeds enable-prompt-tokens-details enable-request-id-headers enable-server-load-tracking
enable-sleep-mode enable-ssl-refresh enable-tokenizer-info-endpoint enforce-eager
exclude-tools-when-tool-choice-none fully-sharded-loras headless kv-cache-metrics language-model-only
ray-workers-use-nsight skip-tokenizer-init trust-remote-code use-tqdm-on-load use-v2-block-manager
""".split()  # noqa: SIM905
"""Flags without a value; each also as `--no-…`."""
