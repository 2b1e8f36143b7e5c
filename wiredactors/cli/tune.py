"""`wiredactors tune MODEL`: what a model takes, measured by running it."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator
from typing import Any, TextIO

import attrs
import trio

from wiredactors.actors.session import open_runtime
from wiredactors.cli.options import KV_BITS, count, count_from_zero
from wiredactors.memory.errors import WiredMemoryError
from wiredactors.memory.measurement import WiredMemoryMeasurement
from wiredactors.memory.units import format_bytes
from wiredactors.scheduling.requests import StepReport

#: The example of a ticket: so many tokens of a prompt, and of an answer.
_EXAMPLE = (1000, 500)


_DESCRIPTION = (
    "Load a model, let it read a made-up prompt, and say what that took: weights, cache and "
    "workspace. What was measured is kept, so a second call measures nothing. A MODEL is a "
    "directory, a GGUF file, or a hub id such as organization/model, which is downloaded."
)


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "tune",
        help="measure what a model takes: weights, cache and workspace",
        description=_DESCRIPTION,
    )
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument(
        "--tokens", type=count, default=2048, metavar="N", help="of the prompt (2048)"
    )
    parser.add_argument(
        "--step", type=count, default=512, metavar="S", help="prompt tokens in one step (512)"
    )
    parser.add_argument(
        "--batch", type=count, default=1, metavar="B", help="prompts read side by side (1)"
    )
    parser.add_argument(
        "--kv-bits",
        type=int,
        choices=KV_BITS,
        metavar="N",
        help="of a quantized cache: 2, 3, 4, 5, 6 or 8",
    )
    parser.add_argument(
        "--decode",
        type=count_from_zero,
        default=0,
        metavar="N",
        help="tokens to generate; then the workspace is that of their steps alone (0)",
    )
    parser.add_argument("--again", action="store_true", help="measure it though it is known")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    parser.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> int:
    """Measure, and print it."""
    try:
        # Standard output is for the answer alone.
        with contextlib.redirect_stdout(sys.stderr):
            measured = trio.run(_measure, options)
    except ValueError as error:
        raise WiredMemoryError(str(error)) from error
    print(json.dumps(as_json(measured), indent=1) if options.json else as_text(measured))
    return 0


async def _measure(options: argparse.Namespace) -> WiredMemoryMeasurement:
    progress = _Progress(sys.stderr, options)
    # The runtime serves with steps that go into 256 tokens or the other way round; others can be
    # measured all the same.
    step = None if 256 % options.step and options.step % 256 else options.step
    with progress.shown():
        async with open_runtime(on_step=progress.take) as runtime:
            model = await runtime.load(options.model, prefill_step_size=step)
            return await model.tune(
                options.tokens,
                prefill_step_size=options.step,
                batch_size=options.batch,
                kv_bits=options.kv_bits,
                decode_tokens=options.decode,
                remeasure=options.again,
            )


class _Progress:
    """How far load and measurement are: a line that is rewritten, on a terminal alone."""

    def __init__(self, stream: TextIO, options: argparse.Namespace):
        self._stream = stream
        self._options = options
        self._steps = -1  # the first report of a measurement is of getting ready

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Leave no half line behind."""
        try:
            yield
        finally:
            self._write("")

    def take(self, report: StepReport) -> None:
        """A step has been done."""
        if report.what == "load":
            self._write(f"loading: {format_bytes(report.active_bytes)}")
        elif report.what == "tune":
            self._steps += 1
            tokens, step = self._options.tokens, self._options.step
            done = min(tokens, self._steps * step)
            decoded = max(0, self._steps - -(-tokens // step))
            text = f"measuring: {done} of {tokens} tokens of the prompt"
            if self._options.decode:
                text += f", {decoded} of {self._options.decode} decoded"
            self._write(text)

    def _write(self, text: str) -> None:
        if self._stream.isatty():
            print(f"\r\x1b[K{text}", end="", file=self._stream, flush=True)


def as_json(measured: WiredMemoryMeasurement) -> dict[str, Any]:
    """All numbers of a measurement, those that are derived from others too."""
    return {
        **attrs.asdict(measured),
        "total_bytes": measured.total_bytes,
        "margin_bytes": measured.margin_bytes,
        "ticket_bytes": measured.ticket_size(*_EXAMPLE),
        "ticket_prompt_tokens": _EXAMPLE[0],
        "ticket_max_tokens": _EXAMPLE[1],
        "policy_base_bytes": measured.budget_policy().base_bytes,
    }


def as_text(measured: WiredMemoryMeasurement) -> str:
    """A measurement for people."""
    rows = "" if measured.batch_size == 1 else f" in each of {measured.batch_size} rows"
    decoded = f" and {measured.decode_tokens} decoded" if measured.decode_tokens else ""
    bits = "" if measured.kv_bits is None else f", {measured.kv_bits} bits"
    largest = "decode step" if measured.decode_tokens else f"{measured.prefill_step_size} tokens"
    notes = {
        "Weights": "",
        "KV cache": f"of {measured.token_count} tokens{decoded}{rows}{bits}",
        "Workspace": f"of the largest step ({largest})",
        "Peak": "weights, cache and workspace at the worst moment",
        "Margin": "for safety",
        "Ticket": f"for a prompt of {_EXAMPLE[0]} tokens and {_EXAMPLE[1]} new ones",
    }
    sizes = (
        measured.weight_bytes,
        measured.kv_bytes,
        measured.workspace_bytes,
        measured.peak_active_bytes,
        measured.margin_bytes,
        measured.ticket_size(*_EXAMPLE),
    )
    lines = [
        f"{name + ':':<11}{format_bytes(size):>10}  {note}".rstrip()
        for (name, note), size in zip(notes.items(), sizes, strict=True)
    ]
    if measured.stored:
        lines.append("Measured earlier and kept; --again measures anew.")
    base = measured.budget_policy().base_bytes
    lines += [
        "",
        "For tickets of your own (in the runtime weights and workspace are held already):",
        f"    policy = wa.WiredBudgetPolicy(base_bytes={base:_})",
        f"    ticket = policy.ticket({measured.ticket_size(*_EXAMPLE):_})",
    ]
    return "\n".join(lines)
