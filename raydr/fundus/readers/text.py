"""Label files as text: encodings, CSV dialects, and what counts as a grade."""

import csv
import io
import re
from collections.abc import Sequence

from raydr.errors import UserError
from raydr.grades import GRADES

LABEL_OUT_OF_RANGE = "label out of range"
LABEL_MISSING = "label missing"


def text_of(data: bytes) -> str:
    """Label files come with and without a byte-order mark, and a few in Windows' encoding."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace")


def csv_rows(data: bytes, path: str = "a label file") -> list[list[str]]:
    """Cells of a CSV, blanks stripped, rows without any content left out; `,`, `;` or tab separated.

    Raises UserError for what is no CSV (a cell of more than 128 KB, a bare carriage return in a row).
    """
    text = text_of(data)
    first = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=first.count)
    try:
        rows = [[cell.strip() for cell in row] for row in csv.reader(io.StringIO(text), delimiter=delimiter)]
    except csv.Error as error:
        raise UserError(f"{path} is no CSV ({error}): mend it, or leave it out of the folder") from None
    return [row for row in rows if any(row)]


def csv_records(data: bytes, path: str, columns: Sequence[str] = ()) -> list[dict[str, str]]:
    """Rows of a CSV by column name: names lower-case and stripped, nameless columns left out, short rows filled.

    Raises UserError naming the first of `columns` (lower case) that the file lacks.
    """
    rows = csv_rows(data, path)
    header = [name.lower() for name in rows[0]] if rows else []
    for column in columns:
        if column not in header:
            raise UserError(f"{path} has no column '{column}' (found: {', '.join(filter(None, header))})")
    return [
        {name: cell for name, cell in zip(header, [*row, *[""] * len(header)], strict=False) if name}
        for row in rows[1:]
    ]


def grade_of(text: str, ungradable: Sequence[int] = ()) -> tuple[int | None, bool]:
    """(grade, gradable) of a label's text; raises ValueError with the reason of its rejection."""
    if not text:
        raise ValueError(LABEL_MISSING)
    if not re.fullmatch(r"[+-]?\d{1,9}(\.0*)?", text):
        raise ValueError(LABEL_OUT_OF_RANGE)
    value = int(float(text))
    if value in ungradable:
        return None, False
    if value not in GRADES:
        raise ValueError(LABEL_OUT_OF_RANGE)
    return value, True
