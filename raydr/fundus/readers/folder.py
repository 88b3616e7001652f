"""A folder of your own: `{split}/{0..4}/*`, or `{0..4}/*` where there is no split yet.

`ungradable` and `unlabelled` are folder names too: their photographs are kept without a grade.
"""

import posixpath
from collections.abc import Mapping, Sequence

from raydr.fundus.readers.rows import SPLITS, Listed, Naming, Reader, Rejected, is_image, merge
from raydr.fundus.readers.text import LABEL_OUT_OF_RANGE, grade_of

WITHOUT_GRADE = {"ungradable": False, "unlabelled": True}


def read(listing: Sequence[str], label_files: Mapping[str, bytes]) -> Listed:
    parts: list[Listed] = []
    for path in filter(is_image, listing):
        folders = posixpath.dirname(path).split("/")
        split = SPLITS.get(folders[-2].lower()) if len(folders) > 1 else None
        naming = Naming("folder", prefix=posixpath.dirname(path) + "/")
        try:
            if folders[-1].lower() in WITHOUT_GRADE:
                grade, gradable = None, WITHOUT_GRADE[folders[-1].lower()]
            else:
                grade, gradable = grade_of(folders[-1])
        except ValueError:
            detail = f"folder '{folders[-1]}' is no grade 0-4, 'ungradable' or 'unlabelled'"
            parts.append(([], [Rejected(path, LABEL_OUT_OF_RANGE, detail)]))
            continue
        parts.append(([naming.row(path, split, grade, gradable)], []))
    return merge(parts)


READER = Reader(
    "folder",
    read,
    label_files=r"$^",
    layout="{split}/{0..4}/* or {0..4}/*",
    terms="the user's own",
)
