"""The board: what is going on now, out of events alone."""

from wiredactors.memory.events import EventKind, Snapshot, TicketSnapshot, WiredMemoryEvent
from wiredactors.observe.board import Board


def take(board, kind, **fields):
    details = fields.pop("details", {})
    board.take(WiredMemoryEvent(kind=kind, sequence=0, timestamp=0.0, details=details, **fields))


def test_a_model_goes_from_queued_to_unloaded_and_comes_again_with_its_share_done():
    board = Board()
    take(board, EventKind.MODEL_QUEUED, model="chat", size=120)
    assert (board.models["chat"].state, board.models["chat"].share) == ("queued", 0.0)
    take(board, EventKind.MODEL_LOADING, model="chat", size=120)
    take(
        board,
        EventKind.MODEL_PROGRESS,
        model="chat",
        details={"done_bytes": 30, "total_bytes": 120},
    )
    assert (board.models["chat"].state, board.models["chat"].share) == ("loading", 0.25)
    take(board, EventKind.MODEL_READY, model="chat", size=100)
    assert (board.models["chat"].state, board.models["chat"].bytes) == ("ready", 100)
    assert board.models["chat"].share == 1.0
    take(board, EventKind.MODEL_DRAINING, model="chat", details={"reason": "pressure"})
    assert board.models["chat"].state == "draining"
    take(board, EventKind.MODEL_UNLOADED, model="chat")
    assert board.models["chat"].state == "unloaded"
    take(board, EventKind.MODEL_QUEUED, model="chat", size=120)
    assert (board.models["chat"].state, board.models["chat"].share) == ("queued", 0.0)


def test_the_size_of_a_job_that_waited_for_its_model_is_known_when_it_is_admitted():
    board = Board()
    take(board, EventKind.JOB_QUEUED, job="job-1", model="chat", ticket_id="job-1")
    assert board.jobs["job-1"].size == 0
    take(board, EventKind.JOB_ADMITTED, job="job-1", model="chat", ticket_id="job-1", size=5)
    assert board.jobs["job-1"].size == 5


def test_a_job_that_fails_while_it_waits_was_refused_and_later_has_failed():
    board = Board()
    for job in ("job-1", "job-2"):
        take(board, EventKind.JOB_QUEUED, job=job, model="chat", ticket_id=job, size=5)
    take(board, EventKind.JOB_ADMITTED, job="job-2")
    take(board, EventKind.JOB_FAILED, job="job-1", error="too large")
    take(board, EventKind.JOB_FAILED, job="job-2", error="broken")
    assert [(job.state, job.error) for job in board.jobs.values()] == [
        ("refused", "too large"),
        ("failed", "broken"),
    ]


def test_a_late_board_begins_with_the_snapshot():
    board = Board()
    ticket = TicketSnapshot(
        ticket_id="w", size=9, kind="reservation", priority=0, policy="p", pinned=False, since=0.0
    )
    state = Snapshot(
        sequence=3,
        baseline=1,
        current_limit=10,
        desired_limit=10,
        ceiling=None,
        tickets=(ticket,),
        waiters=(),
    )
    take(board, EventKind.SNAPSHOT, baseline=1, applied_limit=10, snapshot=state)
    assert (board.holdings.of("w"), board.limit, board.baseline) == (9, 10, 1)
