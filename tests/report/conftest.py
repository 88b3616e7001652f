import fake_run
import pytest

from raydr.report import page


@pytest.fixture(scope="session")
def single(tmp_path_factory):
    """A finished run of one replicate (treated as read-only), and its recipe."""
    return fake_run.write_run(tmp_path_factory.mktemp("single") / "run"), fake_run.recipe()


@pytest.fixture(scope="session")
def triple(tmp_path_factory):
    """A finished run of three replicates, five seeds each (read-only), and its recipe."""
    path = tmp_path_factory.mktemp("triple") / "run"
    return fake_run.write_run(path, num_replicates=3, num_seeds=5, num_samples=24), fake_run.recipe(3, 5)


@pytest.fixture(scope="session")
def rendered(single):
    """(HTML, results) of the finished run."""
    return page.render(*single)
