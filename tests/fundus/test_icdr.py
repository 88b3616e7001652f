import itertools

import pytest

from raydr.fundus.icdr import HAEMORRHAGES, PROLIFERATIVE, QUADRANTS, rule_grade


def lesions(kind, quadrant=QUADRANTS[0], count=1):
    return [{"kind": kind, "quadrant": quadrant}] * count


def haemorrhages(*counts, kind="dot"):
    """`counts` in the four quadrants."""
    return [row for quadrant, count in zip(QUADRANTS, counts, strict=True) for row in lesions(kind, quadrant, count)]


def test_nothing_is_no_retinopathy():
    assert rule_grade([]) == 0


@pytest.mark.parametrize("count", [1, 3, 500])
def test_microaneurysms_alone_are_mild(count):
    assert rule_grade(lesions("microaneurysm", count=count)) == 1


@pytest.mark.parametrize("kind", [*HAEMORRHAGES, "exudate", "cotton_wool", "venous_beading"])
def test_one_other_lesion_is_more_than_mild(kind):
    assert rule_grade(lesions(kind)) == 2
    assert rule_grade(lesions("microaneurysm", count=9) + lesions(kind)) == 2


@pytest.mark.parametrize(
    ("counts", "grade"),
    [
        ((21, 21, 21, 21), 3),
        ((21, 21, 21, 20), 2),  # "more than 20 in each of 4 quadrants"
        ((20, 21, 21, 21), 2),
        ((20, 20, 20, 20), 2),
        ((21, 21, 21, 0), 2),
        ((500, 500, 500, 20), 2),
        ((1, 0, 0, 0), 2),
    ],
)
@pytest.mark.parametrize("kind", HAEMORRHAGES)
def test_twenty_haemorrhages_in_a_quadrant_are_not_enough(counts, grade, kind):
    assert rule_grade(haemorrhages(*counts, kind=kind)) == grade


def test_dots_blots_and_flames_are_counted_together():
    mixed = haemorrhages(7, 7, 7, 7, kind="dot") + haemorrhages(7, 7, 7, 7, kind="blot")
    assert rule_grade(mixed + haemorrhages(7, 7, 7, 7, kind="flame")) == 3
    assert rule_grade(mixed + haemorrhages(7, 7, 7, 6, kind="flame")) == 2


def test_microaneurysms_are_no_haemorrhages():
    ledger = [row for quadrant in QUADRANTS for row in lesions("microaneurysm", quadrant, 30)]
    assert rule_grade(ledger) == 1
    assert rule_grade(ledger + haemorrhages(20, 20, 20, 20)) == 2


@pytest.mark.parametrize("pair", list(itertools.combinations(QUADRANTS, 2)))
def test_beading_in_two_quadrants_is_severe(pair):
    assert rule_grade(lesions("venous_beading", pair[0]) + lesions("venous_beading", pair[1])) == 3


@pytest.mark.parametrize("quadrant", QUADRANTS)
def test_beading_in_one_quadrant_is_not(quadrant):
    assert rule_grade(lesions("venous_beading", quadrant, count=5)) == 2


@pytest.mark.parametrize("quadrant", QUADRANTS)
def test_irma_in_one_quadrant_is_severe(quadrant):
    assert rule_grade(lesions("irma", quadrant)) == 3


@pytest.mark.parametrize("kind", PROLIFERATIVE)
def test_a_proliferative_sign_outranks_everything(kind):
    assert rule_grade(lesions(kind)) == 4
    severe = haemorrhages(25, 25, 25, 25) + lesions("irma") + lesions("venous_beading", QUADRANTS[1], 2)
    assert rule_grade(severe) == 3
    assert rule_grade(severe + lesions(kind)) == 4


def test_any_iterable_in_any_order():
    ledger = haemorrhages(21, 21, 21, 21)
    assert rule_grade(iter(ledger)) == rule_grade(reversed(ledger)) == 3
