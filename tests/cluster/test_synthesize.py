import pytest
import ray

from raydr import recipes
from raydr.cluster import synthesize
from raydr.errors import Stopped, UserError
from raydr.leases import Target
from raydr.storage import Run


@pytest.mark.parametrize("as_raised", [lambda error: error, lambda error: error.as_instanceof_cause()])
def test_a_users_mistake_on_a_node_is_the_drivers_own(as_raised):
    """Whether Ray hands over its wrapper or one that is a UserError too, whose text holds the traceback of the node."""
    error = ray.exceptions.RayTaskError("lease", "Traceback ...", UserError("the disk is full"))
    with pytest.raises(UserError) as caught, synthesize._users_mistakes():
        raise as_raised(error)
    assert type(caught.value) is UserError
    assert str(caught.value) == "the disk is full"


def test_a_mistake_of_ours_keeps_its_traceback():
    with pytest.raises(ray.exceptions.RayTaskError), synthesize._users_mistakes():
        raise ray.exceptions.RayTaskError("lease", "Traceback ...", KeyError("x"))


def test_a_stream_that_ends_short_is_no_success(tmp_path):
    """Whatever emptied it: a stage that lacks images must not be recorded as finished."""
    wanted = [Target("plain-g1-a", 1, least=2, accepted=0, most=2)]
    work = synthesize.Work(recipes.named("debug"), Run(str(tmp_path)), wanted, "e-none", object, {})
    row = {"generator_id": "plain-g1-a", "grade": 1, "shards": 1, "accepted": 0, "met": False, "remaining": 1}
    state = {"met": False, "exhausted": [], "closed": None, "in_flight": 0, "targets": [row]}
    with pytest.raises(Stopped, match="has 1 of 2 shards; the same command goes on"):
        synthesize.verdict(work, state)
