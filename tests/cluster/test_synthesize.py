import pytest
import ray

from raydr.cluster import synthesize
from raydr.errors import UserError


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
