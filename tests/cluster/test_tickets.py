"""Tickets: one a block, in order, and cheap to plan."""

import pickle

import pytest

from raydr.cluster import session, tickets
from raydr.shapes import Shape


@pytest.mark.timeout(120)
def test_every_ticket_is_a_block_of_its_own(ray_temp):
    with session.session(Shape(num_cpus=2, dashboard=False)):
        blocks = tickets.tickets(7).map_batches(lambda batch: {"ids": [batch["id"].tolist()]}, batch_size=None)
        assert sorted(row["ids"] for row in blocks.take_all()) == [[number] for number in range(7)]


def test_a_read_task_is_pickled_by_reference():
    """By value, as Ray's own are, a million planned images cost the driver 28 s before the first."""
    (first, *_) = tickets.Tickets(3).get_read_tasks(parallelism=1)
    assert len(pickle.dumps(first)) < 1000
    assert [table.to_pydict() for table in pickle.loads(pickle.dumps(first))()] == [{"id": [0]}]
