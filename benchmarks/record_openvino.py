"""Steps of OpenVINO GenAI's own scheduler under drawn settings and loads, for `capacity-plan validate schedules`.

    python benchmarks/record_openvino.py OUT --first 0 --count 60    60 recordings, by their seeds
    python benchmarks/record_openvino.py OUT --like FILE...          the settings and requests of these recordings once more
    capacity-plan validate schedules OUT                             how many steps are reproduced

Needs g++, the Python package openvino 2026.4.1 (headers and library) and the sources of openvino.genai at da1db864d2bc, whose
path is given (`OPENVINO_GENAI`); nothing of this project is needed. Scheduler, caches, block manager and sequences are OpenVINO's
C++; `openvino_steps.cpp` says again what stands around them. The stamps by which blocks are overwritten are a counter. With
`--like` the 13 recordings that the scheduler was written after come out equal (7,925 steps).
"""

from __future__ import annotations

import functools
import os
import random
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from recorded_load import Case, drawn_requests, head, main, prompt, token

VERSION = "openvino.genai main, commit da1db864d2bc (August 2026, 2026.4 line)"
CLOCK = "std::chrono::steady_clock::now()"
COUNTED = "std::chrono::steady_clock::time_point(std::chrono::nanoseconds(++ov::genai::ticks))"


def drawn(seed: int) -> tuple[Case, list[Case]]:
    """The config line and the requests of a seed: a cache that grows, is tight or roomy, prompts whole or in pieces."""
    draw = random.Random(seed)
    longest, answer = draw.choice([60, 200, 500, 1200]), draw.choice([5, 20, 80, 200])
    block, split = draw.choice([16, 32, 32, 256]), draw.random() < 0.6
    one = -(-(longest + answer) // block) + 1
    config: Case = {
        "max_num_batched_tokens": draw.choice([16, 64, 256, 512, 2048, 2147483647] if split else [2048, 4096]),
        "num_kv_blocks": draw.choice([0, *(max(one + 1, int(one * share)) for share in (1.1, 1.5, 2.5, 5, 12))]),
        "dynamic_split_fuse": split,
        "max_num_seqs": draw.choice([2, 4, 16, 256]),
        "enable_prefix_caching": draw.random() < 0.5,
        "block_size": block,
        "partial_preemption": split or draw.random() < 0.5,
    }
    return head("openvino", VERSION, seed, config), drawn_requests(draw, longest, answer)


@functools.cache
def built() -> str:
    """The program around OpenVINO's scheduler, compiled."""
    here, source = Path(__file__).parent, Path(os.environ["OPENVINO_GENAI"]) / "src" / "cpp"
    found = find_spec("openvino")
    assert found is not None
    assert found.origin is not None
    runtime, into = Path(found.origin).parent, Path(tempfile.mkdtemp())
    blocks = (source / "src/continuous_batching/cache/block_manager.hpp").read_text().replace(CLOCK, COUNTED)
    counting = into / "continuous_batching" / "cache" / "block_manager.hpp"
    counting.parent.mkdir(parents=True)
    counting.write_text(blocks.replace("namespace ov::genai {", "namespace ov::genai {\ninline long ticks = 0;", 1))
    library = next((runtime / "libs").glob("libopenvino.so*"))
    folders = [into, runtime / "include", source / "include", source / "src"]
    files = [here / "openvino_steps.cpp", source / "src/sequence_group.cpp", source / "src/logger.cpp", library]
    made = into / "steps"
    flags = ["-std=c++17", "-O1", "-ffp-contract=off", "-w", *(f"-I{folder}" for folder in folders)]
    subprocess.run(["g++", *flags, *files, f"-Wl,-rpath,{runtime / 'libs'}", "-o", made], check=True)
    return str(made)


def record(config: Case, requests: list[Case]) -> list[Case]:
    """The steps of OpenVINO's scheduler."""
    knobs, clock, number = config["config"], config["step_time"], {request["id"]: at for at, request in enumerate(requests)}
    words: list[Any] = [len(requests), *(int(knobs[name]) for name in ("max_num_batched_tokens", "num_kv_blocks"))]
    words += [int(knobs[name]) for name in ("dynamic_split_fuse", "max_num_seqs", "enable_prefix_caching", "block_size")]
    words += [int(knobs["partial_preemption"]), *(clock[name] for name in "abcd")]
    for request in requests:
        after = request.get("after")
        words += [1, number[after["id"]], after["delay"]] if after else [0, request["arrival"]]
        words += [request["prompt_len"], request["output_len"], *prompt(request)]
        words += [token(request["out_seg"], place) for place in range(request["output_len"])]
    ran = subprocess.run([built()], input=" ".join(map(str, words)), capture_output=True, text=True, check=True)
    names = list(number)

    def rows(text: str) -> list[list[Any]]:
        parts = [part.split(":") for part in text.split(",") if part]
        return [[names[int(part[0])], *map(int, part[1:])] for part in parts]

    steps = []
    for line in ran.stdout.splitlines():
        begin, end, taken, alone, found, lost, holding, bare, free, usage, total, finished, after_it = line.split("|")
        step: Case = {"type": "step", "step": len(steps), "t_sched": float(begin), "t_end": float(end), "sched": rows(taken)}
        step |= {"is_prompt": alone == "1", "hits": dict(rows(found)), "preempted": rows(lost)}
        step |= {"running": [row[0] for row in rows(holding)], "waiting": [row[0] for row in rows(bare)]}
        step |= {"free_blocks": int(free), "cache_usage": round(float(usage), 4)}
        step |= {} if knobs["num_kv_blocks"] else {"total_blocks": int(total)}
        step |= {"finished": [row[0] for row in rows(finished)], "free_blocks_after": int(after_it)}
        steps.append(step)
    return steps


if __name__ == "__main__":
    main(__doc__, drawn, record)
