"""Writing by steps of fixed shapes, as CUDA graphs replay them, against reading one token after the other: token for
token, loop for loop, in float64. Here they run as they are, neither captured nor compiled."""
import itertools

import pytest
import torch
from models import RULES_OF_BLOCKS, random_weights
from test_cache import BLOCK, SETTINGS, C, V, drawn, make, prompts, written

import generate
import static
from model import GPT, GPTConfig
from model_loop import STAGES


@pytest.fixture(autouse=True)
def seed(rng):
    torch.manual_seed(int(rng.integers(2 ** 31)))


@pytest.fixture
def bursts(monkeypatch):
    """How many tokens each burst of a step was asked for, and wrote."""
    found, steps = [], static.Step.steps

    def counted(self, n):
        result = steps(self, n)
        found.append((n, len(result[0][0])))
        return result
    monkeypatch.setattr(static.Step, "steps", counted)
    return found


def assert_same(model, given, n, **options):
    eager, steps = (written(model, given, n, way=way, **options) for way in ("eager", "graph"))
    for row, (tokens, loops, *_) in eager.items():
        assert (tokens, loops) == steps[row][:2]
    return eager


@pytest.mark.third
@pytest.mark.parametrize(("rule", "step_encoding", "pos"), list(itertools.product(
    RULES_OF_BLOCKS, SETTINGS["step_encoding"], SETTINGS["pos"])))
def test_steps_equal_the_cache(rule, step_encoding, pos, bursts):
    """Injections, updates, blocks, wait-to-think and the rest by chance; mixed lengths; sequences that end."""
    model = make(**drawn(halt=rule, step_encoding=step_encoding, pos=pos))
    found = assert_same(model, prompts(3, 10), 11, temperature=1.0, stop=5, seed=int(torch.randint(2 ** 40, ())))
    assert bursts or all(tokens == [5] for tokens, *_ in found.values())  # none is left after the reader's token


@pytest.mark.parametrize("update", STAGES)
@pytest.mark.parametrize("inject", SETTINGS["inject"])
def test_updates_and_injections(update, inject):
    assert_same(make(**drawn(update=update, inject=inject, extra={})), prompts(3, 10), 11, temperature=0)


def test_windows_that_move_and_room_that_grows(bursts):
    for pos in ("learned", "rope"):
        model = make(**drawn(pos=pos, n_layer=1, update="replace", extra={}))
        assert_same(model, [[1], [2] * 50], max(3 * BLOCK, static.SHORTEST + 6), temperature=1.5, top_k=5)
    assert len(bursts) > 15


def test_a_token_that_takes_more_loops_than_the_step_runs(bursts, monkeypatch):
    """Nobody goes on before it, the reader reads it, and what was read before keeps its own later loops."""
    monkeypatch.setattr(static, "rows_with_room", lambda n: 1)  # of loops: one, whatever tokens have taken so far
    model = make(**drawn(halt="entropy", step_encoding="none", pos="rope", n_layer=1, tie_loops=True,
                         extra=dict(prompt_loops=3)))
    for given in ([torch.randint(V - 2, (7,)).tolist()], [[11]]):
        assert_same(model, given, 24, temperature=1.0)
    assert any(done < asked for asked, done in bursts)


def test_a_plain_gpt():
    model = random_weights(GPT(GPTConfig(vocab_size=V, block_size=BLOCK, n_layer=2, n_head=2, n_embd=C)))
    found = assert_same(model, prompts(4, 30), 30, temperature=1.0)
    assert all(loops == [] for _, loops, *_ in found.values())


def test_sequences_leave_and_nothing_is_written_after_a_stop():
    model = make(**drawn(halt="none", pos="rope", update="replace", extra={}))
    given, room = prompts(9, 9), [3, 0, 30, 1, 9, 17, 8, 2, 12]
    free = written(model, given, 30, temperature=1.0, way="eager")
    stop = free[2][0][14]
    found = assert_same(model, given, room, temperature=1.0, stop=stop)
    for row, (tokens, *_) in found.items():
        until = free[row][0][:room[row]]
        assert tokens == (until[:until.index(stop) + 1] if stop in until else until)


def test_a_number_that_is_too_long_is_the_readers_to_refuse():
    model = make(pos="place", number_tokens=tuple(range(V)), place_ids=12, place_subset=0, update="replace",
                 think_token=None, pad_token=None)
    for way in ("eager", "graph"):
        with pytest.raises(ValueError, match="place_ids"):
            written(model, [[1, 2]], 30, way=way)


def test_steps_are_kept_until_weights_or_settings_change():
    model = make(**drawn(halt="none", pos="rope", update="replace", extra={}))  # halting may need steps of more loops
    written(model, [[1]], 12, way="graph")
    steps = static.kept_for(model).steps
    kept = dict(steps)
    assert len(kept) == 1
    written(model, [[2, 3]], 12, way="graph")
    assert dict(steps) == kept
    model.config.min_loops = 2
    assert not static.kept_for(model).steps
    written(model, [[2, 3]], 12, way="graph")
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    assert not static.kept_for(model).steps
    written(model, [[2, 3]], 12, way="graph")
    model.train().eval()
    assert not static.kept_for(model).steps


def test_two_writers_never_share_a_step():
    model = make(**drawn(halt="none", pos="rope", update="replace", extra={}))
    alone = [written(model, [[i]], 30, way="graph", temperature=0)[0][0] for i in (1, 2)]
    found = [[], []]
    for pair in zip(*(generate.write(model, [[i]], 30, 0, way="graph") for i in (1, 2)), strict=True):
        for tokens, burst in zip(found, pair, strict=True):
            tokens += burst.tokens[0]
    assert found == alone


def test_steps_that_a_capture_runs_change_nothing(monkeypatch):
    """Where all of a burst has run, too, and where a burst is one token, since its noise would be large."""
    prepare = static.Step.prepare

    def captured(self, compiled):
        prepare(self, compiled)
        kept = [x.clone() for x in (self.left, self.t, self.column)]
        self.left.zero_()
        for _ in range(3):
            self.run()
        for x, value in zip((self.left, self.t, self.column), kept, strict=True):
            x.copy_(value)
    model = make(**drawn(halt="confidence", pos="rope", update="replace", extra={}))
    alone = written(model, [[1], [2, 3]], 30, way="graph")
    monkeypatch.setattr(static.Step, "prepare", captured)
    monkeypatch.setattr(static, "COMPILE_AFTER", 0)  # then it is prepared again, in between
    for noise in (static.NOISE, 2 * V):
        monkeypatch.setattr(static, "NOISE", noise)
        static.forget_steps(model)
        found = written(model, [[1], [2, 3]], 30, way="graph")
        assert {i: x[:2] for i, x in found.items()} == {i: x[:2] for i, x in alone.items()}


@pytest.mark.parametrize("n", [*range(1, 40), 64, 65, 255, 256, 1000])
def test_rows_with_room(n):
    sizes = sorted({static.rows_with_room(i) for i in range(n, 2 * n + 1)})
    assert n <= sizes[0] <= max(n + 1, 1.25 * n)
    assert len(sizes) <= 9
    assert static.rows_with_room(sizes[0]) == sizes[0]


def test_each_way_is_tried_then_the_fastest_is_taken():
    ways, pace = dict(graph=None), {}
    for name in ("eager", "eager", "eager", "graph", "graph"):
        assert generate.ranked(ways, pace, 4)[0] == name
        times, _ = pace.get((name, 4), (0, 0))
        pace[name, 4] = times + 1, 1.0 if name == "graph" else 2.0
    assert generate.ranked(ways, pace, 4) == ["graph", "eager"]
    pace["graph", 4] = 9, 3.0
    assert generate.ranked(ways, pace, 4) == ["eager", "graph"]
    assert generate.ranked(ways, pace, 5) == ["eager", "graph"]  # not tried for so many


def test_what_a_way_cannot_do_costs_a_line(capsys):
    model = make(halt="none", pos="rope", update="replace")
    with pytest.raises(ValueError, match="way 'fast'"):
        written(model, [[1]], 3, way="fast")
    assert capsys.readouterr().err == ""
    written(model, [[1]], 3, way="graph", trace=True)
    assert "a trace is kept" in capsys.readouterr().err


def test_a_step_that_cannot_be_captured_costs_a_line(monkeypatch, capsys):
    monkeypatch.setattr(static.StepWriter, "failed", {})
    monkeypatch.setattr(static.Step, "prepare", lambda self, compiled: 1 / 0)
    monkeypatch.setattr(static, "ERRORS", ZeroDivisionError)
    model = make(**drawn(halt="none", pos="rope", update="replace", extra={}))
    found = [written(model, [[1]], 30, temperature=0, way=way)[0][0] for way in ("graph", "graph", "eager")]
    assert found[0] == found[1] == found[2]
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("writing")]
    assert len(said) == 1
    assert "division by zero" in said[0]


@pytest.mark.full
def test_the_compiler_takes_a_step_whole(monkeypatch):
    """No graph break, so nothing in it asks the host."""
    def prepare(self, compiled):
        self.compiled, self.draw_noise = compiled, self.fill_noise
        self.run = torch.compile(self.advance, dynamic=False, fullgraph=True, backend="aot_eager")
    model = make(**drawn(halt="entropy", update="replace", n_layer=1, extra={}), num_loops=2)
    eager = written(model, [[1, 2], [3]], 11, way="eager")
    monkeypatch.setattr(static.Step, "prepare", prepare)
    assert {i: x[:2] for i, x in written(model, [[1, 2], [3]], 11, way="graph").items()} == {
        i: x[:2] for i, x in eager.items()}


# ---- on a GPU

@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("way", ["graph", "compiled", "auto"])
def test_graphs_on_a_gpu(way, bursts):
    """Captured and compiled, the steps write what the reader writes; float64 has no ties."""
    for halt, pos, step_encoding in (("confidence", "learned", "none"), ("kl", "next", "learned"),
                                     ("none", "rope", "rope")):
        model = make(**drawn(halt=halt, pos=pos, step_encoding=step_encoding, n_layer=1, update="replace", extra={}))
        model, given = model.cuda(), prompts(5, 20)
        options = dict(temperature=1.0, top_k=7, stop=5, seed=int(torch.randint(2 ** 40, ())))
        bursts.clear()
        eager, steps = (written(model, given, 40, way=w, **options) for w in ("eager", way))
        assert {i: x[:2] for i, x in eager.items()} == {i: x[:2] for i, x in steps.items()}
        assert bursts
    assert not static.StepWriter.failed
