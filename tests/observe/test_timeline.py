"""The timeline of a run, and its picture."""

from wiredactors.memory.events import EventKind, WiredMemoryEvent
from wiredactors.observe.chart import draw_timeline, spans_to_draw
from wiredactors.observe.timeline import Timeline
from wiredactors.scheduling.requests import StepReport


def run_of_two_tickets():
    timeline = Timeline()

    def take(kind, now, ticket=None, size=None, ticket_kind="active", **fields):
        timeline.take(
            WiredMemoryEvent(
                kind=kind,
                sequence=0,
                timestamp=now,
                ticket_id=ticket,
                size=size,
                ticket_kind=ticket_kind,
                **fields,
            )
        )

    take(EventKind.SNAPSHOT, 1.0, applied_limit=0)
    take(EventKind.TICKET_STARTED, 1.0, "w", 50, "reservation")
    take(EventKind.TICKET_STARTED, 2.0, "a", 10)
    take(EventKind.LIMIT_APPLIED, 2.0, applied_limit=60)
    take(EventKind.ADMISSION_WAIT, 3.0, "b", 20)
    take(EventKind.TICKET_ENDED, 4.0, "a", 10)
    take(EventKind.TICKET_STARTED, 4.0, "b", 20)
    take(EventKind.TICKET_RESIZED, 5.0, "b", 15)
    return timeline


def test_spans_tell_when_each_ticket_asked_came_in_and_ended():
    spans = {span.ticket_id: span for span in run_of_two_tickets().spans}
    assert {name: (s.asked, s.admitted, s.ended) for name, s in spans.items()} == {
        "w": (1.0, 1.0, None),
        "a": (2.0, 2.0, 4.0),
        "b": (3.0, 4.0, None),
    }
    assert {name: s.size for name, s in spans.items()} == {"w": 50, "a": 10, "b": 15}


def test_granted_and_reserved_bytes_follow_the_tickets():
    timeline = run_of_two_tickets()
    assert timeline.granted == [(1.0, 50), (2.0, 60), (4.0, 50), (4.0, 70), (5.0, 65)]
    assert {reserved for _, reserved in timeline.reserved} == {50}
    assert timeline.limits == [(1.0, 0), (2.0, 60)]


def test_a_resize_of_a_ticket_that_waits_grants_nothing():
    timeline = run_of_two_tickets()
    before = list(timeline.granted)
    timeline.take(
        WiredMemoryEvent(
            kind=EventKind.TICKET_RESIZED, sequence=0, timestamp=6.0, ticket_id="c", size=99
        )
    )
    assert timeline.granted == before


def test_a_refused_waiter_waits_no_longer():
    timeline = run_of_two_tickets()
    for kind, now in ((EventKind.ADMISSION_WAIT, 6.0), (EventKind.ADMISSION_REFUSED, 7.0)):
        timeline.take(WiredMemoryEvent(kind=kind, sequence=0, timestamp=now, ticket_id="c", size=9))
    [*_, last] = timeline.spans
    assert (last.ticket_id, last.admitted, last.ended) == ("c", None, 7.0)


def test_a_model_that_comes_again_has_one_span_for_each_time():
    timeline = Timeline()
    for kind, now in [
        (EventKind.TICKET_STARTED, 1.0),
        (EventKind.TICKET_ENDED, 2.0),
        (EventKind.ADMISSION_WAIT, 3.0),
        (EventKind.TICKET_STARTED, 4.0),
    ]:
        timeline.take(WiredMemoryEvent(kind=kind, sequence=0, timestamp=now, ticket_id="w", size=9))
    assert [(span.asked, span.admitted, span.ended) for span in timeline.spans] == [
        (1.0, 1.0, 2.0),
        (3.0, 4.0, None),
    ]


def test_a_job_waits_from_its_call_on_though_its_ticket_asks_later_or_never():
    timeline = Timeline()
    for kind, now, ticket in [
        (EventKind.JOB_QUEUED, 1.0, "a"),
        (EventKind.JOB_QUEUED, 1.5, "b"),
        (EventKind.JOB_CANCELLED, 2.0, "b"),
        (EventKind.ADMISSION_WAIT, 3.0, "a"),
        (EventKind.TICKET_STARTED, 4.0, "a"),
        (EventKind.TICKET_ENDED, 5.0, "a"),
        (EventKind.JOB_FINISHED, 5.0, "a"),
    ]:
        timeline.take(WiredMemoryEvent(kind=kind, sequence=0, timestamp=now, ticket_id=ticket))
    assert [(s.ticket_id, s.asked, s.admitted, s.ended) for s in timeline.spans] == [
        ("a", 1.0, 4.0, 5.0),
        ("b", 1.5, None, 2.0),
    ]


def test_a_job_that_was_refused_at_once_has_no_row_in_the_picture_and_one_that_waited_has():
    timeline = run_of_two_tickets()
    for kind, now, ticket in [
        (EventKind.JOB_QUEUED, 1.0, "at once"),
        (EventKind.JOB_FAILED, 1.001, "at once"),
        (EventKind.JOB_QUEUED, 2.0, "later"),
        (EventKind.JOB_FAILED, 4.0, "later"),
        (EventKind.JOB_QUEUED, 5.0, "waits"),
    ]:
        timeline.take(WiredMemoryEvent(kind=kind, sequence=0, timestamp=now, ticket_id=ticket))
    drawn = [span.ticket_id for span in spans_to_draw(timeline, 5.0)]
    assert drawn == ["w", "a", "later", "b", "waits"]


def step(peak, granted):
    return StepReport(
        model="m",
        what="step",
        rows=1,
        seconds=0.1,
        active_bytes=peak - 1,
        peak_bytes=peak,
        granted_bytes=granted,
    )


def test_the_worst_sample_is_the_one_that_came_closest_to_or_passed_its_grant():
    timeline = Timeline()
    assert timeline.worst_sample is None
    for peak, granted in ((100, 120), (60, 55), (200, 400)):
        timeline.take_step(step(peak, granted), 1.0)
    assert timeline.worst_sample.over_bytes == 5


def test_the_picture_is_a_png_also_of_an_empty_run(tmp_path):
    full = run_of_two_tickets()
    full.take_step(step(40, 60), 2.5)
    for name, timeline, cap in (("full", full, 100), ("empty", Timeline(), None)):
        path = tmp_path / "pictures" / f"{name}.png"
        draw_timeline(timeline, path, cap=cap, title=name)
        assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
