"""Inputs gone wrong: scenarios, models, traces, profiles and flags, changed at random; a case is a function of its number."""

from __future__ import annotations

import copy
import csv
import io
import json
import random
from dataclasses import dataclass, field
from typing import Any

import yaml

MODEL: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "intermediate_size": 2048,
    "vocab_size": 32000,
    "max_position_embeddings": 8192,
}
MODELS: list[dict[str, Any]] = [
    MODEL,
    {
        **MODEL,
        "model_type": "mixtral",
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "sliding_window": 1024,
    },
    {
        **MODEL,
        "model_type": "deepseek_v3",
        "n_routed_experts": 16,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 256,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
        "kv_lora_rank": 64,
        "q_lora_rank": 128,
        "qk_rope_head_dim": 16,
        "qk_nope_head_dim": 32,
        "v_head_dim": 32,
        "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    },
    {
        **MODEL,
        "model_type": "gemma3_text",
        "head_dim": 128,
        "sliding_window": 512,
        "sliding_window_pattern": 2,
    },
]
POISSON = {"kind": "poisson", "rate": 4}
LENGTHS = {"prompt_tokens": {"kind": "lognormal", "mean": 300, "p99": 2000}, "output_tokens": 12}
LAMA = "meta-llama/Llama-3.1-8B-Instruct"


def scenario(
    load: dict[str, Any], model: Any = LAMA, deployment: dict[str, Any] | None = None, **more: Any
) -> dict[str, Any]:
    """A scenario of a few requests."""
    held = deployment or {}
    if "pools" not in held:
        held = {"engine": "vllm", "hardware": "h100-sxm-80gb", **held}
    return {"name": "small", "seed": 1, "model": model, "deployment": held, "workload": load, **more}


DRAWN = {"arrivals": POISSON, **LENGTHS, "duration": 5}
SCENARIOS: list[dict[str, Any]] = [
    scenario(DRAWN, slo={"ttft_ms": {"p99": 500}, "tpot_ms": {"p50": 30}, "attainment": 0.9}),
    scenario(
        {**DRAWN, "arrivals": {"kind": "gamma", "rate": 3, "cv": 2.5}, "warmup": 1, "drain_s": 60}, MODELS[0]
    ),
    scenario(
        {**DRAWN, "arrivals": {"kind": "onoff", "rate_on": 8, "rate_off": 1, "on_s": 1, "off_s": 2}},
        MODELS[1],
    ),
    scenario(
        {**DRAWN, "arrivals": {"kind": "diurnal", "rate": 4, "peak_to_mean": 1.5, "period_s": 5}}, MODELS[2]
    ),
    scenario(
        {**DRAWN, "arrivals": {"kind": "closed_loop", "concurrency": 4, "think_time_s": 0.5}, "requests": 12}
    ),
    scenario({**DRAWN, "arrivals": {"kind": "batch"}, "requests": 10}, deployment={"engine": "sglang"}),
    scenario(
        {**DRAWN, "arrivals": {"kind": "constant", "rate": 4}}, deployment={"engine": "tgi", "replicas": 2}
    ),
    scenario(
        {**DRAWN, "sessions": {"turns": 3, "think_time_s": 1}, "shared_prefix": {"groups": 3, "tokens": 64}},
        deployment={"tensor_parallel": 2, "router": "least_requests", "engine_args": {"max_num_seqs": 64}},
    ),
    scenario(
        {
            "duration": 4,
            "classes": [
                {
                    "name": "chat",
                    "weight": 2,
                    "priority": 0,
                    "slo": {"ttft_ms": {"p99": 500}},
                    "arrivals": POISSON,
                    **LENGTHS,
                },
                {"name": "bulk", "trace": "t.csv", "rate_scale": 2, "limit": 5, "max_output_tokens": "equal"},
            ],
        },
        deployment={
            "pools": [
                {"engine": "vllm@0.15.1", "hardware": "a100-sxm-80gb", "weights": "fp8", "kv_cache": "fp8"}
            ]
        },
        client={"overhead_ms": 1, "network_rtt_ms": 2},
        cost={"usd_per_gpu_hour": 2, "commitment": "spot", "pue": 1.2},
    ),
    scenario(
        {"trace": "t.csv", "rate_scale": 1.5, "window": [0, 100], "limit": 20, "jitter_s": 0.5}, "model.json"
    ),
    scenario({"trace": "azure-conv-2023", "limit": 20, "sessions": {"replay": "absolute"}}),
    scenario(
        {
            **DRAWN,
            "prompt_tokens": {
                "kind": "empirical",
                "quantiles": {"p0": 5, "p50": 100, "p100": 900},
                "min": 8,
                "max": 800,
            },
            "output_tokens": {"kind": "uniform", "low": 3, "high": 30},
            "max_output_tokens": {"kind": "normal", "mean": 20, "std": 5},
        },
        deployment={
            "speculative": {"method": "ngram", "num_speculative_tokens": 3, "acceptance": [0.8, 0.6, 0.4]},
            "offload": {"kv_offloading_size": 4, "bytes_per_s": 2e10},
        },
    ),
    scenario(
        DRAWN,
        deployment={
            "engine_args": "vllm serve meta-llama/Llama-3.1-8B-Instruct --max-num-seqs 64 --max-model-len 8192 -tp 1"
        },
    ),
    *(
        scenario(
            {**DRAWN, "sessions": {"turns": 2, "think_time_s": 1}},
            deployment={"replicas": 3, "router": {"hop_s": 0.001, "bytes_per_token": 4, **router}},
        )
        for router in (
            {"system": "sglang-router", "policy": "cache_aware", "balance_abs_threshold": 8},
            {"system": "vllm-router", "policy": "power_of_two"},
            {"system": "dynamo", "kv_event_delay_s": 0.01},
            {"system": "production-stack", "policy": "prefixaware"},
        )
    ),
    scenario(
        DRAWN,
        deployment={
            "replicas": 2,
            "router": "least_tokens",
            "admission": {
                "max_inflight": 4,
                "on_full": "wait",
                "max_queue": 9,
                "queue_timeout_s": 3,
                "rate_per_s": 50,
                "burst": 3,
            },
        },
        client={
            "timeout_s": 20,
            "retries": {"attempts": 3, "backoff_s": 0.5, "factor": 2, "jitter": 0.1, "on": ["429"]},
        },
    ),
    scenario(
        DRAWN,
        deployment={
            "pools": [
                {
                    "role": "prefill",
                    "engine": "vllm",
                    "hardware": "h100-sxm-80gb",
                    "replicas": 1,
                    "gpus_per_node": 8,
                },
                {
                    "role": "decode",
                    "engine": "vllm",
                    "hardware": "h100-sxm-80gb",
                    "replicas": 2,
                    "tensor_parallel": 2,
                },
            ],
            "transfer": {"bytes_per_s": 4e10, "latency_s": 0.001},
        },
    ),
]
TIMES = [0.0, 0.4, 1.9, 2.1, 4.5]
PROMPTS, OUTPUTS = [812, 95, 1050, 2300, 520], [12, 31, 8, 5, 20]


def table(
    *names: str, times: list[Any] | None = None, more: dict[str, list[Any]] | None = None
) -> dict[str, list[Any]]:
    """Columns of a trace: time, prompt, output, and what else there is."""
    return dict(zip(names, (times or TIMES, PROMPTS, OUTPUTS), strict=True)) | (more or {})


OWN = ("arrival_s", "prompt_tokens", "output_tokens")
CSVS: list[dict[str, list[Any]]] = [
    table(*OWN),
    table(
        *OWN,
        more={
            "session_id": ["a", "a", "b", "b", "b"],
            "turn": [1, 2, 1, 2, 3],
            "max_output_tokens": [50] * 5,
        },
    ),
    table(
        *OWN,
        more={
            "prefix_ids": ["1 2", "1", "1 3", "4 5 6", ""],
            "class": list("xyxyx"),
            "request_id": list("abcde"),
        },
    ),
    table(
        "TIMESTAMP",
        "ContextTokens",
        "GeneratedTokens",
        times=[f"2023-11-16 18:15:{46 + t:.4f}" for t in TIMES],
    ),
    table(
        "Timestamp",
        "Request tokens",
        "Response tokens",
        more={"Session ID": list("aabbc"), "Elapsed time": TIMES},
    ),
    table("timestamp", "input_tokens", "output_tokens", times=[1764400000 + t for t in TIMES]),
]
GUIDELLM = [
    {"info": {"timings": {"request_start": 1.79e9 + t}}, "prompt_tokens": p, "output_tokens": o}
    for t, p, o in zip(TIMES, PROMPTS, OUTPUTS, strict=True)
]
JSONS: list[list[dict[str, Any]]] = [
    [
        {"arrival_s": t, "prompt_tokens": p, "output_tokens": o}
        for t, p, o in zip(TIMES, PROMPTS, OUTPUTS, strict=True)
    ],
    [
        {
            "timestamp": int(t * 1e3),
            "input_length": p,
            "output_length": o,
            "hash_ids": list(range(-(-p // 512))),
        }
        for t, p, o in zip(TIMES, PROMPTS, OUTPUTS, strict=True)
    ],
    [
        {
            "conversations": [
                {"from": "human", "value": "x" * 40},
                {"from": "gpt", "value": "y" * 20, "tokens": 5},
            ]
        }
    ]
    * 3,
    [
        {
            "input_lens": PROMPTS,
            "output_lens": OUTPUTS,
            "start_times": TIMES,
            "errors": [""] * 5,
            "mean_ttft_ms": 9.0,
        }
    ],
    [
        {
            "chat_id": i,
            "parent_chat_id": i - 1,
            "timestamp": t,
            "input_length": p,
            "output_length": o,
            "turn": 1,
            "hash_ids": [1],
        }
        for i, (t, p, o) in enumerate(zip(TIMES, PROMPTS, OUTPUTS, strict=True))
    ],
    [
        {
            "metadata": {
                "request_start_ns": 10**18 + int(t * 1e9),
                "request_end_ns": 10**18 + int(t * 1e9) + 10**8,
            },
            "metrics": {"input_sequence_length": {"value": p}, "output_sequence_length": {"value": o}},
            "error": None,
        }
        for t, p, o in zip(TIMES, PROMPTS, OUTPUTS, strict=True)
    ],
    [{"benchmarks": [{"metrics": {}, "requests": {"successful": GUIDELLM, "errored": []}}]}],
]
RESULTS: list[dict[str, Any]] = [
    {
        "mean_ttft_ms": 9.0,
        "p99_ttft_ms": 20.0,
        "duration": 3.0,
        "completed": 5,
        "request_throughput": 1.6,
        "total_input_tokens": 9,
    },
    {
        "request_latency": {"unit": "ms", "avg": 4.0, "p99": 9.0, "count": 5},
        "request_count": {"unit": "requests", "avg": 5},
    },
    {
        "benchmarks": [
            {
                "metrics": {
                    "request_latency": {"successful": {"mean": 1.0, "percentiles": {"p50": 1.0, "p99": 2.0}}}
                },
                "config": {"strategy": {"type_": "constant", "rate": 2}},
            }
        ]
    },
    {
        "successes": {
            "count": 3,
            "latency": {"request_latency": {"mean": 1.0, "p99": 2.0}},
            "throughput": {"requests_per_sec": 1},
        },
        "failures": {"count": 0},
        "load_summary": {"count": 3},
    },
]
PROFILES: list[dict[str, Any]] = [
    {"hours": [0.3 + 0.1 * (h % 9) for h in range(24)], "weekdays": {"sat": 0.6, "sun": 0.5}}
]


def words(text: str) -> list[str]:
    """The words of a text."""
    return text.split()


HUGE = 10**400
WORDS = words("""0 1e3 -1 nan yes no 0o17 0x1F 010 1_000 12ms 50% 1e400 null 2026-11-29 12:30:45 . ~ * &a << %s%n {{7*7}}
$(reboot) ../../../etc/passwd /etc/shadow /dev/zero /dev/stdin /proc/self/mem t.csv model.json nowhere.csv vllm h100-sxm-80gb""")
WRONG: list[Any] = [
    *map(float, words("nan inf -inf -0.0 1e-12 5e-324 1e-300 0.1 1e6 1e9 1e12 1e18 1e100 1.7e308 -1.7e308")),
    *(0, 1, -1, 2**31, 2**32 - 1, 2**53 + 1, 2**63 - 1, 2**63, 2**64, HUGE, -HUGE, 999999999999),
    *(True, False, None, [], {}, [[]], [1, 2], {"a": 1}),
    *WORDS,
    *("", " ", "a" * 300, "a" * 70_000, "é" * 50, "\U0001f600", "\u0000", "\ud800", "!!binary aGk="),
    *("\x1b[31mred\x1b[0m", "\x07\x08\x7f", "\u202egpj.exe", "\x9b2J", "tab\tline\nfeed\r"),
    *("vllm serve x --max-num-seqs " + "9" * 30, "--tensor-parallel-size 0", "vllm serve 'unclosed"),
]
"""Values of a wrong type, size or sign."""
NUMBERS: list[Any] = [
    *(0, 1, 2, 3, 5, 7, 16, 33, 100, 1000, 4096, 10_000, 131_072, 10**6, 10**7, 10**9, 2**31, 2**33, 10**12),
    *(2**53, 2**62, 2**63, 10**30, HUGE, -1),
    *map(
        float,
        words("1e-300 1e-18 1e-12 1e-9 1e-6 1e-3 0.01 0.1 0.5 0.999999 1.5 14.9 999.5 1e5 1e7 1e10 1e13"),
    ),
    *map(float, words("1e16 1e30 1e150 1e300 -1e9")),
]
"""Numbers that pass for what they replace."""
BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join(['*' + chr(ord(name) - 1)] * 9)}]\n" for name in "bcdefgh"
)
TEXTS: list[bytes] = [
    *(b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\r", b"\r\n", b"\t", b"\x1b[2J", b"\xe2\x80\xae"),
    *(
        b"[" * 400,
        b"{" * 400,
        b"- " * 300,
        b"&a ",
        b"*a",
        b"!!python/object:os.system ",
        b"<<: *a\n",
        b"---\n",
    ),
    *(
        b"...\n",
        b"%YAML 9.9\n",
        b"? ",
        b"| \n",
        b"'",
        b'"',
        b",",
        b",,,",
        b":",
        b"#",
        b"1e400",
        b"9" * 5000,
        b"-",
        b"nan",
    ),
    BOMB.encode(),
]
FLAGS = words("""--max-num-seqs --max-model-len --gpu-memory-utilization --tensor-parallel-size --block-size --enforce-eager
-tp --seed --max-num-batched-tokens --kv-cache-dtype --quantization --mem-fraction-static --chunked-prefill-size --max-batch-size
--dtype --speculative-config --no-enable-prefix-caching --swap-space --nonsense""")
VALUES = [
    "",
    *words("0 -1 1 64 0.5 1e308 nan inf ' auto fp8 {} 8k 1e3"),
    "9" * 40,
    '{"method": "ngram"}',
    "\x1b[1m",
]


@dataclass
class Case:
    """One command in a folder of files; `requests` says whether it runs a scenario, which is then held to a few requests."""

    number: int
    arguments: list[str]
    files: dict[str, bytes] = field(default_factory=dict)


def case(number: int) -> Case:
    """Return the case of a number."""
    rng = random.Random(number)
    kind = rng.choices(
        ("scenario", "bytes", "set", "flags", "model", "trace", "trace-run", "profile", "compare"),
        (30, 12, 14, 10, 10, 12, 6, 3, 3),
    )[0]
    files = {"t.csv": csv_bytes(rng.choice(CSVS)), "model.json": json.dumps(rng.choice(MODELS)).encode()}
    base = copy.deepcopy(rng.choice(SCENARIOS))
    text = as_yaml(base)
    more: list[str] = []
    if kind == "scenario":
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            mutate(rng, base)
        text = as_yaml(base) if rng.random() < 0.8 else json.dumps(base).encode("utf-8", "surrogatepass")
    elif kind == "bytes":
        text = scrambled(rng, text)
    elif kind == "set":
        more = ["--set", setting(rng, base)]
    elif kind == "flags":
        base["deployment"].pop("pools", None)
        base["deployment"] = {"engine": "vllm", "hardware": "h100-sxm-80gb"} | base["deployment"]
        words = [
            f"{rng.choice(FLAGS)}{rng.choice((' ', '='))}{rng.choice(VALUES)}"
            for _ in range(rng.randint(1, 4))
        ]
        base["deployment"]["engine_args"] = f"vllm serve {LAMA} {' '.join(words)}"
        if rng.random() < 0.4:
            base["deployment"]["engine_args"] = {
                w.strip("-").split("=")[0].replace("-", "_"): rng.choice(WRONG) for w in FLAGS[:3]
            }
        text = as_yaml(base)
    elif kind == "model":
        config = copy.deepcopy(rng.choice(MODELS))
        for _ in range(rng.choice((1, 1, 2))):
            mutate(rng, config)
        base["model"] = "model.json" if rng.random() < 0.5 else config
        files["model.json"] = json.dumps(config).encode("utf-8", "surrogatepass")
        if rng.random() < 0.2:
            files["model.json"] = scrambled(rng, files["model.json"])
        text = as_yaml(base)
        if rng.random() < 0.3:
            return Case(number, ["show", "model", "model.json"], files)
    elif kind in ("trace", "trace-run"):
        name, content = trace(rng)
        files[name] = content
        if kind == "trace":
            to = rng.choice(([], ["convert"]))
            arguments = ["trace", "convert", name, "out.csv"] if to else ["trace", "describe", name]
            return Case(
                number,
                arguments
                + rng.choice(([], ["--format", rng.choice(("azure", "mooncake", "columns", "zip"))])),
                files,
            )
        base = scenario({"trace": name})
        text = as_yaml(base)
    elif kind == "profile":
        profile = copy.deepcopy(PROFILES[0])
        mutate(rng, profile)
        name = rng.choice(("p.yaml", "p.csv"))
        files[name] = as_yaml(profile)
        if name == "p.csv":
            files[name] = csv_bytes({"hour": list(range(24)), "demand": profile.get("hours", [])})
        more = ["--profile", name, "--demand-requests-per-day", "1000"]
    elif kind == "compare":
        result = copy.deepcopy(rng.choice(RESULTS))
        files["a.json"] = json.dumps(result).encode()
        mutate(rng, result)
        files["b.json"] = json.dumps(result).encode("utf-8", "surrogatepass")
        if rng.random() < 0.3:
            files["b.json"] = scrambled(rng, files["b.json"])
        return Case(number, ["compare", "a.json", "b.json"], files)
    files["s.yaml"] = text
    if kind == "profile":
        return Case(number, ["cost", "s.yaml", *more], files)
    command = rng.choice(("check", "check", "simulate", "simulate", "simulate", "trace synthesize"))
    arguments = [*command.split(), "s.yaml", *(["out.csv"] if command == "trace synthesize" else []), *more]
    if command == "simulate":
        arguments += ["--output", "runs"]
    if rng.random() < 0.25 and command != "trace synthesize":
        arguments.append("--json")
    return Case(number, arguments, files)


def trace(rng: random.Random) -> tuple[str, bytes]:
    """A trace file gone wrong."""
    if rng.random() < 0.5:
        columns = copy.deepcopy(rng.choice(CSVS))
        mutate(rng, columns)
        name, content = "t.csv", csv_bytes(columns)
    else:
        rows = copy.deepcopy(rng.choice(JSONS))
        mutate(rng, rows)
        if isinstance(rows, list) and len(rows) == 1:
            rows = rows[0]  # one document
        name = rng.choice(("t.jsonl", "t.json", "t.json", "t.yaml"))
        lines = rows if isinstance(rows, list) else [rows]
        whole = "".join(json.dumps(row) + "\n" for row in lines) if name == "t.jsonl" else json.dumps(rows)
        content = as_yaml(rows) if name == "t.yaml" else whole.encode("utf-8", "surrogatepass")
    if rng.random() < 0.3:
        content = scrambled(rng, content)
    if rng.random() < 0.05:
        name = rng.choice(("t.parquet", "t.csv.gz", "t.xlsx", "t"))
    return name, content


def csv_bytes(columns: dict[str, Any]) -> bytes:
    """Columns as CSV, whatever they hold."""
    out = io.StringIO()
    writer = csv.writer(out)
    lists = [v if isinstance(v, list) else [v] for v in columns.values()]
    writer.writerow(columns)
    for i in range(max(map(len, lists), default=0)):
        writer.writerow([v[i] if i < len(v) else "" for v in lists])
    return out.getvalue().encode("utf-8", "surrogatepass")


def as_yaml(data: Any) -> bytes:
    """Data as YAML; what YAML cannot write stands as JSON, which it can read."""
    try:
        return yaml.safe_dump(data, sort_keys=False, allow_unicode=False).encode()
    except (yaml.YAMLError, UnicodeError):
        return json.dumps(data).encode()


def places(data: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in nested data."""
    found: list[tuple[Any, Any]] = []
    pairs = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in list(pairs):
        found += [(data, key), *places(value)]
    return found


def mutate(rng: random.Random, data: Any) -> None:
    """Change one place of nested data."""
    spots = places(data)
    if not spots:
        return
    holder, key = rng.choice(spots)
    numbers = [(h, k) for h, k in spots if isinstance(h[k], int | float) and not isinstance(h[k], bool)]
    if numbers and rng.random() < 0.5:
        holder, key = rng.choice(numbers)
        holder[key] = rng.choice(NUMBERS)
        return
    what = rng.choices(
        ("wrong", "delete", "rename", "wrap", "swap", "scale", "add", "many"), (55, 7, 7, 5, 8, 8, 6, 4)
    )[0]
    if what == "wrong":
        holder[key] = copy.deepcopy(rng.choice(WRONG))
    elif what == "delete":
        del holder[key]
    elif what == "rename" and isinstance(holder, dict):
        holder[
            rng.choice((str(key)[:-1], str(key) + "s", str(key).upper(), "\x1b[1mkey", "", "a" * 5000))
        ] = holder.pop(key)
    elif what == "wrap":
        holder[key] = [holder[key]] if rng.random() < 0.5 else {"kind": holder[key]}
    elif what == "swap":
        other, place = rng.choice(spots)
        value = (
            copy.deepcopy(other[place])
            if place in (other if isinstance(other, dict) else range(len(other)))
            else None
        )
        holder[key] = value
    elif what == "scale" and isinstance(holder[key], int | float):
        holder[key] = holder[key] * rng.choice((-1, 0, 1e-9, 0.5, 1e3, 1e6, 1e9, 1e15))
    elif what == "many" and isinstance(holder[key], list):
        holder[key] = holder[key] * rng.choice((0, 3, 200))
    elif isinstance(holder, dict):
        holder[
            rng.choice(("kind", "rate", "duration", "requests", "limit", "trace", "file", "extra", "tokens"))
        ] = rng.choice(WRONG)


def scrambled(rng: random.Random, content: bytes) -> bytes:
    """Bytes cut, doubled, overwritten or with others put in."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randint(0, len(content))
        what = rng.choice(("cut", "put", "put", "over", "twice", "line", "crlf", "empty"))
        if what == "cut":
            content = content[:at]
        elif what == "put":
            content = content[:at] + rng.choice(TEXTS) + content[at:]
        elif what == "over":
            content = content[:at] + bytes([rng.randint(0, 255)]) + content[at + 1 :]
        elif what == "twice":
            content = content[:at] + content[max(0, at - 40) :]
        elif what == "line":
            lines = content.split(b"\n")
            rng.shuffle(lines)
            content = b"\n".join(lines)
        elif what == "crlf":
            content = content.replace(b"\n", b"\r\n")
        elif rng.random() < 0.2:
            content = b""
    return content


def setting(rng: random.Random, base: dict[str, Any]) -> str:
    """A value for --set."""
    paths: list[str] = []

    def walk(data: Any, path: str) -> None:
        pairs = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
        for key, value in pairs:
            paths.append(f"{path}{key}")
            walk(value, f"{path}{key}.")

    walk(base, "")
    path = rng.choice(paths)
    if rng.random() < 0.15:
        path = rng.choice(
            (
                path[:-1],
                path + ".x",
                "." + path,
                path.replace(".", ".."),
                "",
                "deployment.pools.7.replicas",
                "\x1b[1m",
            )
        )
    value = rng.choice(WRONG if rng.random() < 0.6 else NUMBERS)
    text = value if isinstance(value, str) and rng.random() < 0.5 else json.dumps(value)
    # a command line holds no zero bytes
    return (
        f"{path}{rng.choice(('=', '=', '=', '=', ''))}{text}".replace("\0", "")
        .encode("utf-8", "replace")
        .decode()
    )
