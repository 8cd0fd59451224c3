"""The /metrics page of a vLLM server that serves evenly."""

from __future__ import annotations


def _histogram(name: str, total: float, count: float, labels: str) -> list[str]:
    return [
        f"# TYPE {name} histogram",
        f'{name}_bucket{{{labels},le="0.01"}} 0',
        f'{name}_bucket{{{labels},le="10"}} {count}',
        f'{name}_bucket{{{labels},le="+Inf"}} {count}',
        f"{name}_sum{{{labels}}} {total}",
        f"{name}_count{{{labels}}} {count}",
    ]


def page(
    seconds: float,
    *,
    batch: float = 8.0,
    step: float = 0.02,
    acceptance: float | None = None,
    k: int = 5,
    rate: float = 4.0,
    started: float = 1.7e9,
) -> bytes:
    """After `seconds` of `batch` requests per step of `step` seconds; `rate` requests finish per second. `started`:
    Unix seconds of the start of the process."""
    steps = seconds / step
    request_steps = steps * batch
    finished = rate * seconds
    per_step = 1 + k * (acceptance or 0.0)
    labels = 'model_name="m",engine="0"'
    lines = [
        "# TYPE vllm:num_requests_running gauge",
        f"vllm:num_requests_running{{{labels}}} {batch}",
        "# TYPE vllm:num_requests_waiting gauge",
        f"vllm:num_requests_waiting{{{labels}}} 0",
        "# TYPE vllm:prompt_tokens_total counter",
        f"vllm:prompt_tokens_total{{{labels}}} {finished * 100}",
        "# TYPE vllm:generation_tokens_total counter",
        f"vllm:generation_tokens_total{{{labels}}} {request_steps * per_step + finished}",
        "# TYPE vllm:request_success_total counter",
        f'vllm:request_success_total{{{labels},finished_reason="stop"}} {finished}',
    ]
    if acceptance is not None:
        counters = {
            "drafts": request_steps,
            "draft_tokens": request_steps * k,
            "accepted_tokens": request_steps * k * acceptance,
        }
        for name, value in counters.items():
            family = f"vllm:spec_decode_num_{name}_total"
            lines += [f"# TYPE {family} counter", f"{family}{{{labels}}} {value}"]
        family = "vllm:spec_decode_num_accepted_tokens_per_pos_total"
        lines.append(f"# TYPE {family} counter")
        lines += [f'{family}{{{labels},position="{i}"}} {request_steps * acceptance}' for i in range(k)]
    for name, total, count in (
        ("vllm:time_to_first_token_seconds", finished * 0.1, finished),
        ("vllm:inter_token_latency_seconds", request_steps * step, request_steps),
        ("vllm:request_time_per_output_token_seconds", finished * step / per_step, finished),
        ("vllm:iteration_tokens_total", request_steps * per_step, steps),
    ):
        lines += _histogram(name, total, count, labels)
    lines += ["# TYPE process_start_time_seconds gauge", f"process_start_time_seconds {started}"]
    return ("\n".join(lines) + "\n").encode()
