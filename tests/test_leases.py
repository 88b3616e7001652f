import dataclasses
import random
import time

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydr import schema, shards
from raydr.attempts import Attempt, attempts, crashed, scorings
from raydr.finished import Finished
from raydr.leases import LATER, Leases, Progress, Target, is_met, next_number, remaining_shards
from raydr.storage import Run

ONE = Target("plain-g1-a", 1, least=2, accepted=0, most=2)
QUOTA = Target("plain-g1-a", 1, least=1, accepted=10, most=20)


@pytest.fixture
def run(tmp_path):
    return Run(str(tmp_path / "out"))


def leases(run, *targets, session="q-1", max_crashes=3, dead=tuple):
    return Leases(run, list(targets or (ONE,)), session, max_crashes, dead)


def commit(run, key, accepted):
    """A commit record of a shard, whose rows nobody looks at here."""
    columns = {field.name: pa.nulls(1, field.type) for field in schema.SYNTHETIC}
    shards.commit(run, key, pa.table(columns, schema.SYNTHETIC), schema.SYNTHETIC, "f", {"accepted": accepted})


def numbers(table, count, node="n"):
    found = [table.lease(ticket, node, f"t{ticket}") for ticket in range(count)]
    return [lease and lease["number"] for lease in found]


def test_every_shard_is_leased_once_and_then_none(run):
    assert numbers(leases(run), 4) == [0, 1, None, None]


def test_a_ticket_waits_while_shards_in_flight_may_bring_too_little(run):
    """A tail of one slow shard: idle actors ask and ask, and no ticket is spent by it."""
    target = Target("plain-g1-a", 1, least=2, accepted=10, most=4)
    table = leases(run, target)
    assert numbers(table, 2) == [0, 1]
    table.finish(target.generator_id, 1, 0, accepted=8)
    assert [table.lease(2, "n", f"t2-{k}") for k in range(50)] == [LATER] * 50  # shard 1 is credited with the other 2
    table.finish(target.generator_id, 1, 1, accepted=0)
    assert table.lease(2, "n", "late")["number"] == 2
    table.finish(target.generator_id, 1, 2, accepted=0)
    assert table.lease(3, "n", "last")["number"] == 3
    assert table.lease(4, "n", "over") is None  # the budget holds no more, whatever shard 3 brings
    table.finish(target.generator_id, 1, 3, accepted=2)
    assert table.state()["met"]
    assert table.lease(4, "n", "met") is None


def test_nobody_waits_for_a_count_or_after_a_stop(run):
    table = leases(run, ONE)
    assert numbers(table, 3) == [0, 1, None]
    table = leases(run, QUOTA, session="q-2")
    table.lease(0, "n", "a")
    table.close("stop")
    assert table.lease(1, "n", "b") is None


def real_shard(run, target, number, scores, band):
    """A committed shard of `target` with these scores, as the sink records it for `band`."""
    rows = len(scores)
    columns = {field.name: pa.nulls(rows, field.type) for field in schema.SYNTHETIC}
    columns |= {"blank": [False] * rows, "valid_fundus": [True] * rows, "nearest_distance": [1.0] * (rows - 1) + [0.1]}
    table = pa.table(columns | {"score": scores}, schema.SYNTHETIC)
    inside = sum(band[0] <= score <= band[1] for score in scores[:-1])  # the last one is a memory
    extra = {"accepted": inside, "band": list(band), "threshold": 0.5}
    shards.commit(run, target.key(number), table, schema.SYNTHETIC, "f", extra)


def test_a_quota_in_another_band_counts_what_lies_in_that_band(run):
    wide, paper = (0.5, 1.0), (0.7, 0.9)
    target = Target("plain-g1-a", 1, least=1, accepted=3, most=9, band=wide)
    for number in range(2):
        real_shard(run, target, number, [0.55, 0.8, 0.95, 0.85], wide)
    assert leases(run, target).state()["targets"][0]["accepted"] == 3  # of the first shard; that suffices
    other = dataclasses.replace(target, band=paper)
    table = leases(run, other, session="q-2")
    assert not table.state()["met"]
    assert table.state()["targets"][0]["accepted"] == 2  # one in each: a memory does not count here either
    assert table.lease(0, "n", "a")["number"] == 2
    real_shard(run, target, 2, [0.1, 0.8, 0.1, 0.1], paper)
    assert leases(run, other, session="q-3").state()["met"]


def test_the_least_advanced_target_comes_first(run):
    other = Target("ecc-g3-b", 3, least=4, accepted=0, most=4)
    table = leases(run, ONE, other)
    found = [table.lease(ticket, "n", f"t{ticket}")["generator_id"][:3] for ticket in range(6)]
    assert sorted(found) == ["ecc"] * 4 + ["pla"] * 2
    assert found[:3] != ["ecc"] * 3


def test_a_ticket_that_asks_again_gets_its_shard_again(run):
    table = leases(run)
    assert table.lease(7, "n", "a")["number"] == 0
    assert table.lease(8, "n", "b")["number"] == 1
    assert table.lease(7, "n", "c")["number"] == 0
    assert shards.starts(run)[ONE.key(0)] == ["q-1.7.n.a", "q-1.7.n.c"]


def test_a_call_that_is_repeated_is_one_start(run):
    """Ray sends a call again when the actor's answer was lost with it."""
    table = leases(run)
    assert table.lease(7, "n", "a") == table.lease(7, "n", "a")
    assert len(shards.starts(run)[ONE.key(0)]) == 1


def test_the_third_crash_quarantines_and_the_ticket_goes_on(run):
    table = leases(run)
    for token in ("a", "b", "c"):
        assert table.lease(0, "n", token)["number"] == 0
    table.note("b", "hung", "no step was finished for 2 s")
    assert table.lease(0, "n", "d")["number"] == 1
    (note,) = shards.quarantined(run, "synthetic")
    assert note["key"] == ONE.key(0)
    assert note["reason"] == "hung"
    assert note["detail"] == "its process ended 3 times (nodes n); no step was finished for 2 s"
    table.finish(ONE.generator_id, 1, 1, accepted=3)
    state = table.state()
    assert state["met"]
    assert (state["lost"], state["made"]) == (1, 1)
    assert state["targets"][0]["accepted"] == 3


@pytest.mark.parametrize(("notes", "reason"), [((), "crashed"), (("raised",), "raised"), (("raised", "hung"), "hung")])
def test_a_lost_shard_is_labelled_by_what_its_processes_said(notes, reason, run):
    table = leases(run, max_crashes=2)
    for token in ("a", "b"):
        table.lease(0, "n", token)
    for token, kind in zip("ab", notes, strict=False):
        table.note(token, kind, f"it {kind}")
    table.lease(0, "n", "c")
    (note,) = shards.quarantined(run, "synthetic")
    assert note["reason"] == reason
    assert all(f"it {kind}" in note["detail"] for kind in notes)


def test_a_second_life_remembers_leases_far_beyond_the_contiguous_shards(run):
    """Ten in flight of a quota that asks for one at least: none of them is leased anew, and none counts as a crash."""
    target = Target("plain-g1-a", 1, least=1, accepted=1000, most=50)
    assert numbers(leases(run, target, max_crashes=1), 10) == list(range(10))
    commit(run, target.key(7), 3)
    again = leases(run, target, max_crashes=1)
    assert again.lease(90, "n", "t90")["number"] == 10
    assert again.state()["in_flight"] == 10
    assert again.lease(9, "n", "t9")["number"] == 9, "the same call asks again"
    assert shards.quarantined(run, "synthetic") == []


def test_a_shard_that_ends_its_scorers_is_quarantined_and_no_generator_is_blamed(run):
    table, place = leases(run, max_crashes=2), (ONE.generator_id, 1, 0)
    assert table.lease(0, "n", "a")["number"] == 0
    assert table.scoring(*place, "n", "s1")
    assert table.scoring(*place, "n", "s1"), "a call that is repeated is one start"
    assert leases(run, max_crashes=2).scoring(*place, "n", "s2"), "a second life of the quota knows of the first start"
    again = leases(run, max_crashes=2)
    assert not again.scoring(*place, "n", "s3")
    assert not again.scoring(*place, "n", "s4")
    (note,) = shards.quarantined(run, "synthetic")
    assert (note["key"], note["reason"]) == (ONE.key(0), "crashed")
    assert note["detail"] == "its scorer ended 2 times (nodes n)"
    labels = shards.starts(run)[ONE.key(0)]
    assert (len(attempts(labels)), len(scorings(labels))) == (1, 2)
    assert again.lease(0, "n", "b")["number"] == 1, "the ticket goes on"


def test_scorers_that_went_with_their_node_do_not_count(run):
    gone = set()
    table, place = leases(run, max_crashes=1, dead=lambda: gone), (ONE.generator_id, 1, 0)
    table.lease(0, "n", "a")
    assert table.scoring(*place, "far", "s1")
    gone.add("far")
    assert table.scoring(*place, "n", "s2")
    assert shards.quarantined(run, "synthetic") == []


def test_starts_on_nodes_that_have_gone_do_not_count(run):
    gone = set()
    table = leases(run, max_crashes=1, dead=lambda: gone)
    assert table.lease(0, "spot", "a")["number"] == 0
    gone.add("spot")
    assert table.lease(0, "other", "b")["number"] == 0
    assert shards.quarantined(run, "synthetic") == []
    assert table.lease(0, "other", "c")["number"] == 1
    assert shards.quarantined(run, "synthetic")[0]["reason"] == "crashed"
    again = leases(run, max_crashes=2, session="q-1")  # what was waived stays so
    assert [item.token for item in again._starts[ONE.key(0)]] == ["b"]


def test_starts_that_ended_with_their_driver_do_not_count(run):
    for session in ("q-1", "q-2", "q-3", "q-4", "q-5"):
        assert numbers(leases(run, session=session, max_crashes=1), 2) == [0, 1]
    assert shards.quarantined(run, "synthetic") == []


def test_crashes_of_earlier_drivers_count(run):
    """One crash under the first driver and one under the second; what ran when the first ended is neither."""
    first = leases(run, session="q-1", max_crashes=2)
    assert [first.lease(0, "n", token)["number"] for token in ("a", "b")] == [0, 0]
    second = leases(run, session="q-2", max_crashes=2)
    assert [second.lease(0, "n", token)["number"] for token in ("c", "d")] == [0, 1]
    assert "2 times" in shards.quarantined(run, "synthetic")[0]["detail"]


def test_crashes_by_hand():
    def tries(*labels):
        return attempts(list(labels))

    assert attempts(["q.1.n.a", "waived.a", "nonsense", "q.2.n.b"]) == [Attempt("q", 2, "n", "b")]
    assert crashed(tries("q.1.n.a")) == []
    assert [item.token for item in crashed(tries("q.1.n.a"), "q")] == ["a"]
    assert [item.token for item in crashed(tries("q.1.n.a", "q.1.n.b", "r.1.n.c", "r.1.n.d"), "r")] == ["a", "c", "d"]
    assert [item.token for item in crashed(tries("q.1.n.a", "q.1.n.b", "r.1.n.c", "waived.c"), "r")] == ["a"]


def test_it_is_rebuilt_from_storage_at_any_moment(run):
    """As when the quota actor dies: the same tickets hold the same shards, and nothing is leased twice."""
    target, chance = Target("plain-g1-a", 1, least=12, accepted=0, most=12), random.Random(4)
    table, held, made = leases(run, target), {}, set()
    for ticket in range(40):
        if chance.random() < 0.4:
            table = leases(run, target)
        lease = table.lease(ticket, "n", f"t{ticket}")
        if lease is not None:
            assert lease["number"] not in made | set(held.values())
            held[ticket] = lease["number"]
        if held and chance.random() < 0.6:
            done = chance.choice(sorted(held))
            commit(run, target.key(held[done]), 1)
            table.finish("plain-g1-a", 1, held[done], 1)
            made.add(held.pop(done))
        for old, number in held.items():
            assert table.lease(old, "n", f"t{old}")["number"] == number
    assert made | set(held.values()) == set(range(12))


def test_closed_leases_no_more_but_knows_what_is_in_flight(run):
    table = leases(run, Target("plain-g1-a", 1, 8, 0, 8))
    assert numbers(table, 2) == [0, 1]
    table.close("raydr stop")
    table.close("later")
    assert table.lease(9, "n", "z") is None
    assert (table.state()["closed"], table.state()["in_flight"]) == ("raydr stop", 2)
    table.finish("plain-g1-a", 1, 0, 5)
    assert table.state()["in_flight"] == 1
    assert table.lease(1, "n", "again") is None  # it crashed after the stop: the next driver makes it
    assert table.state()["in_flight"] == 0
    assert not table.state()["met"]


def test_a_generator_that_is_broken_ends_the_session(run):
    table = leases(run, Target("plain-g1-a", 1, 50, 0, 50), max_crashes=1)
    calls = [table.lease(0, "n", f"t{k}") for k in range(6)]
    assert [lease and lease["number"] for lease in calls] == [0, 1, 2, None, None, None]
    assert "3 shards were lost and 0 made, the last because its process ended 1 times" in table.state()["closed"]


def test_what_is_in_flight_when_the_session_ends_is_not_lost_with_it(run):
    table = leases(run, Target("plain-g1-a", 1, 50, 0, 50), max_crashes=1)
    assert [table.lease(ticket, "n", f"f{ticket}")["number"] for ticket in (1, 2)] == [0, 1]
    for k in range(4):
        table.lease(0, "n", f"t{k}")
    assert "3 shards were lost" in table.state()["closed"]
    assert [table.lease(ticket, "n", f"g{ticket}") for ticket in (1, 2)] == [None, None]
    assert (table.state()["lost"], table.state()["in_flight"]) == (3, 0)
    assert len(shards.quarantined(run, "synthetic")) == 3
    after = leases(run, Target("plain-g1-a", 1, 50, 0, 50), session="q-2", max_crashes=1)
    assert [after.lease(ticket, "n", f"h{ticket}")["number"] for ticket in range(3)] == [0, 1, 5]


def test_a_few_lost_among_many_do_not_end_it(run):
    table = leases(run, Target("plain-g1-a", 1, 50, 0, 50), max_crashes=1)
    for number in range(4):
        table.lease(100 + number, "n", f"m{number}")
        table.finish("plain-g1-a", 1, number, 0)
    assert [table.lease(0, "n", f"t{k}")["number"] for k in range(4)] == [4, 5, 6, 7]
    assert table.state()["closed"] is None


def test_a_quota_counts_the_contiguous_prefix():
    progress = Progress()
    progress.finished.update({0: 4, 2: 9})
    assert progress.prefix() == (1, 4)
    assert not is_met(QUOTA, progress)
    progress.finished[1] = None  # a quarantined shard holds nothing, and nothing waits for it
    assert progress.prefix() == (3, 13)
    # What a larger pool made beyond the quota does not count.
    assert Progress({0: 4, 1: None, 2: 9, 3: 8}).prefix(QUOTA) == (3, 13)
    assert is_met(QUOTA, progress)


@given(st.lists(st.tuples(st.integers(0, 6), st.none() | st.integers(0, 64)), max_size=30))
def test_sums_over_finished_shards_stand_at_any_time(events):
    finished = Finished()
    for number, accepted in events:  # the same shard again too: a late commit after its quarantine
        finished[number] = accepted
    counts = [count for count in finished.values() if count is not None]
    assert (finished.made, finished.accepted) == (len(counts), sum(counts))
    assert finished == dict(events)


def test_what_is_finished_is_no_longer_in_flight():
    progress = Progress(leased={0, 1, 2})
    progress.finished[1] = 5
    assert progress.in_flight() == {0, 2}
    assert progress.free() == 3
    progress.release(2)
    assert progress.free() == 2


def test_a_lease_does_not_count_what_is_there_again(run):
    """At 150,000 shards it took 140 ms and a look at the state 52 ms, by one process for all actors."""
    table = Leases(run, [Target("plain-g3-x", 3, 10, 10**9, 300_000)], "s", 3)
    progress = table._progress["plain-g3-x", 3]
    progress.finished.update(dict.fromkeys(range(150_000), 10))
    progress.leased = set(range(150_000))
    table.state()  # once: the prefix grows to where it is, and what is finished is forgotten
    started = time.process_time()
    for ticket in range(20):
        assert table.lease(ticket, "n", f"t{ticket}")["number"] == 150_000 + ticket
        table.state()
    assert (time.process_time() - started) / 20 < 0.005


def test_shards_in_flight_are_credited_with_the_rate_so_far():
    """10 wanted at 2 a shard: 2 + 0.8 x 2 x 5 in flight are 10, so the sixth is the last for now."""
    progress = Progress(finished={0: 2}, leased={0})
    for expected in range(1, 6):
        assert next_number(QUOTA, progress) == expected
        progress.leased.add(expected)
    assert next_number(QUOTA, progress) is None
    progress.release(3)
    assert next_number(QUOTA, progress) == 3


@pytest.mark.parametrize(
    ("target", "made", "accepted", "left"),
    [
        (ONE, 0, 0, 2),
        (ONE, 1, 7, 1),
        (QUOTA, 0, 0, None),
        (QUOTA, 3, 0, None),
        (QUOTA, 2, 4, 3),
        (QUOTA, 3, 4, 5),
        (QUOTA, 10, 1, 10),  # 90 more would be needed: the budget ends before
        (QUOTA, 5, 11, 0),
    ],
)
def test_forecast(target, made, accepted, left):
    assert remaining_shards(target, made, accepted) == left


def test_state_sums_the_forecast(run):
    table = leases(run, QUOTA, Target("ecc-g3-b", 3, least=4, accepted=0, most=4))
    assert table.state()["remaining"] is None
    table.finish("plain-g1-a", 1, 0, 2)
    assert table.state()["remaining"] == 4 + 4
    assert table.state()["targets"][0] == {
        "generator_id": "plain-g1-a", "grade": 1, "shards": 1, "accepted": 2, "met": False, "remaining": 4,
    }  # fmt: skip


def test_a_budget_of_images_ends_first(run):
    table = leases(run, Target("plain-g1-a", 1, least=1, accepted=10, most=2))
    for number in range(2):
        assert table.lease(number, "n", f"t{number}")["number"] == number
        table.finish("plain-g1-a", 1, number, 1)
    assert table.lease(2, "n", "t2") is None
    assert table.state()["exhausted"] == ["plain-g1-a grade 1"]
