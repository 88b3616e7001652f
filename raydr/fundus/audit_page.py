"""An audit as one self-contained HTML page: findings, and the offending pairs side by side."""

import base64
from collections.abc import Callable, Iterable, Sequence
from html import escape

from raydr.fundus.audit import Audit, Duplicate
from raydr.images import decode, jpeg

# 300 pairs are about 5 MB of thumbnails; the rest is in audit.json.
MAX_PAIRS = 300
THUMBNAIL_PX = 160

STYLE = """
:root { color-scheme: light dark; --line: #8884; --bad: #c0392b; --warn: #b9770e; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; }
th, td { text-align: left; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.n { text-align: right; font-variant-numeric: tabular-nums; }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(340px, 1fr)); gap: 1rem; }
figure { margin: 0; padding: .6rem; border: 1px solid var(--line); border-radius: 6px; }
figure.leak { border-color: var(--bad); }
figure img { width: 49%; border-radius: 4px; }
figcaption { font-size: 13px; overflow-wrap: anywhere; }
.bad { color: var(--bad); } .warn { color: var(--warn); }
"""


def rows_of(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """An HTML table; numbers are right-aligned, everything is escaped."""

    def cell(value: object) -> str:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        text = f"{value:.3f}" if isinstance(value, float) else str(value)
        return f'<td class="n">{escape(text)}</td>' if number else f"<td>{escape(text)}</td>"

    body = "".join(f"<tr>{''.join(cell(value) for value in row)}</tr>" for row in rows)
    if not body:
        return "<p>None.</p>"
    return f"<table><tr>{''.join(f'<th>{escape(name)}</th>' for name in head)}</tr>{body}</table>"


def figure(pair: Duplicate, image_of: Callable[[str], bytes]) -> str:
    def picture(image_id: str) -> str:
        thumbnail = base64.b64encode(jpeg(decode(image_of(image_id)), THUMBNAIL_PX)).decode()
        return f'<img alt="{escape(image_id)}" src="data:image/jpeg;base64,{thumbnail}">'

    def caption(side: int) -> str:
        grade = pair.grades[side]
        name = (pair.a, pair.b)[side]
        return f"{escape(name)}<br>{escape(pair.splits[side])}, {'no grade' if grade is None else f'grade {grade}'}"

    marks = [
        pair.kind,
        *(["mirrored"] if pair.mirrored else []),
        *(["upside down"] if pair.turned else []),
        *(["across data sets"] if pair.across_datasets else []),
    ]
    bad = [*(["across splits"] if pair.across_splits else []), *(["conflicting labels"] if pair.conflicting else [])]
    return (
        f'<figure class="{"leak" if pair.across_splits else "same"}">{picture(pair.a)} {picture(pair.b)}'
        f"<figcaption>{caption(0)}<br>{caption(1)}<br>{', '.join(marks)}, correlation {pair.correlation:.2f} "
        f'<b class="bad">{", ".join(bad)}</b></figcaption></figure>'
    )


def page(audit: Audit, image_of: Callable[[str], bytes], title: str = "Audit") -> str:
    """The page's HTML. `image_of(image_id)` gives encoded bytes and is called for shown pairs only."""
    # Leaks first, then conflicting labels: those need a decision.
    worst = sorted(audit.duplicates, key=lambda pair: (not pair.across_splits, not pair.conflicting, pair.a, pair.b))
    shown = worst[:MAX_PAIRS]
    verdict = (
        f'<p class="bad"><b>{len(audit.leaks)} leaks across splits.</b></p>'
        if audit.leaks
        else "<p>No leak across splits.</p>"
    )
    shortcuts = [
        (
            s.dataset,
            s.feature,
            s.task,
            s.balanced_accuracy,
            s.chance,
            s.luckiest_shuffle,
            "yes" if s.found else "",
            s.explanation,
        )
        for s in audit.shortcuts
    ]
    balance = [(b.dataset, b.split, *b.counts, b.num_ungraded, f"{b.ratio:.0f}") for b in audit.balance]
    more = len(worst) - len(shown)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
        f"<h1>{escape(title)}</h1><p>{audit.num_images} photographs.</p>{verdict}"
        f"{rows_of(('finding', 'count'), audit.counts.items())}"
        f"<h2>Class balance</h2>{rows_of(('data set', 'split', '0', '1', '2', '3', '4', 'no grade', 'ratio'), balance)}"
        "<h2>Shortcuts</h2><p>Balanced accuracy of a small decision tree that sees nothing of the retina.</p>"
        + rows_of(
            ("data set", "sees only", "predicts", "score", "chance", "luckiest shuffle", "found", "why"), shortcuts
        )
        + f"<h2>Patients in several splits</h2>{rows_of(('patient', 'splits', 'photographs'), patients(audit))}"
        f'<h2>Pairs</h2><div class="pairs">{"".join(figure(pair, image_of) for pair in shown)}</div>'
        + (f"<p>{more} more pairs are in audit.json.</p>" if more else "")
        + "<h2>What --drop-duplicates leaves out</h2><p>Of the source that is added, never of one that is there: "
        "ingest into another run, the sources with test photographs first.</p>"
        + rows_of(
            ("photograph", "because of", "reason"),
            [(d.image_id, d.because_of, d.reason) for d in audit.duplicates_to_drop],
        )
        + "</html>"
    )


def patients(audit: Audit) -> list[tuple[str, str, str]]:
    return [(leak.patient_id, ", ".join(leak.splits), ", ".join(leak.image_ids)) for leak in audit.patient_leaks]
