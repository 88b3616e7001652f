import copy

import pytest

from diffusion import thin
from raydr.diffusion.model import load_base


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """The thin base in diffusers layout: random weights."""
    return thin.build(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def shared(folder):
    """The base in fp32; read-only."""
    return load_base(str(folder))


@pytest.fixture
def base(shared):
    """A base of the test's own."""
    return copy.deepcopy(shared)
