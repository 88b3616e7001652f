"""The photograph that the tests look at most."""

import numpy as np
import pytest
import skimage.data


@pytest.fixture(scope="module")
def retina() -> np.ndarray:
    return skimage.data.retina()
