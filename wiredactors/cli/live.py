"""A run as a live view: models, jobs, the queue, and the limit against the cap. Needs rich."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

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
    "failed": "red",
}


class LiveView:
    """Redraws itself a few times a second from the events and the running jobs' texts."""

    def __init__(self, title: str, cap: int | None, console: Console | None = None):
        self._title = title
        self._cap = cap
        self._console = console or Console()
        self._board = Board()
        self._begin: float | None = None
        self._runtime: Runtime | None = None

    @contextlib.contextmanager
    def open(self, runtime: Runtime) -> Iterator[None]:
        """Show the view until the context is left; the last picture stays."""
        self._runtime = runtime
        live = Live(get_renderable=self.render, console=self._console, refresh_per_second=5)
        with live:
            yield
        self._runtime = None

    def take(self, event: WiredMemoryEvent) -> None:
        """Something happened."""
        if self._begin is None:
            self._begin = event.timestamp
        self._board.take(event)

    def render(self) -> Panel:
        """The whole view."""
        board = self._board
        seconds = board.now - (self._begin or board.now)
        return Panel(
            Group(self._memory(), self._models(), self._jobs()),
            title=Text(self._title, style="bold"),
            subtitle=f"{seconds:.0f} s, {board.waiting} waiting",
            width=min(110, self._console.width),
        )

    def _memory(self) -> Table:
        board, cap = self._board, self._cap
        total = cap or max(board.granted_bytes, board.limit, 1)
        grid = Table.grid(padding=(0, 1))
        for name, value, style in (
            ("granted", board.granted_bytes, "cyan"),
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
            table.add_column(column, justify=justify, no_wrap=True)  # type: ignore[arg-type]
        table.add_column("holds", justify="right", no_wrap=True)
        table.add_column("text", ratio=1, no_wrap=True, overflow="ellipsis")
        texts = self._texts()
        for job in self._board.jobs.values():
            table.add_row(
                job.name,
                job.model,
                Text(job.state, style=_STYLES.get(job.state, "")),
                format_bytes(self._board.granted.get(job.ticket_id, 0)),
                Text(self._remark(job) or texts.get(job.name, "")[-200:].replace("\n", " ")),
            )
        return table

    def _texts(self) -> dict[str, str]:
        """The texts of the running jobs so far; the events do not carry them."""
        if self._runtime is None:
            return {}
        return {job.id: job.text for model in self._runtime.models.values() for job in model.jobs}

    def _remark(self, job: JobLine) -> str:
        if job.error is not None:
            return job.error
        if job.state == "waiting":
            return f"waits for {format_bytes(job.size)}"
        if "generation_tokens" in job.numbers:
            return f"{job.numbers['generation_tokens']} tokens"
        return ""
