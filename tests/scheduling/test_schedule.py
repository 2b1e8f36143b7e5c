"""Whose step is next: models share the device, and the rows and prompts of each share its time."""

from __future__ import annotations

import itertools

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wiredactors.scheduling.schedule import MOST_PASSES, Schedule, Step

LONG = 4096


@attrs.define
class Work:
    """What a model has to do, and how long it takes: the demand of a test."""

    step_seconds: float = 0.05
    chunk_seconds: float = 1.0
    weight: float = 1.0
    decodes: bool = True
    prompts: list[int] = attrs.Factory(list)
    chunk_tokens: int = 512


@attrs.frozen
class Done:
    """A step, when it began and how long it took; `tokens` of the prompt were left before it."""

    model: str
    prompt: int | None
    began: float
    seconds: float
    tokens: int


class Device:
    """Carries out what a schedule chooses, one step after the other."""

    def __init__(self, works: dict[str, Work], decode_share: float = 0.5):
        self.works = works
        self.schedule = Schedule(decode_share)
        self.time = 0.0
        self.done: list[Done] = []

    def step(self) -> Done:
        step = self.schedule.choose(self.works)
        assert step is not None
        work = self.works[step.model]
        prompt = step.prompts[0] if step.prompts else None
        if prompt is None:
            assert work.decodes
            seconds, tokens = work.step_seconds, 0
        else:
            tokens = work.prompts[prompt]
            longest = min(max(work.prompts[each] for each in step.prompts), work.chunk_tokens)
            assert len(step.prompts) == 1 or len(step.prompts) * longest <= work.chunk_tokens
            seconds = work.chunk_seconds * len(step.prompts) * longest / work.chunk_tokens
            for each in reversed(step.prompts):
                if work.prompts[each] <= work.chunk_tokens:
                    del work.prompts[each]
                else:
                    work.prompts[each] -= work.chunk_tokens
        done = Done(step.model, prompt, self.time, seconds, tokens)
        self.done.append(done)
        self.time += seconds
        self.schedule.record(step, seconds, decodes=work.decodes)
        return done

    def run(self, seconds: float) -> list[Done]:
        """What was done until so much later."""
        end, first = self.time + seconds, len(self.done)
        while self.time < end:
            self.step()
        return self.done[first:]


def seconds_of(done: list[Done], model: str) -> float:
    return sum(step.seconds for step in done if step.model == model)


def jain_index(values: list[float]) -> float:
    """1 if all are equal, 1/n if one has everything."""
    return sum(values) ** 2 / (len(values) * sum(value**2 for value in values))


SECONDS = st.sampled_from([0.001, 0.01, 0.03, 0.1, 0.35, 1.0])
WORKS = st.lists(
    st.builds(Work, step_seconds=SECONDS, weight=st.sampled_from([0.25, 0.5, 1.0, 2.0, 3.0])),
    min_size=2,
    max_size=5,
).map(lambda works: {f"m{number}": work for number, work in enumerate(works)})


def one_step(work: Work) -> float:
    """What one step counts on the clock that the models share."""
    return work.step_seconds / work.weight


# -- models


def test_nothing_to_do_means_no_step() -> None:
    assert Schedule().choose({}) is None
    assert Schedule().choose({"a": Work(decodes=False)}) is None


def test_models_alike_take_turns() -> None:
    device = Device({name: Work(step_seconds=0.25) for name in "abc"})
    assert "".join(device.step().model for _ in range(7)) == "abcabca"


def test_steps_that_take_no_time_take_turns_too() -> None:
    device = Device({name: Work(step_seconds=0) for name in "abc"})
    assert "".join(device.step().model for _ in range(7)) == "abcabca"


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(works=WORKS)
def test_models_that_never_rest_share_the_time_by_weight(works: dict[str, Work]) -> None:
    device = Device(works)
    had = dict.fromkeys(works, 0.0)
    weight = sum(work.weight for work in works.values())
    longest = max(map(one_step, works.values()))
    while device.time < 20 * longest * weight and len(device.done) < 3000:
        done = device.step()
        had[done.model] += done.seconds / works[done.model].weight
        for one, other in itertools.combinations(works, 2):
            allowed = one_step(works[one]) + one_step(works[other])
            assert abs(had[one] - had[other]) <= allowed + 1e-9
    if device.time >= 20 * longest * weight:
        assert jain_index(list(had.values())) >= 0.95


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(works=WORKS, data=st.data())
def test_whoever_has_work_gets_its_share_and_waits_no_longer_than_that_takes(
    works: dict[str, Work], data: st.DataObject
) -> None:
    device = Device(works)
    had = dict.fromkeys(works, 0.0)
    both = {pair: dict(had) for pair in itertools.combinations(works, 2)}
    last = dict.fromkeys(works, 0.0)  # since when it has waited
    for _ in range(data.draw(st.integers(1, 12))):
        for work in works.values():
            work.decodes = data.draw(st.booleans())
        busy = [name for name, work in works.items() if work.decodes]
        for name in works.keys() - set(busy):
            last[name] = device.time
            for pair, before in both.items():  # counted from when both have work
                if name in pair:
                    before.update(had)
        for _ in range(data.draw(st.integers(1, 30)) if busy else 0):
            done = device.step()
            had[done.model] += done.seconds / works[done.model].weight
            last[done.model] = device.time
            for (one, other), before in both.items():
                if one in busy and other in busy:
                    difference = (had[one] - before[one]) - (had[other] - before[other])
                    allowed = one_step(works[one]) + one_step(works[other])
                    assert abs(difference) <= allowed + 1e-9
                else:
                    before.update(had)
            for name in busy:
                others = [work for key, work in works.items() if key != name]
                bound = sum(
                    work.step_seconds + 2 * work.weight * max(map(one_step, works.values()))
                    for work in others
                )
                assert device.time - last[name] <= bound + 1e-9
            for name in works.keys() - set(busy):
                last[name] = device.time


def test_one_that_was_alone_for_long_owes_nothing_for_it() -> None:
    works = {"busy": Work(step_seconds=0.5), "new": Work(step_seconds=0.1, decodes=False)}
    device = Device(works)
    device.run(1000)
    works["new"].decodes = True
    done = device.run(20)
    assert seconds_of(done, "busy") == pytest.approx(10, abs=0.6)


def test_one_that_rested_has_saved_nothing_up() -> None:
    works = {name: Work(step_seconds=0.1) for name in ("busy", "resting")}
    device = Device(works)
    device.run(10)
    works["resting"].decodes = False
    device.run(1000)
    works["resting"].decodes = True
    assert seconds_of(device.run(20), "busy") == pytest.approx(10, abs=0.2)


def test_one_that_comes_back_owes_what_it_took() -> None:
    works = {"long": Work(step_seconds=10), "short": Work(step_seconds=0.1)}
    device = Device(works)
    assert device.step().model == "long"
    works["long"].decodes = False
    device.run(2)
    works["long"].decodes = True
    done = device.run(15)
    assert next(step.began for step in done if step.model == "long") == pytest.approx(20, abs=0.2)


def test_a_model_that_has_gone_is_forgotten() -> None:
    works = {"a": Work(step_seconds=100), "b": Work()}
    device = Device(works)
    assert device.step().model == "a"
    del works["a"]
    device.step()
    works["a"] = Work(step_seconds=100)
    assert [device.step().model for _ in range(2)] == ["a", "b"]


def test_chunks_of_prompts_count_as_much_as_steps() -> None:
    reads = Work(decodes=False, chunk_seconds=0.7, prompts=[10**6])
    device = Device({"reads": reads, "answers": Work(step_seconds=0.03)})
    done = device.run(70)
    assert seconds_of(done, "reads") == pytest.approx(35, abs=0.8)


# -- prompts and answers of one model


def test_one_prompt_after_another_is_read_at_once_when_nobody_waits_for_a_token() -> None:
    device = Device({"m": Work(decodes=False, prompts=[1200, 600])})
    assert [device.step().tokens for _ in range(5)] == [1200, 688, 176, 600, 88]
    assert device.schedule.choose(device.works) is None


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(
    share=st.sampled_from([0.0, 0.1, 0.5, 0.75, 0.9]),
    step_seconds=st.floats(0.001, 1),
    chunk_seconds=st.floats(0.001, 1),
    before=st.integers(0, 3),
)
def test_rows_keep_their_share_while_a_long_prompt_is_read_and_no_more_than_they_need(
    share: float, step_seconds: float, chunk_seconds: float, before: int
) -> None:
    work = Work(step_seconds=step_seconds, chunk_seconds=chunk_seconds)
    device = Device({"m": work}, share)
    for _ in range(before):
        device.step()
    work.prompts.append(LONG)
    had = read = 0.0
    per_second = share / (1 - share)
    while work.prompts:
        done = device.step()
        if done.prompt is None:
            had += done.seconds
        else:
            read += done.seconds
        # A chunk is paid for after it was read, the last two together; a step before may count.
        unpaid = chunk_seconds * (1 if work.prompts else 2)
        assert had >= (read - unpaid) * per_second - min(before, 1) * step_seconds - 1e-9
        assert had <= read * per_second + step_seconds + 1e-9


@pytest.mark.parametrize("ratio", [0.05, 0.3, 1, 3, 20, 300])
def test_with_half_the_time_rows_keep_half_their_token_rate(ratio: float) -> None:
    work = Work(step_seconds=0.1, chunk_seconds=0.1 * ratio, prompts=[LONG])
    device = Device({"m": work})
    while work.prompts:
        device.step()
    work.prompts.append(LONG)  # it is begun when the one before is paid for
    while (done := device.step()).prompt is None:
        pass
    steps = sum(step.prompt is None for step in device.done)
    assert steps / done.began >= 0.5 / work.step_seconds - 1e-9


def test_with_no_share_prompts_go_first() -> None:
    work = Work(prompts=[LONG, 100])
    device = Device({"m": work}, decode_share=0)
    while work.prompts:
        assert device.step().prompt is not None
    assert device.step().prompt is None


@pytest.mark.parametrize("share", [-0.1, 1, 2, float("nan")])
def test_a_share_that_leaves_prompts_nothing_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="decode_share"):
        Schedule(share)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(
    share=st.sampled_from([0.0, 0.1, 0.5, 0.9]),
    step_seconds=st.sampled_from([0.01, 0.05, 0.3, 2.0]),
    steps_before=st.integers(0, 60),
    short=st.integers(1, 512),
)
def test_a_short_prompt_waits_for_about_a_chunk_of_a_long_one(
    share: float, step_seconds: float, steps_before: int, short: int
) -> None:
    work = Work(step_seconds=step_seconds, prompts=[20 * LONG])
    device = Device({"m": work}, share)
    for _ in range(steps_before):
        device.step()
    arrived = device.time  # just after the next choice
    device.step()
    work.prompts.append(short)
    while (done := device.step()).tokens != short:
        pass
    assert done.began - arrived <= work.chunk_seconds + work.step_seconds + 1e-9


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(
    share=st.sampled_from([0.1, 0.5, 0.9]),
    step_seconds=st.sampled_from([0.01, 0.05, 0.3, 2.0]),
    shorts=st.lists(st.integers(1, 512), min_size=1, max_size=5),
)
def test_a_flood_of_short_prompts_starves_neither_rows_nor_a_long_prompt(
    share: float, step_seconds: float, shorts: list[int]
) -> None:
    work = Work(step_seconds=step_seconds, prompts=[20 * LONG, *shorts])
    device = Device({"m": work}, share)
    had = owed = 0.0
    passed = chunks = 0
    more = itertools.cycle(shorts)
    while chunks < 20:
        waiting = len(work.prompts)
        done = device.step()
        if done.prompt is None:
            had += done.seconds
        else:
            # What a burst takes is owed about once, and a long prompt's chunks in full.
            owed += done.seconds * share / (1 - share) / (waiting - 1 if done.prompt else 1)
            passed = passed + 1 if done.prompt else 0
            chunks += not done.prompt
            work.prompts.extend(next(more) for _ in range(waiting - len(work.prompts)))
        assert passed <= MOST_PASSES
        # at most a chunk of the long one and a short one have not been paid for
        assert had >= owed - 2 * work.chunk_seconds * share / (1 - share) - 1e-9
        assert had <= owed + step_seconds + 1e-9


def test_short_prompts_share_a_chunk_as_far_as_their_rectangle_fits() -> None:
    device = Device({"m": Work(decodes=False, prompts=[100, 200, 512, LONG, 1, 0, 50])})
    steps = []
    while device.works["m"].prompts:
        step = device.schedule.choose(device.works)
        assert step is not None
        steps.append([device.works["m"].prompts[number] for number in step.prompts])
        device.step()
    assert steps[:3] == [[100, 200], [512], [1, 0, 50]]
    assert steps[3:] == [[tokens] for tokens in range(LONG, 0, -512)]


def test_a_burst_of_short_prompts_is_read_before_its_time_is_paid_back() -> None:
    work = Work(step_seconds=0.05, prompts=[500] * 8)
    device = Device({"m": work})
    while work.prompts:
        device.step()
    read = 8 * work.chunk_seconds * 500 / 512
    assert device.time < read * 1.5  # the harmonic sum of 1/8 to 1, and not twice as long


def test_a_long_prompt_is_passed_by_so_many_short_ones_and_no_more() -> None:
    device = Device({"m": Work(decodes=False, prompts=[LONG, *[500] * 10])})
    prompts = [device.step().prompt for _ in range(2 * MOST_PASSES + 2)]
    assert prompts == [*[1] * MOST_PASSES, 0] * 2


def test_long_prompts_are_read_in_the_order_of_arrival() -> None:
    device = Device({"m": Work(decodes=False, prompts=[LONG, LONG, 10])})
    assert device.step().prompt == 2
    assert {device.step().prompt for _ in range(LONG // 512)} == {0}
    assert device.works["m"].prompts == [LONG]


def test_what_is_owed_for_prompts_is_forgotten_with_the_rows() -> None:
    work = Work(prompts=[LONG])
    device = Device({"m": work})
    device.step()
    work.decodes = False
    device.step()
    work.decodes = True
    assert device.step().prompt is not None
    assert device.step().prompt is None


def test_a_step_is_told_as_a_value() -> None:
    assert Schedule().choose({"m": Work()}) == Step("m", ())
    assert Schedule().choose({"m": Work(prompts=[5])}) == Step("m", (0,))
