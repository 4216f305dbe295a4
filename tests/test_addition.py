"""The addition task against plain Python: text, int() and +."""
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import (
    SYMBOLS,
    UNLIKELY,
    chains,
    inputs_and_targets,
    number_text,
    parse,
    problem_set,
    texts,
    value,
)
from scipy import stats

import tasks
from model import GPT, GPTConfig
from model_loop import LoopConfig, LoopGPT
from tasks import addition


def spell(a, b, track="next", plain=False):
    """The row of an addition of two ints as text, without padding; and where its answer starts."""
    turn = 1 if plain else -1
    c = str(a + b).zfill(max(len(str(a)), len(str(b))) + 1) if track == "slots" else str(a + b)
    prompt = f"{str(a)[::turn]}+{str(b)[::turn]}="
    return prompt + c[::turn] + ("\n" if track == "next" else ""), len(prompt)


def to_tokens(text):
    return np.array([SYMBOLS.index(s) for s in text])


def to_ints(digits):
    """Digit matrix (N, D), least significant first -> Python ints (N,), an object array."""
    return np.array([int("".join(map(str, row[::-1]))) for row in digits.tolist()], object)


def from_ints(pairs):
    """Pairs of ints -> a, la, b, lb as the module has them."""
    lengths = [[len(str(x)) for x in pair] for pair in pairs]
    D = max(map(max, lengths))
    a, b = (np.array([[int(d) for d in str(pair[i])[::-1].ljust(D, "0")] for pair in pairs], np.int8) for i in (0, 1))
    return a, np.array(lengths)[:, 0], b, np.array(lengths)[:, 1]


def test_chains_of_known_sums():
    known = {(1, 1): 0, (5, 5): 1, (99, 1): 2, (1, 9999): 4, (55, 55): 1, (45, 55): 2, (4545, 5555): 2, (44, 55): 0}
    pairs = np.array(list(known), object)
    assert chains(*pairs.T, 4).tolist() == list(known.values())
    a, _, b, _ = from_ints(pairs)
    assert addition.chain_lengths(a, b).tolist() == list(known.values())


def test_chain_lengths(rng):
    a, la, b, lb = addition.random_problems(rng, 5000, 7, 0.5)
    assert (addition.chain_lengths(a, b) == chains(to_ints(a), to_ints(b), 8)).all()


# ---- the data as prepare.py writes it

@pytest.fixture(scope="module", params=["next", "slots"])
def written(request, scripts):
    """All equations of a dataset of the default size: (track, meta, {split: (rows as text, their A and B)})."""
    track, folder = request.param, scripts.folder / f"full_{request.param}"
    scripts("data/addition/prepare.py", f"--out_dir={folder}", f"--track={track}")
    meta = json.loads((folder / "meta.json").read_text())
    rows = {s: np.fromfile(folder / f"{s}.bin", np.uint16).reshape(-1, meta["row_len"]) for s in ("train", "val")}
    return track, meta, {s: [parse(t, track) for t in texts(x)] for s, x in rows.items()}


def test_every_row_of_the_data(written):
    track, meta, data = written  # parse() has held every row against int() and +
    assert {s: len(x) for s, x in data.items()} == {"train": 200_000, "val": 10_000}
    for split, pairs in data.items():
        a, b = (np.array(x).astype(int) for x in zip(*pairs, strict=True))
        assert max(a.max(), b.max()) <= 9999, split
        lengths = [np.array(list(map(len, x))) for x in zip(*pairs, strict=True)]
        table = np.histogram2d(*lengths, bins=[np.arange(0.5, 5)] * 2)[0]  # 4 x 4 lengths, all equally likely
        assert table.sum() == len(pairs)
        assert stats.chisquare(table.ravel()).pvalue > UNLIKELY, split


def test_share_of_carry_rows(written):
    """Where an operand has 2 digits or more, a share carry_rows is built with a chain >= 2; chance adds to it."""
    _, meta, data = written
    a, b = np.array(data["train"]).astype(int).T
    room = np.maximum(a, b) >= 10
    seen = (chains(a, b, 5) >= 2)[room].mean()
    plain = addition.random_problems(np.random.default_rng(0), 100_000, 4)
    x, y = (digits @ 10**np.arange(4) for digits in (plain[0], plain[2]))
    by_chance = (chains(x, y, 5) >= 2)[np.maximum(x, y) >= 10].mean()
    wanted = meta["carry_rows"] + (1 - meta["carry_rows"]) * by_chance
    assert abs(seen - wanted) < 0.01


def test_plain_rows_and_other_sizes(scripts):
    scripts("data/addition/prepare.py", "--out_dir=plain", "--plain", "--max_digits=7", "--train_rows=999",
            "--val_rows=1")
    meta = json.loads((scripts.folder / "plain/meta.json").read_text())
    rows = np.fromfile(scripts.folder / "plain/train.bin", np.uint16).reshape(-1, meta["row_len"])
    lengths = {len(x) for t in texts(rows) for x in parse(t, plain=True)}
    assert len(rows) == 999
    assert lengths == set(range(1, 8))
    assert meta["plain"] is True


def test_prepare_refuses_nonsense(scripts):
    for wrong in ("--track=other", "--max_digits=0", "--max_places=3", "--max_places=101", "--carry_rows=1.5",
                  "--train_rows=0", "--zeros=all", "--zeros=places", "--few_rows=-0.1"):
        said = scripts("data/addition/prepare.py", "--out_dir=none", wrong, status=None).err
        assert wrong.partition("=")[0] in said or "--max_places" in said  # which zeros=places needs
    assert not (scripts.folder / "none").exists()


# ---- problems

@pytest.mark.parametrize("max_digits", [1, 3, 9])
def test_random_problems(rng, max_digits):
    a, la, b, lb = addition.random_problems(rng, 20_000, max_digits)
    for digits, lengths in ((a, la), (b, lb)):
        assert [len(str(x)) for x in to_ints(digits)] == lengths.tolist()  # no leading zero either
    table = np.histogram2d(la, lb, bins=[np.arange(0.5, max_digits + 1)] * 2)[0]
    assert table.sum() == 20_000
    if max_digits > 1:
        assert stats.chisquare(table.ravel()).pvalue > UNLIKELY
    single = a[la == 1, 0]
    assert stats.chisquare(np.bincount(single, minlength=10)).pvalue > UNLIKELY  # the number 0 occurs too


@pytest.mark.parametrize("track", ["next", "slots"])
@pytest.mark.parametrize(("max_digits", "max_places"), [(1, 2), (4, 12), (3, 4)])
def test_leading_zeros(rng, track, max_digits, max_places):
    N = 20_000
    a, la, b, lb = addition.random_problems(rng, N, max_digits, 0.3, max_places)
    values = np.array([to_ints(a), to_ints(b)])
    assert values.max() == 10**max_digits - 1  # zeros add no digits
    own = np.array([[len(str(x)) for x in v] for v in values])
    lengths = np.array([la, lb])
    padded = (lengths != own).any(0)
    assert (la == lb)[padded].all()
    assert (lengths >= own).all()
    assert lengths.max() == max_places
    longest = own.max(0)
    chance = addition.PADDED * (1 - (own[0] == own[1]) / (max_places + 1 - longest))  # one length may be drawn twice
    assert abs(padded.mean() - chance.mean()) < 5 / np.sqrt(N)
    drawn = la[padded & (own[0] == own[1])] - longest[padded & (own[0] == own[1])]
    for k in range(1, max_digits + 1):  # the length is uniform from the longer operand's to max_places
        found = np.bincount(drawn[longest[padded & (own[0] == own[1])] == k], minlength=max_places + 1 - k)[1:]
        assert len(found) == max_places - k
        assert len(found) == 1 or stats.chisquare(found).pvalue > UNLIKELY
    T = addition.row_tokens(max_places, track)
    rows = texts(addition.write_rows(a, la, b, lb, T, track)[:500])
    for text, x, y, n, m in zip(rows, *values, la, lb, strict=False):
        c = max(n, m) + 1 if track == "slots" else max(max(n, m), len(str(x + y)))
        wanted = f"{str(x).zfill(n)[::-1]}+{str(y).zfill(m)[::-1]}={str(x + y).zfill(c)[::-1]}"
        assert text.rstrip(" ") == wanted + "\n" * (track == "next")


@pytest.mark.parametrize("max_digits", [1, 4, 7])
@pytest.mark.parametrize(("zeros", "max_places"), [("none", 0), ("shorter", 0), ("places", 10)])
def test_rows_of_few_digits(rng, max_digits, zeros, max_places):
    """All rows: 1 to 3 symbols, three rows of ten with A = B, lengths still drawn independently in the others."""
    N = 20_000
    a, la, b, lb = addition.random_problems(rng, N, max_digits, 0.5, max_places, zeros, 1.0)
    assert not a[:, max_digits:].any()
    x, y = ([str(i) for i in to_ints(digits)] for digits in (a, b))
    symbols = np.array([len(set(i + j)) for i, j in zip(x, y, strict=True)])
    assert symbols.max() <= 3
    own = np.array([[len(i) for i in numbers] for numbers in (x, y)])
    equal = np.array([i == j for i, j in zip(x, y, strict=True)])
    if max_digits == 7:  # long enough that hardly a number is another one by chance
        assert (symbols == 1).mean() > 0.3
        assert (symbols == 3).mean() > 0.15
        different = own[0] != own[1]
        assert abs(different.mean() - (1 - addition.EQUAL) * 6 / 7) < 5 / np.sqrt(N)
        # by chance no more rows are equal than have numbers of one length
        chance, rounding = (1 - addition.EQUAL) / 7, 5 / np.sqrt(N)
        assert addition.EQUAL - rounding < equal.mean() < addition.EQUAL + chance + rounding
    if zeros == "none":
        assert (own == [la, lb]).all()
        table = np.histogram2d(*own[:, ~equal], bins=[np.arange(0.5, max_digits + 1)] * 2)[0]
        off = table[~np.eye(max_digits, dtype=bool)]
        assert len(off) < 2 or stats.chisquare(off).pvalue > UNLIKELY
    first = np.bincount([int(i[0]) for i, n in zip(x, own[0], strict=True) if n > 1], minlength=10)
    assert first[0] == 0
    if max_digits > 1:
        assert stats.chisquare(first[1:]).pvalue > UNLIKELY  # no symbol is preferred


def test_a_share_of_rows_of_few_digits(rng):
    """Of rows with two numbers of 9 digits, hardly one has 3 symbols or fewer by chance; no share changes nothing."""
    a, la, b, lb = addition.random_problems(rng, 30_000, 9, few_rows=0.25)
    long = np.minimum(la, lb) >= 8
    few = np.array([len(set(f"{i}{j}")) <= 3 for i, j in zip(to_ints(a[long]), to_ints(b[long]), strict=True)])
    p = 0.25 * (0.3 * 2 / 9 + 0.7 * 4 / 81) / (0.25 * (0.3 * 2 / 9 + 0.7 * 4 / 81) + 0.75 * 4 / 81)  # of them, long
    assert abs(few.mean() - p) < 6 * np.sqrt(p * (1 - p) / long.sum()) + 0.003
    seed = int(rng.integers(2**31))
    before, after = (addition.random_problems(np.random.default_rng(seed), 99, 4, 0.4, *more) for more in ((), (
        0, "none", 0.0)))
    assert all((x == y).all() for x, y in zip(before, after, strict=True))


@pytest.mark.parametrize("track", ["next", "slots"])
def test_the_shorter_number_is_written_with_leading_zeros(rng, track):
    """The same problems as without, each number as long as the longer one of its row."""
    seed = int(rng.integers(2**31))
    plain, problems = (addition.random_problems(np.random.default_rng(seed), 3000, 5, 0.4, 0, zeros, 0.25)
                       for zeros in ("none", "shorter"))
    x, y = (to_ints(digits) for digits in (problems[0], problems[2]))
    assert (x == to_ints(plain[0])).all()
    assert (y == to_ints(plain[2])).all()
    rows = texts(addition.write_rows(*problems, addition.row_tokens(5, track), track))
    assert any(len(str(i)) != len(str(j)) for i, j in zip(x, y, strict=True))
    for text, i, j in zip(rows, x, y, strict=True):
        n = max(len(str(i)), len(str(j)))
        c = str(i + j).zfill(n + 1 if track == "slots" else n)
        wanted = f"{str(i).zfill(n)[::-1]}+{str(j).zfill(n)[::-1]}={c[::-1]}"
        assert text.rstrip(" ") == wanted + "\n" * (track == "next")


@pytest.mark.parametrize("kind", ["uniform", "hard"])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (2, 2), (5, 5), (12, 12), (40, 40), (3, 7), (7, 3), (1, 4), (4, 1)])
def test_problem_sets_have_exact_lengths(n, m, kind):
    a, la, b, lb = problem_set(n, 2000, kind, m)
    special = 2 if kind == "hard" else 0  # 99..9 + 1 and 1 + 99..9
    for digits, lengths, wanted in ((a, la, n), (b, lb, m)):
        assert [len(str(x)) for x in to_ints(digits)] == lengths.tolist()
        assert (lengths[special:] == wanted).all()


@pytest.mark.parametrize("n", [1, 2, 5, 12, 40])
def test_hard_problems(n):
    a, _, b, _ = problem_set(n, 2000, "hard")
    a, b = to_ints(a), to_ints(b)
    assert [(a[0], b[0]), (a[1], b[1])] == [(10**n - 1, 1), (1, 10**n - 1)]
    counts = np.bincount(chains(a, b, n + 1)[2:], minlength=n + 1)
    assert counts[0] == 0
    assert len(counts) == n + 1
    if n > 1:
        assert stats.chisquare(counts[1:]).pvalue > 1e-3
    assert problem_set(n, 1, "hard")[0].shape == (1, n)  # fewer problems than special ones


@pytest.mark.parametrize("n", [1, 2, 5, 12, 40])
def test_uniform_problems(n):
    for digits in problem_set(n, 4000)[::2]:
        for place in {0, n // 2, n - 1}:
            counts = np.bincount(digits[:, place], minlength=10)
            leading = n > 1 and place == n - 1
            assert not (leading and counts[0])
            assert stats.chisquare(counts[1:] if leading else counts).pvalue > 1e-3


@pytest.mark.parametrize("n", [1, 2, 7, 40])
def test_problem_sets_of_other_shapes(n):
    N, long = 3000, 10**n - 1
    for kind in ("shorter_a", "shorter_b", "equal", "nines"):
        a, la, b, lb = problem_set(n, N, kind)
        x, y = to_ints(a), to_ints(b)
        own = np.array([[len(str(i)) for i in numbers] for numbers in (x, y)])
        assert (own == [la, lb]).all()
        assert (own.max(0) == n).all()
        if kind == "equal":
            assert (x == y).all()
            assert len(set(x)) > min(N, 10**n) / 2
        if kind == "nines":
            assert (x[::2] == long).all()
            assert (y[1::2] == long).all()
            shorter = np.concatenate([own[1, ::2], own[0, 1::2]])
        if kind.startswith("shorter"):
            shorter, whole = own if kind == "shorter_a" else own[::-1]
            assert (whole == n).all()
        if kind != "equal" and n > 1:  # every length that is not longer, evenly
            assert stats.chisquare(np.bincount(shorter, minlength=n + 1)[1:]).pvalue > 1e-3
    with pytest.raises(ValueError, match="kind 'longer' is none of uniform"):
        problem_set(n, 1, "longer")


def test_problem_sets_are_the_same_at_every_call(rng):
    for kind in addition.KINDS:
        np.random.seed(rng.integers(2**31))  # noqa: NPY002  (it must not matter)
        first, second = (problem_set(6, 50, kind) for _ in range(2))
        assert all((x == y).all() for x, y in zip(first, second, strict=True))
        assert kind == "uniform" or (first[0] != problem_set(6, 50)[0]).any()


# ---- rows

@pytest.mark.parametrize("track", ["next", "slots"])
@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("max_digits", [1, 4, 40])
def test_rows_inputs_and_targets(rng, track, plain, max_digits):
    problem = addition.random_problems(rng, 50, max_digits, 0.3)
    T = addition.row_tokens(max_digits, track)
    rows = addition.write_rows(*problem, T, track, plain)
    x, y = inputs_and_targets(rows, track)
    longest = 0
    for i, (a, b) in enumerate(zip(to_ints(problem[0]), to_ints(problem[2]), strict=True)):
        text, start = spell(a, b, track, plain)
        longest = max(longest, len(text))
        assert texts(rows[[i]]) == [text.ljust(T)]
        read, say = to_tokens(text.ljust(T)), np.full(T, -1)
        say[start:len(text)] = read[start:len(text)]  # the answer and its end symbol, nothing else
        if track == "next":
            read, say = read[:-1], say[1:]
        else:
            read[start:len(text)] = SYMBOLS.index("_")
        assert (x[i] == read).all()
        assert (y[i] == say).all()
    assert longest <= T
    assert len(spell(10**max_digits - 1, 10**max_digits - 1, track)[0]) == T  # and no longer than it has to be


@pytest.mark.parametrize("track", ["next", "slots"])
def test_swap(rng, track):
    N = 4000
    a, la, b, lb = addition.random_problems(rng, N, 4, 0.3)
    rows = addition.write_rows(a, la, b, lb, addition.row_tokens(4, track) + 3, track)
    answer = tasks.answers(addition, rows)
    rows, same = addition.augment(rng, rows, answer, swap=True)
    assert (same == answer).all()
    swapped, differ = 0, 0
    for x, y, text in zip(to_ints(a), to_ints(b), texts(rows), strict=True):
        found = tuple(map(int, parse(text, track)))
        assert found in ((x, y), (y, x))
        differ += x != y
        swapped += x != y and found == (y, x)
    assert stats.binomtest(swapped, differ, 0.5).pvalue > UNLIKELY


@pytest.mark.parametrize("swap", [False, True])
def test_flip(rng, swap):
    N, share = 4000, 0.3
    a, la, b, lb = addition.random_problems(rng, N, 5, 0.3)
    rows = addition.write_rows(a, la, b, lb, addition.row_tokens(5))
    rows, answer = addition.augment(rng, rows, tasks.answers(addition, rows), swap, share)
    x, y = tasks.inputs_and_targets(addition, rows, answer, "next")
    flipped = 0
    for i, (p, q, text) in enumerate(zip(to_ints(a), to_ints(b), texts(rows), strict=True)):
        body = text.rstrip(" ")
        asked, said = (body[:body.rindex(s) + 1] for s in "=+")
        if body.index("=") < body.index("+"):
            flipped += 1
            c, rest = body.removesuffix("\n").split("=")
            found = tuple(map(value, rest.split("+")))
            assert value(c) == p + q
            assert body == f"{str(p + q)[::-1]}={str(found[0])[::-1]}+{str(found[1])[::-1]}\n"
            asked = said
        else:
            found = tuple(map(int, parse(text)))
        assert found == (p, q) or (swap and found == (q, p))
        said = np.full(len(text), -1)
        said[len(asked):len(body)] = to_tokens(body[len(asked):])
        assert (y[i] == said[1:]).all()  # of C=A+B: B and the newline
        assert (x[i] == to_tokens(text)[:-1]).all()
    assert stats.binomtest(flipped, N, share).pvalue > UNLIKELY


@pytest.mark.parametrize(("track", "plain", "places"), [("next", False, 0), ("slots", False, 0), ("next", True, 0),
                                                         ("slots", False, 9)])
def test_labels_and_difficulty(rng, track, plain, places):
    """Leading zeros, up to `places` of a number, are written but are no digits of it."""
    s = SimpleNamespace(max_digits=5, carry_rows=0.5, max_places=places, zeros="places" if places else "none",
                        few_rows=0.0, track=track, plain=plain)
    rows, answer, difficulty = addition.draw(rng, 200, s)
    labels = addition.labels(rows, answer, s)
    for i, text in enumerate(texts(rows)):
        left, right = text.rstrip(" \n").split("=")
        a, b = (value(n, plain) for n in left.split("+"))
        seen = {name: [(t, v) for t, v in enumerate(label[i].tolist()) if v >= 0] for name, label in labels.items()}
        for k in range(len(right)):
            t = len(left) + 1 + (len(right) - 1 - k if plain else k)
            assert seen.pop(f"digit {k}") == [(t, (a + b) // 10 ** k % 10)]
            assert k == 0 or seen.pop(f"carry into {k}") == [(t, (a % 10 ** k + b % 10 ** k) // 10 ** k)]
        assert not any(seen.values())
        assert difficulty["digits"][i] == max(len(str(a)), len(str(b)))
        assert difficulty["chain"][i] == chains(np.array([a]), np.array([b]), 10)[0]


@pytest.mark.parametrize("track", ["next", "slots"])
@pytest.mark.parametrize("plain", [False, True])
def test_prompts_and_answers_as_people_write_them(rng, track, plain):
    pairs = [(0, 0), (0, 10**12), (10**40 - 1, 1), (5, 5), (10, 9)]
    for digits in (1, 2, 13, 40):
        pairs += [tuple(int("".join(map(str, rng.integers(0, 10, rng.integers(1, digits + 1))))) for _ in "ab")]
    for a, b in pairs:
        s = SimpleNamespace(track=track, plain=plain, zeros="none")
        written = rng.choice([f"{a}+{b}=", f"{a}+{b}", f" {a} + {b} =\n"])
        text, start = spell(a, b, track, plain)
        row, answer = tasks.read(addition, written, s)
        assert "".join(SYMBOLS[t] for t in row) == text
        assert answer.tolist() == [t >= start for t in range(len(text))]
        assert tasks.show(addition, row, s) == f"{a}+{b}={a + b}"
        assert addition.solve(written, s) == str(a + b)


def test_number_text_stops_at_the_first_other_symbol():
    assert number_text(to_tokens("321\n99")) == "123"
    assert number_text(to_tokens("321 "), plain=True) == "321"
    assert number_text(to_tokens("000\n")) == "0"
    assert number_text(to_tokens("\n12")) == ""


@pytest.mark.parametrize("text", ["", "12", "1+2+3", "+", "1+", "+1=", "a+1", "1-2", "1+2=3", "1+2==", "-1+2", "1.5+2",
                                  "²+1", "١+٢"])
def test_what_is_no_addition_is_refused(text):
    with pytest.raises(ValueError, match="not an addition"):
        addition.read(text, SimpleNamespace(track="next", plain=False, zeros="none"))


# ---- the loss never sees an operand

def models():
    shape = {"vocab_size": 15, "block_size": 32, "n_head": 2, "n_embd": 16}
    facts = {"pad_token": 13, "think_token": 11, "number_tokens": (*range(10), 14)}
    yield GPT(GPTConfig(n_layer=2, **shape))
    yield GPT(GPTConfig(n_layer=1, label_smoothing=0.1, **shape))
    yield LoopGPT(LoopConfig(num_loops=3, supervise="half", pos="place", tie_weights=False, **shape, **facts))
    yield LoopGPT(LoopConfig(num_loops=2, supervise="all", label_smoothing=0.2, **shape, **facts))


@pytest.mark.parametrize("track", ["next", "slots"])
@pytest.mark.parametrize("model", list(models()))
def test_operands_get_no_gradient(rng, model, track):
    rows = addition.write_rows(*addition.random_problems(rng, 9, 3), addition.row_tokens(3, track), track)
    x, y = map(torch.from_numpy, inputs_and_targets(rows, track))
    logits = []
    hook = model.lm_head.register_forward_hook(lambda module, args, output: logits.append(output))
    model.train()(x, y)[1].backward(inputs=logits)
    hook.remove()
    asked = y >= 0
    assert 0 < asked.sum() < asked.numel()
    for out in logits:  # (B,T,V) or, of every supervised loop, (S,B,T,V)
        assert (out.grad[..., ~asked, :] == 0).all()
        assert (out.grad[..., asked, :] != 0).any(-1).all()
