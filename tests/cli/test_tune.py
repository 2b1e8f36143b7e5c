"""`wiredactors tune`: the numbers for people and for programs, kept from one call to the next."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

import wiredactors as wa
from tests.engine import tiny
from wiredactors.cli import tune
from wiredactors.cli.main import main
from wiredactors.engine import mlx_engine
from wiredactors.engine.tuning import run_prefill
from wiredactors.memory.cache_cost import CacheCost

pytest.importorskip("mlx.core")
pytest.importorskip("mlx_lm")

SMALL = ["--tokens", "300", "--step", "64"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.make_model(tmp_path_factory.mktemp("tune"), "llama"))


@pytest.fixture
def prefills(monkeypatch) -> list[int]:
    run: list[int] = []

    def counted(network, tokenizer, parameters, **options):
        run.append(parameters.token_count)
        return run_prefill(network, tokenizer, parameters, **options)

    monkeypatch.setattr(mlx_engine, "run_prefill", counted)
    return run


def test_it_prints_every_size_and_the_policy_to_write(model, capsys, prefills):
    assert main(["tune", model, *SMALL]) == 0
    printed = capsys.readouterr().out
    names = ("Weights", "KV cache", "Workspace", "Peak", "Margin", "Ticket")
    assert [line.split(":")[0] for line in printed.splitlines()[:6]] == list(names)
    assert "4.0 MiB  of 300 tokens" in printed
    assert "for a prompt of 1000 tokens and 500 new ones" in printed
    assert "earlier" not in printed
    names = {"wa": wa}
    code = "\n".join(line.strip() for line in printed.splitlines() if " = " in line)
    exec(code, names)
    assert names["policy"].base_bytes > 16 * wa.MIB
    assert names["ticket"].size > 6 * 2 * wa.MIB
    assert prefills == [300]


def test_a_second_call_measures_nothing_and_says_so(model, capsys, prefills):
    for _ in range(2):
        assert main(["tune", model, *SMALL]) == 0
    assert "Measured earlier and kept; --again measures anew." in capsys.readouterr().out
    assert prefills == [300]
    assert main(["tune", model, *SMALL, "--again"]) == 0
    assert "earlier" not in capsys.readouterr().out
    assert prefills == [300, 300]


def test_json_is_all_that_is_on_standard_output(model, capsys, cache_folder):
    arguments = ["tune", model, *SMALL, "--batch", "2", "--kv-bits", "4", "--decode", "3", "--json"]
    assert main(arguments) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["batch_size"] == 2
    assert first["kv_bits"] == 4
    assert first["decode_tokens"] == 3
    assert first["token_count"] == 300
    assert first["prefill_step_size"] == 64
    assert first["stored"] is False
    parts = ("weight_bytes", "kv_bytes", "workspace_bytes")
    assert first["total_bytes"] == sum(first[part] for part in parts)
    base = first["weight_bytes"] + first["workspace_bytes"] + first["margin_bytes"]
    assert first["policy_base_bytes"] == base
    for file in cache_folder.rglob("*.json"):  # which is reported to the log
        file.write_text("{")
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["kv_bytes"] == first["kv_bytes"]
    assert "measurement_unreadable" in captured.err
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["stored"] is True


def test_a_step_that_the_runtime_does_not_serve_with_can_be_measured(model, capsys):
    assert main(["tune", model, "--tokens", "301", "--step", "300", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["prefill_step_size"] == 300


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tokens", "0"], "--tokens: '0' is no whole number from 1"),
        (["--step", "x"], "--step: 'x' is no whole number from 1"),
        (["--batch", "-1"], "--batch: '-1' is no whole number from 1"),
        (["--decode", "-1"], "--decode: '-1' is no whole number from 0"),
        (["--kv-bits", "7"], "--kv-bits: invalid choice: 7"),
    ],
)
def test_an_option_that_makes_no_sense_is_named_before_anything_is_loaded(
    capsys, arguments, message
):
    with pytest.raises(SystemExit) as exit_:
        main(["tune", "no/model", *arguments])
    assert exit_.value.code == 2
    assert f"error: argument {message}" in capsys.readouterr().err


def test_what_cannot_be_measured_is_one_line_and_status_1(model, capsys):
    assert main(["tune", model, "--tokens", "100000"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("wiredactors: ")
    assert "context" in captured.err
    assert captured.err.count("\n") == 1


def test_a_model_that_is_not_there_is_one_line(capsys, tmp_path):
    assert main(["tune", str(tmp_path / "none.gguf")]) == 1
    assert "there is no file or directory" in capsys.readouterr().err


def test_a_cache_that_cannot_be_quantized_is_one_line(capsys, tmp_path):
    path = tiny.make_model(tmp_path, "short_window")
    assert main(["tune", str(path), *SMALL, "--kv-bits", "4"]) == 1
    assert "cannot quantize this model's cache" in capsys.readouterr().err


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_shown_on_a_terminal_and_wiped(model, monkeypatch, capsys):
    terminal = Terminal()
    monkeypatch.setattr(tune.sys, "stderr", terminal)
    assert main(["tune", model, *SMALL, "--decode", "2"]) == 0
    shown = terminal.getvalue().split("\r\x1b[K")
    assert any(text.startswith("loading: ") for text in shown)
    assert "measuring: 64 of 300 tokens of the prompt, 0 of 2 decoded" in shown
    assert "measuring: 300 of 300 tokens of the prompt, 2 of 2 decoded" in shown
    assert shown[-1] == ""
    assert "decoded" in capsys.readouterr().out


def test_without_a_terminal_there_is_no_progress(model, capsys):
    assert main(["tune", model, *SMALL]) == 0
    assert capsys.readouterr().err == ""


def test_the_sizes_are_written_for_people():
    measured = wa.WiredMemoryMeasurement(
        weight_bytes=wa.GIB,
        kv_bytes=wa.MIB,
        workspace_bytes=3 * wa.MIB,
        peak_active_bytes=wa.GIB + 4 * wa.MIB,
        token_count=7,
        prefill_step_size=4,
        batch_size=2,
        kv_bits=8,
        cache_cost=CacheCost(fixed_bytes=0, step_bytes=wa.MIB, copy_bytes=0),
        measured=True,
    )
    text = tune.as_text(measured)
    assert "Weights:      1.0 GiB\n" in text
    assert "of 7 tokens in each of 2 rows, 8 bits" in text


def test_the_file_is_where_the_environment_says(model, cache_folder: Path):
    assert main(["tune", model, *SMALL]) == 0
    assert len(list(cache_folder.rglob("*.json"))) == 1
