"""Decisions of the production stack's router under drawn settings and loads, for `capacity-plan validate schedules`.

    PYTHONPATH=SOURCE/src python benchmarks/record_production_stack.py OUT --first 0 --count 60    60 recordings, by their seeds
    capacity-plan validate schedules OUT                                            how many decisions are reproduced

Runs in an environment where `vllm_router` of vLLM's production stack (a6c01db) can be imported; nothing of this project is
needed. Its routing logic, hash ring, trie and monitor of requests are asked directly, at virtual times. A character is a token.
"""

from __future__ import annotations

import asyncio
import importlib
import random
from types import SimpleNamespace
from typing import Any

from recorded_load import Case, main, text

VERSION = "src/vllm_router at commit a6c01db (2026-08-05)"
KEY = "x-user-id"


def drawn(seed: int) -> tuple[Case, list[Case]]:
    """The config line of a seed; what happens is drawn while it is recorded."""
    draw = random.Random(seed)
    workers, logic = draw.choice([1, 2, 3, 4, 8, 12]), draw.choice(["roundrobin", "session", "prefixaware", "prefixaware"])
    urls = [f"http://w{number}:8000" for number in range(workers)]
    config: Case = {"type": "config", "engine": "vllm-production-stack", "version": VERSION, "scenario": f"drawn-{seed}"}
    config |= {"workers": workers, "urls": urls, "router": logic, "seed": seed, "window_s": draw.choice([5.0, 10.0])}
    if logic == "session":
        config["session_key"] = KEY
    if logic == "prefixaware":
        config["prefix_min_match_length"] = draw.choice([0, 0, 1, 128, 129, 256, 512])
    return config, []


async def decisions(config: Case) -> list[Case]:
    """Requests, ends and changes of who is available as drawn, and what the router says."""
    draw = random.Random(f"{config['seed']} load")
    routing, stats = (importlib.import_module(f"vllm_router.{name}") for name in ("routers.routing_logic", "stats.request_stats"))
    for singletons in (importlib.import_module("vllm_router.utils").SingletonABCMeta, stats.SingletonMeta):
        singletons._instances.clear()
    router: Any = {
        "roundrobin": lambda: routing.RoundRobinRouter(),
        "session": lambda: routing.SessionRouter(KEY),
        "prefixaware": lambda: routing.PrefixAwareRouter(config.get("prefix_min_match_length", 0)),
    }[config["router"]]()
    monitor = stats.RequestStatsMonitor(config["window_s"])
    number = {url: at for at, url in enumerate(config["urls"])}
    up, now_s = list(range(config["workers"])), 1000.0
    held: dict[str, int] = {}
    heads = [[segment, 0, draw.randint(20, 700)] for segment in range(draw.randint(1, 5))]
    grown: list[list[list[int]]] = []
    keys = [f"user{each}" for each in range(draw.choice([3, 10, 30]))] if draw.random() < 0.8 else []
    lines: list[Case] = []

    def note(kind: str, **of: Any) -> None:
        lines.append({"type": kind, "k": len(lines) + 1, **of})

    for index in range(draw.choice([40, 80, 160])):
        now_s += draw.choice([0.1, 0.5, 3.0]) * draw.random()
        while held and draw.random() < 0.45:
            name = draw.choice(sorted(held))
            del held[name]
            note("done", id=name)
        if draw.random() < 0.06:
            up = sorted(draw.sample(range(config["workers"]), draw.randint(1, config["workers"])))
            note("available", workers=up)
        segments = [*draw.choice(grown)] if grown and draw.random() < 0.35 else [draw.choice(heads)] * (draw.random() < 0.7)
        if not segments or draw.random() < 0.85:
            segments.append([1000 + index, 0, draw.randint(1, 500)])
        grown.append(segments)
        headers = {KEY: draw.choice(keys)} if keys and draw.random() < 0.8 else {}
        prompt, name = text(segments), f"q{index:03d}"
        line: Case = {"id": name, "segments": segments, "n": len(prompt)} | ({"headers": headers} if headers else {})
        line["inflight"] = [list(held.values()).count(worker) for worker in range(config["workers"])]
        known = monitor.get_request_stats(now_s)
        line["qps"] = {str(number[url]): each.qps for url, each in known.items()}
        endpoints = [SimpleNamespace(url=config["urls"][worker]) for worker in up]
        asked: tuple[Any, ...] = (endpoints, {}, known, SimpleNamespace(headers=headers))
        if config["router"] == "roundrobin":
            url = router.route_request(*asked)
        else:
            url = await router.route_request(*asked, {"prompt": prompt})
        monitor.on_new_request(url, name, now_s)
        held[name] = line["worker"] = number[url]
        note("req", **line)
    return lines


def record(config: Case, _: list[Case]) -> list[Case]:
    """The decisions of a router."""
    return asyncio.run(decisions(config))


if __name__ == "__main__":
    main(__doc__, drawn, record)
