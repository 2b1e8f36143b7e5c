"""The names that users are promised, with the pinned parameters, and cheap to import."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

import wiredactors as wa

#: Every name, and of the errors those that a person handles.
NAMES = [
    *("KIB", "MIB", "GIB"),
    *("WiredMemoryPolicy", "WiredSumPolicy", "WiredMaxPolicy"),
    *("WiredFixedPolicy", "WiredBudgetPolicy", "WiredMemoryTicket"),
    *("open_manager", "WiredMemoryManager", "WiredMemoryConfiguration", "WiredMemoryEvent"),
    *("open_runtime", "WiredMemoryError"),
    # What the others give back, to name in a signature.
    *("EventStream", "Snapshot", "TicketSnapshot", "Explanation", "DryRun", "DryRunTicket"),
]
ERRORS = [
    *("TicketTooLarge", "TicketWithdrawn", "TicketInUse", "QueueFull", "ManagerBusy"),
    *("ManagerAlreadyOpen", "ManagerClosed", "NoManager", "PolicyConflict", "PolicyError"),
    *("PromptTooLong", "ModelLoadError", "ModelNotLoaded", "GenerationError"),
    *("TuneError", "MLXVLMNotInstalled"),
]

REQUIRED = inspect.Parameter.empty


@pytest.mark.parametrize("name", NAMES + ERRORS)
def test_a_pinned_name_is_public(name: str) -> None:
    assert name in wa.__all__
    assert hasattr(wa, name)


def test_every_public_name_exists_once() -> None:
    assert len(set(wa.__all__)) == len(wa.__all__)
    assert all(hasattr(wa, name) for name in wa.__all__)


@pytest.mark.parametrize("name", ERRORS)
def test_everything_raised_on_purpose_has_one_base(name: str) -> None:
    assert issubclass(getattr(wa, name), wa.WiredMemoryError)


def test_units_are_binary() -> None:
    assert (wa.KIB, wa.MIB, wa.GIB) == (2**10, 2**20, 2**30)


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        (wa.WiredSumPolicy, {"cap": None}),
        (wa.WiredMaxPolicy, {}),
        (wa.WiredFixedPolicy, {"limit": REQUIRED}),
        (wa.WiredBudgetPolicy, {"base_bytes": REQUIRED, "cap": None, "id": None}),
        (wa.WiredMemoryPolicy.limit, {"self": REQUIRED, "baseline": REQUIRED}),
        (
            wa.WiredMemoryPolicy.can_admit,
            {
                "self": REQUIRED,
                "baseline": REQUIRED,
                "active_sizes": REQUIRED,
                "new_size": REQUIRED,
            },
        ),
        (
            wa.WiredSumPolicy().ticket,
            {
                "size": REQUIRED,
                "kind": "active",
                "manager": None,
                "priority": 0,
                "pinned": False,
                "reclaimable": False,
                "requires": (),
            },
        ),
        (wa.WiredMemoryTicket.start, {"self": REQUIRED}),
        (wa.WiredMemoryTicket.end, {"self": REQUIRED}),
        (wa.WiredMemoryTicket.end_nowait, {"self": REQUIRED}),
        (wa.WiredMemoryTicket.wired_limit, {"self": REQUIRED}),
        (wa.WiredMemoryTicket.resize, {"self": REQUIRED, "size": REQUIRED}),
        (wa.open_manager, {"configuration": None, "backend": None}),
        (wa.WiredMemoryManager.events, {"self": REQUIRED}),
        (wa.WiredMemoryManager.snapshot, {"self": REQUIRED}),
        (wa.WiredMemoryManager.explain, {"self": REQUIRED, "ticket_id": REQUIRED}),
        (
            wa.WiredMemoryConfiguration,
            {
                "shrink_threshold_ratio": 0.25,
                "shrink_cooldown": 1.0,
                "policy_only_when_unsupported": True,
                "baseline_override": None,
                "use_recommended_working_set_when_unsupported": True,
                "admission_ceiling": None,
                "max_waiters": None,
                "wired_mode": "policy",
                "debug_events": True,
            },
        ),
        (wa.open_runtime, {"configuration": None, "backend": None, "engine": None}),
        (wa.Runtime.load, {"self": REQUIRED, "source": REQUIRED, "name": None}),
        (wa.Runtime.unload, {"self": REQUIRED, "name": REQUIRED}),
        (wa.Model.ticket_size, {"self": REQUIRED, "prompt": REQUIRED}),
        (
            wa.Model.generate,
            {
                "self": REQUIRED,
                "prompt": REQUIRED,
                "temperature": 0.0,
                "wired_memory_ticket": None,
                "priority": 0,
            },
        ),
        (wa.Job.cancel, {"self": REQUIRED}),
    ],
    ids=lambda value: getattr(value, "__qualname__", ""),
)
def test_pinned_parameters_can_be_named_and_left_out(
    function: Callable[..., Any], parameters: dict[str, Any]
) -> None:
    found = inspect.signature(function).parameters
    for name, default in parameters.items():
        assert found[name].default == default, name
        assert found[name].kind is not inspect.Parameter.POSITIONAL_ONLY
    # Whatever else there is has a default.
    assert {name for name, p in found.items() if p.default is REQUIRED} - set(parameters) <= {
        "active_sizes",
        "changes",
    }


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (wa.open_runtime, {"policy"}),
        (wa.Model.generate, {"max_tokens"}),
        (wa.Model.ticket_size, {"max_tokens"}),
        (wa.WiredMemoryConfiguration, {"overtake_count", "overtake_seconds", "aging_seconds"}),
    ],
    ids=lambda value: getattr(value, "__qualname__", ""),
)
def test_parameters_whose_default_is_not_pinned_can_be_named_and_left_out(
    function: Callable[..., Any], names: set[str]
) -> None:
    found = inspect.signature(function).parameters
    assert all(found[name].default is not REQUIRED for name in names)


@pytest.mark.parametrize(
    ("type_", "names"),
    [
        (
            wa.WiredMemoryEvent,
            "kind sequence timestamp ticket_id size policy baseline desired_limit applied_limit "
            "active_count waiter_count error missed",
        ),
        (
            wa.GenerationResult,
            "text tokens prompt_tokens generation_tokens prompt_tps generation_tps finish_reason "
            "waited time_to_first_token ticket_size kv_bytes",
        ),
        (wa.Chunk, "text token"),
        (wa.Snapshot, "sequence baseline current_limit ceiling tickets waiters"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_records_have_the_pinned_fields(type_: type[Any], names: str) -> None:
    assert set(names.split()) <= set(inspect.signature(type_).parameters)


def test_a_ticket_shows_what_it_was_made_of() -> None:
    policy = wa.WiredSumPolicy()
    ticket = policy.ticket(5, kind="reservation", priority=3)
    assert (ticket.size, ticket.kind, ticket.policy, ticket.priority) == (
        5,
        "reservation",
        policy,
        3,
    )
    assert ticket.id


def test_errors_carry_their_numbers() -> None:
    too_large = wa.TicketTooLarge(need=9, cap=8, pinned_bytes=3, largest_possible=5)
    assert (too_large.need, too_large.cap) == (9, 8)
    assert (too_large.pinned_bytes, too_large.largest_possible) == (3, 5)
    full = wa.QueueFull(waiting=4, bound=4)
    assert (full.waiting, full.bound) == (4, 4)


IMPORT = """
import sys, time
import trio  # whoever uses this has paid for it
began = time.perf_counter()
import wiredactors, wiredactors.testing
print(time.perf_counter() - began)
heavy = {"mlx", "mlx_lm", "mlx_vlm", "transformers", "numpy"}
print(*heavy.intersection(name.split(".")[0] for name in sys.modules))
"""


def test_importing_is_quick_and_imports_no_mlx() -> None:
    runs = [
        subprocess.run(
            [sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True
        ).stdout.splitlines()
        for _ in range(2)  # the first may have to compile
    ]
    assert [heavy for _, heavy in runs] == ["", ""]
    assert min(float(seconds) for seconds, _ in runs) < 1
