"""A run as a live view: models, jobs, the queue, and the limit against the cap. Needs rich."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import trio
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from wiredactors.actors.nursery import open_bare_nursery
from wiredactors.actors.runtime import Runtime
from wiredactors.memory.events import WiredMemoryEvent
from wiredactors.memory.units import format_bytes
from wiredactors.observe.board import Board, JobLine

_STYLES = {
    "waiting": "yellow",
    "reading": "cyan",
    "writing": "green",
    "done": "dim",
    "cancelled": "magenta",
    "refused": "red",
    "failed": "red",
}

_REDRAW_SECONDS = 0.2


class LiveView:
    """Redraws itself a few times a second from the events and the running jobs' texts."""

    def __init__(self, title: str, cap: int | None, console: Console | None = None):
        self._title = title
        self._cap = cap
        self._console = console or Console()
        self._board = Board()
        self._begin: float | None = None
        self._runtime: Runtime | None = None
        self._texts: dict[str, str] = {}

    @contextlib.asynccontextmanager
    async def open(self, runtime: Runtime) -> AsyncIterator[None]:
        """Show the view until the context is left; the last picture stays."""
        self._runtime = runtime
        # Redrawn by a task of ours: rich's own thread would read the board while it changes.
        with Live(self.render(), console=self._console, auto_refresh=False) as live:
            async with open_bare_nursery() as nursery:
                nursery.start_soon(self._redraw, live)
                try:
                    yield
                finally:
                    nursery.cancel_scope.cancel()
            live.update(self.render(), refresh=True)
        self._runtime = None

    async def _redraw(self, live: Live) -> None:
        while True:
            live.update(self.render(), refresh=True)
            await trio.sleep(_REDRAW_SECONDS)

    def take(self, event: WiredMemoryEvent) -> None:
        """Something happened."""
        if self._begin is None:
            self._begin = event.timestamp
        self._board.take(event)

    def render(self) -> Panel:
        """The whole view."""
        board = self._board
        now = trio.current_time()
        seconds = now - (now if self._begin is None else self._begin)
        return Panel(
            Group(self._memory(), self._models(), self._jobs()),
            title=Text(self._title, style="bold"),
            subtitle=f"{seconds:.0f} s, {board.waiting} waiting",
            width=min(110, self._console.width),
        )

    def _memory(self) -> Table:
        board, cap = self._board, self._cap
        total = cap or max(board.holdings.total, board.limit, 1)
        grid = Table.grid(padding=(0, 1))
        for name, value, style in (
            ("granted", board.holdings.total, "cyan"),
            ("limit", board.limit, "blue"),
        ):
            bar = ProgressBar(total=total, completed=value, width=50, complete_style=style)
            of = f"of {format_bytes(cap)}" if cap is not None else ""
            grid.add_row(name, bar, Text(f"{format_bytes(value)} {of}"))
        return grid

    def _models(self) -> Table:
        grid = Table.grid(padding=(0, 1))
        for model in self._board.models.values():
            bar = ProgressBar(total=1.0, completed=model.share, width=20)
            grid.add_row(
                "model", Text(model.name, style="bold"), bar, model.state, format_bytes(model.bytes)
            )
        return grid

    def _jobs(self) -> Table:
        table = Table(expand=True, box=None, pad_edge=False)
        for column, justify in (("job", "left"), ("model", "left"), ("state", "left")):
            table.add_column(column, justify=justify, no_wrap=True)  # type: ignore[arg-type]  # a str of rich's literals
        table.add_column("holds", justify="right", no_wrap=True)
        table.add_column("text", ratio=1, no_wrap=True, overflow="ellipsis")
        self._keep_texts()
        for job in sorted(self._board.jobs.values(), key=lambda job: _number(job.name)):
            table.add_row(
                job.name,
                job.model,
                Text(job.state, style=_STYLES.get(job.state, "")),
                format_bytes(self._board.holdings.of(job.ticket_id)),
                Text(self._remark(job)),
            )
        return table

    def _keep_texts(self) -> None:
        """Keep the running jobs' texts so far; the events do not carry them."""
        if self._runtime is not None:
            for model in self._runtime.models.values():
                self._texts |= {job.id: job.text for job in model.jobs}

    def _remark(self, job: JobLine) -> str:
        if job.error is not None:
            return job.error
        if job.state == "waiting":
            return f"waits for {format_bytes(job.size)}"
        return " ".join(self._texts.get(job.name, "").split())[-200:]


def _number(job: str) -> int:
    return int(job.rpartition("-")[2])
