"""What can go wrong, one exception for each cause.

Each type says whose fault it is and carries the numbers that a person needs to act. Whatever is
raised, the ledger stays consistent: nothing is admitted by halves and nothing keeps its bytes.
"""

from __future__ import annotations

from wiredactors.memory.units import format_bytes


class WiredMemoryError(Exception):
    """The base of everything that this library raises on purpose."""


class TicketTooLarge(WiredMemoryError):
    """The ticket can never fit: the caller must ask for less, or raise the cap.

    Refused at once, before anything waits or is evicted, also where a ticket that wants to grow
    could only do so if others that wait to grow themselves went away.

    Attributes:
        need: bytes of the ticket itself.
        cap: the policy's cap in bytes, or the ceiling where that is smaller.
        pinned_bytes: bytes of tickets that cannot go away (pinned ones, and those it stands on).
        largest_possible: bytes of the largest ticket that would be admitted if only those were
            left.
    """

    def __init__(self, need: int, cap: int | None, pinned_bytes: int, largest_possible: int):
        self.need = need
        self.cap = cap
        self.pinned_bytes = pinned_bytes
        self.largest_possible = largest_possible
        # The exact byte counts stand beside the rounded ones: two that differ by little would
        # otherwise read as equal.
        cap_text = "no cap" if cap is None else f"a cap of {format_bytes(cap)} ({cap} bytes)"
        super().__init__(
            f"a ticket of {format_bytes(need)} ({need} bytes) can never fit under {cap_text} with "
            f"{format_bytes(pinned_bytes)} that cannot go away; the largest that can is "
            f"{format_bytes(largest_possible)} ({largest_possible} bytes): ask for less or raise "
            "the cap"
        )


class TicketWithdrawn(WiredMemoryError):
    """Another task ended the ticket before its `start()` returned; its body must not run."""


class TicketInUse(WiredMemoryError):
    """The ticket is already waiting or running: make one ticket for each piece of work."""


class QueueFull(WiredMemoryError):
    """As many tickets wait as the configuration's `max_waiters` allows: try again later.

    Attributes:
        waiting: how many wait now.
        bound: `max_waiters`.
    """

    def __init__(self, waiting: int, bound: int):
        self.waiting = waiting
        self.bound = bound
        super().__init__(
            f"{_tickets(waiting, 'waits', 'wait')} for memory and max_waiters is {bound}: try "
            "again later, or raise max_waiters"
        )


class ManagerBusy(WiredMemoryError):
    """The configuration cannot change while tickets are active or wait.

    Attributes:
        active: how many active tickets live.
        waiting: how many tickets wait.
    """

    def __init__(self, active: int, waiting: int):
        self.active = active
        self.waiting = waiting
        running = [] if not active else [_tickets(active, "is active", "are active")]
        queued = [] if not waiting else [_tickets(waiting, "waits", "wait")]
        them = "it" if active + waiting == 1 else "them"
        super().__init__(
            f"the configuration cannot change while {' and '.join(running + queued)}: "
            f"end {them} first"
        )


class ManagerAlreadyOpen(WiredMemoryError):
    """A process has one wired limit, so it can have one open manager: share that one."""


class ManagerClosed(WiredMemoryError):
    """The manager has closed; tickets start only inside its `async with`."""


class NoManager(WiredMemoryError):
    """The ticket names no manager and none is open: open one with `open_manager()`."""


class PolicyConflict(WiredMemoryError):
    """A live policy has the same `id` and other parameters: give one of them another id."""


class PolicyError(WiredMemoryError):
    """A user's own policy raised, or answered something that is no size or no yes or no."""


class ModelLoadError(WiredMemoryError):
    """A model could not be loaded; the message names the file, what is wrong, and what to do."""


class ModelNotLoaded(WiredMemoryError):
    """The model is not loaded, or is being unloaded: load it (again) first."""


class PromptTooLong(WiredMemoryError):
    """The prompt alone fills the model's context: shorten it.

    Attributes:
        prompt_tokens: tokens of the prompt.
        context_length: tokens that the model can hold.
    """

    def __init__(self, prompt_tokens: int, context_length: int):
        self.prompt_tokens = prompt_tokens
        self.context_length = context_length
        super().__init__(
            f"the prompt has {prompt_tokens} tokens and the model's context holds "
            f"{context_length}, which leaves no room to answer: shorten the prompt"
        )


class GenerationError(WiredMemoryError):
    """The engine failed at a job. The others go on.

    What is a job's alone (its sampler, its processors, its text) fails that job only. Where a step
    that several share fails, each goes on from its tokens by itself, and fails if that fails again.
    """


def _tickets(count: int, one: str, several: str) -> str:
    return f"1 ticket {one}" if count == 1 else f"{count} tickets {several}"
