"""The modelled model that the tests of jobs share, and its numbers."""

from __future__ import annotations

import wiredactors as wa
from wiredactors.testing import ModelledModel

#: A row of one step of 256 tokens.
ROW = 10 * wa.MIB

#: Weights and workspace.
BASE = 110 * wa.MIB

MODEL = ModelledModel(
    weight_bytes=100 * wa.MIB,
    workspace_bytes=10 * wa.MIB,
    kv_bytes_per_token=40 * wa.KIB,
    load_seconds=0,
    prefill_tokens_per_second=100,
    step_seconds=1,
)

#: It is read in a second.
PROMPT = "x" * 100
