"""The scheduler on a clock that is made up: the order, the bounds, what a failing network does, and 100,000 units."""

import heapq
import random
from collections import Counter

import psutil
import pytest

from analyzer.survey.schedule import FIRST_PAUSE_S, TRIES, Schedule
from analyzer.survey.units import BUG, BUSY, DONE, FAILED, GONE, NETWORK, STOPPED, Failure, Outcome, Unit


def unit(number, needs=0):
    return Unit("scan", "a job", f"owner/model-{number:06}", f"owner/model-{number:06}", needs=needs)


def done(each):
    return Outcome(each.key, DONE)


def failed(each, kind):
    return Outcome(each.key, FAILED, Failure(kind, "it failed"))


def taken(schedule, now):
    found = []
    while each := schedule.take(now):
        found.append(each)
    return found


def test_the_smallest_comes_first_and_bytes_bound_what_runs():
    sizes = [50, 10, 40, 30, 500]
    schedule = Schedule([unit(n, size) for n, size in enumerate(sizes)], slots=10, most_bytes=100)
    first = taken(schedule, 0)
    assert [each.needs for each in first] == [10, 30, 40]  # 50 more would be too much
    assert schedule.wait_s(0) is None
    schedule.end(done(first[1]), 1)
    assert [each.needs for each in taken(schedule, 1)] == [50]
    for each in (first[0], first[2]):
        schedule.end(done(each), 2)
    assert taken(schedule, 2) == []  # what is larger than the bound waits until nothing runs
    (last,) = (running for running, _ in schedule.running.values())
    schedule.end(done(last), 3)
    assert [each.needs for each in taken(schedule, 3)] == [500]
    assert (schedule.left, schedule.bytes_left, schedule.over) == (1, 500, False)


def test_slots_bound_what_runs():
    schedule = Schedule(map(unit, range(5)), slots=2)
    (first, _) = taken(schedule, 0)
    schedule.end(done(first), 1)
    assert len(taken(schedule, 1)) == 1


def test_a_failing_network_stops_all_and_one_alone_tries_it_again():
    schedule = Schedule(map(unit, range(9)), slots=3)
    first = taken(schedule, 0)
    for each in first:  # all at once: one pause
        assert not schedule.end(failed(each, NETWORK), 1)
    assert taken(schedule, FIRST_PAUSE_S) == []
    assert schedule.wait_s(FIRST_PAUSE_S) == 1
    (probe,) = taken(schedule, FIRST_PAUSE_S + 1)
    assert probe in first  # what failed comes again before what is new
    assert schedule.wait_s(FIRST_PAUSE_S + 1) is None
    schedule.end(failed(probe, NETWORK), FIRST_PAUSE_S + 2)
    assert schedule.wait_s(FIRST_PAUSE_S + 2) == 2 * FIRST_PAUSE_S  # twice as long
    (probe,) = taken(schedule, 3 * FIRST_PAUSE_S + 2)
    schedule.end(done(probe), 3 * FIRST_PAUSE_S + 3)
    assert len(taken(schedule, 3 * FIRST_PAUSE_S + 3)) == 3


def test_an_answer_that_is_no_result_tells_that_the_network_is_back():
    schedule = Schedule(map(unit, range(9)), slots=3)
    schedule.end(failed(taken(schedule, 0)[0], NETWORK), 1)
    (probe,) = taken(schedule, 100)
    schedule.end(failed(probe, GONE), 101)
    assert len(taken(schedule, 101)) == 1  # two still run


def test_what_the_network_always_fails_is_given_up():
    schedule = Schedule([unit(0)], slots=3)
    settled = []
    for now in range(0, 10_000, 1000):
        settled += [schedule.end(failed(each, NETWORK), now) for each in taken(schedule, now)]
    assert settled == [False] * (TRIES - 1) + [True]
    assert schedule.over


def test_what_others_have_in_hand_is_looked_at_again():
    schedule = Schedule(map(unit, range(2)), slots=2)
    mine, theirs = taken(schedule, 0)
    schedule.end(Outcome(theirs.key, BUSY), 0)
    schedule.end(done(mine), 1)
    assert (taken(schedule, 1), schedule.over) == ([], False)
    assert taken(schedule, schedule.wait_s(1) + 1) == [theirs]


def test_after_a_stop_only_what_runs_is_ended():
    schedule = Schedule(map(unit, range(5)), slots=2)
    first, second = taken(schedule, 0)
    schedule.stop()
    assert taken(schedule, 1) == []
    schedule.end(done(first), 1)
    assert not schedule.over
    schedule.end(Outcome(second.key, STOPPED), 2)
    assert schedule.over
    assert schedule.left == 4  # the stopped one is still to do


def ended(draw, each, online):
    """Return what becomes of a unit, as chance has it."""
    if not online:
        return failed(each, NETWORK)
    kind = draw.choices([DONE, BUG, BUSY], [95, 3, 2])[0]
    return failed(each, kind) if kind == BUG else Outcome(each.key, kind)


@pytest.mark.slow
def test_a_hundred_thousand_units_of_made_up_times_and_failures():
    """Nothing runs twice, nothing is lost, no bound is passed, little is held; the network is away twice, for hours."""
    count, slots, most = 100_000, 64, 10_000
    draw = random.Random(17)
    units = [unit(number, int(draw.paretovariate(0.8))) for number in range(count)]
    before = psutil.Process().memory_info().rss
    schedule = Schedule(units, slots=slots, most_bytes=most)
    now, needed = 0.0, 0
    agenda, running = [], {}  # (when it ends, key) of what runs
    settled, tries = Counter(), Counter()
    while not schedule.over:
        while each := schedule.take(now):
            assert each.key not in running
            running[each.key] = each
            needed += each.needs
            assert len(running) <= slots
            assert needed <= most or len(running) == 1
            heapq.heappush(agenda, (now + draw.expovariate(0.1), each.key))
        wait = schedule.wait_s(now)
        assert running or wait > 0
        if wait is not None and not (running and agenda[0][0] <= now + wait):
            now += wait
            continue
        now, key = heapq.heappop(agenda)
        each = running.pop(key)
        needed -= each.needs
        tries[key] += 1
        online = not (4_000 <= now < 14_000 or 20_000 <= now < 21_000)
        settled[key] += schedule.end(ended(draw, each, online), now)
    assert now > 21_000
    assert settled == {each.key: 1 for each in units}
    assert (schedule.left, schedule.bytes_left, schedule.bytes_running) == (0, 0, 0)
    assert psutil.Process().memory_info().rss - before < 200_000_000  # with this test's own counters
    # An outage costs a try of each that ran when it began, and of the few that looked whether it was over.
    assert count * 1.019 < sum(tries.values()) < count * 1.022
    assert max(tries.values()) < 10
