"""Random histories of the ledger, against the naive rules and what must hold at every moment.

After each command the ledger must have decided what the naive model decides, and its events alone
must tell its state and its limit. What else must hold is said by itself below, so that a fault
that both share is found too.

`LEDGER_PROFILE=nightly` runs 2,000 histories of 100 steps instead of a few short ones.
"""

from __future__ import annotations

import math
import os

import attrs
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    initialize,
    invariant,
    precondition,
    rule,
)

from tests.memory.machine_support import (
    BY_LABEL,
    CEILING,
    POLICIES,
    AtMostThree,
    Host,
)
from wiredactors.memory import messages as m
from wiredactors.memory.configuration import WiredMemoryConfiguration
from wiredactors.memory.events import Snapshot, WiredMemoryEvent
from wiredactors.memory.outside import MemoryReading
from wiredactors.memory.share import Share
from wiredactors.memory.tickets import WiredMemoryTicket

SIZES = st.sampled_from([0, 5, 10, 20, 30, 40, 50, 60, 90, 110])
TICKETS = [f"t{n}" for n in range(9)]


class LedgerMachine(Host):
    @initialize(
        supported=st.sampled_from([True, True, True, False]),
        ceiling=st.sampled_from([CEILING, CEILING, CEILING, None]),
        override=st.sampled_from([None, None, None, 12]),
        device=st.sampled_from([0, 10, 10, CEILING, None]),
        overtake_count=st.sampled_from([0, 1, 3]),
        overtake_seconds=st.sampled_from([20.0, 20.0, 1e6, 0.0]),
        aging_seconds=st.sampled_from([5.0, 60.0]),
        max_waiters=st.sampled_from([None, None, 2]),
        mode=st.sampled_from(["policy", "policy", "policy", "off", "fit"]),
        switches_per_minute=st.sampled_from([1, 2, 10, 60]),
        turn_seconds=st.sampled_from([0.0, 5.0, 30.0]),
    )
    def open(self, supported, ceiling, override, device, mode, **configuration):
        configured = WiredMemoryConfiguration(
            baseline_override=override, wired_mode=mode, **configuration
        )
        self.open_ledger(configured, ceiling=ceiling, supported=supported, device=device)
        self.held: dict[str, int] = {}
        self.seen: tuple[tuple[int, bool], Snapshot] | None = None
        self.had_models = False
        self.switched: list[float] = []  # when models were asked

    # -- rules

    @rule(data=st.data(), policy=st.sampled_from(POLICIES[:3]), count=st.integers(2, 5))
    def start_several(self, data, policy, count):
        """Work of one kind, some of which will have to wait."""
        for ticket in self.idle()[:count]:
            size = data.draw(st.sampled_from([10, 15, 20, 30, 45, 60]))
            self.start(ticket, size, policy)

    @rule(
        data=st.data(),
        size=SIZES,
        policy=st.sampled_from(POLICIES),
        kind=st.sampled_from(["active", "active", "reservation"]),
        priority=st.integers(0, 2),
        pinned=st.booleans(),
    )
    def start_one(self, data, size, policy, kind, priority, pinned):
        live = [*self.state.tickets, *self.state.waiters]
        live = [ticket for ticket in live if ticket.kind == "reservation"]
        required = data.draw(st.sampled_from([None, *live])) if live else None
        for ticket in self.idle()[:1]:
            self.start(
                ticket,
                size,
                policy,
                kind=kind,
                priority=priority,
                pinned=pinned and kind == "reservation" and size < 40,
                requires=() if required is None else (required.ticket_id,),
            )

    @rule(size=st.sampled_from([75, 85, 95]), policy=st.sampled_from(POLICIES[:3]))
    def start_a_large_one(self, size, policy):
        for ticket in self.idle()[:1]:
            self.start(ticket, size, policy)

    @rule(
        size=st.sampled_from([5, 10, 25]),
        policy=st.sampled_from(POLICIES[:3]),
        priority=st.sampled_from([0, 2]),
        pinned=st.booleans(),
    )
    def reserve(self, size, policy, priority, pinned):
        for ticket in self.idle()[:1]:
            self.start(ticket, size, policy, kind="reservation", priority=priority, pinned=pinned)

    @rule(
        sizes=st.lists(st.sampled_from([0, 5, 10, 20, 35]), min_size=1, max_size=3),
        policy=st.sampled_from(POLICIES),
    )
    def keep_caches(self, sizes, policy):
        """Reservations that yield when they are asked to, each used later than the one before."""
        for ticket, size in zip(self.idle(), sizes, strict=False):
            self.start(ticket, size, policy, kind="reservation", reclaimable=True)
            self.advance(0.1)

    @rule(
        data=st.data(),
        sizes=st.lists(st.sampled_from([0, 10, 20, 35]), min_size=1, max_size=3),
        policy=st.sampled_from(POLICIES[:3]),
        pinned=st.sampled_from([False, False, False, True]),
        in_use=st.sampled_from([True, False, False, None]),
        priority=st.sampled_from([0, 0, 2]),
    )
    def load_models(self, data, sizes, policy, pinned, in_use, priority):
        """Reservations that yield in their turn; some want of another that is there."""
        for ticket, size in zip(self.idle(), sizes, strict=False):
            self.start(
                ticket,
                size,
                policy,
                kind="reservation",
                evictable=True,
                pinned=pinned and size < 30,
                priority=priority,
                share=self.some_share(data),
            )
            if in_use is not None:
                self.send(m.Use(ticket, in_use))
            self.advance(0.1)

    @rule(
        sizes=st.sampled_from([(60, 50, 60), (60, 60, 30), (35, 80, 40)]),
        work=st.sampled_from([10, 40]),
        idle=st.booleans(),
        yields=st.booleans(),
        serves=st.booleans(),
    )
    def a_model_that_waits_for_another_and_work_on_it(self, sizes, work, idle, yields, serves):
        """The second waits for the first; then a third comes, and work on the second."""
        names = self.idle()[:5]
        if len(names) < 5:
            return
        for name, size in zip(names, sizes, strict=False):
            self.start(name, size, POLICIES[0], kind="reservation", evictable=True)
            self.send(m.Use(name, not idle))
            self.advance(5.0)
        if yields:
            self.send(m.End(names[0]))
        if serves:
            self.send(m.Use(names[1], True))
        for job in names[3:]:
            self.start(job, work, POLICIES[0], requires=(names[1],))

    def some_share(self, data) -> Share | None:
        live = [*self.state.tickets, *self.state.waiters]
        plain = [t for t in live if t.kind == "reservation"]
        plain = [t.ticket_id for t in plain if not (t.reclaimable or t.evictable)]
        shared = data.draw(st.sampled_from([None, *plain])) if plain else None
        if shared is None:
            return None
        of = WiredMemoryTicket(0, POLICIES[0], "reservation", id=shared)
        size, margin = data.draw(st.sampled_from([(0, 0), (5, 5), (15, 0), (25, 5)]))
        return Share(of, size, margin)

    @rule(data=st.data(), in_use=st.booleans())
    def use_a_model(self, data, in_use):
        models = [ticket.ticket_id for ticket in self.state.tickets if ticket.evictable]
        for ticket in self.some_of(data, models):
            self.send(m.Use(ticket, in_use))

    @rule(data=st.data(), pinned=st.booleans())
    def pin(self, data, pinned):
        tickets = [*self.state.tickets, *self.state.waiters]
        small = [t.ticket_id for t in tickets if t.kind == "reservation" and t.size < 40]
        for ticket in self.some_of(data, small):
            self.send(m.Pin(ticket, pinned))

    @rule(data=st.data())
    def use_a_ticket(self, data):
        for ticket in self.some_of(data, self.live()):
            self.send(m.Use(ticket))

    @rule(data=st.data(), left=st.sampled_from([None, None, 0, 5]))
    def one_that_was_asked_yields(self, data, left):
        asked = [ticket.ticket_id for ticket in self.state.tickets if ticket.asked]
        for ticket in self.some_of(data, asked):
            self.send(m.End(ticket) if left is None else m.Resize(ticket, left, self.request()))

    @rule(data=st.data(), priority=st.sampled_from([0, 1, 2]))
    def a_model_that_was_asked_goes_and_comes_again(self, data, priority):
        asked = [ticket for ticket in self.state.tickets if ticket.asked and ticket.evictable]
        for ticket in self.some_of(data, asked):
            self.send(m.End(ticket.ticket_id))
            self.start(
                ticket.ticket_id,
                ticket.size,
                BY_LABEL[ticket.policy],
                kind="reservation",
                evictable=True,
                priority=priority,
            )

    @rule(
        available=st.sampled_from([0, 30, 60, 90, 500]),
        footprint=st.sampled_from([0, 20, 100]),
        known=st.sampled_from([True, True, True, False]),
    )
    def the_machine_is_looked_at(self, available, footprint, known):
        reading = MemoryReading(500, available, footprint) if known else None
        self.send(m.Observe(reading, None if known else "OSError: no"))

    @rule(data=st.data(), exclusive=st.booleans())
    def start_again(self, data, exclusive):
        for ticket in self.some_of(data, self.live()):
            self.start(ticket, 10, POLICIES[0], exclusive=exclusive)

    def start(self, ticket_id, size, policy, kind="active", requires=(), exclusive=False, **more):
        request = self.request()
        ticket = WiredMemoryTicket(size, policy, kind, id=ticket_id, **more)
        ticket.requires = requires
        request.command = m.Start(ticket, request, exclusive)
        self.send(request.command)

    @rule(data=st.data(), waits=st.booleans())
    def end(self, data, waits):
        for ticket in self.some_of(data, self.live()):
            self.send(m.End(ticket, self.request() if waits else None))
            assert ticket not in self.live()

    @rule(ends=st.booleans())
    def the_first_waiter_gives_up(self, ends):
        for waiter in list(self.ledger._queue)[:1]:
            if ends:
                self.send(m.End(waiter.ticket_id))
            else:
                waiter.reply.cancelled = True
                self.send(m.CancelStart(waiter.ticket_id, waiter.reply))

    @rule(ticket=st.sampled_from(TICKETS))
    def end_anyone(self, ticket):
        self.send(m.End(ticket, self.request()))

    @rule(data=st.data())
    def cancel_a_start(self, data):
        """Waiting, granted, or answered just before its task could say that it was cancelled."""
        for ticket in self.some_of(data, self.live()):
            for request in reversed(self.requests):
                command = request.command
                if isinstance(command, m.Start) and command.ticket_id == ticket:
                    if not request.cancelled and not request.refusals:
                        admitted_it = self.admitting(ticket) is request
                        request.cancelled = True
                        self.send(m.CancelStart(ticket, request))
                        assert (ticket in self.live()) != admitted_it
                    break

    def admitting(self, ticket):
        """The start that a live ticket waits in or was admitted by: the first not ignored."""
        ledger = self.ledger
        waiter = ledger._queue.by_id.get(ticket)
        return waiter.reply if waiter else ledger._book.holdings[ticket].reply

    @rule(data=st.data(), size=st.sampled_from([0, 10, 20, 30, 45, 60, 80, 100, 120]))
    def resize(self, data, size):
        for ticket in self.some_of(data, self.live()):
            request = self.request()
            request.command = m.Resize(ticket, size, request)
            self.send(request.command)

    @rule(by=st.sampled_from([15, 40]))
    def everyone_asks_for_more(self, by):
        for ticket in self.state.tickets:
            request = self.request()
            request.command = m.Resize(ticket.ticket_id, ticket.size + by, request)
            self.send(request.command)

    @rule(data=st.data())
    def cancel_a_resize(self, data):
        resizes = [
            request
            for request in self.requests
            if isinstance(request.command, m.Resize) and not request.done and not request.cancelled
        ]
        for request in self.some_of(data, resizes):
            request.cancelled = True
            self.send(m.CancelResize(request.command.ticket_id, request))

    def live(self):
        return [ticket.ticket_id for ticket in [*self.state.tickets, *self.state.waiters]]

    def idle(self):
        live = self.live()
        return [ticket for ticket in TICKETS if ticket not in live]

    def some_of(self, data, those):
        return [data.draw(st.sampled_from(those))] if those else []

    @rule(seconds=st.sampled_from([0.1, 0.5, 1.0, 5.0, 30.0, 70.0]))
    def advance(self, seconds):
        self.settle()
        until = self.now + seconds
        while (deadline := self.ledger.deadline) is not None and deadline <= until:
            assert deadline > self.now
            self.now = deadline
            self.settle()
        self.now = until

    @rule(count=st.integers(1, 4))
    def settle_later(self, count):
        """What comes next is one turn."""
        self.unsettled = count

    @rule(refusing=st.booleans(), deferring=st.booleans())
    def backend_changes(self, refusing, deferring):
        self.refusing, self.deferring = refusing, deferring

    @precondition(lambda self: self.under_way is not None)
    @rule()
    def outcome(self):
        limit, self.under_way = self.under_way, None
        self.send(self.outcome_of(limit))

    @rule(
        ceiling=st.sampled_from([80, 100, 130]),
        override=st.sampled_from(["as it was", "as it was", None, 12]),
        shrink_cooldown=st.sampled_from([0.0, 1.0, 3.0]),
        overtake_count=st.sampled_from([0, 1, 3, 100]),
        overtake_seconds=st.sampled_from([0.0, 20.0, 1e6]),
        aging_seconds=st.sampled_from([5.0, 60.0]),
    )
    def configure(self, ceiling, override, **changes):
        request = self.request()
        ceiling = None if self.ceiling is None else ceiling
        if override != "as it was":
            changes["baseline_override"] = override
        changed = attrs.evolve(self.configuration, **changes)
        self.send(m.Configure(changed, ceiling, request))
        if not request.refusals:
            self.ceiling, self.configuration = ceiling, changed

    @rule()
    def foreign_write(self):
        self.send(m.ForeignWrite(77))

    # -- what must hold

    @property
    def state(self) -> Snapshot:
        now = (self.ledger.sequence, self.settled)
        if self.seen is None or self.seen[0] != now:
            self.seen = now, self.ledger.snapshot()
        return self.seen[1]

    def sizes_by_group(self) -> dict[str, list[int]]:
        sizes: dict[str, list[int]] = {}
        for ticket in self.state.tickets:
            sizes.setdefault(ticket.policy, []).append(ticket.size)
        return sizes

    @invariant()
    def every_request_is_answered_at_most_once(self):
        for request in self.requests:
            assert request.answers + len(request.refusals) <= 1

    @invariant()
    def the_events_tell_the_whole_state(self):
        state = self.state
        replica = self.replica
        assert state.sequence == replica.sequence
        assert replica.running == list(state.tickets)
        assert replica.waiting == {w.ticket_id: w for w in state.waiters}
        assert replica.current_limit == state.current_limit
        assert replica.baseline == state.baseline
        assert replica.ceiling == state.ceiling == self.ceiling
        assert replica.excess == state.excess_bytes

    def after_command(self):
        """Nobody holds more than a cap or the ceiling allows."""
        # A baseline that is learned late, or a ceiling that was lowered over living reservations,
        # may leave too little for what lives: then that only shrinks.
        state, before = self.state, self.held
        self.held = {}
        for label, sizes in self.sizes_by_group().items():
            policy = BY_LABEL[label]
            held = self.held[label] = policy.base_bytes + sum(sizes)
            if policy.cap is not None:
                assert held <= max(policy.cap - state.baseline, before.get(label, 0))
            if isinstance(policy, AtMostThree):
                assert len(sizes) <= 3
        total = sum(self.held.values())
        ceiling = self.twin.naive.ceiling  # the one that the last command brought
        assert total <= max(ceiling - state.baseline, before.get("all", 0))
        self.held["all"] = total

    @invariant()
    def the_wanted_limit_is_what_the_live_tickets_ask_for(self):
        if self.settled:
            assert self.state.desired_limit == self.replica.limit()
            assert not self.state.tickets or self.twin.naive.limit() == self.replica.limit()

    @invariant()
    def the_limit_covers_the_work_unless_it_was_refused(self):
        if not self.settled or self.refusing or self.under_way is not None:
            return
        state = self.state
        if self.supported and self.configuration.wired_mode == "off":
            assert state.current_limit is None
            return
        if self.ledger._settlement._limit._refusal is not None:
            return
        if any(ticket.kind == "active" for ticket in state.tickets):
            assert state.current_limit >= state.desired_limit
        elif state.current_limit is not None:
            assert state.current_limit == state.baseline

    @invariant()
    def nobody_is_passed_too_often(self):
        models = self.ledger._book.reservations.evictable
        self.had_models = self.had_models or bool(models)
        for waiter in self.ledger._queue:  # while one needs models in use, others may go before
            assert self.had_models or waiter.passed <= self.configuration.overtake_count

    @invariant()
    def nobody_waits_for_nothing(self):
        """An empty ledger has no waiters, and one active ticket at least can always end, or one
        model come to serve."""
        state = self.state
        if not state.tickets and not state.excess_bytes:
            assert state.waiters == ()
        naive = self.twin.naive
        busy = [ticket for ticket in naive._live if ticket.kind == "active" or ticket.loading]
        growing = [ticket for ticket in busy if ticket.id in dict(naive.growing)]
        if self.settled and busy and len(growing) == len(busy):
            asked = any(ticket.asked for ticket in state.tickets)
            about_to_shrink = bool(naive._due)
            if not (asked or about_to_shrink or self.must_wait_to_switch()):
                # Models in use have their turns, and others of the machine go.
                assert all(ticket.kind != "active" for ticket in busy)
                assert any(naive._may_yet_grow(ticket) for ticket in growing)

    def before_event(self, event: WiredMemoryEvent) -> None:
        """Those who are asked to yield make the room, the least recently used first."""
        if event.kind != "pressure" or not event.details["asked"]:
            return
        naive, tickets = self.twin.naive, self.replica.tickets
        asked = event.details["asked"]
        assert not naive.goes_with_its_model(event.ticket_id), "its own model goes"
        assert all(naive.turn_ends_at(id) < math.inf for id in asked if tickets[id]["evictable"])
        models = [id for id in asked if tickets[id]["evictable"]]
        if models:
            assert not self.must_wait_to_switch()
            self.switched.append(self.now)
        if any(tickets[id]["in_use"] for id in models):
            self.look_at_drain(event.ticket_id, asked)
            return
        first = self.is_first(event.ticket_id)
        may_yield = naive.may_yield_to(event.ticket_id, first=first)
        assert set(asked) <= set(may_yield) <= set(tickets)
        gone = self.going() | set(asked)
        caches = {id for id in may_yield if tickets[id]["reclaimable"]}
        if models and first:
            assert not naive.fits_without(event.ticket_id, caches), "caches would do"
        kept = naive.keeps_room(event.ticket_id, self.now)
        in_vain = not naive.fits_without(event.ticket_id, gone)
        # Where room in its group is kept for it, that is what it is asked for.
        if in_vain and kept:
            in_vain = not naive.fits_without(event.ticket_id, gone, in_group_only=True)
        assert not in_vain, "they were asked in vain"
        for id in asked:
            assert not tickets[id]["asked"], "it was asked already"
            # One whose own growth has been planned for is not asked for it.
            for other in set(may_yield) - gone - set(dict(naive.growing)):
                same_kind = tickets[other]["evictable"] == tickets[id]["evictable"]
                same_group = tickets[other]["policy"] == tickets[id]["policy"]
                if same_kind and same_group and tickets[other]["shares"] is None:
                    assert tickets[other]["used_at"] >= tickets[id]["used_at"]

    def look_at_drain(self, ticket_id: str, asked: list[str]) -> None:
        """Models in use are asked only where nothing else would do, and in their turn."""
        naive, tickets = self.twin.naive, self.replica.tickets
        assert set(asked) <= set(naive.busy_models(ticket_id))
        assert not any(tickets[id]["asked"] for id in asked)
        models = {id for id, ticket in tickets.items() if ticket["asked"] and ticket["evictable"]}
        models |= set(naive.idle_models(ticket_id))
        assert naive.fits_after_work(ticket_id, models | set(asked)), "they were asked in vain"
        if self.is_first(ticket_id):
            models -= set(naive.waited(ticket_id).requires)
            assert not naive.fits_after_work(ticket_id, models), "idle ones would do"
            policies = {tickets[id]["policy"] for id in asked}
            for id in models:  # of what is of use to it, none is on its way
                draining = tickets[id]["in_use"] and tickets[id]["asked"]
                assert not (draining and tickets[id]["size"] and tickets[id]["policy"] in policies)
        turns = [self.turn_of(id, ticket_id) for id in asked]
        assert max(turns) <= self.now or all(naive.is_stalled(id, ticket_id) for id in asked)

    def turn_of(self, model: str, ticket_id: str) -> float:
        """When it is asked to finish for one that waits."""
        turn = self.configuration.turn_seconds
        return max(self.waits_since(ticket_id) + turn, self.twin.naive.turn_ends_at(model))

    def waits_since(self, ticket_id: str) -> float:
        growers, queue = self.ledger._growers, self.ledger._queue
        return (growers.by_id.get(ticket_id) or queue.by_id[ticket_id]).since

    def going(self) -> set[str]:
        """Those that were asked and go soon: not those that are in use."""
        tickets = self.replica.tickets.items()
        return {id for id, ticket in tickets if ticket["asked"] and not ticket["in_use"]}

    def must_wait_to_switch(self) -> bool:
        distance = 60.0 / self.configuration.switches_per_minute
        return any(self.now < at + distance for at in self.switched)

    def is_first(self, ticket_id: str) -> bool:
        naive = self.twin.naive
        return [*dict(naive.growing), *naive.waiting][0] == ticket_id

    @invariant()
    def the_first_that_waits_is_yielded_to(self):
        naive = self.twin.naive
        if not self.settled or not naive.waiting or naive.growing:
            return
        first = naive.waiting[0]
        if naive.goes_with_its_model(first):
            return
        may_yield = naive.may_yield_to(first)
        limited = self.must_wait_to_switch()
        if limited:
            models = {ticket.ticket_id for ticket in self.state.tickets if ticket.evictable}
            may_yield = [id for id in may_yield if id not in models]
        if naive.fits_without(first, may_yield):
            assert naive.fits_without(first, self.going()), "nobody was asked"
        elif not limited:
            self.the_first_has_its_turn(first)

    def the_first_has_its_turn(self, first: str) -> None:
        """If models in use must go, one of them is asked."""
        naive = self.twin.naive
        idle, busy = naive.idle_models(first), naive.busy_models(first)
        if naive.fits_after_work(first, idle) or not naive.fits_after_work(first, idle + busy):
            return
        its_turn = all(self.turn_of(id, first) <= self.now for id in busy)
        stalled = [id for id in busy if naive.is_stalled(id, first)]
        asked = {ticket.ticket_id for ticket in self.state.tickets if ticket.asked}
        if its_turn or naive.fits_after_work(first, idle + stalled):
            assert asked & set(busy), "nobody was asked to finish"
        else:
            assert asked & set(busy) or self.ledger.deadline is not None, "nobody looks again"

    @invariant()
    def none_comes_back_before_those_it_went_for(self):
        for ticket in self.twin.naive.waiting:
            assert not self.twin.naive.came_back_before(ticket)

    @invariant()
    def the_baseline_is_what_was_there_before(self):
        if self.learned is not None and self.state.tickets:  # else it is captured with the next
            override = self.configuration.baseline_override
            assert self.state.baseline == (self.learned if override is None else override)

    @invariant()
    def nobody_waits_who_can_never_come_in(self):
        book, state, naive = self.ledger._book, self.state, self.twin.naive
        for waiter in [*self.ledger._queue, *self.ledger._growers]:
            assert not naive._is_impossible(naive.waited(waiter.ticket_id))
            if naive._shared & set(book.holdings):  # what is left of these is another matter
                continue
            stays = [
                holding
                for holding in book.holdings.values()
                if holding is not waiter.holding
                and (holding.pinned or holding.ticket_id in waiter.holding.requires)
            ]
            group = waiter.holding.group
            policy = group.policy
            held = [holding.size for holding in stays if holding.group is group]
            assert policy.can_admit(state.baseline, held, waiter.wants)
            bases = sum(g.policy.base_bytes for g in {group, *(h.group for h in stays)})
            total = state.baseline + sum(h.size for h in stays) + bases + waiter.wants
            assert self.ceiling is None or total <= self.ceiling

    @invariant()
    def the_explanation_of_a_waiter_names_what_blocks_it(self):
        for ticket in self.state.waiters:
            explanation = self.ledger.explain(ticket.ticket_id, self.now)
            assert explanation.state == "waiting"
            blocked_by = self.twin.naive.blocked_by(ticket.ticket_id, self.now)
            assert explanation.blocked_by == blocked_by

    def teardown(self):
        if not hasattr(self, "ledger"):
            return
        self.deferring = self.refusing = False
        if self.under_way is not None:
            self.outcome()
        self.settle()
        self.advance(100.0)  # over every back-off
        for ticket in [*self.state.waiters, *self.state.tickets]:
            self.send(m.End(ticket.ticket_id))
        self.settle()
        state = self.state
        assert state.tickets == state.waiters == ()
        assert state.current_limit in (None, state.baseline)
        for request in self.requests:
            assert request.done or request.cancelled
        self.send(m.Close())
        self.settle()
        assert self.ledger.finished
        if self.supported and self.backend_limit is not None and state.current_limit is not None:
            assert self.configuration.wired_mode == "off" or self.backend_limit == state.baseline


class ClosingMachine(LedgerMachine):
    """The same, closed with everything in flight."""

    def teardown(self):
        if not hasattr(self, "ledger"):
            return
        self.refusing = False  # a restore that is refused at the very end is left
        self.send(m.Close())
        self.settle()
        while self.under_way is not None:
            self.outcome()
        assert self.ledger.finished
        state = self.state
        assert state.tickets == state.waiters == ()
        assert state.current_limit in (None, state.baseline)
        for request in self.requests:
            assert request.done or request.cancelled


_quick = settings(
    max_examples=100,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
_nightly = settings(_quick, max_examples=2000, stateful_step_count=100, derandomize=False)
_profile = _nightly if os.environ.get("LEDGER_PROFILE") == "nightly" else _quick

LedgerMachine.TestCase.settings = _profile
ClosingMachine.TestCase.settings = _profile
TestLedger = LedgerMachine.TestCase
TestClosing = ClosingMachine.TestCase
