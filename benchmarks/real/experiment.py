"""Start a real server on this machine, calibrate on it, serve loads, print predicted against measured.

    python benchmarks/real/experiment.py llama_cpp [--server PATH] [--output DIR] [--requests N] [--clock computing]
    python benchmarks/real/experiment.py vllm      [--server PATH] ...

The model has random weights and is written here: nothing is downloaded. What it needs beside the project (each is named, with the
line that brings it, where it is absent): the extra [endpoint]; llama.cpp's `llama-server` (Debian `llama.cpp`, Homebrew
`llama.cpp`, or built from the sources that `llama-cpp-python` on PyPI ships, `--build DIR`) and the package `gguf`; or a CPU
build of `vllm`.

`--clock computing` goes by the CPU time of the server while requests are under way (Linux, llama.cpp), for machines that have
other work; arrivals go by it too. The simulator is fitted to the microbenchmarks of `capacity-plan calibrate endpoint` alone;
nothing is fitted to the loads.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tarfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hardware_profiles.errors import InputError
from simulator.config.load import load_scenario
from simulator.endpoint.calibrate import Options, calibrate, check_scenario, experiment
from simulator.endpoint.client import Answer, Client, Prompt, Target
from simulator.endpoint.replay import Sent, compare, load_of, send
from simulator.prepare import prepare
from simulator.prepared import Prepared

SHAPE = {
    "hidden_size": 1024,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "intermediate_size": 2816,
    "vocab_size": 32000,
}
"""A llama of 246 million parameters."""
MODEL: dict[str, Any] = {
    "name": "random-246m",
    "architectures": ["LlamaForCausalLM"],
    "max_position_embeddings": 4096,
    **SHAPE,
}
SLOTS, SLOT_TOKENS = 4, 2048
READY_S = 600.0
"""Longest wait for a server (assumed)."""
LENGTHS = {
    "prompt_tokens": {"kind": "lognormal", "mean": 120, "p99": 600, "max": 900},
    "output_tokens": {"kind": "lognormal", "mean": 40, "p99": 150, "max": 300},
}
SHOWN = (("ttft_ms", "mean"), ("itl_ms", "mean"), ("e2el_ms", "mean"), ("ttft_ms", "p99"), ("e2el_ms", "p99"))


def find(name: str, given: Path | None, mend: str) -> Path:
    """A program, as given or on the PATH. Raises InputError with the lines that bring it."""
    found = str(given) if given is not None else shutil.which(name)
    if found is None or shutil.which(found) is None:
        raise InputError(f"there is no {name} on this machine", where="--server", mend=mend)
    return Path(found)


def write_gguf(path: Path) -> None:
    """The model with random weights in Q4_0, the head in Q8_0. Raises InputError without the package."""
    try:
        import gguf
    except ImportError:
        raise InputError("a random model needs the package gguf", mend="pip install gguf") from None
    kind = gguf.GGMLQuantizationType
    hidden, vocabulary, wide = SHAPE["hidden_size"], SHAPE["vocab_size"], SHAPE["intermediate_size"]
    heads, kv_heads = SHAPE["num_attention_heads"], SHAPE["num_key_value_heads"]
    narrow = kv_heads * hidden // heads
    rng = np.random.default_rng(0)
    out = gguf.GGUFWriter(str(path), "llama")
    out.add_context_length(MODEL["max_position_embeddings"])
    out.add_embedding_length(hidden)
    out.add_block_count(SHAPE["num_hidden_layers"])
    out.add_feed_forward_length(wide)
    out.add_head_count(heads)
    out.add_head_count_kv(kv_heads)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_rope_dimension_count(hidden // heads)
    out.add_vocab_size(vocabulary)
    out.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    out.add_tokenizer_model("llama")
    special = [b"<unk>", b"<s>", b"</s>", *(f"<0x{byte:02X}>".encode() for byte in range(256))]
    out.add_token_list([*special, *(f"\u2581t{number}".encode() for number in range(vocabulary - len(special)))])
    out.add_token_types([2, 3, 3, *[6] * 256, *[1] * (vocabulary - len(special))])
    out.add_token_scores([-float(number) for number in range(vocabulary)])
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)
    out.add_unk_token_id(0)
    out.add_add_bos_token(False)

    def put(name: str, rows: int, columns: int, quantized: Any) -> None:
        weights = rng.standard_normal((rows, columns), dtype=np.float32) * np.float32(0.02)
        out.add_tensor(name, gguf.quants.quantize(weights, quantized), raw_dtype=quantized)

    put("token_embd.weight", vocabulary, hidden, kind.Q4_0)
    put("output.weight", vocabulary, hidden, kind.Q8_0)
    out.add_tensor("output_norm.weight", np.ones(hidden, np.float32))
    for layer in range(SHAPE["num_hidden_layers"]):
        for norm in ("attn_norm", "ffn_norm"):
            out.add_tensor(f"blk.{layer}.{norm}.weight", np.ones(hidden, np.float32))
        for name, rows, columns in (
            ("attn_q", hidden, hidden),
            ("attn_k", narrow, hidden),
            ("attn_v", narrow, hidden),
            ("attn_output", hidden, hidden),
            ("ffn_gate", wide, hidden),
            ("ffn_up", wide, hidden),
            ("ffn_down", hidden, wide),
        ):
            put(f"blk.{layer}.{name}.weight", rows, columns, kind.Q4_0)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def build_llama_server(folder: Path) -> Path:
    """llama.cpp's server from the sources in llama-cpp-python's sdist (needs pip, cmake and a C++ compiler; many minutes)."""
    folder.mkdir(parents=True, exist_ok=True)
    server = folder / "build" / "bin" / "llama-server"
    if server.exists():
        return server
    get = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", "llama-cpp-python"]
    subprocess.run([*get, "-d", str(folder)], check=True)
    archive = next(folder.glob("llama_cpp_python-*.tar.gz"))
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    source = folder / archive.name.removesuffix(".tar.gz") / "vendor" / "llama.cpp"
    off = ("BUILD_SHARED_LIBS", "LLAMA_OPENSSL", "LLAMA_BUILD_TESTS", "LLAMA_BUILD_EXAMPLES", "LLAMA_USE_PREBUILT_UI")
    flags = ["-DCMAKE_BUILD_TYPE=Release", *(f"-D{name}=OFF" for name in off)]
    subprocess.run(["cmake", "-S", str(source), "-B", str(folder / "build"), *flags], check=True)
    build = ["cmake", "--build", str(folder / "build"), "--target", "llama-server"]
    subprocess.run([*build, "-j", str(os.cpu_count() or 1)], check=True)
    return server


def llama_cpp(given: argparse.Namespace, port: int) -> tuple[list[str], dict[str, str], dict[str, Any]]:
    """Command, environment and deployment of llama.cpp's server."""
    program = build_llama_server(given.build) if given.build is not None else None
    program = program or find("llama-server", given.server, "apt install llama.cpp, brew install llama.cpp, or --build DIR")
    model = given.output / "random-246m-q4_0.gguf"
    if not model.exists():
        write_gguf(model)
    flags = {"parallel": SLOTS, "ctx_size": SLOTS * SLOT_TOKENS, "threads": 1, "cache_ram": 0}
    words = [f"--{name.replace('_', '-')}={value}".split("=") for name, value in flags.items()]
    command = [str(program), "-m", str(model), "--host", "127.0.0.1", "--port", str(port), *(w for pair in words for w in pair)]
    return command, {}, {"engine": "llama_cpp", "weights": "q4_0", "engine_args": flags}


def vllm(given: argparse.Namespace, port: int) -> tuple[list[str], dict[str, str], dict[str, Any]]:
    """Command, environment and deployment of vLLM on a CPU, with weights that it draws itself and without a tokeniser."""
    program = find("vllm", given.server, "pip install vllm (a CPU build: see its documentation), or use llama_cpp")
    folder = given.output / "random-246m"
    folder.mkdir(exist_ok=True)
    more = {"model_type": "llama", "torch_dtype": "bfloat16", "rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": 2}
    (folder / "config.json").write_text(json.dumps(MODEL | more), encoding="utf-8")
    flags = {"max_num_seqs": 16, "max_model_len": 2048, "max_num_batched_tokens": 512, "enforce_eager": True}
    command = [str(program), "serve", str(folder), "--host", "127.0.0.1", "--port", str(port), "--load-format", "dummy"]
    command += ["--skip-tokenizer-init", "--dtype", "bfloat16", "--max-num-seqs", "16", "--max-model-len", "2048"]
    command += ["--max-num-batched-tokens", "512", "--enforce-eager", "--no-async-scheduling", "--no-enable-prefix-caching"]
    environment = {"OMP_NUM_THREADS": "1", "VLLM_CPU_KVCACHE_SPACE": "2", "HF_HUB_OFFLINE": "1"}
    flags |= {"async_scheduling": False, "enable_prefix_caching": False}
    return command, environment, {"engine": "vllm", "weights": "bf16", "engine_args": flags}


@contextlib.contextmanager
def running(command: list[str], environment: dict[str, str], log: Path, address: str) -> Iterator[int]:
    """A server until it serves; its process. Raises InputError where it ends or is not ready in time."""
    with log.open("wb") as file:
        server = subprocess.Popen(command, env=os.environ | environment, stdout=file, stderr=subprocess.STDOUT)
    try:
        until_s = time.monotonic() + READY_S
        while not serves(f"{address}/health"):
            if server.poll() is not None or time.monotonic() > until_s:
                raise InputError(f"the server did not start: {' '.join(command)}", where=str(log), mend="see its log")
            time.sleep(0.5)
        yield server.pid
    finally:
        server.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(20)
        server.kill()


def serves(address: str) -> bool:
    """Whether an address is answered with 200."""
    try:
        with urllib.request.urlopen(address, timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def family(process: int) -> list[int]:
    """A process and those that its threads started, and so on (Linux)."""
    files = Path(f"/proc/{process}/task").glob("*/children")
    children = [int(each) for file in files for each in file.read_text(encoding="ascii").split()]
    return [process, *(each for child in children for each in family(child))]


class ComputingClock:
    """Seconds, of which those with a request under way count as far as the server computed (CPU time of its process, Linux).

    On a machine with other work it goes as the wall clock would on an idle one. A server that polls while it waits is computing
    by this clock too: so long as requests are under way, that is what it waits. Work of neighbours on the same caches and memory
    still slows it.
    """

    def __init__(self, process: int) -> None:
        """Of the process among `process` and those that it started that has computed most so far."""
        clocks = [~each << 3 | 2 for each in family(process)]  # clock_getcpuclockid(3)
        self._cpu_clock = max(clocks, key=time.clock_gettime)
        self._under_way = 0
        self._now_s = 0.0
        self._wall_s, self._cpu_s = time.perf_counter(), time.clock_gettime(self._cpu_clock)

    def __call__(self) -> float:
        """Now."""
        wall_s, cpu_s = time.perf_counter(), time.clock_gettime(self._cpu_clock)
        self._now_s += cpu_s - self._cpu_s if self._under_way else wall_s - self._wall_s
        self._wall_s, self._cpu_s = wall_s, cpu_s
        return self._now_s

    def under_way(self, change: int) -> None:
        """A request more, or one less."""
        self()
        self._under_way += change


class ComputingClient(Client):
    """A client that tells its clock which requests are under way."""

    clock: ComputingClock

    async def ask(self, prompt: Prompt, tokens: int, attempts: int = 1) -> Answer:
        """See the base."""
        self.clock.under_way(1)
        try:
            return await super().ask(prompt, tokens, attempts)
        finally:
            self.clock.under_way(-1)


def prepared_for(deployment: dict[str, Any], workload: dict[str, Any], calibration: Path | None) -> Prepared:
    """A scenario of the server, with a calibration or without."""
    named = {} if calibration is None else {"calibration": str(calibration)}
    whole = {"name": "real", "model": MODEL, "deployment": deployment | named, "workload": workload}
    return prepare(load_scenario(whole))


def loads(given: argparse.Namespace, capacity_per_s: float) -> dict[str, dict[str, Any]]:
    """The loads by name: clients in a closed loop, and shares of a capacity."""
    drawn = LENGTHS | {"max_output_tokens": "equal", "requests": given.requests}
    if given.trace is not None:
        return {given.trace.stem: {"trace": str(given.trace), "limit": given.requests}}
    rates = {f"p{percent}": {"kind": "poisson", "rate": percent / 100 * capacity_per_s} for percent in (40, 70)}
    clients = {f"c{count}": {"kind": "closed_loop", "concurrency": count} for count in (1, SLOTS)}
    return {name: drawn | {"arrivals": law} for name, law in (clients | rates).items()}


def main() -> None:
    """Do the experiment; print tables, write results.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", choices=["llama_cpp", "vllm"])
    parser.add_argument("--server", type=Path, help="llama-server or vllm, if not on the PATH")
    parser.add_argument("--build", type=Path, help="folder in which llama.cpp is built, or was")
    parser.add_argument("--output", type=Path, default=Path("real"))
    parser.add_argument("--requests", type=int, default=60, help="of each load")
    parser.add_argument("--repeats", type=int, default=3, help="of each point of the calibration")
    parser.add_argument("--trace", type=Path, help="a trace to serve in place of drawn loads")
    parser.add_argument("--hardware", default="epyc-9755-1s", help="profile of this machine's kind: for its memory")
    parser.add_argument("--clock", choices=["wall", "computing"], default="wall")
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    try:
        run(given)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def run(given: argparse.Namespace) -> None:
    """The experiment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command, environment, deployment = {"llama_cpp": llama_cpp, "vllm": vllm}[given.engine](given, port)
    deployment |= {"hardware": given.hardware}
    address = f"http://127.0.0.1:{port}"
    results: dict[str, Any] = {"machine": machine(), "command": command, "clock": given.clock, "loads": {}}
    with running(command, environment, given.output / "server.log", address) as process:
        target = Target.of(address, timeout_s=300.0)
        computing = ComputingClock(process)

        def ask(what: Callable[[Client], Any]) -> Any:
            async def go() -> Any:
                kind = ComputingClient(target, say, computing) if given.clock == "computing" else Client(target, say)
                async with kind as client:
                    return await what(client)

            return asyncio.run(go())

        plain = prepared_for(deployment, loads(given, 1.0).popitem()[1], None)
        server = check_scenario(plain)
        file, measurements = given.output / "calibration.json", given.output / "measurements.jsonl"
        for old in (file, measurements):
            old.unlink(missing_ok=True)
        options = Options(repeats=given.repeats, most_s=1200.0)
        found, head, notes = ask(lambda client: experiment(client, server, options, measurements, say))
        outcome = calibrate(server, found, head, measurements, notes)
        outcome.calibration.write(file)
        results["calibration"] = outcome.calibration.as_dict()
        print(table_of(outcome.calibration.table), *outcome.notes, sep="\n")
        capacity_per_s = 1.0
        for name, _ in loads(given, 1.0).items():
            workload = loads(given, capacity_per_s)[name]
            prepared = prepared_for(deployment, workload, file)
            load, _ = load_of(prepared, given.requests, 1e6)
            sent = Sent.of(load)
            ask(lambda client, sent=sent, prepared=prepared: send(client, prepared, sent, say))
            comparison = compare(sent, prepared, address)
            entries = [dict(entry) for entry in comparison.entries]
            uncalibrated = compare(sent, prepared_for(deployment, workload, None), address).entries
            for entry, before in zip(entries, uncalibrated, strict=True):
                entry["uncalibrated"] = before["predicted"]
            results["loads"][name] = {"entries": entries, "notes": comparison.notes, "sent": sent.counts()}
            if name == f"c{SLOTS}":
                capacity_per_s = len(load) / (max(a.end_s for a in sent.answers if a) - min(a.sent_s for a in sent.answers if a))
            print(line_of(name, entries), *comparison.notes, sep="\n  ")
            (given.output / "results.json").write_text(json.dumps(results, indent=1), encoding="utf-8")


def say(text: str) -> None:
    """To stderr."""
    print(text, file=sys.stderr)


def machine() -> dict[str, Any]:
    """What the measurements were made on."""
    return {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "load": os.getloadavg()}


def table_of(rows: Any) -> str:
    """Points of the calibration: measured ms, and percent off before, after, and left out."""
    lines = [f"{'point':18} {'':7} {'ms':>9} {'before %':>9} {'after %':>8} {'left out %':>10}"]
    for row in rows:
        before, after = (100 * (row[key] / row["measured"] - 1) for key in ("before", "after"))
        held = row["held_out_error_pct"]
        left_out = "-" if held is None else f"{held:+.1f}"
        lines.append(
            f"{row['point']:18} {row['metric']:7} {row['measured']:9.2f} {before:+9.1f} {after:+8.1f} {left_out:>10}"
        )
    return "\n".join(lines)


def line_of(name: str, entries: list[dict[str, Any]]) -> str:
    """A load: measured, and percent off as calibrated (before)."""
    by_name = {(entry["metric"], entry["statistic"]): entry for entry in entries}
    cells = []
    for metric, statistic in SHOWN:
        entry = by_name[metric, statistic]
        after, before = (100 * (entry[key] / entry["measured"] - 1) for key in ("predicted", "uncalibrated"))
        cells.append(f"{metric.removesuffix('_ms')} {statistic} {entry['measured']:.1f} ms {after:+.1f} % ({before:+.1f} %)")
    return f"{name}: {', '.join(cells)}"


if __name__ == "__main__":
    main()
