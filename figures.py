"""The figures of evaluate.py, drawn from the rows of its table; they read well in black and white."""
import math

import numpy as np


def new_figure(columns, width):
    """A figure and its axes in one row, which share the scale of y; never needs a screen."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt  # only here: it takes a second, and most evaluations draw nothing
    return plt.subplots(1, columns, figsize=(width, 3.8), layout="constrained", sharey=True)


def save(figure, axes, path):
    """Finish and write a figure; SystemExit with one line if that cannot be."""
    for ax in axes:
        ax.grid(alpha=0.3)
        if ax.has_data():
            ax.legend(fontsize=8)
    try:
        figure.savefig(path, dpi=130)
    except OSError as e:
        raise SystemExit(f"{path} cannot be written: {e.strerror}") from None
    print(f"figure: {path}")


def draw_loops(table, path):
    """Loops of solved problems against the digit count, and against the carry chain with a line a digit count."""
    figure, (left, right) = new_figure(2, 10)
    means = []
    for kind, style, fill in (("uniform", "k-o", "k"), ("hard", "k--s", "w")):
        own = [r for r in table if r["kind"] == kind and "loops_most_solved" in r]
        n, mean = [r["n"] for r in own], [r["loops_most_solved"] for r in own]
        ends = [[r.get(f"loops_most_solved_{end}", math.nan) for r in own] for end in ("low", "high")]
        left.plot(n, mean, style, mfc=fill, label=f"{kind} problems")
        left.fill_between(n, *ends, color="k", alpha=0.15, lw=0)
        means += mean
    chains = [r for r in table if r["kind"] == "chain" and r["problems"] >= 10]  # fewer say little
    counts = [n for n in dict.fromkeys(r["n"] for r in chains) if sum(r["n"] == n for r in chains) > 1]
    if len(counts) > 6:  # more lines cannot be told apart
        counts = [counts[round(i)] for i in np.linspace(0, len(counts) - 1, 6)]
    for i, n in enumerate(counts):
        own = [r for r in chains if r["n"] == n]
        mean = [r["loops"] for r in own]
        right.errorbar([r["chain"] for r in own], mean, [r["loops_high"] - r["loops"] for r in own], capsize=2,
                       fmt="osD^v*"[i], ls=("-", "--", "-.", ":")[i % 4], color=str(0.1 * i), label=f"digits: {n}")
        means += mean
    if means:  # the interval of the mean of two problems would take the whole axis
        left.set_ylim(min(means) - 0.5, max(means) + 0.5)
    left.set(xlabel="digits of each operand", ylabel="loops of the slowest token of the answer",
             title="solved problems: mean and 95% interval")
    right.set(xlabel="longest carry chain (places)", title="uniform and hard, at least 10 solved problems a point")
    for ax in (left, right):
        ax.xaxis.get_major_locator().set_params(integer=True)
    save(figure, (left, right), path)


def draw_frontier(table, path):
    """Accuracy against loops, a panel a rule: the rule, its random control and the fixed depths."""
    rows = sorted((r for r in table if r["kind"] == "frontier"), key=lambda r: r["loops"])
    rules = sorted({r["rule"] for r in rows} - {"fixed"})
    figure, axes = new_figure(len(rules), 0.6 + 3.1 * len(rules))
    for ax, rule in zip(axes, rules, strict=True):
        for name, prefix, label, style, fill in (
                ("fixed", "", "fixed depth", "k--s", "w"), (rule, "", rule, "k-o", "k"),
                (rule, "random_", "random, the same loops", "k:^", "w")):
            own = [r for r in rows if r["rule"] == name]
            x = [r["loops"] for r in own]
            y, low, high = ([100 * r[prefix + key] for r in own] for key in ("accuracy", "low", "high"))
            ax.plot(x, y, style, mfc=fill, ms=5, label=label)
            ax.fill_between(x, low, high, color="k", alpha=0.12, lw=0)
        ax.set(xlabel="loops a token of the answer", title=rule)
    axes[0].set_ylabel("exact match (%), mean over digit counts")
    figure.suptitle(f"{rows[0]['problems']} problems a point; bands: 95% interval", fontsize=10)
    save(figure, axes, path)
