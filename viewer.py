"""The viewer: one self-contained page that shows what each token would have said after each loop. Its HTML, style and
script are viewer.html; here the trace becomes the data in it."""
import json
import math
import os

import outputs
from looplm_kernels import RULES

TEMPLATE = os.path.join(outputs.ROOT, "viewer.html")
CURVES = ("entropy", "confidence", "delta", "score")
TITLE = 48  # characters of a text in the list of sequences
SHOWN = {"\n": "⏎", " ": "␣"}


def visible(text):
    """The text of a token as one visible string."""
    return SHOWN.get(text) or (text if text.isprintable() else repr(text)[1:-1])


def trace_rows(record, reads, writes, show):
    """The trace of t tokens as plain values, a dict for each: what it reads and writes, its loops, its numbers after
    each loop (None once it has halted), and its guesses.

    record: the dict of think.think about them, (t,...); reads, writes (t): texts, None where nothing is written; show:
    turns a token into its text.
    """
    record, rows = {k: x.tolist() for k, x in record.items()}, []
    for i, loops in enumerate(record["loops"]):
        row = dict(reads=reads[i], writes=writes[i], loops=loops, prediction=[show(p) for p in record["prediction"][i]])
        rows.append(row | {key: [None if math.isnan(x) else float(f"{x:.6g}") for x in record[key][i]]
                           for key in CURVES})
    return rows


def short(x):
    """A number of the trace with four digits that count; None where it is none, or infinite as a threshold can be."""
    return None if x is None or not math.isfinite(x) else float(f"{x:.4g}")


def token(row, threshold):
    """A token of the page: of the row of its trace what came before it halted, and the threshold of its rule."""
    n = row["loops"]
    return dict(reads=row["reads"], writes=row["writes"], loops=n, prediction=row["prediction"][:max(1, n)],
                threshold=short(threshold), **{key: [short(x) for x in row[key][:n]] for key in CURVES})


def sequence(rows, thresholds, title="", answers=()):
    """A sequence of the page.

    rows: its trace, dicts as sample.py has them, one per token; thresholds: of each, infinite for a token that no
    score halts; title: of a problem, "" for a text; answers: of a problem after each loop (text, whether it is right).
    """
    if not title:
        text = "".join(r["reads"] for r in rows)
        title = text[:TITLE] + "…" * (len(text) > TITLE)
    found = dict(title=title, tokens=[token(*x) for x in zip(rows, thresholds, strict=True)])
    if answers:
        found |= dict(said=[text for text, _ in answers], right=[right for _, right in answers])
    return found


def page(sequences, rule, facts, min_loops=1):
    """The whole page as a string. sequences: as `sequence` makes them; rule: that halted the tokens, min_loops: from
    which loop on; facts: a line."""
    data = dict(sequences=sequences, rule=rule, above=RULES[rule].above, min_loops=min_loops, facts=facts)
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&":  # none of which may end the script that holds the data
        text = text.replace(character, f"\\u{ord(character):04x}")
    with open(TEMPLATE, encoding="utf-8") as f:
        return f.read().replace("{{DATA}}", text)


def write(path, sequences, rule, facts, min_loops=1):
    """Write the page of `page`. Raises OSError."""
    with outputs.whole_file(path) as f:
        f.write(page(sequences, rule, facts, min_loops))
