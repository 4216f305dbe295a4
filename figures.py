"""Every figure, drawn from the rows of tables alone; only the example of analyze.py also shows a text and the loops of
its tokens. All are as wide as a page, and read well in black and white and at 800 pixels. A figure that cannot be drawn
or written costs a line, not the run.

From tables that are there already, without a run: sweep.py --redraw=True, and for the others

    python -c "import figures as f; f.draw_frontier(f.read_table('x.csv'), None, 'x_frontier.png')"

Figures of analyze.py take the rows, the namespace s of what was looked at, with the settings they need, and a path.
"""
import functools
import itertools
import math
import os
import re
import sys
import textwrap
import warnings

import numpy as np

import outputs
import runtime

DIFFICULTY_SIZE = 12  # of the problems whose loops sweep.py tells by their difficulties
TRACES, TOKENS, LOOPS = 6, 60, 16  # that a heat map shows at most: sequences, and tokens and loops of each
LINES = 4  # in a panel at most; more become a table, or the best are taken
SIZES = 10  # that a table shows at most
WAITED = re.compile(r"read_(\w+?)_write_(\d+)_(\d+)")  # columns of draw_waiting: loops of both, and the size
WIDTH = 8.5  # of a figure in inches: its smallest letters, of 8 points, are 10 pixels high where it is 800 wide
NEAR = 0.9  # of the most loops allowed: a mean above that is too low, since problems were cut off
FONTS = {"font.size": 9, "axes.titlesize": 9.5, "figure.titlesize": 9.5, "legend.fontsize": 8.5, "xtick.labelsize": 8.5,
         "ytick.labelsize": 8.5, "lines.markersize": 4.5, "lines.linewidth": 1.3, "legend.framealpha": 0.85}
said_missing = set()  # characters
STYLE = {"trained": dict(color="k", marker="o", ls="-"), "untrained": dict(color="0.5", marker="s", ls="--")}
SIDES = {"trained": STYLE["trained"], "beside": dict(color="#2b5fae", marker="^", ls="--")}


def guarded(draw):
    """draw, whose last argument is the path of its figure, made to return whether the figure is there: whatever goes
    wrong is said in one line, since the numbers are in a table by then."""
    @functools.wraps(draw)
    def drawn(*arguments):
        try:
            from matplotlib import rc_context  # only here: it takes a second, and most evaluations draw nothing
            with rc_context(FONTS):
                draw(*arguments)
        except (Exception, SystemExit) as e:  # matplotlib or its fonts may be missing, the disk full
            print(f"no figure {arguments[-1]}: {type(e).__name__}: {runtime.first_line(e)}", file=sys.stderr)
            return False
        return True
    return drawn


def read_table(path):
    """The rows of a CSV file, numbers as numbers, without what is empty in a row."""
    def number(text):
        for kind in (int, float):
            try:
                return kind(text)
            except ValueError:
                pass
        return text
    return [{k: number(x) for k, x in r.items() if x != ""} for r in outputs.read_csv(path)]


def new_figure(count, columns=3, height=2.6, width=WIDTH, **more):
    """A figure and so many axes, in lines of so many columns, each line of a height in inches.

    It is none of pyplot's, so it never needs a screen, and nothing has to close it.
    """
    from matplotlib.figure import Figure  # as in guarded
    columns = min(count, 2 if count == 4 else columns)
    lines = -(-count // columns)
    figure = Figure(figsize=(width, 0.5 + height * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False, **more)
    for ax in axes.flat[count:]:
        ax.axis("off")
    return figure, axes.flat[:count]


def texts_of(figure):
    """Every text of a figure but the numbers of logarithmic axes, whose powers of ten are matplotlib's mathematics."""
    from matplotlib.text import Text  # as in new_figure
    from matplotlib.ticker import LogFormatter
    numbers = set()
    for axis in (axis for ax in figure.axes for axis in (ax.xaxis, ax.yaxis)):
        axis.get_ticklabels(which="both")  # which also writes them
        if isinstance(axis.get_major_formatter(), LogFormatter):
            numbers |= {*axis.findobj(Text)} - {axis.label}
    return [t for t in figure.findobj(Text) if t not in numbers]


@functools.cache
def covered(font):
    """The characters that a font file has; none if matplotlib cannot draw it: it is damaged, or of bitmaps alone."""
    from matplotlib.ft2font import FT2Font
    try:
        face = FT2Font(font)
        return {chr(point) for point in face.get_charmap()} if face.scalable else set()
    except (OSError, RuntimeError):
        return set()


@functools.cache
def families_for(wanted):
    """Font families for characters (a string): matplotlib's own, then what is installed that has those it lacks. Says
    once what nothing has."""
    from matplotlib import font_manager
    usual = font_manager.FontProperties()
    missing, families = set(wanted) - covered(font_manager.findfont(usual)), usual.get_family()
    if missing:  # of the system, not of matplotlib's list: that is from before the last one was installed
        fonts = {font: missing & covered(font) for font in sorted(font_manager.findSystemFonts())}
        while missing and fonts and (best := max(fonts, key=lambda font: len(missing & fonts[font]))):
            if not missing & fonts[best]:
                break
            font_manager.fontManager.addfont(best)
            families = [*families, font_manager.get_font(best).family_name]
            missing -= fonts.pop(best)
    if missing - said_missing:
        outputs.warn(f"no installed font has {' '.join(sorted(missing)[:5])}{' ...' * (len(missing) > 5)}: boxes in "
                     "figures; install one, for example: apt install fonts-noto-cjk")
        said_missing.update(missing)
    return families


def save(figure, path, title=""):
    """Write a figure; its texts are no mathematics, fit, and are in fonts that have their characters."""
    if title:
        figure.suptitle(textwrap.fill(title, round(13 * figure.get_figwidth())))
    for ax in figure.axes:
        wide = figure.get_figwidth() * ax.get_position().width  # the layout makes more of it
        ax.set_title(textwrap.fill(ax.get_title(), max(20, round(16 * wide))))
    texts = texts_of(figure)
    families = families_for("".join(sorted(filter(str.isprintable, set().union(*(t.get_text() for t in texts))))))
    for text in texts:
        text.set(parse_math=False, fontfamily=list(dict.fromkeys([*text.get_fontfamily(), *families])))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # said by then, in one line
        figure.savefig(path, dpi=160, format=os.path.splitext(path)[1][1:] or "png")  # at this path and no other


def finish(figure, axes, path, title=""):
    """Grid of every panel, one legend below for all that have none of their own; write the figure."""
    told = {}
    for ax in axes:
        ax.grid(alpha=0.3)
        told |= dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True)) if not ax.get_legend() else {}
    if told:
        columns = max(1, int(13 * figure.get_figwidth() / (max(map(len, told)) + 9)))
        figure.legend(told.values(), told, loc="outside lower center", ncols=columns)
    save(figure, path, title)


def line_style(i):
    """How line i looks: LINES that can be told apart in grey, too."""
    return dict(color=("k", "#2b5fae", "#d9662b", "#6fbf9a")[i % 4], marker="osv^"[i % 4],
                ls=("-", "--", ":", "-.")[i % 4])


def draw_seeds(ax, x, values, i, name, ceiling=None):
    """Line i: values (X, seeds), nan where there is none. The median of three seeds and more, their range as a band; of
    fewer every seed, its dots on a thin line. Hollow where the most loops allowed come near."""
    values = np.array(values, float).reshape(len(x), -1)
    values = values[:, ~np.isnan(values).all(0)]
    x, values = np.array(x)[~np.isnan(values).all(1)], values[~np.isnan(values).all(1)]
    if not values.size:
        return
    count, look = values.shape[1], line_style(i)
    look |= dict(markevery=max(1, len(x) // 20), label=f"{name} ({count} seed{'s' * (count > 1)})")
    shown = values
    if count > 2:
        shown = np.nanmedian(values, 1)[:, None]
        ax.fill_between(x, np.nanmin(values, 1), np.nanmax(values, 1), color=look["color"], alpha=0.2, lw=0)
    for y in shown.T:
        ax.plot(x, y, **look, lw=1.3 if count != 2 else 0.6)
        look["label"] = None
        mark_cut(ax, x, y, ceiling, look)


def what_lines_are(most):
    """What draw_seeds shows of so many seeds."""
    return ("One seed", "Every seed is a line of its own")[most - 1] if most < 3 else (
        "Lines: median of the seeds; bands: from the lowest seed to the highest")


def mark_cut(ax, x, y, ceiling, look):
    """Make the points hollow whose mean loops come near the most that are allowed."""
    near = np.array(y) >= NEAR * (ceiling or math.inf)
    ax.plot(np.array(x)[near], np.array(y)[near], color=look["color"], marker=look["marker"], ls="", mfc="w", zorder=3)


def draw_ceiling(ax, ceiling):
    """The most loops that are allowed, as a line; the axis begins at 0."""
    if ceiling:
        far = bool(ceiling > 6 * ax.get_ylim()[1])  # then nothing is cut off, and the axis would show nothing else
        ax.set_ylim(0, (ax.get_ylim()[1] if far else ceiling) * 1.08)
        ax.axhline(ceiling, color="0.35", ls=(0, (8, 3)), lw=1, label=f"num_loops, the most allowed: {ceiling}"
                   + ", above" * far)
        ax.plot([], [], "ks", mfc="w", ls="", label=f"hollow: over {NEAR:.0%} of it, so cut off")


def label_axes(ax, x, y, title="", whole=True, **more):
    """Names of the axes; whole: only whole numbers stand on the x axis."""
    ax.set(xlabel=x, ylabel=y, title=title, **more)
    if whole:
        ax.xaxis.get_major_locator().set_params(integer=True)


def draw_cells(ax, values, texts, rows, columns, most):
    """A table whose cells are the darker the larger their values (R,C), most and more being darkest; hatched where
    there is none; texts (R,C) stand in them, names of rows and columns at the edges. Returns the image."""
    from matplotlib.colors import LinearSegmentedColormap  # as in guarded
    shades = LinearSegmentedColormap.from_list("", ["w", "0.6"])  # black letters can be read on all of them
    image = ax.imshow(values, cmap=shades, vmin=0, vmax=most, aspect="auto")
    ax.patch.set(hatch="////", edgecolor="0.75", fc="w")
    texts = np.array(texts, object)
    cell = ax.bbox.width / ax.figure.dpi * 72 / values.shape[1]  # points; a letter takes 0.7 of its size, room included
    size = min(8.5, cell / (0.7 * max(1, *(len(text or "") for text in texts.flat))))
    for (i, j), text in np.ndenumerate(texts):
        if text and not np.isnan(values[i, j]):
            ax.text(j, i, text, ha="center", va="center", fontsize=size, fontfamily=["monospace"])
    ax.set_xticks(range(len(columns)), columns)
    ax.set_yticks(range(len(rows)), rows)
    return image


def name_points(ax, x, y, names):
    """Names beside points, to the left, to the right or above, where neither names nor points of any line are."""
    from matplotlib.transforms import Bbox  # as in guarded
    ax.figure.draw_without_rendering()  # the layout
    marks = np.concatenate([ax.transData.transform(line.get_xydata()) for line in ax.lines])
    placed = [Bbox.from_bounds(px - 3, py - 3, 6, 6) for px, py in marks]
    for point in zip(x, y, names, strict=True):
        for where in (dict(xytext=(-6, 0), ha="right", va="center"), dict(xytext=(6, 0), ha="left", va="center"),
                      dict(xytext=(0, 7), ha="center", rotation=90)):
            text = ax.annotate(point[2], point[:2], textcoords="offset points", fontsize=8, bbox=dict(
                pad=0, fc="w", ec="none", alpha=0.8), **where)
            box = text.get_window_extent()
            if ax.bbox.count_contains(box.corners()) == 4 and not any(box.overlaps(other) for other in placed):
                placed.append(box)
                break
            text.remove()


# ---- of bench.py

@guarded
def draw_writing(rows, path):
    """Quality of models against the tokens that one sequence gets in a second; rows: of bench.py --decode=True."""
    found = {task: [r for r in rows if r["table"] == task and "quality" in r] for task in ("addition", "text")}
    found = {task: points for task, points in found.items() if points}
    if not found:
        return
    figure, axes = new_figure(len(found), 1, 3.6)
    for ax, (task, points) in zip(axes, found.items(), strict=True):
        at = [[float(r[k]) for r in points] for k in ("tokens_s_1", "quality")]
        ax.plot(*at, "ko")
        ax.set(xlabel="tokens per second, one sequence", xscale="log", title=task,
               ylabel="validation loss (nats per token)" if task == "text" else "exact match (share)")
        ax.margins(0.15, 0.1)
        name_points(ax, *at, [r["case"] for r in points])
    save(figure, path, "Cases without room for their names are in the table")


# ---- of train.py and sample.py

@guarded
def draw_training(rows, title, path):
    """The loss of training batches, and the losses of the evaluations; rows: of log.csv."""
    from matplotlib.ticker import LogFormatter  # as in guarded
    figure, (ax,) = new_figure(1, height=3)
    for key, name, style in (("loss", "training batch", "0.65"), ("train_loss", "training set", "k:"),
                             ("val_loss", "validation set", "ko-")):
        points = [(int(r["iter"]), float(r[key])) for r in rows if r.get(key)]
        if points:
            ax.plot(*zip(*points, strict=True), style, label=name, markevery=max(1, len(points) // 40))
    ax.set(xlabel="iteration", ylabel="loss (nats per token)", yscale="log", title=title)
    ax.yaxis.set_minor_formatter(LogFormatter())  # 2.5, where there is no power of ten
    ax.legend()
    save(figure, path)


def shown_of(traces):
    """What a heat map has room for of traces: how many of them, tokens of each, loops (those between are left out),
    and what that leaves out, in words, "" if nothing."""
    L = max(1, *(r["loops"] for rows in traces for r in rows))
    loops = list(range(1, L + 1)) if L <= LOOPS else np.unique(np.geomspace(1, L, LOOPS).round().astype(int)).tolist()
    longest, beside = max(map(len, traces)), max(1, int(WIDTH // (1.4 + 0.42 * len(loops))))
    tokens = min(TOKENS, longest)
    count = min(TRACES, len(traces), beside * max(1, 2 * TOKENS // tokens))
    left = [f"the first {count} of {len(traces)} sequences"] * (count < len(traces))
    left += [f"the first {tokens} of up to {longest} tokens"] * (tokens < longest)
    left += [f"{len(loops)} of {L} loops"] * (len(loops) < L)
    return count, tokens, loops, ", ".join(left)


@guarded
def draw_traces(traces, titles, largest, path):
    """Heat maps, one per sequence: tokens down, loops across, dark where the model is unsure, its guesses written in.

    traces: for each sequence its rows, as trace_rows of sample.py makes them; largest: entropy in nats that is darkest.
    """
    count, longest, loops, left = shown_of(traces)
    longest, wide = min(longest, max(map(len, traces[:count]))), 1.4 + 0.42 * len(loops)
    columns = min(count, int(WIDTH // wide) or 1)
    figure, axes = new_figure(count, columns, 0.8 + 0.25 * longest, min(WIDTH, 1 + columns * wide))
    for ax, rows, title in zip(axes, traces, titles, strict=False):
        rows = rows[:longest]
        entropy, guesses = ([[(r[k][l - 1:l] or [None])[0] for l in loops] for r in rows]
                            for k in ("entropy", "prediction"))
        names = [r["reads"] + (f" → {r['writes']}" if r["writes"] else "") for r in rows]
        image = draw_cells(ax, np.array(entropy, float), guesses, names, loops, largest)
        for label in ax.get_yticklabels():
            label.set_fontfamily(["monospace"])
        ax.set(xlabel="guess after loop", title=title)
    axes[0].set_ylabel("token read → written")
    figure.colorbar(image, ax=axes, label="entropy of the guess (nats); hatched: halted", fraction=0.05,
                    shrink=min(1, 4 / figure.get_figheight()))
    save(figure, path, left)


# ---- of evaluate.py and sweep.py

def size_columns(found, kind, label=""):
    """The columns of the rows of sweep.py in which the evaluation of a label tells of a kind, in their order: {size, or
    value of a difficulty: column}."""
    prefix = f"{label}_{kind}_" if label else f"{kind}_"
    return {int(k.removeprefix(prefix)): k for r in found for k in r if re.fullmatch(re.escape(prefix) + r"\d+", k)}


def kinds_told(found, label="", labels=()):
    """Of what the evaluation of a label tells in the rows of sweep.py, in their order, labels being all of them: (kinds
    of problems whose exact match it is, mean loops: loops_solved by size and loops_<difficulty>)."""
    others = tuple(f"{x}_" for x in labels if x and x != label)
    columns = dict.fromkeys(k for r in found for k in r if label or not k.startswith(others))
    told = (re.fullmatch((re.escape(label) + "_" if label else "") + r"([a-z]\w*?)_\d+", k) for k in columns)
    told = dict.fromkeys(m[1] for m in told if m and m[1] not in ("loops_answer", "loops_most", "accuracy_random"))
    loops = [k for k in told if k.startswith("loops_")]
    return [k for k in told if k not in loops], sorted(loops, key=lambda k: k != "loops_solved")


def halts(found, columns):
    """Are these columns of the rows of sweep.py mean loops by a rule? Those of a fixed depth are whole numbers."""
    return any(not float(r[k]).is_integer() for r in found for k in columns if r.get(k, "") != "")


def of_seeds(own, columns, scale):
    """Values (X, seeds) of the columns of rows of sweep.py, nan where there is none."""
    return np.array([[scale * float("nan" if r.get(k, "") == "" else r[k]) for r in own] for k in columns])


def draw_medians(ax, lines, loops, ceiling):
    """A table of the lines of draw_sweep, one each: the median of the seeds shades a cell, their range stands in it; of
    loops a + where their ceiling comes near."""
    x = sorted(set().union(*(xs for _, xs, *_ in lines)))
    x = [x[round(i)] for i in np.linspace(0, len(x) - 1, min(SIZES, len(x)))]
    shade, texts = np.full((len(lines), len(x)), np.nan), np.full((len(lines), len(x)), "", object)
    for i, (_, xs, values, _) in enumerate(lines):
        for n, own in zip(xs, values, strict=True):
            if n in x and not np.isnan(own).all():
                ends = (end(own) for end in (np.nanmin, np.nanmax))  # 99.96% are not 100
                ends = dict.fromkeys(f"{x:.1f}" if loops else f"{math.floor(10 * x + 1e-6) / 10:g}" for x in ends)
                middle = np.nanmedian(own)
                shade[i, x.index(n)] = middle if loops else 100 - middle
                texts[i, x.index(n)] = "–".join(ends) + "+" * bool(ceiling and middle >= NEAR * ceiling)
    draw_cells(ax, shade, texts, [textwrap.fill(name, 34) for name, *_ in lines], x, (ceiling or 32) if loops else 100)


@guarded
def draw_sweep(found, ceilings, path):
    """Exact match against the size, a panel per kind of problems, and where runs halt the loops of solved ones against
    that and, if known, each difficulty: a line per row of the sweep, or per row and evaluation that halts, as
    draw_seeds does; more than LINES of them become a table.

    found: the rows of the table of sweep.py, with columns uniform_8, hard_8, kl_loops_solved_8, ...; ceilings: {label
    of an evaluation, "kl" of these: its num_loops, None if not known}."""
    found = [{k: x for k, x in r.items() if not WAITED.fullmatch(k)} for r in found]  # draw_waiting shows those
    halting = [label for label in dict.fromkeys(["", *ceilings])
               if halts(found, size_columns(found, "loops_solved", label).values())]
    kinds = kinds_told(found, "", ceilings)[0]
    of_loops = list(dict.fromkeys(k for label in halting for k in kinds_told(found, label, ceilings)[1]))
    rows, panels, most = dict.fromkeys(r["row"] for r in found), {}, 0
    for kind in (*kinds, *of_loops):
        panels[kind] = []
        for row, label in ((row, label) for row in rows for label in (halting if kind in of_loops else [""])):
            own, columns = [r for r in found if r["row"] == row], size_columns(found, kind, label)
            values = of_seeds(own, [columns[n] for n in sorted(columns)], 1 if kind in of_loops else 100)
            if values.size and not np.isnan(values).all():
                panels[kind].append((f"{row}, {label}" if label else row, sorted(columns), values, ceilings.get(label)))
                most = max(most, int((~np.isnan(values).all(0)).sum()))
    deep = max(map(len, panels.values()))
    tables = deep > LINES
    figure, axes = new_figure(len(panels), 1, 0.5 + 0.3 * deep) if tables else new_figure(len(panels))
    for ax, (kind, lines) in zip(axes, panels.items(), strict=True):
        loops, name = kind in of_loops, kind.removeprefix("loops_")
        by_size = not loops or name == "solved"
        ceiling = max((c for *_, c in lines if c), default=None) if loops else None
        if tables:
            draw_medians(ax, lines, loops, ceiling)
        else:
            for i, line in enumerate(lines):
                draw_seeds(ax, *line[1:3], i + len(rows) * loops, line[0], line[3] if loops else None)
            draw_ceiling(ax, ceiling)
            label_axes(ax, "", "mean loops, slowest token" if loops else "exact match (%)",
                       **{} if loops else dict(ylim=(-3, 103)))
        which = "uniform problems" if by_size else f"problems of size {DIFFICULTY_SIZE}"
        ax.set(xlabel="size of a problem" if by_size else f"difficulty: {name}",
               title=f"loops of solved {which}" + f"; +: cut off by num_loops, {ceiling}" * bool(tables and ceiling)
               if loops else f"{kind} problems" + ", exact match in %" * tables)
    of_table = ("One seed" if most == 1 else "From the lowest seed to the highest") + "; dark is worse"
    finish(figure, [] if tables else axes, path, of_table if tables else what_lines_are(most))


@guarded
def draw_waiting(found, path):
    """Exact match against the loops that write the answer, one of them the rule's, a line per number of loops that read
    the problem: a line of panels per row of a sweep, a panel per size, as draw_seeds does.

    found: the rows of the table of sweep.py, with columns read_3_write_24_12, as sweep_tables.columns_of_evaluation
    names them."""
    known = [m.groups() for k in dict.fromkeys(k for r in found for k in r) if (m := WAITED.fullmatch(k))]
    reads, writes, sizes = (list(dict.fromkeys(x)) for x in zip(*known, strict=True))
    rows, most = list(dict.fromkeys(r["row"] for r in found)), 0
    figure, axes = new_figure(len(rows) * len(sizes), len(sizes), 2.2, sharey=True)
    for ax, (row, size) in zip(axes, itertools.product(rows, sizes), strict=True):
        own = [r for r in found if r["row"] == row]
        for i, read in enumerate(reads):
            values = of_seeds(own, [f"read_{read}_write_{write}_{size}" for write in writes], 100)
            name = f"read until {read.replace('_', '.')}" if "_" in read else f"read in {read}"
            draw_seeds(ax, range(len(writes)), values, i, name)
            most = max(most, int((~np.isnan(values).all(0)).sum()))
        label_axes(ax, "loops of writing" if row == rows[-1] else "", "exact match (%)" if size == sizes[0] else "",
                   f"{row}, size {size}", ylim=(-3, 103))
        ax.set_xticks(range(len(writes)), ["by rule" if write == "0" else write for write in writes])
    finish(figure, axes, path, what_lines_are(most))


@guarded
def draw_losses(found, curves, path):
    """A table of the best validation losses of a sweep, a dot per seed, beside what a model costs; and the losses over
    the iterations of the best row of each size of model, at most LINES, in both those of the most seeds first.

    found: the rows of the table of sweep.py; curves: {row: {seed: {iteration: loss}}}."""
    from matplotlib.ticker import EngFormatter  # as in guarded
    rows = {}
    for r in found:
        if r.get("best_val_loss", "") != "":
            rows.setdefault(r["row"], []).append(r)
    losses = {name: sorted(float(r["best_val_loss"]) for r in own) for name, own in rows.items()}
    order, short = sorted(rows, key=lambda name: np.median(losses[name])), EngFormatter(sep="", places=1)
    of_most = sorted(order, key=lambda name: -len(losses[name]))  # in which equal ones keep their order
    cost = {name: [short(float(own[0][k])) if own[0].get(k) else "" for k in ("parameters", "flops_per_token")]
            for name, own in rows.items()}
    best = {tuple(cost[name]): name for name in reversed(of_most)}.values()
    lines = sorted(best, key=of_most.index)[:LINES]
    lowest = min(map(min, losses.values()))
    highest = max(map(max, losses.values()))
    last = min(highest, lowest + 0.25)
    deep = 0.8 + 0.22 * len(order)
    figure, axes = new_figure(2, 1, (deep + 2.8) / 2, height_ratios=[deep, 2.8])
    for y, name in enumerate(order):
        look = (line_style(lines.index(name)) if name in lines else dict(color="0.55", marker="D")) | dict(ls="")
        for x in losses[name]:
            axes[0].plot(min(x, last), y, **look | dict(clip_on=False, marker=">" if x > last else look["marker"]))
    beyond = f"; ▸ beyond {last:.2f}" * (highest > last)
    axes[0].set(xlabel=f"best validation loss (nats per token), a dot per seed{beyond}")
    axes[0].set_yticks(range(len(order)), order)
    beside = axes[0].twinx()
    beside.set_yticks([-1, *range(len(order))], [f"{'params':>7}{'FLOPs':>8}{'loss':>8}", *(
        f"{cost[name][0]:>7}{cost[name][1]:>8}{np.median(losses[name]):>8.4f}" for name in order)],
        fontfamily=["monospace"])
    for ax in (axes[0], beside):
        ax.set_ylim(len(order) - 0.4, -1.4)
    for i, name in enumerate(lines):
        seeds = [*curves.get(name, {}).values()]
        at = sorted(set.intersection(*map(set, seeds))) if seeds else []
        draw_seeds(axes[1], at, [[seed[n] for seed in seeds] for n in at], i, name)
    axes[1].set(xlabel="iteration", ylabel="validation loss (nats per token)", ylim=(lowest - 0.02, lowest + 0.5))
    finish(figure, axes, path, "Above: all rows, with parameters, training FLOPs per token and median loss. Below: the "
           f"best row of each size of model. {what_lines_are(max(map(len, losses.values())))}")


@guarded
def draw_fit(curves, path):
    """Training and validation loss over the iterations, a panel per row of a sweep: where the second rises and the
    first does not, a model learns its rows by heart; curves: those of <name>_curves.csv."""
    names = list(dict.fromkeys(r["row"] for r in curves))
    figure, axes = new_figure(len(names), height=2.1, sharey=True)  # one long training shall not squeeze the others
    for ax, name in zip(axes, names, strict=True):
        found = {(r["seed"], r["iter"]): r for r in curves if r["row"] == name}
        seeds, at = (sorted(set(x)) for x in zip(*found, strict=True))
        for i, (key, label) in enumerate((("val_loss", "validation"), ("train_loss", "training"))):
            draw_seeds(ax, at, [[found.get((seed, n), {}).get(key, math.nan) for seed in seeds] for n in at], i, label)
        place = ax.get_subplotspec()
        label_axes(ax, "iteration" if place.is_last_row() else "",
                   "loss (nats per token)" if place.is_first_col() else "", name, yscale="log")
    finish(figure, axes, path, f"Training and validation loss. {what_lines_are(len({r['seed'] for r in curves}))}")


@guarded
def draw_parts(rows, panels, path):
    """A dot per seed and a stroke at their median for each of the rows, a list of names; a panel per column, {what it
    measures: {row: values of the seeds}}."""
    figure, axes = new_figure(len(panels), height=0.5 + 0.2 * len(rows))
    for ax, (name, known) in zip(axes, panels.items(), strict=True):
        for y, values in ((y, known[row]) for y, row in enumerate(rows) if row in known):
            ax.plot(values, [y] * len(values), "o", color="0.6")
            ax.plot(np.median(values), y, "k|", ms=10)
        ax.set(xlabel=name, ylim=(len(rows) - 0.5, -0.5))
        ax.set_yticks(range(len(rows)), rows if ax.get_subplotspec().is_first_col() else [""] * len(rows))
    finish(figure, axes, path, "A dot per seed, a stroke at their median")


@guarded
def draw_states(rows, path):
    """Norm and delta of the state after every loop, trained weights beside untrained ones, LINES rows of a sweep in a
    line of panels; rows: of <name>_states.csv, of which these may be many loops."""
    rows = [r for r in rows if r.get("seed") == rows[0].get("seed")]  # seeds would lie on each other
    names = list(dict.fromkeys(r["row"] for r in rows))
    groups = [names[i:i + LINES] for i in range(0, len(names), LINES)]
    from matplotlib.ticker import LogFormatter  # as in guarded
    shown = dict(norm="norm of the state h", delta="delta:\n|change of h| / |h|")
    figure, axes = new_figure(4 * len(groups), 4, 2.4)
    for n, (k, what, weights) in enumerate(itertools.product(range(len(groups)), shown, STYLE)):
        ax, model = axes[n], axes[n % 4 // 2 * 2]
        if ax is not model:
            ax.sharey(model)
        own = {name: [r for r in rows if r["row"] == name] for name in groups[k]}
        for i, name in enumerate(own):
            look = line_style(i) | dict(fillstyle=("full", "none", "left", "right")[k % 4])
            first = next(r["class"] for r in own[name] if r["what"] == what)  # the tokens that count stand first
            draw_curves(ax, own[name], what, first, looks={weights: look}, label=name)
        ends = {(min(r["loop"] for r in x if r["what"] == "loss"), max(r["loop"] for r in x)) for x in own.values()}
        for l in {l for l, last in ends if last >= 2 * l}:  # others, of learned steps, do not think on
            ax.axvline(l, color="0.4", lw=1, ls=":", label="the loops of training")
        label_axes(ax, "loop", shown[what] if n % 2 == 0 else "", weights, yscale="log")
        if what == "norm":  # often within a decade, where 1.15 x 10^1 would stand for 11.5
            ax.yaxis.set(major_formatter=LogFormatter(), minor_formatter=LogFormatter())
    finish(figure, axes, path, "Mean over tokens after every loop, the first seed of each row; bands: 95% interval")


@guarded
def draw_loops(table, ceiling, path):
    """Loops of solved problems against the size, for the first two kinds, and against each difficulty with a line per
    size; ceiling: num_loops."""
    kinds = list(dict.fromkeys(r["kind"] for r in table if "m" in r and r["kind"] != "grid"))[:2]
    panels = {None: {f"{kind} problems": [r for r in table if r["kind"] == kind and "loops_most_solved" in r]
                     for kind in kinds}}
    for name in dict.fromkeys(r["kind"] for r in table if r["kind"] in r):
        rows = [r for r in table if r["kind"] == name and r["problems"] >= 10]
        sizes = [n for n in dict.fromkeys(r["n"] for r in rows) if sum(r["n"] == n for r in rows) > 1]
        sizes = [sizes[round(i)] for i in np.linspace(0, len(sizes) - 1, min(LINES, len(sizes)))]
        panels |= {name: {f"size {n}": [r for r in rows if r["n"] == n] for n in sizes}} if sizes else {}
    figure, axes = new_figure(len(panels), height=3.2)
    for ax, (name, lines) in zip(axes, panels.items(), strict=True):
        x, y = (name, "loops") if name else ("n", "loops_most_solved")
        for i, (label, own) in enumerate(lines.items()):
            at, mean, *ends = ([r.get(k, math.nan) for r in own] for k in (x, y, f"{y}_low", f"{y}_high"))
            ax.plot(at, mean, **line_style(i), label=label)
            ax.fill_between(at, *ends, color=line_style(i)["color"], alpha=0.15, lw=0)
            mark_cut(ax, at, mean, ceiling, line_style(i))
        draw_ceiling(ax, ceiling)
        label_axes(ax, f"difficulty: {name}" if name else "size of a problem",
                   "" if name else "mean loops, slowest token of the answer",
                   "all kinds, at least 10 solved problems per point" if name else "by size")
        ax.legend()
    finish(figure, axes, path, "Loops of solved problems, of the slowest token of the answer; bands: 95% interval")


@guarded
def draw_frontier(table, ceiling, path):
    """Accuracy against loops, a panel per rule: the rule, its thresholds beside it, its random control and the fixed
    depths; ceiling: num_loops, None for the deepest of those."""
    from matplotlib.ticker import NullFormatter, ScalarFormatter  # as in guarded
    rows = sorted((r for r in table if r["kind"] == "frontier"), key=lambda r: r["loops"])
    rules = sorted({r["rule"] for r in rows} - {"fixed"})
    ceiling = ceiling or max(r["loops"] for r in rows if r["rule"] == "fixed")
    lowest = min(80, 100 * min(r.get(k, 1) for r in rows for k in ("accuracy", "random_accuracy")) // 20 * 20)
    figure, axes = new_figure(len(rules), height=3, sharey=True)
    for ax, rule in zip(axes, rules, strict=True):
        for i, (name, prefix, text) in enumerate((
                (rule, "", "halting rule, beside its points the threshold"), ("fixed", "", "fixed depth"),
                (rule, "random_", "random halting, the same loops"))):
            own = [r for r in rows if r["rule"] == name]
            x = [r["loops"] for r in own]
            y, low, high = ([100 * r[prefix + key] for r in own] for key in ("accuracy", "low", "high"))
            ax.plot(x, y, **line_style(i), label=text, markevery=max(1, len(x) // 20), zorder=3 - 0.1 * i)
            ax.fill_between(x, low, high, color=line_style(i)["color"], alpha=0.15, lw=0)
        ax.set(xscale="log", xlim=(0.5, 1.1 * ceiling), title=f"rule {rule}",
               ylim=(1.1 * lowest - 10, 140 - 0.4 * lowest), yticks=np.linspace(lowest, 100, 5))
        ax.xaxis.set(major_formatter=ScalarFormatter(), minor_formatter=NullFormatter())
        ax.set_xticks([2 ** i for i in range(11) if 2 ** i <= ceiling])
        ax.set(xlabel="loops per token of the answer")
        if ax.get_subplotspec().is_first_col():
            ax.set_ylabel("exact match (%), mean over sizes")
    for ax, rule in zip(axes, rules, strict=True):
        own = [r for r in rows if r["rule"] == rule]
        name_points(ax, [r["loops"] for r in own], [100 * r["accuracy"] for r in own],
                    [f"{r['threshold']:g}" for r in own])
        ax.axvline(ceiling, color="0.35", ls=(0, (8, 3)), lw=1, label=f"num_loops, the most allowed: {ceiling:g}")
    finish(figure, axes, path, f"{rows[0]['problems']} problems per point; bands: 95% interval; thresholds without "
           "room for their names are in the table")


# ---- of analyze.py

def pick(rows, what, weights, group=None):
    """The rows of one statistic as arrays: loop, value, low, high; and their classes."""
    found = [r for r in rows if (r["what"], r["weights"]) == (what, weights) and group in (None, r["class"])]
    columns = ([math.nan if r[key] == "" else r[key] for r in found] for key in ("loop", "value", "low", "high"))
    return (*map(np.array, columns), [r["class"] for r in found])


def draw_curves(ax, rows, what, group=None, name="", looks=STYLE, **style):
    """Trained and untrained, or whatever weights `looks` has, against the loop, with the interval as a band."""
    for weights in looks:
        x, y, low, high, _ = pick(rows, what, weights, group)
        look = looks[weights] | dict(ms=4, markevery=max(1, len(x) // 12), label=f"{name} {weights}".strip()) | style
        ax.plot(x, y, **look)
        step = "mid" if "drawstyle" in style else None
        ax.fill_between(x, low, high, color=look["color"], alpha=0.2, lw=0, step=step)


def draw_bars(ax, rows, what, groups):
    """Bars of trained (filled) and untrained (hatched), a pair for each of the groups."""
    for i, weights in enumerate(STYLE):
        _, y, low, _, classes = pick(rows, what, weights)
        y, low = (np.array([values[classes.index(g)] for g in groups]) for values in (y, low))
        ax.bar(np.arange(len(groups)) + 0.4 * i - 0.2, y, 0.38, yerr=np.nan_to_num(y - low), color=("0.3", "w")[i],
               edgecolor="k", hatch=("", "///")[i], label=weights)
    ax.set_xticks(range(len(groups)), groups, rotation=90)


@guarded
def draw_trajectories(rows, s, path):
    figure, axes = new_figure(8)
    names = dict(entropy="entropy of the guess (nats)", loss="loss (nats per token)",
                 confidence="largest probability", delta="delta: |change of h| / |h|",
                 norm="norm of the state h", flips="share of guesses that change",
                 cosine_x0="cosine of h and x0", right_to_stay="share that is right from here on")
    for ax, (key, y) in zip(axes, names.items(), strict=True):
        draw_curves(ax, rows, key, s.first)
        ax.axvline(s.L, color="0.4", lw=1, ls=":", label=f"the last loop with a learned step encoding, {s.L}"
                   if s.limit == s.L else f"the loops of training, {s.L}")
        label_axes(ax, "loop", y, yscale="log" if key == "delta" else "linear")
    finish(figure, axes, path, f"{s.title}: mean over tokens after every loop; bands: 95% interval")


@guarded
def draw_halting(rows, s, path):
    """Loops by the rule and by kind of token; the distribution of confidence, and the loops it would give."""
    figure, axes = new_figure(2 * (s.rule != "none") + 3 * s.halting)
    if s.rule != "none":
        draw_curves(axes[0], rows, "loops_histogram", s.first, drawstyle="steps-mid")
        label_axes(axes[0], "loops taken", "share of tokens", f"halting: {s.rule}")
        kinds = pick(rows, "loops", "trained")[-1]
        draw_bars(axes[1], rows, "loops", [k for k in s.kinds if k in kinds])
        label_axes(axes[1], "what the token writes", "mean loops", whole=False)
    if s.halting:
        ax, thresholds = axes[-3], pick(rows, "confidence_never_passes", "trained")[-1]
        for q, ls in (("0.05", ":"), ("0.5", "-"), ("0.95", "--")):
            draw_curves(ax, rows, "confidence_quantile", q, ls=ls, name=f"{float(q):.0%} quantile,")
        for t in thresholds:
            ax.axhline(float(t), color="k", lw=0.6)
        label_axes(ax, "loop", "largest probability", f"quantiles; lines: thresholds {', '.join(thresholds)}",
                   ylim=(-0.03, 1.03))
        for ax, t in zip(axes[-2:], thresholds, strict=True):
            draw_curves(ax, rows, "confidence_loops_histogram", t, drawstyle="steps-mid")
            label_axes(ax, "loops taken", "share of tokens", f"halting by confidence at {t}")
    finish(figure, axes, path, f"{s.title}: loops that tokens take, and how sure they are after each")


@guarded
def draw_probes(rows, s, path):
    groups = list(dict.fromkeys(pick(rows, "probe_accuracy", "trained")[-1]))
    figure, axes = new_figure(len(groups))
    for ax, group in zip(axes, groups, strict=True):
        draw_curves(ax, rows, "probe_accuracy", group, "linear probe")
        draw_curves(ax, rows, "one_probe_accuracy", group, f"that of loop {s.L},", ls=":", marker="")
        if group in pick(rows, "lens_accuracy", "trained")[-1]:
            draw_curves(ax, rows, "lens_accuracy", group, "logit lens", marker="^", mfc="w")
        usual = pick(rows, "majority_accuracy", "trained", group)[1][0]
        ax.axhline(usual, color="k", ls=":", lw=1, label="always the commonest")
        ax.axvline(s.L, color="0.4", lw=1, ls=":", label=f"the loops of training, {s.L}")
        label_axes(ax, "loop (0: the embedding)", "accuracy (share)", group)
    finish(figure, axes, path, f"{s.title}: what can be read from the state after each loop; bands: 95% interval")


@guarded
def draw_fixed_points(rows, s, path):
    figure, axes = new_figure(4)
    for ax, weights in zip(axes, STYLE, strict=False):
        for eps, marker in zip(s.epsilons, "osd^v", strict=True):
            x, y, *_ = pick(rows, "converged_by", weights, f"{eps:g}")
            ax.plot(x, y, "k-", marker=marker, mfc="w", lw=0.8, markevery=max(1, len(x) // 12),
                    label=f"delta < {eps:g}")
        label_axes(ax, "loop", "share that was below by then", weights, ylim=(-0.03, 1.03))
    for weights, look in STYLE.items():
        _, y, _, _, periods = pick(rows, "return_after", weights)
        axes[2].plot([int(p.split()[0]) for p in periods], y, **look, ms=4, label=weights)
        for ax, what, name in ((axes[2], "delta", "delta (p = 1)"), (axes[3], "spectral_radius", "spectral radius")):
            y = pick(rows, what, weights, s.first if what == "delta" else None)[1]
            ax.axhline(y[-1 if what == "delta" else 0], color=look["color"], ls=":", lw=1, label=f"{name}, {weights}")
    label_axes(axes[2], "period p (loops)", "|h_l - h_(l-p)| / |h_l|", f"at loop {s.total}", yscale="log")
    draw_curves(axes[3], rows, "push_ratio", "one loop")
    label_axes(axes[3], "loop", "growth of a push in one loop", f"pushed by {s.push:g}")
    finish(figure, axes, path, f"{s.title}: does the state h come to rest? Bands: 95% interval")


@guarded
def draw_difficulty(rows, s, path):
    """Loops against each difficulty: until the guess settles, by the rule, until delta is small."""
    figure, axes = new_figure(len(s.difficulty))
    names = dict(settles="guess settles", loops=f"halts by {s.rule}", convergence_loop=f"delta < {s.converged:g}")
    for ax, key in zip(axes, s.difficulty, strict=True):
        for (what, name), marker in zip(names.items(), "os^", strict=True):
            for weights, look in STYLE.items():
                _, y, low, _, groups = pick(rows, what, weights)
                at = [i for i, g in enumerate(groups) if re.fullmatch(rf"{key} [-+.e\d]+", g)]
                if at and np.ptp(y[at]):
                    ax.errorbar([float(groups[i].split()[1]) for i in at], y[at], np.nan_to_num(y - low)[at],
                                **look | dict(marker=marker), ms=4, capsize=2, label=f"{name}, {weights}")
        label_axes(ax, f"difficulty: {key.replace('_', ' ')}", "loops (mean)")
    finish(figure, axes, path, f"{s.title}: do hard tokens take more loops? Bars: 95% interval; counts that are "
           "the same at all levels are left out")


def draw_pairs(ax, rows, what, weights, title):
    """A number of each loop of one model (rows) beside each of the other one, in percent; a frame about the largest of
    a row."""
    from matplotlib.patches import Rectangle  # as in guarded
    at, values, _, _, groups = pick(rows, what, weights)
    other = np.array([int(g.split()[1]) for g in groups])
    cells = np.full((at.max() - at.min() + 1, other.max() - other.min() + 1), np.nan)
    cells[at.astype(int) - int(at.min()), other - other.min()] = 100 * values
    texts = [["" if np.isnan(x) else f"{x:.0f}" for x in line] for line in cells]
    draw_cells(ax, cells, texts, range(int(at.min()), int(at.max()) + 1), range(other.min(), other.max() + 1), 100)
    for y, x in enumerate(np.nanargmax(cells, 1)):
        ax.add_patch(Rectangle((x - 0.45, y - 0.45), 0.9, 0.9, fc="none", ec="k", lw=1))
    ax.set(xlabel="loop or layer of the other", ylabel="loop or layer of this one", title=title)


@guarded
def draw_beside(rows, s, path):
    """A model and another one: what each knows after each of its loops, and each loop of one beside each of the other.
    """
    labels = [g for g in ("next token", "token read") if g in pick(rows, "probe_accuracy", "beside")[-1]]
    curves = [("entropy", s.first, "entropy of the guess (nats)"), ("loss", s.first, "loss (nats per token)"),
              ("delta", s.first, "delta: |change of h| / |h|")]
    curves += [("lens_accuracy", "next token", "logit lens: next token (share)")] * ("next token" in labels)
    curves += [("probe_accuracy", g, f"probe: {g} (share)") for g in labels]
    figure, axes = new_figure(len(curves) + 3)
    for ax, (what, group, y) in zip(axes, curves, strict=False):
        draw_curves(ax, rows, what, group, looks=SIDES)
        label_axes(ax, "loop or layer", y, yscale="log" if what == "delta" else "linear")
    shown = (("lens_agreement", "trained", "% of tokens with one guess"), ("cka", "trained", "CKA of the states, in %"),
             ("cka", "untrained", "the same of untrained weights"))
    for ax, pair in zip(axes[len(curves):], shown, strict=True):
        draw_pairs(ax, rows, *pair)
    finish(figure, axes[:len(curves)], path, f"{s.title} (trained); and {s.beside} (beside)")


@guarded
def draw_energy(rows, s, path):
    """The energy, or that of the head that was taught: along the loops, along a line, how often it falls, how steep it
    is, and the loss meanwhile."""
    what = "energy" if pick(rows, "energy", "trained")[-1] else "taught_energy"
    levels = list(dict.fromkeys(pick(rows, what, "trained")[-1]))[1:]
    hard = [g for g in levels if g.rpartition(" ")[0] == next(reversed(s.difficulty or {}), None)]
    figure, axes = new_figure(5 + bool(hard))
    looks = dict(right=dict(color="#2b5fae", marker="o"), wrong=dict(color="#b03a2e", marker="^", ls="--"))
    for group, look in looks.items():
        draw_curves(axes[0], rows, what, group, group, looks=dict(trained=look))
        _, y, low, high, at = pick(rows, f"{what}_on_line", "trained")
        of = [i for i, g in enumerate(at) if g.startswith(f"{group} ")]
        if of:
            x = [float(at[i].split()[1]) for i in of]
            axes[1].plot(x, y[of], **look, ms=4, label=f"{group} trained")
            axes[1].fill_between(x, low[of], high[of], color=look["color"], alpha=0.2, lw=0)
    label_axes(axes[0], "loop (0: before the first)", what.replace("_", " "), "right and wrong tokens")
    label_axes(axes[1], f"from the first state (0) to that after loop {s.L} (1)", what.replace("_", " "),
               f"on a line, the past that of loop {s.L}", whole=False)
    draw_curves(axes[2], rows, f"{what}_falls", s.first)
    if what == "energy":
        draw_curves(axes[2], rows, "energy_falls_past_still", s.first, "past still,", ls=":", marker="x")
    label_axes(axes[2], "loop", "share of tokens", "whose energy falls", ylim=(-0.03, 1.03))
    draw_curves(axes[3], rows, f"{what}_slope", s.first)
    label_axes(axes[3], "loop (0: before the first)", "norm of its gradient", "how steep")
    axes[3].set_ylim(bottom=0)
    draw_curves(axes[4], rows, "loss", s.first)
    label_axes(axes[4], "loop", "loss (nats per token)", "the answer meanwhile", yscale="log")
    for i, group in enumerate(hard):
        shade = str(0.75 * (1 - i / max(1, len(hard) - 1)))
        draw_curves(axes[5], rows, what, group, group, looks=dict(trained=dict(color=shade, marker="o")))
    if hard:
        label_axes(axes[5], "loop (0: before the first)", what.replace("_", " "), "by difficulty")
    for ax in axes[2:5]:
        ax.axvline(s.L, color="0.4", lw=1, ls=":", label=f"trained loops: {s.L}")
    finish(figure, axes, path, f"{s.title}: an energy of each token; bands: 95% interval")


@guarded
def draw_example(s, decode, path):
    """Validation text, each character dark by the loops of the token that writes it."""
    shown = slice(0, -(-384 // s.Y.size(1)))  # sequences, one after the other
    text = [decode(t).replace("\n", "⏎") for t in s.Y[shown].flatten().tolist()]
    most, width = max(2, *(int(x.max()) for x in s.loops.values())), 64
    lines = -(-len(text) // width)
    figure, axes = new_figure(2, 1, 0.5 + 0.22 * lines)
    blank = [""] * (lines * width - len(text))
    for ax, (weights, loops) in zip(axes, s.loops.items(), strict=True):
        shade = np.full(lines * width, np.nan)
        shade[:len(text)] = loops[shown].flatten()
        image = draw_cells(ax, shade.reshape(lines, width), np.reshape([*text, *blank], (lines, width)), [], [], most)
        ax.set(title=f"{weights}: loops of the token that writes each character")
    figure.colorbar(image, ax=axes, label="loops", fraction=0.05)
    save(figure, path, s.title)


def draw_analysis(rows, s, folder, decode):
    """Every figure there is something to show in, and their names; decode turns a token into text."""
    drawn = dict(trajectories=draw_trajectories, fixed_points=draw_fixed_points)
    if s.rule != "none" or s.halting:
        drawn["halting"] = draw_halting
    if pick(rows, "probe_accuracy", "trained")[-1]:
        drawn["probes"] = draw_probes
    if s.difficulty:
        drawn["difficulty"] = draw_difficulty
    if s.other:
        drawn["beside"] = draw_beside
    if s.energy:
        drawn["energy"] = draw_energy
    names = [f"{name}.png" for name, draw in drawn.items() if draw(rows, s, os.path.join(folder, f"{name}.png"))]
    if s.first == "all" and s.loops and draw_example(s, decode, os.path.join(folder, "example.png")):
        names.append("example.png")
    return names
