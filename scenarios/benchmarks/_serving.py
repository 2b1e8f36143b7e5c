"""Servers as processes of their own, and clients of them that stream over HTTP.

The stock server is `mlx_lm.server` with its own settings. The runtime gets a door of the same kind
for it: `python _serving.py`, which answers what the clients here ask and no more.
"""

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import attrs
import psutil
import trio
from _common import nvidia

import wiredactors as wa

_HEADER = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: text/event-stream\r\n\r\n"


@attrs.frozen
class Answer:
    """What a client saw: seconds from sending its request, and tokens by the server's count."""

    first: float
    whole: float
    tokens: int


@attrs.frozen
class Sizes:
    """What a runtime holds, in bytes.

    Attributes:
        ticket: what a job is charged.
        reserved: by all reservations when its models are loaded.
        loading: by all tickets while it loaded, at most.
    """

    ticket: int
    reserved: int
    loading: int

    def cap(self, jobs: int) -> int:
        """One that so many jobs fit under, and the load itself."""
        return max(self.loading, self.reserved + jobs * self.ticket)

    def fitting(self, cap: int) -> int:
        """How many jobs fit under it at once."""
        return (cap - self.reserved) // self.ticket


def sizes_of(runtime: wa.Runtime, model: wa.Model, loading: int, *job: Any) -> Sizes:
    """Of a job with these arguments, while none runs."""
    tickets = runtime.manager.snapshot().tickets
    reserved = sum(one.size for one in tickets if one.kind == "reservation")
    return Sizes(model.ticket_size(*job), reserved, loading)


@attrs.frozen
class Server:
    """A server process that answers on `port`."""

    process: subprocess.Popen[bytes]
    port: int

    async def ask(self, path: str, body: Mapping[str, Any]) -> AsyncGenerator[bytes, None]:
        """Send one request; the lines of the answer as they come."""
        stream = await trio.open_tcp_stream("127.0.0.1", self.port)
        async with stream:
            content = json.dumps(body).encode()
            head = (
                f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
            )
            await stream.send_all(head.encode() + content)
            rest = b""
            async for data in stream:
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    yield line
            if rest:
                yield rest

    async def complete(self, model: str, prompt: str, max_tokens: int) -> Answer:
        """One streamed completion."""
        body = {
            "model": model,
            "prompt": prompt,
            "max_tokens": max_tokens,
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        began = time.perf_counter()
        first, tokens, heard = None, 0, b""
        async with contextlib.aclosing(self.ask("/v1/completions", body)) as lines:
            async for line in lines:
                heard = line.strip() or heard
                if not line.startswith(b"data: {"):
                    continue
                if first is None:
                    first = time.perf_counter() - began
                message = json.loads(line[6:])
                tokens = (message.get("usage") or {}).get("completion_tokens") or tokens
        if first is None or not tokens:
            raise RuntimeError(f"no answer: {heard.decode(errors='replace')}")
        return Answer(first, time.perf_counter() - began, tokens)

    async def sizes(self, model: str, prompt: str, max_tokens: int) -> Sizes:
        """Of the runtime's door."""
        body = {"model": model, "prompt": prompt, "max_tokens": max_tokens}
        async with contextlib.aclosing(self.ask("/sizes", body)) as lines:
            answer = [line async for line in lines][-1]
        return Sizes(**json.loads(answer))

    async def loads(self) -> int:
        """How often the runtime behind its door has loaded a model."""
        async with contextlib.aclosing(self.ask("/loads", {})) as lines:
            return int([line async for line in lines][-1])


@contextlib.asynccontextmanager
async def run_server(command: Sequence[str], port: int) -> AsyncIterator[Server]:
    """Start it, wait until it answers, and end it whatever happens."""
    with tempfile.TemporaryFile() as log:
        process = _start(command, log)
        server = Server(process, port)

        def failure(what: str) -> RuntimeError:
            log.seek(0)
            return RuntimeError(f"{command} {what}:\n{log.read().decode(errors='replace')[-2000:]}")

        try:
            for _ in range(6000):
                if process.poll() is not None:
                    raise failure("has ended")
                try:
                    stream = await trio.open_tcp_stream("127.0.0.1", port)
                except OSError:
                    await trio.sleep(0.05)
                else:
                    await stream.aclose()
                    break
            else:
                raise failure("does not answer")
            yield server
        finally:
            # Not its goodbye: mlx-lm's server may leave a thread behind that it waits for.
            process.kill()
            process.wait()


def _start(command: Sequence[str], log: IO[bytes]) -> subprocess.Popen[bytes]:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def stock_server(model: Path) -> contextlib.AbstractAsyncContextManager[Server]:
    """`mlx_lm.server` with its own settings."""
    port = free_port()
    command = ["-m", "mlx_lm", "server", "--model", str(model), "--port", str(port)]
    return run_server([sys.executable, *command], port)


def runtime_server(
    models: Sequence[Path],
    cap: int | None = None,
    *,
    on_demand: bool = False,
    switches_per_minute: int | None = None,
) -> contextlib.AbstractAsyncContextManager[Server]:
    """The runtime behind its door, with all of `models` loaded, or each when it is asked for."""
    port = free_port()
    command = [__file__, "--port", str(port), *map(str, models)]
    if cap is not None:
        command += ["--cap", str(cap)]
    if on_demand:
        command.append("--on-demand")
    if switches_per_minute is not None:
        command += ["--switches-per-minute", str(switches_per_minute)]
    return run_server([sys.executable, *command], port)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@attrs.define
class Memory:
    """A process's memory while it is watched: its resident set, and the GPU's memory in use by
    all processes (0 without an NVIDIA GPU)."""

    resident_before: int
    resident_peak: int
    gpu_before: int
    gpu_peak: int

    @property
    def peak(self) -> int:
        """The GPU's where there is one."""
        return self.gpu_peak or self.resident_peak

    @property
    def before(self) -> int:
        """As `peak`, before the load."""
        return self.gpu_before if self.gpu_peak else self.resident_before


@contextlib.asynccontextmanager
async def watched(server: Server) -> AsyncIterator[Memory]:
    """Watch the memory of a server inside it, a hundred times a second (a GPU's twice)."""
    process = psutil.Process(server.process.pid)
    resident, gpu = process.memory_info().rss, await trio.to_thread.run_sync(_gpu_bytes)
    memory = Memory(resident, resident, gpu, gpu)

    async def look_at_process() -> None:
        while True:
            memory.resident_peak = max(memory.resident_peak, process.memory_info().rss)
            await trio.sleep(0.01)

    async def look_at_gpu() -> None:
        while True:
            memory.gpu_peak = max(memory.gpu_peak, await trio.to_thread.run_sync(_gpu_bytes))
            await trio.sleep(0.5)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(look_at_process)
        if gpu:
            nursery.start_soon(look_at_gpu)
        yield memory
        nursery.cancel_scope.cancel()


def _gpu_bytes() -> int:
    return sum(int(line) for line in nvidia("memory.used") if line.strip().isdigit()) * wa.MIB


# -- the runtime's door


@attrs.define
class Door:
    """What it answers for, and what it has seen of it.

    Attributes:
        loading: bytes of all tickets while a model loaded, at most.
        loads: how often one was ready; counted where they load on demand.
    """

    runtime: wa.Runtime
    loading: int = 0
    loads: int = 0

    async def count_loads(
        self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """From now on, by the events."""
        async with self.runtime.manager.events() as events:
            task_status.started()
            async for event in events:
                if event.kind is wa.EventKind.MISSED:
                    raise RuntimeError(f"{event.missed} events were missed, and maybe loads")
                self.loads += event.kind is wa.EventKind.MODEL_READY

    async def answer(self, stream: trio.SocketStream) -> None:
        """One request; the client hears in a line of its own why one fails."""
        async with stream:
            head, body = b"", b""
            while b"\r\n\r\n" not in head:
                data = await stream.receive_some()
                if not data:  # somebody who only knocked
                    return
                head += data
            head, _, body = head.partition(b"\r\n\r\n")
            length = next(
                int(line.split(b":")[1])
                for line in head.split(b"\r\n")
                if line.lower().startswith(b"content-length:")
            )
            while len(body) < length:
                body += await stream.receive_some()
            path = head.split()[1].decode()
            with contextlib.suppress(trio.BrokenResourceError):
                await stream.send_all(_HEADER)
                try:
                    await self._say(path, json.loads(body), stream)
                except wa.WiredMemoryError as error:
                    await stream.send_all(f"{type(error).__name__}: {error}\n".encode())

    async def _say(self, path: str, asked: Mapping[str, Any], stream: trio.SocketStream) -> None:
        if path == "/loads":
            await stream.send_all(str(self.loads).encode())
            return
        model = self.runtime.models[asked["model"]]
        if path == "/sizes":
            job = (asked["prompt"], asked["max_tokens"])
            sizes = sizes_of(self.runtime, model, self.loading, *job)
            await stream.send_all(json.dumps(attrs.asdict(sizes)).encode())
        else:
            await complete(model, asked, stream)


async def serve(
    port: int,
    models: Sequence[Path],
    cap: int | None,
    on_demand: bool,
    switches_per_minute: int | None,
) -> None:
    """Load the models, or only name them, and answer for ever."""
    door: Door | None = None

    def take_step(step: wa.StepReport) -> None:
        if step.what == "load" and door is not None:
            door.loading = max(door.loading, step.granted_bytes)

    changes: dict[str, Any] = {}
    if switches_per_minute is not None:
        changes["switches_per_minute"] = switches_per_minute
    configuration = wa.WiredMemoryConfiguration(**changes)
    async with (
        wa.open_runtime(wa.WiredSumPolicy(cap=cap), configuration, on_step=take_step) as runtime,
        trio.open_nursery() as nursery,
    ):
        door = Door(runtime)
        if on_demand:
            await nursery.start(door.count_loads)
        for path in models:
            if on_demand:
                runtime.add(path, str(path))
            else:
                await runtime.load(path, str(path))
        await trio.serve_tcp(door.answer, port, host="127.0.0.1")


async def complete(model: wa.Model, asked: Mapping[str, Any], stream: trio.SocketStream) -> None:
    """A completion, streamed in the stock server's form."""
    frame = {"object": "text_completion", "model": model.name, "created": int(time.time())}

    def event(**more: Any) -> bytes:
        return f"data: {json.dumps(frame | more)}\n\n".encode()

    def choice(text: str, reason: str | None) -> list[dict[str, Any]]:
        return [{"index": 0, "text": text, "finish_reason": reason}]

    async with model.generate(asked["prompt"], max_tokens=asked["max_tokens"]) as job:
        async for chunk in job:
            if chunk.text:
                await stream.send_all(event(choices=choice(chunk.text, None)))
    result = job.result
    assert result is not None
    usage = {
        "prompt_tokens": result.prompt_tokens,
        "completion_tokens": result.generation_tokens,
        "total_tokens": result.prompt_tokens + result.generation_tokens,
    }
    await stream.send_all(event(choices=choice("", result.finish_reason)))
    await stream.send_all(event(choices=[], usage=usage) + b"data: [DONE]\n\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="The runtime's door.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--cap", type=int)
    parser.add_argument("--on-demand", action="store_true", help="load when a model is asked for")
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--switches-per-minute", type=int)
    given = parser.parse_args()
    trio.run(
        serve,
        given.port,
        given.models,
        given.cap,
        given.on_demand,
        given.switches_per_minute,
    )
