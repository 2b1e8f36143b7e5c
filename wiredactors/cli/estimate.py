"""`wiredactors estimate MODEL...`: what models would take, side by side, with nothing loaded."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from wiredactors.cli.fitting import Fitting, Need, Room
from wiredactors.cli.fitting_table import fitting_lines
from wiredactors.cli.options import KV_BITS, count
from wiredactors.engine.backend import device_memory
from wiredactors.engine.estimating import estimate
from wiredactors.engine.mlx_engine import DEFAULT_POOL_BYTES
from wiredactors.memory.errors import ModelLoadError, WiredMemoryError
from wiredactors.memory.units import GIB, KIB, MIB

_UNITS = {"": 1, "K": KIB, "M": MIB, "G": GIB, "T": 1024 * GIB}

_DESCRIPTION = (
    "What models would take, side by side, with nothing loaded, and how many jobs would fit. A "
    "MODEL is a directory, a GGUF file, a hub id such as organization/model, of which only the "
    "config and the headers of its weight files are fetched, or a config.json alone."
)


class Unfit(WiredMemoryError):
    """The options of the command do not go together, or not with a model."""


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "estimate",
        help="what models would take, with nothing loaded, and how many jobs would fit",
        description=_DESCRIPTION,
    )
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument(
        "--tokens", type=count, default=2048, metavar="N", help="of a job's prompt (2048)"
    )
    parser.add_argument(
        "--max-tokens", type=count, default=512, metavar="N", help="that a job generates (512)"
    )
    parser.add_argument(
        "--jobs", type=count, default=1, metavar="K", help="of each model at once: do they fit (1)"
    )
    parser.add_argument(
        "--memory",
        type=parse_size,
        metavar="M",
        help="of the machine, as it is sold: 16GB, 16G and 16GiB are the same (this machine's)",
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
        "--draft", metavar="MODEL", help="a smaller model that drafts for each of the models"
    )
    parser.add_argument("--json", action="store_true", help="the same as one JSON object")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="draw a picture there, too")
    parser.set_defaults(execute=execute)


def parse_size(text: str) -> int:
    """A size as it is written: "64GiB", "16GB", "24G", or a number of bytes.

    Memory is sold in binary units, whatever they are called, so a GB is a GiB.

    Raises:
        argparse.ArgumentTypeError: it is no size.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    size = int(float(found[1]) * _UNITS[found[2].upper()]) if found else 0
    if size <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: say 16GB, 64GiB or 24G")
    return size


def execute(options: argparse.Namespace) -> int:
    """Print what the models take, and draw it; the status is 1 if the jobs do not fit."""
    fitting = Fitting(_needs(options), _room(options.memory))
    picture = None if options.out is None else _draw(fitting, options)
    if options.json:
        print(json.dumps(record_of(fitting, options), indent=2))
        if picture is not None:
            print(picture, file=sys.stderr)
        return 0 if fitting.fits(options.jobs) else 1
    for line in fitting_lines(
        fitting,
        jobs=options.jobs,
        prompt_tokens=options.tokens,
        max_tokens=options.max_tokens,
        assumed=options.memory is not None,
        draft=options.draft,
    ):
        print(line)
    if picture is not None:
        print(f"\n{picture}")
    return 0 if fitting.fits(options.jobs) else 1


def _needs(options: argparse.Namespace) -> list[Need]:
    needs: list[Need] = []
    for source in options.models:
        name = _name_of(source, [need.name for need in needs])
        try:
            measurement = estimate(
                _config_of(source),
                options.tokens,
                options.step,
                options.batch,
                options.kv_bits,
                draft=None if options.draft is None else _config_of(options.draft),
            )
            job_bytes = measurement.ticket_size(options.tokens, options.max_tokens)
        except ValueError as error:
            raise Unfit(f"{name}: {error}") from error
        needs.append(Need(name=name, source=source, measurement=measurement, job_bytes=job_bytes))
    return needs


def _config_of(source: str) -> str | Mapping[str, Any]:
    """What `estimate` takes: a config that stands in a file of its own is read here."""
    path = Path(source).expanduser()
    if path.suffix != ".json" or not path.is_file():
        return source
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{source} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise ModelLoadError(f"{source} is no model's config: it holds no JSON object")
    return config


def _name_of(source: str, taken: list[str]) -> str:
    path = Path(source)
    path = path.parent if path.name == "config.json" else path
    # Of a directory or a hub id the whole last part: "Llama-3.1-8B" has no suffix.
    plain = path.stem if path.suffix in (".json", ".gguf") else path.name
    name = plain or path.resolve().name
    numbers = (f"{name} ({number})" for number in range(2, len(taken) + 3))
    return name if name not in taken else next(each for each in numbers if each not in taken)


def _room(memory_bytes: int | None) -> Room:
    if memory_bytes is not None:
        return Room.of(memory_bytes, DEFAULT_POOL_BYTES)
    device = device_memory()
    return Room.of(device.total_bytes, DEFAULT_POOL_BYTES, device.recommended_bytes)


def _draw(fitting: Fitting, options: argparse.Namespace) -> str:
    """Draw the picture; says where it is, or what is missing for it."""
    from wiredactors.cli.fitting_chart import draw_fitting

    path = options.out / "estimate.png"
    try:
        draw_fitting(
            fitting,
            path,
            jobs=options.jobs,
            prompt_tokens=options.tokens,
            max_tokens=options.max_tokens,
        )
    except ImportError:
        return "For the picture: pip install 'wiredactors[plot]'"
    except OSError as error:
        raise Unfit(f"the picture cannot be written: {error}") from error
    return f"Picture:   {path}"


def record_of(fitting: Fitting, options: argparse.Namespace) -> dict[str, Any]:
    """The same as an object for JSON. Sizes are bytes."""
    room = fitting.room
    return {
        "prompt_tokens": options.tokens,
        "max_tokens": options.max_tokens,
        "prefill_step_size": options.step,
        "batch_size": options.batch,
        "kv_bits": options.kv_bits,
        "draft": options.draft,
        **attrs.asdict(room),
        "reserve_bytes": room.reserve_bytes,
        "models": [_model_record(need, room) for need in fitting.needs],
        "together": {
            "loaded_bytes": fitting.loaded_bytes,
            "workspace_bytes": fitting.workspace_bytes,
            "left_bytes": fitting.left_bytes,
            "jobs": options.jobs,
            "held_bytes": fitting.held_bytes(options.jobs),
            "fits": fitting.fits(options.jobs),
            "jobs_that_fit": fitting.jobs,
            "leave_out": fitting.to_drop(options.jobs),
            "machine_bytes": fitting.machine_bytes(options.jobs),
        },
    }


def _model_record(need: Need, room: Room) -> dict[str, Any]:
    measurement = need.measurement
    return {
        "name": need.name,
        "source": need.source,
        "weight_bytes": measurement.weight_bytes,
        "job_bytes": need.job_bytes,
        "workspace_bytes": measurement.workspace_bytes,
        "margin_bytes": measurement.margin_bytes,
        "jobs_that_fit": Fitting([need], room).jobs,
        "approximate": measurement.approximate,
    }
