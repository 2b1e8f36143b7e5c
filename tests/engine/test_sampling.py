"""Rows that share a step choose what each would have chosen alone with mlx-lm."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest

from wiredactors.engine.sampling import Chooser, RowSampler
from wiredactors.scheduling.requests import SamplingParameters

mx = pytest.importorskip("mlx.core")
pytest.importorskip("mlx_lm")

WORDS = 97
STEPS = 6
PROMPT = (3, 5, 5, 8, 13, 21)


def at_odds(tokens: Any, logits: Any) -> Any:
    """A user's processor that depends on all the tokens so far."""
    return mx.where((mx.arange(WORDS) + tokens.sum()) % 2 == 0, logits, logits - 3)


def in_float32(tokens: Any, logits: Any) -> Any:
    return logits.astype(mx.float32) * 1.0001


def second_best(logprobs: Any) -> Any:
    return mx.argsort(logprobs, axis=-1)[:, -2]


def broken(*arguments: Any) -> Any:
    raise RuntimeError("broken")


#: Rows whose choice is certain.
CERTAIN = [
    {},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 1.3, "repetition_context_size": 3, "logit_bias": {4: 2.0, 96: 5}},
    {"logit_bias": {7: 2.5}, "logprobs": True},
    {"logits_processors": [at_odds], "top_logprobs": 3},
    {"logits_processors": [in_float32]},
    {"sampler": second_best, "logprobs": True},
    {"top_logprobs": 5},
    {"temperature": 0.7, "seed": 1},
    {"temperature": 0.7, "seed": -2, "top_p": 0.8, "top_logprobs": 2},
    {"temperature": 0.7, "seed": 3, "top_p": 0.8},
    {"temperature": 1.5, "seed": 2**70, "top_k": 5, "logits_processors": [in_float32]},
    {"temperature": 1.5, "seed": 4, "top_k": 5},
    {"temperature": 0.9, "seed": 5, "min_p": 0.05, "top_p": 0.9, "top_k": 30},
    {"temperature": 1.0, "seed": 6, "repetition_penalty": 1.2, "logit_bias": {1: -100}},
]


def parameters_of(row: dict[str, Any]) -> SamplingParameters:
    return SamplingParameters(**row)


def scores(row: int, step: int, dtype: Any) -> Any:
    values = mx.random.normal((1, WORDS), key=mx.random.key(1000 * row + step))
    return (3 * values).astype(dtype)


def alone(parameters: SamplingParameters, row: int, dtype: Any) -> list[tuple[int, Any]]:
    """Tokens and log-probabilities as mlx-lm's `generate_step` makes them."""
    from mlx_lm.sample_utils import make_logits_processors, make_sampler

    processors = [
        *make_logits_processors(
            dict(parameters.logit_bias),
            parameters.repetition_penalty,
            parameters.repetition_context_size,
        ),
        *parameters.logits_processors,
    ]
    sampler = parameters.sampler or make_sampler(
        parameters.temperature, parameters.top_p, parameters.min_p, top_k=parameters.top_k
    )
    if parameters.seed is not None:
        mx.random.seed(parameters.seed % 2**64)
    tokens = mx.array(PROMPT)
    told: list[tuple[int, Any]] = []
    for step in range(STEPS):
        logits = scores(row, step, dtype)
        for processor in processors:
            logits = processor(tokens, logits)
        logprobs = logits - mx.logsumexp(logits, keepdims=True)
        token = sampler(logprobs)
        told.append((token.item(), logprobs[0].tolist()))
        tokens = mx.concatenate([tokens, token])
    return told


class Rows:
    """Rows that share steps, as a batch drives them."""

    def __init__(self, rows: Sequence[tuple[int, SamplingParameters]], dtype: Any):
        self.numbers = [number for number, _ in rows]
        self.samplers = [RowSampler(parameters, PROMPT) for _, parameters in rows]
        self.dtype = dtype
        self.chooser = Chooser(self.samplers)
        self.inputs = mx.array([PROMPT[-1]] * len(rows))

    def step(self, step: int) -> Any:
        logits = mx.concatenate([scores(number, step, self.dtype) for number in self.numbers])
        choice = self.chooser(logits, self.inputs)
        mx.eval(choice.tokens, choice.extras)
        self.inputs = choice.tokens
        return choice


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_any_mix_of_rows_chooses_as_each_would_alone(dtype: Any) -> None:
    everyone = list(enumerate(map(parameters_of, CERTAIN)))
    expected = {number: alone(parameters, number, dtype) for number, parameters in everyone}
    chance = random.Random(3)
    mixes = [everyone, *([row] for row in everyone), everyone[:1] * 3]
    mixes += [chance.sample(everyone, chance.randint(2, 6)) for _ in range(20)]
    for mix in mixes:
        rows = Rows(mix, dtype)
        for step in range(STEPS):
            choice = rows.step(step)
            assert not choice.failed
            assert choice.tokens.tolist() == [expected[number][step][0] for number, _ in mix]
            for place, (number, parameters) in enumerate(mix):
                check_told(choice.logprobs_of(place), parameters, *expected[number][step])


def check_told(
    told: Any, parameters: SamplingParameters, token: int, logprobs: list[float]
) -> None:
    logprob, top = told
    if not (parameters.logprobs or parameters.top_logprobs):
        assert told == (None, ())
        return
    assert logprob == pytest.approx(logprobs[token], abs=1e-5)
    likeliest = sorted(logprobs, reverse=True)[: parameters.top_logprobs]
    assert [value for _, value in top] == pytest.approx(likeliest, abs=1e-5)
    assert [logprobs[token] for token, _ in top] == pytest.approx(likeliest, abs=1e-5)


def test_all_greedy_is_one_argmax_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = scores(1, 1, mx.float32)
    chooser = Chooser([RowSampler(SamplingParameters(seed=3), PROMPT)])

    class Argmax:
        @staticmethod
        def argmax(array: Any, axis: int) -> str:
            assert array is logits
            return f"argmax over {axis}"

    monkeypatch.setattr(chooser, "_mx", Argmax)
    choice = chooser(logits, None)
    assert choice.tokens == "argmax over -1"
    assert choice.extras == []
    assert choice.logprobs_of(0) == (None, ())


@pytest.mark.parametrize("others", [{}, {"temperature": 0.8, "top_p": 0.9}])
def test_seedless_rows_share_one_call(others: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlx_lm import sample_utils

    shapes: list[Any] = []
    draw = sample_utils.categorical_sampling

    def categorical_sampling(logprobs: Any, temperature: float) -> Any:
        shapes.append(logprobs.shape)
        return draw(logprobs, temperature)

    monkeypatch.setattr(sample_utils, "categorical_sampling", categorical_sampling)
    alike = parameters_of({"temperature": 0.8})
    kinds = [alike, parameters_of(others), alike, parameters_of({"temperature": 0.8, "seed": 4})]
    rows = Rows(list(enumerate(kinds)), mx.float32)
    assert rows.step(0).tokens.shape == (4,)
    assert shapes == [(2, WORDS)] + ([(1, WORDS)] if others else [])


@pytest.mark.parametrize("number", range(len(CERTAIN)))
def test_a_row_that_is_rebuilt_goes_on_as_if_nothing_had_been(number: int) -> None:
    row = (number, parameters_of(CERTAIN[number]))
    expected = [token for token, _ in alone(row[1], number, mx.float32)]
    rows = Rows([row], mx.float32)
    for done in (0, 1, 4):
        for step in range(STEPS - 1):  # steps of which nothing is kept
            rows.step(step)
        rows.samplers[0].restart(expected[:done])
        rows.inputs = mx.array([[PROMPT[-1], *expected][done]])
        for step in range(done, STEPS):
            assert rows.step(step).tokens.tolist() == [expected[step]]


def test_many_draws_are_made_up_for() -> None:
    parameters = SamplingParameters(temperature=1.0, seed=9)
    one, other = RowSampler(parameters, PROMPT), RowSampler(parameters, PROMPT)
    for _ in range(600):
        mx.eval(one.draw(scores(0, 0, mx.float32)))
    other.restart([0] * 600)
    logprobs = scores(0, 1, mx.float32)
    assert one.draw(logprobs).item() == other.draw(logprobs).item()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"logits_processors": [broken]}, "broken"),
        ({"logits_processors": [lambda tokens, logits: logits[0]]}, r"not array of .* \(97,\)"),
        ({"logits_processors": [lambda tokens, logits: None]}, "not NoneType"),
        ({"logits_processors": [broken], "temperature": 0.7, "seed": 1}, "broken"),
        ({"logits_processors": [broken], "sampler": second_best, "logprobs": True}, "broken"),
        ({"logit_bias": {WORDS: 1.0}}, "names token 97, but the model has 97 tokens"),
        ({"sampler": broken, "logprobs": True}, "broken"),
        ({"sampler": lambda logprobs: logprobs}, r"not array of .* \(1, 97\)"),
        ({"sampler": lambda logprobs: logprobs[0, :1]}, r"not array of .*float32"),
        ({"sampler": lambda logprobs: 7}, "not int"),
    ],
)
@pytest.mark.parametrize("mix", [[], [0], [0, 1, 4], range(len(CERTAIN))])
def test_a_row_that_fails_leaves_the_others_alone(bad: Any, message: str, mix: Any) -> None:
    everyone = [(number, parameters_of(CERTAIN[number])) for number in mix]
    expected = [alone(parameters, number, mx.float32) for number, parameters in everyone]
    place = len(everyone) // 2
    everyone.insert(place, (50, parameters_of(bad)))
    rows = Rows(everyone, mx.float32)
    for step in range(3):
        choice = rows.step(step)
        assert list(choice.failed) == [place]
        with pytest.raises((RuntimeError, ValueError), match=message):
            raise choice.failed[place]
        tokens = choice.tokens.tolist()
        assert tokens.pop(place) == 0
        assert tokens == [told[step][0] for told in expected]
        assert choice.logprobs_of(place) == (None, ())


def test_a_token_beyond_the_vocabulary_is_not_handed_on() -> None:
    parameters = parameters_of({"sampler": lambda logprobs: mx.array([WORDS + 5])})
    assert Rows([(0, parameters)], mx.float32).step(0).tokens.tolist() == [WORDS - 1]
