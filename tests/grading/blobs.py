"""Small images whose grade is visible: the brighter the blob, the higher the grade; made for these tests."""

import numpy as np


def blobs(num: int, px: int = 32, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (num, px, px, 3) and grades int64 (num,), all five about equally frequent."""
    rng = np.random.default_rng(seed)
    grades = np.arange(num) % 5
    images = rng.integers(20, 60, (num, px, px, 3), dtype=np.uint8)
    for image, grade in zip(images, grades, strict=True):
        x, y = rng.integers(px // 4, px // 2, 2)
        image[y : y + px // 4, x : x + px // 4, 0] += np.uint8(35 * grade)
    return images, grades
