"""What the doctor tries: each fault is found, named, and comes with what to do."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

import wiredactors as wa
from wiredactors.cli import checkup
from wiredactors.cli.checkup import Check, examine
from wiredactors.engine import backend, diagnosis
from wiredactors.engine.imports import SUPPORTED_MLX_LM, MLXNotInstalled, import_mlx_lm
from wiredactors.memory.events import EventKind
from wiredactors.memory.outside import MemoryReading
from wiredactors.testing import RecordingBackend

mx = pytest.importorskip("mlx.core")

Checks = dict[str, Check]


def checks_of(sysctl: Callable[[str], str] | None = None) -> Checks:
    return {check.name: check for check in examine(sysctl)[1]}


def installed(**back_ends: str) -> Callable[[], diagnosis.Versions]:
    named = {name.replace("_", "-"): version for name, version in back_ends.items()}
    return lambda: diagnosis.Versions("0.1", "3.11", "Linux", "0.32.4", named, "0.32.2", "0.35")


@pytest.fixture
def metal(monkeypatch: pytest.MonkeyPatch) -> RecordingBackend:
    """An MLX whose limit behaves as Metal's, on a machine of 64 GiB."""
    fake = RecordingBackend(48 * wa.GIB)
    info = {"memory_size": 64 * wa.GIB, "max_recommended_working_set_size": 48 * wa.GIB}
    monkeypatch.setattr(mx, "device_info", lambda *_: info)
    monkeypatch.setattr(mx, "set_wired_limit", fake.set_wired_limit)
    return fake


def test_here_nothing_is_broken() -> None:
    assert "broken" not in {check.status for check in checks_of().values()}


def test_without_metal_there_is_no_limit_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx, "device_info", lambda *_: {})
    check = checks_of()["self-test"]
    assert check.status == "ok"
    assert "policy-only mode: nothing to set" in check.text


def test_on_metal_a_limit_is_set_and_restored_and_a_strangers_write_held_back(
    metal: RecordingBackend,
) -> None:
    metal.limit = 5 * wa.GIB
    checks = checks_of()
    assert checks["guard"].status == "ok"
    assert checks["self-test"] == Check(
        "self-test", "ok", "the wired limit was set, and restored to 5.0 GiB"
    )
    assert len(set(metal.writes)) > 1
    assert metal.limit == 5 * wa.GIB
    assert 1 not in metal.writes, "the stranger's"


def test_a_device_that_refuses_the_limit_fails_the_self_test(metal: RecordingBackend) -> None:
    metal.fail_next(100)
    check = checks_of()["self-test"]
    assert check.status == "broken"
    assert "setting a wired limit of 1.0 MiB failed: " in check.text
    assert "the device refuses this write" in check.text


def test_a_limit_that_does_not_come_back_fails_the_self_test(
    metal: RecordingBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sticky(limit: int) -> int:
        if limit < metal.limit:
            raise RuntimeError("it only grows")
        return metal.set_wired_limit(limit)

    monkeypatch.setattr(mx, "set_wired_limit", sticky)
    check = checks_of()["self-test"]
    assert check.status == "broken"
    assert "setting a wired limit of 0 B failed: " in check.text


@pytest.mark.usefixtures("metal")
def test_a_limit_that_does_not_stay_fails_the_self_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx, "set_wired_limit", lambda limit: 0)
    checks = checks_of()
    assert checks["self-test"].status == "broken"
    assert "it was found at 0 B" in checks["self-test"].text
    assert checks["guard"].status == "ok", "that is another fault"


@pytest.mark.usefixtures("metal")
def test_a_limit_that_nobody_restores_fails_the_self_test(monkeypatch: pytest.MonkeyPatch) -> None:
    async def without_the_end() -> list[wa.WiredMemoryEvent]:
        restored = EventKind.BASELINE_RESTORED
        return [event for event in await try_manager() if event.kind is not restored]

    try_manager = checkup._try_manager
    monkeypatch.setattr(checkup, "_try_manager", without_the_end)
    assert checks_of()["self-test"].text == "the wired limit was not restored"


def test_a_machine_without_any_free_memory_fails_the_self_test_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    full = MemoryReading(64 * wa.GIB, 0, 0)
    monkeypatch.setattr(backend, "read_host_memory", lambda: full)
    monkeypatch.setattr(checkup, "_TRIAL_SECONDS", 0.1)
    check = checks_of()["self-test"]
    assert check.status == "broken"
    assert check.text.startswith("no room for a ticket of 1.0 MiB")
    assert check.todo


def test_an_mlx_lm_that_cannot_be_guarded_says_which_one_can(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(import_mlx_lm("generate"), "maybe_set_recommended_wired_limit")
    checks = checks_of()
    assert checks["guard"].status == "broken"
    assert "has no mlx_lm.generate.maybe_set_recommended_wired_limit" in checks["guard"].text
    assert "pip install 'mlx-lm>=" in checks["guard"].text
    assert checks["self-test"].status == "note", "it was not tried"


def test_a_strangers_write_that_nobody_sees_breaks_the_guard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    elsewhere = SimpleNamespace(set_wired_limit=lambda limit: 0)
    monkeypatch.setattr(checkup, "import_mlx", lambda: elsewhere)
    assert checks_of()["guard"].status == "broken"


def test_without_mlx_that_alone_is_broken_and_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def import_mlx() -> Any:
        raise MLXNotInstalled("/home/annabel/lib/libmlx.so: cannot open shared object file")

    monkeypatch.setattr(checkup, "import_mlx", import_mlx)
    monkeypatch.setattr(diagnosis, "import_mlx", import_mlx)
    facts, checks = examine()
    assert facts.device == diagnosis.Unknown("MLX cannot be imported")
    assert [check.name for check in checks if check.status == "broken"] == ["MLX"]
    assert "(libmlx.so: cannot open shared object file)" in checks[0].text
    assert "pip install 'wiredactors[cpu]'" in checks[0].text


def test_on_an_intel_mac_python_is_to_blame(monkeypatch: pytest.MonkeyPatch) -> None:
    def import_mlx() -> Any:
        raise OSError("wrong architecture")

    monkeypatch.setattr(checkup, "import_mlx", import_mlx)
    intel = SimpleNamespace(system=lambda: "Darwin", machine=lambda: "x86_64")
    monkeypatch.setattr(checkup, "platform", intel)
    check = checks_of()["MLX"]
    assert check.status == "broken"
    assert check.todo is not None
    assert "arm64" in check.todo


def test_an_error_without_a_word_is_known_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def import_mlx() -> Any:
        raise RuntimeError

    monkeypatch.setattr(checkup, "import_mlx", import_mlx)
    check = checks_of()["MLX"]
    assert check.text == "RuntimeError"
    assert check.todo


@pytest.mark.usefixtures("metal")
def test_a_mac_without_metal_is_told_nothing_of_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx, "device_info", lambda *_: {})
    assert macos(monkeypatch) == []


def test_without_mlx_lm_the_guard_is_tried_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def import_mlx_lm(name: str) -> Any:
        raise MLXNotInstalled("pip install 'mlx-lm'", name="mlx_lm")

    monkeypatch.setattr(checkup, "import_mlx_lm", import_mlx_lm)
    checks = checks_of()
    todo = f"pip install 'mlx-lm{SUPPORTED_MLX_LM}'"
    assert checks["mlx-lm"] == Check("mlx-lm", "broken", "it is not installed", todo)
    assert checks["guard"].status == checks["self-test"].status == "ok"


def test_an_mlx_lm_whose_own_imports_fail_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    def import_mlx_lm(name: str) -> Any:
        raise ImportError("cannot import name 'AutoTokenizer' from 'transformers'")

    monkeypatch.setattr(checkup, "import_mlx_lm", import_mlx_lm)
    check = checks_of()["mlx-lm"]
    assert check.status == "broken"
    assert "AutoTokenizer" in check.text
    assert "pip install --force-reinstall" in (check.todo or "")


def test_two_back_ends_are_broken_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    both = installed(mlx_cpu="0.32.4", mlx_cuda_12="0.32.4")
    monkeypatch.setattr(diagnosis, "_versions", both)
    check = checks_of()["back end"]
    assert check.status == "broken"
    assert check.todo is not None
    assert "pip uninstall mlx-cpu mlx-cuda-12, " in check.todo
    assert "pip install 'mlx-cuda-12==0.32.4'" in check.todo


def test_a_back_end_of_another_version_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "_versions", installed(mlx_cpu="0.32.1"))
    check = checks_of()["back end"]
    assert (check.status, check.todo) == ("note", "pip install 'mlx-cpu==0.32.4'")


def test_no_back_end_is_a_note_for_those_who_built_mlx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "_versions", installed())
    assert checks_of()["back end"].status == "note"


def test_a_cuda_back_end_that_sees_no_gpu_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx, "device_info", lambda *_: {})
    monkeypatch.setattr(diagnosis, "_versions", installed(mlx_cuda_13="0.32.4"))
    check = checks_of()["GPU"]
    assert check.status == "note"
    assert "nvidia-smi" in (check.todo or "")


def test_a_device_that_fails_leaves_the_other_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no driver")

    monkeypatch.setattr(mx, "device_info", fail)
    monkeypatch.setattr(checkup, "open_manager", fail)
    checks = checks_of()
    assert checks["self-test"].status == "broken"
    assert "RuntimeError: no driver" in checks["self-test"].text
    assert checks["mlx-lm"].status == "ok"


# -- macOS


def macos(
    monkeypatch: pytest.MonkeyPatch, version: str = "15.5", virtual: str = "0"
) -> list[Check]:
    monkeypatch.setattr(diagnosis.platform, "mac_ver", lambda: (version,))
    answers = {"iogpu.wired_limit_mb": "0", "kern.hv_vmm_present": virtual}
    return [check for check in examine(answers.__getitem__)[1] if check.status == "note"]


@pytest.mark.usefixtures("metal")
def test_a_mac_that_wires_more_than_leaves_the_reserve_is_told_to_leave_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    [note] = macos(monkeypatch)
    assert "macOS lets 48.0 GiB be wired" in note.text
    assert "raising that has frozen machines" in note.text
    assert note.todo is not None
    assert note.todo.startswith("nothing, or keep the reserve free")
    assert "admission_ceiling=42598 * MIB" in note.todo, "64 GiB less 35 %"
    assert "sudo sysctl iogpu.wired_limit_mb=42598 " in note.todo


def test_a_mac_that_wires_less_is_told_how_to_raise_it(
    monkeypatch: pytest.MonkeyPatch, metal: RecordingBackend
) -> None:
    info = {"memory_size": 64 * wa.GIB, "max_recommended_working_set_size": 32 * wa.GIB}
    monkeypatch.setattr(mx, "device_info", lambda *_: info)
    [note] = macos(monkeypatch)
    assert "more may be wired: 41.6 GiB" in note.text
    assert note.todo is not None
    assert note.todo.startswith("sudo sysctl iogpu.wired_limit_mb=42598 ")
    assert "until the machine restarts" in note.todo


@pytest.mark.usefixtures("metal")
@pytest.mark.parametrize(
    ("version", "virtual", "reason"),
    [("14.5", "0", "before macOS 15 (this is 14.5)"), ("15.0", "1", "in a virtual machine")],
)
def test_where_mlx_wires_nothing_a_note_says_so(
    monkeypatch: pytest.MonkeyPatch, version: str, virtual: str, reason: str
) -> None:
    notes = macos(monkeypatch, version, virtual)
    assert [note.text.startswith(reason) for note in notes] == [True, False]


def test_a_mac_whose_device_is_unknown_is_told_nothing_of_its_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail() -> None:
        raise RuntimeError

    monkeypatch.setattr(diagnosis, "_device", fail)
    assert macos(monkeypatch) == []
