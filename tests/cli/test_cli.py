"""The command line, with scenarios that need no model."""

import os
import subprocess
import sys

import pytest

import wiredactors as wa
from wiredactors.cli.main import main
from wiredactors.cli.scenario import ScenarioError, load_scenario, packaged_scenario
from wiredactors.observe.records import read_event_log
from wiredactors.observe.timeline import Timeline

TICKETS = '''
"""Two tickets under one cap.

More about them.
"""
import trio
import wiredactors as wa

POLICY = wa.WiredSumPolicy(cap=100)

async def main(runtime):
    async def hold():
        async with POLICY.ticket(60).wired_limit():
            await trio.sleep(0.01)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(hold)
        nursery.start_soon(hold)
    refused = wa.TicketTooLarge(need=300, cap=100, pinned_bytes=0, largest_possible=100)
    return [wa.Outcome("none", "a ticket of 300", error=refused)]
'''


@pytest.fixture
def scenario(tmp_path):
    path = tmp_path / "tickets.py"
    path.write_text(TICKETS)
    return path


def test_run_prints_the_story_and_leaves_a_log_and_a_picture(scenario, tmp_path, capsys):
    assert main(["run", str(scenario), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("Two tickets under one cap.\n")
    assert "waits for 60 B (1 waiting)" in printed
    assert "back at the baseline of 0 B" in printed
    assert "can never fit under a cap of 100 B" in printed
    kinds = [record["event"] for record in read_event_log(tmp_path / "out" / "tickets.jsonl")]
    assert kinds.count("ticket_started") == kinds.count("ticket_ended") == 2
    assert kinds[0] == "snapshot"
    assert kinds[-1] == "baseline_restored"
    assert (tmp_path / "out" / "tickets.png").stat().st_size > 1000


def test_log_names_another_file(scenario, tmp_path):
    log = tmp_path / "elsewhere.jsonl"
    assert main(["run", str(scenario), "--out", str(tmp_path), "--log", str(log)]) == 0
    assert read_event_log(log)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "there is no scenario"),
        ("x = 1", "has no `async def main"),
        ("POLICY = 7\nasync def main(runtime): ...", "POLICY must be a policy"),
    ],
)
def test_a_file_that_is_no_scenario_is_a_clear_error(tmp_path, capsys, text, message):
    path = tmp_path / "bad.py"
    if text is not None:
        path.write_text(text)
    assert main(["run", str(path), "--out", str(tmp_path)]) == 1
    assert message in capsys.readouterr().err


def test_an_error_of_the_library_is_one_line_and_status_1(tmp_path, capsys):
    path = tmp_path / "missing.py"
    path.write_text("async def main(runtime):\n    await runtime.load('/no/such/model.gguf')\n")
    assert main(["run", str(path), "--out", str(tmp_path)]) == 1
    assert "there is no file or directory '/no/such/model.gguf'" in capsys.readouterr().err


def test_an_error_of_the_scenario_keeps_its_traceback(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("async def main(runtime):\n    raise ZeroDivisionError('theirs')\n")
    with pytest.raises(ZeroDivisionError, match="theirs"):
        main(["run", str(path), "--out", str(tmp_path)])


NURSERY = """
from __future__ import annotations
import dataclasses, signal
import trio
import wiredactors as wa

@dataclasses.dataclass
class Plan:
    size: int

async def main(runtime):
    async with trio.open_nursery() as nursery:
        nursery.start_soon({start})
        await trio.sleep_forever()

async def refuse():
    await wa.WiredSumPolicy(cap=10).ticket(Plan(11).size).start()

async def interrupt():
    signal.raise_signal(signal.SIGINT)
"""


def test_an_error_in_the_scenarios_own_nursery_is_one_line_too(tmp_path, capsys):
    path = tmp_path / "nursery.py"
    path.write_text(NURSERY.format(start="refuse"))
    assert main(["run", str(path), "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("wiredactors: a ticket of 11 B (11 bytes) can never")


def test_an_interrupt_is_one_line_and_status_130(tmp_path, capsys):
    path = tmp_path / "interrupted.py"
    path.write_text(NURSERY.format(start="interrupt"))
    assert main(["run", str(path), "--out", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "wiredactors: interrupted\n"


def test_a_scenario_may_return_nothing(tmp_path, capsys):
    path = tmp_path / "silent.py"
    path.write_text("async def main(runtime): pass")
    assert main(["run", str(path), "--out", str(tmp_path)]) == 0
    assert "back at the baseline" in capsys.readouterr().out


def test_the_demo_is_found_and_has_a_title():
    demo = load_scenario(packaged_scenario("two_models"))
    assert demo.title.startswith("Two real language models")
    with pytest.raises(ScenarioError, match="missing"):
        packaged_scenario("no_such_story")


@pytest.mark.parametrize("words", [[], ["nonsense"], ["run"]])
def test_words_that_make_no_sense_show_the_usage(words, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(words)
    assert exit_.value.code == 2
    assert "usage: wiredactors" in capsys.readouterr().err


def test_the_table_fits_the_terminal(monkeypatch, capsys):
    from wiredactors.cli.summary import print_summary

    monkeypatch.setenv("COLUMNS", "100")
    result = wa.GenerationResult(
        text="many words " * 40,
        tokens=(1,),
        prompt_tokens=1,
        generation_tokens=1,
        prompt_tps=1.0,
        generation_tps=1.0,
        finish_reason="length",
        waited=0.5,
        time_to_first_token=1.0,
        ticket_size=wa.MIB,
        kv_bytes=wa.MIB,
    )
    print_summary([wa.Outcome("chat", "Say many words", result)], Timeline(), 0, 0)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    assert any("many words" in line and line.endswith("...") for line in lines)


PIPE_OF_ITS_OWN = """
async def main(runtime):
    raise BrokenPipeError("of its own")
"""


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [["doctor"], ["run", "tickets.py", "--plain"]])
def test_a_reader_who_has_gone_is_no_fault(scenario, words, unbuffered):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as nobody:
        done = subprocess.run(
            [sys.executable, "-c", "from wiredactors.cli.main import main; exit(main())", *words],
            cwd=scenario.parent,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(sys.path),
                "PYTHONUNBUFFERED": unbuffered,
            },
            stdout=nobody,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_broken_pipe_of_a_scenarios_own_is_not_hidden(tmp_path):
    path = tmp_path / "pipe.py"
    path.write_text(PIPE_OF_ITS_OWN)
    with pytest.raises(BrokenPipeError, match="of its own"):
        main(["run", str(path), "--out", str(tmp_path)])
