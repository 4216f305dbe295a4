"""Figures that a stranger can read: bounded, with ceilings, names of points, and no band where there is no range."""
import itertools
import struct
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgb
from matplotlib.text import Annotation, Text

import figures


@pytest.fixture
def drawn(monkeypatch):
    """All figures that are written from now on."""
    found, save = [], figures.save

    def keep(figure, *arguments):
        save(figure, *arguments)
        found.append(figure)
    monkeypatch.setattr(figures, "save", keep)
    return found


def size_of(path):
    """Width and height in pixels, by the header of a PNG."""
    return struct.unpack(">II", path.read_bytes()[16:24])


def rows_of(seeds, rng, rows=1, **more):
    """Rows of a sweep with exact matches of three sizes and loops of a rule "kl"."""
    return [dict(row=f"row {i}", seed=seed, **{f"uniform_{n}": rng.random() for n in (4, 8, 12)}, **{
        f"kl_loops_solved_{n}": n + rng.random() for n in (4, 8, 12)}, **more)
        for i in range(rows) for seed in range(seeds)]


def bands(ax):
    return [c for c in ax.collections if isinstance(c, PolyCollection)]


@pytest.mark.parametrize("seeds", [1, 2, 3, 5])
def test_a_band_needs_three_seeds(drawn, rng, tmp_path, seeds):
    """Of fewer, each seed's own values are drawn."""
    found = rows_of(seeds, rng)
    assert figures.draw_sweep(found, {"kl": None}, str(tmp_path / "x.png"))
    ax = drawn[0].axes[0]
    values = 100 * np.array([[r[f"uniform_{n}"] for n in (4, 8, 12)] for r in found])
    lines = [line.get_ydata() for line in ax.lines if len(line.get_xdata())]
    np.testing.assert_allclose(np.sort(lines, 0), np.sort(values if seeds < 3 else np.median(values, 0)[None], 0))
    assert len(bands(ax)) == (seeds > 2)
    title = drawn[0].get_suptitle()
    assert ("lowest seed" in title) == (seeds > 2)
    assert ("One seed" in title) == (seeds == 1)


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_ceiling_is_drawn_and_what_is_cut_off_there_is_hollow(drawn, rng, tmp_path, seeds):
    assert figures.draw_sweep(rows_of(seeds, rng), {"kl": 13}, str(tmp_path / "x.png"))  # size 12 takes 12 to 13
    exact, loops = drawn[0].axes
    (line,) = [line for line in loops.lines if "num_loops" in str(line.get_label())]
    assert set(line.get_ydata()) == {13}
    assert loops.get_ylim()[1] > 13
    hollow = [line.get_xdata().tolist() for line in loops.lines if line.get_markerfacecolor() == "w" and len(
        line.get_xdata())]
    assert hollow == [[12]]
    assert not any("num_loops" in str(line.get_label()) for line in exact.lines)
    assert figures.draw_sweep(rows_of(seeds, rng), {"kl": 2000}, str(tmp_path / "x.png"))
    assert drawn[1].axes[1].get_ylim()[1] < 20  # far away it is told and not drawn
    assert "2000, above" in drawn[1].legends[0].get_texts()[2].get_text()
    assert any("num_loops, the most allowed: 13" in t.get_text() for t in drawn[0].legends[0].get_texts())


def test_more_lines_than_can_be_told_apart_become_a_table(drawn, rng, tmp_path):
    """Every cell says the range of the seeds; what is not quite 100% is not rounded to it."""
    found = rows_of(2, rng, rows=5)
    found[0]["uniform_4"] = found[1]["uniform_4"] = 0.9996
    del found[2]["uniform_8"], found[3]["uniform_8"]
    assert figures.draw_sweep(found, {"kl": 32}, str(tmp_path / "x.png"))
    ax = drawn[0].axes[0]
    cells = {t.get_position(): t.get_text() for t in ax.texts}
    assert not ax.lines
    assert cells[0, 0] == "99.9"
    assert (1, 1) not in cells
    low, high = sorted(np.floor(1000 * r["uniform_12"]) / 10 for r in found[8:])
    assert cells[2, 4] == f"{low:g}–{high:g}"
    assert [t.get_text() for t in ax.get_yticklabels()] == [f"row {i}" for i in range(5)]
    drawn.clear()  # what is cut off is told there, too: size 12 takes 12 to 13 loops
    assert figures.draw_sweep(found, {"kl": 13}, str(tmp_path / "x.png"))
    assert {t.get_text()[-1] == "+" for t in drawn[0].axes[1].texts if t.get_position()[0] == 2} == {True}
    assert {t.get_text()[-1] == "+" for t in drawn[0].axes[1].texts if t.get_position()[0] < 2} == {False}


@pytest.mark.parametrize(("letters", "columns", "name"), [(3, 4, "a"), (11, 10, "one problem per row, confidence")])
def test_numbers_of_a_table_stay_in_their_cells(letters, columns, name):
    figure, (ax,) = figures.new_figure(1, 1)
    figures.draw_cells(ax, np.zeros((2, columns)), [["8" * letters] * columns] * 2, [name] * 2, range(columns), 100)
    figure.draw_without_rendering()
    cell = ax.transData.transform((1, 0))[0] - ax.transData.transform((0, 0))[0]
    assert len(ax.texts) == 2 * columns
    assert max(text.get_window_extent().width for text in ax.texts) < cell


def test_losses_are_a_table_and_the_lines_that_matter(drawn, rng, tmp_path):
    """A dot per seed of every row, and of each size of model the best row of the most seeds, four at most."""
    found = [dict(row=f"row {i}", seed=seed, parameters=f"{10 ** (6 + i % 6)}", flops_per_token="2e6",
                  best_val_loss=str(1.4 + 0.01 * i + 0.001 * seed)) for i in range(12) for seed in range(3 - i // 6)]
    found.append(dict(row="far", seed=0, parameters="1", flops_per_token="1", best_val_loss="3.5"))
    losses = {f"row {i}": {seed: {0: 4.0, 10: 1.5} for seed in range(3 - i // 6)} for i in range(12)}
    assert figures.draw_losses(found, losses, str(tmp_path / "x.png"))
    table, curves, beside = drawn[0].axes
    assert [t.get_text() for t in table.get_yticklabels()] == [*(f"row {i}" for i in range(12)), "far"]
    assert len(table.lines) == len(found)
    assert max(float(line.get_xdata()[0]) for line in table.lines) == pytest.approx(1.65)  # the far one, at the edge
    assert [t.get_text().split()[-1] for t in beside.get_yticklabels()][::12] == ["loss", "1.5105"]
    named = [t.get_text() for t in drawn[0].legends[0].get_texts()]
    assert named == [f"row {i} (3 seeds)" for i in range(4)]
    assert len(bands(curves)) == 4


def frontier(rng, depth=8, rules=("confidence", "kl")):
    spread = dict(low=0.1, high=0.9, random_accuracy=0.3, random_low=0.2, random_high=0.4, problems=100)
    rows = [dict(kind="frontier", rule="fixed", loops=l, accuracy=1 - 0.5 ** l, **spread) for l in range(1, depth + 1)]
    return rows + [dict(kind="frontier", rule=rule, threshold=t, loops=1 + 2 * i + rng.random(), accuracy=0.2 + 0.3 * i,
                        **spread) for rule in rules for i, t in enumerate((0.5, 0.9, 0.99))]


def test_parts_have_a_dot_per_seed_and_a_stroke_at_their_median(drawn, rng, tmp_path):
    rows = [f"part {i}" for i in range(12)]
    panels = {name: {row: rng.random(n) for row in own} for name, own, n in (
        ("text", rows[:8], 3), ("N", rows[2:], 1), ("P", rows[5:6], 2))}
    assert figures.draw_parts(rows, panels, str(tmp_path / "x.png"))
    for ax, (name, known) in zip(drawn[0].axes, panels.items(), strict=True):
        assert ax.get_xlabel() == name
        dots, strokes = ([line for line in ax.lines if line.get_marker() == mark] for mark in "o|")
        assert [line.get_ydata()[0] for line in dots] == [rows.index(row) for row in known]
        for line, stroke, values in zip(dots, strokes, known.values(), strict=True):
            np.testing.assert_allclose(line.get_xdata(), values)
            np.testing.assert_allclose(stroke.get_xdata(), np.median(values))
            assert stroke.get_ydata()[0] == line.get_ydata()[0]
    assert [t.get_text() for t in drawn[0].axes[0].get_yticklabels()] == rows


def test_training_beside_validation_loss_has_a_panel_per_row(drawn, rng, tmp_path):
    """Medians over seeds, of which one was stopped early. A row of longer trainings leaves the others their width."""
    known = rng.random((4, 3, 5, 2))  # rows, seeds, evaluations, losses
    known[1, 2, 3:] = np.nan
    steps = [100, 100, 100, 1000]  # from one evaluation to the next
    curves = [dict(row=f"row {i}", seed=seed, iter=steps[i] * n, val_loss=x, train_loss=y)
              for i, rows in enumerate(known) for seed, losses in enumerate(rows)
              for n, (x, y) in enumerate(losses) if not np.isnan(x)]
    assert figures.draw_fit(curves, str(tmp_path / "x.png"))
    for i, ax in enumerate(drawn[0].axes):
        assert ax.get_title() == f"row {i}"
        lines = [line for line in ax.lines if line.get_label().startswith(("validation", "training"))]
        for line, losses in zip(lines, np.moveaxis(known[i], 2, 0), strict=True):
            np.testing.assert_allclose(line.get_xydata().T, [steps[i] * np.arange(5), np.nanmedian(losses, 0)])
        assert 4 * steps[i] < ax.get_xlim()[1] < 5 * steps[i]


def test_reading_and_writing_have_a_panel_per_row_and_size(drawn, rng, tmp_path):
    """Medians over seeds; until 0.9 nothing is written by the rule. The other panels of the sweep leave them out."""
    reads, writes, sizes = ("3", "8", "0_9"), (0, 8, 24), (4, 12)
    known = rng.random((2, 3, len(reads), len(writes), len(sizes)))  # rows, seeds
    known[:, :, 2, 0] = np.nan
    found = [dict(row=f"row {i}", seed=seed, error="", uniform_4=0.5) | {
        f"read_{read}_write_{write}_{size}": "" if np.isnan(x) else str(x)
        for (read, write, size), x in zip(itertools.product(reads, writes, sizes), seen.flat, strict=True)}
        for i, seeds in enumerate(known) for seed, seen in enumerate(seeds)]
    assert figures.draw_waiting(found, str(tmp_path / "x.png"))
    for ax, (i, k) in zip(drawn[0].axes, itertools.product(range(2), range(2)), strict=True):
        assert ax.get_title() == f"row {i}, size {sizes[k]}"
        lines = [line for line in ax.lines if line.get_label().startswith("read ")]
        assert [line.get_label() for line in lines] == [f"read {x} (3 seeds)" for x in ("in 3", "in 8", "until 0.9")]
        for line, values in zip(lines, 100 * np.median(known[i, ..., k], 0), strict=True):
            np.testing.assert_allclose(line.get_ydata(), values[~np.isnan(values)])
            np.testing.assert_allclose(line.get_xdata(), np.arange(3)[~np.isnan(values)])
    assert figures.draw_sweep(found, {}, str(tmp_path / "y.png"))
    assert [ax.get_title() for ax in drawn[1].axes] == ["uniform problems"]


def test_points_of_a_frontier_name_rule_and_threshold(drawn, rng, tmp_path):
    assert figures.draw_frontier(frontier(rng), 16, str(tmp_path / "x.png"))
    (figure,) = drawn
    assert [ax.get_title() for ax in figure.axes] == ["rule confidence", "rule kl"]
    for ax in figure.axes:
        names = ax.findobj(Annotation)
        assert {t.get_text() for t in names} == {"0.5", "0.9", "0.99"}
        boxes = [t.get_window_extent() for t in names]
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
        assert [line.get_xdata()[0] for line in ax.lines if "num_loops" in str(line.get_label())] == [16]
        assert ax.get_legend() is None
    assert len(figure.legends) == 1


def trace(tokens, loops):
    return [dict(reads="a", writes="b", loops=loops, prediction=["가"] * loops, entropy=[1.0] * loops)
            for _ in range(tokens)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("count", "tokens", "loops"), [(1, 2, 1), (1, 3, 2000), (6, 60, 2000), (40, 200, 16)])
def test_a_heat_map_is_bounded_and_says_what_it_left_out(drawn, tmp_path, count, tokens, loops):
    traces = [trace(tokens, loops)] * count
    assert figures.draw_traces(traces, ["title"] * count, 2.0, str(tmp_path / "x.png"))
    width, height = size_of(tmp_path / "x.png")
    assert width <= 1400
    assert height <= 6000
    shown, longest, at, left = figures.shown_of(traces)
    assert (f"of {loops} loops" in left) == (loops > 16) == (len(at) < loops)
    assert (f"of {count} sequences" in left) == (shown < count)
    assert (f"of up to {tokens} tokens" in left) == (longest < tokens)
    assert (at[0], at[-1]) == (1, loops)
    assert drawn[0].get_suptitle().replace("\n", " ") == left


def every_figure(rng, folder, loops=6):
    """Draw one of each kind, of so many loops."""
    sizes = [1, 2, 3]
    table = frontier(rng, loops) + [dict(kind="uniform", n=n, m=n, problems=50, loops_most_solved=n + rng.random(),
                                         loops_most_solved_low=n, loops_most_solved_high=n + 1) for n in sizes]
    table += [dict(kind="chain", n=n, chain=c, problems=20, loops=n, loops_low=n - 1, loops_high=n + 1)
              for n in sizes for c in range(3)]
    done = [figures.draw_frontier(table, loops, f"{folder}/frontier.png"),
            figures.draw_loops(table, loops, f"{folder}/loops.png"),
            figures.draw_sweep(rows_of(3, rng, 2), {"kl": loops}, f"{folder}/sweep.png"),
            figures.draw_sweep(rows_of(3, rng, 9), {"kl": loops}, f"{folder}/table.png"),
            figures.draw_traces([trace(5, loops)] * 2, ["x"] * 2, 2.0, f"{folder}/trace.png"),
            figures.draw_training([dict(iter=str(i), loss=str(1 + rng.random())) for i in range(1, loops + 1)],
                                  "a run " * 40, f"{folder}/loss.png"),
            figures.draw_fit([dict(row=f"row {i} " * 9, seed=0, iter=n, val_loss=1.0, train_loss=0.5) for i in range(14)
                              for n in range(loops)], f"{folder}/fit.png")]
    s = SimpleNamespace(first="all", L=loops, limit=0, title="a model " * 30)
    rows = [{"what": what, "weights": w, "loop": l, "class": "all", "value": 1.0, "low": 0.5, "high": 1.5}
            for what in ("entropy", "loss", "confidence", "delta", "norm", "flips") for w in figures.STYLE
            for l in range(1, loops + 1)]
    return all([*done, figures.draw_trajectories(rows, s, f"{folder}/trajectories.png"),
                figures.draw_states([dict(r, row=f"row {i}") for i in range(6) for r in rows], f"{folder}/states.png")])


def test_states_are_drawn_by_loop_trained_beside_untrained(drawn, rng, tmp_path):
    """A line of panels for four rows, those of the fifth below; the tokens that stand first; a stroke at the loops of
    training, but for a row whose states end there."""
    known = {key: rng.random(12) for key in itertools.product(range(5), ("norm", "delta"), figures.STYLE, "ab")}
    rows = [{"row": f"row {i}", "what": what, "weights": w, "loop": l, "class": c, "value": y, "low": y, "high": y}
            for (i, what, w, c), values in known.items() for l, y in enumerate(values, 1)]
    rows += [{"row": f"row {i}", "what": "loss", "weights": "trained", "loop": l, "class": "a"}
             for i, l in enumerate((2, 3, 4, 11, 6))]
    rows = [r | dict(seed=1) for r in rows] + [r | dict(seed=2, value=9.0) for r in rows if "value" in r]
    assert figures.draw_states(rows, str(tmp_path / "x.png"))
    for n, ax in enumerate(drawn[0].axes):
        what, weights = [*itertools.product(("norm", "delta"), figures.STYLE)][n % 4]
        assert ax.get_title() == weights
        own = range(4) if n < 4 else [4]
        for line, i in zip(ax.lines, own, strict=False):
            np.testing.assert_allclose(line.get_xydata().T, [range(1, 13), known[i, what, weights, "a"]])
        assert sorted(line.get_xdata()[0] for line in ax.lines[len(own):]) == ([2, 3, 4] if n < 4 else [6])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("loops", [6, 2000])
def test_figures_are_bounded_and_can_be_read_on_a_page(drawn, rng, tmp_path, loops):
    """800 pixels wide, letters are at least 9 pixels high, and titles stay inside."""
    assert every_figure(rng, tmp_path, loops)
    for path in tmp_path.glob("*.png"):
        width, height = size_of(path)
        assert max(width, height) < 4000, path
    for figure in drawn:
        shrink = min(1, 800 / (figure.get_figwidth() * 100))  # a narrow one stands as it is
        texts = [t for t in figure.findobj(Text) if t.get_text().strip() and t.get_visible()]
        assert min(t.get_fontsize() for t in texts) * 100 / 72 * shrink >= 9
        figure.draw_without_rendering()
        for t in [figure._suptitle, *(ax.title for ax in figure.axes)]:
            if t and t.get_text():
                box = t.get_window_extent()
                assert box.x0 >= -1, t.get_text()
                assert box.x1 <= figure.bbox.width + 1, t.get_text()


def test_lines_are_told_apart_in_grey():
    """By lightness, and by marker and dashes, too."""
    looks = [figures.line_style(i) for i in range(figures.LINES)]
    grey = sorted(np.dot((0.299, 0.587, 0.114), to_rgb(look["color"])) for look in looks)
    assert np.diff(grey).min() > 0.12
    assert len({look["marker"] for look in looks}) == len({look["ls"] for look in looks}) == figures.LINES


def test_a_table_is_read_as_it_was_written(tmp_path):
    (tmp_path / "x.csv").write_text("kind,n,loops,rule\nfrontier,,1.5,kl\nuniform,3,,\n")
    assert figures.read_table(tmp_path / "x.csv") == [dict(kind="frontier", loops=1.5, rule="kl"),
                                                      dict(kind="uniform", n=3)]
