"""Addition: A+B=C, digits least significant first.

A row is A+B=C and an end symbol, padded on the right. Two tracks:
  next    the model predicts the next token, digit after digit, and ends with a newline
  slots   parallel answer: after '=' stand n+1 slots (n the longer operand's digits), and each is read out at its own
          place, so that the last may be a leading 0; no end symbol

A size is the digits of both operands, or a pair: those of A, those of B. A number is a row of a digit matrix (N, D)
int8, least significant digit first, 0 beyond its length (N,); a problem is two of them: a, la, b, lb.
"""
import re

import numpy as np

max_digits = 4                  # >= 1, <= 100: operands have 1 to this many digits, lengths drawn independently
zeros = ""                      # none; shorter: to the longer one's length; places: see below; empty: by max_places
max_places = 0                  # >= 0, <= 100: with zeros=places: three rows of four have so many places at most
carry_rows = 0.4                # >= 0, <= 1: share of rows in which a carry travels several places
few_rows = 0.0                  # >= 0, <= 1: share of rows whose digits are 1 to 3 symbols, A = B in some
track = "next"                  # next: next-token prediction; slots: parallel answer
plain = False                   # most significant digit first, instead of least

DIGITS, PLUS, EQUALS, END, PAD, SLOT = "0123456789", "+", "=", "\n", " ", "_"
VOCAB = DIGITS + PLUS + EQUALS + END + PAD + SLOT  # the digit d has the id d
THINK, NUMBER = EQUALS, DIGITS + SLOT
ID = {symbol: i for i, symbol in enumerate(VOCAB)}
ZEROS = ("none", "shorter", "places")  # leading zeros of a dataset: of no number; of the shorter one of a problem, to
# the length of the other; of both in a share PADDED of the rows, to one length up to max_places
PADDED = 0.75
KINDS = ("uniform", "hard", "shorter_a", "shorter_b", "equal", "nines")  # of problem_set; their order seeds the draws
SIZES, PAIRS = [1, 2, 3, 4, 5, 6, 7, 8], True
EXAMPLES = "57+68= 999+1= 1234+8766="
EQUAL = 0.3  # share of the rows of few digits in which A = B


def complete(s):
    """The leading zeros that max_places asks for; ValueError for settings that do not go together."""
    s.zeros = s.zeros or ("places" if s.max_places else "none")
    if s.zeros not in ZEROS:
        raise ValueError(f"zeros={s.zeros}: {', '.join(ZEROS)}")
    if (s.zeros == "places") != (s.max_places > 0) or 0 < s.max_places < s.max_digits:
        raise ValueError(f"max_places={s.max_places}: with zeros=places at least max_digits, {s.max_digits}, else 0")


def places(size, s):
    """Digits of the longer operand of a size, None: of the longest in training."""
    return max(np.atleast_1d(size or s.max_places or s.max_digits).tolist())


def row_length(size, s):
    """Tokens of a row of a size: A + B = C, and the end symbol of track next."""
    return row_tokens(places(size, s), s.track)


def row_tokens(digits, track="next"):
    """Tokens of a row whose operands have so many digits."""
    return 3 * digits + 3 + (track == "next")


def longest_number(size, s):
    """Digits of the longest sum of a size."""
    return places(size, s) + 1


def draw(rng, N, s, size=None, kind="uniform"):
    """Rows (N,T) uint16 of training or, with a size, of a kind of test problems; their answers (N,T); and of each
    problem the digits of its longer operand, leading zeros aside, and its longest carry chain."""
    if size is None:
        problem = random_problems(rng, N, s.max_digits, s.carry_rows, s.max_places, s.zeros, s.few_rows)
    else:
        problem = with_zeros(problem_set(rng, N, size, kind), s.zeros)
    rows, (a, _, b, _) = write_rows(*problem, row_length(size, s), s.track, s.plain), problem
    return rows, answer_mask(rows), dict(digits=number_lengths(a | b), chain=chain_lengths(a, b))


# ---- numbers and problems

def random_numbers(rng, lengths, D):
    """Uniform among the numbers of exactly lengths (N,) digits: no leading zero, but the number 0 has one digit."""
    digits = rng.integers(0, 10, (len(lengths), D), dtype=np.int8)
    top = np.arange(D) == lengths[:, None] - 1
    lead = rng.integers(1, 10, len(lengths), dtype=np.int8)
    digits = np.where(top & (lengths[:, None] > 1), lead[:, None], digits)
    return np.where(np.arange(D) < lengths[:, None], digits, 0).astype(np.int8)


def add(a, b):
    """Sums (N, D+1) of digit matrices (N, D), and the carries (N, D+1) into each place."""
    N, D = a.shape
    c, carry = np.zeros((N, D + 1), np.int8), np.zeros((N, D + 1), np.int8)
    for d in range(D):
        s = a[:, d] + b[:, d] + carry[:, d]
        c[:, d], carry[:, d + 1] = s % 10, s // 10
    c[:, D] = carry[:, D]
    return c, carry


def number_lengths(digits):
    """Digits (N,) of the numbers of a matrix (N, D), leading zeros aside; 0 has one."""
    return np.where(digits > 0, np.arange(1, digits.shape[1] + 1), 1).max(1)


def chain_lengths(a, b):
    """Places (N,) that the farthest travelling carry crosses: the one that makes it (sum >= 10), then sums of 9."""
    run = longest = np.zeros(len(a), np.int64)
    for d in range(a.shape[1]):
        s = a[:, d] + b[:, d]
        run = np.where(s >= 10, 1, np.where((s == 9) & (run > 0), run + 1, 0))
        longest = np.maximum(longest, run)
    return longest


def with_chain(rng, a, la, b, lb, start, length):
    """Rewrite digits so that a carry made at place `start` (N,) crosses `length` (N,) places; lengths stay."""
    D = a.shape[1]
    place = np.arange(D)
    make = place == start[:, None]
    passes = (place > start[:, None]) & (place < (start + length)[:, None])
    top_a, top_b = (place == n[:, None] - 1 for n in (la, lb))
    x = rng.integers(1, 10, a.shape)
    y = rng.integers(10 - x, 10)  # x + y >= 10
    low = np.where(top_a & (la[:, None] > 1), 1, 0)
    high = np.where(top_b & (lb[:, None] > 1), 8, 9)
    p = rng.integers(low, high + 1)
    p = np.where(place >= la[:, None], 0, np.where(place >= lb[:, None], 9, p))  # an absent digit adds 0
    a, b = np.where(make, x, np.where(passes, p, a)), np.where(make, y, np.where(passes, 9 - p, b))
    return a.astype(np.int8), b.astype(np.int8)


def few_digits(rng, a, la, lb):
    """Problems shaped as a (N, D) with numbers of la, lb (N,) digits, all of them of 1 to 3 symbols; a share EQUAL has
    A = B, with A's length. Returns a, la, b, lb."""
    N, D = a.shape
    symbols = rng.integers(0, 10, (N, 3), dtype=np.int8)
    symbols[:, 0] = rng.integers(1, 10, N)  # a number of two digits or more cannot lead with 0
    count = rng.integers(1, 4, (N, 1))
    equal = rng.random(N) < EQUAL
    lb = np.where(equal, la, lb)
    numbers = []
    for length in (la, lb):
        digits = np.take_along_axis(symbols, rng.integers(0, count, (N, D)), 1)
        lead = (np.arange(D) == length[:, None] - 1) & (length[:, None] > 1) & (digits == 0)
        numbers.append(np.where(lead, symbols[:, :1], digits) * (np.arange(D) < length[:, None]))
    a, b = numbers
    return a, la, np.where(equal[:, None], a, b), lb


def with_zeros(problem, zeros):
    """A problem a, la, b, lb as a dataset with one of ZEROS writes it where it does not draw the length: with 'shorter'
    both numbers have the longer one's length. So every token of the answer finds a digit of A and of B at its place."""
    a, la, b, lb = problem
    longer = np.maximum(la, lb)
    return (a, longer, b, longer) if zeros == "shorter" else problem


def random_problems(rng, N, max_digits, carry_rows=0.0, max_places=0, zeros="none", few_rows=0.0):
    """Training problems: lengths 1..max_digits drawn independently; a share `carry_rows` in which a carry travels
    2 places or more, which uniform draws almost never do; then a share `few_rows` of few_digits. Returns a, la, b, lb.

    max_places: if more than max_digits, leading zeros bring both numbers of a share PADDED of the rows to one length,
    drawn from the longer one's to max_places. Zero padding is that of Shen et al. 2023 (arXiv 2311.14737).
    zeros: 'shorter' brings the shorter number of every row to the longer one's length.
    """
    la, lb = rng.integers(1, max_digits + 1, (2, N))
    a, b = random_numbers(rng, la, max_digits), random_numbers(rng, lb, max_digits)
    longer, shorter = np.maximum(la, lb), np.minimum(la, lb)
    start = rng.integers(0, np.maximum(1, np.minimum(shorter, longer - 1)))  # below the top, if there is a below
    reach = longer - start  # places from the start of the chain to the top
    length = rng.integers(np.minimum(2, reach), reach + 1)
    chained = rng.random(N) < carry_rows
    ca, cb = with_chain(rng, a, la, b, lb, start, length)
    a, b = np.where(chained[:, None], ca, a), np.where(chained[:, None], cb, b)
    if few_rows:
        few = rng.random(N) < few_rows
        a, la, b, lb = (np.where(few[:, None] if x.ndim > 1 else few, x, old) for x, old in
                        zip(few_digits(rng, a, la, lb), (a, la, b, lb), strict=True))
        longer = np.maximum(la, lb)
    if max_places > max_digits:
        a, b = (np.pad(x, ((0, 0), (0, max_places - max_digits))) for x in (a, b))
        padded, places = rng.random(N) < PADDED, rng.integers(longer, max_places + 1)
        la, lb = np.where(padded, places, la), np.where(padded, places, lb)
    return with_zeros((a, la, b, lb), zeros)


def problem_set(rng, count, size, kind="uniform"):
    """Test problems of exactly n and m digits, as size says: a, la, b, lb. ValueError for a kind that is none of KINDS.

    uniform:   every pair of such numbers is equally likely
    hard:      the longest carry chain is drawn evenly from 1..n; the first two problems are 99..9+1 and 1+99..9
    shorter_a: A has a length drawn evenly from 1..n, B has n; m does not count, here and below
    shorter_b: the other way round
    equal:     A = B, of n digits
    nines:     A or B is n nines, in turn, the other number of a length drawn evenly from 1..n
    """
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r} is none of {', '.join(KINDS)}")
    n, m = np.broadcast_to(size, 2).tolist()
    m = m if kind in ("uniform", "hard") else n
    D = max(n, m)
    la, lb = np.full(count, n), np.full(count, m)
    if kind == "hard":
        return hard_problems(rng, la, lb, D)
    nines = np.arange(count) % 2 if kind == "nines" else np.full(count, -1)  # 0: A is n nines, 1: B
    if kind in ("shorter_a", "shorter_b", "nines"):
        any_length = rng.integers(1, n + 1, count)
        la = np.where((kind == "shorter_a") | (nines == 1), any_length, la)
        lb = np.where((kind == "shorter_b") | (nines == 0), any_length, lb)
    a, b = random_numbers(rng, la, D), random_numbers(rng, lb, D)
    a[nines == 0], b[nines == 1] = 9, 9
    return a, la, a.copy() if kind == "equal" else b, lb


def hard_problems(rng, la, lb, D):
    """Problems with numbers of la, lb (N,) digits, equal along each, as problem_set describes the kind hard."""
    count, n, m = len(la), *(int(x.max(initial=1)) for x in (la, lb))
    a, b = random_numbers(rng, la, D), random_numbers(rng, lb, D)
    length = rng.integers(1, n + 1, count)
    todo = np.arange(count)
    while len(todo):  # until no longer chain stands elsewhere by chance
        k = length[todo]
        fresh = [random_numbers(rng, x[todo], D) for x in (la, lb)]
        start = rng.integers(0, np.minimum(n - k, min(n, m) - 1) + 1)  # both numbers have a digit there
        a[todo], b[todo] = with_chain(rng, fresh[0], la[todo], fresh[1], lb[todo], start, k)
        todo = todo[chain_lengths(a[todo], b[todo]) != k]
    place = np.arange(D)
    if count > 0:
        a[0], b[0], lb[0] = np.where(place < n, 9, 0), place == 0, 1  # 99..9 + 1
    if count > 1:
        b[1], a[1], la[1] = np.where(place < m, 9, 0), place == 0, 1  # 1 + 99..9
    return a, la, b, lb


# ---- rows of tokens

def write_rows(a, la, b, lb, row_len, track="next", plain=False):
    """Problems -> rows (N, row_len) uint16 with their answers. plain: most significant digit first."""
    N, D = a.shape
    rows = np.full((N, row_len), ID[PAD], np.uint16)
    c, _ = add(a, b)
    longer = np.maximum(la, lb)
    lc = longer + 1 if track == "slots" else longer + c[np.arange(N), longer]
    each = np.arange(N)

    def put(digits, length, at):
        for d in range(int(length.max())):
            here = d < length
            rows[each[here], (at + (length - 1 - d if plain else d))[here]] = digits[here, d]

    put(a, la, np.zeros(N, int))
    rows[each, la] = ID[PLUS]
    put(b, lb, la + 1)
    rows[each, la + lb + 1] = ID[EQUALS]
    put(c, lc, la + lb + 2)
    if track == "next":
        rows[each, la + lb + 2 + lc] = ID[END]
    return rows


def answer_mask(rows):
    """True (N, T) where a row's answer stands, its end symbol included: what follows the second of its operators."""
    operators = np.isin(rows, (ID[PLUS], ID[EQUALS]))
    return (operators.cumsum(1) == 2) & ~operators & (rows != ID[PAD])


def _reorder(rows, chosen, lengths):
    """Rows A+B=C whose numbers are put in another order: lengths lists (first place, length) (N,) of each number in
    the new order; the operators '+' and '=' follow the caller."""
    t = np.arange(rows.shape[1])
    source, at = np.broadcast_to(t, rows.shape).copy(), np.zeros(len(rows), int)
    for first, length in lengths:
        inside = (t >= at[:, None]) & (t < (at + length)[:, None])
        source = np.where(inside, t - at[:, None] + first[:, None], source)
        at = at + length + 1
    return np.where(chosen[:, None], np.take_along_axis(rows, source, 1), rows)


def augment(rng, rows, answer, swap=False, flip=0.0):
    """swap: exchange the operands of half of the rows; flip: share of rows (track next) written C=A+B instead, whose
    answer is B. Returns rows and answers (N,T)."""
    each = np.arange(len(rows))
    la, eq = (rows == ID[PLUS]).argmax(1), (rows == ID[EQUALS]).argmax(1)
    if swap:
        chosen = rng.random(len(rows)) < 0.5
        lb = eq - la - 1
        rows = _reorder(rows, chosen, [(la + 1, lb), (np.zeros_like(la), la)])
        where = np.where(chosen, lb, la)
        rows[each[chosen], where[chosen]] = ID[PLUS]
        la = where
    if flip:
        chosen = rng.random(len(rows)) < flip
        lb, lc = eq - la - 1, (rows == ID[END]).argmax(1) - eq - 1
        rows = _reorder(rows, chosen, [(eq + 1, lc), (np.zeros_like(la), la), (la + 1, lb)])
        rows[each[chosen], lc[chosen]] = ID[EQUALS]
        rows[each[chosen], (lc + 1 + la)[chosen]] = ID[PLUS]
        answer = answer_mask(rows)
    return rows, answer


def labels(rows, answer, s):
    """For probes: 'digit k', the digit of place k of the sum at the token that is it, and 'carry into k' there; (N,T)
    each, -1 elsewhere. Places are counted from the least significant one."""
    rows, T = rows.astype(np.int64), rows.shape[1]  # in which -1 is a number
    la, eq = (rows == ID[PLUS]).argmax(1), (rows == ID[EQUALS]).argmax(1)
    lb = eq - la - 1
    d = np.arange(max(la.max(), lb.max()))
    numbers = []
    for start, length in ((np.zeros_like(la), la), (la + 1, lb)):
        at = start[:, None] + (length[:, None] - 1 - d if s.plain else d)
        numbers.append(np.where(d < length[:, None], np.take_along_axis(rows, at.clip(0, T - 1), 1), 0))
    carry = add(*(n.astype(np.int8) for n in numbers))[1]  # (N,D+1)
    digit = answer & (rows < 10)
    place = digit.cumsum(1) - 1
    place = np.where(digit, digit.sum(1, keepdims=True) - 1 - place if s.plain else place, -1)
    carry = np.take_along_axis(carry, place.clip(0, len(d)), 1)
    found = {}
    for k in range(place.max() + 1):
        found[f"digit {k}"] = np.where(place == k, rows, -1)
        if k:
            found[f"carry into {k}"] = np.where(place == k, carry, -1)
    return found


# ---- as people write them

def split(text):
    """Problems parted by spaces, commas, lines; spaces around '+' and before '=' are fine."""
    return re.sub(r"\s*\+\s*|\s+(?==)", lambda m: m[0].strip(), text).replace(",", " ").split()


def numbers_of(text):
    """'123+456=' (spaces and a missing '=' are fine) -> the two numbers, as text. ValueError if it is no addition."""
    parts = text.replace(" ", "").strip().removesuffix("=").split("+")
    if len(parts) != 2 or not all(p.isascii() and p.isdigit() for p in parts):
        unknown = sorted({c for c in text if c not in VOCAB})
        raise ValueError(f"{text!r} is not an addition; write it as 123+456=" +
                         (f", without {' '.join(map(repr, unknown))}" if unknown else ""))
    return parts


def read(text, s):
    """The row of a problem as people write it. ValueError if it is none."""
    parts = numbers_of(text)
    D = max(map(len, parts))
    (a, la), (b, lb) = ((np.array([list(map(int, p[::-1].ljust(D, "0")))], np.int8), np.array([len(p)])) for p in parts)
    row = write_rows(*with_zeros((a, la, b, lb), s.zeros), row_tokens(D, s.track), s.track, s.plain)[0]
    return "".join(VOCAB[t] for t in row).rstrip(PAD)


def show(row, s):
    """A row as people write it, 123+456=579: numbers without leading zeros, each up to its first other symbol."""
    problem, _, c = row.partition(EQUALS)
    numbers = [re.match(r"\d*", n)[0][::1 if s.plain else -1] for n in (*problem.partition(PLUS)[::2], c)]
    a, b, c = (n.lstrip("0") or ("0" if n else "") for n in numbers)
    return f"{a}+{b}={c}"


def solve(problem, s):
    """The right sum of '123+456'. ValueError if that is no addition."""
    return str(sum(map(int, numbers_of(problem))))
