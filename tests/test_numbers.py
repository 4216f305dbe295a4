"""The numbers in the tables of README.md and docs/ are those of results/: a change of either side alone fails here."""
import csv
import itertools
import math
import re
import shutil
import statistics
import sys
from functools import cache

import pytest
from conftest import ROOT
from scipy import stats

import bench
import bench_ranks
import figures
import sweep_tables
from kernels.paths import CALLS_BEFORE_KERNEL
from looplm_kernels import RULES

NUMBER = r"(?<![\d.])-?\d[\d,]*(?:\.\d+)?"  # 1.4-1.5 are two, none of them negative


@cache
def page(name):
    return (ROOT / name).read_text(encoding="utf-8")


@cache
def rows_of(name):
    with open(ROOT / "results" / f"{name}.csv", newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f))


def found(name, **where):
    """The rows of a table in results/ that have these values."""
    rows = [r for r in rows_of(name) if all(r[k] == v for k, v in where.items())]
    assert rows, (name, where)
    return rows


def values(name, row, column, scale=100):
    """Those of the seeds of a row, in their order."""
    return [scale * float(r[column]) for r in found(name, row=row)]


def spread(known):
    """[median, lowest, highest], as pages show the seeds of a row; [value] of one seed."""
    return [statistics.median(known), min(known), max(known)] if len(known) > 1 else known


def limits(known):
    """[lowest], [highest]."""
    return [min(known)], [max(known)]


def seeds(name, row, *columns, scale=100):
    """[median, lowest] of the seeds of a row, by the first of the columns that the table has; [value] of one seed."""
    column = next(c for c in columns if found(name, row=row)[0].get(c))
    return spread(values(name, row, column, scale))[:2]


def table(name, heading, nth=1):
    """The nth table under a heading of a page: its header and its rows, lists of cells."""
    text = re.split(rf"^#+ {re.escape(heading)}$", page(name), flags=re.M)[1]
    lines = re.findall(r"^\|.*(?:\n\|.*)*", re.split(r"^## ", text, flags=re.M)[0], re.M)[nth - 1].splitlines()
    head, _, *rows = [cells(line) for line in lines]
    return head, rows


def entry_table(start, nth=1):
    """The nth table of the one entry of the log whose heading begins so, as `table` gives it."""
    (heading,) = re.findall(rf"^### ({re.escape(start)}.*)", page("root.md"), re.M)
    return table("root.md", heading, nth)


def cells(line):
    """The cells of a row of a Markdown table."""
    return re.split(r"\s*\|\s*", line.strip()[1:-1].strip())


def line(rows, label):
    """The one row whose first cell begins so."""
    (row,) = [r for r in rows if r[0].strip("*`").startswith(label)]
    return row


def agree(cell, values, least=1):
    """Hold the number with which a cell ends, and those in brackets after it, against values: rounded as shown. Whole
    numbers count as if they had `least` decimals, so that 100% is 99.95 at least."""
    shown = re.findall(NUMBER, re.search(rf"{NUMBER}( \([^)]*\))?\**$", cell.replace("%", ""))[0])
    assert len(shown) == len(values), (cell, values)
    for number, value in zip(shown, values, strict=True):
        decimals = max(least, len(number.partition(".")[2]))
        assert abs(float(number.replace(",", "")) - value) <= 0.5 * 10 ** -decimals + 1e-9, (cell, values)


def says(name, pattern, *known):
    """The groups of a pattern in a page, whose lines are joined, are these numbers."""
    shown = re.search(pattern, " ".join(page(name).split())).groups()
    for cell, value in zip(shown, known, strict=True):
        agree(cell, value)


def mean_of(differences):
    """[mean], [low] and [high] of differences by training, by scipy."""
    interval = stats.ttest_1samp(differences, 0).confidence_interval()
    return [statistics.mean(differences)], [interval.low], [interval.high]


def agree_range(text, known, least=1):
    """`a (b to c)` against the median and the range of some numbers."""
    agree(text.replace(" to ", ", "), spread(known), least)


def less(one, other, column, by=None, scale=100):
    """Points of one (table, row) above another, seed by seed; by: the column of the other, if it is another one."""
    return [x - y for x, y in zip(values(*one, column, scale), values(*other, by or column, scale), strict=True)]


def unequal(one, other, columns):
    """{column: points of one (table, row) above another, seed by seed}, but where all seeds are equal."""
    gaps = {c: less(one, other, c) for c in columns}
    gaps = {c: gap for c, gap in gaps.items() if max(map(abs, gap)) > 1e-9}
    assert all(len(set(gap)) > 1 for gap in gaps.values())  # else there is no interval
    return gaps


def leaves_out_0(gap):
    """Does the 95% interval of the mean of some differences leave 0 out?"""
    return stats.ttest_1samp(gap, 0).pvalue < 0.05


def count_apart(one, other, columns):
    """Of the columns in which not all seeds are equal: how many, of how many the interval leaves 0 out, in how many all
    seeds are apart, and the smallest p."""
    gaps = unequal(one, other, columns)
    chances = [stats.ttest_1samp(gap, 0).pvalue for gap in gaps.values()]
    pairs = [(values(*one, c), values(*other, c)) for c in gaps]
    order = sum(max(x) < min(y) or max(y) < min(x) for x, y in pairs)
    return len(chances), sum(p < 0.05 for p in chances), order, min(chances, default=1)


# label of a row in the README's results: (ours, what stands beside it), each a table, a row and a column
CLAIMS = {
    "100 digits": (("sweep_digits_waiting", "frozen prompts", "uniform_100"),
                   ("sweep_digits", "without end and margin", "uniform_100")),
    "24 digits; track N": (("sweep_track_n_more", "frozen prompts", "uniform_24"),
                           ("sweep_track_n_more", "frozen prompts", "32_uniform_24")),
    "8 digits, beside 12": (("sweep_baselines", "1 block x 8 loops", "uniform_8"),
                            ("sweep_baselines", "12 untied layers", "uniform_8")),
    "8 digits, beside one": (("sweep_baselines", "1 block x 8 loops", "uniform_8"),
                             ("sweep_baselines", "1 layer", "uniform_8")),
    "5 digits": (("sweep_baselines", "looped, learned positions", "uniform_5"),
                 ("sweep_baselines", "nanoGPT, 6 layers of 384", "uniform_5")),
    "24 digits, all at once": (("sweep_track_p_packed", "8 problems per row", "uniform_24"),
                               ("sweep_track_p_packed", "one problem per row", "uniform_24")),
    "text, beside 12": (("sweep_text", "1 x 12", "best_val_loss"), ("sweep_text", "12 layers", "best_val_loss")),
    "text, beside one": (("sweep_text", "1 x 12", "best_val_loss"), ("sweep_text", "1 layer", "best_val_loss"))}


@pytest.mark.parametrize("label", CLAIMS)
def test_claims(label):
    """The README's results: the numbers, of how many seeds, on which GPU, of how many parameters."""
    what, ours, beside, count, card, _ = line(table("README.md", "Results")[1], label)
    counts = count.split(" and ")  # ours, and where it differs what stands beside it
    for cell, size, seen, (name, row, column) in zip((ours, beside), (what, beside), (counts[0], counts[-1]),
                                                     CLAIMS[label], strict=True):
        agree(cell, spread(values(name, row, column, 1 if "loss" in column else 100)))
        runs = found(name, row=row)
        assert str(len(runs)) == seen
        assert all(card in r["device"] for r in runs)
        for millions in re.findall(r"[\d.]+(?= M\b)", size):
            agree(millions, [float(runs[0]["parameters"]) / 1e6])


def test_the_korean_page_has_claims_of_the_english_one():
    """Three rows, with the same cells of numbers, and what it says of default thresholds."""
    english, korean = table("README.md", "Results")[1], table("README.ko.md", "결과")[1]
    assert [row[1:2] + row[3:5] for row in korean] == [
        row[1:2] + row[3:5] for label in ("100 digits", "8 digits, beside 12", "text, beside 12")
        for row in [line(english, label)]]
    for row, label in zip(korean, ("100 digits", "8 digits, beside 12", "text, beside 12"), strict=True):
        assert row[2].rpartition(": ")[2] == line(english, label)[2].rpartition(": ")[2]
    of_text = [re.findall(r"[\d.]+%", re.search(words, " ".join(page(name).split()))[0]) for name, words in (
        ("README.md", r"`confidence` has [\d.]+% on search.*?`entropy` [\d.]+%"),
        ("README.ko.md", r"`confidence`의 정답률은 .*?`entropy`는 [\d.]+%"))]
    assert of_text[0] == of_text[1]


def test_all_claims_are_checked():
    assert len(table("README.md", "Results")[1]) == len(CLAIMS) <= 8


def test_what_stands_beside_the_claims():
    """The looped model at the depth of 12 layers; on text the mean difference, by scipy, and 12 layers with rope."""
    what = line(table("README.md", "Results")[1], "8 digits, beside 12")[0]
    agree(re.search(r"\(12 loops: ([\d.]+), one seed\)", what)[1],
          values("sweep_baselines", "1 block x 12 loops", "uniform_8"))
    ours, layers, rope = (values("sweep_text", row, "best_val_loss", 1)
                          for row in ("1 x 12", "12 layers", "12 layers, rope"))
    interval = stats.ttest_rel(layers, ours).confidence_interval()
    wanted = [statistics.mean(layers) - statistics.mean(ours), interval.low, interval.high]
    for name in ("README.md", "docs/text.md"):
        text = " ".join(page(name).split())
        shown = re.search(r"is ([\d.]+) nats better than .*?95%: ([\d.]+) to ([\d.]+)", text).groups()
        for number, value in zip(shown, wanted, strict=True):
            agree(number, [value])
    agree(re.search(r"12 layers with rope \(([\d.]+), two seeds\)", " ".join(page("README.md").split()))[1],
          [statistics.median(rope)])
    assert len(rope) == 2


ADDITIONS = {  # label in docs/addition.md: table, row, columns
    "address**": ("sweep_digits_waiting", "frozen prompts", "small_uniform_{}", "uniform_{}"),
    "address without": ("sweep_digits", "the recipe", "small_uniform_{}", "uniform_{}"),
    "the same without": ("sweep_digits", "without end and margin", "small_uniform_{}", "uniform_{}"),
    "search**": ("sweep_track_n_more", "frozen prompts", "uniform_{}"),
    "search, long": ("sweep_track_n_more", "frozen prompts", "hard_{}"),
    "search, 32": ("sweep_track_n_more", "frozen prompts", "32_uniform_{}"),
    "all digits at once": ("sweep_track_p_packed", "8 problems per row", "uniform_{}"),
    "all at once, address": ("sweep_track_p_packed", "8 problems per row", "56_uniform_{}"),
    "all at once, search:": ("sweep_track_p", "frozen prompts", "uniform_{}"),
    "all at once, search, 56": ("sweep_track_p", "frozen prompts", "56_uniform_{}"),
    "all at once, search without": ("sweep_track_p", "leading zeros", "uniform_{}"),
    "the same, 56": ("sweep_track_p", "leading zeros", "56_uniform_{}"),
    "baseline: 1 block": ("sweep_baselines", "1 block x 8 loops", "uniform_{}"),
    "baseline: 12 untied": ("sweep_baselines", "12 untied layers", "uniform_{}"),
    "baseline: 1 layer": ("sweep_baselines", "1 layer", "uniform_{}"),
    "baseline: nanoGPT": ("sweep_baselines", "nanoGPT, 6 layers of 384", "uniform_{}"),
    "baseline: looped, learned": ("sweep_baselines", "looped, learned positions", "uniform_{}"),
    "baseline: looped, rope": ("sweep_baselines", "looped, rope", "uniform_{}")}


@pytest.mark.parametrize("label", ADDITIONS)
def test_additions(label):
    """The table of docs/addition.md; what was not measured is left empty."""
    name, row, *columns = ADDITIONS[label]
    head, rows = table("docs/addition.md", "Results")
    for digits, cell in list(zip(head, line(rows, label), strict=True))[1:]:
        named = [c.format(digits) for c in columns]
        if cell:
            agree(cell, seeds(name, row, *named))
        else:
            assert not any(found(name, row=row)[0].get(c) for c in named)


@pytest.mark.parametrize(("label", "name", "row"), [
    ("no next place", "sweep_digits_parts", "no next place"),
    ("numbers as they are", "sweep_digits_parts", "numbers as they are"),
    ("no runs", "sweep_digits_parts", "louder without runs"),
    ("1 to 3", "sweep_digits_parts", "runs without louder"),
    ("the same, 52,000", "sweep_digits", "without end and margin"), ("all", "sweep_digits", "the recipe")])
def test_parts(label, name, row):
    """What each part of the long recipe gives."""
    columns = "uniform_24", "uniform_40", "uniform_60", "uniform_100", "equal_60", "shorter_a_40"
    for column, cell in zip(columns, line(table("docs/addition.md", "The address")[1], label)[1:], strict=True):
        agree(cell, seeds(name, row, column)[:1 + ("(" in cell)])


@pytest.mark.parametrize(("label", "row"), [
    ("the recipe", "the recipe"), ("two loops", "two loops"), ("one loop", "one loop"),
    ("4 layers", "4 untied layers"), ("the margin without", "margin alone"), ("the end without", "end alone"),
    ("no next place", "no next place")])
def test_what_depth_is_for(label, row):
    """With an address, and without: fewer loops, layers of their own, parts taken away."""
    columns = *(f"uniform_{n}" for n in (12, 24, 40, 60, 100)), "equal_100"
    for column, cell in zip(columns, line(table("docs/addition.md", "What depth is for, then")[1], label)[1:],
                            strict=True):
        agree(cell, seeds("sweep_digits_depth", row, column))


def test_one_loop_in_the_readme():
    shown = re.search(r"trained with one, it has (\d+)% at 100 digits too \(\[(\d) seeds\]", page("README.md")).groups()
    known = values("sweep_digits_depth", "one loop", "uniform_100")
    agree(shown[0], [min(known)])
    assert int(shown[1]) == len(known)


AT_ONCE = "All digits at once: the carry in latent space"


@pytest.mark.parametrize(("nth", "label", "name", "row"), [
    (1, "eight", "sweep_track_p_packed", "8 problems per row"),
    (1, "four", "sweep_track_p_packed", "4 problems per row"),
    (1, "one", "sweep_track_p_packed", "one problem per row"),
    (5, "the place below", "sweep_track_p_below", "the place below"),
    (5, "and the end", "sweep_track_p_below", "the same with end and margin"),
    (5, "and no longer", "sweep_track_p_below", "no longer rows")])
def test_all_digits_at_once(nth, label, name, row):
    """Columns are named by digits, and by loops where these are not the 14 of training."""
    head, rows = table("docs/addition.md", AT_ONCE, nth)
    for title, cell in list(zip(head, line(rows, label), strict=True))[1:]:
        if title == "seeds":
            assert cell == str(len(found(name, row=row)))
        else:
            digits, loops = re.fullmatch(r"(\d+)(?: digits)?(?:, (\d+) loops)?", title).groups()
            agree(cell, seeds(name, row, f"{loops + '_' if loops else ''}uniform_{digits}"))


def test_digits_after_so_many_loops():
    head, rows = table("docs/addition.md", AT_ONCE, 2)
    for digits, *shown in rows:
        for loops, cell in zip(head[1:], shown, strict=True):
            (row,) = found("track_p_loops", loops=loops.split()[0], kind="uniform", n=digits)
            agree(cell, [100 * float(row["accuracy"])])


@pytest.mark.parametrize(("label", "name", "row"), [
    ("one", "sweep_demo_parallel_depth", "one loop"), ("two", "sweep_demo_parallel_depth", "two loops"),
    ("6 to 10", "sweep_demo_parallel", "4 problems per row")])
def test_trained_with_fewer_loops(label, name, row):
    head, rows = table("docs/addition.md", AT_ONCE, 3)
    for digits, cell in list(zip(head, line(rows, label), strict=True))[1:]:
        agree(cell, seeds(name, row, f"uniform_{digits}"))


@pytest.mark.parametrize(("label", "name", "row"), [
    ("eight", "sweep_track_p_packed", "8 problems per row"), ("one", "sweep_track_p_packed", "one problem per row"),
    ("without the place below", "sweep_track_p", "leading zeros"),
    ("the same with frozen prompts", "sweep_track_p", "frozen prompts")])
def test_how_loops_grow(label, name, row):
    head, rows = table("docs/addition.md", AT_ONCE, 4)
    titles = [re.match(r"`\w+`", title)[0].strip("`") for title in head[1::2]]
    for (rule, digits), cell in zip(((r, n) for r in titles for n in (12, 24)), line(rows, label)[1:], strict=True):
        if cell:
            known = found(name, row=row)
            grown = [float(r[f"{rule}_loops_solved_{digits}"]) / float(r[f"{rule}_loops_solved_4"]) for r in known]
            agree(cell.split(", ")[0], [statistics.median(grown)], least=2)
            agree(cell, seeds(name, row, f"{rule}_uniform_{digits}")[:1])


def test_packed_rows():
    head, rows = table("docs/addition.md", AT_ONCE, 6)
    for digits, cell, best, alone in list(zip(head, *rows, strict=True))[1:]:
        agree(alone, values("sweep_demo_parallel", "one problem per row", f"uniform_{digits}"))
        known = values("sweep_demo_parallel", "4 problems per row", f"uniform_{digits}")
        agree(cell, [statistics.median(known), min(known)])
        agree(best, [max(known)])


@pytest.mark.parametrize("model", ["1 x 12", "12 layers"])
def test_ranks(model):
    """docs/scale.md: the step on one GPU and on two."""
    one, same, each = (found("ranks_h100_80gb_hbm3", model=model, what=what)[0] for what in (
        "one", "same batch", "batch of each"))
    _, *said = line(table("docs/scale.md", "One training on several GPUs", 1)[1], model)
    agree(said[0], [float(one["ms"])])
    agree(said[1], [float(same["ms"]), float(same["ratio"])])
    agree(said[2], [float(each["ms"])])
    agree(said[3].removesuffix(" times"), [float(each["ratio"])])
    assert all(" met" in r["bar"] for r in rows_of("ranks_h100_80gb_hbm3") if r["bar"])


HOSTS = "scale_first_host", "scale_second_host", "scale_third_host", "scale"  # with four H200; the last one with eight
MODELS = "1 x 12", "12 layers"


def of_ranks(name, model, what, count, **where):
    """The one row of a table of several GPUs, numbers as such."""
    (row,) = found(name, model=model, what=what, ranks=str(count), **where)
    return {k: float(x) if k in bench_ranks.NUMBERS and x else x for k, x in row.items()}


@pytest.mark.parametrize("plain", ["", ", plain"])
@pytest.mark.parametrize("model", MODELS)
def test_four_and_eight_ranks(model, plain):
    """docs/scale.md: a step on more GPUs, what two led to expect of it, and the share of the exchange."""
    one = of_ranks("scale", model, f"one{plain}", 1)
    _, rows = table("docs/scale.md", "One training on several GPUs", 2)
    for count in (8,) if plain else (4, 8):
        same, each = (of_ranks("scale", model, what + plain, count) for what in ("same batch", "batch of each"))
        if plain:  # as long as on two
            same, each = (row | {"expected_ms": of_ranks("scale", model, row["what"], 2)["ms"]} for row in (same, each))
        _, *said = line(rows, f"plain, {model} on {count}" if plain else f"{model} on {count}")
        for cell, row, columns in zip(said, (one, same, same, same, each, each, each), (
                ["ms"], ["ms", "expected_ms"], ["ratio"], ["exchange"], ["ms", "expected_ms"], ["ratio"], ["exchange"]),
                strict=True):
            if plain and columns == ["exchange"]:
                assert not cell
            else:
                agree(cell.removesuffix(" times"), [row[c] * (100 if c == "exchange" else 1) for c in columns])
    assert not any("MISSED" in r["bar"] for r in rows_of("scale"))


def test_what_is_said_of_eight_ranks():
    """docs/scale.md, docs/findings.md, docs/decisions.md and the two READMEs."""
    each, same = ({(model, n): of_ranks("scale", model, what, n) for model in MODELS for n in (2, 4, 8)}
                  for what in ("batch of each", "same batch"))
    one = {model: of_ranks("scale", model, "one", 1) for model in MODELS}
    others = [of_ranks(name, "1 x 12", "batch of each", 4)["ratio"] for name in HOSTS[:3]]
    says("docs/findings.md", r"Eight GPUs do (\S+) times the tokens of one on 1 x 12, four (\S+) \(on three other "
         r"hosts (\S+) to ([\d.]+)\), (\S+) and (\S+) on 12 layers", *([x] for x in (
             each["1 x 12", 8]["ratio"], each["1 x 12", 4]["ratio"], min(others), max(others),
             each["12 layers", 8]["ratio"], each["12 layers", 4]["ratio"])))
    says("docs/findings.md", r"the same batch \((\S+) and (\S+) of the time on eight\)",
         *([of_ranks("scale", model, "same batch, plain", 8)["ratio"]] for model in MODELS))
    says("docs/scale.md", r"eight sequences are left per GPU, which alone take (\d+)% of the time of 64 \((\d+)% of 12",
         *([round(100 * of_ranks("scale", model, "one, its share", 1, sequences="8")["ms"] / one[model]["ms"])]
           for model in MODELS))
    tenth = [100 * of_ranks(name, "12 layers", "same batch", 4)["exchange"] for name in HOSTS[1:]]
    says("docs/decisions.md", r"four GPUs do \((\S+) to (\S+)% on three hosts\), with 8 on each of eight \[(\S+)%\]",
         *limits(tenth), [100 * same["12 layers", 8]["exchange"]])
    either = [[each[model, 8]["ratio"]] for model in MODELS]
    for name, pattern in (("README.md", r"Eight GPUs, a batch each, do ([\d.]+) to ([\d.]+) times"),
                          ("README.ko.md", r"여덟 장이면 초당 토큰이 ([\d.]+)~([\d.]+)배")):
        says(name, pattern, min(either), max(either))
    assert round(one["12 layers"]["gradient_mb"] / one["1 x 12"]["gradient_mb"]) == 11  # eleven times the gradients
    assert one["12 layers"]["ms"] < one["1 x 12"]["ms"]
    assert all(same["12 layers", n]["ms"] > same["1 x 12", n]["ms"] for n in (4, 8))
    added = {n: each["12 layers", n]["ms"] - one["12 layers"]["ms"] for n in (2, 4, 8)}
    says("docs/scale.md", r"their a\(2\), a\(4\) and a\(8\) are (\S+), (\S+) and (\S+) ms, where (\S+) was expected of",
         *([x] for x in (*added.values(), each["12 layers", 8]["expected_ms"] - one["12 layers"]["ms"])))
    h100, two = ([of_ranks("ranks_h100_80gb_hbm3", model, what, n)["ms"] for model in MODELS]
                 for what, n in (("one", 1), ("batch of each", 2)))
    says("docs/scale.md", r"On the two H100s a\(2\) is (\S+) ms for 1 x 12 and (\S+) for 12 layers",
         *([y - x] for x, y in zip(h100, two, strict=True)))
    far = [[float(re.search(r"64 GPUs ([\d.]+) ms", x)[1])] for x in bench_ranks.expected(
        figures.read_table(ROOT / "results/ranks_h100_80gb_hbm3.csv"))]
    says("docs/scale.md", r"1 x 12 is expected to take (\S+) ms \((\S+) on one\), 12 layers (\S+) \(([\d.]+)\)",
         far[0], [h100[0]], far[1], [h100[1]])


def test_what_two_ranks_foretell_and_what_hosts_differ_by():
    offs = {(name, r["model"], r["what"], int(r["ranks"])): float(r["ms"]) / float(r["expected_ms"]) - 1
            for name in HOSTS for r in rows_of(name) if r["expected_ms"]}
    assert len(offs) == 18
    assert max(x for (name, *_), x in offs.items() if name != "scale") < 0
    here = {key[1:]: x for key, x in offs.items() if key[0] == "scale"}
    by_model = {model: [x for (of, *_), x in here.items() if of == model] for model in MODELS}
    assert max(by_model["12 layers"]) < 0 <= min(by_model["1 x 12"])
    eight, four = (max((abs(x), of) for (of, _, ranks), x in here.items() if ranks == n) for n in (8, 4))
    assert eight[1] == four[1] == "12 layers"
    assert eight[0] == max(map(abs, offs.values()))
    says("docs/scale.md", r"a captured step on eight to ([\d.]+)% and on four to ([\d.]+)%: 12 layers are faster than "
         r"that, 1 x 12 up to ([\d.]+)% slower", [100 * eight[0]], [100 * four[0]], [100 * max(by_model["1 x 12"])])
    says("docs/findings.md", r"the captured steps to within ([\d.]+)%", [100 * eight[0]])
    two = {name: of_ranks(name, "1 x 12", "same batch", 2) for name in (*HOSTS, "ranks_h100_80gb_hbm3")}
    first, second, third, here, h100 = ([row["ratio"]] for row in two.values())
    says("docs/scale.md", r"1 x 12 did ([\d.]+), ([\d.]+) and ([\d.]+) times the tokens; two GPUs keep to 0\.60 of "
         r"one's time for the same batch here \(([\d.]+)\), on the first \(([\d.]+)\), the third \(([\d.]+)\) and the "
         r"H100s \(([\d.]+)\), not on the second \(([\d.]+)\)",
         *([of_ranks(name, "1 x 12", "batch of each", 4)["ratio"]] for name in HOSTS[:3]),
         here, first, third, h100, second)
    assert [name for name, row in two.items() if "MISSED" in row["bar"]] == ["scale_second_host"]


RUNS_OF_RANKS = [("two, the same batch", 2, "same batch"), ("two, 64 each", 2, "batch of each"),
                 ("four, the same batch", 4, "same batch"), ("four, 64 each", 4, "batch of each"),
                 ("eight, the same batch", 8, "same batch"), ("eight, 64 each", 8, "batch of each")]


def test_the_entry_of_eight_ranks():
    """Captured steps, those of the other hosts, and what the text counts."""
    entry = "Eight GPUs do 7.798 times"
    _, rows = entry_table(entry, 1)
    for at, model in zip((0, 7), MODELS, strict=True):
        shares = {r["sequences"]: [float(r["ms"])] for r in rows_of("scale")
                  if r["model"] == model and r["ranks"] == "1" and "plain" not in r["what"]}
        assert rows[at][0].startswith(model)
        for shown, n in zip(rows[at][1].split(", "), ("64", "32", "16", "8"), strict=True):
            agree(shown, shares[n])
        for (name, ms, ratio, others, share), (label, count, what) in zip(
                rows[at + 1:at + 7], RUNS_OF_RANKS, strict=True):
            row = of_ranks("scale", model, what, count)
            assert name == label
            agree(ms, [row["ms"], row["expected_ms"]] if count > 2 else [row["ms"]])
            agree(ratio.split()[0], [row["ratio"]])
            agree(share, [100 * row["exchange"]])
            there = [float(r["ratio"]) for host in HOSTS[:3] for r in rows_of(host)
                     if (r["model"], r["what"], r["ranks"]) == (model, what, str(count))]
            assert bool(there) == bool(others) == (count < 8)
            if there:
                for shown, known in zip(others.split(" to "), (min(there), max(there)), strict=True):
                    agree(shown, [known])


def test_what_the_entry_of_eight_ranks_says():
    """The log, beside its tables."""
    def of(what, n, column="ms", **where):
        """Of 1 x 12 and of 12 layers."""
        return [of_ranks("scale", model, what, n, **where)[column] for model in MODELS]

    def ratios(x, y):
        return [[a / b] for a, b in zip(x, y, strict=True)]

    def longer(x, y):
        return [100 * (x / y - 1)]
    ratio = {what: [[x] for x in of(what, 8, "ratio")] for what in ("same batch", "batch of each")}
    for words in (r"### Eight GPUs do (\S+) times .*? 1 x 12, (\S+) on", r"eight do (\S+) and (\S+) times the tokens"):
        says("root.md", words, *ratio["batch of each"])
    says("root.md", r"less and less: eight take (\S+) and (\S+) of the time", *ratio["same batch"])
    one, few, four, same, each = (of("one", 1), of("one, its share", 1, sequences="8"), of("same batch", 4),
                                  of("same batch", 8), of("batch of each", 8))
    say = r"of one, (\S+) and (\S+) million per second\. .*? do (\S+)% more tokens on eight \((\S+)% on one\)"
    says("root.md", say, *([x / 1e6] for x in of("batch of each", 8, "tokens_s")), longer(*each), longer(*one))
    say = r"alone take (\S+) of the time of 64 \(12 layers (\S+)\)\. .*? are (\S+)% slower .*? on four and (\S+)% on"
    says("root.md", say, *ratios(few, one), longer(*four[::-1]), longer(*same[::-1]))
    off = [sorted(100 * (float(r["ms"]) / float(r["expected_ms"]) - 1) for r in rows_of("scale")
                  if r["model"] == model and r["expected_ms"]) for model in MODELS]
    assert off[0][0] == 0
    far = [max(abs(float(r["ms"]) / float(r["expected_ms"]) - 1) for r in rows_of("scale")
               if r["ranks"] == n and r["expected_ms"]) for n in ("8", "4")]
    says("root.md", r"holds on eight to (\S+)% and on four to (\S+)%, both of 12 layers", *([100 * x] for x in far))
    says("root.md", r"captured steps on eight to within (\S+)%; 32", [100 * far[0]])
    say = r"four of 12 layers are faster than expected, by (\S+) to (\S+)%\. .*? three are (\S+) to (\S+)% slower"
    says("root.md", say, [-off[1][3]], [-off[1][0]], [off[0][1]], [off[0][3]])
    say = r"add 0.52, 0.57 and 0.60 ms .*?, where (\S+) and (\S+) were .*? 1 x 12 add (\S+), (\S+) and (\S+), where "
    added = [[[x - y] for x, y in zip(of("batch of each", n, column), one, strict=True)] for n, column in (
        (4, "expected_ms"), (8, "expected_ms"), (2, "ms"), (4, "ms"), (8, "ms"))]
    says("root.md", rf"{say}(\S+) and (\S+) were", *(x[1] for x in added[:2]), *(x[0] for x in added[2:]),
         *(x[0] for x in added[:2]))
    say = r"is (\S+) times as fast as a plain one for 1 x 12, (\S+) times for 12 layers; with 64 each (\S+) and (\S+) "
    says("root.md", say, *ratios(of("same batch, plain", 8), same), *ratios(of("batch of each, plain", 8), each))
    say = r"at most (\S+) ms of (\S+) to be hidden\); 1 x 12 has (\S+)%, (\S+) ms\. "
    says("root.md", say, [same[1] - few[1]], [same[1]], [100 * (1 - few[0] / same[0])], [same[0] - few[0]])


@pytest.mark.parametrize("name", ["scale_third_host", "scale"])
def test_plain_ranks_wait_for_the_host(name):
    """The tables of plain steps in the log; their ranges overlap, but one pair of 42 on the host with eight GPUs."""
    _, rows = entry_table("Eight GPUs do 7.798" if name == "scale" else "Four GPUs do 3.954", 2)
    runs = [(f"{what}, plain", n) for what in ("same batch", "batch of each")
            for n in ((2, 4, 8) if name == "scale" else (2, 4))]
    apart = []
    for model, shown, ratios in zip(MODELS, rows[::2], rows[1::2], strict=True):
        known = [of_ranks(name, model, what, n) for what, n in (("one, plain", 1), *runs)]
        ranges = [[float(x) for x in r["note"].split(" to ")] for r in known]
        assert shown[0] == model
        for cell, r, (low, high) in zip(shown[1:], known, ranges, strict=True):
            agree(cell.replace(" to ", ", "), [r["ms"], low, high])
        for cell, r in zip(ratios[2:], known[1:], strict=True):
            agree(cell.split()[0], [r["ratio"]])
        apart += [(a["what"], a["ranks"], b["what"], b["ranks"]) for (a, x), (b, y) in itertools.combinations(
            zip(known, ranges, strict=True), 2) if max(x[0], y[0]) > min(x[1], y[1])]
    assert apart == ([("same batch, plain", 4, "batch of each, plain", 8)] if name == "scale" else [])


def test_demos_over_four_gpus():
    """The first sweeps of 32 demo trainings, 8 per GPU, and of 8 on one GPU, as the log has them."""
    _, rows = entry_table("Four GPUs do 3.954 times", 3)
    for name, start, count in (("demos_on_four_gpus", "32 on", 4), ("demos_on_one_gpu", "8 on", 1)):
        on, known = zip(*((r["ran_on"], float(r["ms"])) for r in rows_of(name)), strict=True)
        assert sorted(map(on.count, set(on))) == [8] * count
        _, ms, per_second, *_ = line(rows, start)
        agree_range(ms, known)
        agree(per_second, [sum(1000 / x for x in known)], 0)


def test_demos_over_four_gpus_again():
    """The later ones: the table of the log, and docs/scale.md."""
    known = {}
    for r in rows_of("demos"):
        numbers = {k: float(r[k]) for k in ("ms", "seconds", "began", "trained", "evaluated")}
        known.setdefault(r["sweep"], []).append(numbers | dict(on=r["ran_on"]))
    rows = [row for entry, n in (("`evaluate.py` of a demo", 2), ("A sweep loads torch's compiler once", 1),
                                   ("Eight GPUs do 7.798 times", 3))
            for row in entry_table(entry, n)[1]]
    for sweep, runs in known.items():
        on = [r["on"] for r in runs]
        assert set(map(on.count, on)) == {4 if "eight" in sweep else 8}
        _, began, trained, evaluated, steps = line(rows, sweep)
        ms = [r["ms"] for r in runs]
        agree(began, [min(r["began"] for r in runs)])
        agree(trained, [max(r["trained"] for r in runs)])
        agree(evaluated, [max(r["evaluated"] for r in runs)])
        seconds, ms_range = steps.split(" s; ")
        agree(seconds, [statistics.median(ms)])  # 1,000 steps
        agree_range(ms_range, ms)
    four, one, other, now, full, alone, eight = known.values()
    says("docs/scale.md", r"all had ended after ([\d.]+) s: ([\d.]+) until the first .*?, ([\d.]+) of a training, "
         r"of which its steps are ([\d.]+) .*?, ([\d.]+) of its two evaluations\. .*? took ([\d.]+) s, "
         r".* GPUs ([\d.]+) ",
         [max(r["evaluated"] for r in now)], [min(r["began"] for r in now)],
         [statistics.median(r["seconds"] for r in now)], [statistics.median(r["ms"] for r in now)],
         [statistics.median(r["evaluated"] - r["trained"] for r in now)],
         *([max(r["evaluated"] for r in runs)] for runs in (full, alone)))
    evaluations, training, steps = ([statistics.median(x)] for x in (
        [r["evaluated"] - r["trained"] for r in eight], [r["seconds"] for r in eight], [r["ms"] for r in eight]))
    began, ended = [min(r["began"] for r in eight)], [max(r["evaluated"] for r in eight)]
    says("docs/scale.md", r"gain nothing: all had ended after ([\d.]+) s, ([\d.]+) of .*? began, ([\d.]+) of a training"
         r", of which its steps are ([\d.]+), ([\d.]+) of its",
         ended, began, training, steps, evaluations)
    for name, words in (("docs/findings.md", r"end after (\S+) s on eight, after (\S+) on four of another"),
                        ("root.md", r"on eight end after (\S+) s, on four of another host after (\S+) \(eight")):
        says(name, words, ended, [max(r["evaluated"] for r in now)])
    again, before = (line(rows, x)[1:] for x in ("32 on four of another host", "32 on four, by auto, empty caches"))
    assert again == before
    says("root.md", r"A training takes ([\d.]+) s \(median\), ([\d.]+) on four, .*? its two evaluations take ([\d.]+), "
         r"on four ([\d.]+); the first training begins ([\d.]+) s later",
         training, [statistics.median(r["seconds"] for r in now)],
         evaluations, [statistics.median(r["evaluated"] - r["trained"] for r in now)],
         [began[0] - min(r["began"] for r in now)])
    says("root.md", r"All together they do (\S+) steps per second, on four ([\d,]+), if",
         *([round(sum(1e3 / r["ms"] for r in runs), -1)] for runs in (eight, now)))
    says("root.md", r"took ([\d.]+) s \(median\) and takes ([\d.]+): .*? it takes ([\d.]+) where 32 run and ([\d.]+) ",
         *([statistics.median(r["seconds"] for r in runs)] for runs in (four, now, full, alone)))
    says("root.md", r"takes ([\d.]+) s \(median\), with full ones ([\d.]+): the difference are .*?, it is ([\d.]+)\.",
         *([statistics.median(r["seconds"] for r in runs)] for runs in (four, one, other)))
    says("root.md", r"The four GPUs step ([\d.]+) times as often per second as the one",
         [sum(1 / r["ms"] for r in four) / sum(1 / r["ms"] for r in one)])


def test_what_the_loop_kernel_reads():
    """Counters of a profiler beside the count: weights of a block of C channels in bfloat16, and x0, by each of B
    sequences in every loop; of HBM each once per launch. MB per loop, medians of launches."""
    (_, counted), (_, rows) = (entry_table("The weights of the loop kernel come from L2", n) for n in (1, 2))
    for case, of_block, of_all, us, rate, each in counted:
        T, C, B = map(int, case.split("x"))
        (r,) = found("bench_h200", table="loop", case=f"{case} fixed", path="loop kernel")
        block, per_loop = 12 * C ** 2 * 2 / 1e6, float(r["per_loop"])
        agree_each(f"{of_block}, {of_all}, {us}", [block, block * B, per_loop])
        agree_each(f"{rate}, {each}", [block * B / per_loop, block * 1e3 / per_loop])
    assert [r[:2] for r in rows] == [list(x) for x in dict.fromkeys(
        (r["case"], r["caches"]) for r in rows_of("loop_counters_h200"))]
    for case, caches, received, read, missed, hbm, most in rows:
        T, C, B = map(int, case.split("x"))
        launches = found("loop_counters_h200", case=case, caches=caches)
        known = {k: statistics.median(float(r[k]) for r in launches) for k in list(launches[0])[2:]}
        mb = {k: x / known["loops"] for k, x in known.items() if k.endswith("_mb")}
        weights, x0 = 12 * C ** 2 * 2 / 1e6, T * C * B * 2 / 1e6
        assert {float(r["received_mb"]) for r in launches} == {round(12 * (B * weights + x0), 3)}
        agree(received, [mb["received_mb"], B * weights + x0])
        agree_each(f"{read}, {missed}", [mb["l2_read_mb"], mb["l2_miss_mb"]])
        agree(hbm, [mb["hbm_read_mb"], (weights + x0) / known["loops"]])
        if caches == "flushed":
            assert weights + x0 < known["hbm_read_mb"] < 1.1 * (weights + x0)
        for cell, column in zip(most.split(", "), ("l2_percent", "hbm_percent", "sm_percent"), strict=True):
            assert abs(float(cell) - known[column]) <= (0.5 if "." not in cell else 0.005) + 1e-9
    says("root.md", r"in all (\d+) launches to the last digit", [len(rows_of("loop_counters_h200"))])
    (_, _, received, _, _, hbm, _), *_ = rows
    of_all, own, counted_hbm = (float(x) for x in (received.split()[0], *re.findall(NUMBER, hbm)))
    says("root.md", r"come from L2: of (\S+) MB per loop (\S+) come from HBM", [of_all], [own])
    for name in ("docs/kernels.md", "docs/findings.md"):
        says(name, r"stay in L2: of (\S+) MB that a loop reads at 64x256x128 (\S+) come from HBM.*? (\S+) by count",
             [of_all], [own], [counted_hbm])


def test_what_is_said_of_the_counters_of_the_loop_kernel():
    """The log, beside its tables, and docs/findings.md."""
    known, case = {}, "64x256x128"
    for r in rows_of("loop_counters_h200"):
        known.setdefault((r["case"], r["caches"]), []).append({k: float(x) for k, x in list(r.items())[2:]})
    mid = {of: {k: statistics.median(r[k] for r in launches) for k in launches[0]} for of, launches in known.items()}
    cold, warm, few = mid[case, "flushed"], mid[case, "warm"], mid["64x128x128", "warm"]
    says("root.md", r"(\S+) MB per launch of 64x256x128 where (\S+) were counted and ([\d,]+) arrive\. .*? misses "
         r"(\S+)% of what it looks up, (\S+) MB per launch", [cold["hbm_read_mb"]],
         [(12 * 256 ** 2 + 64 * 256 * 128) * 2e-6], [round(cold["received_mb"])],
         [100 * cold["l2_miss_mb"] / cold["l2_read_mb"]], [cold["l2_miss_mb"]])
    says("root.md", r"mean over a launch: L2 is at (\d+)% of its most, HBM at (\S+), the multiprocessors at (\d+)\.",
         [round(warm["l2_percent"])], [cold["hbm_percent"]], [round(warm["sm_percent"])])
    says("root.md", r"reads less than arrives, (\d+)% of it at 64x256x128, (\d+) at 64x128x128",
         *([round(100 * x["l2_read_mb"] / x["received_mb"])] for x in (cold, few)))
    arrive, read = ([r[column] / r["microseconds"] for caches in ("flushed", "warm") for r in known[case, caches]]
                    for column in ("received_mb", "l2_read_mb"))
    says("root.md", r"So (\S+) TB/s arrive, and (\S+) to (\S+) are read",
         [statistics.median(arrive)], [min(read)], [max(read)])
    says("root.md", r"and yet up to (\S+) MB per loop are read of HBM",
         [max(x["hbm_read_mb"] / x["loops"] for (_, caches), x in mid.items() if caches == "warm")])
    for (name, _), x in mid.items():
        if "x128x" not in name:
            agree("14.5", [100 * x["received_mb"] / x["microseconds"] / x["sm_percent"]])
    most = max(r[k] for launches in known.values() for r in launches for k in r if k.endswith("percent"))
    for name, words in (("root.md", r"nothing is at more than (\d+)% of its most"),
                        ("docs/findings.md", r"the multiprocessors are at (\d+)% of their most or less")):
        says(name, words, [math.ceil(most)])


def test_what_a_kernel_saves_per_call():
    """The log, where kernels/paths.py leaves the first calls to PyTorch: milliseconds, and seconds of so many calls."""
    loops = {}
    for r in rows_of("bench_h200"):
        if r["table"] == "loop" and r["case"].endswith("adaptive"):
            loops.setdefault(r["case"], {})[r["path"]] = float(r["microseconds"]) / 1e3
    saved = [paths["a eager"] - paths["loop kernel"] for paths in loops.values()]
    calls = CALLS_BEFORE_KERNEL
    says("root.md", r"by the kernel saves (\d+) to (\d+) ms \(.*?, so (\d+) calls save (\d+) to (\d+) s,",
         *([round(x)] for x in (min(saved), max(saved), calls, calls * min(saved) / 1e3, calls * max(saved) / 1e3)))
    for name in ("kernels", "scale", "decisions"):
        says(f"docs/{name}.md", r"(?:leaves the|[Ii]n its) first (\d+) calls", [calls])


def test_the_table_of_eight_ranks():
    """results/scale.md is made of the rows of results/scale.csv."""
    rows = figures.read_table(ROOT / "results/scale.csv")
    assert bench_ranks.markdown(rows) in page("results/scale.md")
    assert [bench_ranks.judge(r, rows) for r in rows] == rows
    assert all(x in page("results/scale.md") for x in bench_ranks.expected(rows))


TEXTS = {"GPT, 12": "12 layers", "1 block, 12": "1 x 12", "GPT, 1 ": "1 layer", "2 blocks": "2 x 6",
         "3 blocks": "3 x 4", "4 blocks": "4 x 3", "6 blocks": "6 x 2", "12 layers with rope": "12 layers, rope",
         "nanoGPT, 6": "nanoGPT, 6 layers"}


@pytest.mark.parametrize("label", TEXTS)
def test_texts(label):
    """docs/text.md: parameters, FLOPs and the best validation loss, median (lowest-highest)."""
    said = line(table("docs/text.md", "One block for twelve layers")[1], label)
    runs = found("sweep_text", row=TEXTS[label])
    agree(said[1].replace(" M", ""), [float(runs[0]["parameters"]) / 1e6])
    agree(said[2].replace(" M", ""), [float(runs[0]["flops_per_token"]) / 1e6], least=0)
    agree(said[3], spread([float(r["best_val_loss"]) for r in runs]))


def test_who_takes_more_loops_in_text():
    """Beside the difficulty of texts: loops by kind of character, the strongest and the weakest correlations."""
    head, rows = table("docs/text.md", "A checkpoint that writes, without a training", 2)
    kinds = {"a space": "space", "inside a word": "inside a word", "punctuation": "punctuation",
             "the first letter of a word": "first letter"}
    for kind, *cell in rows:
        for text, what in zip(cell, ("loops", "settles"), strict=True):
            (r,) = found("analyze_text_difficulty", what=what, weights="trained", **{"class": kinds[kind]})
            agree(text, [float(r["value"])])
    said = {f"{what}_{of}": float(found("analyze_text_difficulty", what=f"{what}_spearman_with_{of}",
                                        weights="trained")[0]["value"]) for what in ("loops", "settles", "convergence")
            for of in ("sentence_length", "position", "nesting", "surprise")}
    assert max(abs(x) for name, x in said.items() if not name.endswith("surprise")) < 0.04
    assert (round(said["loops_surprise"], 2), round(said["settles_surprise"], 2)) == (0.30, 0.19)


@cache
def beside_known():
    """The table of loops beside layers, by its first five columns."""
    return {tuple(r[k] for k in ("pair", "what", "weights", "loop", "class")): float(r["value"])
            for r in rows_of("beside_text_12")}


def beside(pair, what, loop, group=None, weights="trained"):
    """The number of a loop or layer; without a group beside the one of its own number."""
    return beside_known()[pair, what, weights, str(loop), group or f"beside {loop}"]


OF_SEEDS = "loop_gpt_0", "loop_gpt_1"
PAIRS = {"CKA, loop beside layer": ("cka", *OF_SEEDS), "layer beside layer": ("cka", "gpt_gpt"),
         "loop beside loop": ("cka", "loop_loop"), "same guess, loop and layer": ("lens_agreement", *OF_SEEDS),
         "layer and layer": ("lens_agreement", "gpt_gpt"), "loop and loop": ("lens_agreement", "loop_loop")}
CURVES = {"logit lens": ("lens_accuracy", "next token"), "probe, next": ("probe_accuracy", "next token"),
          "probe, character read": ("probe_accuracy", "token read"), "loss": ("loss", "all"),
          "entropy": ("entropy", "all"), "delta": ("delta", "all")}


def test_layers_beside_loops():
    """The tables of the log, and what docs/findings.md and docs/text.md say of them."""
    head, rows = entry_table("12 layers beside 12 loops")
    assert len(rows) == len(PAIRS) + 2
    for label, *shown in rows:
        fresh = label.startswith("untrained")
        what, *pairs = ("cka" if "beside" in label else "lens_agreement", *OF_SEEDS) if fresh else PAIRS[
            label.split(" of the other")[0]]
        for l, cell in zip(head[1:], shown, strict=True):
            if what == "cka" or l != "0":
                known = [100 * beside(pair, what, l, weights="untrained" if fresh else "trained") for pair in pairs]
                assert not fresh or known[0] == known[1]  # one draw
                agree_each(cell, known[:1] if fresh else known)
    head, rows = entry_table("12 layers beside 12 loops", 2)
    assert len(rows) == 2 * len(CURVES)
    for label, *shown in rows:
        kind, of = label.split(": ")
        what, group = CURVES[next(k for k in CURVES if kind.startswith(k))]
        scale, weights = 100 if kind.endswith("%") else 1, "trained" if of == "loops" else "beside"
        for l, cell in zip(head[1:], shown, strict=True):
            if cell:
                agree_each(cell, [scale * beside(pair, what, l, group, weights) for pair in OF_SEEDS])

    similar = [[[100 * beside(pair, "cka", l, f"beside {k}") for k in range(13)] for l in range(13)]
               for pair in OF_SEEDS]
    nearest, log = [[row.index(max(row)) for row in rows] for rows in similar], " ".join(page("root.md").split())
    for of, seed in zip(nearest, "01", strict=True):
        assert f"{', '.join(map(str, of[1:]))} of seed {seed}" in log
    (finding,) = re.findall(r"^\| One block x 12 loops runs ahead of 12 layers .*", page("docs/findings.md"), re.M)
    text = " ".join(page("docs/text.md").split())
    for claim in (finding, text):
        assert [int(x) for x in re.search(r"loop 4 is nearest (?:to )?layer (\d) or (\d)", claim).groups()] == [
            of[4] for of in nearest]

    two = r"([\d.]+) and ([\d.]+)%?"
    ends = [100 * beside(pair, "lens_agreement", 12) for pair in (*OF_SEEDS, "loop_loop", "gpt_gpt")]
    shown = re.search(rf"CKA {two}, with layer 4 {two}\), a probe has {two} there \(layer 4 {two}\); .*? on {two} of "
                      r"the characters \(two trainings of the loop on ([\d.]+), of the layers on ([\d.]+)\)",
                      finding).groups()
    known = [max(rows[4]) for rows in similar] + [rows[4][4] for rows in similar] + [
        100 * beside(pair, "probe_accuracy", 4, "next token", of) for of in ("trained", "beside") for pair in OF_SEEDS]
    agree_each(", ".join(shown), known + ends)
    shown = re.search(rf"after loop 3 a probe has {two} \(layer 3: {two}\), the head {two} \({two}\)\..*? on {two} of "
                      r"the characters; two trainings of the loop agree on ([\d.]+), two of the layers on ([\d.]+)\.",
                      text).groups()
    known = [100 * beside(pair, f"{of}_accuracy", 3, "next token", weights) for of in ("probe", "lens")
             for weights in ("trained", "beside") for pair in OF_SEEDS]
    agree_each(", ".join(shown), known + ends)
    for l in range(1, 13):  # where the head is behind in both seeds, and where it is ahead
        behind = {beside(pair, "lens_accuracy", l, "next token") < beside(
            pair, "lens_accuracy", l, "next token", "beside") for pair in OF_SEEDS}
        assert l > 3 or behind == {True}
        assert not 5 <= l <= 10 or behind == {False}


@pytest.mark.parametrize(("label", "rows"), [
    ("rate of", ["1 x 12, rate 5e-4", "1 x 12, rate 1e-3", "1 x 12, rate 4e-3"]), ("dropout", ["1 x 12, dropout 0.1"]),
    ("inject", ["1 x 12, inject none", "1 x 12, inject concat"]), ("rope", ["1 x 12, rope"]),
    ("loop_norm", ["1 x 12, no step encoding, loop norm"]), ("loops of", ["1 x 8, 12 or 16, no step encoding"])])
def test_what_moves_the_loss(label, rows):
    said = line(table("docs/text.md", "What moves the loss")[1], label)[1].split("; ")
    (base,) = seeds("sweep_text", "1 x 12", "best_val_loss", scale=1)[:1]
    for cell, row in zip(said, rows, strict=True):
        agree(cell.split(",")[0], [seeds("sweep_text_tuning", row, "best_val_loss", scale=1)[0] - base])


DEPTHS = {"search": ("addition_search", "5"), "address": ("addition", "3")}  # names in the README: file, fewest loops


@pytest.mark.parametrize("model", DEPTHS)
def test_halting(model):
    """The README's table, of each model: what a rule is worth at the threshold beside it, against the fixed depth."""
    name, depth = DEPTHS[model]
    (fixed,) = found("decode_cpu", checkpoint=name, rule="none", most_loops=depth)
    rows = [cells for cells in table("README.md", "Halting")[1] if cells[2] == model]
    assert [(r["rule"], r["threshold"]) for r in found("decode_cpu", checkpoint=name) if r["rule"] != "none"] == [
        (cells[0].strip("`"), cells[3]) for cells in rows[1:]]
    for rule, _, _, threshold, *shown in rows:
        (row,) = [fixed] if rule == "`none`" else found("decode_cpu", checkpoint=name, rule=rule.strip("`"))
        assert threshold == (row["threshold"] or f"{depth} loops")
        agree(shown[0], [100 * float(row["accuracy"])])
        for cell, column in zip(shown[1:], ("loops", "ms_alone"), strict=True):
            value, change = re.fullmatch(r"([\d.]+)(?: \(([-+\d]+)%\))?", cell).groups()
            agree(value, [float(row[column])])
            assert (change is None) == (row is fixed)
            assert change is None or abs(int(change) - 100 * (float(row[column]) / float(fixed[column]) - 1)) <= 0.5
    assert {cells[2] for cells in table("README.md", "Halting")[1]} == {*DEPTHS}
    assert [line(table("README.md", "Halting")[1], rule) for rule in ("confidence", "entropy", "delta", "gate")]


def test_halting_of_all_at_once():
    """Which rules save time where 256 problems are written together, and how much."""
    saved = {}
    for name, depth in DEPTHS.values():
        (fixed,) = found("decode_cpu", checkpoint=name, rule="none", most_loops=depth)
        saved |= {(name, r["rule"]): 100 * (1 - float(r["ms_together"]) / float(fixed["ms_together"]))
                  for r in found("decode_cpu", checkpoint=name) if r["rule"] != "none"}
    text = " ".join(page("README.md").split())
    (shown,) = re.findall(r"all 256 at once (.*?), and under 10% nothing is told apart", text)
    shown = re.findall(r"`(\w+)` (?:saves )?(\d+)%", shown)
    paying = {rule: value for (_, rule), value in saved.items() if value >= 10}
    assert [rule for rule, _ in shown] == [*paying]
    assert len(paying) == sum(value >= 10 for value in saved.values())
    for rule, number in shown:
        agree(number, [paying[rule]], least=0)


def test_halting_at_the_defaults():
    """What the README and docs/protocol.md say of default thresholds is of the log."""
    logged = entry_table("The model of a hundred digits that is shipped bears", 4)[1]
    head, rows = table("docs/protocol.md", "What halting pays", 2)
    assert rows == logged
    assert head[2:] == ["`pretrained/addition_search.pt`", "`pretrained/addition.pt`"]
    assert {row[0].strip("`"): row[1] for row in rows} == {
        rule: f"{known.threshold:g}" for rule, known in RULES.items() if rule not in ("none", "energy")}
    text = " ".join(page("README.md").split())
    search, address, entropy = re.search(r"`confidence` has ([\d.]+)% on search and ([\d.]+)% on address, "
                                         r".*?, `entropy` ([\d.]+)% there", text).groups()
    assert line(rows, "confidence")[2].startswith(f"{search}%")
    assert line(rows, "confidence")[3].startswith(f"{address}%")
    assert line(rows, "entropy")[3].startswith(f"{entropy}%")


@pytest.mark.parametrize("rule", RULES)
def test_thresholds(rule):
    """docs/protocol.md: the defaults, and what --frontier tries."""
    said = line(table("docs/protocol.md", "Halting rules")[1], rule)
    default, grid = f"{RULES[rule].threshold:g}" * (rule != "none"), ", ".join(f"{x:g}" for x in RULES[rule].grid)
    assert said[3:] == [default, grid]


@pytest.mark.parametrize("rule", ["fixed depth", "confidence", "entropy", "kl", "delta", "gate` trained along,",
                                  "gate` trained along"])
def test_what_halting_pays(rule):
    rows = table("docs/protocol.md", "What halting pays")[1]
    said = min((r for r in rows if r[0].strip("`").startswith(rule)), key=lambda r: len(r[0]))
    along, fixed = "gate" in rule, not said[1]
    point = dict(loops=f"{float(said[2])}") if fixed else dict(threshold=said[1])
    (row,) = found("halting_track_n_joint" if along else "halting_search_frozen", kind="frontier",
                   rule="fixed" if fixed else rule.partition("`")[0], **point)
    agree(said[2], [float(row["loops"])], least=0)
    agree(said[3], [100 * float(row["accuracy"])])
    if not fixed:
        agree(said[4], [100 * float(row["random_accuracy"])])


def test_kernels():
    """The loop kernel's table is that of results/, and the README's first two rows are of it and of its neighbour."""
    measured = [cells(row) for row in page("results/bench_h200.md").splitlines() if row.startswith("| ")]
    for case, launch, *rest in table("docs/kernels.md", "What they reach")[1]:
        assert [case, launch.replace(" per loop", " a loop"), *rest] in measured
    launch, decision = table("README.md", "Kernels and writing")[1][:2]
    loops = [r for r in rows_of("bench_h200") if re.fullmatch(r"64x128x\d+ adaptive", r["case"])]
    times = [float(r["microseconds"]) for r in loops if r["path"] == "loop kernel"]
    ratios = [float(r["ratio"]) for r in loops if r["path"].startswith("b ")]
    assert len(times) == len(ratios) == 3
    for cell, known in ((launch[1], times), (launch[2], ratios)):
        low, high = re.search(r"([\d.]+) to ([\d.]+)", cell).groups()
        agree(low, [min(known)], least=0)
        agree(high, [max(known)], least=0)
    wide = [float(r["ratio"]) for r in rows_of("bench_h200") if r["case"].startswith("64x384x16 ")
            and r["path"].startswith("b ")]
    shown = re.search(r"at width 384 compiled code takes ([\d.]+) to ([\d.]+) of", page("README.md")).groups()
    agree(shown[0], [min(wide)])
    agree(shown[1], [max(wide)])
    of = {r["path"]: r for r in rows_of("bench_h200") if (r["table"], r["case"]) == ("halt", "8192x50304")}
    agree(decision[1].removesuffix(" us"), [float(of["kernel"]["microseconds"])], least=0)
    agree(decision[2].removesuffix(" times as long"), [float(of["torch.compile"]["ratio"])])


def written(case, path=None, name="decode_h100_80gb_hbm3"):
    """A row of the benchmark of writing."""
    (row,) = [r for r in rows_of(name) if r["case"] == case and r["path"] == (path and f"called: {path}" or "")]
    return row


def test_writing():
    """The README's rows on writing: what one CPU core takes is of the log, the others of the benchmark of writing."""
    core, launch, text = table("README.md", "Kernels and writing")[1][2:]
    cached, again = (re.search(r"([\d.]+) s$", cell)[1] for cell in core[1:3])
    assert f"| {again} s | {cached} s |" in page("root.md")
    whole, half = re.findall(r"(\d+) us", launch[1])
    agree(whole, [float(written("C384 B1 whole", "kernel")["microseconds"])], least=0)
    agree(half, [float(written("C384 B1 half", "kernel")["microseconds"])], least=0)
    agree(re.search(r"(\d+) us", launch[2])[1], [float(written("C384 B1 whole", "compiled")["microseconds"])], least=0)
    five, layers = written("text.pt, depth 5"), written("train_gpt_12l")
    agree(re.search(r"([\d.]+)$", text[0])[1], [float(five["quality"])], least=0)
    agree(text[1].removesuffix(" us"), [float(five["us_1"])], least=0)
    took, loss = re.search(r"(\d+) us; ([\d.]+)$", text[2]).groups()
    agree(took, [float(layers["us_1"])], least=0)
    agree(loss, [float(layers["quality"])], least=0)
    agree(re.search(r"255th character: ([\d.]+) s", page("README.md"))[1],
          [float(written("a text, caches empty")["seconds"])], least=0)


def test_ways_of_writing():
    """The page on kernels has the benchmark's times, in which every path is right and the way that `auto` takes is
    within 1.05 of the fastest."""
    head, rows = table("docs/kernels.md", "What they reach", nth=2)
    loops = {"12 loops": "whole", "all tokens halt in loop 6": "half"}
    for case, *shown in rows:
        shape, kind = case.split(", ", 1)
        case = f"{shape} {loops.get(kind, 'mixture')}"
        times = []
        for path, said in zip(head[1:], shown, strict=True):
            if said:
                row = written(case, path)
                times.append(float(row["microseconds"]))
                agree(said.replace(",", ""), times[-1:], least=0)
                assert "error" in row["note"]
        assert times[-1] <= 1.05 * min(times[:-1])


def test_the_table_of_reading_and_writing():
    """The log against results/waiting_*.csv, every pair."""
    _, rows = entry_table("Reading in 3 or 4 loops and writing in 16 or more breaks the model that searches")
    assert len(rows) == 20
    for read, write, *cells_of in rows:
        at = dict(kind="waiting", read=re.search(r"[\d.]+", read)[0], write=(re.search(r"\d+", write) or ["0"])[0])
        for name, cell in zip(("addition_search", "addition"), cells_of, strict=True):
            if cell != "no rule for both":
                name += "_before"  # trained without frozen prompts
                known = [100 * float(found(f"waiting_{name}", **at, n=n)[0]["accuracy"]) for n in ("4", "8", "12")]
                assert [float(x) for x in cell.split(", ")] == pytest.approx(known, abs=0.051)


def waiting_loss(known, read, write, n):
    """Points lost by reading so instead of in 8 loops, one per seed; known: exact match in % by (read, write, n)."""
    return [full - less for full, less in zip(known("8", write, n), known(read, write, n), strict=True)]


def shipped_loss(name, read, write, sizes=("4", "8", "12")):
    """The most points that a pretrained model loses so, of some sizes."""
    def known(*at):
        where = dict(zip(("read", "write", "n"), at, strict=True))
        return [100 * float(r["accuracy"]) for r in found(f"waiting_{name}", kind="waiting", **where)]
    return max(max(waiting_loss(known, read, write, n)) for n in sizes)


FEWER = [(read, write) for read in ("3", "4") for write in ("24", "32")]  # of the bar


def waiting_seeds(row, first=None):
    """For `waiting_loss`: the seeds of a row of the sweep, or only the first of them."""
    return lambda read, write, n: values("sweep_waiting", row, f"read_{read}_write_{write}_{n}")[:first]


def worst_pair(row, n):
    """The most points that each seed of a row loses, of the four pairs of the bar."""
    return [max(seed) for seed in zip(*(waiting_loss(waiting_seeds(row), *pair, n) for pair in FEWER), strict=True)]


def kept_bar(worst):
    return sum(most < 1.0001 for most in worst)


def test_what_adders_with_frozen_prompts_forget():
    """The two tables of the log, its exponents, and docs/findings.md."""
    def value(model, what, loop, of, column="value", weights="trained"):
        where = {"model": model, "what": what, "loop": str(loop), "class": of, "weights": weights}
        return float(found("forgetting_frozen", **where)[0][column])

    def share(*at):
        return 100 * value(*at)
    entry = "With frozen prompts, too, loop 1 hides the token"
    short, turned = {}, {}
    for label, *shown, cosines in entry_table(entry, 1)[1]:
        model, last = label.split("`")[1].removesuffix(".pt"), 14 if "prompt" in label else 8
        token = "token read, prompt" if "prompt" in label else "token read"
        for cell, loop in zip(shown, (0, 1, 2, 3, 4, last, 4 * last), strict=True):
            agree(cell.partition(" (")[0], [share(model, "probe_accuracy", loop, token)])
            assert value(model, "probe_accuracy", loop, token, weights="untrained") > 0.9995
        for cell, weights in zip(cosines.removesuffix(" (answer)").split("; "), ("trained", "untrained"), strict=True):
            agree(cell, [value(model, "cosine_x0", last, "answer", weights=weights)], least=2)
            turned.setdefault(weights, []).append(float(cell))
        short[model] = [share(model, "probe_accuracy", loop, token) for loop in (1, last)]
    for label, *shown, exponent in entry_table(entry, 2)[1]:
        model = label.split("`")[1].removesuffix(".pt")
        for cell, what, of in zip(shown, ("one_probe_accuracy", "probe_accuracy", "right_to_stay"),
                                  ("digit 1", "digit 1", "answer"), strict=True):
            for number, loop in zip(cell.split(", "), (1, 2, 3, 4), strict=True):
                agree(number, [share(model, what, loop, of)])
        (row,) = found("forgetting_frozen", model=model, what="lyapunov_exponent", weights="trained")
        agree(exponent.replace(" to ", ", "), [float(row[c]) for c in ("value", "low", "high")], least=3)
    says("docs/findings.md", r"with frozen prompts \[(\S+) and (\S+), (\S+) and (\S+)\]",
         *([short[m][i]] for i in (0, 1) for m in ("addition", "addition_search")))
    says("docs/findings.md", r"turns away from x0 \(a cosine of (\S+) to (\S+) after .*?, untrained (\S+) to (\S+)\)",
         *limits(turned["trained"]), *limits(turned["untrained"]))


def test_the_tables_of_what_fast_reading_loses():
    """Of docs/protocol.md and of the log: the shipped models, and the seeds of each training, in older entries five."""
    heading = "Reading fast, writing slowly"
    shipped, kept = (table("docs/protocol.md", heading, nth)[1] for nth in (1, 2))
    for name, *shown in shipped:
        assert f"| {' | '.join([name, *shown])} |" in page("root.md")
        for cell, pair in zip(shown, FEWER, strict=True):
            agree(cell, [shipped_loss(name.strip("`").removesuffix(".pt"), *pair)])
    assert len(shipped) == 4
    logged = (("Frozen prompts let every seed of track N", 1, 5),
              ("Frozen prompts cost nothing that is told apart", 2, 5), ("Frozen after 2, 3 or 4 loops", 1, None))
    for (row, n, at_24, at_32, *shown, within), first in (
            (row, first) for start, nth, first in logged for row in entry_table(start, nth)[1]):
        known = waiting_seeds(row, first)
        for cell, write in ((at_24, "24"), (at_32, "32")):
            agree(cell, spread(known("8", write, n))[:2])
        lost = [waiting_loss(known, *pair, n) for pair in FEWER]
        for cell, of in zip(shown, lost, strict=True):
            agree(cell, [statistics.median(of), max(of)])
        worst = [max(seed) for seed in zip(*lost, strict=True)]
        assert within == f"{kept_bar(worst)} of {len(worst)}"
    names, lists = zip(*(row.rstrip("`").partition(", `")[::2] for row, *_ in kept), strict=True)
    sweep = re.findall(r'"([^":@]*[^":@ ])(?: @\d)?: .*?--prompt_loops=(\S+?)[" ]', page("config/sweep_waiting.py"))
    assert all(said in ("", dict(sweep)[name]) for name, said in zip(names, lists, strict=True))
    assert [*names] == [*dict.fromkeys(r["row"] for r in rows_of("sweep_waiting"))]
    for name, (_, *cells_of) in zip(names, kept, strict=True):
        worst = [worst_pair(name, n) for n in ("4", "8", "12")]
        assert cells_of == [f"{kept_bar(x)} of {len(x)} ({max(x):.1f})" for x in worst]
    (card,) = re.findall(r"^\| reading in 3 or 4 loops and .*", page("pretrained/readme.md"), re.M)
    address, search, parallel, older = cells(card)[1:5]
    by_name = {row[0].strip("`").removesuffix(".pt"): [*map(float, row[1:])] for row in shipped}
    more = {name: [shipped_loss(f"{name}_12", *pair, sizes=["12"]) for pair in FEWER] for name in (
        "addition", "addition_search", "addition_parallel", "addition_parallel_search")}  # of 1,000 problems
    assert not any(more["addition"])
    most = [max(more[name]) for name in ("addition_parallel", "addition_search", "addition_parallel_search")]
    says("docs/protocol.md", r"`addition.pt` loses nothing, `addition_parallel.pt` (\S+) points at most, "
         r"`addition_search.pt` (\S+), `addition_parallel_search.pt` (\S+)\.", *([x] for x in most))
    by_before = {name: [shipped_loss(f"{name}_before", *pair) for pair in FEWER]
                 for name in ("addition_search", "addition_parallel_search")}
    says("docs/protocol.md", r"shipped before the one with an address lost (\S+) points there, of 200 problems the "
         r"search (\S+) to (\S+) and that of track P (\S+) to (\S+)\. ",
         [max(shipped_loss("addition_12_before", *pair, sizes=["12"]) for pair in FEWER)],
         *([x] for of in by_before.values() for x in (min(of), max(of))))
    _, (now, before, thousand) = entry_table("The search of track P that is shipped")
    for (_, *shown), of in ((now, by_name["addition_parallel_search"]), (thousand, more["addition_parallel_search"]),
                            (before, by_before["addition_parallel_search"])):
        for cell, x in zip(shown, of, strict=True):
            agree(cell, [x])
    says("root.md", r"of 12 digits they lose 0\.0, (\S+), (\S+) and (\S+) points at most",
         *([most[i]] for i in (1, 0, 2)))
    by_rule = waiting_loss(waiting_seeds("N"), "3", "0", "12")
    says("docs/protocol.md", r"costs five seeds (\S+) points \((\S+) at most\) at 12 digits",
         [statistics.median(by_rule)], [max(by_rule)])
    worst, *rest = sorted(values("sweep_digits_waiting", "frozen prompts", "waiting_read_0_9_write_24_12"))
    says("docs/protocol.md", r"four seeds of the recipe of `addition.pt` have (\S+)% or more, one (\S+)\.",
         [min(rest)], [worst])
    for name, cell in (("addition", address), ("addition_parallel", parallel)):
        assert more[name][2:] == [0, 0]
        assert f"(of 1,000 problems {max(more[name]):.1f}" in cell
        assert "nothing of 200 problems is lost" in cell
        assert by_name[name] == [0] * 4
    assert f"at most {max(by_name['addition_search'])} points are lost to 12 digits" in search
    assert f"at most {max(by_name['addition_parallel_search'])} points are lost to 12 digits" in older
    assert f"(of 1,000 problems {max(more['addition_parallel_search']):.1f} points)" in older
    assert max(max(of) for of in (*by_name.values(), *more.values())) < 1.0001  # the bar


def test_what_is_said_of_frozen_prompts():
    """docs/findings.md: one row, of track N with frozen prompts and without."""
    (said,) = re.findall(r"^\| (Trained with half of its prompts frozen.*?) \| holds", page("docs/findings.md"), re.M)
    for pattern, row in ((r"with (\S+% \(\S+\)) at 12", "N, frozen prompts"), (r"instead of (\S+ \(\S+\)), ", "N")):
        agree(re.search(pattern, said)[1], spread(values("sweep_waiting", row, "read_3_write_24_12"))[:2])
    lost = {row: [x for pair in FEWER for n in ("4", "8", "12") for x in waiting_loss(waiting_seeds(row), *pair, n)]
            for row in ("N", "N, frozen prompts")}
    least, most = re.search(r"\(without: (\S+) to (\S+)\)", said).groups()
    agree(re.search(r"loses (\S+) points at most", said)[1], [max(lost["N, frozen prompts"])])
    agree(least, [min(lost["N"])])
    agree(most, [max(lost["N"])])


HALF, AFTER_2, FOUR = "P, frozen prompts", "P, frozen after 2 as well", "P, prompts of four lengths"
FROZEN_P, NEVER_P = ("sweep_track_p", "frozen prompts"), ("sweep_track_p", "leading zeros")
FROZEN_AFTER_2 = "Frozen after 2, 3 or 4 loops"  # its entry


def fisher(one, other):
    """[p] of Fisher's test of two shares (so many, of so many)."""
    return [stats.fisher_exact([[k, n - k] for k, n in (one, other)]).pvalue]


def share(row):
    """(seeds of a row that keep the bar at 12 digits, seeds)."""
    return kept_bar(worst_pair(row, "12")), len(worst_pair(row, "12"))


def accuracies_of(row):
    return [c for c, v in found("sweep_waiting", row=row)[0].items() if re.match("uniform|read", c) and v]


def test_how_surely_frozen_prompts_of_track_p_keep_the_bar():
    """The log's tests: of the seeds that keep it, and of the points lost."""
    on = "P, the shipped model, frozen after 2 as well"
    known = {row: share(row) for row in (AFTER_2, FOUR, HALF, "P", on)}
    assert [*known.values()] == [(10, 10), (10, 10), (7, 10), (0, 5), (2, 5)]
    says("root.md", r"Never frozen, none of five does \((\S+) lost at 12 digits\): that is told apart \(Fisher: p "
         r"= (\S+)\)\. "
         r"Ten of ten and seven of ten are not: p = (\S+)\. Both lists together, 20 of 20, would give (\S+), but",
         [max(worst_pair("P", "12"))], *(fisher(known[AFTER_2], known[row]) for row in ("P", HALF)),
         fisher((20, 20), known[HALF]))
    says("root.md", r"whole training has ten of ten \(p = (\S+)\)", fisher(known[AFTER_2], known[on]))
    counts, (_, rows) = [], entry_table(FROZEN_AFTER_2, 2)
    for (name, at_3, at_4, most, ranks), (row, lists) in zip(
            rows, ((AFTER_2, "`[0,2,3,4]`"), (FOUR, "`[3,4,8,14]`")), strict=True):
        def gained(*at, row=row):
            return [x - y for x, y in zip(*(waiting_loss(waiting_seeds(r), *at) for r in (HALF, row)), strict=True)]
        assert name == lists
        agree(at_3, sum(mean_of(gained("3", "32", "12")), []))
        agree(at_4, sum(mean_of(gained("4", "32", "12")), []))
        half, fewer = ([round(x, 1) for x in worst_pair(r, "12")] for r in (HALF, row))  # as ties count
        agree(most, sum(mean_of([x - y for x, y in zip(half, fewer, strict=True)]), []))
        agree(ranks, [stats.mannwhitneyu(fewer, half).pvalue], least=2)
        gaps = [gained(*c.removeprefix("read_").replace("_write", "").rsplit("_", 2))
                for c in accuracies_of(HALF) if re.match("read_(3|4|0_9)_", c)]
        gaps = [mean_of(gap) for gap in gaps if max(map(abs, gap)) > 1e-9]
        out = [low for _, (low,), (high,) in gaps if low > 0 or high < 0]
        assert min(out) > 0  # all for the row
        counts += [[len(gaps)], [len(out)]]
    says("root.md", r"Of (\d+) differences between `\[0,2,3,4\]` and `\[0,0,3,4\]` that are not 0 in every seed, "
         r"(\d+) leave "
         r"0 out, all for `\[0,2,3,4\]`, where chance makes 1 or 2; of `\[3,4,8,14\]` (\d+) of (\d+)\.",
         *counts[:2], *reversed(counts[2:]))
    one, other = ("sweep_waiting", AFTER_2), ("sweep_waiting", HALF)
    loops = [c for c in rows_of("sweep_waiting")[0] if c.startswith("loops_")]
    differ, told, *_ = count_apart(one, other, accuracies_of(HALF))
    assert told == 0
    says("root.md", r"no accuracy of (\d+) is told apart\. (\d+) of (\d+) columns are, where", [differ],
         [count_apart(one, other, loops)[1]], [len(accuracies_of(HALF) + loops) + 2])  # two losses, which are 0
    says("root.md", r"`\[0,2,3,4\]` takes (\S+) loops less per token of the answer at 12 digits \((\S+) to "
         r"(\S+)\), (\S+) "
         r"instead of (\S+)\.", *mean_of(less(other, one, "loops_answer_12", scale=1)),
         *([statistics.mean(values(*x, "loops_answer_12", 1))] for x in (one, other)))


def test_reading_until_sure_with_frozen_prompts_of_track_p():
    def lost(row, write, n):
        return waiting_loss(waiting_seeds(row), "0_9", write, n)
    _, rows = entry_table(FROZEN_AFTER_2, 3)
    assert [row for row, *_ in rows] == [HALF, "P, every prompt frozen", AFTER_2, FOUR]
    for row, *shown in rows:
        for cell, write in zip(shown, ("8", "24", "32"), strict=True):
            for part, n in zip(cell.split(", "), ("4", "8", "12"), strict=True):
                agree(part, [statistics.median(lost(row, write, n)), max(lost(row, write, n))])
    four, after_2 = ([max(max(lost(row, "32", n)) for n in ("4", "8", "12"))] for row in (FOUR, AFTER_2))
    says("docs/protocol.md", r"one of its seeds loses (\S+) points read until `confidence` is 0.9 and written in "
         r"32; with "
         r"`\[0,2,3,4\]` none loses more than (\S+) there", four, after_2)
    says("docs/findings.md", r"but (\S+) read until `confidence` is 0.9 and written in 32;", four)


def test_what_frozen_prompts_cost_track_p():
    """The log's table of accuracies, its counts of what is told apart, and how loops grow."""
    head, rows = entry_table(FROZEN_AFTER_2, 4)
    for name, *shown in rows:
        start = ("56_" if "56" in name else "") + ("hard_" if "hard" in name else "uniform_")
        for title, cell in zip(head[1:], shown, strict=True):
            column = start + title.split()[0]
            if name.startswith("difference"):
                gap = less(FROZEN_P, NEVER_P, column)
                agree(cell, sum(mean_of(gap), []) if any(gap) else [0])
            else:
                agree(cell, seeds(*(FROZEN_P if name.startswith("frozen") else NEVER_P), column))
    measured = [c for c in rows_of("sweep_track_p")[0] if re.search(r"(uniform|hard|loops_\w+)_\d+$", c)]
    loops = [c for c in measured if "loops" in c]
    of, few, apart, _ = count_apart(FROZEN_P, NEVER_P, [c for c in measured if c not in loops])
    of_loops, more, apart_in_loops, _ = count_apart(FROZEN_P, NEVER_P, loops)
    assert apart == apart_in_loops == 0
    says("root.md", r"of (\d+) accuracies that differ in some seed (\d+) leave 0 out, where chance makes (\S+), "
         r"all three for "
         r"the frozen row, hard problems halted by a rule\. Of (\d+) counts of loops (\d+) do, where chance makes "
         r"(\d+),",
         [of], [few], [of / 20], [of_loops], [more], [round(of_loops / 20)])
    told = {"more": [], "fewer": []}
    for column, gap in unequal(FROZEN_P, NEVER_P, measured).items():
        if leaves_out_0(gap):
            told["more" if sum(gap) > 0 else "fewer"].append(column)
    assert {c for c in told["more"] if c not in loops} == {"kl_hard_15", "kl_hard_19", "delta_hard_18"}
    longer, shorter = ([c for c in told[way] if c in loops] for way in ("more", "fewer"))
    assert (len(longer) + len(shorter), few + more) == (more, sum(map(len, told.values())))
    assert [{c.split("_")[0] for c in x} for x in (longer, shorter)] == [{"kl", "delta"}, {"kl", "confidence"}]
    assert {c for c in longer if c.startswith("kl")} == {f"kl_loops_{x}_4" for x in ("answer", "most", "solved")}
    assert {int(c.split("_")[-1]) for c in longer if c.startswith("delta")} == {*range(7, 21)}
    assert {int(c.split("_")[-1]) for c in shorter if "solved" in c} == {8, 9, 10, 11, 12, 14}  # else a chain, of 12
    says("root.md", r"take more loops in the frozen row \((\d+) of the (\d+)\), .*? solved problems of 8 to 14 "
         r"digits \((\d+)\)",
         [len(longer)], [more], [len(shorter)])
    medians, gaps = {}, {}
    for rule in ("kl", "confidence", "delta"):
        grown = [[x / y for x, y in zip(*(values(*row, f"{rule}_loops_solved_{n}", 1) for n in (12, 4)), strict=True)]
                 for row in (FROZEN_P, NEVER_P)]
        medians[rule] = [[statistics.median(x)] for x in grown]
        gaps[rule] = mean_of([x - y for x, y in zip(*grown, strict=True)])
    says("root.md", r"at 12 digits over 4 by `kl` (\S+) instead of (\S+) \(difference of the means (\S+), (\S+) "
         r"to (\S+)\), by "
         r"`confidence` (\S+) instead of (\S+) \((\S+), (\S+) to (\S+)\), by `delta` (\S+) and (\S+)\. ",
         *medians["kl"], *gaps["kl"], *medians["confidence"], *gaps["confidence"], *medians["delta"])
    for rule in ("kl", "confidence", "delta"):
        chains = zip(*(values(*FROZEN_P, f"{rule}_loops_chain_{n}", 1) for n in range(1, 13)), strict=True)
        assert all(stats.spearmanr(range(12), loops)[0] < -0.5 for loops in chains)


def test_track_p_again_with_frozen_prompts():
    """Beside the row of sweep_waiting that was never frozen; and what the pages say of both tables."""
    frozen, never, every = (("sweep_waiting", row) for row in (AFTER_2, "P", "P, every prompt frozen"))
    said = []
    for column in ("read_8_write_16_12", "uniform_12"):
        x, y = values(*frozen, column), values(*never, column)
        interval = stats.ttest_ind(x, y, equal_var=False).confidence_interval()
        said += [spread(x)[:2], spread(y)[:2], [statistics.mean(x) - statistics.mean(y)]]
        said += [interval.low], [interval.high]
    says("root.md", r"in 8 and written in 16 they have (\S+ \(\S+\)), `P` (\S+ \(\S+\)), difference (\S+) \((\S+) "
         r"to (\S+), "
         r"Welch\), by its rule (\S+ \(\S+\)) and (\S+ \(\S+\)), (\S+) \((\S+) to (\S+)\)\.", *said)
    assert all(seeds(*frozen, c)[0] > seeds(*never, c)[0] for c in accuracies_of("P") if c.endswith("_12"))
    of, told, *_ = count_apart(every, never, accuracies_of("P"))
    says("root.md", r"digits of those trained from the start, (\S+)% .*? Beside `P` (\d+) of (\d+) accuracies .*? "
         r"has (\S+) "
         r"points more at 8 digits \((\S+) to (\S+)\)", [min(values(*every, "read_8_write_24_12"))], [told], [of],
         *mean_of(less(every, never, "read_8_write_24_8")))
    at_12, at_20 = ([seeds(*row, f"uniform_{n}") for row in (FROZEN_P, NEVER_P)] for n in (12, 20))
    both = r"12 digits (\S+ \(\S+\)){} (\S+ \(\S+\)), 20 digits (\S+ \(\S+\)) {} (\S+ \(\S+\)){}"
    says("docs/findings.md", "makes 6.5: " + both.format(" beside", "beside", " "), *at_12, *at_20)
    says("docs/protocol.md", "costs track P, together with a reading in 4 loops: " + both.format(
        ", never frozen and read in 14", "and", ", where a fall of 16 points"),
         *at_12, *at_20)
    worst = {row: [max(max(worst_pair(row, n)) for n in ("4", "8", "12"))] for row in (AFTER_2, FOUR, HALF, "P")}
    says("docs/findings.md", r"after 2, 3 or 4 loops loses (\S+) points at most to 12 digits by .*? 4: (\d+) of "
         r"(\d+), (\S+) at "
         r"most, a count not told apart, p = (\S+); never frozen: 0 of 5, (\S+)\); frozen after 3, 4, 8 or 14 it loses "
         r"(\S+) at most", worst[AFTER_2], *([x] for x in share(HALF)), worst[HALF], fisher((10, 10), share(HALF)),
         worst["P"], worst[FOUR])
    (fall,) = mean_of(less(FROZEN_P, NEVER_P, "uniform_12"))[1]
    assert -16.05 < fall < -15.5  # the 16 points that could hide


GATE, REPLACE, FROZEN = (("sweep_track_n_more", "concat, euler gate"), ("sweep_track_n", "16 of 64 ids"),
                         ("sweep_track_n_more", "frozen prompts"))


def test_frozen_prompts_to_24_digits():
    """The log's table, its differences, and what the pages say of them."""
    head, rows = entry_table("Frozen prompts cost nothing that is told apart to 24")
    for label, *shown in rows:
        loops = {"8": "", "16": "16_", "32": "32_"}[re.search(r"(\d+)$", label)[1]]
        if "read in 4" in label:
            loops = {"": "fast_", "32_": "fast32_"}[loops]
        for title, cell in zip(head[1:], shown, strict=True):
            if cell:
                of = FROZEN if label.startswith("frozen") else REPLACE
                agree(cell, seeds(*of, f"{loops}uniform_{title.removesuffix(' digits')}"))
    assert sum(bool(cell) for _, *shown in rows for cell in shown) == 2 * 6 + 6 * 5
    (said,) = re.findall(r"at 12, 16, 20 and 24 digits: (.*?)\. So 24 digits", " ".join(page("root.md").split()))
    for cell, n in zip(re.split(", | and ", said), (12, 16, 20, 24), strict=True):
        agree(cell, sum(mean_of(less(FROZEN, REPLACE, f"uniform_{n}")), []))
    apart = less(FROZEN, REPLACE, "uniform_30")
    assert max(apart) < 0
    _, *interval = mean_of(apart)
    for name, words in (("root.md", r"interval is (\S+) to (\S+), the best"),
                        ("docs/findings.md", r"is not told apart \((\S+) to (\S+)\) \| holds"),
                        ("docs/protocol.md", r"is not told apart \((\S+) to (\S+); \[log")):
        says(name, words, *interval)
    lost = less(FROZEN, FROZEN, "32_uniform_24", "fast32_uniform_24")
    says("root.md", r"where the answer takes 32 costs (\S+) points \((\S+) at most\) at 24", [statistics.median(lost)],
         [max(lost)])
    at_24 = [seeds(*of, "uniform_24") for of in (FROZEN, REPLACE)]
    at_30 = [seeds(*of, "uniform_30") for of in (FROZEN, REPLACE)]
    says("docs/findings.md", r"told apart to 24 digits, (\S+ \(\S+\)) beside (\S+ \(\S+\)); at 30 all five seeds are "
         r"lower, (\S+ \(\S+\)) beside (\S+ \(\S+\))", *at_24, *at_30)
    says("docs/protocol.md", r"to 24 digits: (\S+ \(\S+\)) there, without (\S+ \(\S+\)), and (\S+ \(\S+\)) read in 4 "
         r".*? seeds are lower, (\S+ \(\S+\)) beside (\S+ \(\S+\))", *at_24, seeds(*FROZEN, "fast32_uniform_24"),
         *at_30)


CELL, ONE, SPAN = r"([\d.]+%? \([\d.]+\))", r"(-?[\d.]+)", r"\((-?[\d.]+) to (-?[\d.]+)"


def test_gated_steps_in_the_whole_recipe():
    """The tables of the log: accuracies, and differences to replace with 95% intervals."""
    start, again = "In the whole recipe of track N gated Euler steps", ("sweep_waiting", "N")
    rows_by_label = {"gate": GATE, "frozen prompts": FROZEN, "replace trained again": again, "replace": REPLACE}
    head, rows = entry_table(start)
    assert len(rows) == 10
    for label, *shown in rows:
        name, read, write = re.fullmatch(r"(.*), (\d+) and (\d+)", label).groups()
        of, loops = rows_by_label[name], {"4": "fast", "8": "", "16": "16", "32": "32"}[read]
        loops = (loops + "32" * (read == "4" and write == "32") + "_").removeprefix("_")
        for title, cell in zip(head[1:], shown, strict=True):
            size = title.removesuffix(" digits")
            column = f"read_{read}_write_{write}_{size}" if of == again else f"{loops}uniform_{size}"
            assert bool(cell) == bool(found(of[0], row=of[1])[0].get(column))
            agree(cell, seeds(*of, column)) if cell else None
    head, rows = entry_table(start, 2)
    assert len(rows) == 6
    for label, *shown in rows:
        loops, kind = label.removeprefix("8, ").rpartition(", ")[::2]
        for title, cell in zip(head[1:], shown, strict=True):
            column = f"{loops}_{kind}_{title.removesuffix(' digits')}".removeprefix("_")
            assert bool(cell) == bool(found(GATE[0], row=GATE[1])[0].get(column))
            agree(cell, sum(mean_of(less(GATE, REPLACE, column)), [])) if cell else None


def test_how_many_differences_of_gated_steps_leave_0_out():
    text = " ".join(page("root.md").split())
    sizes = [(loops, n) for loops in ("", "16_", "32_") for n in (12, 16, 20, 24)] + [("", 30), ("", 40)]
    columns = [f"{loops}{kind}_{n}" for loops, n in sizes for kind in ("uniform", "hard")]
    some, without, order, p = count_apart(GATE, REPLACE, columns)
    assert (some, without, order) == (27, 4, 0)
    assert "these are 27 differences. Four intervals leave 0 out, where chance makes one or two" in text
    assert f"smallest p is {p:.3f}, which times {some} is {p * some:.2f}" in text
    assert "4 of 27 intervals leave 0 out, chance makes one or two" in page("docs/findings.md")
    every = [c for c in rows_of(GATE[0])[0] if re.search(r"(uniform|hard)_\d+$", c)]
    some, without, order, _ = count_apart(GATE, FROZEN, every)
    assert (some, without, order) == (61, 3, 0)
    assert f"Of {some} differences between the two rows" in text
    assert f"are equal, {without} leave 0 out, where chance makes {some / 20:.0f}" in text


def test_gated_steps_think_on_as_replace_does():
    gate, replace = (less(of, of, "uniform_24", "32_uniform_24") for of in (GATE, REPLACE))
    more = [y - x for x, y in zip(gate, replace, strict=True)]
    says("root.md", rf"the gate loses {ONE} points at 24 digits {SPAN}; {ONE} at most\), replace", *mean_of(gate),
         [max(gate)])
    says("root.md", rf"at most\), replace {ONE} {SPAN}; {ONE} at most\), a", *mean_of(replace), [max(replace)])
    says("root.md", rf"at most\), a difference of {ONE} {SPAN}\)", *mean_of(more))
    says("root.md", rf"it does \({ONE} points lost at most\), but so does replace \({ONE}\)",
         [max(gate)], [max(replace)])
    pairs = [seeds(*of, column) for column in ("uniform_24", "32_uniform_24", "uniform_30") for of in (GATE, REPLACE)]
    says("docs/findings.md", rf"by nothing: 24 digits {CELL} and {CELL}, with 32 loops {CELL} and {CELL}, 30 digits "
         rf"{CELL} and {CELL};", *pairs)
    says("docs/decisions.md", rf"24 digits at 32 loops, {CELL}, but so does replace, {CELL}, not", *pairs[2:4])


def test_gated_steps_read_fast_untaught():
    most = [max(max(less(of, of, f"32_{kind}_{n}", f"fast32_{kind}_{n}"))
                for kind in ("uniform", "hard") for n in (4, 8, 12, 16, 20, 24)) for of in (GATE, FROZEN)]
    says("root.md", rf"the gate loses {ONE} points at most against 32 .* with frozen prompts {ONE} at most\. Without",
         *([x] for x in most))
    apart = []
    for n in (4, 8, 12):
        x, y = values(*GATE, f"fast32_uniform_{n}"), values("sweep_waiting", "N", f"read_4_write_32_{n}")
        assert min(x) > max(y)
        apart += [round(z) for (z,) in mean_of([a - b for a, b in zip(x, y, strict=True)])]
    words = "The mean difference is {} points ({} to {}), {} ({} to {}) and {} ({} to {})."
    assert words.format(*apart) in " ".join(page("root.md").split())
    assert math.comb(10, 5) // 2 == 126  # orders of five and five, either way round
    quick = seeds(*GATE, "fast32_uniform_12"), seeds("sweep_waiting", "N", "read_4_write_32_12")
    says("docs/findings.md", rf"written in 32 they have {CELL} at 12 digits, replace {CELL}, and lose {ONE} points",
         *quick, [most[0]])
    says("docs/protocol.md", rf"five seeds have {CELL} at 12 digits, where replace has {CELL}, and {CELL} at 24",
         *quick, seeds(*GATE, "fast32_uniform_24"))


def test_gated_steps_at_30_digits_and_what_they_cost():
    beside = less(GATE, FROZEN, "uniform_30")
    says("root.md", rf"the gate has {ONE} points more at 30 digits, which is not told apart {SPAN}\)",
         *mean_of(beside))
    assert [round(x) for x in sorted(beside)] == [-14, -8, 52, 55, 59]
    assert [round(x) for x in sorted(less(GATE, REPLACE, "uniform_30"))] == [-14, -13, -10, -8, 35]
    (one, other), C = (found(of[0], row=of[1])[0] for of in (GATE, FROZEN)), 256
    matrix, gate, block = 2 * C * C, 2 * C + 1, 12 * C * C + 2 * C
    known = int(one["parameters"]), int(other["parameters"])
    assert known[0] - known[1] == matrix + gate
    flops = [int(r["flops_per_token"]) for r in (one, other)]
    says("root.md", r"The table's FLOPs are (\d+)% more", [round(100 * (flops[0] / flops[1] - 1))])
    says("root.md", r"costs\.\* ([\d,]+) parameters instead of ([\d,]+): a matrix of ([\d,]+) and a gate of (\d+)\.",
         *([x] for x in (*known, matrix, gate)))
    says("root.md", r"the matrix adds (\d+)% to the ([\d,]+) weights of Block", [round(100 * matrix / block)], [block])
    says("root.md", rf"Milliseconds per step {SPAN}\) are", *([f(values(*GATE, "ms", 1))] for f in (min, max)))


def test_halting_of_the_search_with_frozen_prompts():
    points = {(r["rule"], r["threshold"] or r["loops"]): r for r in found("halting_search_frozen", kind="frontier")}
    five, four, sure = (points[at] for at in (("fixed", "5.0"), ("fixed", "4.0"), ("confidence", "0.999")))
    loops = float(sure["loops"])
    says("root.md", r"5 fixed loops are needed \((\S+)%; 4 have (\S+)\), `confidence` 0.999 takes (\S+) \((\S+)% "
         r"fewer, (\S+)%; random halting (\S+)\)", *([100 * float(r["accuracy"])] for r in (five, four)), [loops],
         [20 * (5 - loops)], [100 * float(sure["accuracy"])], [100 * float(sure["random_accuracy"])])


def test_a_hundred_digits_read_fast():
    """Trained so from the start no seed loses anything; how many keep what of the shipped model that was trained on."""
    frozen = len(found("sweep_digits_waiting", row="frozen prompts"))
    kept = [v for r in found("sweep_digits_waiting", row="frozen prompts") for k, v in r.items()
            if re.fullmatch(r"((small_)?(uniform|hard)|shorter_[ab]|equal|nines|waiting_read_[348]_write_\d+)_\d+", k)]
    assert (frozen, len(kept), {float(v) for v in kept}) == (5, 5 * (6 * 5 + 2 * 5 + 3 * 5 * 3), {1})
    row = "sweep_digits_waiting", "the shipped model trained on"
    kinds = "uniform", "hard", "shorter_a", "shorter_b", "equal", "nines"
    far = [min(x) for x in zip(*(values(*row, f"{kind}_{n}") for kind in kinds for n in (24, 40, 60, 80, 100)),
                               strict=True)]
    assert [x >= 99.95 for x in far] == [True] * 4 + [False]
    says("root.md", r"the fifth has (\S+) at worst, at 80 digits, and (\S+) at 100", [far[-1]],
         [values(*row, "uniform_100")[-1]])

    def known(read, write, n):
        return values(*row, f"waiting_read_{read}_write_{write}_{n}")
    lost = {pair: [max(x) for x in zip(*(waiting_loss(known, *pair, n) for n in ("4", "8", "12")), strict=True)]
            for pair in FEWER}
    assert sorted(x < 0.1001 for x in lost.pop(("3", "32"))) == [False] + [True] * 4
    assert max(map(max, lost.values())) < 0.1001
    worst = max(waiting_loss(known, "3", "32", "8"))
    for name, pattern in (("root.md", r"one (\S+) at 8 digits; in the three other pairs"),
                          ("docs/protocol.md", r"in four of five \((\S+) in the fifth\)"),
                          ("docs/findings.md", r"lose 0.1 at most in four of five \((\S+) in one\)")):
        says(name, pattern, [worst])


def test_the_shipped_model_of_a_hundred_digits():
    """Its own rule, the others, and its fast reading from 24 digits on, in the log and the pages."""
    def rule(name, threshold, n, model="now", column="accuracy"):
        (row,) = found("rules_addition", model=model, rule=name, threshold=threshold, n=n, kind="uniform")
        return [float(row[column]) * (100 if column == "accuracy" else 1)]

    def loops(*at):
        return rule(*at, column="loops_answer")
    heading = "The model of a hundred digits that is shipped bears"
    for name, threshold, n, *shown in entry_table(heading, 3)[1]:
        for model, cell in zip(("now", "before"), shown, strict=True):
            if cell:
                for number, column in zip(cell.split(", "), ("accuracy", "loops_answer"), strict=True):
                    agree(number, rule(name.strip("`"), threshold, n, model, column))
    for name, threshold, _, cell in entry_table(heading, 4)[1]:
        for number, column in zip(cell.split(", "), ("accuracy", "loops_answer"), strict=True):
            agree(number, rule(name.strip("`"), threshold, "12", "now", column))
    head, far = entry_table(heading, 2)
    lost = {}  # by model and reading: points
    for model, count, read, write, *shown in far:
        for n, cell in zip(head[4:], shown, strict=True):
            if cell:
                (row,) = found("waiting_addition_long", model=model, problems=count, read=read, write=write, n=n)
                agree(cell, [100 * float(row["accuracy"])])
                lost.setdefault((model, read), []).append(100 - 100 * float(row["accuracy"]))
    assert sum(bool(cell) for row in far for cell in row[4:]) == len(rows_of("waiting_addition_long"))
    assert {max(points) for (_, read), points in lost.items() if read == "8"} == {0}
    before = lost.pop(("without frozen prompts", "3"))
    assert [(model, read) for (model, read), points in lost.items() if max(points)] == [("seed 4", "3")]
    # the problems of each count are others
    fell = [(int(r["problems"]), float(r["accuracy"])) for r in found("waiting_addition_long", model="seed 4", read="3",
                                                                      write="32", n="100")]
    fell = round(sum(n * (1 - share) for n, share in fell)), sum(n for n, _ in fell)
    assert fell == (2, 250)
    for name, pattern in (("root.md", r"one of 200 others, two of (\d+) \(99.2%"),
                          ("docs/findings.md", r"loses two of (\d+) problems of 100"),
                          ("docs/protocol.md", r"loses two problems of (\d+) at 100")):
        says(name, pattern, [fell[1]])
    for name, pattern in (("docs/findings.md", r"points at 12, (\d) to (\d) from 24 to 100\)"),
                          ("docs/protocol.md", r"of before lost (\d) to (\d) of 100")):
        says(name, pattern, [min(before)], [max(before)])
    with open(ROOT / "pretrained/addition.csv", newline="", encoding="utf-8") as f:
        own = {(r["kind"], r["n"]): r for r in csv.DictReader(f)}
    assert [at for at, r in own.items() if float(r["accuracy"]) < 1] == [("hard", "100")]
    assert float(own["hard", "100"]["accuracy"]) == 499 / 500
    of_sizes = [[float(own["uniform", n][column])] for column in ("loops_answer", "loops_most")
                for n in ("4", "12", "100")]
    says("docs/addition.md", r"takes (\S+) loops per token of the answer at 4 digits, (\S+) at 12 and (\S+) at 100, "
         r"the slowest token (\S+), (\S+) and (\S+) \(", *of_sizes)
    says("docs/findings.md", r"`kl` takes (\S+) loops at 4 digits, (\S+) at 100, with", of_sizes[0], of_sizes[2])
    depths = [[100 * float(found("halting_addition", rule="fixed", loops=f"{n}.0")[0]["accuracy"])] for n in (1, 2, 3)]
    (gate,) = found("halting_addition", rule="gate", threshold="0.999")
    says("docs/addition.md", r"depth: (\S+)% after one, (\S+) after two, (\S+) from three on,.*? (\S+) loops instead "
         r"of 3 for 100% \(random halting with as many: (\S+)%\), (\S+) at 4 digits and (\S+) at 100, where it has "
         r"(\S+)% \((\S+) at 4\)",
         *depths, [float(gate["loops"])], [100 * float(gate["random_accuracy"])], loops("gate", "0.999", "4"),
         loops("gate", "0.999", "100"), rule("gate", "0.999", "100"), rule("gate", "0.999", "4"))
    sure = [rule("confidence", "0.9999", "12"), rule("entropy", "0.001", "12"), rule("entropy", "0.001", "100")]
    for name in ("docs/addition.md", "docs/findings.md"):
        says(name, r"tried they have (\S+)% and (\S+) at 12 digits, `entropy` (\S+) at 100", *sure)
    says("README.md", r"threshold tried they have (\S+) and (\S+) \(\[log", *sure[:2])
    says("docs/findings.md", r"afterwards takes (\S+) loops for (\S+)% of 500 problems of 12 digits, a fixed depth 3; "
         r"at 100 digits it has (\S+)% of 200", loops("gate", "0.999", "12"), rule("gate", "0.999", "12"),
         rule("gate", "0.999", "100"))
    says("pretrained/readme.md", r"takes (\S+) loops a token instead of (\S+), and has (\S+)% of 500 problems of 12 "
         r"digits, (\S+)% of 200 problems of 100 digits\)", loops("gate", "0.999", "12"), of_sizes[1],
         rule("gate", "0.999", "12"), rule("gate", "0.999", "100"))


def test_a_hundred_digits_come_to_rest():
    _, rows = entry_table("The model of a hundred digits with frozen prompts comes to rest")
    known = []
    for seed, exponent, highest, untrained, delta in rows:
        def of(what, column="value", weights="trained", seed=seed):
            (row,) = found("lyapunov_addition", model=f"seed {seed}", what=what, weights=weights, loop="32")
            return float(row[column])
        shown = [float(x) for x in re.findall(r"-?[\d.]+", exponent)]
        assert shown == pytest.approx([of("lyapunov_exponent", c) for c in ("value", "low", "high")], abs=0.00051)
        assert float(highest) == pytest.approx(of("lyapunov_exponent_highest"), abs=0.00051)
        assert float(untrained) == pytest.approx(of("lyapunov_exponent", weights="untrained"), abs=0.00051)
        assert float(delta) == pytest.approx(of("delta"), rel=0.06)
        assert of("lyapunov_exponent", "high") < 0
        known.append(of("lyapunov_exponent"))
    assert len(known) == 5
    says("docs/findings.md", r"with frozen prompts (\S+) in the median of five seeds, at most (\S+): in the mean of 16",
         [statistics.median(known)], [max(known)])


def on_text(name):
    """The row of a block in the sweep of text."""
    return name if name.startswith("12 layers") else f"1 x 12, {name}".removesuffix(", nanogpt")


def of_block(name, column):
    """The seeds of a block: values on text, on track N and on track P, [] where it has none; column: of additions."""
    kinds = ("sweep_block", on_text(name), "best_val_loss", 1), *(
        ("sweep_block_digits", f"{track}{name}", column, 100) for track in ("", "P, "))
    return [[scale * float(r[of]) for r in rows_of(table) if r["row"] == row] for table, row, of, scale in kinds]


def whole_recipe(name):
    """The seeds of a block at 24 digits in the whole recipe of track N, [] where it has none."""
    of, row = ("sweep_track_n", "16 of 64 ids") if name == "nanogpt" else ("sweep_block_long", name)
    return [100 * float(r["uniform_24"]) for r in rows_of(of) if r["row"] == row]


def test_tables_of_several_sweeps_are_what_their_command_writes(tmp_path, monkeypatch):
    """Of the tables as they are."""
    shutil.copytree(ROOT / "results", tmp_path / "results", ignore=lambda _, names: [
        n for n in names if not n.endswith(".csv")])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["sweep_tables.py"])
    sweep_tables.main()
    made = sorted(p.name for p in (tmp_path / "results").iterdir() if p.suffix != ".csv")
    assert made == ["anchor_states.png", "block.md", "block.png", "energy.md"]
    for name in ("block.md", "energy.md"):
        assert (tmp_path / "results" / name).read_text(encoding="utf-8") == page(f"results/{name}")


def test_the_table_of_blocks():
    """results/block.md says what the tables say."""
    head, _, *rows = [cells(x) for x in page("results/block.md").splitlines() if x.startswith("|")]
    names = {re.sub("^(1 x 12, |P, )", "", r["row"]) for t in ("sweep_block", "sweep_block_digits") for r in rows_of(t)}
    assert {row[0] for row in rows} == names - {"1 x 12"}
    for name, _, *shown in rows:
        at = dict(zip(head[2:], shown, strict=True))
        for n in (12, 24):
            known = dict(zip(("text, nats", f"N, {n} digits, %", f"P, {n} digits, %"), of_block(name, f"uniform_{n}"),
                             strict=True))
            for title, values_of in known.items():
                if values_of and title in at:
                    agree(at[title], spread(values_of))
                else:
                    assert not at.get(title)
        if recipe := whole_recipe(name):
            agree(at["N, whole recipe, 24 digits, %"], spread(recipe))
        on_n = "" if name.startswith("12 layers") else name
        for title, of, case in (("ms a token, text, one core", "block_decode_cpu", on_text(name)),
                                ("N, one core", "block_decode_cpu", on_n),
                                ("text, H200", "block_decode", on_text(name)), ("N, H200", "block_decode", on_n)):
            ways = [r["microseconds"] for r in rows_of(of) if r["case"] == case != ""]
            took = [float(x) / 1000 for x in ways if x]
            assert bool(took) == bool(at[title])
            if took:
                agree(at[title], [min(took)])
        for title, of, row in (("ms a step, text, 24 on two H100", "sweep_block", on_text(name)),
                               ("N, the same", "sweep_block_digits", on_n),
                               ("text, H200 alone", "block_ms", on_text(name))):
            ms = [float(r["ms"]) for r in rows_of(of) if r["row"] == row and r["seed"] == "0"]
            assert bool(ms) == bool(at[title])
            if ms:
                agree(at[title], ms)


def decode_times(of="block_decode"):
    """{row of a tuning file: {way: ms}}, what failed left out."""
    times = {}
    for r in rows_of(of):
        if r["microseconds"]:
            times.setdefault(r["case"], {})[r["path"].removeprefix("called: ")] = float(r["microseconds"]) / 1000
    return times


def test_the_costs_of_the_block():
    """docs/block.md, "What a step costs" and "What a character costs": alone on a card, and by which way."""
    text = " ".join(page("docs/block.md").split("**What a step costs.**")[1].split())
    ms = {r["row"].removeprefix("1 x 12, "): [float(r["ms"])] for r in rows_of("block_ms")}
    alone = re.search(r"characters: ([\d.]+) ms, with (.*?) \(one seed\)", text)
    agree(alone[1], ms.pop("1 x 12"))
    shown = dict(re.findall(r"(\w[\w ]*?)`? ([\d.]+)(?:,|$)", alone[2]))
    assert shown.keys() == ms.keys()
    for name, value in shown.items():
        agree(value, ms[name])
    layers = found("scale_third_host", model="12 layers", what="one", ranks="1")
    assert "[scale_third_host.csv](scale_third_host.csv) has 10.5 ms of 12 layers" in " ".join(
        page("results/block.md").split())
    agree(re.search(r"of 12 layers one, ([\d.]+)\.", text)[1], [float(r["ms"]) for r in layers])

    times = decode_times()
    kernel = times["1 x 12"]["kernel"]
    of_text, of_n = ({k: x for k, x in times.items() if bool(re.match("1 x 12|12 layers", k)) == one} for one in (1, 0))
    del of_text["1 x 12"]
    agree(re.search(r"in ([\d.]+) ms, by the kernel", text)[1], [kernel])
    auto, compiled = ([x[way] for x in of_text.values()] for way in ("auto", "compiled"))
    row = next(x for x in page("docs/findings.md").splitlines() if x.startswith("| An H200 writes a character"))
    agree(re.search(r"block in ([\d.]+) ms \(kernel\)", row)[1], [kernel])
    span = r"([\d.]+) to ([\d.]+)"
    for where, words, known in ((text, f"take {span} ms by a CUDA graph", auto),
                                (text, f"and {span} by the compiled", compiled),
                                (row, f"in {span} by the graph", auto), (row, f"{span} by the compiled", compiled),
                                (text, f"takes {span} ms, blocks", [min(x.values()) for x in of_n.values()])):
        for cell, value in zip(re.search(words, where).groups(), (min(known), max(known)), strict=True):
            agree(cell, [value])
    assert "kernel" not in of_n["nanogpt"]
    assert "nanogpt's kernel is not timed" in text
    one_core = decode_times("block_decode_cpu")
    for words, row in ((r"takes ([\d.]+) ms per character", "1 x 12"), (r"with qk ([\d.]+), by", "1 x 12, qk"),
                       (r"by `modern` ([\d.]+), by 12", "1 x 12, modern"),
                       (r"by 12 layers ([\d.]+) \(one", "12 layers")):
        agree(re.search(words, text)[1], [one_core[row]["eager"]])


def test_the_table_of_writing_is_that_of_its_rows():
    """results/block_decode.md, as bench.py would write it."""
    rows = [{k: float(x) if k == "microseconds" else x for k, x in r.items() if x or k == "note"}
            for r in rows_of("block_decode")]
    head, _, tables = page("results/block_decode.md").partition("\n\n")
    assert head.endswith(rows[0]["note"])
    assert tables.strip("\n") == bench.markdown(rows).strip("\n")


def test_what_parts_cost_on_text():
    """docs/block.md and docs/findings.md: differences to nanoGPT's block by seed with 95% intervals, in both models."""
    text, row = " ".join(page("docs/block.md").split()), next(
        x for x in page("docs/findings.md").splitlines() if x.startswith("| On text a gated MLP costs"))
    span = r" ([\d.]+)(?: nats)?(?: in the loop| in 12 layers)? \((?:95% interval )?(-?[\d.]+) to ([\d.]+)"
    for words, a, b, sign in (
            (f"the gates cost{span}", "1 x 12, swiglu", "1 x 12", 1),
            (f"and{span}", "12 layers, swiglu", "12 layers", 1),
            (f"`rms` perhaps gains{span}", "12 layers, rms", "12 layers", -1),
            (f"in the loop{span}", "1 x 12, rms", "1 x 12", -1)):
        agree_interval(re.search(words, text).groups(), a, b, sign)
    for words, a, b, sign in ((f"MLP costs{span}", "1 x 12, swiglu", "1 x 12", 1),
                              (f"the gate costs{span}", "12 layers, swiglu", "12 layers", 1),
                              (f"RMSNorm perhaps gains{span}", "12 layers, rms", "12 layers", -1)):
        agree_interval(re.search(words, row).groups(), a, b, sign)
    for a, b in (("12 layers, qk", "12 layers"), ("12 layers, shared keys", "12 layers"), ("1 x 12, qk", "1 x 12"),
                 ("1 x 12, shared keys", "1 x 12")):  # not told apart
        low, high = differing("sweep_block", a, b, "best_val_loss", 1)[1:]
        assert low < 0 < high


def agree_interval(shown, a, b, sign):
    """Mean, low and high of the difference of two rows of the sweep of text; sign -1: as what is gained."""
    mean, low, high = (sign * x for x in differing("sweep_block", a, b, "best_val_loss", 1))
    for cell, value in zip(shown, (mean, *sorted((low, high))), strict=True):
        agree(cell, [value])


def test_the_page_of_the_block():
    """docs/block.md: the median and the worst seed of each block, of a loss the highest one."""
    head, rows = table("docs/block.md", "The block of today")
    assert [title[:1] for title in head[2:]] == ["N", "N", "P", "w", "t"]
    for name, *shown in rows:
        (losses, n, p), (_, long, _) = of_block(name.strip("*"), "uniform_12"), of_block(name.strip("*"), "uniform_24")
        worst = (min, min, min, min, max)  # of a loss the highest one
        for cell, known, end in zip(shown[1:], (n, long, p, whole_recipe(name.strip("*")), losses), worst, strict=True):
            assert bool(cell) == bool(known)
            agree(cell.replace("*", ""), [statistics.median(known), end(known)]) if cell else None


def in_the_whole_recipe(name, column="uniform_24"):
    """The seeds of a block in the whole recipe of track N."""
    return values(*(REPLACE if name == "nanogpt" else ("sweep_block_long", name)), column)


def cost_of_block(name, column="uniform_24"):
    """What a block loses beside the same seeds of nanoGPT's, in points."""
    both = in_the_whole_recipe("nanogpt", column), in_the_whole_recipe(name, column)
    return [x - y for x, y in zip(*both, strict=False)]


def test_each_part_of_the_newer_block():
    """The tables of the log, and what it and the pages say of the whole recipe."""
    parts, start = ("rms", "qk", "swiglu"), "Each part of the newer block"
    head, rows = entry_table(start)
    assert [row[0] for row in rows] == ["nanogpt", *parts, "modern"]
    for name, *shown in rows:
        for title, cell in zip(head[1:], shown, strict=True):
            size, _, kind = title.removesuffix(" digits").partition(", ")
            column = "32_uniform_24" if title.endswith("32 loops") else f"{kind or 'uniform'}_{size}"
            agree(cell, spread(in_the_whole_recipe(name, column))[:2])
    _, rows = entry_table(start, 2)
    assert [row[0] for row in rows] == [*parts, "modern"]
    without = 0
    for name, *shown in rows:
        for column, cell in zip(("uniform_24", "hard_24", "32_uniform_24"), shown, strict=True):
            agree(cell, sum(mean_of(cost_of_block(name, column)), []))
            without += leaves_out_0(cost_of_block(name, column))
    assert without == 7
    assert "Seven of the 12 intervals leave 0 out, chance makes 0.6" in page("root.md")
    said = "docs/block.md", "docs/findings.md"
    costs = [x for name in (*parts, "modern") for x in mean_of(cost_of_block(name))]
    says(said[0], rf"they cost {ONE} points \(95% interval {ONE} to {ONE}\), {ONE} {SPAN}\), {ONE} {SPAN}\), "
         rf"`modern` {ONE} {SPAN}\)", *costs)
    says(said[1], rf"RMSNorm \(by one problem .*?\) has {CELL}, normed queries and keys {CELL}, SwiGLU {CELL} and all "
         rf"three {CELL}, nanoGPT's block {CELL} \|",
         *(spread(in_the_whole_recipe(x))[:2] for x in (*parts, "modern", "nanogpt")))
    lost = [statistics.median(in_the_whole_recipe("qk", column)) for column in ("uniform_24", "32_uniform_24")]
    says(said[0], rf"32 loops costs qk {ONE} points", [lost[0] - lost[1]])


def test_order_of_the_blocks_in_the_whole_recipe():
    """All seeds of one below all of another, where the log says so; and how near RMSNorm is."""
    parts = "rms", "qk", "swiglu"
    below = [(x, "nanogpt", f"{kind}_24") for x in (*parts, "modern") for kind in ("uniform", "hard")]
    below += [("swiglu", "rms", f"uniform_{n}") for n in (20, 24, 30)] + [("swiglu", "qk", "uniform_30")]
    below += [("modern", x, "uniform_24") for x in parts]
    for low, high, column in below:
        assert max(in_the_whole_recipe(low, column)) < min(in_the_whole_recipe(high, column)), (low, high, column)
    assert math.comb(8, 3) == 56
    edge = max(in_the_whole_recipe("rms")), min(in_the_whole_recipe("nanogpt"))
    says("root.md", rf"its best seed has {ONE}, nanogpt's worst {ONE}, which", *([x] for x in edge))
    assert round((edge[1] - edge[0]) * 20) == 1  # of 2,000 problems
    says("root.md", rf"loops they overlap \({ONE} and {ONE}\)", [max(in_the_whole_recipe("rms", "32_uniform_24"))],
         [min(in_the_whole_recipe("nanogpt", "32_uniform_24"))])
    for n in (8, 12, 16, 20):
        _, (low,), (high,) = mean_of(cost_of_block("rms", f"uniform_{n}"))
        assert low < 0 < high
    alone, together = [cost_of_block(x) for x in parts], cost_of_block("modern")
    more = [x - sum(y) for x, *y in zip(together, *alone, strict=True)]
    says("root.md", rf"costs add up to {ONE} points, `modern` loses {ONE}; the difference, {ONE}, holds 0 {SPAN}\)",
         [sum(map(statistics.mean, alone))], [statistics.mean(together)], *mean_of(more))
    gate = [x - y for x, y in zip(alone[2], alone[0], strict=True)]
    says("root.md", rf"rms less swiglu {ONE}, {ONE} to {ONE}\)", *mean_of(gate))


OF_STATES = "What holds the state, and where it begins"


@cache
def by_state(name):
    """{row, what, loop, class, weights: the rows of the seeds} of a sweep's states."""
    known = {}
    for r in rows_of(f"{name}_states"):
        known.setdefault(tuple(r[k] for k in ("row", "what", "loop", "class", "weights")), []).append(r)
    return known


def states(name, row, what, loop, group="answer", weights="trained", of="value"):
    """Those of the seeds of a sweep, in their order."""
    return [float(r[of]) for r in by_state(name)[row, what, str(loop), group, weights]]


def exponents(name, row, weights="trained", of="value"):
    """The largest of Lyapunov, of the seeds of a sweep, whose analysis has one."""
    return [float(r[of]) for r in found(f"{name}_states", row=row, what="lyapunov_exponent", weights=weights)]


def grown(name, row, first, last):
    """The norms of the seeds after two loops, in pairs."""
    return list(zip(*(states(name, row, "norm", l) for l in (first, last)), strict=True))


def growths(name, row):
    """Of the norm per loop, in its logarithm, over the loops of the exponents."""
    return [math.log(b / a) / 20 for a, b in grown(name, row, 20, 40)]


def alike(known):
    """The one value of untrained weights, which are the same beside every seed."""
    assert len(known) == 3
    assert len(set(known)) == 1
    return known[0]


def agree_each(cell, values):
    """Of a cell with numbers between commas, each."""
    for shown, value in zip(cell.split(", "), values, strict=True):
        agree(shown, [value])


def turns(row, loop):
    """Degrees from the state before a loop to the one after it, whose cosine the growth of the norm and delta give."""
    known = zip(states("sweep_anchor", row, "delta", loop), grown("sweep_anchor", row, loop - 1, loop), strict=True)
    return [math.degrees(math.acos((a * a + b * b - (step * a) ** 2) / (2 * a * b))) for step, (a, b) in known]


def test_the_table_of_norms():
    """That of the protocol and, with more columns, that of the log; what the log says of them, and docs/findings.md."""
    name, anchor = "sweep_anchor", [*dict.fromkeys(r["row"] for r in rows_of("sweep_anchor"))]
    log, shown = entry_table("x0 does not hold the state")[1], table("docs/protocol.md", OF_STATES)[1]
    assert [row[0] for row in log] == [row[0] for row in shown] == anchor

    def fresh(row, what, loop):
        return alike(states(name, row, what, loop, weights="untrained"))
    for row, at_10, at_40, start, delta, untrained, first, turn, exponent, other, *right in log:
        assert [row, at_10, at_40, start, delta, turn, *right] in shown
        for cell, known, least in (
                (at_10, states(name, row, "norm", 10), 1), (at_40, states(name, row, "norm", 40), 1),
                (delta, states(name, row, "delta", 40), 4), (first, turns(row, 10), 1), (turn, turns(row, 40), 1),
                (exponent, exponents(name, row), 3)):
            agree_range(cell, known, least)
        agree_each(start, [fresh(row, "norm", loop) for loop in (10, 40)])
        agree(untrained, [fresh(row, "delta", 40)], 4)
        agree(other, [alike(exponents(name, row, "untrained"))], 3)
        for cell, column in zip(right, ("uniform_4", "long_uniform_4", "uniform_8"), strict=True):
            agree(cell, seeds(name, row, column))

    grow, held, normed = ["add, no norm", "none, no norm"], ["concat, no norm", "decay, no norm"], anchor[4:]
    far = limits([x for row in grow for x in states(name, row, "norm", 40)])
    says("root.md", r"all 40 loops, to norms of (\S+) to (\S+), and keeps", *([round(x, -1)] for [x] in far))
    says("root.md", r"keeps (\S+)% of 4 digits after 32 loops, without x0 (\S+); with the norm (\S+) and (\S+) are",
         *([round(seeds(name, row, "long_uniform_4")[0])] for row in (*grow, "add", "none")))
    for row in grow:  # all seeds apart from those with the norm
        assert min(values(name, row, "long_uniform_4")) > max(values(name, row.split(",")[0], "long_uniform_4"))
        assert max(turns(row, 40)) < min(turns(row.split(",")[0], 40))
        for size in (4, 8, 12):
            assert not leaves_out_0(less((name, row), (name, row.split(",")[0]), f"uniform_{size}"))
    steps = [(b - a) / 30 for row in grow for a, b in grown(name, row, 10, 40)]
    assert (round(min(steps)), round(max(steps))) == (4, 5)
    for row in held:
        norms = {}
        for r in found(f"{name}_states", row=row, what="norm", **{"class": "answer"}):
            if int(r["loop"]) >= 6:
                norms.setdefault((r["weights"], r["seed"]), []).append(float(r["value"]))
        assert [len(x) for x in norms.values()] == [35] * 6
        assert all(max(x) < 1.1 * min(x) for x in norms.values())
    known = [x for row in normed for loop in (10, 40)
             for x in (*states(name, row, "norm", loop), fresh(row, "norm", loop))]
    says("root.md", r"behind it all eight, trained or not, stand between (\S+) and (\S+)\.", *limits(known))
    says("root.md", r"it turns by (\S+) to (\S+) degrees per loop where h may grow and by (\S+) to (\S+) where",
         *(x for rows in (grow, ["add", "none"]) for x in limits([x for row in rows for x in turns(row, 40)])))
    says("root.md", rf"the loss of add is up from (\S+) to {ONE} {SPAN}\), with the norm to {ONE} {SPAN}\)",
         [statistics.median(states(name, grow[0], "loss", 10))],
         *([f(states(name, row, "loss", 40))] for row in (grow[0], "add") for f in (statistics.median, min, max)))

    free, kept, still, normed = ([x for row in rows for x in exponents(name, row)]
                                 for rows in (grow, ["add", "none"], held, ["concat", "decay"]))
    says("root.md", r"without the norm (\S+) to (\S+), all six with their interval, with it (\S+) to (\S+), none with",
         *limits(free), *limits(kept))
    assert 0 < min(kept) < max(kept) < min(free)
    low, high = ({row: exponents(name, row, of=of) for row in anchor} for of in ("low", "high"))
    assert all(x > 0 for row in grow for x in low[row])
    assert all(x < 0 for row in ("add", "none") for x in low[row])
    assert sum(x < 0 for row in held for x in high[row]) == 5
    assert sum(x < 0 for row in ("concat", "decay") for x in high[row]) == 1
    assert all(x < 0 for row in ("concat", "decay") for x in low[row])
    beside = {row: [x - y for x, y in zip(exponents(name, row), growths(name, row), strict=True)] for row in anchor}
    says("root.md", r"grows, by (\S+) to (\S+) per loop in its logarithm; beside it a push grows by (\S+) to (\S+)\. ",
         *limits([x for row in grow for x in growths(name, row)]), *limits([x for row in grow for x in beside[row]]))
    says("root.md", r"less than with the norm in all seeds of none \((\S+) at least\), of add not in seed 1",
         [min(exponents(name, "none"))])
    assert [[x < y for x, y in zip(beside[f"{row}, no norm"], beside[row], strict=True)] for row in ("add", "none")
            ] == [[False, True, True], [True, True, True]]
    says("root.md", r"contract without the norm, by (\S+) to (\S+), five of six .*? not told from 0 \((\S+) to (\S+), "
         "the sixth", *limits(still), *limits(normed))

    says("docs/findings.md", r"h grows with x0 or without \((\S+) and (\S+) at loop 40\), .*? keeps (\S+% \(\S+\)) and "
         r"(\S+ \(\S+\)) at 4 digits after 32 loops instead of (\S+ \(\S+\)) and (\S+ \(\S+\));",
         *([round(statistics.median(states(name, row, "norm", 40)))] for row in grow),
         *(seeds(name, row, "long_uniform_4") for row in (*grow, "add", "none")))
    row = "decay, no norm"
    says("docs/findings.md", r"comes to rest \(delta (\S+)\) and has (\S+% \(\S+\)) at 8 digits of track N, with it "
         r"(\S+ \(\S+\)); .*? fall from (\S+ \(\S+\)) to (\S+ \(\S+\)) \|",
         [round(statistics.median(states(name, row, "delta", 40)), 4)],
         *(seeds(name, row, "uniform_8") for row in (row, "decay")),
         *(seeds(name, row, column) for column in ("uniform_4", "long_uniform_4")))
    assert max(values(name, row, "uniform_8")) < min(values(name, "decay", "uniform_8"))


def test_eight_rows_without_loop_norm_at_128_channels():
    """The table of the log, what the log says of it, docs/findings.md and docs/open.md."""
    of = {row: ("sweep_anchor_steps", row) if "," in row else ("sweep_anchor", f"{row}, no norm")
          for row in (x + e for x in ("add", "none") for e in ("", ", learned", ", sinusoid", ", rope"))}
    with_norm = {row: ("sweep_injection", f"{row} step encoding" if "," in row else f"inject {row}") for row in of}
    entry = entry_table("At 128 channels, too, the state grows alike")[1]
    assert [row[0] for row in entry] == [*of]
    assert {r["row"] for r in rows_of("sweep_anchor_steps")} == {row for row in of if "," in row}
    ends = {row for row in of if "learned" in row}
    for row in ends:  # nothing is known beyond the loops of training
        assert max(int(r["loop"]) for r in found("sweep_anchor_steps_states", row=row)) == 10
        assert not [r for r in found("sweep_anchor_steps_states", row=row) if r["what"] == "lyapunov_exponent"]
    six = [row for row in of if row not in ends]
    for row, *shown, fresh, step, last, exponent, other, four, eight, twelve in entry:
        for loop, cell in zip((1, 10, 40), shown, strict=True):
            assert bool(cell) == (loop <= 10 or row in six)
            if cell:
                agree_range(cell, states(*of[row], "norm", loop))
        agree_each(fresh, [alike(states(*of[row], "norm", loop, weights="untrained"))
                           for loop in (10, 40)[:1 + (row in six)]])
        agree_range(step, states(*of[row], "delta", 10), 3)
        assert bool(last) == bool(exponent) == bool(other) == (row in six)
        if row in six:
            agree_range(last, states(*of[row], "delta", 40), 4)
            agree_range(exponent, exponents(*of[row]), 3)
            agree(other, [alike(exponents(*of[row], "untrained"))], 3)
        for cell, size in ((four, 4), (eight, 8), (twelve, 12)):
            agree(cell, seeds(*of[row], f"uniform_{size}"))

    def within(what, loop, rows=of):
        return limits([x for row in rows for x in states(*of[row], what, loop)])
    norms = [[round(x)] for loop, rows in ((10, of), (40, six)) for [x] in within("norm", loop, rows)]
    says("root.md", r"norms of (\S+) to (\S+) after 10 loops, of (\S+) to (\S+) after 40; learned steps", *norms)
    steps = [(b - a) / 30 for row in six for a, b in grown(*of[row], 10, 40)]
    says("root.md", r"within (\S+) and (\S+) after loop 1, (\S+) and (\S+) after 10, .*? within (\S+) and (\S+) after "
         r"40, by (\S+) to (\S+) per loop .*? deltas within (\S+) and (\S+) after 10, (\S+) and (\S+) after 40, where",
         *([round(x)] for [x] in within("norm", 1)), *norms, *limits(steps), *within("delta", 10),
         *within("delta", 40, six))
    says("docs/findings.md", r"of a demo, of (\S+) to (\S+) after 40 at 128 channels\)", *within("norm", 40, six))
    lows = sorted((x, row) for row in six for x in states(*of[row], "norm", 40))[:3]
    assert sorted(row for _, row in lows) == ["none, rope", "none, sinusoid", "none, sinusoid"]
    found_exponents = [x for row in six for x in exponents(*of[row])]
    logs = [x for row in six for x in growths(*of[row])]
    says("root.md", r"The (\d+) exponents are (\S+) to (\S+), all with their .*? grows by (\S+) to (\S+) in its "
         "logarithm meanwhile", [len(found_exponents)], *limits(found_exponents), *limits(logs))
    assert min(x for row in six for x in exponents(*of[row], of="low")) > 0

    columns = [f"{kind}_{size}" for kind in ("uniform", "hard") for size in (4, 8, 12)]
    pairs = [count_apart(of[one], of[other], columns) for one, other in itertools.combinations(of, 2)]
    total, apart, order = (sum(x[i] for x in pairs) for i in range(3))
    low = sum(max(values(*of["none, sinusoid"], c)) < min(values(*of[row], c)) for row in of for c in columns)
    says("root.md", r"hard, (\d+) differences are not .*? leaves 0 out in (\d+), where chance makes (\d+), and all "
         r"seeds are apart in (\d+), where chance makes (\d+); (\d+) of those have `none, sinusoid` as the lower",
         *([x] for x in (total, apart, round(0.05 * total), order, round(0.1 * total), low)))
    eight, twelve = ([less(of[f"add{e}"], of[f"none{e}"], f"uniform_{size}")
                      for e in ("", ", learned", ", sinusoid", ", rope")] for size in (8, 12))
    says("root.md", rf"of the four encodings, is {ONE} points ahead at 8 digits {SPAN}\) and {ONE} at 12 {SPAN}\)\. "
         r"The interval of 12 pairs would be (\S+) to (\S+) at 8",
         *(x for gaps in (eight, twelve) for x in mean_of([statistics.mean(seed) for seed in zip(*gaps, strict=True)])),
         *mean_of(sum(eight, []))[1:])
    says("root.md", rf"they have {ONE} points {SPAN}\) at 8 digits with x0 and {ONE} {SPAN}\) without; at 12 digits "
         r"with x0 they are ahead in all three seeds \((\S+), (\S+) to (\S+)\)",
         *(x for row, size in (("add", 8), ("none", 8), ("add", 12))
           for x in mean_of(less(of[f"{row}, learned"], of[row], f"uniform_{size}"))))
    assert min(less(of["add, learned"], of["add"], "uniform_12")) > 0

    right = {row: values(*of[row], "uniform_4") for row in of}
    normed = {row: values(*with_norm[row], "uniform_4")[:3] for row in of}
    least = min(x for row in of for x in right[row])
    fallen = [sum(normed[row][seed] < least for row in of) for seed in range(3)]
    assert fallen == [3, 3, 8]
    assert [len(x) for x in (*right.values(), *normed.values())] == [3] * 16
    says("root.md", r"all (\d+) trainings have (\S+)% or more at 4 digits, with it, of another day, (\d+) of 24",
         [24], [least], [sum(fallen)])
    says("root.md", r"none of the 14 has over (\S+)\. Those", [max(x for row in of for x in normed[row] if x < least)])
    says("docs/findings.md", r"without it all (\d+) trainings .*? have (\S+)% or more at 4 digits, with it (\d+) of 24",
         [24], [least], [sum(fallen)])
    for name in ("sweep_anchor_steps", "sweep_anchor"):  # all 24 come under 0.1
        best = {}
        for r in rows_of(f"{name}_curves"):
            if {(name, r["row"])} & set(of.values()):
                best.setdefault((r["row"], r["seed"]), []).append(float(r["val_loss"]))
        assert len(best) == (18 if name.endswith("steps") else 6)
        assert all(min(x) < 0.1 for x in best.values())
    says("docs/open.md", r"since (\d+) short trainings of 24 have 4 digits without it, (\d+) of 24 with",
         [24], [24 - sum(fallen)])
    says("root.md", r"all eight of seed 3, with at most (\S+)%, and three each", [max(x[2] for x in normed.values())])
    four = ("add", "none", "concat", "decay")
    known, beside = ([x for row in four for x in values("sweep_anchor", row + no, "uniform_4")]
                     for no in (", no norm", ""))
    says("root.md", r"without the norm (\S+)% or more in all 12, with it less than 98.5 in (\d+) of 12",
         [math.floor(10 * min(known)) / 10], [sum(x < 98.5 for x in beside)])
    says("docs/findings.md", r"of one day \(.*?\) (\d+) of 12 and (\d+);",
         *([sum(x < 98.5 for x in y)] for y in (known, beside)))
    told = []
    for row in of:
        pairs = [(values(*of[row], f"uniform_{size}"), values(*with_norm[row], f"uniform_{size}")[:3])
                 for size in (8, 12)]
        if any(leaves_out_0([a - b for a, b in zip(x, y, strict=True)]) or max(x) < min(y) or max(y) < min(x)
               for x, y in pairs):
            told.append(row)
    assert told == ["add, learned", "add, sinusoid", "none, learned"]  # the other five are not told apart
    says("root.md", r"with x0 \((\S+)% at least; with the norm at most (\S+)\) and without \((\S+) and (\S+)\), and",
         *(x for row in ("add, learned", "none, learned")
           for x in ([min(values(*of[row], "uniform_8"))], [max(values(*with_norm[row], "uniform_8")[:3])])))


STARTED, RANGE = "sweep_start", r"([\d.]+ \([\d.]+ to [\d.]+\))"


def away(row, start, weights="trained"):
    """Distances from a start to the states of a model's own, three seeds: after 1, L and 4 L loops."""
    L = 14 if row.startswith("P") else 10
    known = [states(STARTED, row, "start_distance", l, start, weights) for l in (1, L, 4 * L)]
    assert all(len(x) == 3 for x in known)
    return known


def agree_three(cells, known):
    """Cells `a (b to c)` against numbers of three seeds each, with two decimals, or as many as are shown."""
    for cell, numbers in zip(cells, known, strict=True):
        agree_range(cell, numbers, 2)


def test_the_table_of_starts():
    """That of docs/protocol.md, those of the log, and docs/findings.md."""
    entry, columns = "A start of its own", ("uniform_4", "uniform_8", "uniform_12", "long_uniform_4")
    names = list(dict.fromkeys(r["row"] for r in rows_of(STARTED)))
    rows, log = table("docs/protocol.md", OF_STATES, 2)[1], entry_table(entry)[1]
    assert [row[0] for row in rows] == [row[0] for row in log] == names
    for row, four, eight, long, *distances in rows:
        for cell, column in ((four, "uniform_4"), (eight, "uniform_8"), (long, "long_uniform_4")):
            agree(cell, seeds(STARTED, row, column))
        agree_three(distances, away(row, "random"))
    for row, *shown, exponent, untrained in log:
        for cell, column in zip(shown, columns, strict=True):
            agree(cell, seeds(STARTED, row, column))
        agree_range(exponent, exponents(STARTED, row), 3)
        agree(untrained, [alike(exponents(STARTED, row, "untrained"))], 3)
    for row, start, *distances, untrained in entry_table(entry, 2)[1]:
        agree_three(distances, away(row, start))
        agree_each(untrained, [x for known in away(row, start, "untrained") for x in set(known)])
    says("docs/protocol.md", rf"first loop on, {RANGE} in a model begun at zero, and come hardly nearer, {RANGE} after",
         *map(spread, away("N decay, zero", "x0")[::2]))
    says("docs/findings.md", rf"random start has {CELL} at 8 digits of track N and {CELL} of P, where x0 has {CELL} "
         rf"and {CELL}, though", *(
             seeds(STARTED, f"{track} {start}", "uniform_8") for start in ("random", "x0") for track in "NP"))
    far = [x for row in names if "random" not in row for x in away(row, "random")[2]]
    fresh = [x for row in names for x in away(row, "random", "untrained")[2]]
    far, fresh = limits(far), limits(fresh)
    says("docs/findings.md", rf"another random start is {RANGE} and {RANGE} of their norm away, in all other models "
         rf"{ONE} to {ONE};", *(spread(away(row, "random")[2]) for row in ("N random", "P random")), *far)
    says("root.md", rf"a random start stays {ONE} to {ONE} away, of untrained weights {ONE} to {ONE}\. Before",
         *far, *fresh)


def test_what_a_start_of_its_own_buys():
    """Which models meet, the exponents' intervals, and what is told apart, as the log says."""
    names = list(dict.fromkeys(r["row"] for r in rows_of(STARTED)))
    for row in names:
        if "decay" not in row:
            assert away(row, "x0") == away(row, "zero")
    near = [max(away(row, start)[2]) for row in ("N random", "P random") for start in ("x0", "random")]
    assert max(near[:2]) < 0.005
    assert max(near[2:]) < 0.14
    signs = {}
    for row in names:
        low, high = (exponents(STARTED, row, of=x) for x in ("low", "high"))
        signs[row] = [(x > 0) - (y < 0) for x, y in zip(low, high, strict=True)]
    assert signs == {"N x0": [1, 1, 0], "N learned": [1, 0, 0], "N random": [-1] * 3, "N decay, x0": [0] * 3,
                     "N decay, zero": [0] * 3, "P x0": [1] * 3, "P learned": [1] * 3, "P random": [0] * 3}
    columns = [c for c in rows_of(STARTED)[0] if re.fullmatch(r"(long_)?(uniform|hard)_\d+", c)]
    pairs = {track: [(STARTED, f"{track} {start}") for start in ("learned", "x0")] for track in "NP"}
    told = [count_apart(*pairs[track], columns)[:3] for track in "NP"]
    assert told == [(16, 0, 0), (15, 1, 2)]
    cost = less(*pairs["P"], "hard_16")
    says("root.md", rf"at 16 hard digits it has {RANGE} where x0 has {RANGE}, all seeds apart, mean {ONE} "
         rf"\({ONE} to {ONE}\)",
         *(spread(values(*one, "hard_16")) for one in pairs["P"]), *mean_of(cost))
    for track in "NP":
        one, other = (values(STARTED, f"{track} {start}", "uniform_8") for start in ("random", "x0"))
        assert max(one) < min(other)
    of_add = [values(name, row, "uniform_12")[:3] for name, row in (
        ("sweep_anchor", "add"), (STARTED, "N x0"), ("sweep_injection", "inject add"))]  # one command
    says("root.md", r"At 12 digits seed 1 has 99\.0, (\S+), 95\.3, (\S+) and, that once, (\S+)%, seed 2 4\.8, (\S+), "
         r"14\.7, (\S+) and (\S+), seed 3 0\.8, (\S+), 1\.2, (\S+) and (\S+)\. ", *([x] for x in itertools.chain(
             *zip(*of_add, strict=True))))
    says("root.md", rf"its `decay` has {RANGE} at 8 digits", spread(values("sweep_anchor", "decay", "uniform_8")))
    best = [max(values(STARTED, f"N {start}", "long_uniform_4")) for start in ("x0", "learned")]
    assert max(best) < min(values(STARTED, "N random", "long_uniform_4"))
    says("root.md", rf"32 loops of N leave {CELL}, all seeds above .*? best have {ONE} and {ONE} \(before",
         seeds(STARTED, "N random", "long_uniform_4"), *([x] for x in best))


def of_demo(model, what, loop, of, weights="trained"):
    """Numbers of three seeds of a row of config/sweep_forgetting.py, in %; a cosine as it is."""
    where = {"what": what, "loop": str(loop), "class": of, "weights": weights}
    known = found("forgetting", model=f"demo {model}", **where) + found("forgetting_seeds", model=model, **where)
    assert len(known) == 3
    return [float(r["value"]) * (1 if what == "cosine_x0" else 100) for r in known]


def test_what_the_demo_forgets_in_three_seeds():
    """The table of the log, its title, and docs/findings.md."""
    entry = "Over three seeds the demo's loops forget as in one"
    names = [x.split("/")[0] for x in dict.fromkeys(r["model"] for r in rows_of("forgetting_seeds"))]
    kept, turned, own, all_exponents, read = [], [], [], [], {}
    for name, (label, *shown, cosine, one, exponent, untrained) in zip(names, entry_table(entry)[1], strict=True):
        assert name.replace("_", " ") == label.replace(",", "")
        read[label] = {loop: of_demo(name, "probe_accuracy", loop, "token read") for loop in (1, 2, 4, 16)}
        for cell, known in zip(shown, read[label].values(), strict=True):
            agree_range(cell, known)
        agree_range(cosine, of_demo(name, "cosine_x0", 4, "answer"), 2)
        agree_range(one, of_demo(name, "one_probe_accuracy", 16, "digit 1"))
        assert of_demo(name, "one_probe_accuracy", 4, "digit 1") == [100, 100, 100]
        (kept if "no loop norm" in label else turned).extend(of_demo(name, "one_probe_accuracy", 16, "digit 1"))
        own += of_demo(name, "probe_accuracy", 16, "digit 1") * ("no loop norm" not in label)
        of, fresh = (exponents("sweep_forgetting", label, weights) for weights in ("trained", "untrained"))
        all_exponents += of
        agree_range(exponent, of, 3)
        agree(untrained, [statistics.median(fresh)], 3)
    for loop in (4, 16):
        others = [read[label][loop] for label in read if label != "none"]
        assert max(read["none"][loop]) < min(map(min, others))
    says("root.md", r"\((\S+) to (\S+) times from loop 4 to 16 with replace, (\S+) to (\S+) with Euler", *(
        x for label in ("add", "add, euler 0.5")
        for x in limits([b / a for a, b in grown("sweep_forgetting", f"{label}, no loop norm", 4, 16)])))
    said = rf"without x0 a probe has {ONE}% {SPAN}\) of the tokens read after 4 loops, {ONE} {SPAN}\) after 16"
    says("root.md", said, *([f(read["none"][loop])] for loop in (4, 16) for f in (statistics.median, min, max)))
    surely = [r for r in found("sweep_forgetting_states", what="lyapunov_exponent", weights="trained")
              if float(r["low"]) > 0]
    says("root.md", r"all (\d+) exponents are above 0, (\S+) to (\S+), (\d+) with their interval", [len(all_exponents)],
         *limits(all_exponents), [len(surely)])
    assert min(all_exponents) > 0
    right = {no: [x for label in read if ("no loop norm" in label) == no
                  for x in values("sweep_forgetting", label, "long_uniform_4")] for no in (True, False)}
    says("root.md", r"though not the answer: (\S+) to (\S+)% of 4 digits are right after 16 loops there, with the norm "
         r"(\S+) at", *limits(right[True]), [max(right[False])])
    says("root.md", r"one probe keeps (\S+)% or more .*? without loop norm, and (\S+) at most in the 15 .*? has (\S+) "
         r"to (\S+)\.", [min(kept)], [max(turned)], *limits(own))
    says("docs/findings.md", r"one probe keeps (\S+)% or more .*? without it, (\S+) at most with it, .*? has (\S+) or "
         r"more", [min(kept)], [max(turned)], [min(own)])
    says("docs/findings.md", r"three seeds of the demo: \[(\S+)% at loop 4, (\S+) at 16\]\(\S+, with x0 (\S+) and "
         r"(\S+)\)", *([statistics.median(read[label][loop])] for label in ("none", "add") for loop in (4, 16)))


def test_from_which_loop_on_the_demo_is_right():
    """The second table of the same entry, what it says of it, and docs/findings.md."""
    entry = "Over three seeds the demo's loops forget as in one"
    names = list(dict.fromkeys(r["model"] for r in rows_of("forgetting_seeds")))
    right, one, own = {}, {}, {}
    for name, (label, first, second, fresh, *probes) in zip(names, entry_table(entry, 2)[1], strict=True):
        assert name.replace("_", " ") == label.replace(",", "")
        right[name] = of_demo(name, "right_to_stay", 1, "answer")
        agree_range(first, right[name])
        agree_range(second, of_demo(name, "right_to_stay", 2, "answer"))
        assert of_demo(name, "right_to_stay", 3, "answer") == [100, 100, 100]
        agree(fresh, [alike(of_demo(name, "right_to_stay", 4, "answer", "untrained"))])
        one[name], own[name] = (of_demo(name, what, 1, "digit 1") for what in ("one_probe_accuracy", "probe_accuracy"))
        assert all(x < y for x, y in zip(one[name], own[name], strict=True))
        for cell, known in zip(probes, (one[name], of_demo(name, "one_probe_accuracy", 2, "digit 1"), own[name]),
                               strict=True):
            agree_range(cell, known)
    others = [name for name in names if name != "concat"]
    by_rest, of_rest, own_of_rest = ([x for name in others for x in known[name]] for known in (right, one, own))
    says("root.md", rf"has more than {ONE}% from loop 1 on, no other training less than {ONE}\. .*? the one probe has "
         rf"{ONE} to {ONE}%, a probe of that loop {ONE} or more\. Of the others the one probe has {ONE} to {ONE}%, a "
         rf"probe of that loop {ONE} or", *([x] for x in (
             max(right["concat"]), min(by_rest), min(one["concat"]), max(one["concat"]), min(own["concat"]),
             min(of_rest), max(of_rest), min(own_of_rest))))
    says("root.md", r"by its four loops `concat` has (\S+% \(\S+\)) at 4 digits, as `add` has",
         seeds("sweep_forgetting", "concat", "uniform_4"))
    assert seeds("sweep_forgetting", "add", "uniform_4") == seeds("sweep_forgetting", "concat", "uniform_4")
    says("docs/findings.md", r"reads it at (\S+) to (\S+)% after loop 1, a probe of that loop at (\S+) or more",
         *([x] for x in (min(one["concat"]), max(of_rest), min(own_of_rest))))
    says("docs/findings.md", r"all by loop 3 in (\d+) trainings, (\S+) to (\S+)% from loop 1 on, but with `concat` "
         r"(\S+) to (\S+) \|", [3 * len(names)], *limits(by_rest), *limits(right["concat"]))


def test_a_demo_that_searches_with_loop_norm_and_without():
    """The table of the log, who has learned 3 digits, and the same in its heading and in docs/findings.md."""
    entry, name = "In a demo without an address seeds fall with the loop norm and without", "sweep_norm_demo"
    for label, *shown in entry_table(entry)[1]:
        row, size = re.fullmatch(r"(.*), (\d) digits", label).groups()
        for cell, known in itertools.zip_longest([x for x in shown if x], values(name, row, f"uniform_{size}")):
            agree(cell, [known])
    learned = {row: [x > 95 for x in values(name, row, "uniform_3")] for row in ("norm", "no norm")}
    says("root.md", r"seeds fall with the loop norm and without: (\d) of 6 learn 3 digits with it, (\d) of 6 without",
         *([sum(x)] for x in learned.values()))
    says("docs/findings.md", r"without an address (\d) of 6 fall without it and (\d) of 6 with it",
         *([6 - sum(learned[row])] for row in ("no norm", "norm")))
    at_8 = {row: [x for x, at_3 in zip(values(name, row, "uniform_8"), learned[row], strict=True) if at_3]
            for row in learned}
    says("root.md", r"the two that learn without the norm have (\S+) and (\S+)% at 8 digits, the three with it (\S+), "
         r"(\S+) and (\S+)\.", *([x] for row in ("no norm", "norm") for x in sorted(at_8[row])))
    assert all(min(values(name, row, "uniform_2")) == 100 for row in (*learned, "no norm, 12,000 steps"))


def test_step_encodings_without_loop_norm():
    """The table of the log, norms and deltas of three seeds after every loop that it names; docs/findings.md."""
    entry, name, far = "Without loop norm the state grows the same", "sweep_anchor_demo", {}
    for row, *shown, untrained, at_4, at_16, four, eight in entry_table(entry)[1]:
        loops = (1, 4) if "learned" in row else (1, 4, 16)  # nothing is known beyond the loops of training
        assert ((row, "norm", "16", "answer", "trained") in by_state(name)) == bool(at_16) == bool(shown[2]) == (
            16 in loops)
        assert len(states(name, row, "norm", 4)) == 3
        for cell, loop in zip(shown, loops, strict=False):
            agree_range(cell, states(name, row, "norm", loop))
        for cell, loop, least in ((at_4, 4, 2), (at_16, 16, 3))[:len(loops) - 1]:
            agree_range(cell, states(name, row, "delta", loop), least)
        agree_each(untrained, [alike(states(name, row, "norm", loop, weights="untrained")) for loop in loops])
        for cell, n in ((four, 4), (eight, 8)):
            agree(cell, seeds(name, row, f"uniform_{n}"))
        far[row] = values(name, row, "uniform_8")
    assert [*far] == [*dict.fromkeys(r["row"] for r in rows_of(name))]
    others = [row for row in far if "learned" not in row]

    def within(what, *loops):
        return [x for loop in loops for x in limits([x for row in others for x in states(name, row, what, loop)])]
    norms = [[round(x)] for [x] in within("norm", 1, 4, 16)]
    says("root.md", r"norms of (\S+) to (\S+) after 4 loops and (\S+) to (\S+) after 16; learned steps", *norms[2:])
    says("root.md", r"lie within (\S+) and (\S+), (\S+) and (\S+), (\S+) and (\S+) after these loops, deltas within "
         r"(\S+) and (\S+), (\S+) and (\S+)\. ", *norms, *within("delta", 4, 16))
    says("root.md", r"without end, by (\S+) to (\S+) per loop", *([round(x)] for [x] in limits(
        [(b - a) / 12 for row in others for a, b in grown(name, row, 4, 16)])))
    assert max(far["add, learned"]) < min(least := [min(far[row]) for row in others])
    says("docs/findings.md", r"norms of (\S+) to (\S+) after 16 loops .*? cost length: (\S+ \(\S+\)) at 8 digits with "
         r"x0, (\S+ \(\S+\)) without, the other six rows (\S+) or", *within("norm", 16),
         *(seeds(name, f"{x}, learned", "uniform_8") for x in ("add", "none")),
         [min(least)])


def test_loops_of_reading_and_writing():
    """Medians and ranges of five seeds in the log, and docs/findings.md."""
    known, until = {}, {}
    for r in rows_of("waiting_loops"):
        for part in ("prompt", "answer"):
            known.setdefault((r["row"], r["n"], r["read"], r["write"], part), []).append(float(r[f"loops_{part}"]))
    for row, n, prompt, *answers in entry_table("Read until `confidence` is 0.9, prompts of track N take")[1]:
        until.setdefault(row, []).append(known[row, n, "0.9", "8", "prompt"])
        agree_range(prompt, until[row][-1], 2)
        for cell, read in zip(answers, ("3", "4", "8", "0.9"), strict=True):
            if cell:
                agree_range(cell, known[row, n, read, "0", "answer"], 2)
            else:
                assert (row, n, read, "0", "answer") not in known
    ends = [f([statistics.median(x) for x in of]) for of in until.values() for f in (min, max)]
    (_, of_p) = until.values()
    says("docs/findings.md", r"prompts of track N take (\S+) to (\S+) loops, of track P (\S+) to (\S+) \(seeds: (\S+) "
         r"to (\S+)\)", *([x] for x in (*ends, min(map(min, of_p)), max(map(max, of_p)))))


def test_the_halting_loop():
    """docs/decisions.md: the loop from which tokens are right, or a guess stands, beside the one that halts them."""
    right = [float(found("forgetting_frozen", model="addition", what="right_to_stay", weights="trained",
                         loop=str(l))[0]["value"]) for l in (1, 2, 3)]
    assert right[2] == 1
    shares = [right[0], right[1] - right[0], right[2] - right[1]]
    first = [sum(x * l for x, l in zip(shares, (1, 2, 3), strict=True))]
    (rule,) = found("forgetting_frozen", model="addition", what="loops", **{"class": "answer"})
    loops = [float(found("analyze_text_difficulty", what=what, weights="trained", **{"class": "all"})[0]["value"])
             for what in ("settles", "loops")]
    says("docs/decisions.md",
         r"writes (\S+), (\S+) and (\S+)% are right from loop 1, 2 and 3 on, (\S+) in the mean, and `kl` under "
         r"0.001 halts the same tokens in (\S+) \(.*? a guess stands after (\S+) loops .*? halts in (\S+) \(",
         *([100 * x] for x in shares), first, [float(rule["value"])], *([x] for x in loops))
    says("docs/findings.md", r"right from loop (\S+) on in the mean and halts by `kl` in (\S+); on text a guess stands "
         r"after (\S+) loops and `entropy` halts in (\S+) \|", first, [float(rule["value"])], *([x] for x in loops))


def differing(name, a, b, column, scale=100):
    """The mean difference of two rows over their seeds and its interval."""
    return sum(mean_of(less((name, a), (name, b), column, scale=scale)), [])


def test_the_gate_that_knows_its_loop():
    """docs/protocol.md and docs/findings.md against results/sweep_gate.csv."""
    told, plain = "P, told the loop", "P"
    text = " ".join(page("docs/protocol.md").split())
    shown = re.search(r"then has ([\d.]+% \([\d.]+\)) at 12 digits of track P instead of ([\d.]+ \([\d.]+\)), with "
                      r"threshold 0.999 .*?takes ([\d.]+) loops less \(([\d.]+) to ([\d.]+)\) at 4", text).groups()
    for cell, row in zip(shown[:2], (told, plain), strict=True):
        agree(cell, seeds("sweep_gate", row, "gate_999_uniform_12"))
    fewer = differing("sweep_gate", plain, told, "gate_999_loops_answer_4", 1)
    for number, value in zip(shown[2:], fewer, strict=True):
        agree(number, [value], least=2)
    (on_p,) = re.findall(r"^\| Told its loop .*", page("docs/findings.md"), re.M)
    wanted = [seeds("sweep_gate", row, f"gate_999_uniform_{n}") for n in (12, 8) for row in (told, plain)]
    for cell, known in zip(re.findall(r"[\d.]+%? \([\d.]+\)", on_p), wanted, strict=True):
        agree(cell, known)
    saved, loops, low, high = re.search(r"saves ([\d.]+) loops of ([\d.]+) at 8 digits \(([\d.]+) to ([\d.]+)\)",
                                        on_p).groups()
    _, _, (x, _, y, _) = sweep_tables.equal_accuracy(rows_of("sweep_gate"), plain, told)["gate", 8, "all"]
    interval = stats.ttest_rel(x, y).confidence_interval()
    for number, value in ((saved, (x - y).mean()), (loops, x.mean()), (low, interval.low), (high, interval.high)):
        agree(number, [value], least=2)
    (on_n,) = re.findall(r"^\| On track N a gate trained along .*", page("docs/findings.md"), re.M)
    for cell, column in zip(re.findall(r"[\d.]+%? \([\d.]+\)", on_n), ("gate_999_uniform_4", "uniform_4"), strict=True):
        agree(cell, seeds("sweep_gate", "N", column))
    agree(re.search(r"take ([\d.]+) of 32 loops", on_n)[1],
          [statistics.median(values("sweep_gate", "N", "gate_999_loops_solved_4", 1))])
    both = zip(*(values("sweep_gate", "N", column) for column in ("uniform_4", "gate_999_uniform_4")), strict=True)
    assert sum(fixed > halted for fixed, halted in both) == 4
    assert "four seeds of five" in on_n


def first_under(name, row, bound):
    """The first evaluation of each seed whose validation loss is under a bound, inf where there is none."""
    curves = [r for r in rows_of(f"{name}_curves") if r["row"] == row]
    return [min((int(r["iter"]) for r in curves if r["seed"] == seed and float(r["val_loss"]) < bound),
                default=float("inf")) for seed in dict.fromkeys(r["seed"] for r in curves)]


def agree_first_under(cells, name, row, bounds):
    """The first cells against the first evaluations whose validation losses are under these bounds."""
    for bound, cell in zip(bounds, cells, strict=False):
        steps = [float(x.replace(",", "").replace("never", "inf")) for x in re.findall(r"[\d,]+|never", cell)]
        assert steps == spread(first_under(name, row, bound)), (row, bound)


def agree_sizes(titles, cells, name, row):
    """Cells under titles as "8 digits", "20" or "12, hard" against the seeds of a row."""
    for title, cell in zip(titles, cells, strict=True):
        size, _, kind = title.removesuffix(" digits").partition(", ")
        agree(cell, seeds(name, row, f"{kind or 'uniform'}_{size}"))


def injection(label):
    """The row of config/sweep_injection.py that a table calls so."""
    inject, _, encoding = label.partition(", ")
    return f"{inject}, {encoding} step encoding" if encoding else f"inject {inject}"


def test_injections_over_five_seeds():
    """The table of the log, and what docs/findings.md and docs/decisions.md say of it."""
    head, rows = entry_table("Injection and step encodings over five seeds")
    known, late = {}, {True: [], False: []}
    for label, *shown in rows:
        name = injection(label)
        known[label] = {n: seeds("sweep_injection", name, f"uniform_{n}") for n in (4, 8, 12, 16, 20)}
        agree_first_under(shown, "sweep_injection", name, (0.3, 0.1))
        never = [x == float("inf") for x in first_under("sweep_injection", name, 0.1)]
        assert shown[2] == f"{5 - sum(never)} of 5"
        late["learned" in label] += never
        for title, cell in zip(head[4:], shown[3:], strict=True):
            agree(cell, known[label][int(title.split()[0])])
    assert len(known) == 8
    text = page("docs/findings.md")
    low, high = re.search(r"8 digits have from ([\d.]+% \([\d.]+\)) to ([\d.]+ \([\d.]+\))", text).groups()
    agree(low, min(x[8] for x in known.values()))
    agree(high, max(x[8] for x in known.values()))
    worst = re.search(r"one seed has at most ([\d.]+) at 4 digits in all eight", text)[1]
    agree(worst, [100 * max(float(r["uniform_4"]) for r in found("sweep_injection", seed="3"))])
    assert (f"{sum(late[True])} of {len(late[True])} runs never come under 0.1, of the other encodings and none "
            f"{sum(late[False])} of {len(late[False])}") in text
    add, none = re.search(r"8 digits have ([\d.]+% \([\d.]+\)) with add and ([\d.]+ \([\d.]+\)) with none",
                          " ".join(page("docs/decisions.md").split())).groups()
    agree(add, known["add"][8])
    agree(none, known["none"][8])


def test_injections_of_track_p():
    """The table of the log, and what the pages say of it."""
    head, rows = entry_table("Track P adds without x0")
    known = {}
    for label, *shown in rows:
        name = injection(label)
        agree_first_under(shown, "sweep_injection_parallel", name, (0.3, 0.01))
        agree_sizes(head[3:], shown[2:], "sweep_injection_parallel", name)
        known[label] = seeds("sweep_injection_parallel", name, "uniform_8")
    assert len(known) == 8
    says("docs/findings.md", r"nor on track P, where 8 digits have from ([\d.]+% \([\d.]+\)) to ([\d.]+ \([\d.]+\))",
         min(known.values()), max(known.values()))
    says("docs/decisions.md", r"on track P, where they have ([\d.]+% \([\d.]+\)) and ([\d.]+ \([\d.]+\))",
         known["add"], known["none"])


def test_intervals_of_injections_on_track_p():
    """How many of the log's pairs are told apart: intervals without 0, and those in which one row is the lower."""
    rows = rows_of("sweep_injection_parallel")
    columns = ["val_loss", *(f"{kind}_{n}" for kind in ("uniform", "hard") for n in (4, 6, 8, 10, 12))]
    names, without, learned, equal = list(dict.fromkeys(r["row"] for r in rows)), 0, 0, 0
    for a, b in itertools.combinations(names, 2):
        for column, (x, y, _, mean) in sweep_tables.differences(rows, a, b).items():
            equal += column in columns and mean["mean_low"] == mean["mean_high"]
            if column in columns and (mean["mean_low"] > 0 or mean["mean_high"] < 0):
                without += 1
                learned += (b if x > y else a) == "add, learned step encoding"
    assert (f"intervals (28 pairs, `--compare=\"inject add,inject none\"` and so on) {without} leave 0 out"
            in page("root.md"))
    assert learned == 11
    says("root.md", r"In (\d+) no seed differs .* of the other (\d+) chance makes (\d+)", [equal], [308 - equal],
         [round((308 - equal) / 20)])
    more = [[100 * (a - b) for a, b in zip(*(values("sweep_injection_parallel", row, "uniform_8", 1) for row in pair),
                                           strict=True)]
            for pair in zip(names[4:], names[:4], strict=True)]  # without x0, with it
    more = [statistics.mean(of_seed) for of_seed in zip(*more, strict=True)]
    assert len(more) == 5
    assert min(more) > 0
    for words in (r"ahead of `add` by ([\d.]+) points at 8 digits", r"without x0 8 digits have ([\d.]+) points more"):
        says("root.md", rf"{words} \(([\d.]+) to ([\d.]+)\)", *mean_of(more))


WIDTHS = "sweep_injection_width"
WIDTHS_AT_FIRST = [  # the rows of the two entries of two seeds
    f"{place}, {x}" for place in ("N 64", "N 256", "P 64", "P 256")
    for x in (["add", "none", "none, learned", "none, sinusoid"] if place.startswith("N") else ["add", "none"])]
OF_LOSS_AND_SIZES = ["val_loss", *(f"{kind}_{n}" for kind in ("uniform", "hard") for n in (4, 8, 12, 16, 20))]


def test_injections_at_other_widths_in_two_seeds():
    """The tables of the two entries that had two seeds, the first of fewer runs."""
    for start, known in (
            ("At 256 channels track N needs no x0", [x for x in WIDTHS_AT_FIRST if x != "N 256, none, sinusoid"]),
            ("At 256 channels neither track needs x0", [x for x in WIDTHS_AT_FIRST if "256" in x])):
        head, rows = entry_table(start)
        assert [row[0] for row in rows] == known
        for label, count, *shown in rows:
            for title, cell in zip(head[2:], shown, strict=True):
                size, _, kind = title.removesuffix(" digits").partition(", ")
                agree(cell, spread(values(WIDTHS, label, f"{kind or 'uniform'}_{size}")[:int(count)])[:2])
    known = {(of, n): spread(values(WIDTHS, of, f"uniform_{n}")[:2])[:2] for of in WIDTHS_AT_FIRST for n in (12, 20)}
    says("root.md", rf"with all 24 runs: N has {CELL} at 20 digits without, {CELL} with it, P {CELL} and {CELL} at 12",
         *(known[f"{place}, {x}", n] for place, n in (("N 256", 20), ("P 256", 12)) for x in ("none", "add")))
    odd = [[values(WIDTHS, "N 256, none, learned", f"uniform_{n}")[1]] for n in (8, 12)]
    says("root.md", r"learned step encoding has (\S+)% at 8 digits and (\S+) at 12, and", *odd)
    eight = [row for row in WIDTHS_AT_FIRST if row.startswith("N 256")]
    at_20 = sorted(x for row in eight for x in values(WIDTHS, row, "uniform_20")[:2])
    says("root.md", r"of the eight runs of track N at 256 channels under (\S+) at 20", [at_20[1]])
    assert at_20[0] == values(WIDTHS, "N 256, none, learned", "uniform_20")[1] < at_20[1]
    under = sorted(x for row in eight for x in first_under(WIDTHS, row, 0.001)[:2])
    assert (under[0], under[1], under[-1]) == (first_under(WIDTHS, "N 256, none, learned", 0.001)[1], 2000, 3000)
    assert under[0] == 1500


def test_pairs_of_injections_at_256_channels():
    """In the first two seeds: how many differences leave 0 out, and in how many both are apart, beside chance."""
    text = " ".join(page("root.md").split())

    def counted(track):
        rows = [x for x in WIDTHS_AT_FIRST if x.startswith(f"{track} 256")]
        pairs = [[[round(z, 4) for z in values(WIDTHS, row, column)[:2]] for row in two]
                 for two in itertools.combinations(rows, 2) for column in OF_LOSS_AND_SIZES]
        pairs = [(x, y) for x, y in pairs if x != y]
        gaps = [[round(a - b, 4) for a, b in zip(x, y, strict=True)] for x, y in pairs]
        sure = [gap for gap in gaps if abs(sum(gap)) > 12.7062 * abs(gap[0] - gap[1])]  # Student, of two seeds
        order = sum(max(x) < min(y) or max(y) < min(x) for x, y in pairs)
        return len(pairs), len(sure), sum(max(map(abs, gap)) <= 0.05 for gap in sure), order

    some, without, problem, order = counted("N")
    assert (without, problem) == (3, 2)
    assert (f"channels {some} differences are not 0 in both seeds. Of those {without} intervals leave 0 out, where "
            f"chance makes {some / 20:.0f} (two of the three are one problem of 2,000), and in {order} both seeds are "
            f"apart, where chance makes {some / 3:.0f}.") in text
    some, without, _, order = counted("P")
    assert without == 0
    assert f"On track P at 256 there are {some}: no interval leaves 0 out, {order} are apart" in text
    assert f"all for `none`, chance {some / 3:.0f}." in text


WIDTHS_IN_FIVE = "At 64 and 256 channels no injection or step encoding"
ENCODINGS = ("", ", learned", ", sinusoid", ", rope")


def at_width(place):
    """The table and the eight rows of a track and its channels, add before none."""
    rows = [x + e for x in ("add", "none") for e in ENCODINGS]
    if "128" in place:
        return "sweep_injection" if place == "N 128" else "sweep_injection_parallel", [injection(x) for x in rows]
    return WIDTHS, [f"{place}, {x}" for x in rows]


def test_injections_at_other_widths():
    """The table of the log in five seeds, the rows of 256 channels on the pages, and how many come under a bound."""
    head, rows = entry_table(WIDTHS_IN_FIVE)
    assert [row[0] for row in rows] == list(dict.fromkeys(r["row"] for r in rows_of(WIDTHS)))
    for label, *shown in rows:
        assert len(found(WIDTHS, row=label)) == 5
        agree_first_under(shown, WIDTHS, label, (0.3, 0.01))
        assert shown[2] == f"{sum(x < math.inf for x in first_under(WIDTHS, label, 0.01))} of 5"
        agree_sizes(head[4:], shown[3:], WIDTHS, label)
    of_n, of_p = ([seeds(WIDTHS, f"{track} 256, {x}", f"uniform_{n}") for x in ("none", "add") for n in sizes]
                  for track, sizes in (("N", (12, 20)), ("P", (12,))))
    says("docs/findings.md", rf"track N has {CELL} at 12 digits and {CELL} at 20 without x0, {CELL} and {CELL} with it",
         *of_n)
    says("docs/findings.md", rf"with it, track P {CELL} and {CELL} at 12;", *of_p)
    says("root.md", rf"chance 57; N has {CELL} at 20 digits without x0, {CELL} with it;", *of_n[1::2])
    under = {place: [x for row in at_width(place)[1] for x in first_under(at_width(place)[0], row, 0.1)]
             for place in ("N 64", "N 128", "N 256")}
    says("root.md", r"come (\d+) of 40 runs at 64 channels, (\d+) of 40 \[at 128\]\S+ (\d+) of 40 at 256",
         *([sum(x < math.inf for x in steps)] for steps in under.values()))
    assert sorted(under["N 64"])[:2] == [2000, 3500]
    assert first_under(WIDTHS, "N 64, none, learned", 0.1)[3] == 2000
    learned = [sum(x < math.inf for row in at_width("N 64")[1] if ("learned" in row) == is_so
                   for x in first_under(WIDTHS, row, 0.1)) for is_so in (True, False)]
    for name in ("root.md", "docs/findings.md"):
        says(name, r"(\d+) of 10 (?:do )?come under it,? (?:of the others|and) (\d+) of 30", *([x] for x in learned))
    known = [spread(first_under(WIDTHS, row, 0.001)) for row in at_width("N 256")[1]]
    assert {x[0] for x in known} == {2000}
    assert (min(x[1] for x in known), max(x[2] for x in known)) == (1500, 3000)


def test_seeds_that_fall_at_other_widths():
    """The log's single seeds that fall where their neighbours do not."""
    rows = {place: [(row, seed) for row in at_width(place)[1] for seed in range(1, 6)]
            for place in ("N 256", "P 64", "P 256")}

    def sizes(place, n):
        return dict(zip(rows[place], (x for row in at_width(place)[1] for x in values(WIDTHS, row, f"uniform_{n}")),
                        strict=True))

    low = {run for run, x in sizes("N 256", 20).items() if x < 50}
    late = {(row, k + 1) for row in at_width("P 64")[1]
            for k, x in enumerate(first_under(WIDTHS, row, 0.01)) if x == math.inf}
    assert low == {("N 256, none, learned", 2), ("N 256, none, learned", 4)}
    assert late == {("P 64, none, learned", 1), ("P 64, none, learned", 3), ("P 64, add", 5)}
    assert late == {run for run, x in sizes("P 64", 4).items() if x < 50}
    assert min(sizes("P 256", 8).values()) > 90
    fourth = values(WIDTHS, "N 256, none, learned", "uniform_16")[3:4], values(
        WIDTHS, "N 256, none, learned", "uniform_20")[3:4]
    says("root.md", r"seed 4 with (\S+) at 16 and (\S+) at 20\. The other 38 runs of N 256 have (\S+) at 20", *fourth,
         [min(x for run, x in sizes("N 256", 20).items() if run not in low)])
    says("root.md", r"seeds 1 and 3 with (\S+) and (\S+)% at 4 digits, and `P 64, add` has one, seed 5 with (\S+):",
         *([sizes("P 64", 4)[run]] for run in sorted(late, reverse=True, key=lambda run: (run[0], -run[1]))))
    early = {(row, k + 1) for row in at_width("N 256")[1]
             for k, x in enumerate(first_under(WIDTHS, row, 0.001)) if x == 1500}
    assert len(early) == 7
    says("root.md", r"of six others that were, the lowest has (\S+) at 20",
         [min(sizes("N 256", 20)[run] for run in early - low)])
    new = [run for place, runs in rows.items() for run in runs if run[0] not in WIDTHS_AT_FIRST or run[1] > 2]
    risky = [run for run in new if run[0].endswith("none, learned")]
    falls = [len((low | late) & set(runs)) for runs in (risky, set(new) - set(risky))]
    assert (falls, len(risky), len(new)) == ([3, 1], 13, 104)
    table = [[falls[0], len(risky) - falls[0]], [falls[1], len(new) - len(risky) - falls[1]]]
    says("root.md", r"one of the other 91 \(Fisher: p = (\S+);", [stats.fisher_exact(table).pvalue])
    says("root.md", r"`none, learned`, (\S+)%, and its seeds have (\S+), (\S+), (\S+), (\S+) and ([\d.]+)\. Seed 4",
         seeds(WIDTHS, "N 64, none, learned", "uniform_4")[:1],
         *([x] for x in values(WIDTHS, "N 64, none, learned", "uniform_4")))
    assert values(WIDTHS, "N 64, none, learned", "uniform_8")[3] < 0.05


def test_pairs_of_injections_at_other_widths():
    """How many of the log's differences leave 0 out, and in how many all five seeds are apart, beside chance."""
    total, apart_by, direct = [0, 0, 0], [], [0, 0, 0]
    for place, some, sure, _, apart, _ in entry_table(WIDTHS_IN_FIVE, 2)[1][:4]:
        of = at_width(place)[1]
        counted = {two: count_apart((WIDTHS, two[0]), (WIDTHS, two[1]), OF_LOSS_AND_SIZES)[:3]
                   for two in itertools.combinations(of, 2)}
        each = [sum(x) for x in zip(*counted.values(), strict=True)]
        assert each == [int(some), int(sure), int(apart)]
        total = [x + y for x, y in zip(total, each, strict=True)]
        apart_by += [two for two, (_, _, n) in counted.items() if n]
        direct = [sum(x) for x in zip(direct, *(counted[two] for two in zip(of[:4], of[4:], strict=True)), strict=True)]
    for label, some, sure, by_chance, apart, by_order in entry_table(WIDTHS_IN_FIVE, 2)[1]:
        n = int(some.replace(",", ""))
        agree(by_chance, [n / 20])
        agree(by_order, [n * 2 / math.comb(10, 5)])
        if label == "all":
            assert [n, int(sure), int(apart)] == total
    some, sure, _ = total
    for name, words in (("root.md", f"{sure} of {some:,} intervals leave 0 out, chance {some / 20:.0f};"),
                        ("docs/findings.md", f"{sure} of {some:,} intervals leave 0 out, chance {some / 20:.0f})"),
                        ("docs/decisions.md", f"{sure} of {some:,} intervals leave 0 out, where chance makes "
                                              f"{some / 20:.0f},")):
        assert words in " ".join(page(name).split()), name
    assert apart_by == [("P 64, add, learned", "P 64, none, sinusoid"), ("P 64, add, learned", "P 64, none, rope")]
    assert f"{direct[1]} of {direct[0]} intervals leave 0 out, chance makes {direct[0] / 20:.0f}," in page("root.md")
    assert direct[2] == 0


def test_means_of_injections_at_other_widths():
    """The log's means over four encodings, and single differences of a row with x0 and the same without."""
    head, rows = entry_table(WIDTHS_IN_FIVE, 3)
    for place, *shown in rows:
        of = at_width(place)[1]
        pairs = [((WIDTHS, none), (WIDTHS, add)) for add, none in zip(of[:4], of[4:], strict=True)]
        every = {column: mean_of([statistics.mean(x) for x in zip(*(less(*two, column) for two in pairs), strict=True)])
                 for column in OF_LOSS_AND_SIZES}
        assert all(low[0] <= 0 <= high[0] for _, low, high in every.values())
        for title, cell in zip(head[1:], shown, strict=True):
            agree(cell, [x[0] for x in every[f"uniform_{title.removesuffix(' digits')}"]])
    for words, one, other, column in (
            (rf"N 256 without encoding, {ONE} points of 20 hard digits, {ONE} to {ONE};", "N 256, none", "N 256, add",
             "hard_20"),
            (rf"\(8 digits: {ONE} points, {ONE} to {ONE}\)", "P 64, none, sinusoid", "P 64, add, sinusoid",
             "uniform_8"),
            (rf"\(12 digits: {ONE}, {ONE} to {ONE}\)", "P 256, add, sinusoid", "P 256, none, sinusoid", "uniform_12")):
        says("root.md", words, *mean_of(less((WIDTHS, one), (WIDTHS, other), column)))
    for place in ("P 64", "P 256"):
        with_x0 = {row: seeds(WIDTHS, row, "uniform_12")[0] for row in at_width(place)[1][:4]}
        assert min(with_x0, key=with_x0.get).endswith("learned")


def test_which_rows_are_lower_at_other_widths():
    """Which rows the log says are lower or higher in how many of the intervals that leave 0 out."""
    lower, higher = [], []
    for place in ("N 64", "N 256", "P 64", "P 256"):
        for one, other in itertools.combinations(at_width(place)[1], 2):
            for column, gap in unequal((WIDTHS, one), (WIDTHS, other), OF_LOSS_AND_SIZES).items():
                if leaves_out_0(gap):
                    less_right = (sum(gap) < 0) != (column == "val_loss")
                    lower.append(one if less_right else other)
                    higher.append(other if less_right else one)
    assert [lower.count(f"N {width}, add, rope") for width in (64, 256)] == [0, 9]
    assert [sum(x.startswith(f"N {width},") for x in lower) for width in (64, 256)] == [3, 12]
    assert (higher.count("P 256, add, sinusoid"), sum(x.startswith("P 256") for x in higher)) == (7, 8)
    assert (higher.count("P 64, none, sinusoid"), sum(x.startswith("P 64") for x in higher)) == (6, 9)
    same = [x for x, y in zip(higher, lower, strict=True) if x.replace("none", "add") == y.replace("none", "add")]
    assert same == ["N 256, none", *3 * ["P 64, none, sinusoid"], "P 64, none, rope", "P 256, add, learned",
                    *2 * ["P 256, add, sinusoid"]]


def test_how_step_encodings_slow_the_loss():
    """The log's ratios of losses on the way, and what docs/findings.md and docs/decisions.md say of them."""
    added, others, apart, ratios = (1, 2, 5, 6), (0, 3, 4, 7), {}, {}
    for place, *shown in entry_table(WIDTHS_IN_FIVE, 4)[1]:
        name, rows = at_width(place)
        for (some, rest), step, cell in zip(itertools.chain(
                *([x] * 3 for x in ((added, others), ((4, 5, 6, 7), (0, 1, 2, 3))))), 2 * (1000, 1500, 2000), shown,
                strict=True):
            losses = [[float(r["val_loss"]) for r in found(f"{name}_curves", row=row, iter=str(step))] for row in rows]
            logs = [[statistics.mean(math.log(losses[i][k]) for i in of) for k in range(5)] for of in (some, rest)]
            ratios[place, step, some] = [x - y for x, y in zip(*logs, strict=True)]
            agree(cell, [math.exp(x[0]) for x in mean_of(ratios[place, step, some])])
            apart[place, step] = [
                (i, j) for i, j in itertools.permutations(range(8), 2) if min(losses[i]) > max(losses[j])]
    assert [len(apart["P 256", step]) for step in (1000, 1500, 2000)] == [5, 7, 6]
    assert sum(len(x) for (place, _), x in apart.items() if place != "P 256") == 1
    assert all(i in added and j in others for (place, _), x in apart.items() if place == "P 256" for i, j in x)
    assert sum(map(leaves_out_0, ratios.values())) == 11
    of_x0 = [x for key, x in ratios.items() if key[2][0] == 4 and leaves_out_0(x)]
    assert len(of_x0) == 4
    assert all(sum(x) < 0 for x in of_x0)
    assert [place for place, step, some in ratios if step == 1500 and some[0] == 4
            and max(ratios[place, step, some]) < 0] == ["N 256", "P 64", "P 128"]
    assert min(min(ratios["P 256", step, added]) for step in (1000, 1500, 2000)) > 0
    assert all(sum(x > 0.1 for x in ratios["P 128", step, added]) >= 4 for step in (1000, 1500, 2000))
    late = [sum(x == 1500 for i in of for x in first_under(WIDTHS, at_width("P 256")[1][i], 0.01))
            for of in (added, others)]
    assert late == [18, 3]
    at_256, at_128 = ([[math.exp(x[0])] for x in mean_of(ratios[place, 1000, added])] for place in ("P 256", "P 128"))
    says("docs/findings.md", rf"its loss is {ONE} times \({ONE} to {ONE}\) that of none and rope at C = 256, {ONE} "
         rf"\({ONE} to {ONE}\) at C = 128", *at_256, *at_128)
    says("docs/decisions.md", rf"of 256 its loss is {ONE} times \({ONE} to {ONE}\) that of no encoding", *at_256)
    says("root.md", rf"slow the loss of P, {ONE} times \({ONE} to {ONE}\) after 1,000 steps", *at_256)
    ends = [mean_of([statistics.mean(values(WIDTHS, at_width("P 256")[1][i], f"uniform_{n}")[k] for i in added)
                     - statistics.mean(values(WIDTHS, at_width("P 256")[1][i], f"uniform_{n}")[k] for i in others)
                     for k in range(5)]) for n in (8, 12, 16, 20)]
    assert all(low[0] < 0 < high[0] for _, low, high in ends)
    says("root.md", rf"the added ones of P 256 differs by {ONE} to {ONE} points", min(x[0] for x in ends),
         max(x[0] for x in ends))


def on_text_row(label):
    """The row of config/sweep_injection_text.py that a table calls so."""
    return f"{label} step encoding" if "," in label else label


def text_losses(label):
    """The validation losses of its seeds."""
    return values("sweep_injection_text", on_text_row(label), "val_loss", 1)


X0_ON_TEXT = "On text x0 is worth"


def without_x0(of=text_losses):
    """What leaving x0 out costs each seed, the mean over the step encodings."""
    costs = [[a - b for a, b in zip(of(f"none{e}"), of(f"add{e}"), strict=True)] for e in ENCODINGS]
    return [statistics.mean(of_seed) for of_seed in zip(*costs, strict=True)]


def test_injections_on_text():
    """The first table of the log: evaluations under a bound, and losses of the two seeds."""
    rows = entry_table(X0_ON_TEXT)[1]
    assert [row[0] for row in rows] == [x + e for x in ("add", "none") for e in ENCODINGS]
    for label, *under, early, last, trained in rows:
        for cell, bound in zip(under, (1.6, 1.5, 1.45), strict=True):
            steps = [float(x.replace(",", "").replace("never", "inf")) for x in cell.split(", ")]
            assert steps == first_under("sweep_injection_text", on_text_row(label), bound), (label, bound)
        curves = found("sweep_injection_text_curves", row=on_text_row(label))
        for cell, step, column in ((early, "1000", "val_loss"), (trained, "2500", "train_loss")):
            agree_each(cell, [float(r[column]) for r in curves if r["iter"] == step])
        agree_each(last, text_losses(label))
        assert text_losses(label) == values("sweep_injection_text", on_text_row(label), "best_val_loss", 1)


def test_differences_of_injections_on_text():
    """The second table of the log, its mean of four on the pages, and the two ranges."""
    for label, by_seed, mean in entry_table(X0_ON_TEXT, 2)[1]:
        a, _, b = label.replace(", no encoding", "").partition(" - ")
        a = b.replace("add", "none") if a == "none" else a  # "none - add, learned": both with that encoding
        costs = without_x0() if label == "mean of these four" else [
            x - y for x, y in zip(text_losses(a), text_losses(b), strict=True)]
        agree_each(by_seed, costs)
        agree(mean, sum(mean_of(costs), []))
    number = r"(-?\d+\.\d+)"
    for name, words in (("root.md", rf"On text x0 is worth {number} nats \("),
                        ("docs/findings.md", rf"x0 in every loop is worth {number} nats \("),
                        ("docs/decisions.md", rf"ahead of none, by {number} nats \(95%: "),
                        ("docs/text.md", rf"two seeds: it costs {number} nats \(95%: ")):
        says(name, rf"{words}{number} to {number}[);]", *mean_of(without_x0()))
    say = r"by ([\d.]+) nats \(two seeds\)", r"Text loses ([\d.]+) nats without it"
    says("docs/decisions.md", say[0], mean_of(without_x0())[0])
    says("docs/open.md", say[1], mean_of(without_x0())[0])
    outer = [f(itertools.chain(*(text_losses(x + e) for e in ENCODINGS)))
             for x in ("add", "none") for f in (min, max)]
    for name, words in (("docs/findings.md", "end at {0} to {0}, without at {0} to {0};"),
                        ("root.md", r"end between {0} and {0}, those without between {0} and {0}\.")):
        says(name, words.format(number), *([x] for x in outer))
    says("docs/decisions.md", rf"end at {number} or lower, without at {number} or higher", [outer[1]], [outer[2]])
    steps = [f(itertools.chain(*(first_under("sweep_injection_text", on_text_row(x + e), 1.5) for e in ENCODINGS)))
             for x in ("add", "none") for f in (min, max)]
    says("docs/findings.md", r"is passed after ([\d,]+) to ([\d,]+) steps, without after ([\d,]+) to ([\d,]+) \|",
         *([x] for x in steps))


def test_pairs_of_injections_on_text():
    """What the log says of the 28 pairs, of the gap over the training and of the same recipe trained before."""
    names, without, apart = [x + e for x in ("add", "none") for e in ENCODINGS], 0, 0
    for a, b in itertools.combinations(map(text_losses, names), 2):
        _, (low,), (high,) = mean_of([x - y for x, y in zip(a, b, strict=True)])
        without += low > 0 or high < 0
        apart += max(a) < min(b) or max(b) < min(a)
    says("root.md", r"Of the 28 pairs (\d+) do, where chance makes 1 or 2\. In (\d+) both seeds are apart", [without],
         [apart])

    def gap(step, column):
        return statistics.mean(without_x0(lambda label: [float(r[column]) for r in found(
            "sweep_injection_text_curves", row=on_text_row(label), iter=step)]))

    assert max((str(i) for i in range(250, 2501, 250)), key=lambda i: gap(i, "val_loss")) == "1000"
    says("root.md", r"after 1,000 steps, ([\d.]+), and falls to ([\d.]+); that in training loss falls from ([\d.]+) to "
         r"([\d.]+) and stays there from step 1,750 on",
         *([gap(step, column)] for column in ("val_loss", "train_loss") for step in ("1000", "2500")))
    assert all(round(gap(step, "train_loss"), 3) == 0.06 for step in ("1750", "2000", "2250", "2500"))
    old = [values("sweep_text", row, "val_loss", 1) for row in ("1 x 12", "1 x 12, no step encoding")]
    here = [text_losses(label) for label in ("add, learned", "add")]
    number = r"(-?\d+\.\d+)"
    say = rf"{number}, {number} here, {number}, {number} there"
    says("root.md", rf"learned {say}; none {say}\.",
         *([x] for h, o in zip(here, old, strict=True) for x in h + o[:2]))
    says("root.md", r"same row differs by up to ([\d.]+), as much",
         [max(abs(x - y) for h, o in zip(here, old, strict=True) for x, y in zip(h, o, strict=False))])
    costs = mean_of([x - y for pair in (here, old) for x, y in zip(*pair, strict=True)])
    for name, words in (("root.md", "learned costs"), ("docs/findings.md", "more it costs"),
                        ("docs/text.md", "all five trainings that is")):
        says(name, rf"{words} {number} \({number} to {number}\)", *costs)
    says("root.md", rf"results/sweep_block.csv\), end at {number}, {number} and {number};",
         *([x] for x in values("sweep_block", "1 x 12", "val_loss", 1)))
    late = here[0] + values("sweep_block", "1 x 12", "val_loss", 1)
    median = [statistics.median(old[0] + late)]
    says("docs/text.md", rf"end at {number} to {number}, all above the {number} .*? median of all eight is {number}\.",
         [min(late)], [max(late)], [statistics.median(old[0])], median)
    assert statistics.median(old[0]) < min(late)
    assert sum(loss > max(old[0]) for loss in late) == 1
    layers = [x for name in ("sweep_text", "sweep_block") for x in values(name, "12 layers", "best_val_loss", 1)]
    looped = old[0] + values("sweep_block", "1 x 12", "val_loss", 1)
    says("root.md", rf"all eight is {number}\. It stays under 12 layers, by {number} \({number} to {number}\) over",
         median, *mean_of([a - b for a, b in zip(layers, looped, strict=True)]))
    (fewer,), _, _ = mean_of([x - y for x, y in zip(*here, strict=True)])
    says("docs/text.md", rf"without step encoding are {number} lower", [fewer])
    says("root.md", rf"seed 0 on an H100: {number}, here {number}\.",
         values("sweep_text_tuning", "1 x 12, inject none", "val_loss", 1), text_losses("none, learned")[:1])


def both_samples(row, column, scale=100):
    """Of each seed the mean of its run in the second sample of five seeds and of that in the first."""
    now, before = (values(name, row, column, scale) for name in ("sweep_dynamics", "sweep_dynamics_before"))
    return [(x + y) / 2 for x, y in zip(now, before, strict=True)]


def test_solvers_over_two_samples_of_five_seeds():
    """The log's tables of them, and what docs/findings.md and docs/decisions.md say of it."""
    columns = [f"{kind}uniform_{n}" for kind, sizes in (("", (4, 8, 12)), ("long_", (4, 8)), ("anderson_", (4, 8)))
               for n in sizes]
    names = list(dict.fromkeys(r["row"] for r in rows_of("sweep_dynamics")))
    now, before = samples = ("sweep_dynamics", "sweep_dynamics_before")
    for nth, sample in enumerate(samples, 1):
        head, rows = entry_table("No Euler step is told from replace", nth)
        assert [row[0] for row in rows] == names
        assert len(head) == len(columns) + 1
        for label, *shown in rows:
            assert len(found(sample, row=label)) == 5
            for cell, column in zip(shown, columns, strict=True):
                agree(cell, seeds(sample, label, column))
    known, cell = (lambda row, column: seeds(now, row, column)), r"([\d.]+%? \([\d.]+\))"
    gate, rest, few = "concat, euler gate", names[-1], names[8:10]
    six = [row for row in names[:8] if not row.endswith("gate")]
    best = {name: max(max(values(name, row, "long_uniform_4")) for row in six) for name in samples}
    assert best[before] < min(values(before, gate, "long_uniform_4"))
    assert sum(x > best[now] for x in values(now, gate, "long_uniform_4")) == 2
    keep = [[sum(x > 30 for name in samples for row in of for x in values(name, row, "long_uniform_4"))]
            for of in ([row for row in names[:8] if row.endswith("gate")], six)]
    says("docs/findings.md", rf"after 32 loops they keep {cell} at 4 digits, the best seed of replace, of fixed and of "
         rf"learned steps has ([\d.]+); in a first sample of five seeds {cell} and ([\d.]+); of 20 runs with a gate, "
         r"with x0 or without, (\d+) keep over 30%, of 60 others (\d+)", known(gate, "long_uniform_4"), [best[now]],
         seeds(before, gate, "long_uniform_4"), [best[before]], *keep)
    says("root.md", r"Of 20 runs with a gate (\d+) keep over 30% at 4 digits, of 60 others (\d+)", *keep)
    says("docs/findings.md", rf"has {cell} at 4 digits and keeps {cell} after 32 loops, {cell} at 8; the one of 4, 8 "
         rf"or 16 has {cell} and keeps {cell}",
         *(known(rest, x) for x in ("uniform_4", "long_uniform_4", "long_uniform_8")),
         *(known(names[-2], x) for x in ("uniform_4", "long_uniform_4")))
    least = {}
    for name in samples:
        for row in names:
            kept = [x / y for x, y in zip(values(name, row, "long_uniform_4"), values(name, row, "uniform_4"),
                                          strict=True)]
            assert (min(kept) > 0.5) == (row in names[-2:]), row  # most of it, in every seed
            least[name] = min(least.get(name, 1), 1 if row not in names[-2:] else min(kept))
    says("root.md", r"in every seed \| (\d+)% of it at least \| holds: (\d+)% at least",
         [round(100 * least[before])], [round(100 * least[now])])
    says("docs/findings.md", rf"replace without x0 keeps {cell} at 4 digits by it, without it {cell}, and has {cell} "
         "after", *(known("none, replace", f"{kind}uniform_4") for kind in ("anderson_", "long_", "")))
    most = {name: max(max(values(name, row, "uniform_12")) for row in few) for name in samples}
    says("root.md", r"nothing at 12 digits \| (\S+) at most \| holds: (\S+) at most", [most[before]], [most[now]])
    low = [min(min(values(name, row, "uniform_4")) for name in samples for row in few)]
    says("docs/findings.md", r"Heun and Runge-Kutta, with as many evaluations, have at most ([\d.]+)% at 12 digits, "
         r"and ([\d.]+) or more", [max(most.values())], low)
    says("docs/decisions.md", r"Heun and Runge-Kutta have at most ([\d.]+)% at 12", [max(most.values())])
    says("docs/decisions.md", rf"steps keep {cell} at 4 digits after 32 loops, which nobody taught, replace {cell}; in "
         rf"the first sample, {cell} and {cell}",
         *(seeds(name, row, "long_uniform_4") for name in samples for row in (gate, "concat, replace")))
    free = [seeds("sweep_anchor", f"{x}, no norm", "long_uniform_4") for x in ("add", "none")]
    says("docs/decisions.md", rf"replace with add keeps {cell}, three seeds", *free[:1])
    says("root.md", rf"it keeps {cell} with add and {cell} with none", *free)


def test_what_both_samples_of_solvers_bear():
    """Intervals between the eight rows of 8 loops, and gates beside the rest, in the log's entry."""
    eight = list(dict.fromkeys(r["row"] for r in rows_of("sweep_dynamics")))[:8]
    gates, six = ([row for row in eight if row.endswith("gate") == of] for of in (True, False))
    sizes = [f"{kind}_{n}" for kind in ("uniform", "hard") for n in (4, 8, 12)]
    now, before = "sweep_dynamics", "sweep_dynamics_before"

    def counts(of, columns):
        """Pairs and columns whose interval leaves 0 out, and with all seeds apart."""
        out = apart = 0
        for column in columns:
            for x, y in itertools.combinations([of(row, column) for row in eight], 2):
                gap = [a - b for a, b in zip(x, y, strict=True)]
                if len(set(gap)) > 1:
                    out, apart = out + leaves_out_0(gap), apart + (max(x) < min(y) or max(y) < min(x))
        return [out], [apart]

    def of(name):
        return lambda row, column: values(name, row, column)
    trained, thinking = ["val_loss", *sizes], [f"long_{x}" for x in sizes]
    (out, apart), (first, first_apart), (both, _) = (counts(x, trained) for x in (of(now), of(before), both_samples))
    says("root.md", r"(\d+) of 196 intervals leaves 0 out in the second sample \(in the first (\d+), .*? all seeds "
         r"apart \(first (\d+), .*? Pooled (\d+) leave 0", out, first, first_apart, both)
    assert apart == [0]
    (out, apart), (first, first_apart), (both, _) = (counts(x, thinking) for x in (of(now), of(before), both_samples))
    says("root.md", r"Of 168 intervals (\d+) leave 0 out \(first (\d+), .*? in (\d+) all seeds are apart \(first (\d+)"
         r", .*? Pooled (\d+) of 168", out, first, apart, first_apart, both)

    def means(name, rows, column):
        return [statistics.mean(x) for x in zip(*(values(name, row, column) for row in rows), strict=True)]

    def ahead(name, column):
        return mean_of([x - y for x, y in zip(means(name, gates, column), means(name, six, column), strict=True)])
    low, high = rf"{ONE} \({ONE} to {ONE}\)", rf"{ONE} points \({ONE} to {ONE}\)"
    for column, words in (("long_uniform_4", rf"at 4 digits after 32 loops {high} in the first sample, {low}"),
                          ("long_hard_8", rf"at 8 hard digits {low} and {low}")):
        says("root.md", words, *(x for name in (before, now) for x in ahead(name, column)))
    others = [x for row in ("add", "none", "concat", "decay") for x in values("sweep_anchor", row, "long_uniform_4")]
    for name, words in (("root.md", r"keeps over 30% in (\d+) of (\d+) trainings with the norm"),
                        ("docs/findings.md", r"replace keeps as much in (\d+) of (\d+) \|")):
        says(name, words, [sum(x > 30 for x in others)], [len(others)])
    behind = {}
    for name in (now, before):
        for row in ("concat, heun, 4 loops", "concat, rk4, 2 loops"):
            assert max(values(name, row, "hard_12")) < min(values(name, "none, replace", "hard_12"))
            behind[name, row] = mean_of(less((name, "none, replace"), (name, row), "hard_12"))
        for row in eight:  # no Euler step is told from replace without x0
            if row not in ("none, replace", "concat, replace"):
                assert not any(leaves_out_0(less((name, row), (name, "none, replace"), x)) for x in trained)
    says("root.md", rf"at 12 hard digits by {high} and {low}, in the first sample by {low} and {low}, all",
         *(x for of_row in behind.values() for x in of_row))
    gate, column = gates[1], "long_uniform_4"
    for name, words in ((before, rf"beside `concat, replace` that was {high}"), (now, rf"0\.1, 4\.2 and 4\.6: {high}")):
        says("root.md", words, *mean_of(less((name, gate), (name, "concat, replace"), column)))
    gaps = [[x - y for x, y in zip(both_samples(gate, column), both_samples(row, column), strict=True)]
            for row in ("concat, replace", "none, replace")]
    says("root.md", rf"that row is {high} above `concat, replace` and {low} above",
         *mean_of(gaps[0]), *mean_of(gaps[1]))
    likeness = []
    for column in ("uniform_8", "uniform_12", "uniform_4", "long_uniform_4"):
        x, y = ([[a - statistics.mean(row) for a in row] for row in (values(name, r, column) for r in eight)]
                for name in (now, before))
        alike = [statistics.correlation(sum(x, []), [row[k] for row in y for k in order])
                 for order in itertools.permutations(range(5))]
        likeness.append((alike[0], sum(a >= alike[0] - 1e-9 for a in alike) - 1))
    assert [rank for _, rank in likeness] == [0, 0, 7, 7]
    says("root.md", r"by (0\.\d+) at 8 digits and (0\.\d+) at 12; .*? \((0\.\d+) at 4 digits, (0\.\d+) there",
         *([x] for x, _ in likeness))
    medians = [[[statistics.median(values(name, row, f"uniform_{n}")) for row in eight] for name in (now, before)]
               for n in (8, 12)]
    says("root.md", r"rank correlation (0\.\d+) at 8 digits, (0\.\d+) at 12",
         *([stats.spearmanr(*m)[0]] for m in medians))


def test_what_solvers_states_say_in_three_seeds():
    """The claims of seed 1 beside three seeds, in the log's entry and docs/findings.md."""
    name = "sweep_dynamics"
    names = list(dict.fromkeys(r["row"] for r in rows_of(name)))
    common, none = ([100 * x for x in states(name, row, "limit_cycle", 64, "any")] for row in names[-2:])
    for page_, words in (("root.md", r"all three seeds looked at: (\S+), (\S+) and (\S+)%"),
                         ("docs/findings.md", r"16 loops (\S+), (\S+) and (\S+)% of the tokens of an answer end in")):
        says(page_, words, *([x] for x in common))
    assert none == [0, 0, 0]
    says("root.md", r"delta is under 0\.01 for (\S+), (\S+) and (\S+)% of the tokens after 64",
         *([100 * x] for x in states(name, names[-1], "converged_by", 64, "0.01")))
    radius = [states(name, names[-1], "spectral_radius", loop, "200 iterations") for loop in (16, 64)]
    assert [[x < 1 for x in of] for of in radius] == [[False, False, True]] * 2
    says("root.md", r"in one seed of three \((\S+) and (\S+)\)", *([of[2]] for of in radius))
    pushes = found(f"{name}_states", what="push_ratio", weights="trained")
    assert len(pushes) == 36
    assert all(float(r["high"]) < 1 for r in pushes)
    shrink = sorted(100 * (1 - float(r["value"])) for r in pushes)
    says("root.md", r"holds: by (\d+) to (\d+)% in all 36", [round(shrink[0])], [round(shrink[-1])])
    for row, words in (("concat, euler gate", r"gate with concat move by (\S+) to (\S+) per"),
                       ("concat, replace", r"per loop \(`concat, replace` by (\S+) to (\S+)\)")):
        delta = states(name, row, "delta", 32)
        says("root.md", words, *limits(delta))


def exponents_of(label, norm, weights="trained"):
    """(value, low, high) of each seed of a row of the log's table of exponents."""
    name, row = "sweep_dynamics", label
    if label.startswith("demo"):
        name, row = "sweep_forgetting", "add, euler 0.5" + ", no loop norm" * (norm == "no")
    elif label.endswith("6, 8 or 10 loops"):
        name, row = "sweep_anchor", label.split(",")[0] + ", no norm" * (norm == "no")
    known = list(zip(*(exponents(name, row, weights, of) for of in ("value", "low", "high")), strict=True))
    assert len(known) == 3
    return row, known


@pytest.mark.parametrize(("name", "sibling", "C", "evaluations"), [
    ("sweep_anchor", "add", 128, 10), ("sweep_injection", "inject add", 128, 10), ("sweep_forgetting", "add", 64, 4),
    ("sweep_text_tuning", "1 x 12, inject none", 384, 12), ("sweep_track_n_more", "frozen prompts", 256, 32),
    ("sweep_dynamics", "none, replace", 128, 8), ("sweep_dynamics_before", "none, replace", 128, 8)])
def test_flops_of_tables_count_the_matrix_of_concat(name, sibling, C, evaluations):
    """In every evaluation but the first, which reads x0 alone; a model of 16 loops has twice as many of all but the
    head, 15 symbols wide."""
    alone = float(found(name, row=sibling)[0]["flops_per_token"])
    for r in rows_of(name):
        if "concat" in r["row"]:
            twice = r["row"].endswith("16 loops")
            expected = alone * (1 + twice) - 6 * 15 * C * twice + 12 * C ** 2 * (evaluations * (1 + twice) - 1)
            assert float(r["flops_per_token"]) == expected, r["row"]


def test_exponents_with_loop_norm_and_without():
    """The log's table of Lyapunov exponents, and what it and docs/findings.md say of them."""
    _, rows = entry_table("Exponents over 4 times the trained loops")
    above = below = mixed = 0
    trained = {}
    for label, norm, shown, counted, first, untrained in rows:
        row, known = exponents_of(label, norm)
        trained[label, norm] = numbers = [value for value, _, _ in known]
        agree_range(shown, numbers, 3)
        up, down = sum(low > 0 for _, low, _ in known), sum(high < 0 for *_, high in known)
        assert counted == f"{up}, {down}"
        if norm == "yes":
            above, below, mixed = above + up, below + down, mixed + (min(numbers) < 0 < max(numbers))
        _, fresh = exponents_of(label, norm, "untrained")
        alike([value for value, _, _ in fresh])
        beside = [(untrained, fresh[0])]
        if not label.startswith("demo"):
            (r,) = found("lyapunov_before", what="lyapunov_exponent", weights="trained", row=row)
            beside.append((first, tuple(float(r[k]) for k in ("value", "low", "high"))))
        for cell, expected in beside:
            for number, value in zip(re.findall(NUMBER, cell), expected, strict=True):
                agree(number, [value], least=3)
    held = [of for (_, norm), of in trained.items() if norm == "yes"]
    counts = [above], [3 * len(held)], [below], [mixed], [len(held)]
    says("root.md", r"with loop norm (\d+) of (\d+) trained loops drift apart and (\d+) contract, and in (\d+) rows of "
         r"(\d+)", *counts)
    says("docs/findings.md", r"exponent is above 0 in (\d+) of (\d+) trained loops with its interval, below in (\d+), "
         r"and in (\d+) rows of (\d+)", *counts)
    grows, falls = ([x for injection in of for x in trained[f"{injection}, replace, 6, 8 or 10 loops", "no"]]
                    for of in (("add", "none"), ("concat", "decay")))
    ends = *limits(grows), *limits([-x for x in falls])
    says("root.md", r"add and none grow by (\S+) to (\S+) per loop, the state .*? contract by (\S+) to (\S+) \(", *ends)
    norm = [x for row in ("add, no norm", "none, no norm") for x in growths("sweep_anchor", row)]
    says("docs/findings.md", r"with add and none by (\S+) to (\S+) per loop, the state by (\S+) to (\S+), and shrinks "
         r"with `concat` and `decay` by (\S+) to (\S+),", *ends[:2], *limits(norm), *ends[2:])
    beside = [x - y for x, y in zip(grows, norm, strict=True)]
    says("root.md", r"beside the state that leaves (\S+) to (\S+)\.", *limits(beside))
    solvers = [of for (label, norm), of in trained.items() if norm == "yes"][:12]
    assert sum(max(x) < min(y) or max(y) < min(x) for x, y in itertools.combinations(solvers, 2)) == 19
    kept = [x for label, _ in list(trained)[:8] for x in values("sweep_dynamics", label, "long_uniform_4")[:3]]
    rank, chance = stats.spearmanr(sum(solvers[:8], []), kept)
    right = [x for label, _ in list(trained)[:8] for x in values("sweep_dynamics", label, "uniform_4")[:3]]
    learned = [(x, y) for x, y, z in zip(sum(solvers[:8], []), kept, right, strict=True) if z > 90]
    says("root.md", r"and (-0\.\d+) among the (\d+) of 24 that have over 90% there",
         [stats.spearmanr(*zip(*learned, strict=True))[0]], [len(learned)])
    for name in ("root.md", "docs/findings.md"):
        says(name, r"rank correlation (?:with what .*? is )?(-0\.\d+) ?(?:\(|, )p = (0\.\d+)\)", [rank], [chance])


def energy_state(row, what, loops=1, group=None, weights="trained", of="value"):
    """The number of the first seed of a row after so many times its trained loops; of its taught energy where it has
    no other; None where nothing is known."""
    trained = {"N": 4, "P": 40, "group words": 6, "text": 4}[row.split(",")[0]]
    taught = "taught_" * row.endswith("replace")
    what, group = (re.sub("^energy", f"{taught}energy", x) if x else x for x in (what, group))
    wanted = row, what, weights, str(loops * trained), group or ("all" if "text" in row else "answer")
    known = [r[of] for r in rows_of("sweep_energy_states")
             if tuple(r[k] for k in ("row", "what", "weights", "loop", "class")) == wanted]
    return float(known[0]) if known and known[0] else None


def agree_or_blank(cell, value):
    assert bool(cell) == (value is not None), (cell, value)
    if cell:
        agree(cell, [value])


def test_the_table_of_energies():
    """results/energy.md says what the tables say."""
    _, _, *rows = [cells(x) for x in page("results/energy.md").splitlines() if x.startswith("|")]
    assert [row[0] for row in rows] == list(dict.fromkeys(r["row"] for r in rows_of("sweep_energy")))
    for name, count, four, twelve, loss, still, still_raw, moves, moves_raw, *more in rows:
        assert count == str(len(found("sweep_energy", row=name)))
        for cell, column in ((four, "uniform_4"), (twelve, "uniform_12")):
            assert bool(cell) == (not name.startswith("text"))
            agree(cell, spread(values("sweep_energy", name, column))) if cell else None
        agree(loss, spread(values("sweep_energy", name, "val_loss", 1)))
        wrong, by_energy, by_entropy, by_delta, near, farther = more
        for cell, scale, known in (
                (still, 100, dict(what="energy_falls_past_still_until")),
                (still_raw, 100, dict(what="energy_falls_past_still_until", weights="untrained")),
                (moves, 100, dict(what="energy_falls_until")),
                (moves_raw, 100, dict(what="energy_falls_until", weights="untrained")),
                (wrong, 1, dict(what="energy", group="wrong", of="n")),
                (by_energy, 1, dict(what="wrong_auc", group="energy")),
                (by_entropy, 1, dict(what="wrong_auc", group="entropy")),
                (by_delta, 1, dict(what="wrong_auc", group="delta")),
                (near, 1, dict(what="loss")), (farther, 1, dict(what="loss", loops=4))):
            value = energy_state(name, **known)
            agree_or_blank(cell, value and scale * value)


ENERGIES = {"track N, replace": "N, replace", "track N, alpha 0.5": "N, energy", "track N, backtracked":
            "N, energy, backtracked", "track N, alpha 0.5, keys of x0": "N, energy, keys of x0",
            "track P, replace": "P, replace", "track P, alpha 0.5": "P, energy",
            "track P, backtracked": "P, energy, backtracked", "group words, replace": "group words, replace",
            "group words, alpha 0.5": "group words, energy", "text, replace": "text, replace",
            "text, alpha 0.5": "text, energy"}


def test_the_page_of_energies():
    """docs/energy.md: the seeds, and the states of the first one; a taught energy is none that falls or detects."""
    rows = table("docs/energy.md", "What was measured")[1]
    assert [row[0] for row in rows] == list(ENERGIES)
    for label, four, twelve, still, moves, losses, told in rows:
        row = ENERGIES[label]
        known = values("sweep_energy", row, *(("val_loss", 1) if "text" in label else ("uniform_4",)))
        agree(four, [statistics.median(known), (max if "text" in label else min)(known)])
        if label.startswith("track"):
            agree(twelve, seeds("sweep_energy", row, "uniform_12"))
        for cell, what in ((still, "energy_falls_past_still_until"), (moves, "energy_falls_until")):
            value = None if row.endswith("replace") else energy_state(row, what)
            agree_or_blank(cell, value and 100 * value)
        for cell, loops in zip(losses.split(", "), (1, 4), strict=True):
            agree(cell, [energy_state(row, "loss", loops)])
        wrong, entropy = (energy_state(row, *of) for of in (("energy", 1, "wrong", "trained", "n"),
                                                            ("wrong_auc", 1, "entropy")))
        if wrong is None:
            assert told == "none is wrong"
            continue
        *areas, count = re.findall(NUMBER, told)
        assert float(count.replace(",", "")) == wrong
        own = [] if row.endswith("replace") else [energy_state(row, "wrong_auc", 1, "energy")]
        for cell, value in zip(areas, [*own, entropy], strict=True):
            agree(cell, [value])


def descent(what, loop=4, row="backtracked, keys of x0", weights="trained"):
    """Numbers of results/energy_descent.csv, one per seed."""
    known = found("energy_descent", row=row, what=what, weights=weights, loop=str(loop), **{"class": "answer"})
    return [float(r["value"]) for r in known]


def test_what_is_said_of_energies():
    """The prose of docs/energy.md: a difference with its interval, the run that falls by construction, what failed."""
    text = " ".join(page("docs/energy.md").split())
    mean, low, high = re.search(r"text costs ([\d.]+) nats more \(95%: ([\d.]+) to ([\d.]+)\)", text).groups()
    ours, block = (values("sweep_energy", f"text, {name}", "val_loss", 1) for name in ("energy", "replace"))
    interval = stats.ttest_rel(ours, block).confidence_interval()
    for shown, value in ((mean, statistics.mean(ours) - statistics.mean(block)), (low, interval.low),
                         (high, interval.high)):
        agree(shown, [value])
    shown = re.findall(r"([\d.]+)%? \(([\d.]+)\)", re.search(r"on a CPU, has (.*?) at 2, 4, 8 and 12 digits", text)[1])
    for cell, size in zip(shown, ["2", "4", "8", "12"], strict=True):
        known = values("sweep_energy_descent", "backtracked, keys of x0", f"uniform_{size}")
        assert len(known) == 3
        for number, value in zip(cell, (statistics.median(known), min(known)), strict=True):
            agree(number, [value])
    ours, chance = re.search(r"loops of 4 it has ([\d., and]+)%, random ([\d., and]+);", text).groups()
    points = found("energy_descent_seeds", rule="energy", threshold="3.0")
    for cells_of, column in ((ours, "accuracy"), (chance, "random_accuracy")):
        for number, r in zip(re.findall(NUMBER, cells_of), points, strict=True):
            agree(number, [100 * float(r[column])])
    for label, row in (("(keys that move, one seed, ", "N, energy, backtracked"), ("; Block [", "N, replace")):
        shown = re.search(re.escape(label) + r"([\d., and]+)", text)[1]
        for number, size in zip(re.findall(NUMBER, shown), (2, 4, 8, 12), strict=True):
            agree(number, values("sweep_demo_energy", row, f"uniform_{size}"))
    fixed = [energy_state(row, "energy_falls_past_still_until") for row in ENERGIES.values()
             if "replace" not in row and "backtracked" not in row]
    shown = re.search(r"lifts E in (\d+) to (\d+)% of the trained", text).groups()
    assert [*map(int, shown)] == [round(100 * (1 - end)) for end in (max(fixed), min(fixed))]
    for weights in ("trained", "untrained"):
        assert {*descent("energy_falls_until", weights=weights)} == {1}
        assert {*descent("energy_rises_past_still_until", 32, weights=weights)} == {0}
    rest = dict(row="replace, trained to rest")
    left = [after / before for after, before in zip(descent("taught_energy_slope", 32, **rest),
                                                    descent("taught_energy_slope", **rest), strict=True)]
    for pattern, scale, values_of in (
            (r"After 32 loops LOW to HIGH% of the tokens stand still", 100, descent("energy_stands", 32)),
            (r"on slopes of LOW to HIGH \(", 1, descent("energy_slope", 32)),
            (r"\(LOW to HIGH after loop 4\)", 1, descent("energy_slope")),
            (r"The loss was LOW to HIGH after loop 4", 1, descent("loss")),
            (r"after loop 4 and is LOW to HIGH\. ", 1, descent("loss", 32)),
            (r"nearly flat \(slopes of LOW to HIGH;", 1, descent("minimum_slope")),
            (r"; LOW to HIGH% of pushes of 0\.1% lift it\)", 100, descent("minimum_lifted")),
            (r"the loss is LOW to HIGH, and", 1, descent("minimum_loss")),
            (r"and LOW to HIGH% of the tokens are right", 100, descent("minimum_right")),
            (r"creep \(LOW to HIGH% in loop 32\)", 100, descent("delta", 32, **rest)),
            (r"with LOW to HIGH% of the slope after loop 4", 100, left),
            (r"and LOW to HIGH% of pushes lift it", 100, descent("taught_energy_lifted", 32, **rest))):
        low, high = re.search(re.sub("LOW|HIGH", r"([\\d.]+)", pattern), text).groups()
        assert len(values_of) == 3
        agree(low, [scale * min(values_of)])
        agree(high, [scale * max(values_of)])
    shown = re.search(r"moves it by ([\d.]+)% after 32\), and ([\d.]+)% of pushes lift the head", text).groups()
    for number, what in zip(shown, ("delta", "taught_energy_lifted"), strict=True):
        agree(number, [100 * x for x in descent(what, 32, row="pretrained/addition.pt")])
    agree(re.search(r"a fixed step ([\d.]+)% of the tokens end in a limit cycle", text)[1],
          [100 * energy_state("P, energy", "limit_cycle", 4, "any")])
    for loops in (1, 4):  # every token stands still
        assert energy_state("P, energy, backtracked", "converged_by", loops, "0.0001") == 1


def ends(name, row, column):
    """A loss of each seed of a row at the last evaluation of <name>_curves.csv."""
    curves = [r for r in rows_of(f"{name}_curves") if r["row"] == row]
    return list({r["seed"]: float(r[column]) for r in curves}.values())


def test_the_tables_of_fixed_rows():
    """Those of the log: one seed after the other, in the first entry not all; and three seeds of the small training."""
    for entry, count, sizes in (("Nothing overfits 50,000 fixed rows", 14, (4, 8, 12)),
                                ("Capacity, data or time?", 18, (4, 5, 8, 12))):
        _, rows = entry_table(entry)
        assert len(rows) == count
        for label, training, validation, *shown in rows:
            known = [(training, ends("sweep_overfit", label, "train_loss")),
                     (validation, ends("sweep_overfit", label, "val_loss")),
                     *((cell, values("sweep_overfit", label, f"uniform_{n}"))
                       for n, cell in zip(sizes, shown, strict=True))]
            for cell, of_seeds in known:
                for number, value in zip(cell.split(", "), of_seeds, strict=count == 18):
                    agree(number, [value])
    _, rows = entry_table("Nothing overfits 50,000 fixed rows", 2)
    assert len(rows) == 7
    for label, *losses, one, two, three in rows:
        curves = [r for r in rows_of("sweep_overfit_small_curves") if r["row"] == label]
        lowest = [min(float(r["val_loss"]) for r in curves if r["seed"] == seed) for seed in "123"]
        for cell, known in zip(losses, (ends("sweep_overfit_small", label, "train_loss"),
                                        ends("sweep_overfit_small", label, "val_loss"), lowest), strict=True):
            assert len(known) == 3
            agree(cell, [statistics.median(known), max(known)])
        agree_sizes("123", (one, two, three), "sweep_overfit_small", label)


def test_what_is_said_of_fixed_rows():
    """docs/addition.md and docs/findings.md."""
    said = " ".join(page("docs/addition.md").split())
    least = float(re.search(r"256 and 384 channels have ([\d.]+)% of 4 digits at least", said)[1])
    low, high = map(float, re.search(r"both losses end between ([\d.]+) and ([\d.]+) nats", said).groups())
    assert re.search(rf"have {least}% of 4 digits at least, .* C = 128 ends at {low} to {high} nats",
                     page("docs/findings.md"))
    wide, narrow = [], []
    for row in dict.fromkeys(r["row"] for r in rows_of("sweep_overfit")):
        if re.search(r"counted|learned|steps", row):  # of the question that this one left
            continue
        small = row.startswith("A2")
        curves = [r for r in rows_of("sweep_overfit_curves") if r["row"] == row and int(r["iter"]) >= 1000]
        assert max(float(r["val_loss"]) - float(r["train_loss"]) for r in curves) < (0.01 if small else 0.003), row
        if small:
            narrow += ends("sweep_overfit", row, "train_loss") + ends("sweep_overfit", row, "val_loss")
        else:
            wide += values("sweep_overfit", row, "uniform_4")
    agree(str(least), [min(wide)])
    for shown, value in ((low, min(narrow)), (high, max(narrow))):
        agree(str(shown), [value], 2)
    _, rows = table("docs/addition.md", "Fixed rows", 2)
    for (label, _, *shown, loss), name in zip(rows, (
            "384 wide, fresh rows", "384 wide, 200,000", "384 wide, 50,000", "384 wide, as counted, 50,000",
            "384 wide, learned, 50,000", "384 wide, learned, 2,000"), strict=True):
        assert label in name
        for n, cell in zip((4, 5, 12), shown, strict=True):
            agree(cell, seeds("sweep_overfit", name, f"uniform_{n}"))
        known = ends("sweep_overfit", name, "val_loss")
        agree(loss, [statistics.median(known), max(known)])
    _, rows = table("docs/addition.md", "Fixed rows")
    kinds = dict(zip(("place", "as counted", "learned"), rows, strict=True))
    for kind, (_, *shown) in kinds.items():
        for n, right, loss in zip(("200", "1,000"), shown[::2], shown[1::2], strict=True):
            name = f"{kind}, {n}"
            agree(right, seeds("sweep_overfit_small", name, "uniform_3"))
            known = ends("sweep_overfit_small", name, "val_loss")
            agree(loss, [statistics.median(known), max(known)])
            if n == "200":
                assert max(ends("sweep_overfit_small", name, "train_loss")) < 0.00055
    text = re.search(r"validation rises from .* and 97\.9 \(92\.0\)", page("docs/findings.md"))[0]
    (_, _, end, lowest, *_), = [r for r in entry_table("Nothing overfits 50,000 fixed rows", 2)[1]
                                if r[0] == "learned, 200"]
    for number, cell in zip(re.search(r"from ([\d.]+) to ([\d.]+) nats", text).groups(), (lowest, end), strict=True):
        agree(number, [float(cell.split()[0])])
    shown = re.findall(r"[\d.]+%? \([\d.]+\)", text)
    for cell, (n, kind) in zip(shown, itertools.product(("200", "1,000"), reversed(kinds)), strict=True):
        agree(cell, seeds("sweep_overfit_small", f"{kind}, {n}", "uniform_3"))


def curve(row, seed):
    """{iteration: (training loss, validation loss)} of a training of config/sweep_overfit.py."""
    return {int(r["iter"]): (float(r["train_loss"]), float(r["val_loss"]))
            for r in rows_of("sweep_overfit_curves") if (r["row"], r["seed"]) == (row, seed)}


def accuracies():
    """The columns of config/sweep_overfit.py that are accuracies."""
    return [c for c in rows_of("sweep_overfit")[0] if re.match("(uniform|hard)_", c)]


def differences(a, b):
    """How many columns leave 0 out, of those that differ in some seed."""
    some, sure, *_ = count_apart(("sweep_overfit", a), ("sweep_overfit", b), accuracies())
    return [sure, some]


FORMS = ("384 wide", "A1 256 wide", "A2 128 wide", "A3 dropout 0.3", "A4 label smoothing 0.1", "A5 weight decay 0.1")


def said_of_fixed_rows(pattern, *known):
    """The groups of a pattern in the log's entry are these numbers."""
    text = " ".join(page("root.md").partition("### Capacity, data or time?")[2].partition("\n### ")[0].split())
    for cell, value in zip(re.search(pattern, text).groups(), known, strict=True):
        agree(cell, [value])


def test_losses_of_fixed_rows():
    """What the log says of both losses, and pages that repeat it."""
    rows = list(dict.fromkeys(r["row"] for r in rows_of("sweep_overfit")))
    assert all(len(found("sweep_overfit", row=row)) == 3 for row in rows)
    gap, rise, under = {}, {}, {}  # of validation above training, above its lowest; and where it is under 0.01
    for row, seed in itertools.product(rows, "123"):
        losses = curve(row, seed)
        gap[row, seed] = statistics.mean(y - x for n, (x, y) in losses.items() if n >= 1000)
        rise[row, seed] = losses[max(losses)][1] - min(y for _, y in losses.values())
        under.setdefault(row, []).append(min((n for n, (_, y) in losses.items() if y < 0.01), default=math.inf))
    fixed = [r for r in rows if r.endswith((" 50,000", " 200,000"))]
    known = {key: x for key, x in rise.items() if key[0] in fixed and "smoothing" not in key[0]}
    said_of_fixed_rows(r"Of (\d+) trainings no validation loss", 3 * len(fixed))
    said_of_fixed_rows(r"The largest \(([\d.]+), A5 on 50,000 rows, seed 2", known["A5 weight decay 0.1, 50,000", "2"])
    assert max(known.values()) == known["A5 weight decay 0.1, 50,000", "2"] < 0.0002
    assert all(gap["384 wide, fresh rows", seed] < 0 for seed in "123")
    few, many = ([gap[f"{form}, {n}", seed] for form in FORMS if "A2" not in form for seed in "123"]
                 for n in ("50,000", "200,000"))
    assert len(few) == len(many) == 15
    said_of_fixed_rows(r"is above 0 in (\d+) of 15 trainings on 50,000 .* in (\d+) of 15 on 200,000",
                       *(sum(x > 0 for x in gaps) for gaps in (few, many)))
    said_of_fixed_rows(r"The difference is ([\d.]+) nats \(([\d.]+) to ([\d.]+)",
                       *(x for x, in mean_of([x - y for x, y in zip(few, many, strict=True)])))
    drawn = [r for r in rows if not re.search("counted|learned|A2|smoothing", r)]
    said_of_fixed_rows(r"all are under 0.01 by step ([\d,]+)", max(max(under[r]) for r in drawn))
    step = r"([\d,]+), ([\d,]+) and ([\d,]+)"
    said_of_fixed_rows(rf"under 0.01 at step {step}; as counted {step}",
                       *under["384 wide, learned, 50,000"], *under["384 wide, as counted, 50,000"])
    long = "A2 128 wide, fresh rows, 12,000 steps"
    said_of_fixed_rows(rf"parameters are under 0.01 at step {step}, and have 100% of 4", *under[long])
    assert min(values("sweep_overfit", long, "uniform_4")) == 100
    says("docs/addition.md", r"seeds are under 0.01 nats by step ([\d,]+) and have 100% of 4", [max(under[long])])
    says("docs/addition.md", r"though of 12 digits ([\d.]+% \([\d.]+\))", seeds("sweep_overfit", long, "uniform_12"))
    says("docs/findings.md", r"in 12,000 steps is under 0.01 by step ([\d,]+)", [max(under[long])])
    three = r"([\d.]+), ([\d.]+) and ([\d.]+)"
    said_of_fixed_rows(rf"at step 4,000 these are still at {three}\.", *(curve(long, s)[4000][1] for s in "123"))
    last = {n: [y - x for x, y in (curve(f"A2 128 wide, {n}", s)[4000] for s in "123")]
            for n in ("50,000", "200,000", "fresh rows")}
    said_of_fixed_rows(r"all three gaps at the end \(([\d.]+) to ([\d.]+)\) are above all six .* \(([\d.]+) at most",
                       min(last["50,000"]), max(last["50,000"]), max(last["200,000"] + last["fresh rows"]))
    few = [curve("384 wide, learned, 2,000", s) for s in "123"]
    lowest, end = [min(y for _, y in c.values()) for c in few], [c[4000][1] for c in few]
    said_of_fixed_rows(rf"at {three}, and rises to {three}\.", *lowest, *end)
    number = r"(\d+\.\d+)"
    says("docs/findings.md", rf"rises from {number} to {number} at its lowest to {number} to {number}",
         [min(lowest)], [max(lowest)], [min(end)], [max(end)])
    says("docs/addition.md", rf"training loss ends at {number}, and validation is never under {number}",
         [max(c[4000][0] for c in few)], [min(lowest)])


def test_what_a1_to_a5_and_more_rows_give():
    """Differences in accuracy, of pairs of rows of config/sweep_overfit.py."""
    numbers = ("50,000", "200,000")

    def total(pairs):
        return [sum(x) for x in zip(*itertools.starmap(differences, pairs), strict=True)]
    beside = {form: [(f"{form}, {n}", f"384 wide, {n}") for n in numbers] for form in FORMS}
    mild = [pair for form in FORMS if form[:2] in ("A1", "A4", "A5") for pair in beside[form]]
    said_of_fixed_rows(r"A1, A4 and A5 leave 0 out in (\d+) of (\d+), .* Dropout does in (\d+) of (\d+)",
                       *total(mild), *total(beside["A3 dropout 0.3"]))
    said_of_fixed_rows(r"0 out in (\d+) of (\d+) columns of six pairs, either less fresh rows in (\d+) of (\d+)",
                       *total((f"{form}, 50,000", f"{form}, 200,000") for form in FORMS),
                       *total((f"{form}, {n}", f"{form}, fresh rows") for form in FORMS[::2][:2] for n in numbers))
    fewer = {}  # of 50,000 than of 200,000 rows, by column, over five forms and three seeds
    for column in accuracies():
        of_rows = [[x for form in FORMS if "A2" not in form for x in values("sweep_overfit", f"{form}, {n}", column)]
                   for n in numbers]
        if of_rows[0] != of_rows[1]:
            fewer[column] = [y - x for x, y in zip(*of_rows, strict=True)]
    known = {column: mean_of(d) for column, d in fewer.items()}
    clear = [mean for (mean,), (low,), (high,) in known.values() if low > 0 or high < 0]
    said_of_fixed_rows(r"it is ([\d.]+) points of 6 digits \(([\d.]+) to ([\d.]+)\); by these pairs (\d+) of (\d+) ",
                       *(x for x, in known["uniform_6"]), len(clear), len(known))
    assert max(clear) == known["uniform_6"][0][0]
    costs = [less(*(("sweep_overfit", f"{form}, {n}") for form in ("384 wide", "A3 dropout 0.3")), "uniform_12")
             for n in numbers]
    assert min(costs[0] + costs[1]) > 0
    both, more = mean_of(costs[0] + costs[1]), mean_of(costs[1])
    three = r"([\d.]+){}([\d.]+) to ([\d.]+)"
    said_of_fixed_rows(f"it costs {three.format(r' points .')} over six pairs of six; .* alone {three.format(', ')}",
                       *(x for x, in both + more))
    says("docs/addition.md", r"costs ([\d.]+) points of 12 digits \(95%: ([\d.]+) to ([\d.]+); six", *both)
    says("docs/findings.md", r"fixed rows ([\d.]+) points \(([\d.]+) to ([\d.]+); six", *both)
    says("docs/decisions.md", r"dropout costs ([\d.]+) points of 12 digits", both[0])
