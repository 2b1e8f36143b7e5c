"""Steps of tiny models are thought through, and hold what the real ones do."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine import truth
from tests.engine.architectures import make_architecture
from wiredactors.engine.devices import CPU, Device, cuda
from wiredactors.engine.imports import import_mlx_lm
from wiredactors.engine.tracing import Tracer, key_value_parts

mx = pytest.importorskip("mlx.core")
pytest.importorskip("mlx_lm")

#: A token of llama: two layers, keys and values, two heads of 64 floats.
TOKEN_BYTES = 2 * 2 * 2 * 64 * 4

MakeTracer = Callable[..., Tracer]


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


@pytest.fixture
def tracer_of(directory: Path) -> MakeTracer:
    def make(name: str, device: Device = CPU) -> Tracer:
        path = directory / name
        if not path.exists():
            make_architecture(directory, name)
        model, _ = import_mlx_lm("utils").load_model(path, lazy=True)
        return Tracer(model, import_mlx_lm("models.cache").make_prompt_cache(model), device)

    return make


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "mamba2", "deepseek_v3"])
def test_caches_are_exact_after_each_step(
    name: str, tracer_of: MakeTracer, directory: Path
) -> None:
    tracer = tracer_of(name)
    for tokens in (128, 256, 300):
        tracer.step(1, min(128, tokens - (tokens - 1) // 128 * 128))
        taken = truth.measure(directory / name, token_count=tokens, prefill_step_size=128)
        assert tracer.cache_bytes == taken.kv_bytes
        assert tracer.constant_bytes == max(0, taken.constant_bytes)


def test_nothing_is_allocated(tracer_of: MakeTracer) -> None:
    tracer = tracer_of("llama")
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    tracer.step(4, 1000)
    assert mx.get_peak_memory() - before < 1000
    assert tracer.cache_bytes == 4 * 1024 * TOKEN_BYTES
    assert tracer.vocabulary == 512
    assert tracer.operations > 50


def test_growing_is_as_reading_for_the_caches(tracer_of: MakeTracer) -> None:
    read, grown = tracer_of("llama"), tracer_of("llama")
    assert not grown.can_grow
    for tracer in (read, grown):
        tracer.step(1, 100)
    assert grown.can_grow
    for tokens in (200, 300, 1):
        read.step(1, tokens)
        grown.grow(tokens)
        assert grown.cache_bytes == read.cache_bytes
    assert [part.offset for part in key_value_parts(grown.caches)] == [601, 601]


def test_the_model_is_left_as_it_was(tracer_of: MakeTracer) -> None:
    tracer = tracer_of("llama")
    before = [id(array) for _, array in _flat(tracer.model)]
    tracer.step(1, 10)
    assert [id(array) for _, array in _flat(tracer.model)] == before


def test_on_cuda_caches_are_rounded_to_pages(tracer_of: MakeTracer) -> None:
    """Layers of a window of 40 tokens hold 39 + 128, of two heads of 64 floats: 171,008 bytes."""
    tracer = tracer_of("gemma3_text", cuda())
    tracer.step(1, 128)
    tracer.step(1, 128)
    windows = [part for part in key_value_parts(tracer.caches) if part.keys.shape[2] == 167]
    assert windows
    assert all(tracer.bytes_of(part) == 2 * 98_304 for part in windows)


def _flat(model: Any) -> Any:
    from mlx.utils import tree_flatten

    return tree_flatten(model.parameters())
