"""Benchmarks: programs that start an engine and compute by themselves, and clients that send requests to a server.

What they send is told as the `workload` of a scenario. Flags and their meaning follow `benchmarks/{throughput,latency,serve}.py`
of vLLM, `bench_{serving,one_batch,offline_throughput}.py` of SGLang, `bench/benchmark/*.py` of TensorRT-LLM, and the options of
guidellm, aiperf and genai-perf (read 2026-11). Lengths of random data vary by a ratio: around the stated one (vLLM) or below it
(SGLang).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from engine_models.flags import Unread, Worker

_PROMPT = ("random_input_len", "random_input", "input_len", "isl", "synthetic_input_tokens_mean", "target_input_len")
_OUTPUT = ("random_output_len", "random_output", "output_len", "osl", "output_tokens_mean", "target_output_len")
_USERS = ("max_concurrency", "concurrency")
_ENDS = {
    "requests": ("num_prompts", "num_prompt", "num_requests", "request_count", "max_requests", "batch_size"),
    "duration": ("max_seconds", "benchmark_duration"),
}
_CLIENTS = (
    r"vllm bench serve|sglang\.bench_serving|bench_serving\.py|benchmark_serving\.py|guidellm (?:benchmark|run)|aiperf profile|"
    r"genai-perf(?: profile)?|inference-perf"
)
_FLAGS = """
    backend dataset_name dataset dataset_path input_len output_len batch_size n num_prompts num_iters num_iters_warmup output_json
    hf_max_batch_size hf_subset hf_split hf_name lora_path prefix_len random_range_ratio random_input_len random_output_len
    random_input random_output random_prefix_len seed result_filename run_name cut_len sharegpt_output_len extra_request_body
    gen_num_groups gen_prompts_per_group gen_system_prompt_len gen_question_len gen_output_len log_decode_step
    model_path num_requests concurrency warmup report_json iteration_log request_json target_input_len
    target_output_len eos_id engine_dir workspace modality max_input_len
"""
_SWITCHES = """
    async_engine disable_frontend_multiprocessing disable_detokenize use_beam_search profile correct correctness_test
    skip_warmup do_not_exit disable_ignore_eos streaming
"""


def bench(
    known: Iterable[str], aliases: Mapping[str, str] | None = None, *, below: bool = False, besides: str = "", **more: Any
) -> Worker:
    """A benchmark that starts an engine, whose own flags are `known`; `aliases` and `more` as `Worker` has them.

    below : whether random lengths are spread below the stated one by themselves. besides : a further word on it.
    """
    own = {*known, *(aliases or {})}
    unread = {name: Unread("list") for name in _FLAGS.split()} | {name: Unread("switch") for name in _SWITCHES.split()}
    flags = {name: flag for name, flag in unread.items() if name not in own}

    def said(words: Sequence[str]) -> str:
        load = load_of(words, below=below and "--batch-size" not in words)
        sends = f"; what it computes is workload: {load}" if load else ""
        return f"a benchmark that computes by itself is read as a server's flags{sends}{besides}"

    return Worker(unread=flags, aliases=aliases or {}, said=said, **more)


def client_of(text: str) -> tuple[str, str | None] | None:
    """The first client of a server that a text starts, and what it sends; None where there is none."""
    found = re.search(rf"(?<![\w./-])(?:\S*/)?({_CLIENTS})(?![\w-])", text)
    if found is None:
        return None
    below = None if found[1].startswith("vllm") else "sglang." in found[1]
    return found[1], load_of(text[found.start() :].replace("\\\n", " ").split(), below=below)


def load_of(words: Sequence[str], *, below: bool | None = None) -> str | None:
    """What the words of a benchmark send, as a scenario's `workload`; None where they state no lengths.

    below : whether random lengths lie between a share of the stated one and it; None for around it, False for at it.

    >>> load_of("--random-input-len 1024 --random-output-len 128 --request-rate 4 --num-prompts 500".split())
    '{arrivals: {kind: poisson, rate: 4}, prompt_tokens: 1024, output_tokens: 128, max_output_tokens: equal, requests: 500}'
    """
    given = _given(words)
    prompt, output = _first(given, (*_PROMPT, "prompt_tokens")), _first(given, (*_OUTPUT, "output_tokens"))
    if not prompt.isdigit() or not output.isdigit():
        return None
    lengths = [_length(int(mean), given.get("random_range_ratio"), below) for mean in (prompt, output)]
    ends = [f"{key}: {n}" for key, names in _ENDS.items() if (n := _first(given, names)).isdigit()]
    said = [_arrivals(given), f"prompt_tokens: {lengths[0]}", f"output_tokens: {lengths[1]}", "max_output_tokens: equal"]
    return "{" + ", ".join([*said, *ends[:1]]) + "}"


def _given(words: Sequence[str]) -> dict[str, str]:
    """Flags with their first value, and what a description of data states."""
    found: dict[str, str] = {}
    for word, after in zip(words, [*words[1:], ""], strict=True):
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            found.setdefault(name.replace("-", "_"), (value if equals else after).strip("'\""))
    return dict(re.findall(r"\b(prompt_tokens|output_tokens)\W+(\d+)", " ".join(words))) | found


def _first(given: Mapping[str, str], names: Sequence[str]) -> str:
    return next((given[name] for name in names if name in given), "")


def _length(mean: int, ratio: str | None, below: bool | None) -> str:
    """A length with the spread that is stated, or is the program's own."""
    spread = float(ratio) if ratio is not None and re.fullmatch(r"\d*\.?\d+", ratio) else 0.0
    if below is None and 0 < spread < 1:
        return f"{{kind: uniform, low: {max(1, int(mean * (1 - spread)))}, high: {int(mean * (1 + spread))}}}"
    if below and spread < 1:
        return f"{{kind: uniform, low: {max(1, int(mean * spread))}, high: {mean}}}"
    return str(mean)


def _arrivals(given: Mapping[str, str]) -> str:
    number = r"\d+(?:\.\d+)?"
    users = _first(given, _USERS)
    rate, kind = given.get("request_rate", given.get("rate", "")), given.get("rate_type", given.get("profile", "poisson"))
    if kind == "concurrent" and re.fullmatch(r"\d+", rate):
        users, rate = rate, ""
    if re.fullmatch(number, rate) and float(rate) > 0:
        return f"arrivals: {{kind: {kind if kind in ('constant', 'poisson') else 'poisson'}, rate: {rate}}}"
    held = re.fullmatch(r"[1-9]\d*", users)
    return f"arrivals: {{kind: closed_loop, concurrency: {users}}}" if held else "arrivals: {kind: batch}"
