"""Published measurements as cases of `capacity-plan validate reports`.

    python benchmarks/cases.py ../shared/data/published --output cases.jsonl

One function a file. `ppN` is one request of N new tokens (`prefill_tok_s`; `@ dD`: on D cached ones, `ttft_median_ms`), `tgN
@ dD` one of N outputs after D (`decode_tok_s`), batch B as many requests at once. What a scenario cannot say is listed with the
reason on stderr. Nothing of the files is kept in the project.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml

from engine_models.model.architecture import load_architecture, parameters
from engine_models.model.catalogue import model_names
from engine_models.model.formats import format_named
from hardware_profiles.device import device_names, load_device, resolve_device
from hardware_profiles.errors import InputError

Row = dict[str, str]


@dataclass(frozen=True)
class Case:
    """A measured row.

    engine : by its name here. model : of the catalogue. weights : a number format.
    new, depth, output, batch : new prompt tokens and cached ones of each of `batch` requests, and their outputs.
    rate_qps : Poisson arrivals; else `batch` at once (`users`: in a closed loop).
    reported : metric to value.
    args : flags of the engine.
    servers : how many of each role, where prefill and decode are apart.
    speculative : the pool's key, where drafts are made.
    answers : the law of outputs, where they are not all alike. limits : the SLO.
    warm : how many prompts are sent, all of which the cache holds from a stage before.
    start : whence a server takes what it starts with. kv : format of the KV cache, "" for the engine's.
    power_limit_w : of a device, 0 for its own. route : what clients send to a server (`client.route`), "" for its default.
    peers : whether cards over PCIe read each other's memory, where their profile says that they do not.
    """

    id: str
    source: str
    engine: str
    model: str
    weights: str
    hardware: str
    new: int
    output: int
    reported: dict[str, float]
    depth: int = 0
    warm: int = 0
    batch: int = 1
    users: int = 0
    rate_qps: float = 0.0
    requests: int = 0
    tensor: int = 1
    args: dict[str, object] = field(default_factory=dict)
    servers: dict[str, int] = field(default_factory=dict)
    speculative: dict[str, object] = field(default_factory=dict)
    answers: dict[str, object] = field(default_factory=dict)
    limits: dict[str, dict[str, float]] = field(default_factory=dict)
    start: dict[str, object] = field(default_factory=dict)
    kv: str = ""
    power_limit_w: float = 0.0
    peers: bool = False
    route: str = ""
    note: str = ""

    def scenario(self) -> str:
        """The scenario that describes it, as YAML.

        Cached tokens are a prefix that the first of four requests leaves; the median is of the later ones.
        """
        deployment: dict[str, object] = {"engine": self.engine, "hardware": self.hardware, "weights": self.weights}
        if self.tensor > 1:
            deployment["tensor_parallel"] = self.tensor
        if self.kv:
            deployment["kv_cache"] = self.kv
        if self.power_limit_w:
            deployment["power_limit_w"] = self.power_limit_w
        if self.peers:
            deployment["peer_access"] = True
        if self.speculative:
            deployment["speculative"] = self.speculative
        if args := self._server() | self.args:
            deployment["engine_args"] = args
        if self.start:
            deployment["failures"] = {"events": [{"kind": "gpu", "replica": 0, "at_s": 0}], "start_up": self.start}
        if self.servers:
            apart = [{"name": role, "role": role, "replicas": count, **deployment} for role, count in self.servers.items()]
            deployment = {"pools": apart}
        load: dict[str, object] = {"arrivals": {"kind": "batch"}, "requests": self.requests or self.batch}
        if self.rate_qps:
            load["arrivals"] = {"kind": "poisson", "rate": self.rate_qps}
        elif self.users:
            load["arrivals"] = {"kind": "closed_loop", "concurrency": self.users}
        cached = self.depth and "ttft_median_ms" in self.reported
        prompt = self.new if cached else self.depth + self.new
        load |= {"prompt_tokens": max(prompt, 1), "output_tokens": self.answers or max(self.output, 1),
                 "max_output_tokens": "equal"}  # fmt: skip
        load["drain_s"] = 100_000  # seconds a token, on the slowest
        if cached:
            load |= {
                "arrivals": {"kind": "constant", "rate": 1e-4},
                "requests": 4,
                "shared_prefix": {"groups": 1, "tokens": self.depth},
            }
        if self.warm:
            load |= {"prompt_tokens": 1, "shared_prefix": {"groups": self.warm, "tokens": self.new - 1}}
            drained = {"drain_s": load.pop("drain_s")}
            before = {"name": "before", "measured": False, **load, "requests": TIMES_BEFORE * self.warm}
            load = {"stages": [before, {"name": "warm", **load}], **drained}
        whole = {"name": self.id, "seed": 1, "model": self.model, "deployment": deployment, "workload": load}
        if self.route:
            whole["client"] = {"route": self.route}
        if self.limits:
            del load["requests"]
            whole["slo"] = self.limits
            load |= {"warmup": 120, "duration": 480}
        return yaml.safe_dump(whole, sort_keys=False)

    def _server(self) -> dict[str, object]:
        """What a benchmark of llama.cpp allocates: a sequence for each request, of its own length."""
        if not self.engine.startswith("llama_cpp") or self.rate_qps:
            return {}
        sequences = self.users or self.batch
        tokens = sequences * -(-(self.depth + self.new + self.output + 1) // 256) * 256
        return {"parallel": sequences, "ctx_size": tokens} | ({"kv_unified": True} if sequences > 1 else {})

    def line(self) -> str:
        """The case as a line of JSON."""
        record = {"id": self.id, "source": self.source, "scenario": self.scenario(), "reported": self.reported}
        return json.dumps(record | ({"note": self.note} if self.note else {}))


TIMES_BEFORE = 8
"""Requests of the stage before for each prompt, so that hardly one is left out that the draw does not choose."""


class Unsaid(Exception):
    """Why a row is no case; `detail` tells rows of one reason apart."""

    def __init__(self, why: str, detail: str = "") -> None:
        super().__init__(why)
        self.detail = detail


Found = Iterator[Case | Unsaid]


# -- names ----------------------------------------------------------------------------------------------------

#: Models as the files spell them (dashes, dots and spaces left out), and the catalogue's; the first that fits.
MODELS: tuple[tuple[str, str], ...] = (
    ("tinyllama11b", "TinyLlama/TinyLlama-1.1B-Chat-v1.0"),
    ("openllama3b|deepseekv4flash|demomodel|bonsai|visn|smolvlm", ""),
    ("gemma4e2b", "google/gemma-4-E2B-it"),
    ("gemma4e4b", "google/gemma-4-E4B-it"),
    ("gemma412b", "google/gemma-4-12B-it"),
    ("gemma2b", "google/gemma-2b"),
    ("smollm2360m", "HuggingFaceTB/SmolLM2-360M"),
    ("hunyuan(moe)?a13b", "tencent/Hunyuan-A13B-Instruct"),
    ("dots1", "rednote-hilab/dots.llm1.inst"),
    ("lagunaxs", "poolside/Laguna-XS.2"),
    ("deepseekr1distill(qwen)?15b", "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"),
    ("deepseekr1distillllama8b|deepseekr18b", "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"),
    ("deepseekr1distillllama70b|deepseekr170b", "deepseek-ai/DeepSeek-R1-Distill-Llama-70B"),
    ("deepseekr1(distill)?(qwen)?7b", "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"),
    ("deepseekr1(distill)?(qwen)?14b", "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B"),
    ("deepseekr1(distill)?(qwen)?32b", "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B"),
    ("deepseekcoder6?7b", "deepseek-ai/deepseek-coder-6.7b-base"),
    ("deepseekv32", "deepseek-ai/DeepSeek-V3.2"),
    ("deepseekr1|deepseekr1671b", "deepseek-ai/DeepSeek-R1"),
    ("deepseek2 ?16b", "deepseek-ai/DeepSeek-V2-Lite"),
    ("kimik25", "moonshotai/Kimi-K2.5"),
    ("llama4scout|llama417bx16e|llama4109b", "meta-llama/Llama-4-Scout-17B-16E-Instruct"),
    ("llama(3|31|3x|33)?:?405b", "meta-llama/Llama-3.1-405B"),
    ("codellama34b", "codellama/CodeLlama-34b-hf"),
    ("midnightmiqu70b|llama270b", "meta-llama/Llama-2-70b-hf"),
    ("(meta)?llama(31|3|33|3x):?(instruct)?70b|^llama70b", "meta-llama/Llama-3.1-70B"),
    ("llama213b", "meta-llama/Llama-2-13b-hf"),
    ("llama(1)?13b", "huggyllama/llama-13b"),
    ("llama33b|llama30b", "huggyllama/llama-30b"),
    ("llama27b", "meta-llama/Llama-2-7b-hf"),
    ("llama32:?1b|^llama1b", "meta-llama/Llama-3.2-1B"),
    ("llama32:?3b|^llama3b", "meta-llama/Llama-3.2-3B"),
    ("hermes3llama318b|(meta)?llama(31|3x|3):?8b|llama8b|llama31 ?(instruct)?8b", "meta-llama/Llama-3.1-8B"),
    ("llama7b", "huggyllama/llama-7b"),
    ("mistral7b|llama8x|mistral7binstruct", "mistralai/Mistral-7B-v0.3"),
    ("mistralnemo", "mistralai/Mistral-Nemo-Instruct-2407"),
    ("ministral314b", "mistralai/Ministral-3-14B-Instruct-2512"),
    ("mistralsmall", "mistralai/Mistral-Small-3.1-24B-Instruct-2503"),
    ("devstral", "mistralai/Devstral-Small-2505"),
    ("mixtral8x7b", "mistralai/Mixtral-8x7B-v0.1"),
    ("phi3mini", "microsoft/Phi-3-mini-4k-instruct"),
    ("phi3medium", "microsoft/Phi-3-medium-4k-instruct"),
    ("phi4mini", "microsoft/Phi-4-mini-instruct"),
    ("phi4", "microsoft/phi-4"),
    ("gemma29b", "google/gemma-2-9b"),
    ("gemma22b", "google/gemma-2-2b"),
    ("gemma227b", "google/gemma-2-27b"),
    ("gemma31b", "google/gemma-3-1b-it"),
    ("gemma34b", "google/gemma-3-4b-it"),
    ("gemma312b", "google/gemma-3-12b-it"),
    ("gemma327b", "google/gemma-3-27b-it"),
    ("gemma426ba4b", "google/gemma-4-26B-A4B-it"),
    ("gemma431b", "google/gemma-4-31B-it"),
    ("smollm33b", "HuggingFaceTB/SmolLM3-3B"),
    ("smollm217b", "HuggingFaceTB/SmolLM2-1.7B"),
    ("qwq32b", "Qwen/Qwen2.5-32B"),
    ("qwen(2|25)(coder)?05b", "Qwen/Qwen2.5-0.5B"),
    ("qwen(2|25)(coder)?15b", "Qwen/Qwen2.5-1.5B"),
    ("qwen(2|25)(coder)?3b", "Qwen/Qwen2.5-3B"),
    ("qwen25vl7b", "Qwen/Qwen2.5-VL-7B-Instruct"),
    ("qwen(2|25)(coder)?7b", "Qwen/Qwen2.5-7B"),
    ("qwen(2|25)(coder)?14b", "Qwen/Qwen2.5-14B"),
    ("qwen(2|25)(coder)?32b", "Qwen/Qwen2.5-32B"),
    ("qwen(2|25)72b", "Qwen/Qwen2.5-72B"),
    ("qwen3235b", "Qwen/Qwen3-235B-A22B"),
    ("qwen3(coder)?30ba3b", "Qwen/Qwen3-30B-A3B"),
    ("qwen3(coder)?next", "Qwen/Qwen3-Next-80B-A3B-Instruct"),
    ("qwen306b", "Qwen/Qwen3-0.6B"),
    ("qwen317b", "Qwen/Qwen3-1.7B"),
    ("qwen34b", "Qwen/Qwen3-4B"),
    ("qwen3(vl)?8b", "Qwen/Qwen3-8B"),
    ("qwen314b", "Qwen/Qwen3-14B"),
    ("qwen332b", "Qwen/Qwen3-32B"),
    ("qwen352b", "Qwen/Qwen3.5-2B"),
    ("qwen354b", "Qwen/Qwen3.5-4B"),
    ("qwen359b", "Qwen/Qwen3.5-9B"),
    ("qwen3[56]27b", "Qwen/Qwen3.5-27B"),
    ("qwen3[56]35b", "Qwen/Qwen3.5-35B-A3B"),
    ("qwen35122b", "Qwen/Qwen3.5-122B-A10B"),
    ("gptoss20b", "openai/gpt-oss-20b"),
    ("gptoss120b", "openai/gpt-oss-120b"),
    ("glm47flash", "zai-org/GLM-4.7-Flash"),
    ("glm47", "zai-org/GLM-4.7"),
    ("glm49bchat", "zai-org/glm-4-9b-chat-hf"),
    ("glm45air|glm4moe106b", "zai-org/GLM-4.5-Air"),
    ("minimaxm25", "MiniMaxAI/MiniMax-M2.5"),
    ("nemotron3super", "nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-BF16"),
    ("gptj", "EleutherAI/gpt-j-6b"),
)


def model_of(text: str) -> str:
    """The catalogue's name of a model as a file spells it."""
    plain = re.sub(r"[\s\-_.()]", "", text.lower().split("/")[-1])
    for pattern, name in MODELS:
        if re.search(pattern, plain):
            if name:
                return name
            break
    else:
        known = {re.sub(r"[\s\-_.]|instruct", "", name.lower().split("/")[-1]): name for name in model_names()}
        fits = [key for key in known if re.search(rf"(^|[a-z]){re.escape(key)}(?![0-9])", plain.replace("instruct", ""))]
        if fits:
            return known[max(fits, key=len)]
    raise Unsaid("the model is not in the catalogue", text)


def gguf_of(text: str) -> str:
    """The number format that a text names, in GGUF's words."""
    plain = text.lower().replace("-", "_").replace(" ", "_")
    if "mxfp4" in plain:
        return "mxfp4_moe"
    found = re.search(r"(?<![a-z0-9])(i?q\d(_[01k](_[sml])?|_(xxs|xs|s|m|nl))|tq[12]_0|b?f16|f32)(?![a-z0-9])", plain)
    if "q8_k_xl" in plain or re.search(r"q[2356]_k_xl|_xxs_xl", plain):
        raise Unsaid("a mixture of formats whose types are not stated", text)
    if "q4_k_xl" in plain or "q4_k___medium" in plain:
        return "q4_k_m"
    if "q4_k___small" in plain:
        return "q4_k_s"
    if "q5_k___medium" in plain:
        return "q5_k_m"
    if "q3_k___large" in plain:
        return "q3_k_l"
    if "q2_k___small" in plain:
        return "q2_k_s"
    if found is None:
        raise Unsaid("no format of weights is named", text)
    word = {"q4_k": "q4_k_m", "q5_k": "q5_k_m", "q3_k": "q3_k_m"}.get(found[1], found[1])
    try:
        return format_named(word).name
    except InputError:
        raise Unsaid("a format of a fork", word) from None


def device_of(text: str) -> str:
    """The device that a text means."""
    low = text.lower().replace("‑", "-")
    apple = re.search(r"\bm(\d)( pro| max| ultra)?\b", low)
    if ("apple" in low or "m1" in low or "m2" in low or "m4" in low) and apple and "cpu)" not in low:
        cores = re.search(r"(\d+)[- ]?(?:core gpu|gpu core|gpu|c\b)", low) or re.search(r"gpu[^0-9]*(\d+)", low)
        chip = f"apple-m{apple[1]}{(apple[2] or '').replace(' ', '-')}"
        found = [n for n in device_names() if re.fullmatch(rf"{chip}-(\d+)c-\d+gb", n)]
        if cores:
            found = [n for n in found if f"-{int(cores[1])}c-" in n] or found
        if found:
            return max(found, key=lambda n: [int(x) for x in re.findall(r"(\d+)c-(\d+)gb", n)[0]])
        raise Unsaid("the device is unknown", text)
    for pattern, name in DEVICES:
        if re.search(pattern, low):
            return name
    try:
        return resolve_device(re.sub(r"\(.*|\d+ ?gb.*|\*.*", "", low).replace("nvidia", "").strip())
    except InputError:
        raise Unsaid("the device is unknown", text) from None


DEVICES: tuple[tuple[str, str], ...] = (
    ("ryzen ai max|framework (desktop )?mainboard", "ryzen-ai-max-395-128gb"),
    ("gb10|dgx spark", "dgx-spark-128gb"),
    ("gaudi 3", "gaudi-3-128gb"),
    ("thor", "jetson-thor-128gb"),
    ("r9700", "radeon-ai-pro-r9700-32gb"),
    ("7950x.*zen4|^ryzen 9 7950x \\(16c", "ryzen-9-7950x-1s"),
    ("xeon gold 6138", "xeon-6138-1s"),
    ("m6a", "epyc-7r13-1s"),
    ("m7a", "epyc-9r14-1s"),
    ("m6i", "xeon-8375c-2s"),
    ("m7i.*48 cores", "xeon-8488c-1s"),
    ("altra", "ampere-altra-q80-1s"),
    ("ampereone m", "ampereone-m-a192-1s"),
    ("ampereone", "ampereone-a192-1s"),
    ("graviton4", "graviton4-1s"),
    ("6980p", "xeon-6980p-1s"),
    ("5975wx", "threadripper-5975wx-1s"),
    ("rtx pro 6000", "rtx-pro-6000-96gb"),
    ("a100 80gb", "a100-sxm-80gb"),
    ("h100 pcie", "h100-pcie-80gb"),
    ("h100", "h100-sxm-80gb"),
    ("h200", "h200-sxm-141gb"),
    ("mi300x", "mi300x-192gb"),
    ("mi325x", "mi325x-256gb"),
    ("mi355x", "mi355x-288gb"),
    ("mi50", "mi50-32gb"),
    ("rx 7900 \\(", "rx-7900-xtx-24gb"),
    ("(?<!rtx )4090", "rtx-4090-24gb"),
    ("(?<!rtx )5090", "rtx-5090-32gb"),
    ("3080 ti", "rtx-3080-ti-12gb"),
    ("3090 ti", "rtx-3090-ti-24gb"),
    ("4070 ti super", "rtx-4070-ti-super-16gb"),
    ("4070 ti", "rtx-4070-ti-12gb"),
    ("5060 ti", "rtx-5060-ti-16gb"),
    ("5070 ti", "rtx-5070-ti-16gb"),
    ("2080 ti", "rtx-2080-ti-11gb"),
    ("3090", "rtx-3090-24gb"),
    ("v100-pcie", "v100-pcie-32gb"),
    ("(rtx )?3080(?! ti)", "rtx-3080-10gb"),
    ("(rtx )?3070", "rtx-3070-8gb"),
    ("(rtx )?3060", "rtx-3060-12gb"),
    ("4080 super", "rtx-4080-super-16gb"),
    ("4080", "rtx-4080-16gb"),
    ("nvidia 4070\\)", "rtx-4070-12gb"),
    ("rtx a4000", "rtx-a4000-16gb"),
    ("rtx 4000 ada", "rtx-4000-ada-20gb"),
    ("rtx 5000 ada", "rtx-5000-ada-32gb"),
    ("rtx 6000 ada", "rtx-6000-ada-48gb"),
    ("7900 xtx", "rx-7900-xtx-24gb"),
    ("7900 xt", "rx-7900-xt-20gb"),
)

EARLY = "llama_cpp@0.0.2800"
"""Builds of early 2024, whose kernels on NVIDIA's cards were others."""
MIDDLE = "llama_cpp@0.0.5800"
"""Builds of the middle of 2025, whose kernels on AMD's processors were others."""


def early(row: Row) -> bool:
    """Whether a row was measured with such a build."""
    return row.get("date", "").startswith(("2023", "2024-0")) or "GPU-Benchmarks" in row.get("source", "")


NO_FEW_ROWS = "a build before Metal's kernels for few rows (llama.cpp 10581, 2024-12)"
"""Two to eight rows took two to three times as long there; these builds are not modelled."""

TEST = re.compile(r"(pp|tg)(\d+)(?:\s*@\s*(?:d|pp)(\d+))?")


def bench(
    number: str, row: Row, engine: str, model: str, weights: str, hardware: str, test: str, rate: str, **more: object
) -> Case:
    """A row of llama-bench: what a test says of tokens, and its rate."""
    found = TEST.fullmatch(test)
    if found is None:
        raise Unsaid(f"test '{test}' is no prompt and no decode")
    if not rate or float(rate) <= 0:
        raise Unsaid("no rate is given")
    tokens, depth = int(found[2]), int(found[3] or 0)
    prompt = found[1] == "pp"
    if not prompt and tokens < 2:
        raise Unsaid("a single token is no rate of decoding")
    if prompt and depth and any(b.window_tokens or b.kind == "linear" for b in load_architecture(model).attention):
        raise Unsaid("a cached prefix of a model with windows or states, which a server does not cut")
    sizes = {"new": tokens, "output": 1} if prompt else {"new": 1 if not depth else 0, "output": tokens}
    reported = {"prefill_tok_s" if prompt else "decode_tok_s": float(rate)}
    if prompt and depth:
        reported = {"ttft_median_ms": 1e3 * tokens / float(rate)}
    made = {"depth": depth, "reported": reported, **sizes}
    return Case(number, row.get("source", ""), engine, model, weights, hardware, **made, **more)  # type: ignore[arg-type]


def decoding(
    number: str,
    row: Row,
    engine: str,
    where: tuple[str, str, str],
    isl: int,
    osl: int,
    reported: dict[str, float],
    batch: int,
    *,
    unified: bool = True,
) -> Case:
    """Decoding of a batch after its prompts: answers to a single token whose mean context is that of the benchmark."""
    args: dict[str, object] = {"parallel": batch, "kv_unified": unified}
    return Case(number, row["source"], engine, *where, 1, 2 * isl + osl, reported, batch=batch, args=args)


# -- files ----------------------------------------------------------------------------------------------------


def llamacpp_apple(row: Row, number: str) -> Case:
    """measured_llamacpp_apple.csv: the community's table of Apple chips, benchmarks of many models, MLX-LM."""
    engine = "mlx_lm" if row["engine"].startswith("mlx") else "ollama" if "ollama" in row["engine"] else "llama_cpp"
    hardware, test = device_of(row["hardware"]), row["test"]
    named = f"{row['model']} {row['quant']}"
    if test.startswith("eval"):
        named, test = f"{row['model']} Q4_K_M", "tg200"
    weights = "mlx_4bit" if engine == "mlx_lm" else gguf_of(named)
    if test.startswith("batched"):
        batch, isl, osl = int(row["batch"]), int(float(row["isl"])), int(float(row["osl"]))
        reported = {"decode_tok_s": float(row["tok_s"])}
        where, old = (model_of(row["model"]), weights, hardware), "2023" in row["source"]
        if old and batch > 1:
            raise Unsaid(NO_FEW_ROWS)
        return decoding(number, row, engine, where, isl, osl, reported, batch, unified=False)  # each its own stream since 2025
    return bench(number, row, engine, model_of(row["model"]), weights, hardware, test, row["tok_s"])


def llamacpp_gpu(row: Row, number: str) -> Case:
    """measured_llamacpp_gpu.csv: llama.cpp on graphics cards, ExLlamaV2, Ollama, MLC-LLM (in its four bits, assumed)."""
    text, engine = row["hardware"], row["engine"]
    cards = re.search(r"\* ?(\d)$", text)
    if cards:
        raise Unsaid("layers of one model over several cards, one after another")
    if "mlc" in engine.lower():
        return bench(number, row, "mlc_llm", model_of(row["model"]), "q4f16_1", device_of(text), "tg256", row["tok_s"])
    name = "exllamav2" if "exllama" in engine.lower() else "ollama" if "ollama" in engine else "llama_cpp"
    if "llama.cpp CPU" in engine:
        raise Unsaid("the processor of a device whose graphics are the profile")
    test = row["test"]
    if name == "exllamav2":
        bits = re.search(r"([\d.]+) bpw", row["model"])
        weights = f"exl2_{bits[1]}" if bits else "gptq" if "GPTQ" in row["model"] else "exl2_4.0"
        test = "tg256"
    else:
        named = row["model"] if re.search(r"Q\d|F16|MXFP4", row["model"]) else f"{row['model']} Q4_K_M"
        named = "mxfp4" if "gpt-oss" in row["model"] else named
        weights = gguf_of(named)
        test = "tg200" if test.startswith(("eval", "decode")) else test
    device = device_of(text)
    if name == "llama_cpp" and early(row) and load_device(device).vendor == "nvidia":
        name = EARLY
    args: dict[str, object] = {}
    if name == "llama_cpp" and load_device(device).vendor == "amd" and (by := re.search(r"Vulkan|ROCm|HIP", f"{engine} {text}")):
        args["device"] = "Vulkan0" if by[0] == "Vulkan" else "ROCm0"
    return bench(number, row, name, model_of(row["model"]), weights, device, test, row["tok_s"], note=engine, args=args)


def llamacpp_batched(row: Row, number: str) -> Case:
    """measured_llamacpp_batched.csv: so many tokens in flight, as a prompt of as many."""
    tokens, depth = int(float(row["n_ubatch"])), int(float(row["depth"] or 0))
    if 1 < tokens <= 8 and re.search(r"pull/10(238|491) ", row["source"]):
        raise Unsaid(NO_FEW_ROWS)
    if "size_gib" in row and row["model"] == "llama 13B" and float(row["params_b"] or 13) > 20:
        raise Unsaid("the label is llama.cpp's own; the model is not stated")
    test = "tg16" if tokens == 1 and not depth else f"pp{tokens} @ d{depth}" if depth else f"pp{tokens}"
    if row["quant"] == "F32":
        raise Unsaid("weights in 32 bit")
    return bench(
        number, row, "llama_cpp", model_of(row["model"]), gguf_of(row["quant"]), device_of(row["hardware"]), test, row["tok_s"]
    )


DEFAULT_UBATCH = 512
"""Tokens of a prompt that llama.cpp computes at once unless told otherwise (datasheet)."""
SLOW_BLAS = "rocBLAS without hipBLASLt"
"""A library path of early ROCm on Strix Halo whose matrix products take two to three times as long."""


def llamabench_amd(row: Row, number: str) -> Case:
    """measured_llamabench_amd.csv: llama-bench on Strix Halo and R9700."""
    if float(row["n_dev"] or 1) > 1:
        raise Unsaid("layers of one model over several cards, one after another")
    named = f"{row['model']} {row['quant']}"
    if row["model"] == "llama 13B Q4_K - Medium":
        model = "mistralai/Mistral-Small-3.1-24B-Instruct-2503"
    elif row["model"].startswith("Nemotron"):
        raise Unsaid("the model is not in the catalogue", row["model"])
    elif row["model"].startswith("llama 7B"):
        model = "meta-llama/Llama-2-7b-hf"
    else:
        model = model_of(row["model"])
    backend = row["backend"].lower()
    args: dict[str, object] = {}
    if "ollama" not in backend:
        args["device"] = "Vulkan0" if "vulkan" in backend else "ROCm0"
    slow = "hipblaslt=;" in row["note"] and "vulkan" not in backend
    if args.get("device") == "ROCm0":
        args["hipblaslt"] = not slow
    if batch := re.search(r"\bb=-b (\d+)", row["note"]):
        args["batch_size"] = int(batch[1])
    if (tokens := int(float(row["n_ubatch"] or DEFAULT_UBATCH))) != DEFAULT_UBATCH:
        args["ubatch_size"] = tokens
    if "fa=-fa 1" in row["note"]:
        args["flash_attn"] = "on"
    note = row["backend"] + (f", {SLOW_BLAS}" if slow else "")
    engine = MIDDLE if row["build"].isdigit() and int(row["build"]) < 7000 else "llama_cpp"
    where = (model, gguf_of(named), device_of(row["hardware"]))
    return bench(number, row, engine, *where, row["test"], row["tok_s"], note=note, args=args)


def cpu_llamacpp(row: Row, number: str) -> Case:
    """measured_cpu_llamacpp.csv: llama.cpp and its fork on processors, by threads."""
    if not row["model"]:
        raise Unsaid("no model is named")
    if row["engine"].startswith("ik_llama"):
        raise Unsaid("a fork with kernels of its own")
    if "A1 (OCI" in row["cpu"]:
        raise Unsaid("four cores of a shared machine")
    args: dict[str, object] = {"threads": int(float(row["threads"]))} if row["threads"] else {}
    weights, hardware = gguf_of(row["model"]), device_of(row["cpu"])
    return bench(
        number, row, "llama_cpp", model_of(row["model"]), weights, hardware, row["test"], row["tok_s"], args=args
    )


def cpu_batched(row: Row, number: str) -> Case:
    """measured_cpu_batched.csv: batches on processors; several processes are as many replicas on a share of the cores."""
    if int(row["n_proc"]) > 1:
        raise Unsaid("several processes on one machine")
    if row["engine"].startswith("ampere optimized") or "graviton" in row["engine"].lower():
        raise Unsaid("a vendor's build with kernels of its own")
    if not row["tg_tok_s"]:
        raise Unsaid("no rate is given")
    batch, isl, osl = int(row["batch"]), int(row["isl"]), int(row["osl"])
    args: dict[str, object] = {"threads": int(row["threads"]), "parallel": batch, "kv_unified": True}
    reported = {"decode_tok_s": float(row["tg_tok_s"])}
    where = (model_of(row["model"]), gguf_of(row["quant"]), device_of(row["cpu"]))
    return replace(decoding(number, row, "llama_cpp", where, isl, osl, reported, batch), args=args)


OPENVINO_TOKENS = {"Llama-2": 238, "Llama-3": 207, "": 220}
"""Half of the tokens of a request by model: those in all are the rate of tokens over that of requests, at the lowest rate."""


def cpu(row: Row, number: str) -> Case:
    """measured_cpu.csv: OpenVINO's server by rate, llama.cpp on processors."""
    if row["engine"].startswith("OpenVINO"):
        if not row["tpot_ms"]:
            raise Unsaid("no rate is given")
        weights = {"FP16": "fp16", "INT8": "int8_wo", "INT4": "int4"}[row["model"].split()[-1]]
        hardware = "xeon-8480-1s" if "8480" in row["cpu"] else device_of(row["cpu"])
        reported, rate = {"tpot_mean_ms": float(row["tpot_ms"])}, float(row["rate_qps"])
        if not rate < float("inf"):
            raise Unsaid("all requests at once, of a number that is not stated")
        model = model_of(row["model"].replace("-chat", ""))
        half = next(tokens for word, tokens in OPENVINO_TOKENS.items() if word in row["model"])
        return Case(number, row["source"], "openvino", model, weights, hardware, half, half, reported, rate_qps=rate,
                    requests=400, note="lengths are not stated")  # fmt: skip
    if row["engine"] != "llama.cpp" or "E5-2683" in row["cpu"]:
        raise Unsaid("no engine or no device here runs it")
    args: dict[str, object] = {"threads": int(float(row["threads"]))} if row["threads"] else {}
    where = (model_of(row["model"]), gguf_of(row["model"]), device_of(row["cpu"]))
    return bench(number, row, "llama_cpp", *where, row["test"], row["tok_s"], args=args)


MOST_WARM_USERS = 8
"""Users up to which prompts that are computed here, and were cached where they were measured, hardly slow decoding."""


EXPERTS_SHARED: dict[str, object] = {
    "data_parallel_size": 2, "enable_expert_parallel": True, "all2all_backend": "allgather_reducescatter",
    "max_model_len": 16384, "max_num_seqs": 64, "disable_custom_all_reduce": True, "enable_prefix_caching": False,
}  # fmt: skip
"""Flags of the rig's runs of experts over all four cards, which the rows have at two (their `launch_argv`, bd22281)."""


def nv_consumer(row: Row, number: str) -> Case:
    """measured_nv_consumer.csv: GGUF files on single cards, and a rig of RTX 3090."""
    engine = row["engine"]
    if row["kind"] == "single stream" and engine.startswith("llama.cpp"):
        device, rate = device_of(row["hardware"]), float(row["decode_tok_s"])
        if "3080" in row["hardware"] and float(row["size_gib"]) > 7.0:
            raise Unsaid("the model does not fit the card")
        if rate >= 1000:
            raise Unsaid("the rate is cut at 1,000")
        where = (model_of(row["model"]), gguf_of(row["quant"]), device)
        return bench(number, row, "llama_cpp", *where, "tg200", row["decode_tok_s"], note="lengths are not stated")
    limit = re.search(r"limit (300|220)", row["hardware"])
    if not engine.startswith("vllm") or limit is None:
        raise Unsaid("no engine or no device here runs it so")
    if float(row["pp"] or 1) > 1 or row["spec"] or not row["out_tok_s"] or not row["concurrency"]:
        raise Unsaid("pipelines, drafts, or no load is stated")
    if not row["isl"] or not row["osl"]:
        raise Unsaid("lengths are not stated")
    if re.search(r"tp\dx[2-9]|-dp[2-9]", row["run_id"]):
        raise Unsaid("several servers behind a router that is not stated")
    if "mixed" in row["quant"]:
        raise Unsaid("a mixture of formats whose types are not stated", row["quant"])
    users = int(float(row["concurrency"]))
    weights = "bf16" if "BF16" in row["quant"] else "fp8" if "FP8" in row["quant"] else "awq"
    reported, tensor = {"output_tok_s": float(row["out_tok_s"])}, int(float(row["tp"] or 1))
    if itl := row["tpot_p50_ms"] or row["itl_p50_ms"]:
        reported["tpot_mean_ms"] = float(itl)
    if row["run_id"].startswith("orch/") and row["ttft_p50_ms"]:
        # a first token in a third of the time that the arithmetic of its prompt takes: the cache holds the prompts
        if users > MOST_WARM_USERS:
            raise Unsaid("prompts that a cache holds, of so many users that they would slow decoding here")
        del reported["output_tok_s"]
    args = EXPERTS_SHARED if row["run_id"].startswith("vllm026-rs/") and tensor > 1 else {}
    return Case(number, row["source"], "vllm", model_of(row["model"]), weights, "rtx-3090-24gb", int(float(row["isl"])),
                int(float(row["osl"])), reported, users=users, requests=4 * users, tensor=tensor, args=dict(args),
                peers=tensor > 1 and "P2P" in row["hardware"], power_limit_w=float(limit[1]))  # fmt: skip


def apple_engines(row: Row, number: str) -> Case:
    """measured_apple_engines.csv: MLX engines, one stream."""
    engine = row["engine"].lower()
    if not any(word in engine for word in ("mlx", "lmstudio")) or "gguf" in engine or "vlm" in engine:
        raise Unsaid("no engine here runs it so")
    if float(row["n_dev"] or 1) != 1 or float(row["batch"] or 1) != 1 or not row["decode_tok_s"]:
        raise Unsaid("clusters, batches, or no rate is given")
    named = f"{row['model']} {row['quant']}".lower()
    bits = re.search(r"(?<![\d.])([234568])-?bit|\bq([234568])\b", named)
    if "gguf" in named:
        raise Unsaid("no engine here runs it so")
    weights = "bf16" if "bf16" in named or "fp16" in named else f"mlx_{bits[1] or bits[2]}bit" if bits else ""
    if "mxfp4" in named or not weights:
        raise Unsaid("the format of the weights is not stated")
    hardware = device_of(row["hardware"])
    prompt, output = int(float(row["isl"] or row["context"] or 128)), int(float(row["osl"] or 128))
    reported = {"decode_tok_s": float(row["decode_tok_s"])}
    if row["prefill_tok_s"] and row["isl"]:
        reported["prefill_tok_s"] = float(row["prefill_tok_s"])
    return Case(number, row["source"], "mlx_lm", model_of(row["model"]), weights, hardware, prompt, output, reported,
                note=row["engine"])  # fmt: skip


def community(row: Row, number: str) -> Case:
    """measured_community.csv: uploads of many cards, one stream."""
    engine = row["engine"]
    if engine not in ("llamacpp", "llama.cpp", "ollama") or float(row["n_gpu"] or 1) != 1 or row["spec"] or row["mtp"]:
        raise Unsaid("no engine here runs it so")
    if not row["decode_tok_s"]:
        raise Unsaid("no rate is given")
    weights = gguf_of(f"{row['model']} {row['quant']}")
    where = (model_of(row["model"]), weights, device_of(row["hardware"]))
    return bench(number, row, "llama_cpp", *where, "tg200", row["decode_tok_s"], note="unverified upload")


OFFLINE_IN_FP8: dict[str, object] = {"kv_cache_dtype": "fp8", "max_model_len": 8192, "max_num_batched_tokens": 131_072}
"""Flags of the guides' runs of `benchmark_throughput.py` in FP8 on MI300X (ROCm/vllm 040de12, AI-benchmarking-guide 04e2ae7)."""


def benched(model: str, weights: str, hardware: str, tensor: int) -> dict[str, object]:
    """Arguments of the guide's runs on NVIDIA's devices: not vLLM, as the rows say, but TensorRT-LLM 0.15 by `trtllm-bench`
    (`Benchmarks/NVIDIA/LLMBenchmark.py` and the headings of its results, 26d18e9).

    One engine was built for 2,048 tokens and as many answered, and all lengths were run on it. How many rows and tokens it takes
    is what `trtllm-bench build` reckons (TensorRT-LLM `tensorrt_llm/bench/build/tuning.py`, of a later version): the requests
    that 0.95 of what the weights leave would hold, rounded up, and twice as many tokens, 2,048 at least.
    """
    arch, memory = load_architecture(model), load_device(hardware).memory_bytes.value
    block = arch.attention[0]
    token_bytes = 2.0 * arch.layers * max(tensor, block.kv_heads) * block.head_dim
    left = memory * tensor - parameters(arch) * format_named(weights).bits_per_weight / 8
    held = 0.95 * left / (4096 * token_bytes)
    step = 32 if held < 256 else 128
    rows = max(64, step * math.ceil(held / step))
    build = {"version": "0.15.0", "max_batch_size": rows, "max_num_tokens": max(2048, 2 * rows), "max_seq_len": 4096}
    return {"model_engine": "trtllm", "called": "tensorrt_llm", "enable_chunked_context": True, "build_config": build}


def amd_serving(row: Row, number: str) -> Case:
    """measured_amd_serving.csv: Instinct under vLLM and SGLang, and H100, H200 beside them."""
    layout = re.fullmatch(r"TP(\d)", row["layout"])
    if layout is None or row["spec"] not in ("", "none"):
        raise Unsaid("ranks in step, roles apart or drafts", row["layout"])
    engine = "vllm" if "vllm" in row["engine"].lower() else "sglang" if "sglang" in row["engine"].lower() else ""
    if not engine or not row["isl"] or not row["osl"]:
        raise Unsaid("no engine here runs it so, or lengths are not stated")
    weights = {"fp8": "fp8", "fp4": "mxfp4", "bf16": "bf16", "fp16": "fp16"}.get(row["precision"].lower(), "")
    model = model_of(row["model"])
    if not weights:
        raise Unsaid("a checkpoint whose format has no name here", row["precision"])
    where = (model, "fp8_block" if "DeepSeek" in model and weights == "fp8" else weights, device_of(row["hardware"]))
    sizes, tensor = (int(float(row["isl"])), int(float(row["osl"]))), int(layout[1])
    if "image" in row["engine"]:
        raise Unsaid("an image of kernels that no release names", row["engine"])
    answers: dict[str, object] = {}
    if "0.8 to 1.0" in row["note"]:
        answers = {"kind": "uniform", "low": round(0.8 * sizes[1]), "high": sizes[1]}
        sizes = (round(0.9 * sizes[0]), round(0.9 * sizes[1]))
    if mean := re.search(r"output length varies \(mean about (\d+)", row["note"]):
        sizes = (sizes[0], int(mean[1]))
    if row["concurrency"] and (row["tpot_mean_ms"] or row["tpot_p50_ms"]):
        users = int(float(row["concurrency"]))
        reported = {f"{k}_mean_ms": float(row[f"{k}_mean_ms"]) for k in ("ttft", "tpot") if row.get(f"{k}_mean_ms")}
        return Case(number, row["source"], engine, *where, *sizes, reported, users=users, requests=max(10 * users, 40),
                    tensor=tensor, answers=answers, route="completions")  # fmt: skip
    if row["out_tok_s"] and "generated" in row["note"]:
        reported = {"output_tok_s": float(row["out_tok_s"])}
        if "AI-benchmarking-guide" in row["source"] and load_device(where[2]).vendor == "nvidia":
            return Case(number, row["source"], "triton", *where, *sizes, reported, batch=1000, tensor=tensor, kv="fp8",
                        args=benched(*where, tensor), note="TensorRT-LLM, as the guide has it")  # fmt: skip
        args = OFFLINE_IN_FP8 if weights == "fp8" else {}
        return Case(number, row["source"], engine, *where, *sizes, reported, requests=1000, batch=1000, tensor=tensor, args=args)
    if row["batch"] and row["e2e_ms"]:
        batch, reported = int(float(row["batch"])), {"e2e_s": float(row["e2e_ms"]) / 1e3}
        return Case(number, row["source"], engine, *where, *sizes, reported, batch=batch, tensor=tensor)
    raise Unsaid("no load is stated")


def mi300x(row: Row, number: str) -> Case:
    """measured_mi300x.csv: the tables of the ROCm image of vLLM."""
    if not row["engine"].startswith("vllm") or not row["tp"].isdigit() or not row["isl"]:
        raise Unsaid("a micro-benchmark, or an engine that is not here")
    model = model_of(row["model"].split("(")[0])
    where = (model, row["precision"].lower(), "mi300x-192gb")
    sizes, tensor = (int(float(row["isl"])), int(float(row["osl"]))), int(row["tp"])
    if row["metric"] == "out_tok_s":
        reported, count = {"output_tok_s": float(row["value"])}, int(float(row["num_prompts"]))
        args = OFFLINE_IN_FP8 | {"max_num_seqs": int(float(row["max_num_seqs"]))}
        return Case(number, row["source"], "vllm", *where, *sizes, reported, batch=count, tensor=tensor, args=args)
    if row["metric"] == "e2e_latency_s":
        batch, reported = int(float(row["batch"])), {"e2e_s": float(row["value"])}
        return Case(number, row["source"], "vllm", *where, *sizes, reported, batch=batch, tensor=tensor)
    raise Unsaid(f"metric '{row['metric']}'")


def consumer_qps(row: Row, number: str) -> Case:
    """measured_vllm_consumer_qps.csv: vLLM on RTX 4090 by rate; lengths by their means, prompts without a template and greedy
    answers, as its benchmark client asks."""
    sizes = (round(float(row["actual_in"])), round(float(row["actual_out"])))
    reported = {"ttft_median_ms": float(row["ttft_p50_ms"]), "tpot_mean_ms": float(row["tpot_mean_ms"])}
    where = (model_of(row["model"]), "bf16", device_of(row["gpu"]))
    args: dict[str, object] = {"max_model_len": 8192, "generation_config": "vllm"}
    return Case(number, row["source"], "vllm@0.8.5", *where, *sizes, reported, rate_qps=float(row["rate_qps"]),
                requests=int(row["num_prompts"]), tensor=int(row["n_gpu"]), args=args, route="completions")  # fmt: skip


#: Requests of a run of ``trtllm-bench throughput`` by prompt and answer, as its page lists them (from memory, unconfirmed; others
#: 1,500). All are there at once: the rate over the whole run is that of a queue that is never empty, but for its end.
BENCHED = {(128, 128): 30_000, (20_000, 2000): 1000} | dict.fromkeys(
    [(128, 2048), (2048, 128), (500, 2000), (1000, 1000), (1000, 2000)], 3000
)


def trtllm_overview(row: Row, number: str) -> Case:
    """measured_trtllm_overview.csv: greatest throughput of TensorRT-LLM 1.0, and a closed loop of NIM.

    Assumed where the page says nothing: 2,048 rows and 8,192 tokens a step, nine tenths of free memory for a cache in FP8,
    padded CUDA graphs for every batch, no block reuse, experts split over all ranks; over PCIe their attention data-parallel.
    """
    if row["trtllm"].startswith("0."):
        return built_engine(row, number)
    layout = re.fullmatch(r"(?:TP)?(\d+)(?:PP(\d+))?", row["tp"])
    if layout is None or int(layout[2] or 1) > 1:
        raise Unsaid("pipeline parallelism of this engine", row["tp"])
    tensor, model = int(layout[1]), model_of(row["model"])
    weights = {"FP8": "fp8", "FP4": "nvfp4"}[row["precision"]]
    where = (model, weights, device_of(row["gpu"].replace("H100-80GB", "H100")))
    isl, osl = int(float(row["isl"])), int(float(row["osl"]))
    graphs = {"enable_padding": True, "max_batch_size": 2048}
    cache = {"dtype": "fp8", "free_gpu_memory_fraction": 0.9, "enable_block_reuse": False}
    args: dict[str, object] = {"max_batch_size": 2048, "max_num_tokens": 8192, "max_seq_len": isl + osl + 1}
    args |= {"cuda_graph_config": graphs, "kv_cache_config": cache, "enable_chunked_prefill": isl > 8192}
    if load_architecture(model).has_experts and tensor > 1:
        args["moe_expert_parallel_size"] = tensor
        if "RTX" in row["gpu"]:
            args |= {"tensor_parallel_size": tensor, "enable_attention_dp": True}
            tensor = 1
    if row["concurrency"]:
        users = int(float(row["concurrency"]))
        reported = {"ttft_mean_ms": float(row["ttft_mean_ms"]), "tpot_mean_ms": float(row["itl_mean_ms"])}
        return Case(number, row["source"], "trtllm", *where, isl, osl, reported, users=users, requests=max(10 * users, 40),
                    tensor=tensor, args=args)  # fmt: skip
    count, total = BENCHED.get((isl, osl), 1500), {"output_tok_s": float(row["value"])}
    return Case(number, row["source"], "trtllm", *where, isl, osl, total, batch=count, tensor=tensor, args=args)


def built_engine(row: Row, number: str) -> Case:
    """A batch that is computed to its end by an engine built for it, its prompts in one step; FP8 engines keep keys in FP8."""
    isl, osl, batch, tensor = (int(float(row[name])) for name in ("isl", "osl", "batch", "tp"))
    where = (model_of(row["model"]), row["precision"].lower(), device_of(row["gpu"]))
    build = {"version": row["trtllm"], "max_batch_size": batch, "max_num_tokens": batch * isl, "max_seq_len": isl + osl}
    args: dict[str, object] = {"model_engine": "trtllm", "called": "tensorrt_llm", "batching_strategy": "V1"}
    args["build_config"] = build
    first = row["metric"] == "first_token_latency_ms"
    value = float(row["value"])
    reported = {"ttft_mean_ms": value} if first else {"output_tok_s": value * tensor}
    return Case(number, row["source"], "triton", *where, isl, osl, reported, batch=batch, tensor=tensor,
                kv="fp8" if row["precision"] == "FP8" else "", args=args)  # fmt: skip


def lmdeploy(row: Row, number: str) -> Case:
    """measured_lmdeploy.csv: ShareGPT in a closed loop, lengths by their means, and so many requests of one length at a time;
    TurboMind 0.2 by the rules of today's."""
    out_s, users = float(row["out_tok_s"]), int(float(row["batch"]))
    where = (model_of(row["model"]), "fp16", device_of(row["gpu"]))
    reported = {"output_tok_s": out_s}
    if row["mode"] == "request_throughput":
        requests_s, requests = float(row["rps"]), int(float(row["num_prompts"]))
        sizes = (round((float(row["total_tok_s"]) - out_s) / requests_s), round(out_s / requests_s))
    else:  # a thread a request, which sends the next when its answer is there
        if not row.get("isl") or not row.get("osl"):
            raise Unsaid("a batch without its lengths", row["mode"])
        sizes, requests = (int(float(row["isl"])), int(float(row["osl"]))), 3 * users
        if row["ttft_mean_s"]:
            reported["ttft_mean_ms"] = 1e3 * float(row["ttft_mean_s"])
    return Case(number, row["source"], "lmdeploy", *where, *sizes, reported, users=users, requests=requests,
                tensor=int(float(row["tp"])), args={"max_batch_size": users},
                note="TurboMind 0.2 by the rules of 0.16")  # fmt: skip


def tgi(row: Row, number: str) -> Case:
    """measured_tgi.csv: makespans of TGI 3; answers of 50 tokens to 10 at once, as its load test has them (`load_tests/long.js`).

    A second run finds all prompts where the cache holds them all, which one L4's does not: there it is as the first.
    """
    if not row["engine"].startswith("TGI"):
        raise Unsaid("vLLM of 2024, whose prefix cache is not modelled", row["scenario"])
    if row["scenario"] != "long":
        raise Unsaid("prompts of 8,000 tokens in all do not explain how much longer a first run took", row["hardware"])
    count, device = row["hardware"].split("x")
    requests = int(float(row["num_requests"]))
    warm = requests if row["run"].startswith("2nd") and count != "1" else 0
    reported = {"duration_s.warm" if warm else "duration_s": float(row["value"])}
    where = (model_of(row["model"]), "bf16", device_of(device))
    return Case(number, row["source"], "tgi@3.0.0", *where, 200_000 // 20, 50, reported, users=10,
                requests=requests, tensor=int(count), warm=warm,
                args={"max_input_tokens": 15_000, "max_total_tokens": 16_000})  # fmt: skip


def serving_rates(row: Row, number: str) -> Case:
    """measured_serving_rates.csv: arrivals by rate on one card, users of llama-server, single streams of several engines."""
    engine, where = row["engine"], (model_of(row["model"]), row["precision"], device_of(row["hardware"]))
    if row["rate_qps"]:
        if engine.startswith("TensorRT-LLM 0."):
            return built_under_rates(row, number, where)
        raise Unsaid("vLLM before 0.6", engine)
    if engine == "DeepSpeed" and row["precision"] == "float16":
        return bench(number, row, "deepspeed_mii", where[0], "fp16", where[2], "tg512", row["out_tok_s"], note="lengths assumed")
    if engine == "transformers (pytorch)" and row["precision"] in ("float16", "float32"):
        weights = {"float16": "fp16", "float32": "fp32"}[row["precision"]]
        return bench(number, row, "transformers", where[0], weights, where[2], "tg512", row["out_tok_s"],
                     args={"mode": "static"}, note="lengths assumed")  # fmt: skip
    if row["concurrency"] and "lama" in engine and not engine.startswith("Ollama"):
        reported = {"output_tok_s": float(row["out_tok_s"])}
        users, osl = int(float(row["concurrency"])), int(float(row["osl"]))
        weights = gguf_of(row["quant"].removeprefix("UD-"))
        return Case(number, row["source"], "llama_cpp", where[0], weights, where[2], 32, osl, reported, users=users,
                    requests=4 * users, note="prompts assumed to have 32 tokens")  # fmt: skip
    raise Unsaid("no engine here runs it so, or lengths are not stated", engine)


def built_under_rates(row: Row, number: str, where: tuple[str, str, str]) -> Case:
    """TensorRT-LLM of 2024 behind Triton, tokens streamed; lengths log-normal, a client's of ShareGPT (p99 assumed).

    How many rows and tokens the engine was built for is not stated, so loads that it queued are left out.
    """
    if float(row["ttft_p50_ms"]) > 1e3:
        raise Unsaid("more than the engine took as it was built, which is not stated", row["engine"])
    count = int(float(row["num_prompts"]))
    mean = {name: float(row[f"{name}_tokens"]) / count for name in ("in", "out")}
    version = row["engine"].split()[1]
    build = {"version": version, "max_batch_size": 64, "max_num_tokens": 4096, "max_seq_len": 2048}
    args: dict[str, object] = {"model_engine": "trtllm", "called": "tensorrt_llm", "decoupled": True, "build_config": build}
    reported = {"ttft_median_ms": float(row["ttft_p50_ms"]), "tpot_mean_ms": float(row["tpot_p50_ms"])}
    return Case(number, row["source"], "triton", where[0], "bf16", where[2], round(mean["in"]), round(mean["out"]), reported,
                rate_qps=float(row["rate_qps"]), requests=count, args=args,
                answers={"kind": "lognormal", "mean": mean["out"], "p99": 4 * mean["out"]})  # fmt: skip


PROMPTS_OF_MLPERF = {"llama2-70b": 222, "mixtral-8x7b": 470, "llama3.1-8b": 778, "llama3.1-405b": 9400}
"""Mean prompt of a data set of MLPerf [tokens].

Llama-2's: 2,219,196 over 10,000 of its 24,576 prompts, as AI-Hypercomputer/JetStream prints them (pull request 196, 2025-02;
their answers have 293 as MLPerf's have). The others from memory, unconfirmed; Mixtral's assumed: a third are five-shot problems.
"""
ROWS_OF_MLPERF = {
    ("llama2-70b", "Offline"): {"h100-sxm": 896, "h100-nvl": 1300, "h200": 806, "gh200": 806, "l40s": 1024},
    ("llama2-70b", "Server"): {"h100-sxm": 1024, "h100-nvl": 640, "h200": 896, "gh200": 806, "l40s": 1024},
    ("mixtral-8x7b", "Offline"): {"h100": 896, "h200": 3072, "gh200": 1024},
    ("mixtral-8x7b", "Server"): {"h100": 896, "h200": 3072, "gh200": 1024},
}
"""Rows at once in submissions of round 4.1 (mlcommons/inference_results_v4.1, `gpu_batch_size`; Mixtral's of the server as
offline, assumed); elsewhere 2,048 (assumed)."""


MAXQ_W = 500.0
"""Power limit of NVIDIA's MaxQ systems of H200 for Llama-2-70B and Mixtral (mlcommons/inference_results_v4.1, `power_limit`)."""


def mlperf(row: Row, number: str) -> Case:
    """measured_mlperf.csv: the closed division; one of the equal servers of a system, and its share of the load.

    Offline: as many requests at once as are answered in ten minutes, 24,576 at least. Server: the highest Poisson rate whose p99
    keep the limits. Assumed: weights in FP8 (FP4 on Blackwell), over the fewest devices that they fill to two thirds; answers
    log-normal, their p99 3.5 times the mean, as the limit of 1,024 is to Llama-2's; the engines of today.
    """
    if row["division"] != "closed" or row["result_valid"] != "VALID":
        raise Unsaid("the open division, or an invalid result")
    if row["model"].endswith("-99.9"):
        raise Unsaid("the figure of -99 again, at a stricter accuracy")
    data = row["model"].removesuffix("-99")
    if data not in PROMPTS_OF_MLPERF:
        raise Unsaid("beams, or prompts whose length is not known", data)
    engine = "vllm" if "vLLM" in row["framework"] else "trtllm" if re.search("TensorRT|CUDA", row["framework"]) else ""
    if not engine:
        raise Unsaid("a CPU's own code", row["framework"])
    chip = re.sub("-CTS|-NPS1-SPX|-750W| Grace Hopper Superchip", "", row["accelerator"])
    spelled = chip.lower().removeprefix("nvidia ").replace(" ", "-")
    device = spelled if spelled in device_names() else device_of(chip)
    blackwell = device.startswith(("b200", "b300", "gb"))
    weights = "nvfp4" if blackwell else "mxfp4" if "fp4" in row["weight_data_types"].lower() else "fp8"
    model, count = model_of(data), round(float(row["n_accel_per_node"]) * float(row["nodes"] or 1))
    need = 1.5 * parameters(load_architecture(model)) * (0.5625 if "fp4" in weights else 1.0)
    tensor = 1
    while tensor * load_device(device).memory_bytes.value < need and 2 * tensor <= count:
        tensor *= 2
    share, answered = tensor / count, float(row["samples_per_s"])
    mean = float(row["tokens_per_s"]) / answered
    rows = next((n for word, n in ROWS_OF_MLPERF.get((data, row["scenario"]), {}).items() if device.startswith(word)), 2048)
    args: dict[str, object] = {"max_num_seqs": rows, "kv_cache_dtype": "fp8", "max_model_len": 4096}
    if engine == "trtllm":
        args = {"max_batch_size": rows, "max_num_tokens": 8192, "max_seq_len": 4096,
                "cuda_graph_config": {"enable_padding": True, "max_batch_size": rows},
                "kv_cache_config": {"dtype": "fp8", "free_gpu_memory_fraction": 0.9, "enable_block_reuse": False}}  # fmt: skip
    whole = Case(number, row["source"], engine, model, weights, device, PROMPTS_OF_MLPERF[data], round(mean), {}, tensor=tensor,
                 args=args, answers={"kind": "lognormal", "mean": mean, "p99": 3.5 * mean},
                 power_limit_w=MAXQ_W if "MaxQ" in row["system"] else 0.0,
                 note="not verified by MLCommons; prompt lengths assumed")  # fmt: skip
    if row["scenario"] == "Offline":
        requests = round(share * max(24_576, 600 * answered))
        return replace(whole, batch=requests, reported={"output_tok_s": share * float(row["tokens_per_s"])})
    limits = {f"{n}_ms": {"p99": float(row[f"{n}_limit_ms"])} for n in ("ttft", "tpot") if row[f"{n}_limit_ms"]}
    if not limits:
        raise Unsaid("no limits are stated", data)
    return replace(whole, rate_qps=share * answered, limits=limits, reported={"rate_within_slo": share * answered})


SPECULATIVE_LENGTHS = (100, 500)
"""Prompt and answer where a table of drafts states none (assumed: a question of MT-bench and a long answer)."""


def speculative2(row: Row, number: str) -> Case:
    """measured_speculative2.csv: drafts with their acceptance length, and the model alone, by users; versions before 0.12.

    Assumed: an H100 where the GPU is not stated, the releases by the dates of the threads.
    """
    if not row["out_tok_s"]:
        raise Unsaid("a speed-up or a share only, without the rate", row["engine"])
    drafts: dict[str, object] = {}
    if row["method"] != "none":
        if not row["acceptance_length"]:
            raise Unsaid("drafts without a stated acceptance", row["method"])
        steps, branches = int(float(row["spec_steps"])), int(float(row["topk"] or 1))
        drafts = {"method": "eagle3" if row["method"] == "EAGLE3" else "eagle", "num_speculative_tokens": steps}
        drafts["acceptance_length"] = float(row["acceptance_length"])
        if branches > 1:
            drafts |= {"eagle_topk": branches, "num_draft_tokens": int(float(row["num_draft"]))}
    engine = "sglang@0.5.6" if row["engine"] == "SGLang" else "vllm@0.11.0"
    tensor, gpu = (2, "H100") if row["hardware"].startswith("2x") else (1, row["hardware"].replace("not stated", "H100"))
    users = int(float(row["batch"]))
    return Case(number, row["source"], engine, model_of(row["model"]), "bf16", device_of(gpu), *SPECULATIVE_LENGTHS,
                {"output_tok_s": float(row["out_tok_s"])}, users=users, requests=max(8, 3 * users), tensor=tensor,
                speculative=drafts, note="lengths assumed")  # fmt: skip


def disaggregation(row: Row, number: str) -> Case:
    """measured_disaggregation.csv: prefill and decode servers of SGLang in a node of eight H200, two devices each (assumed)."""
    layout = re.fullmatch(r"(\d)P(\d)D", row["config"])
    if layout is None or row["kind"] != "measured" or not row["actual_in"] or "SGLang" not in row["engine"]:
        raise Unsaid("a claim, a transfer by itself, or a layout that is not stated", row["config"])
    servers = {"prefill": int(layout[1]), "decode": int(layout[2])}
    reported = {"ttft_mean_ms": float(row["ttft_mean_ms"]), "tpot_mean_ms": float(row["tpot_mean_ms"]),
                "output_tok_s": float(row["out_tok_s"])}  # fmt: skip
    where = (model_of(row["model"]), "mxfp4", "h200-sxm-141gb")
    sizes = (round(float(row["actual_in"])), round(float(row["actual_out"])))
    return Case(number, row["source"], "sglang", *where, *sizes, reported, users=int(float(row["concurrency"])),
                requests=int(float(row["num_prompts"])), tensor=8 // sum(servers.values()), servers=servers)  # fmt: skip


PROMPTS_OF_ML_ENERGY = {"lm-arena-chat": 100, "gpqa": 250, "sourcegraph-fim": 1000}
"""Mean prompt of a task of ML.ENERGY [tokens] (assumed)."""


def power(row: Row, number: str) -> Case:
    """measured_power.csv: power of a GPU that serves so many requests at once."""
    users = float(row["avg_batch"] or row["concurrency"] or 0)
    if not row["engine"].startswith("vLLM") or row["spec_accept_rate"] or users < 1:
        raise Unsaid("idle, drafts, or an engine whose load is not stated", row["engine"])
    if "start-up" in row["note"]:
        raise Unsaid("a mean over the start-up too")
    gpus, ep = int(row["num_gpu"]), float(row["ep"] or 1) > 1
    if float(row["dp"] or 1) > 1:
        raise Unsaid("ranks in step")
    model = model_of(row["model"].removesuffix("-FP8"))
    weights = {"bfloat16": "bf16", "fp8": "fp8", "mxfp4": "mxfp4", "": "mxfp4"}[row["precision"]]
    if weights == "fp8" and ("deepseek" in model or "Qwen" in model):
        weights = "fp8_block"
    prompt, output = 8192, 1024  # "isl 8k osl 1k class"
    if row["task"]:
        prompt, output = PROMPTS_OF_ML_ENERGY[row["task"]], round(float(row["avg_output_len"]))
    watts = float(row["power_w_mean"]) if row["power_w_mean"] else float(row["power_w_total"]) / gpus
    hardware = device_of(re.sub(r" \(.*", "", row["hardware"]))
    args: dict[str, object] = {"enable_expert_parallel": True} if ep else {}
    if row["max_num_seqs"]:
        args["max_num_seqs"] = int(float(row["max_num_seqs"]))
    return Case(number, row["source"], "vllm", model, weights, hardware, prompt, output, {"power_w": watts}, users=round(users),
                requests=4 * round(users), tensor=gpus, args=args, note="prompt lengths assumed")  # fmt: skip


def startup(row: Row, number: str) -> Case:
    """measured_startup.csv: how long servers take to start, and their parts; local ones from the disk (assumed)."""
    name, text = row["engine"].lower(), f"{row['model']} {row['engine']}"
    tensor, source = int(row["num_gpu"]), row["source"]
    if name.startswith(("vllm ", "sglang")) and row["hardware"].startswith(("MI300X", "GB300", "H200")):
        engine = "vllm" if name.startswith("vllm") else "sglang"
        weights = "fp8_block" if re.search("DeepSeek-R1|FP8", text) else "nvfp4" if "fp4" in text else "fp16"
        place = "network" if "shared" in row["note"] else "cache" if float(row["weights_load_s"] or 9) < 2 else "disk"
        parts = {"weights_s": row["weights_load_s"] or row["sgl_load_s"]}
        parts["graph_capture_s"] = row["graph_capture_s"] or row["sgl_capture_s"]
        parts["compile_s"] = str(float(row["dynamo_s"] or 0) + float(row["compile_s"] or 0))
        reported = {key: float(value) for key, value in parts.items() if float(value or 0) > 0}
        start: dict[str, object] = {"weights_from": place, "compile_cache": 0 < float(row["compile_s"] or 0) < 20}
    elif name.startswith(("llama-server", "mlx-lm ", "ollama ")) and row["model_load_s"]:
        engine = "mlx_lm" if name.startswith("mlx") else "ollama" if name.startswith("ollama") else "llama_cpp"
        bits = re.search(r"\b([48])bit", text)
        weights = gguf_of(text) if engine != "mlx_lm" else f"mlx_{bits[1]}bit" if bits else ""
        if not weights or re.search("spec|mtp", text):
            raise Unsaid("drafts, or the format of the weights is not stated")
        reported, start = {"start_s": float(row["model_load_s"])}, {"weights_from": "disk"}
    else:
        raise Unsaid("no engine here runs it so", row["engine"])
    where = (model_of(row["model"].split(" ")[0]), weights, device_of(row["hardware"]))
    return Case(number, source, engine, *where, 100, 100, reported, tensor=tensor, start=start)


FILES: dict[str, Callable[[Row, str], Case]] = {
    "measured_lmdeploy": lmdeploy,
    "measured_tgi": tgi,
    "measured_serving_rates": serving_rates,
    "measured_mlperf": mlperf,
    "measured_power": power,
    "measured_startup": startup,
    "measured_speculative2": speculative2,
    "measured_disaggregation": disaggregation,
    "measured_trtllm_overview": trtllm_overview,
    "measured_llamacpp_apple": llamacpp_apple,
    "measured_llamacpp_gpu": llamacpp_gpu,
    "measured_llamacpp_batched": llamacpp_batched,
    "measured_llamabench_amd": llamabench_amd,
    "measured_cpu_llamacpp": cpu_llamacpp,
    "measured_cpu_batched": cpu_batched,
    "measured_cpu": cpu,
    "measured_nv_consumer": nv_consumer,
    "measured_apple_engines": apple_engines,
    "measured_community": community,
    "measured_amd_serving": amd_serving,
    "measured_mi300x": mi300x,
    "measured_vllm_consumer_qps": consumer_qps,
}


def read(path: Path) -> Found:
    """The cases of a file, and why its other rows are none."""
    reader = FILES[path.stem]
    with path.open(encoding="utf-8", newline="") as file:
        for i, row in enumerate(csv.DictReader(file)):
            try:
                yield reader(row, f"{path.stem.removeprefix('measured_')}-{i}")
            except Unsaid as why:
                yield why
            except ValueError:
                yield Unsaid("a number is missing")


def main() -> None:
    """Write the cases of a folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    asked = parser.parse_args()
    with asked.output.open("w", encoding="utf-8") as out:
        for name in FILES:
            unsaid: dict[str, Counter[str]] = {}
            made = 0
            for found in read(asked.folder / f"{name}.csv"):
                if isinstance(found, Case):
                    out.write(found.line() + "\n")
                    made += 1
                else:
                    unsaid.setdefault(str(found), Counter())[found.detail] += 1
            print(f"{name}: {made} cases", file=sys.stderr)
            for why, details in unsaid.items():
                named = ", ".join(detail for detail, _ in details.most_common(6) if detail)
                print(f"  {details.total()} rows: {why}{': ' + named if named else ''}", file=sys.stderr)


if __name__ == "__main__":
    main()
