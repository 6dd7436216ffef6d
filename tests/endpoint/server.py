"""A small server with a law of its own, in the event loop of its client, on a clock that jumps from event to event.

Steps take what a `StepLaw` says: rows that decode, then whole prompts in order of arrival, up to a budget of tokens. Nothing is
waited for, and times are exact; what travels over the loopback takes none.
"""

from __future__ import annotations

import asyncio
import json
import selectors
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from aiohttp import web

from engine_models.cost.measured import MeasuredSteps, StepLaw
from engine_models.cost.terms import HostOverhead
from engine_models.parts.batch import Batch

Result = TypeVar("Result")
LAW = StepLaw(1, ((0, 0.005), (64, 0.010), (2048, 0.2)), 0.0, 0.0, ((1, 2e-6), (8, 2e-6)), 1e-7, 1)
FRONT_S = 0.003


class JumpingLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer when nothing is to be read."""

    def __init__(self) -> None:
        super().__init__(_Polling(self))
        self.now_s = 0.0

    def time(self) -> float:
        return self.now_s


class _Polling(selectors.SelectSelector):
    def __init__(self, loop: JumpingLoop) -> None:
        super().__init__()
        self.loop = loop

    def select(self, timeout: float | None = None) -> Any:
        found = super().select(0)
        if found or timeout == 0:
            return found
        if timeout is None:
            return super().select(1.0)
        self.loop.now_s += timeout
        return found


@dataclass
class Row:
    """A request in the server."""

    prompt: int
    output: int
    sent: asyncio.Queue[bool] = field(default_factory=asyncio.Queue)
    made: int = 0


@dataclass
class Server:
    """The server, and how it misbehaves. `counts`: what it reports of a prompt's tokens."""

    name: str = "a-model"
    law: StepLaw = LAW
    most_rows: int = 8
    step_tokens: int = 2048
    refuse: Callable[[int], web.Response | None] = lambda number: None
    streams: bool = True
    held_back: bool = False
    dies_after: int | None = None
    counts: Callable[[int], int] = lambda tokens: tokens
    ids: bool = True
    port: int = 0
    seen: int = 0
    prompts: list[Any] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    waiting: list[Row] = field(default_factory=list)
    called: asyncio.Event = field(default_factory=asyncio.Event)

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": self.name}]})

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.seen += 1
        if (refused := self.refuse(self.seen)) is not None:
            return refused
        prompt = body.get("prompt") or body["messages"][0]["content"]
        if isinstance(prompt, list) and not self.ids:
            return web.json_response({"error": "prompt must be a string"}, status=400)
        self.prompts.append(prompt)
        tokens = len(prompt) if isinstance(prompt, list) else 7 + 2 * len(prompt.split())
        await asyncio.sleep(FRONT_S)
        row = Row(tokens, body["max_tokens"])
        self.waiting.append(row)
        self.called.set()
        if not self.streams:
            return web.json_response({"choices": [{"text": "all"}]})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        pieces = []
        for number in range(row.output):
            await row.sent.get()
            piece = {"choices": [{"text": " a", "finish_reason": None}]}
            if number == self.dies_after:
                assert request.transport is not None
                request.transport.abort()
                return response
            pieces.append(piece)
            if not self.held_back:
                await response.write(f"data: {json.dumps(piece)}\n\n".encode())
        usage = {"prompt_tokens": self.counts(tokens), "completion_tokens": row.output}
        pieces = [*(pieces if self.held_back else []), {"choices": [{"text": "", "finish_reason": "length"}], "usage": usage}]
        for piece in pieces:
            await response.write(f"data: {json.dumps(piece)}\n\n".encode())
        await response.write(b"data: [DONE]\n\n")
        return response

    async def engine(self) -> None:
        """Steps, for ever."""
        steps = MeasuredSteps(self.law, HostOverhead(0.0, 0.0))
        while True:
            decoding = list(self.rows)
            left, joining = self.step_tokens - len(decoding), list[Row]()
            while self.waiting and len(self.rows) < self.most_rows and self.waiting[0].prompt <= left:
                joining.append(self.waiting.pop(0))
                self.rows.append(joining[-1])
                left -= joining[-1].prompt
            if not self.rows:
                self.called.clear()
                await self.called.wait()
                continue
            attended = sum(row.prompt + row.made for row in decoding)
            batch = Batch(0, len(decoding), len(decoding), attended, [(r.prompt, 0) for r in joining], self.step_tokens - left)
            await asyncio.sleep(steps.step_s((batch,))[0])
            for row in self.rows:
                row.made += 1
                row.sent.put_nowait(True)
            self.rows = [row for row in self.rows if row.made < row.output]


def served(server: Server, what: Callable[[str, JumpingLoop], Coroutine[Any, Any, Result]]) -> Result:
    """Run a coroutine function of the server's address and the loop while the server runs."""

    async def go() -> Result:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, JumpingLoop)
        application = web.Application()
        application.add_routes([web.get("/v1/models", server.models)])
        application.add_routes([web.post(f"/v1/{path}", server.answer) for path in ("completions", "chat/completions")])
        runner = web.AppRunner(application)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", server.port).start()
        server.port = runner.addresses[0][1]
        engine = asyncio.create_task(server.engine())
        try:
            return await what(f"http://127.0.0.1:{server.port}", loop)
        finally:
            engine.cancel()
            await runner.cleanup()

    with asyncio.Runner(loop_factory=JumpingLoop) as running:
        return running.run(go())
