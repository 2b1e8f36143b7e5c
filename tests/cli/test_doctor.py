"""`wiredactors doctor`: the text, the JSON, and the exit status."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys

import attrs
import pytest

import wiredactors as wa
from wiredactors.cli import doctor
from wiredactors.cli.checkup import Check
from wiredactors.cli.main import main
from wiredactors.engine.diagnosis import Device, Diagnosis, MacOS, Memory, Unknown, Versions

FACTS = Diagnosis(
    Versions("0.1.0", "3.11.7 (arm64)", "macOS 15.5", "0.32.4", {"mlx-metal": "0.32.4"}, None, "1"),
    Device("Metal", "Apple M2 Max", 64 * wa.GIB, 30 * wa.GIB, 36 * wa.GIB, 48 * wa.GIB),
    Memory(64 * wa.GIB, 64 * wa.GIB, 30 * wa.GIB, 22 * wa.GIB, 48 * wa.GIB),
    MacOS("15.5", 0, virtual=False),
)
NOTE = Check("macOS", "note", "a note", "do this")
BROKEN = Check("guard", "broken", "why it is broken, " * 9, "do that")


@pytest.fixture
def found(monkeypatch):
    def show(facts=FACTS, *checks):
        monkeypatch.setattr(doctor, "examine", lambda: (facts, list(checks)))

    return show


def lines_of(capsys):
    """What was printed, as {name: text}; wrapped lines belong to their entry."""
    entries: dict[str, str] = {}
    name = ""
    for line in capsys.readouterr().out.splitlines():
        name = line[2:18].strip() or name
        entries[name] = f"{entries.get(name, '')} {line[18:].strip()}".strip()
    return entries


def test_here_it_says_what_is_installed_and_that_all_is_well(capsys):
    pytest.importorskip("mlx.core")
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "All is well." in printed
    for name in ("trio", "mlx-vlm"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            version = importlib.metadata.version(name)
            assert f"  {name:16}{version}\n" in printed
    assert "To report a bug, send this whole output" in printed
    assert "unknown" not in printed
    assert max(map(len, printed.splitlines())) <= 88


def test_json_is_one_object_with_the_same_facts(capsys, found):
    found(FACTS, NOTE)
    assert main(["doctor", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["healthy"] is True
    assert record["device"]["recommended_bytes"] == 48 * wa.GIB
    assert record["versions"]["mlx_lm"] is None
    assert record["macos"]["wired_limit_mib"] == 0
    assert record["checks"] == [
        {"name": "macOS", "status": "note", "text": "a note", "todo": "do this"}
    ]


def test_what_is_broken_makes_the_status_1_and_says_what_to_do(capsys, found):
    found(FACTS, NOTE, BROKEN)
    assert main(["doctor"]) == 1
    lines = capsys.readouterr().out.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("  guard           broken "))
    assert lines[at + 1].startswith(" " * 25 + "broken, "), "wrapped beside its status"
    assert " " * 25 + "To do: do that" in lines[at + 2 : at + 4]
    assert 'One thing is broken: what to do stands beside "broken" above.' in lines
    assert main(["doctor", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["healthy"] is False


def test_a_note_alone_is_no_failure(capsys, found):
    found(FACTS, NOTE)
    assert main(["doctor"]) == 0
    assert "All is well." in capsys.readouterr().out


def test_on_a_mac_every_number_has_its_line(capsys, found):
    found()
    main(["doctor"])
    lines = lines_of(capsys)
    assert lines["MLX back end"] == "mlx-metal 0.32.4"
    assert lines["mlx-lm"].startswith("not installed (supported: ")
    assert lines["mlx-vlm"] == "not installed (only images and videos need it)"
    assert lines["device"] == "Metal: Apple M2 Max"
    assert lines["largest array"] == "36.0 GiB"
    assert lines["working set"].startswith("48.0 GiB")
    assert lines["macOS limit"] == "0, which leaves it to macOS (iogpu.wired_limit_mb)"
    assert lines["reserve"].startswith("22.0 GiB")
    assert lines["default ceiling"].endswith("(the working set)")
    assert "container" not in lines


@pytest.mark.parametrize(
    ("limit", "line"),
    [
        (57344, "57344 MiB, set by hand (iogpu.wired_limit_mb)"),
        (Unknown("timed out"), "unknown: timed out (iogpu.wired_limit_mb)"),
    ],
)
def test_the_limit_of_macos_as_it_is(capsys, found, limit, line):
    found(attrs.evolve(FACTS, macos=MacOS("15.5", limit, virtual=False)))
    main(["doctor"])
    assert lines_of(capsys)["macOS limit"] == line


def test_a_gpu_with_memory_of_its_own_and_a_container(capsys, found):
    device = Device("CUDA", "NVIDIA H100", 80 * wa.GIB, 79 * wa.GIB, None, None)
    memory = Memory(128 * wa.GIB, 16 * wa.GIB, 9 * wa.GIB, 28 * wa.GIB, 52 * wa.GIB)
    found(attrs.evolve(FACTS, device=device, memory=memory, macos=None))
    main(["doctor"])
    lines = lines_of(capsys)
    assert lines["GPU memory"] == "80.0 GiB, of which 79.0 GiB free now"
    assert lines["container"].startswith("16.0 GiB, all that this process may use")
    assert lines["working set"] == "none recommended: only Metal does that"
    assert lines["default ceiling"].endswith("(memory less the reserve)")
    assert "macOS limit" not in lines
    assert "largest array" not in lines


def test_what_is_unknown_says_why(capsys, found):
    reason = Unknown("MLX cannot be imported")
    memory = Memory(reason, reason, reason, reason, None)
    found(attrs.evolve(FACTS, device=reason, memory=memory, macos=None))
    assert main(["doctor"]) == 0
    lines = lines_of(capsys)
    for name in ("machine", "free now", "device", "reserve"):
        assert lines[name] == "unknown: MLX cannot be imported"
    assert lines["default ceiling"].startswith("none for all")


WITHOUT_MLX = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("mlx", "mlx_lm"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
from wiredactors.cli.main import main
sys.exit(main(["doctor"]))
"""


def test_it_runs_where_mlx_is_not_installed():
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_MLX], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr == ""
    assert "MLX             broken mlx.core cannot be imported" in done.stdout
    assert "pip install 'wiredactors[cpu]'" in done.stdout
    assert "device          unknown: MLX cannot be imported" in done.stdout


def test_it_names_no_host_no_user_and_no_folder():
    # Whoever runs it is somebody else for it, so that no ordinary word is taken for a name.
    home = {"HOME": "/srv/annabel", "USER": "annabel", "LOGNAME": "annabel"}
    for command in (["doctor"], ["doctor", "--json"]):
        program = f"from wiredactors.cli.main import main; main({command})"
        done = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            timeout=60,
            env=os.environ | home,
        )
        assert done.stdout, done.stderr
        assert "annabel" not in done.stdout
        assert sys.prefix not in done.stdout
        assert platform.node() not in done.stdout.split()
