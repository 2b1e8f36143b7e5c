"""What a graph's evaluation holds at its worst moment, and what its outputs hold afterwards.

MLX's evaluation is played on buffers without numbers: its order (depth first for the counts, then
breadth first with a bounded width, taken backwards: `mlx/transforms.cpp`), views and donated
buffers (`layout.py`), what an operation needs besides its results (`kernels.py`), and how far the
thread that gives out work runs ahead of the one that does it (`devices.py`): a buffer is let go
when the operation has been done, not when it has been given out. The device is taken to be slow:
what it holds at most is what is held when it has done nothing that nobody has waited for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import attrs

from wiredactors.engine.devices import CPU, Device
from wiredactors.engine.graph import Graph, Name, Operation
from wiredactors.engine.kernels import Call
from wiredactors.engine.layout import Layout, row_contiguous, view

__all__ = ["CPU", "Buffer", "Device", "Held", "evaluate", "tape"]

#: mlx's MLX_BFS_MAX_WIDTH.
_WIDTH = 20

#: A buffer is taken over by a result that is at most so much smaller (mlx's `is_donatable`).
_DONATION_SLACK = 16384


class Buffer(NamedTuple):
    """A piece of memory that arrays lie in, and its bytes."""

    number: int
    size: int


@attrs.frozen
class Held:
    """Bytes of a graph's evaluation.

    Attributes:
        peak_bytes: all that it made, at its worst moment; what went in is not counted.
        kept: for each output, the number of its buffer and the buffer's bytes; 0 bytes where it
            lies in an input that was not owned. Outputs of one number share a buffer.
    """

    peak_bytes: int
    kept: Mapping[Name, Buffer]

    def bytes_of(self, names: Iterable[Name]) -> int:
        """Bytes that these outputs keep alive, each buffer once."""
        return sum(buffer.size for buffer in {self.kept[name] for name in names})


def evaluate(
    graph: Graph, owned: Mapping[Name, Buffer] | None = None, device: Device = CPU
) -> Held:
    """Play the evaluation of a graph.

    Args:
        graph: what to evaluate.
        owned: inputs that nobody else keeps, with their buffers (larger than the array where that
            is a slice). They count, until the last operation that needs them.
    """
    return _Evaluation(graph, owned or {}, device).run()


def tape(graph: Graph) -> list[Operation]:
    """The operations that the outputs need, in the order in which MLX evaluates them."""
    makers = graph.makers()
    wanted = _uses(graph.outputs, makers)
    root = Operation("Synchronizer", graph.outputs, (), ())
    line: list[Operation] = [root]
    later: list[tuple[Operation, int]] = []
    at = 0
    while at < len(line) or later:
        begin = 0
        if at < len(line):
            operation = line[at]
            at += 1
        else:
            operation, begin = later.pop()
        for number in range(begin, len(operation.inputs)):
            maker = makers.get(operation.inputs[number])
            if maker is None:
                continue
            if len(line) - at >= _WIDTH:
                later.append((operation, number))
                break
            key = maker.outputs[0]
            wanted[key] -= 1
            if wanted[key] == 0:
                line.append(maker)
    return line[:0:-1]


def _uses(outputs: Iterable[Name], makers: Mapping[Name, Operation]) -> dict[Name, int]:
    """How often each operation's results are used, under the name of its first."""
    uses: dict[Name, int] = {}
    stack = list(outputs)
    while stack:
        maker = makers.get(stack.pop())
        if maker is None:
            continue
        key = maker.outputs[0]
        if key in uses:
            uses[key] += 1
        else:
            uses[key] = 1
            stack.extend(maker.inputs)
    return uses


class _Evaluation:
    def __init__(self, graph: Graph, owned: Mapping[Name, Buffer], device: Device):
        self._graph = graph
        self._device = device
        self._tape = tape(graph)
        self._sizes: list[int] = []  # of buffers, by their number
        self._counted: list[bool] = []  # whether this evaluation made it
        self._holders: list[int] = []  # arrays and pending work that keep it
        self._buffer: dict[Name, int] = {}
        self._layout: dict[Name, Layout] = {}
        self._uses: dict[Name, int] = {}
        self._now = self._peak = 0
        self._pending: deque[tuple[tuple[int, ...], bool]] = deque()
        self._calls = self._items = self._active = 0  # of the task, and tasks under way
        for operation in self._tape:
            for name in operation.inputs:
                self._uses[name] = self._uses.get(name, 0) + 1
        for name in graph.outputs:
            self._uses[name] = self._uses.get(name, 0) + 1
        made = {name for operation in self._tape for name in operation.outputs}
        shared: dict[int, int] = {}
        for name in {*self._uses, *graph.inputs} - made:
            array = graph.arrays[name]
            self._layout[name] = row_contiguous(array.shape)
            if name not in owned:
                self._buffer[name] = self._new(array.nbytes, counted=False)
                self._holders[self._buffer[name]] += 1  # whoever passed it in
                continue
            number, size = owned[name]
            if number not in shared:
                shared[number] = self._new(size)
                self._holders[shared[number]] = 0
            self._buffer[name] = shared[number]
            self._holders[shared[number]] += 1
        for name in owned:
            if not self._uses.get(name):
                self._let_go(self._buffer[name])

    def run(self) -> Held:
        for operation in self._tape:
            self._do(operation)
        kept = {}
        for name in self._graph.outputs:
            number = self._buffer[name]
            kept[name] = Buffer(number, self._sizes[number] if self._counted[number] else 0)
        return Held(self._peak, kept)

    # -- buffers

    def _new(self, size: int, *, counted: bool = True) -> int:
        size = self._device.allocated(size)
        self._sizes.append(size)
        self._counted.append(counted)
        self._holders.append(1)
        if counted:
            self._now += size
            self._peak = max(self._peak, self._now)
        return len(self._sizes) - 1

    def _let_go(self, buffer: int) -> None:
        self._holders[buffer] -= 1
        if self._holders[buffer] == 0 and self._counted[buffer]:
            self._now -= self._sizes[buffer]

    # -- operations

    def _do(self, operation: Operation) -> None:
        arrays, kernels = self._graph.arrays, self._device.kernels
        call = Call(
            operation,
            [arrays[name] for name in operation.inputs],
            [self._layout[name] for name in operation.inputs],
            [arrays[name] for name in operation.outputs],
        )
        scratch = [self._new(size) for size in kernels.scratch(call)]
        is_view = self._make_outputs(call)
        # Until the work has been done it keeps what it reads, and what it makes besides the first.
        kept = {self._buffer[name] for name in (*operation.inputs, *operation.outputs)}
        kept.discard(self._buffer[operation.outputs[0]])
        for buffer in kept:
            self._holders[buffer] += 1
        calls = kernels.calls(call, len(scratch), is_view=is_view)
        items = 0 if is_view else sum(layout.data_size for layout in call.layouts)
        self._give_out(calls, items, (*kept, *scratch))
        for name in operation.inputs:
            self._used(name)
        for name in operation.outputs:
            if not self._uses.get(name):
                self._let_go(self._buffer[name])
        while self._active > self._device.tasks:
            self._finish_one()

    def _used(self, name: Name) -> None:
        self._uses[name] -= 1
        if self._uses[name] == 0:
            self._let_go(self._buffer[name])

    def _make_outputs(self, call: Call) -> bool:
        """Whether they lie in buffers that are there."""
        views = True
        for number, name in enumerate(call.operation.outputs):
            array = self._graph.arrays[name]
            shared = self._viewed(call.operation, number, name)
            views = views and shared is not None
            if shared is None:
                layout = self._device.kernels.result(call, array)
                taken = self._donated(call, name, layout)
                shared = None if taken is None else (taken, layout)
            if shared is not None:
                source, self._layout[name] = shared
                self._buffer[name] = self._buffer[source]
                self._holders[self._buffer[name]] += 1
            else:
                self._layout[name] = layout
                self._buffer[name] = self._new(layout.span * array.item_bytes)
        return views

    def _viewed(
        self, operation: Operation, number: int, output: Name
    ) -> tuple[Name, Layout] | None:
        """The input whose buffer the result looks at, and how."""
        if not operation.inputs:
            return None
        source = operation.inputs[number if operation.primitive == "Depends" else 0]
        array = self._graph.arrays[output]
        if not array.size:
            return None  # MLX gives nothing a buffer of its own
        layout = view(operation.primitive, self._layout[source], array.shape, operation.arguments)
        if layout is None or (
            operation.primitive == "AsStrided"
            and layout == row_contiguous(array.shape)
            and self._sizes[self._buffer[source]] > array.nbytes + _DONATION_SLACK
        ):
            # It stands for `contiguous` (see `graph`), which copies what is much the smaller part.
            return None
        return source, layout

    def _donated(self, call: Call, output: Name, layout: Layout) -> Name | None:
        """The input whose buffer the result takes over."""
        kernels = self._device.kernels
        result = self._graph.arrays[output]
        most = result.nbytes + _DONATION_SLACK
        for name in call.operation.inputs[: kernels.donors(call)]:
            array, buffer = self._graph.arrays[name], self._buffer[name]
            if (
                self._uses[name] == 1
                and self._holders[buffer] == 1
                and array.item_bytes == result.item_bytes
                and array.size == result.size
                and self._layout[name] == layout
                and (self._sizes[buffer] <= most or not kernels.is_frugal(call.primitive))
            ):
                return name
        return None

    # -- work under way

    def _give_out(self, calls: int, items: int, release: tuple[int, ...]) -> None:
        """So many more calls for the device; it lets `release` go when the last is done."""
        device = self._device
        if not device.kernels.whole_operations:
            for left in reversed(range(calls)):
                self._calls = (self._calls + 1) % device.task_calls
                self._close(() if left else release, ends_task=self._calls == 0)
            return
        self._calls += calls
        self._items += items
        ends_task = self._calls > device.task_calls or self._items >= (device.task_items or 0)
        if ends_task:
            self._calls = self._items = 0
        self._close(release, ends_task=ends_task)

    def _close(self, release: tuple[int, ...], *, ends_task: bool) -> None:
        self._active += ends_task
        self._pending.append((release, ends_task))

    def _finish_one(self) -> None:
        """Do what was given out, until one task has ended."""
        ends_task = False
        while not ends_task:
            release, ends_task = self._pending.popleft()
            for buffer in release:
                self._let_go(buffer)
        self._active -= 1
