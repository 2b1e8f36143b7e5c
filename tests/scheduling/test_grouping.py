"""Which rows share a batch: all of them once, as few batches as fit, never beyond their charge."""

from __future__ import annotations

import math
from collections import Counter

import attrs
from hypothesis import given, settings
from hypothesis import strategies as st

from wiredactors.memory.cache_cost import STEP_TOKENS, CacheCost, WindowCost, bucket_tokens
from wiredactors.scheduling.grouping import Grouping, Member

BYTES = st.integers(0, 2000)
WINDOWS = st.builds(
    WindowCost, most_tokens=st.integers(1, 1500), token_bytes=st.integers(0, 9), copy_bytes=BYTES
)
COSTS = st.builds(
    CacheCost,
    fixed_bytes=BYTES,
    step_bytes=BYTES,
    copy_bytes=BYTES,
    windows=st.lists(WINDOWS, max_size=2).map(tuple),
)
PLAIN = CacheCost(fixed_bytes=0, step_bytes=100, copy_bytes=0)
TINY = CacheCost(fixed_bytes=0, step_bytes=1, copy_bytes=0)

#: Lengths at the edges of the cache's steps, and any others.
LENGTHS = st.builds(
    lambda steps, more: max(1, steps * STEP_TOKENS + more), st.integers(0, 9), st.integers(-2, 2)
) | st.integers(1, 2500)


@st.composite
def batches_of_members(draw: st.DrawFn, least: int = 0) -> list[Member[int]]:
    lengths = draw(st.lists(st.tuples(LENGTHS, LENGTHS), min_size=least, max_size=12))
    return [
        Member(key, tokens=min(one, other), most_tokens=max(one, other))
        for key, (one, other) in enumerate(lengths)
    ]


MEMBERS = batches_of_members()
GROUPINGS = st.builds(Grouping, COSTS, st.integers(1, 8))
quick = settings(max_examples=200, deadline=None, derandomize=True, database=None)


def member(key: object, tokens: int, most_tokens: int) -> Member[object]:
    return Member(key, tokens=tokens, most_tokens=most_tokens)


def grown(members: list[Member[int]], tokens: int) -> list[Member[int]]:
    """The same rows so many tokens later, or at their ends."""
    return [
        attrs.evolve(member, tokens=min(member.tokens + tokens, member.most_tokens))
        for member in members
    ]


# -- what a batch takes


def test_a_batch_takes_its_longest_row_for_each() -> None:
    grouping = Grouping(PLAIN, most_rows=8)
    members = [member("short", 10, 300), member("long", 600, 1000)]
    assert grouping.padded_bytes(members) == 2 * 300
    assert grouping.charged_bytes(members) == 200 + 400
    assert grouping.fits(members)
    assert grouping.padded_bytes([]) == grouping.charged_bytes([]) == 0


def test_the_next_token_counts_and_no_row_outgrows_its_longest() -> None:
    grouping = Grouping(PLAIN, most_rows=8)
    assert grouping.padded_bytes([member("full", 256, 300)]) == 200
    assert grouping.padded_bytes([member("full", 256, 300)], ahead=0) == 100
    assert grouping.padded_bytes([member("at its end", 256, 256)], ahead=1000) == 100
    padded = [member("full", 256, 512), member("short", 10, 20)]
    assert grouping.fits(padded, ahead=0)
    assert not grouping.fits(padded)


@quick
@given(cost=COSTS, members=batches_of_members(least=1), ahead=st.integers(0, 600))
def test_a_row_alone_always_fits(cost: CacheCost, members: list[Member[int]], ahead: int) -> None:
    grouping = Grouping(cost, most_rows=1)
    assert all(grouping.fits([member], ahead) for member in members)


def test_a_batch_has_no_more_rows_than_the_model_takes() -> None:
    grouping = Grouping(PLAIN, most_rows=2)
    members = [member(key, 10, 20) for key in range(5)]
    assert not grouping.fits(members[:3])
    assert grouping.joins(members[:1], members[1:2])
    assert not grouping.joins(members[:1], members[1:3])
    assert [len(group) for group in grouping.split(members)] == [2, 2, 1]


# -- splitting


@quick
@given(grouping=GROUPINGS, members=MEMBERS)
def test_every_row_is_in_one_batch_and_each_batch_stays_inside_its_charge(
    grouping: Grouping, members: list[Member[int]]
) -> None:
    groups = grouping.split(members)
    assert Counter(member for group in groups for member in group) == Counter(members)
    for group in groups:
        assert grouping.fits(group)
        assert grouping.padded_bytes(group) <= grouping.charged_bytes(group)


@quick
@given(cost=COSTS, members=MEMBERS, most_rows=st.integers(1, 8))
def test_there_are_no_more_batches_than_with_one_for_each_bucket(
    cost: CacheCost, members: list[Member[int]], most_rows: int
) -> None:
    buckets = Counter(bucket_tokens(member.most_tokens) for member in members)
    fixed = sum(math.ceil(rows / most_rows) for rows in buckets.values())
    assert len(Grouping(cost, most_rows).split(members)) <= fixed


@quick
@given(
    grouping=st.builds(Grouping, COSTS, st.just(12)),
    members=batches_of_members(least=1),
    steps=st.integers(0, 8),
)
def test_rows_of_like_length_share_one_batch(
    grouping: Grouping, members: list[Member[int]], steps: int
) -> None:
    least = steps * STEP_TOKENS
    alike = [
        attrs.evolve(
            member,
            tokens=least + member.tokens % STEP_TOKENS,
            most_tokens=least + STEP_TOKENS + member.most_tokens,
        )
        for member in members
    ]
    assert len(grouping.split(alike)) == 1


@quick
@given(grouping=GROUPINGS, members=MEMBERS, data=st.data())
def test_when_any_row_leaves_the_rest_is_split_into_batches_that_fit(
    grouping: Grouping, members: list[Member[int]], data: st.DataObject
) -> None:
    for group in grouping.split(members):
        left = data.draw(st.sampled_from(group))
        rest = grouping.split([member for member in group if member is not left])
        assert sum(map(len, rest)) == len(group) - 1
        assert all(grouping.fits(other) for other in rest)


def test_the_row_that_paid_for_the_padding_leaves_and_the_long_one_is_parted() -> None:
    grouping = Grouping(PLAIN, most_rows=8)
    rich, short, long = member("rich", 10, 2000), member("short", 10, 200), member("long", 800, 900)
    assert grouping.split([short, long, rich]) == [[long, rich, short]]
    assert grouping.split([short, long]) == [[long], [short]]


def test_one_byte_too_much_is_too_much() -> None:
    grouping = Grouping(TINY, most_rows=8)
    long, short = member("long", 300, 512), member("short", 10, 256)
    assert grouping.padded_bytes([long, short]) == grouping.charged_bytes([long, short]) + 1
    assert grouping.split([long, short]) == [[long], [short]]


# -- joining


@quick
@given(grouping=GROUPINGS, members=batches_of_members(least=2), data=st.data())
def test_what_joins_fits_and_need_not_be_split_for_one_step_of_the_cache(
    grouping: Grouping, members: list[Member[int]], data: st.DataObject
) -> None:
    cut = data.draw(st.integers(1, len(members) - 1))
    if grouping.joins(members[:cut], members[cut:]):
        for tokens in (0, data.draw(st.integers(1, STEP_TOKENS - 1)), STEP_TOKENS):
            assert grouping.fits(grown(members, tokens))


@quick
@given(grouping=GROUPINGS, members=MEMBERS)
def test_what_was_split_in_two_does_not_join_again(
    grouping: Grouping, members: list[Member[int]]
) -> None:
    groups = grouping.split(members)
    if len(groups) == 2:
        assert not grouping.joins(*groups)


def test_a_row_that_would_soon_be_parted_does_not_join() -> None:
    grouping = Grouping(PLAIN, most_rows=8)
    short = member("short", 200, 256)
    tight = [member("long", 200, 512), short]
    assert grouping.fits(tight)
    assert not grouping.joins(tight[:1], tight[1:])
    assert grouping.joins([member("long", 200, 600)], [short])  # it has enough to spare


@quick
@given(grouping=GROUPINGS, members=batches_of_members(least=2))
def test_it_does_not_matter_who_joins_whom(grouping: Grouping, members: list[Member[int]]) -> None:
    one, other = members[:1], members[1:]
    assert grouping.joins(one, other) == grouping.joins(other, one)
