"""Rows of `real` made of single pictures, for the tests of the audit."""

import io

import pyarrow as pa
from PIL import Image

from raydr.fundus.preprocess import prepare_row
from raydr.fundus.readers import ddr, fgadr
from raydr.fundus.readers.rows import Row
from raydr.schema import REAL

STRATA = {"DDR": ddr.stratum_of, "FGADR": fgadr.stratum_of}


def record(
    image_id: str, data: bytes, split: str = "train", grade: int | None = 0, patient: str | None = None, px: int = 96
):
    dataset = image_id.split("/")[0]
    stratum = STRATA[dataset](image_id.split("/")[1]) if dataset in STRATA else None
    row = Row("x.jpg", image_id, dataset, split, patient, grade, grade is not None, stratum)
    return prepare_row(row, data, px)


def table(records: list[dict]) -> pa.Table:
    return pa.Table.from_pylist(records, schema=REAL)


def copied(image: Image.Image, form: str = "JPEG", **kwargs) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **kwargs)
    return buffer.getvalue()
