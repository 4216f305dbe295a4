"""Every figure, drawn from the rows of tables alone; only the example of analyze.py also shows a text and the loops of
its tokens. They read well in black and white. A figure that cannot be drawn or written costs a line, not the run.

Figures of analyze.py take the rows, the namespace s of what was looked at, with the settings they need, and a path.
"""
import functools
import math
import os
import re
import sys
import warnings

import numpy as np

import outputs
import runtime

DIFFICULTY_SIZE = 12  # of the problems whose loops sweep.py tells by their difficulties
TRACES, TOKENS = 6, 60  # that a heat map shows at most: sequences, and tokens of each
STYLE = {"trained": dict(color="k", marker="o", ls="-"), "untrained": dict(color="0.5", marker="s", ls="--")}


def guarded(draw):
    """draw, whose last argument is the path of its figure, made to return whether the figure is there: whatever goes
    wrong is said in one line, since the numbers are in a table by then."""
    @functools.wraps(draw)
    def drawn(*arguments):
        try:
            draw(*arguments)
        except (Exception, SystemExit) as e:  # matplotlib or its fonts may be missing, the disk full
            print(f"no figure {arguments[-1]}: {type(e).__name__}: {runtime.first_line(e)}", file=sys.stderr)
            return False
        return True
    return drawn


def new_figure(count, size=None, share=True):
    """A figure and so many axes: one row of the size given, sharing the scale of y or not, else 3 in a line, each by
    itself.

    It is none of pyplot's, so it never needs a screen, and nothing has to close it.
    """
    from matplotlib.figure import Figure  # only here: it takes a second, and most evaluations draw nothing
    columns = count if size else min(count, 2 if count == 4 else 3)
    lines = -(-count // columns)
    figure = Figure(figsize=size or (4.4 * columns, 3.3 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False, sharey=bool(size) and share)
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
    if missing:
        outputs.warn(f"no installed font has {' '.join(sorted(missing)[:5])}{' ...' * (len(missing) > 5)}: boxes in "
                     "figures; install one, for example: apt install fonts-noto-cjk")
    return families


def save(figure, path, title="", fontsize=9, dpi=110):
    """Write a figure; its texts are no mathematics, and in fonts that have their characters."""
    if title:
        figure.suptitle(title, fontsize=fontsize)
    texts = texts_of(figure)
    families = families_for("".join(sorted(filter(str.isprintable, set().union(*(t.get_text() for t in texts))))))
    for text in texts:
        text.set(parse_math=False, fontfamily=families)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # said by then, in one line
        figure.savefig(path, dpi=dpi, format=os.path.splitext(path)[1][1:] or "png")  # at this path and no other


# ---- of bench.py

@guarded
def draw_writing(rows, path):
    """Quality of models against the tokens that one sequence gets in a second; rows: of bench.py --decode=True."""
    found = {task: [r for r in rows if r["table"] == task and "quality" in r] for task in ("addition", "text")}
    found = {task: points for task, points in found.items() if points}
    if not found:
        return
    figure, axes = new_figure(len(found), (5.5 * len(found), 4), share=False)
    for ax, (task, points) in zip(axes, found.items(), strict=True):
        for i, r in enumerate(points):
            ax.plot(float(r["tokens_s_1"]), float(r["quality"]), "kos^Dv<>*X"[1 + i % 9], color=str(0.6 * (i % 2)),
                    label=r["case"])
        ax.set(xlabel="tokens/s, one sequence", xscale="log",
               ylabel="exact match" if task != "text" else "validation loss (nats per token)", title=task)
        ax.legend(fontsize=7)
    save(figure, path)


# ---- of train.py and sample.py

@guarded
def draw_training(rows, title, path):
    """The loss of training batches, and the losses of the evaluations; rows: of log.csv."""
    figure, (ax,) = new_figure(1, (6, 4))
    for key, name, style in (("loss", "training batch", "0.6"), ("train_loss", "training set", "k:"),
                             ("val_loss", "validation set", "ko-")):
        points = [(int(r["iter"]), float(r[key])) for r in rows if r.get(key)]
        if points:
            ax.plot(*zip(*points, strict=True), style, label=name, ms=4)
    ax.set(xlabel="iteration", ylabel="loss (nats per token)", yscale="log", title=title)
    ax.legend()
    save(figure, path, dpi=120)


@guarded
def draw_traces(traces, titles, largest, path):
    """Heat maps, one per sequence: tokens down, loops across, dark where the model is unsure, its guesses written in.

    traces: for each sequence its rows, as trace_rows of sample.py makes them; largest: entropy in nats that is black.
    """
    traces, titles = traces[:TRACES], titles[:TRACES]
    longest = min(TOKENS, max(map(len, traces)))
    L = max(1, *(r["loops"] for rows in traces for r in rows))
    figure, axes = new_figure(len(traces), (1.2 + len(traces) * (0.9 + 0.42 * L), 1.2 + 0.28 * longest), share=False)
    for ax, rows, title in zip(axes, traces, titles, strict=True):
        rows = rows[:longest]
        entropy = np.array([[math.nan if e is None else e for e in r["entropy"][:L]] for r in rows])  # (T,L)
        image = ax.imshow(entropy, cmap="Greys", vmin=0, vmax=largest, aspect="auto")
        ax.set_facecolor("#dfe9f2")  # where a token had halted
        for t, l in zip(*np.nonzero(~np.isnan(entropy)), strict=True):
            ink = "w" if entropy[t, l] > 0.6 * largest else "k"
            ax.text(l, t, rows[t]["prediction"][l], ha="center", va="center", color=ink, fontsize=9)
        ax.set_xticks(range(L), range(1, L + 1))
        ax.set_yticks(range(len(rows)), [r["reads"] + (f" → {r['writes']}" if r["writes"] else "") for r in rows])
        ax.set(xlabel="loop", title=title)
        ax.title.set_fontsize(9)
    axes[0].set_ylabel("token read → written")
    figure.colorbar(image, ax=axes, label="entropy (nats); tinted: halted", shrink=min(1, 5 / longest + 0.3))
    save(figure, path, dpi=130)


# ---- of evaluate.py and sweep.py

def finish(figure, axes, path, title=""):
    """Grid and legend of every panel, of many lines one legend beside them; write the figure and say so."""
    lines = dict(zip(*reversed(axes[0].get_legend_handles_labels()), strict=True))
    many = len(lines) > 6
    if many:
        figure.legend(lines.values(), lines, fontsize=8, loc="outside right upper")
    for ax in axes:
        ax.grid(alpha=0.3)
        if ax.has_data() and not (many and set(ax.get_legend_handles_labels()[1]) <= set(lines)):
            ax.legend(fontsize=8)
    save(figure, path, title, fontsize=10, dpi=130)
    print(f"figure: {path}")


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


def line_style(i):
    """How line i looks: 28 that can be told apart without colours."""
    return dict(color=str(0.6 * (i % 3) / 2), marker="osv^DxP"[i % 7], ls=("-", "--", ":", "-.")[i % 4], ms=4)


def with_seeds(name, count):
    return f"{name} ({count} seed{'s' * (count > 1)})"


def draw_seeds(ax, points, i, name):
    """Line i: the median of points {x: [a value per seed]}, and their range as a band."""
    x, values = [*points], [*points.values()]
    if x:
        ax.plot(x, [np.median(v) for v in values], label=with_seeds(name, max(map(len, values))), **line_style(i))
        ax.fill_between(x, [min(v) for v in values], [max(v) for v in values], color=line_style(i)["color"], alpha=0.2,
                        lw=0)


@guarded
def draw_sweep(found, labels, path):
    """Exact match against the size, a panel per kind of problems, and where runs halt the loops of solved ones against
    that and, if known, each difficulty: a line per row of the sweep, or per row and evaluation that halts; the median
    of the seeds, and their range as a band.

    found: the rows of the table of sweep.py, with columns uniform_8, hard_8, kl_loops_solved_8, ...; labels: those of
    its evaluations, "kl" of these."""
    halting = [label for label in dict.fromkeys(["", *labels])
               if halts(found, size_columns(found, "loops_solved", label).values())]
    kinds = kinds_told(found, "", labels)[0]
    of_loops = list(dict.fromkeys(k for label in halting for k in kinds_told(found, label, labels)[1]))
    size = None if len(of_loops) > 1 or len(kinds) > 2 else (14 if halting else 10, 3.8)
    figure, axes = new_figure(len(kinds) + len(of_loops), size, share=not halting)
    rows = dict.fromkeys(r["row"] for r in found)
    for ax, kind in zip(axes, (*kinds, *of_loops), strict=True):
        loops, name = kind in of_loops, kind.removeprefix("loops_")
        for i, (row, label) in enumerate((row, label) for row in rows for label in (halting if loops else [""])):
            own, points = [r for r in found if r["row"] == row], {}
            for n, k in sorted(size_columns(found, kind, label).items()):
                if values := [float(r[k]) * (1 if loops else 100) for r in own if r.get(k, "") != ""]:
                    points[n] = values
            draw_seeds(ax, points, i, f"{row}, {label}" if label else row)
        by_size = not loops or name == "solved"
        ax.set(xlabel="size" if by_size else name)
        ax.xaxis.get_major_locator().set_params(integer=True)
        if loops:
            which = "uniform problems" if by_size else f"problems of size {DIFFICULTY_SIZE}"
            ax.set(ylabel="loops of the slowest token", title=f"solved {which}, mean")
        else:
            ax.set(ylim=(-3, 103), title=f"{kind} problems")
    axes[0].set(ylabel="exact match (%), median and range of seeds" if size else "exact match (%)")
    finish(figure, axes, path)


@guarded
def draw_losses(found, curves, path):
    """The best validation loss of every row of a sweep against its FLOPs and its parameters, and the losses over the
    iterations: medians of the seeds, and their ranges as bars and bands.

    found: the rows of the table of sweep.py; curves: {row: {seed: {iteration: loss}}}."""
    from matplotlib import ticker  # as in new_figure
    figure, axes = new_figure(3, (14, 3.8), share=False)
    for i, name in enumerate(dict.fromkeys(r["row"] for r in found)):
        own = [r for r in found if r["row"] == name and r.get("best_val_loss", "") != ""]
        losses = [float(r["best_val_loss"]) for r in own]
        for ax, key in zip(axes, ("flops_per_token", "parameters"), strict=False):
            if losses and own[0].get(key):
                middle = np.median(losses)
                ax.errorbar([float(own[0][key])], [middle], [[middle - min(losses)], [max(losses) - middle]], capsize=3,
                            label=with_seeds(name, len(losses)), **line_style(i) | dict(ls=""))
        seeds = curves.get(name, {}).values()
        at = sorted(set.intersection(*map(set, seeds))) if seeds else []
        draw_seeds(axes[2], {n: [seed[n] for seed in seeds] for n in at}, i, name)
    best = [float(r["best_val_loss"]) for r in found if r.get("best_val_loss", "") != ""]
    for ax, x in zip(axes, ("training FLOPs per token", "parameters"), strict=False):
        ax.set(xlabel=x, xscale="log")
        ax.xaxis.set(major_locator=ticker.LogLocator(subs=(1, 2, 5)), major_formatter=ticker.EngFormatter(sep=""),
                     minor_formatter=ticker.NullFormatter())
    axes[2].set(xlabel="iteration")
    axes[0].set(ylabel="best validation loss (nats per token)", title="median and range of seeds")
    axes[2].set(ylabel="validation loss (nats per token)", ylim=(min(best) - 0.02, min(best) + 0.5))
    finish(figure, axes, path)


def draw_difficulty(ax, rows, name):
    """Mean loops of solved problems against a difficulty, a line per size; returns the means."""
    sizes = [n for n in dict.fromkeys(r["n"] for r in rows) if sum(r["n"] == n for r in rows) > 1]
    if len(sizes) > 6:  # more lines cannot be told apart
        sizes = [sizes[round(i)] for i in np.linspace(0, len(sizes) - 1, 6)]
    means = []
    for i, n in enumerate(sizes):
        own = [r for r in rows if r["n"] == n]
        mean = [r["loops"] for r in own]
        ax.errorbar([r[name] for r in own], mean, [r["loops_high"] - r["loops"] for r in own], capsize=2,
                    fmt="osD^v*"[i], ls=("-", "--", "-.", ":")[i % 4], color=str(0.1 * i), label=f"size {n}")
        means += mean
    ax.set(xlabel=name, title="all kinds, at least 10 solved problems a point")
    return means


@guarded
def draw_loops(table, path):
    """Loops of solved problems against the size, for the first two kinds, and against each difficulty with a line per
    size."""
    kinds = list(dict.fromkeys(r["kind"] for r in table if "m" in r and r["kind"] != "grid"))[:2]
    names = list(dict.fromkeys(r["kind"] for r in table if r["kind"] in r))
    figure, axes = new_figure(1 + len(names), (5 + 5 * len(names), 3.8))
    means = []
    for kind, style, fill in zip(kinds, ("k-o", "k--s"), ("k", "w"), strict=False):
        own = [r for r in table if r["kind"] == kind and "loops_most_solved" in r]
        n, mean = [r["n"] for r in own], [r["loops_most_solved"] for r in own]
        ends = [[r.get(f"loops_most_solved_{end}", math.nan) for r in own] for end in ("low", "high")]
        axes[0].plot(n, mean, style, mfc=fill, label=f"{kind} problems")
        axes[0].fill_between(n, *ends, color="k", alpha=0.15, lw=0)
        means += mean
    for ax, name in zip(axes[1:], names, strict=True):
        means += draw_difficulty(ax, [r for r in table if r["kind"] == name and r["problems"] >= 10], name)
    if means:  # the interval of the mean of two problems would take the whole axis
        axes[0].set_ylim(min(means) - 0.5, max(means) + 0.5)
    axes[0].set(xlabel="size", ylabel="loops of the slowest token of the answer",
                title="solved problems: mean and 95% interval")
    for ax in axes:
        ax.xaxis.get_major_locator().set_params(integer=True)
    finish(figure, axes, path)


@guarded
def draw_frontier(table, path):
    """Accuracy against loops, a panel per rule: the rule, its random control and the fixed depths."""
    rows = sorted((r for r in table if r["kind"] == "frontier"), key=lambda r: r["loops"])
    rules = sorted({r["rule"] for r in rows} - {"fixed"})
    figure, axes = new_figure(len(rules), (0.6 + 3.1 * len(rules), 3.8))
    for ax, rule in zip(axes, rules, strict=True):
        for name, prefix, text, style, fill in (
                ("fixed", "", "fixed depth", "k--s", "w"), (rule, "", rule, "k-o", "k"),
                (rule, "random_", "random, the same loops", "k:^", "w")):
            own = [r for r in rows if r["rule"] == name]
            x = [r["loops"] for r in own]
            y, low, high = ([100 * r[prefix + key] for r in own] for key in ("accuracy", "low", "high"))
            ax.plot(x, y, style, mfc=fill, ms=5, label=text)
            ax.fill_between(x, low, high, color="k", alpha=0.12, lw=0)
        ax.set(xlabel="loops per token of the answer", title=rule)
    axes[0].set_ylabel("exact match (%), mean over sizes")
    finish(figure, axes, path, f"{rows[0]['problems']} problems a point; bands: 95% interval")


# ---- of analyze.py

def pick(rows, what, weights, group=None):
    """The rows of one statistic as arrays: loop, value, low, high; and their classes."""
    found = [r for r in rows if (r["what"], r["weights"]) == (what, weights) and group in (None, r["class"])]
    columns = ([math.nan if r[key] == "" else r[key] for r in found] for key in ("loop", "value", "low", "high"))
    return (*map(np.array, columns), [r["class"] for r in found])


def label_axes(ax, x, y, title="", whole=True, **more):
    """Names of the axes; whole: only whole numbers stand on the x axis."""
    ax.set(xlabel=x, ylabel=y, **more)
    ax.set_title(title, fontsize=9)
    if whole:
        ax.xaxis.get_major_locator().set_params(integer=True)


def draw_curves(ax, rows, what, group=None, name="", **style):
    """Trained and untrained against the loop, with the interval as a band."""
    for weights in STYLE:
        x, y, low, high, _ = pick(rows, what, weights, group)
        look = STYLE[weights] | dict(ms=4, markevery=max(1, len(x) // 12), label=f"{name} {weights}".strip()) | style
        ax.plot(x, y, **look)
        ax.fill_between(x, low, high, color=look["color"], alpha=0.2, lw=0)


def bars(ax, rows, what, groups=None, group=None):
    """Bars of trained (filled) and untrained (hatched): a bar for each of the groups, or for each loop of one group."""
    for i, weights in enumerate(STYLE):
        x, y, low, _, classes = pick(rows, what, weights, group)
        if groups:
            y, low = (np.array([values[classes.index(g)] for g in groups]) for values in (y, low))
            x = np.arange(len(groups))
        ax.bar(x + 0.4 * i - 0.2, y, 0.38, yerr=np.nan_to_num(y - low), color=("0.3", "w")[i], edgecolor="k",
               hatch=("", "///")[i], label=weights)
    if groups:
        ax.set_xticks(range(len(groups)), groups, rotation=35, ha="right", fontsize=7)


@guarded
def draw_trajectories(rows, s, path):
    figure, axes = new_figure(6)
    names = dict(entropy="entropy of the readout (nats)", loss="loss (nats per token)",
                 confidence="largest probability", delta="delta: relative change of the state",
                 norm="norm of the state h", flips="arg-max flips (share)")
    for ax, (key, y) in zip(axes, names.items(), strict=True):
        draw_curves(ax, rows, key, s.first)
        ax.axvline(s.L, color="0.6", lw=0.8, ls=":")
        label_axes(ax, "loop l", y, yscale="log" if key == "delta" else "linear")
    axes[0].legend(fontsize=7)
    save(figure, path, f"{s.title}; " + (
        f"the learned step encoding ends at loop {s.L}" if s.limit == s.L else f"dotted: the {s.L} loops of training"))


@guarded
def draw_halting(rows, s, path):
    """Loops by the rule and by kind of token; the distribution of confidence, and the loops it would give."""
    figure, axes = new_figure(2 * (s.rule != "none") + 3 * s.halting)
    if s.rule != "none":
        bars(axes[0], rows, "loops_histogram", group=s.first)
        label_axes(axes[0], "loops taken", "share of tokens", f"halting: {s.rule}")
        kinds = pick(rows, "loops", "trained")[-1]
        bars(axes[1], rows, "loops", [k for k in s.kinds if k in kinds])
        label_axes(axes[1], "what the token writes", "mean loops", whole=False)
    if s.halting:
        ax, thresholds = axes[-3], pick(rows, "confidence_never_passes", "trained")[-1]
        for q, ls in (("0.05", ":"), ("0.5", "-"), ("0.95", "--")):
            draw_curves(ax, rows, "confidence_quantile", q, ls=ls, name=f"{float(q):.0%}")
        for t in thresholds:
            ax.axhline(float(t), color="k", lw=0.6)
        label_axes(ax, "loop l", "largest probability", f"quantiles; lines: thresholds {', '.join(thresholds)}")
        ax.set(ylim=(-0.03, 1.4), yticks=np.linspace(0, 1, 6))
        ax.legend(fontsize=6, ncols=3, loc="upper center")
        for ax, t in zip(axes[-2:], thresholds, strict=True):
            bars(ax, rows, "confidence_loops_histogram", group=t)
            label_axes(ax, "loops taken", "share of tokens", f"halting by confidence at {t}")
    axes[0].legend(fontsize=7)
    save(figure, path, s.title)


@guarded
def draw_probes(rows, s, path):
    groups = list(dict.fromkeys(pick(rows, "probe_accuracy", "trained")[-1]))
    figure, axes = new_figure(len(groups))
    for ax, group in zip(axes, groups, strict=True):
        draw_curves(ax, rows, "probe_accuracy", group, "linear probe")
        if group in pick(rows, "lens_accuracy", "trained")[-1]:
            draw_curves(ax, rows, "lens_accuracy", group, "logit lens", marker="^", mfc="w")
        ax.axhline(pick(rows, "majority_accuracy", "trained", group)[1][0], color="k", ls=":", lw=1, label="commonest")
        ax.axvline(s.L, color="0.6", lw=0.8, ls=":")
        label_axes(ax, "loop l (0: the embedding)", "accuracy", group)
    axes[0].legend(fontsize=7)
    save(figure, path, s.title)


@guarded
def draw_fixed_points(rows, s, path):
    figure, axes = new_figure(4 + len(s.difficulty))
    for ax, weights in zip(axes, STYLE, strict=False):
        for eps, marker in zip(s.epsilons, "osd^v", strict=True):
            x, y, *_ = pick(rows, "converged_by", weights, f"{eps:g}")
            ax.plot(x, y, "k-", marker=marker, ms=4, mfc="w", lw=0.8, label=f"{eps:g}")
        label_axes(ax, "loop l", "share with delta < eps by loop l", weights, ylim=(-0.03, 1.03))
        ax.legend(title="eps", fontsize=7)
    for weights, look in STYLE.items():
        _, y, _, _, periods = pick(rows, "return_after", weights)
        axes[2].plot([int(p.split()[0]) for p in periods], y, **look, ms=4, label=weights)
        for ax, what, name in ((axes[2], "delta", "delta (p = 1)"), (axes[3], "spectral_radius", "spectral radius")):
            y = pick(rows, what, weights, s.first if what == "delta" else None)[1]
            ax.axhline(y[-1 if what == "delta" else 0], color=look["color"], ls=":", lw=1, label=f"{name}, {weights}")
    label_axes(axes[2], "period p (loops)", "|h_l - h_(l-p)| / |h_l|", f"at loop {s.total}", yscale="log")
    draw_curves(axes[3], rows, "push_ratio", "one loop")
    label_axes(axes[3], "loop l", "growth of a push in one loop", f"pushed by {s.push:g}")
    for ax, key in zip(axes[4:], s.difficulty, strict=True):
        for weights, look in STYLE.items():
            _, y, low, _, groups = pick(rows, "convergence_loop", weights)
            at = [i for i, g in enumerate(groups) if g.startswith(f"{key} ")]
            ax.errorbar([int(groups[i].split()[1]) for i in at], y[at], (y - low)[at], **look, ms=4, capsize=2,
                        label=weights)
        ax.axhline(s.total + 1, color="k", lw=0.6, label="never")
        label_axes(ax, key, f"mean first loop with delta < {s.converged:g}")
    for ax in axes[2:]:
        ax.legend(fontsize=7)
    save(figure, path, s.title)


@guarded
def draw_example(s, decode, path):
    """Validation text, each character dark by the loops of the token that writes it."""
    shown = slice(0, -(-384 // s.Y.size(1)))  # sequences, one after the other
    text = [decode(t).replace("\n", "⏎") for t in s.Y[shown].flatten().tolist()]
    most, width = max(2, *(int(x.max()) for x in s.loops.values())), 64
    lines = -(-len(text) // width)
    figure, axes = new_figure(2, (18, 0.8 + 0.26 * lines))
    for ax, (weights, loops) in zip(axes, s.loops.items(), strict=True):
        shade = np.full(lines * width, np.nan)
        shade[:len(text)] = (loops[shown].flatten() - 1) * 0.7 / (most - 1)
        image = ax.imshow(shade.reshape(lines, width), cmap="Greys", vmin=0, vmax=1, aspect="auto")
        for i, c in enumerate(text):
            ink = "#fff" if shade[i] > 0.5 else "#000"
            ax.text(i % width, i // width, c, ha="center", va="center", fontsize=8, color=ink)
        ax.set(xticks=[], yticks=[], title=f"{weights}: loops of the token that writes each character")
    ticks = [l for l in range(1, most + 1) if (l - 1) % -(-most // 12) == 0]
    figure.colorbar(image, ax=axes, label="loops", boundaries=np.linspace(0, 0.7, 99),
                    ticks=[(l - 1) * 0.7 / (most - 1) for l in ticks]).ax.set_yticklabels(ticks)
    save(figure, path, s.title)


def draw_analysis(rows, s, folder, decode):
    """Every figure there is something to show in, and their names; decode turns a token into text."""
    drawn = dict(trajectories=draw_trajectories, fixed_points=draw_fixed_points)
    if s.rule != "none" or s.halting:
        drawn["halting"] = draw_halting
    if pick(rows, "probe_accuracy", "trained")[-1]:
        drawn["probes"] = draw_probes
    names = [f"{name}.png" for name, draw in drawn.items() if draw(rows, s, os.path.join(folder, f"{name}.png"))]
    if s.first == "all" and s.loops and draw_example(s, decode, os.path.join(folder, "example.png")):
        names.append("example.png")
    return names
