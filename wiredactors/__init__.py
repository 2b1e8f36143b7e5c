"""One exact, fair, explainable owner of memory for several MLX language models in one process.

These are the public names. Importing them imports neither mlx nor mlx-lm.
"""

from wiredactors.actors.broadcast import EventStream
from wiredactors.actors.job import Job
from wiredactors.actors.manager import WiredMemoryManager
from wiredactors.actors.model import Model
from wiredactors.actors.opening import open_manager
from wiredactors.actors.outcome import Outcome
from wiredactors.actors.result import Chunk, GenerationResult
from wiredactors.actors.runtime import Runtime
from wiredactors.actors.session import open_runtime
from wiredactors.actors.tuning import tune
from wiredactors.engine.estimating import estimate
from wiredactors.engine.guard import GuardError
from wiredactors.engine.imports import MLXNotInstalled, MLXVLMNotInstalled
from wiredactors.engine.probe import TuneError
from wiredactors.memory.configuration import WiredMemoryConfiguration
from wiredactors.memory.errors import (
    GenerationError,
    ManagerAlreadyOpen,
    ManagerBusy,
    ManagerClosed,
    ModelLoadError,
    ModelNotLoaded,
    NoManager,
    PolicyConflict,
    PolicyError,
    PromptTooLong,
    QueueFull,
    TicketInUse,
    TicketTooLarge,
    TicketWithdrawn,
    WiredMemoryError,
)
from wiredactors.memory.events import (
    EventKind,
    Explanation,
    Snapshot,
    TicketSnapshot,
    WiredMemoryEvent,
)
from wiredactors.memory.measurement import TuneParameters, WiredMemoryMeasurement
from wiredactors.memory.outside import MemoryReading
from wiredactors.memory.policies import (
    WiredBudgetPolicy,
    WiredFixedPolicy,
    WiredMaxPolicy,
    WiredMemoryPolicy,
    WiredSumPolicy,
)
from wiredactors.memory.tickets import WiredMemoryTicket
from wiredactors.memory.trial import DryRun, DryRunTicket
from wiredactors.memory.units import GIB, KIB, MIB
from wiredactors.observe.records import log_events
from wiredactors.observe.replay import replay
from wiredactors.scheduling.lifecycle import ModelState
from wiredactors.scheduling.requests import StepReport

__all__ = [
    "GIB",
    "KIB",
    "MIB",
    "Chunk",
    "DryRun",
    "DryRunTicket",
    "EventKind",
    "EventStream",
    "Explanation",
    "GenerationError",
    "GenerationResult",
    "GuardError",
    "Job",
    "MLXNotInstalled",
    "MLXVLMNotInstalled",
    "ManagerAlreadyOpen",
    "ManagerBusy",
    "ManagerClosed",
    "MemoryReading",
    "Model",
    "ModelLoadError",
    "ModelNotLoaded",
    "ModelState",
    "NoManager",
    "Outcome",
    "PolicyConflict",
    "PolicyError",
    "PromptTooLong",
    "QueueFull",
    "Runtime",
    "Snapshot",
    "StepReport",
    "TicketInUse",
    "TicketSnapshot",
    "TicketTooLarge",
    "TicketWithdrawn",
    "TuneError",
    "TuneParameters",
    "WiredBudgetPolicy",
    "WiredFixedPolicy",
    "WiredMaxPolicy",
    "WiredMemoryConfiguration",
    "WiredMemoryError",
    "WiredMemoryEvent",
    "WiredMemoryManager",
    "WiredMemoryMeasurement",
    "WiredMemoryPolicy",
    "WiredMemoryTicket",
    "WiredSumPolicy",
    "estimate",
    "log_events",
    "open_manager",
    "open_runtime",
    "replay",
    "tune",
]
