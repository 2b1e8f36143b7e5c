"""`wiredactors estimate`: the table, the verdict, the JSON, the picture, the errors."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import attrs
import pytest

import wiredactors as wa
from wiredactors.cli import estimate
from wiredactors.cli.fitting import Fitting, Need, Room, shown
from wiredactors.cli.main import main
from wiredactors.engine.backend import DeviceMemory
from wiredactors.engine.mlx_engine import DEFAULT_POOL_BYTES
from wiredactors.memory.cache_cost import CacheCost
from wiredactors.memory.configuration import reserve_bytes
from wiredactors.memory.measurement import WiredMemoryMeasurement

KNOWN = Path(__file__).parents[1] / "engine" / "known"

SMALL = WiredMemoryMeasurement(
    weight_bytes=4 * wa.GIB,
    kv_bytes=wa.GIB,
    workspace_bytes=wa.GIB // 2,
    peak_active_bytes=5 * wa.GIB,
    token_count=2048,
    prefill_step_size=512,
    cache_cost=CacheCost(fixed_bytes=0, step_bytes=wa.GIB // 10, copy_bytes=0),
)
LARGE = attrs.evolve(
    SMALL,
    weight_bytes=30 * wa.GIB,
    workspace_bytes=wa.GIB,
    approximate="only the config is known",
)


@pytest.fixture
def known(monkeypatch):
    """The models `org/small` and `org/large`; what was asked is noted down."""
    asked = []

    def answer(source, *numbers, draft=None):
        asked.append((source, *numbers, draft))
        if source == "org/bad":
            raise ValueError("kv_bits=4: this model cannot use a quantized cache")
        return LARGE if source == "org/large" else SMALL

    monkeypatch.setattr(estimate, "estimate", answer)
    return asked


def lines_of(capsys):
    return capsys.readouterr().out.splitlines()


def cells_of(lines, name):
    """The numbers of the table's row, or of the budget's."""
    (line,) = [line for line in lines if line[2:].strip().startswith(f"{name} ")]
    return line[2:].strip().removeprefix(name).split()


def needs_of(*measurements):
    return [
        Need(name=f"m{number}", source="", measurement=each, job_bytes=wa.GIB)
        for number, each in enumerate(measurements)
    ]


# -- the numbers


def test_weights_and_margins_add_up_and_the_workspace_is_the_largest():
    room = Room.of(64 * wa.GIB, pool_bytes=wa.GIB)
    both = Fitting(needs_of(SMALL, LARGE), room)
    assert room.ceiling_bytes == 64 * wa.GIB - reserve_bytes(64 * wa.GIB) - wa.GIB
    assert room.reserve_bytes == reserve_bytes(64 * wa.GIB)
    assert both.loaded_bytes == 34 * wa.GIB + wa.GIB + SMALL.margin_bytes + LARGE.margin_bytes
    assert both.round_bytes == 2 * wa.GIB
    assert both.jobs == (room.ceiling_bytes - both.loaded_bytes) // (2 * wa.GIB)
    assert both.fits(both.jobs)
    assert not both.fits(both.jobs + 1)


def test_on_metal_the_ceiling_is_the_recommended_working_set():
    room = Room.of(64 * wa.GIB, wa.GIB, recommended_bytes=48 * wa.GIB)
    assert room.ceiling_bytes == 47 * wa.GIB
    assert room.reserve_bytes == 16 * wa.GIB


def test_the_fewest_models_go_and_of_those_the_smallest_that_does():
    room = Room(memory_bytes=64 * wa.GIB, ceiling_bytes=41 * wa.GIB, pool_bytes=0)
    medium = attrs.evolve(SMALL, weight_bytes=10 * wa.GIB)
    fitting = Fitting(needs_of(LARGE, medium, SMALL), room)
    assert fitting.to_drop(1) == ("m1",)
    assert fitting.without(("m1",)).fits(1)
    assert not fitting.without(("m2",)).fits(1)
    assert Fitting(needs_of(LARGE, LARGE, SMALL), room).to_drop(1) == ("m0",)
    assert Fitting(needs_of(LARGE, LARGE), room).to_drop(20) is None
    assert Fitting(needs_of(SMALL), room).to_drop(1) == ()


def test_the_smallest_machine_that_is_sold():
    room = Room.of(16 * wa.GIB, 0)
    fitting = Fitting(needs_of(LARGE), room)
    found = fitting.machine_bytes(1)
    assert found == 64 * wa.GIB
    assert fitting.held_bytes(1) <= found - reserve_bytes(found)
    assert fitting.held_bytes(1) > 48 * wa.GIB - reserve_bytes(48 * wa.GIB)
    assert fitting.machine_bytes(10_000) is None


def test_names_that_are_too_long_keep_both_ends():
    assert shown("a" * 32) == "a" * 32
    assert shown("a" * 30 + "b" * 30) == "a" * 19 + "..." + "b" * 10


# -- the options


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("16GB", 16 * wa.GIB),
        ("16GiB", 16 * wa.GIB),
        ("16g", 16 * wa.GIB),
        ("1.5 TiB", 1536 * wa.GIB),
        ("512M", 512 * wa.MIB),
        ("12KB", 12 * wa.KIB),
        ("1000", 1000),
        ("1000B", 1000),
    ],
)
def test_sizes_as_they_are_written(text, size):
    assert estimate.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "0", "1XB", "1GiBs", "1,5GB", "ten"])
def test_what_is_no_size(text):
    with pytest.raises(argparse.ArgumentTypeError, match="is no size: say 16GB, 64GiB or 24G"):
        estimate.parse_size(text)


@pytest.mark.parametrize(
    ("sources", "names"),
    [
        (["org/model-4bit", "/there/Llama-3.1-8B"], ["model-4bit", "Llama-3.1-8B"]),
        (
            ["a/model.Q4_0.gguf", "b/chat/config.json", "known/qwen.json"],
            ["model.Q4_0", "chat", "qwen"],
        ),
        (["a/m", "b/m", "c/m"], ["m", "m (2)", "m (3)"]),
    ],
)
def test_models_are_called_by_the_last_part_of_their_source(known, sources, names):
    options = argparse.Namespace(
        models=sources, tokens=1, step=1, batch=1, kv_bits=None, draft=None, max_tokens=1
    )
    assert [need.name for need in estimate._needs(options)] == names


def test_what_is_asked_of_estimate(known, capsys):
    arguments = ["--tokens", "300", "--step", "64", "--batch", "2", "--kv-bits", "8"]
    assert main(["estimate", "org/small", *arguments, "--draft", "org/tiny", "--json"]) == 0
    assert known == [("org/small", 300, 64, 2, 8, "org/tiny")]
    record = json.loads(capsys.readouterr().out)
    assert record["models"][0]["job_bytes"] == SMALL.ticket_size(300, 512)


# -- what is printed


def test_several_models_side_by_side(known, capsys):
    arguments = ["--memory", "64GB", "--tokens", "512", "--max-tokens", "512", "--jobs", "2"]
    assert main(["estimate", "org/small", "org/large", *arguments]) == 0
    lines = lines_of(capsys)
    assert lines[0].startswith("A job reads 512 tokens and generates 512. Nothing was loaded")
    assert cells_of(lines, "small") == ["4.00", "0.50", "0.11", "0.40", "92"]
    assert cells_of(lines, "large") == ["30.00", "1.00", "0.64", "0.40", "24"]
    assert cells_of(lines, "all together") == ["34.00", "1.00", "0.75", "0.80", "7", "each"]
    assert cells_of(lines, "memory")[:2] == ["64.00", "GiB"]
    assert cells_of(lines, "- reserve")[:2] == ["22.40", "GiB"]
    assert cells_of(lines, "= ceiling")[:2] == ["41.48", "GiB"]
    assert cells_of(lines, "- workspace")[:2] == ["1.00", "GiB"]
    assert cells_of(lines, "- 2 jobs of each model")[:2] == ["1.60", "GiB"]
    assert cells_of(lines, "= left")[:2] == ["4.13", "GiB"]
    assert "It fits: 2 jobs of each model at once, and up to 7." in lines
    assert max(map(len, lines)) <= 88


def test_approximate_rows_are_marked_and_the_reason_stands_below(known, capsys):
    main(["estimate", "org/small", "org/large", "--memory", "64GB"])
    lines = lines_of(capsys)
    marked = [line for line in lines if line.startswith("~")]
    assert [line.split()[1] for line in marked] == ["large", "all", "approximate:"]
    assert lines[-2:] == ["~ approximate:", "  large: only the config is known"]
    main(["estimate", "org/small", "--memory", "64GB"])
    assert not [line for line in lines_of(capsys) if line.startswith("~")]


def test_a_long_name_is_cut_in_the_middle(known, capsys):
    name = "a-very-long-name-of-a-model-of-30B-parameters-in-4bit"
    main(["estimate", f"org/{name}", "org/small", "--memory", "64GB"])
    lines = lines_of(capsys)
    cells_of(lines, "a-very-long-name-of...rs-in-4bit")
    assert max(map(len, lines)) <= 88


def test_what_does_not_fit_and_what_would_have_to_go(known, capsys):
    models = ["org/small", "org/large"]
    assert main(["estimate", *models, "--memory", "48GB", "--jobs", "3"]) == 1
    printed = " ".join(" ".join(lines_of(capsys)).split())
    assert "large 30.00 1.00 0.64 1.00 too large" in printed
    assert "It does not fit: 3 jobs of each model at once would be 10.7 GiB too much." in printed
    assert "Even without a job it is too large." in printed
    assert "Without large it fits, with up to 26 jobs." in printed
    assert "A machine of 96 GiB would hold it all." in printed
    assert "= MISSING 10.67 GiB" in printed


@pytest.mark.parametrize(
    ("jobs", "memory", "said"),
    [
        ("30", "16GB", "Up to 3 jobs would fit."),
        ("1", "11GB", "It can be loaded, but there is no room for a job."),
        ("1", "8GB", "Even without a job it is too large."),
        ("9999999", "16GB", "No machine of up to 512 GiB holds it all."),
    ],
)
def test_how_far_one_model_is_from_fitting(known, capsys, jobs, memory, said):
    assert main(["estimate", "org/small", "--memory", memory, "--jobs", jobs]) == 1
    printed = " ".join(" ".join(lines_of(capsys)).split())
    assert said in printed
    assert "Without" not in printed


def test_without_memory_it_is_this_machine(known, capsys, monkeypatch):
    device = DeviceMemory(48 * wa.GIB, 64 * wa.GIB)
    monkeypatch.setattr(estimate, "device_memory", lambda: device)
    main(["estimate", "org/small", "--json"])
    record = json.loads(capsys.readouterr().out)
    assert record["ceiling_bytes"] == 48 * wa.GIB - DEFAULT_POOL_BYTES
    main(["estimate", "org/small"])
    assert "of this machine" in capsys.readouterr().out


def test_json_has_the_same_in_bytes(known, capsys):
    assert main(["estimate", "org/small", "org/large", "--memory", "64GB", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    small, large = record["models"]
    assert small["weight_bytes"] == 4 * wa.GIB
    assert small["approximate"] is None
    assert large["approximate"] == "only the config is known"
    assert record["memory_bytes"] == 64 * wa.GIB
    assert record["reserve_bytes"] == reserve_bytes(64 * wa.GIB)
    together = record["together"]
    assert together["fits"] is True
    assert together["jobs_that_fit"] == 2
    assert together["left_bytes"] == record["ceiling_bytes"] - together["loaded_bytes"]
    assert together["held_bytes"] == together["loaded_bytes"] + 2 * SMALL.ticket_size(2048, 512)
    assert together["leave_out"] == []


# -- errors


def test_an_error_is_one_clear_line(known, capsys):
    assert main(["estimate", "org/bad", "--kv-bits", "4"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "wiredactors: bad: kv_bits=4: this model cannot use a quantized cache\n"


def test_a_source_that_is_not_there(tmp_path, capsys):
    assert main(["estimate", str(tmp_path / "missing")]) == 1
    assert "there is no file or directory" in capsys.readouterr().err
    (tmp_path / "a.json").write_text("[]")
    assert main(["estimate", str(tmp_path / "a.json")]) == 1
    assert "holds no JSON object" in capsys.readouterr().err
    (tmp_path / "a.json").write_text("{")
    assert main(["estimate", str(tmp_path / "a.json")]) == 1
    assert "a.json cannot be read" in capsys.readouterr().err


# -- the picture, and a real config


def test_a_real_config_with_its_picture(tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["--memory", "64GB", "--tokens", "512", "--out", str(out)]
    assert main(["estimate", str(KNOWN / "qwen3-4b.json"), *arguments]) == 0
    lines = lines_of(capsys)
    assert cells_of(lines, "qwen3-4b")[0] == "7.49"  # 2 bytes of 4,022,468,096 parameters
    assert lines[-1] == f"Picture:   {out / 'estimate.png'}"
    assert (out / "estimate.png").read_bytes().startswith(b"\x89PNG")


def test_the_picture_beside_json(known, tmp_path, capsys):
    main(["estimate", "org/small", "--memory", "64GB", "--json", "--out", str(tmp_path)])
    said = capsys.readouterr()
    assert json.loads(said.out)["models"]
    assert said.err == f"Picture:   {tmp_path / 'estimate.png'}\n"


@pytest.mark.parametrize("memory", ["8GB", "48GB", "512GB"])
def test_the_picture_of_what_fits_and_what_does_not(known, tmp_path, memory):
    main(["estimate", "org/small", "org/large", "--memory", memory, "--out", str(tmp_path)])
    assert (tmp_path / "estimate.png").stat().st_size > 10_000


def test_without_matplotlib_it_says_what_to_install(known, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    assert main(["estimate", "org/small", "--memory", "64GB", "--out", str(tmp_path)]) == 0
    assert "pip install 'wiredactors[plot]'" in capsys.readouterr().out


def test_a_folder_that_cannot_be_made(known, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    arguments = ["--memory", "64GB", "--out", str(tmp_path / "file")]
    assert main(["estimate", "org/small", *arguments]) == 1
    assert "the picture cannot be written" in capsys.readouterr().err
