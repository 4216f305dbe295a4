"""Means and rank correlations with their 95% intervals, as columns of a row.

scipy is imported where it is used: it takes as long as all else that a script needs to start.
"""
import math

import numpy as np
import torch


def share_interval(solved, prefix=""):
    """The share of solved (N,) bool and its interval (Wilson), as columns accuracy, low, high with a prefix."""
    from scipy import stats
    interval = stats.binomtest(int(solved.sum()), len(solved)).proportion_ci(method="wilson")
    return {f"{prefix}accuracy": solved.double().mean().item(), f"{prefix}low": float(interval.low),
            f"{prefix}high": float(interval.high)}


def half_width(error, n):
    """Half of the interval of a mean with this standard error, which n independent values have told (Student's t)."""
    from scipy import stats
    return float(stats.t.ppf(0.975, n - 1) * error)


def mean_interval(x, name):
    """The mean of x (N,) and its interval, as columns; without those that N is too small for."""
    from scipy import stats
    found = {name: float(x.mean())} if len(x) else {}
    if len(x) > 1:
        half = half_width(stats.sem(x), len(x))
        found |= {f"{name}_low": float(x.mean() - half), f"{name}_high": float(x.mean() + half)}
    return found


def clustered_interval(x):
    """Mean of x (N,T) and its interval over the N sequences, NaN counting as absent, as columns value, low, high, n.

    Sums of a sequence are what is independent: the variance of a ratio of sums, clustered by sequence.
    """
    x = torch.as_tensor(x).double().reshape(len(x), -1)
    count, total = (~x.isnan()).sum(1), x.nansum(1)
    n, groups = int(count.sum()), int((count > 0).sum())
    mean = float(total.sum() / n) if n else math.nan
    error = math.nan
    if groups > 1:
        squares = float((total - mean * count).square().sum())
        error = half_width((squares * groups / (groups - 1)) ** 0.5 / n, groups)
    return dict(value=mean, low=mean - error, high=mean + error, n=n)


def spearman(x, y):
    """Spearman's rank correlation of x and y (N,), NaN where either never changes."""
    from scipy import stats
    return float(stats.spearmanr(x, y).statistic) if len(x) > 1 and np.ptp(x) and np.ptp(y) else math.nan


def clustered_spearman(x, y):
    """spearman of x and y (N,T), NaN counting as absent, with its interval as of clustered_interval (delta method)."""
    from scipy import stats
    x, y = torch.as_tensor(x).double(), torch.as_tensor(y).double()
    both = ~(x.isnan() | y.isnan())
    rho = spearman(x[both].numpy(), y[both].numpy())
    if both.sum() < 3 or math.isnan(rho):
        return dict(value=math.nan, low=math.nan, high=math.nan, n=int(both.sum()))
    z = torch.full((2, *x.shape), math.nan, dtype=torch.double)
    for i, a in enumerate((x, y)):
        z[i, both] = torch.from_numpy(stats.zscore(stats.rankdata(a[both].numpy())))
    return clustered_interval(z[0] * z[1] - rho / 2 * z.square().sum(0) + rho)
