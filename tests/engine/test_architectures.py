"""Each architecture that mlx-lm ships has a tiny model that loads and runs, or a reason not to.

That each of them runs is seen where each is compared with what was predicted: `test_estimating`.
"""

from __future__ import annotations

import ast
import json
import math
import pkgutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.engine import truth
from tests.engine.architectures import CANNOT, CONFIGS, METAL_CONFIGS, make_architecture

mx = pytest.importorskip("mlx.core")
models = pytest.importorskip("mlx_lm.models")

MakeArchitecture = Callable[[str], Path]

ONE_OF_EACH_CACHE = [
    "baichuan_m1",  # lists of a state and of keys and values, in full or of a window
    "deepseek_v3",  # a latent
    "deepseek_v32",  # a latent and an index
    "deepseek_v41",  # a cache of its own
    "gemma4_text",  # fewer caches than layers
    "llama4",  # chunks
    "longcat_flash_ngram",  # more caches than layers
    "mamba2",  # states alone
    "phi3small",  # writes to its logits by number
    "qwen3_next",  # states, and keys and values
]


@pytest.fixture
def architecture() -> Iterator[MakeArchitecture]:
    """Makes a model, and throws it away: pytest would keep a gigabyte of them for three runs."""
    with tempfile.TemporaryDirectory() as directory:
        yield lambda name: make_architecture(Path(directory), name)


def shipped() -> set[str]:
    """The modules of `mlx_lm.models` that have what a model's module must, none imported.

    That is a `Model` and a `ModelArgs`, defined there or imported from another: `solar_open` has
    its own arguments and another's model.
    """
    return {
        module.name
        for module in pkgutil.iter_modules(models.__path__)
        if {"Model", "ModelArgs"} <= names_bound(Path(models.__path__[0], f"{module.name}.py"))
    }


def names_bound(source: Path) -> set[str]:
    names: set[str] = set()
    for statement in ast.parse(source.read_text()).body:
        if isinstance(statement, ast.ClassDef):
            names.add(statement.name)
        elif isinstance(statement, ast.ImportFrom):
            names.update(alias.asname or alias.name for alias in statement.names)
    return names


def test_every_architecture_is_accounted_for() -> None:
    assert not CONFIGS.keys() & CANNOT.keys()
    assert CONFIGS.keys() | CANNOT.keys() == shipped()
    assert METAL_CONFIGS.keys() <= CANNOT.keys()
    assert (len(CONFIGS), len(CANNOT)) == (123, 3)


@pytest.mark.parametrize("name", ONE_OF_EACH_CACHE)
def test_it_loads_and_reads_a_prompt(name: str, architecture: MakeArchitecture) -> None:
    taken = truth.measure(architecture(name), token_count=300, prefill_step_size=128)
    assert taken.weight_bytes > 0
    assert taken.kv_bytes > 0
    assert taken.workspace_bytes > 0


@pytest.mark.parametrize("name", ONE_OF_EACH_CACHE)
def test_it_goes_on_after_the_prompt(name: str, architecture: MakeArchitecture) -> None:
    taken = truth.measure_decode(
        architecture(name), token_count=300, prefill_step_size=128, steps=2
    )
    assert taken.kv_bytes > 0
    assert taken.workspace_bytes > 0


@pytest.mark.parametrize("name", sorted(METAL_CONFIGS))
@pytest.mark.skipif(mx.metal.is_available(), reason="here they run")
def test_it_loads_and_runs_on_metal_alone(name: str, architecture: MakeArchitecture) -> None:
    with pytest.raises(RuntimeError, match="No Metal back-end"):
        truth.measure(architecture(name), token_count=300, prefill_step_size=128)


class TestTruth:
    #: A token of llama or qwen2: two layers, keys and values, two heads of 64 floats.
    TOKEN_BYTES = 2 * 2 * 2 * 64 * 4

    def test_weights_are_those_of_the_file(self, architecture: MakeArchitecture) -> None:
        path = architecture("llama")
        file = (path / "model.safetensors").read_bytes()
        header = json.loads(file[8 : 8 + int.from_bytes(file[:8], "little")])
        del header["__metadata__"]
        weights = sum(4 * math.prod(tensor["shape"]) for tensor in header.values())
        assert truth.measure(path, token_count=8, prefill_step_size=8).weight_bytes == weights

    @pytest.mark.parametrize(
        ("tokens", "step", "rows", "held"),
        [(100, 128, 1, 256), (300, 128, 1, 512), (300, 128, 3, 3 * 512), (600, 300, 1, 812)],
    )
    def test_a_cache_grows_by_whole_steps(
        self, architecture: MakeArchitecture, tokens: int, step: int, rows: int, held: int
    ) -> None:
        taken = truth.measure(
            architecture("llama"), token_count=tokens, prefill_step_size=step, batch_size=rows
        )
        assert taken.kv_bytes == held * self.TOKEN_BYTES

    def test_a_quantized_cache_holds_a_scale_and_a_bias_for_64_numbers(
        self, architecture: MakeArchitecture
    ) -> None:
        taken = truth.measure(
            architecture("llama"), token_count=300, prefill_step_size=128, kv_bits=8
        )
        assert taken.kv_bytes == 512 * self.TOKEN_BYTES * (64 + 2 * 4) // (64 * 4)

    def test_a_limited_cache_keeps_its_last_chunk_whole(
        self, architecture: MakeArchitecture
    ) -> None:
        # Not llama: it makes its own cache, of any length.
        taken = truth.measure(
            architecture("qwen2"), token_count=300, prefill_step_size=100, max_kv_size=64
        )
        assert taken.kv_bytes == (64 + 100 - 1) * self.TOKEN_BYTES

    def test_decoding_goes_on_where_the_prompt_ended(self, architecture: MakeArchitecture) -> None:
        path = architecture("llama")
        taken = truth.measure_decode(path, token_count=255, prefill_step_size=128, steps=2)
        assert taken.kv_bytes == 512 * self.TOKEN_BYTES
        prefill = truth.measure(path, token_count=257, prefill_step_size=128)
        assert taken.workspace_bytes < prefill.workspace_bytes
