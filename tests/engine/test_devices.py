"""How MLX rounds what it allocates on each device, and which device is the default."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from wiredactors.engine import devices
from wiredactors.engine.devices import CPU, cuda, device, metal

mx = pytest.importorskip("mlx.core")

#: Bytes asked for and counted, read on an H100 with mlx 0.32.4.
ON_AN_H100 = {
    1: 8,
    8: 8,
    9: 16,
    100: 128,
    1000: 1024,
    1025: 2048,
    4096: 4096,
    8193: 16384,
    16383: 16384,
    16384: 16384,
    16385: 32768,
    100_000: 114_688,
    1 << 20: 1 << 20,
    (1 << 20) + 1: (1 << 20) + 16384,
}


@pytest.mark.parametrize(("asked", "counted"), ON_AN_H100.items())
def test_cuda_rounds_as_it_was_seen_to(asked: int, counted: int) -> None:
    assert cuda().allocated(asked) == counted


def test_nothing_is_nothing() -> None:
    assert [each.allocated(0) for each in (CPU, cuda(), metal())] == [0, 0, 0]


@pytest.mark.parametrize(("asked", "counted"), [(100, 100), (16384, 16384), (16385, 32768)])
def test_metal_rounds_to_pages_beyond_one(asked: int, counted: int) -> None:
    assert metal().allocated(asked) == counted


def test_a_cpu_counts_what_was_asked() -> None:
    assert CPU.allocated(12_345) == 12_345


def test_tasks_are_larger_on_larger_gpus() -> None:
    assert (cuda(90).task_calls, cuda(80).task_calls, cuda(75).task_calls) == (100, 20, 20)
    ultra, pro, phone = (metal(f"applegpu_g14{letter}").task_calls for letter in "dgp")
    assert (ultra, pro, phone) == (50, 40, 20)


def test_an_architecture_without_a_name_is_a_medium_one() -> None:
    assert metal("") == metal("applegpu_g13g")


class TestDefault:
    """Of an MLX with the device that is said."""

    @pytest.fixture
    def with_info(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        def use(*, is_metal: bool, **info: object) -> None:
            fake = SimpleNamespace(
                default_device=lambda: "gpu",
                cpu="cpu",
                gpu="gpu",
                device_info=lambda which: info,
                metal=SimpleNamespace(is_available=lambda: is_metal),
            )
            monkeypatch.setattr(devices, "import_mlx", lambda: fake)

        return use

    @pytest.mark.skipif(mx.default_device() != mx.cpu, reason="for machines without a GPU")
    def test_here_it_is_the_cpu(self) -> None:
        assert device() is CPU

    def test_cuda(self, with_info: Any) -> None:
        with_info(is_metal=False, compute_capability_major=9, compute_capability_minor=0)
        assert device().task_calls == 100

    def test_metal(self, with_info: Any) -> None:
        with_info(is_metal=True, architecture="applegpu_g15s")
        assert device().task_calls == 50
