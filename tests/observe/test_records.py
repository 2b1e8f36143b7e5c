"""Events as log records, and reading a log back."""

import json

import attrs
import pytest
import structlog
import trio

import wiredactors as wa
from wiredactors.memory.events import EventKind, WiredMemoryEvent
from wiredactors.observe.records import event_record, log_events, open_event_log, read_event_log


class OffMetal:
    supported = False

    def recommended_working_set_bytes(self):
        return 1000

    def set_wired_limit(self, limit):
        raise AssertionError("there is no limit to set here")


async def some_events(configuration=None):
    """The events of two tickets of which one waits."""
    collected = []
    async with (
        trio.open_nursery() as nursery,
        wa.open_manager(configuration, OffMetal()) as manager,
    ):

        async def collect(task_status):
            async with manager.events() as events:
                task_status.started()
                collected.extend([event async for event in events])

        await nursery.start(collect)
        first = wa.WiredSumPolicy(cap=100).ticket(60)
        second = wa.WiredSumPolicy(cap=100).ticket(50)
        await first.start()
        nursery.start_soon(second.start)
        await trio.testing.wait_all_tasks_blocked()
        await first.end()
    return collected


def test_a_record_has_the_fields_flat_and_only_those_with_a_value():
    event = WiredMemoryEvent(
        kind=EventKind.JOB_FINISHED,
        sequence=7,
        timestamp=1.5,
        job="job-1",
        model="chat",
        ticket_id="job-1",
        size=10,
        details={"generation_tokens": 3},
    )
    assert event_record(event) == {
        "sequence": 7,
        "timestamp": 1.5,
        "active_count": 0,
        "waiter_count": 0,
        "job": "job-1",
        "model": "chat",
        "ticket_id": "job-1",
        "size": 10,
        "generation_tokens": 3,
    }


async def test_details_never_hide_a_field_of_the_event():
    names = {field.name for field in attrs.fields(WiredMemoryEvent)}
    for event in await some_events():
        assert not names & set(event.details)


async def test_each_event_is_one_record_under_its_kind():
    events = await some_events()

    async def stream():
        for event in events:
            yield event

    with structlog.testing.capture_logs() as logs:
        await log_events(stream())
    assert [log["event"] for log in logs] == [str(event.kind) for event in events]
    assert [log["sequence"] for log in logs] == [event.sequence for event in events]
    assert {log["log_level"] for log in logs} == {"info"}


async def test_a_log_file_reads_back_as_it_was_written(tmp_path):
    path = tmp_path / "deep" / "log.jsonl"
    events = await some_events()
    with open_event_log(path) as logger:
        for event in events:
            logger.info(str(event.kind), **event_record(event))
    records = read_event_log(path)
    assert [record["event"] for record in records] == [str(event.kind) for event in events]
    waits = [record for record in records if record["event"] == "admission_wait"]
    assert [(wait["size"], wait["waiter_count"]) for wait in waits] == [(50, 1)]
    assert records[0]["snapshot"]["ceiling"] == 1000


async def test_every_line_is_whole_as_soon_as_it_is_written(tmp_path):
    path = tmp_path / "log.jsonl"
    with open_event_log(path) as logger:
        logger.info("ticket_ended", sequence=1)
        assert json.loads(path.read_text()) == {"event": "ticket_ended", "sequence": 1}


def test_a_torn_last_line_is_left_out(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"event": "ticket_ended", "sequence": 1}\n{"event": "ticket_st')
    assert [record["sequence"] for record in read_event_log(path)] == [1]


@pytest.mark.parametrize("line", ["{", "[]", "7", '{"event": "something_else"}', "{}"])
def test_any_other_bad_line_is_an_error_with_its_number(tmp_path, line):
    path = tmp_path / "log.jsonl"
    path.write_text('{"event": "ticket_ended", "sequence": 1}\n' + line + "\n")
    with pytest.raises(ValueError, match="line 2"):
        read_event_log(path)


async def test_the_stream_is_empty_without_debug_events():
    assert await some_events(wa.WiredMemoryConfiguration(debug_events=False)) == []
