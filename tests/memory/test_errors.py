"""What an error says reads as a sentence, whatever its numbers."""

from __future__ import annotations

import pytest

from wiredactors.memory.errors import ManagerBusy, QueueFull


@pytest.mark.parametrize(
    ("active", "waiting", "said"),
    [
        (1, 0, "1 ticket is active: end it first"),
        (2, 0, "2 tickets are active: end them first"),
        (0, 1, "1 ticket waits: end it first"),
        (1, 1, "1 ticket is active and 1 ticket waits: end them first"),
        (3, 2, "3 tickets are active and 2 tickets wait: end them first"),
    ],
)
def test_a_busy_manager_counts_its_tickets(active, waiting, said):
    error = ManagerBusy(active, waiting)
    assert str(error) == f"the configuration cannot change while {said}"
    assert (error.active, error.waiting) == (active, waiting)


@pytest.mark.parametrize(
    ("waiting", "said"), [(0, "0 tickets wait"), (1, "1 ticket waits"), (4, "4 tickets wait")]
)
def test_a_full_queue_counts_those_that_wait(waiting, said):
    assert str(QueueFull(waiting, waiting)).startswith(
        f"{said} for memory and max_waiters is {waiting}: try again later"
    )
