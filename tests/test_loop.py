"""LoopGPT without halting: the equations, the gradients, the loss, the place ids. Every run draws new inputs."""
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from models import random_weights

from model import GPT, GPTConfig
from model_loop import LoopConfig, LoopGPT, override
from tasks.addition import ID

V, T, C, NH, HS = 13, 7, 16, 2, 8
ADDITION = {"vocab_size": len(ID), "number_tokens": tuple(range(10)), "think_token": ID["="], "pad_token": ID[" "]}
PLACE = ADDITION | {"pos": "place", "place_ids": 12, "place_subset": 5}
NEXT = PLACE | {"place_next": True, "place_subset": 6}
INJECT, STEP = ("add", "none", "concat", "decay"), ("none", "learned", "sinusoid", "rope")
POS = ("learned", "none", "rope")


@pytest.fixture(autouse=True)
def _fresh_seed():
    print("seed", torch.seed())  # pytest shows it when a test fails


def make(**overrides):
    settings = {"vocab_size": V, "block_size": 12, "n_head": NH, "n_embd": C, "num_loops": 3} | overrides
    return random_weights(LoopGPT(LoopConfig(**settings)))


def tokens(B=2, length=T):
    return torch.randint(V, (B, length))


# ---- the equations, written out once more

def frequencies(n):
    return torch.tensor([10000 ** (-2 * i / n) for i in range((n + 1) // 2)], dtype=torch.float64)


def turn(x, angle):
    """Rotate (T,HS) as complex numbers: channel i is the real and i + HS/2 the imaginary part."""
    z = torch.complex(x[:, :HS // 2], x[:, HS // 2:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat((z.real, z.imag), 1)


def plain_block(block, x, q_angle, k_angle, source):
    """Block on one row x (T,C), head by head; angles (T,HS/2); source (T,C): whose keys and values it sees."""
    q, k, v = block.attn.c_attn(block.ln_1(x)).split(C, 1)
    k, v = block.attn.c_attn(block.ln_1(source)).split(C, 1)[1:]
    heads = []
    for n in range(NH):
        q_n, k_n, v_n = (y[:, n * HS:(n + 1) * HS] for y in (q, k, v))
        e = (turn(q_n, q_angle) @ turn(k_n, k_angle).T / math.sqrt(HS)).exp().tril()
        heads.append(e / e.sum(1, keepdim=True) @ v_n)
    x = x + block.attn.c_proj(torch.cat(heads, 1))
    return x + block.mlp(block.ln_2(x))


def sigmoid(x):
    return 1 / (1 + (-x).exp())


# Butcher tableaus: the slopes that each stage stands on, and the weights of all of them
TABLEAU = {"euler": ([[]], [1]), "heun": ([[], [1]], [1 / 2, 1 / 2]),
           "rk4": ([[], [1 / 2], [0, 1 / 2], [0, 0, 1]], [1 / 6, 1 / 3, 1 / 3, 1 / 6])}


def plain_input(model, h, x0, reads, l):
    """What the blocks read in loop l, for a state h that meets x0 as in loop `reads`."""
    c, u = model.config, h
    if reads > 1:
        if c.inject == "add":
            u = h + x0
        if c.inject == "concat":
            left, right = model.inject.mix.weight.split(C, 1)
            u = h @ left.T + x0 @ right.T
        if c.inject == "decay":
            u = sigmoid(model.inject.a) * h + model.inject.b * x0
    if c.step_encoding == "learned":
        u = u + model.step_bias[l - 1]
    if c.step_encoding == "sinusoid":
        waves = l * frequencies(C)
        u = u + model.step_scale * torch.cat((waves.sin(), waves.cos()))
    return u


def plain_blocks(model, u, q_angle, k_angle, l, x0):
    n, c = len(model.transformer.h), model.config
    for i in range(n) if c.tie_loops else range((l - 1) * c.n_layer, l * c.n_layer):
        u = plain_block(model.transformer.h[i], u, q_angle, k_angle, u if c.keys == "state" else x0)
    return u


def plain_states(model, row, loops):
    """h_1 ... h_L, (T,C) each, of one row of tokens (T,)."""
    c, x0 = model.config, model.transformer.wte.weight[row]
    if c.pos == "learned":
        x0 = x0 + model.transformer.wpe.weight[:len(row)]
    h, states = {"x0": x0, "zero": 0 * x0}.get(c.start), []
    if h is None:  # learned, or random
        h = model.first_state.repeat(len(row), 1)
    for l in range(1, loops + 1):
        u = plain_input(model, h, x0, l if c.start == "x0" else 2, l)
        position = torch.arange(len(row))[:, None] * frequencies(HS) * (c.pos == "rope")
        step = (l - 1) * frequencies(HS) * (c.step_encoding == "rope")
        candidate = plain_blocks(model, u, position + step, position, l, x0)
        new = candidate
        if c.update != "replace":
            alpha = c.alpha
            if alpha == "learned":
                alpha = model.step_size
            if alpha == "gate":
                w, b = model.step_gate.weight[0], model.step_gate.bias
                alpha = sigmoid(h @ w[:C] + x0 @ w[C:] + b)[:, None]
            slopes = [candidate - u]
            for i in range(1, len(TABLEAU[c.update][1])):  # also in loop 1 these states are not x0, so x0 is injected
                u = plain_input(model, h + alpha * sum(a * k for a, k in zip(TABLEAU[c.update][0][i], slopes,
                                                                             strict=True)), x0, 2, l)
                slopes.append(plain_blocks(model, u, position + step, position, l, x0) - u)
            new = h + alpha * sum(b * k for b, k in zip(TABLEAU[c.update][1], slopes, strict=True))
        if c.loop_norm:
            centred = new - new.mean(1, keepdim=True)
            new = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt() * model.loop_norm.weight
            new = new + (model.loop_norm.bias if c.bias else 0)
        h = new
        states.append(h)
    return states


def assert_equations(model, idx, loops):
    """The states of every loop and the final logits of each row are those of plain_states."""
    states, logits = list(model.states(idx, loops)), model(idx, idx, num_loops=loops)[0]
    for b, row in enumerate(idx):
        plain = plain_states(model, row, loops)
        for h, expected in zip(states, plain, strict=True):
            torch.testing.assert_close(h[b], expected, rtol=1e-5, atol=1e-5)  # rope's angles are float32
        final = model.lm_head(model.transformer.ln_f(plain[-1]))
        torch.testing.assert_close(logits[b], final, rtol=1e-5, atol=1e-5)


@pytest.mark.third
@pytest.mark.parametrize("update", [{"update": "replace"}, {"update": "euler", "alpha": 0.3},
                                    {"update": "euler", "alpha": "learned"}, {"update": "euler", "alpha": "gate"},
                                    {"update": "heun", "alpha": "gate"}, {"update": "rk4", "alpha": 0.3}],
                         ids=["replace", "euler", "learned", "gate", "heun", "rk4"])
@pytest.mark.parametrize("step_encoding", STEP)
@pytest.mark.parametrize("inject", INJECT)
def test_equations(inject, step_encoding, update):
    """Loop norm with a bias goes along with every second combination."""
    norm = (INJECT.index(inject) + STEP.index(step_encoding)) % 2 == 0
    model = make(inject=inject, step_encoding=step_encoding, loop_norm=norm, bias=norm, **update)
    assert_equations(model, tokens(), 3)


@pytest.mark.parametrize("update", [{}, {"update": "euler", "alpha": "gate"}, {"update": "rk4", "alpha": 0.3}], ids=str)
@pytest.mark.parametrize("inject", ["add", "concat", "decay"])
@pytest.mark.parametrize("start", ["zero", "learned", "random"])
def test_equations_from_other_starts(start, inject, update):
    assert_equations(make(start=start, inject=inject, step_encoding="sinusoid", **update), tokens(), 3)


def test_from_zero_a_loop_that_adds_is_as_from_x0():
    """To the bit: 0 + x0 is what loop 1 reads of x0."""
    model, idx = make(start="zero", loop_norm=True), tokens()
    other = make(loop_norm=True)
    other.load_state_dict(model.state_dict())
    assert all(map(torch.equal, model.states(idx), other.states(idx)))


def test_a_random_start_is_drawn_for_each_token_in_training_alone():
    model, idx = make(start="random", n_embd=256), tokens(64)
    x0, kept = model.embed(idx), model.first_state
    assert torch.equal(model.begin(x0), kept.expand_as(x0))
    first, second = model.train().begin(x0), model.begin(x0)
    for h in (first, second, first - second):
        h = h / h.std() if h is not first else h
        assert abs(h.mean()) < 0.02
        assert abs(h.var() - 1) < 0.03
        assert abs(h.mean(-1).var() * 256 - 1) < 0.4  # tokens apart
    saved = make(start="random", n_embd=256)
    saved.load_state_dict(model.state_dict())
    assert torch.equal(saved.begin(x0), kept.expand_as(x0))


@pytest.mark.parametrize("start", ["zero", "learned", "random"])
def test_another_start_needs_an_injection(start):
    with pytest.raises(ValueError, match=f"start '{start}' needs an injection"):
        make(start=start, inject="none")


@pytest.mark.third
@pytest.mark.parametrize("n_layer", [1, 2])
@pytest.mark.parametrize("step_encoding", STEP)
@pytest.mark.parametrize("pos", POS)
def test_equations_of_positions_and_blocks(pos, step_encoding, n_layer):
    """Loop norm without a bias here, and beyond the trained loops wherever the step encoding extends."""
    model = make(pos=pos, step_encoding=step_encoding, n_layer=n_layer, loop_norm=True)
    assert_equations(model, tokens(), 3 if step_encoding == "learned" else 6)


@pytest.mark.parametrize("inject", INJECT)
def test_equations_of_loops_with_blocks_of_their_own(inject):
    for update, n_layer in (("replace", 2), ("heun", 1)):
        model = make(inject=inject, tie_loops=False, n_layer=n_layer, update=update, step_encoding="learned",
                     pos="rope")
        assert_equations(model, tokens(), int(torch.randint(1, 4, ())))


@pytest.mark.parametrize("step_encoding", STEP)
def test_equations_of_keys_of_the_input(step_encoding):
    """All loops and blocks see the input of other tokens, and the state of their own."""
    for update, n_layer, bias in (("replace", 2, True), ("heun", 1, False)):
        model = make(keys="x0", step_encoding=step_encoding, pos="rope", update=update, n_layer=n_layer, bias=bias)
        assert_equations(model, tokens(), 3)


@pytest.mark.third
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("step_encoding", STEP)
@pytest.mark.parametrize("pos", POS)
def test_a_model_of_any_dtype_stays_in_it(pos, step_encoding, dtype):
    """No float32 angle widens or rounds the states."""
    model = make(pos=pos, step_encoding=step_encoding, update="euler", alpha="learned").to(dtype)
    assert [h.dtype for h in model.states(tokens())] == [dtype] * 3


def test_new_parameters_start_where_they_should():
    """decay 0.5 h + x0, learned step size 1, gate 0.5 on average, a sinusoid as loud as the embeddings."""
    settings = {"vocab_size": V, "n_head": NH, "n_embd": C, "update": "euler", "step_encoding": "sinusoid"}
    gate = LoopGPT(LoopConfig(**settings, inject="decay", alpha="gate"))
    h, x0 = torch.randn(2, 3, T, C)
    torch.testing.assert_close(gate.inject(h, x0), h / 2 + x0)
    assert (gate.alpha(h, x0) - 0.5).abs().max() < 0.25
    assert gate.step_encoding(3).norm().item() == pytest.approx(0.02 * math.sqrt(C / 2))
    assert LoopGPT(LoopConfig(**settings, alpha="learned")).alpha(h, x0) == 1


# ---- one loop is a plain GPT

@pytest.mark.third
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("n_layer", [1, 3])
@pytest.mark.parametrize("inject", INJECT)
def test_one_loop_is_a_plain_gpt_to_the_bit(inject, n_layer, training):
    """k blocks, one loop: logits, loss and in training the gradients are those of a k-layer GPT, dropout included.
    Several blocks are modern ones."""
    settings = {"vocab_size": V, "block_size": 12, "n_head": NH, "n_embd": C, "n_layer": n_layer, "dropout": 0.2,
                "label_smoothing": 0.1, "bias": True} | (
                    {"block": "modern", "n_kv_head": 1} if n_layer > 1 else {})
    gpt = GPT(GPTConfig(**settings)).train(training)
    loop = LoopGPT(LoopConfig(**settings, inject=inject, num_loops=1)).train(training)
    own = loop.load_state_dict(gpt.state_dict(), strict=False)
    assert not own.unexpected_keys
    assert all(name.startswith("inject.") for name in own.missing_keys)
    idx, targets, seed = tokens(), tokens(), torch.seed()
    (logits, loss), (expected, expected_loss) = (torch.manual_seed(seed) and m(idx, targets) for m in (loop, gpt))
    assert torch.equal(logits, expected)
    assert torch.equal(loss, expected_loss)
    if training:
        loss.backward()
        expected_loss.backward()
        mine = dict(loop.named_parameters())
        assert all(torch.equal(mine[name].grad, p.grad) for name, p in gpt.named_parameters())


@pytest.mark.parametrize("training", [True, False])
def test_without_targets_one_loop_gives_the_last_logits_as_a_plain_gpt(training):
    gpt = GPT(GPTConfig(vocab_size=V, block_size=12, n_head=NH, n_embd=C, n_layer=1)).train(training)
    loop = LoopGPT(LoopConfig(vocab_size=V, block_size=12, n_head=NH, n_embd=C, num_loops=1)).train(training)
    loop.load_state_dict(gpt.state_dict())
    idx = tokens()
    assert torch.equal(loop(idx)[0], gpt(idx)[0])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("n_layer", "loops"), [(1, 3), (2, 2)])
def test_loops_with_blocks_of_their_own_are_a_plain_gpt_to_the_bit(n_layer, loops, training):
    """Without an injection: weights at the start, logits, loss and in training the gradients, dropout included."""
    settings = {"vocab_size": V, "block_size": 12, "n_head": NH, "n_embd": C, "dropout": 0.2, "label_smoothing": 0.1,
                "bias": True}
    untied = LoopConfig(**settings, n_layer=n_layer, num_loops=loops, inject="none", tie_loops=False)
    seed, idx, targets, found = torch.seed(), tokens(), tokens(), []
    for kind, config in ((LoopGPT, untied), (GPT, GPTConfig(**settings, n_layer=n_layer * loops))):
        torch.manual_seed(seed)
        model = kind(config).train(training)
        weights = {k: x.clone() for k, x in model.state_dict().items()}
        logits, loss = model(idx, targets)
        if training:
            loss.backward()
        found.append(weights | {f"gradient {k}": p.grad for k, p in model.named_parameters() if training}
                     | {"logits": logits, "loss": loss, "flops": torch.tensor(model.flops_per_token(T, loops))})
        loops = 1  # of a plain GPT
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(x, found[1][k]) for k, x in found[0].items())


@pytest.mark.parametrize("l", [1, 2, 3])
def test_who_exits_in_a_loop_is_the_gpt_of_so_many_layers(l):
    """The readout is the same; the exit is by count, by a shorter loop, or by a rule that all pass in loop l."""
    model, idx = make(tie_loops=False, inject="none"), tokens()
    gpt = GPT(GPTConfig(vocab_size=V, block_size=12, n_head=NH, n_embd=C, n_layer=l)).double().eval()
    own = model.state_dict()
    gpt.load_state_dict({k: own[k] for k in gpt.state_dict()})
    expected = gpt.logits(idx)
    assert torch.equal(model(idx, idx, num_loops=l)[0], expected)
    logits, _, record = model(idx, idx, trace=True, exact_loops=torch.full_like(idx, l))
    assert torch.equal(logits, expected)
    assert torch.equal(record["prediction"][..., -1], expected.argmax(-1))
    model.config.halt, model.config.min_loops, model.config.halt_threshold = "entropy", l, 1e9
    logits, _, record = model(idx, idx, trace=True)
    assert torch.equal(logits, expected)
    assert (record["loops"] == l).all()


@pytest.mark.parametrize(("settings", "words"), [
    (dict(tie_loops=False), "tie_loops False.* 3 "),
    (dict(step_encoding="learned"), "step_encoding 'learned' ends.* 3 .*sinusoid.*rope.*none")])
def test_no_more_loops_than_blocks_or_learned_steps(settings, words):
    model = make(**settings, think_token=0)
    if model.config.tie_loops:
        assert make(**settings, num_loops=[2, 4]).loop_limit == 4
    for L in (1, 3):
        assert override(model, {"num_loops": L}).trained_loops == L
        assert len(list(model.states(tokens()))) == L
    with pytest.raises(ValueError, match=f"^4 loops, but .*{words}"):
        model(tokens(), num_loops=4)
    for setting in ("num_loops", "prompt_loops", "think_loops"):
        with pytest.raises(ValueError, match=f"^4 loops of {setting}, but .*{words}"):
            override(make(**settings, think_token=0), {setting: 4})
    with pytest.raises(ValueError, match=f"^4 loops of think_loops, but .*{words}"):
        make(**settings, think_token=0, think_loops=4)


# ---- gradients

def check_gradients(model, idx, targets, samples=4, step=1e-6):
    """The gradient of the training loss against central differences, at random entries of every parameter."""
    model.train().zero_grad()
    model(idx, targets)[1].backward()
    for name, p in model.named_parameters():
        for i in torch.randint(p.numel(), (samples,)).tolist():
            entry, losses = p.data.view(-1)[i], []
            middle = entry.item()
            for x in (middle + step, middle - step):
                entry.fill_(x)
                losses.append(model(idx, targets)[1].item())
            entry.fill_(middle)
            slope = (losses[0] - losses[1]) / (2 * step)
            assert p.grad.view(-1)[i].item() == pytest.approx(slope, rel=1e-4, abs=1e-7), f"{name}[{i}]"


GRADIENTS = [{"inject": "concat", "step_encoding": "learned", "supervise": "all"},
             {"inject": "decay", "step_encoding": "sinusoid", "update": "euler", "alpha": "gate", "loop_norm": True},
             {"inject": "none", "step_encoding": "rope", "update": "euler", "alpha": "learned", "n_layer": 2},
             {"inject": "add", "pos": "rope", "supervise": "half", "tie_weights": False, "bias": True},
             {"inject": "add", "block": "modern", "n_kv_head": 1, "pos": "rope", "loop_norm": True},
             {"inject": "add", "block": "geglu", "tie_loops": False, "supervise": "all"},
             {"inject": "decay", "step_encoding": "sinusoid", "update": "heun", "alpha": "gate", "loop_norm": True},
             {"inject": "concat", "step_encoding": "learned", "update": "rk4", "alpha": "learned", "supervise": "all"}]
FROZEN = {"think_token": 5, "prompt_loops": [1], "supervise": "half"}


@pytest.mark.parametrize("settings", [*GRADIENTS, FROZEN, {"start": "learned", "inject": "concat"}],
                         ids=[*(x["inject"] for x in GRADIENTS), "frozen prompt", "start"])
def test_gradients_through_three_loops(settings):
    idx = tokens()
    idx[:, 3] = 5
    check_gradients(make(**settings), idx, tokens())


@pytest.mark.parametrize("settings", GRADIENTS, ids=[x["inject"] for x in GRADIENTS])
def test_a_cut_between_two_loops_is_found(settings, monkeypatch):
    """The check above fails if the result of loop 2 is detached, as truncated back-propagation would do."""
    whole = LoopGPT.loop

    def cut(self, h, x0, l, active):
        new = whole(self, h, x0, l, active)
        return new.detach() if l == 2 else new

    monkeypatch.setattr(LoopGPT, "loop", cut)
    with pytest.raises(AssertionError):
        check_gradients(make(**settings), tokens(), tokens())


@pytest.mark.parametrize("settings", [GRADIENTS[0], GRADIENTS[1], GRADIENTS[3]], ids=["concat", "decay", "add"])
@pytest.mark.parametrize("kept", [1, 2, 3, 9])
def test_gradients_through_the_last_loops_alone(settings, kept):
    """Those of a loop whose state is detached before the last `kept` loops, losses alike."""
    model, idx, targets = make(grad_loops=kept, num_loops=4, **settings).train(), tokens(), tokens()
    logits, loss = model(idx, targets, num_loops=4)
    loss.backward()
    got = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    free, h, states = max(0, 4 - kept), model.embed(idx), []
    x0 = h
    for l in range(1, 5):
        h = model.loop(h.detach() if l == free + 1 and free else h, x0, l)
        states.append(h)
    first = {"last": 3, "half": 2 + free // 2, "all": free}[model.config.supervise]
    wanted = sum(plain_loss(model, h, targets) for h in states[first:]) / (4 - first)
    wanted.backward()
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(logits, model.readout(h))
    for (name, p), grad in zip(model.named_parameters(), got, strict=True):
        torch.testing.assert_close(grad, torch.zeros_like(p) if p.grad is None else p.grad, msg=name)


def test_gradients_through_the_last_loops_under_autocast():
    """autocast keeps rounded weights: those of the loops without a gradient must not serve the loops with one."""
    model, idx, targets = make(grad_loops=2).float().train(), tokens(), tokens()
    grads = []
    for mixed in (True, False):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, mixed):
            loss = model(idx, targets, num_loops=5)[1]
        loss.backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.transformer.h.parameters()]))
    assert (grads[0] - grads[1]).norm() < 0.1 * grads[1].norm()


@pytest.mark.third
@pytest.mark.parametrize("step_encoding", STEP)
def test_a_compiled_loop_serves_all_loop_counts(step_encoding):
    """As train.py compiles it: the same loss and gradients, and no graph of its own for a loop count or a loop."""
    model, graphs = make(step_encoding=step_encoding, num_loops=[2, 3, 5, 9], grad_loops=2).train(), []

    def backend(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)
    idx, plain = tokens(), model.loop
    torch._dynamo.reset()
    for loops in (5, 2, 9, 3):
        found = []
        for model.loop in (plain, torch.compile(plain, backend=backend)):
            model.zero_grad()
            loss = model(idx, idx, loops)[1]
            loss.backward()
            found.append([loss, *(p.grad for p in model.parameters())])
        torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-9)
    assert len(graphs) <= 6  # the first loop, the second, any other; with a gradient and without


# ---- prompts that stand still early

def problem(B=4):
    """Rows of a prompt, the think token 5, an answer and a pad, 0; and targets of what writes the answer."""
    idx = torch.randint(6, V, (B, 10))
    before = torch.randint(1, 7, (B, 1))
    idx.scatter_(1, before, 5)
    idx[:, -1] = 0
    return idx, torch.where((torch.arange(10) < before) | (idx == 0), -1, torch.randint(V, (B, 10)))


def states_by_inference(model, idx, read, loops):
    """The states (L,B,T,C) after so many loops of the answer, those of the prompt `read` at most; pads left out."""
    model.eval()
    prompt = (idx == 5).cumsum(1) == 0
    states = [model.think(idx, exact_loops=torch.where(prompt, min(read, l), l))[0] for l in range(1, loops + 1)]
    model.train()
    return torch.stack(states)[:, :, :-1]


@pytest.mark.parametrize("settings", [*GRADIENTS, {"loop_norm": True}], ids=[*(x["inject"] for x in GRADIENTS), "norm"])
@pytest.mark.parametrize("read", [1, 2, 3])
def test_a_training_step_with_frozen_prompts_is_inference_with_exact_loops(settings, read):
    model = make(**settings | {"num_loops": 5, "pad_token": 0, "think_token": 5, "prompt_loops": [read]})
    idx, targets = problem()
    first = {"last": 4, "half": 2, "all": 0}[model.config.supervise]

    def loss_by_inference(read):
        states = states_by_inference(model, idx, read, 5)[first:]
        return sum(plain_loss(model, h, targets[:, :-1]) for h in states) / len(states), model.readout(states[-1])
    logits, loss = model.train()(idx, targets)
    expected = loss_by_inference(read)
    torch.testing.assert_close((loss, logits[:, :-1]), expected, rtol=1e-8, atol=1e-8)
    assert (loss - loss_by_inference(9)[0]).abs() > 1e-6  # they were frozen


def test_each_row_draws_when_its_prompt_stands_still():
    model, idx = make(num_loops=5, think_token=5, pad_token=0, prompt_loops=[1, 3, 0]).train(), problem(90)[0]
    got, drawn = torch.stack(list(model.states(idx)))[:, :, :-1], 0
    for read in (1, 3, 9):
        want = states_by_inference(model, idx, read, 5)
        same = ((got - want).abs() < 1e-8).all(-1).all(-1).all(0)
        assert same.any()
        drawn = drawn + same.int()
    assert (drawn == 1).all()


@pytest.mark.parametrize("counts", [[0], [3], [8, 0, 3]])
def test_prompts_that_never_stand_still_train_as_ever(counts):
    model, (idx, targets) = make(think_token=5, supervise="all").train(), problem()
    plain = model(idx, targets)
    frozen = make(think_token=5, supervise="all", prompt_loops=counts).train()
    frozen.load_state_dict(model.state_dict())
    torch.testing.assert_close(frozen(idx, targets), plain, rtol=0, atol=0)


def test_out_of_training_a_list_is_its_largest_count():
    """Nothing is drawn, and what evaluates a training looks at loops that all tokens take."""
    model, idx = make(num_loops=5, think_token=5, pad_token=0, prompt_loops=[1, 2, 0]), problem()[0]
    twin = make(num_loops=5, think_token=5, pad_token=0, prompt_loops=2)
    twin.load_state_dict(model.state_dict())
    prompt = (idx == 5).cumsum(1) == 0
    h, record = model.think(idx)
    assert torch.equal(record["loops"], torch.where(idx == 0, 0, torch.where(prompt, 2, 5)))
    assert torch.equal(h, twin.think(idx)[0])
    assert all(map(torch.equal, model.states(idx), twin.states(idx)))


def test_a_list_of_prompt_loops_asks_for_a_think_token():
    with pytest.raises(ValueError, match="prompt_loops and think_loops need a dataset with a think token"):
        make(prompt_loops=[0, 2])
    with pytest.raises(ValueError, match="num_loops and prompt_loops must be one or more counts"):
        make(think_token=5, prompt_loops=[])


def test_a_step_with_frozen_prompts_asks_the_host_nothing():
    """All of it is one graph, whatever is drawn: what the capture of a CUDA graph needs."""
    model, (idx, targets) = make(think_token=5, pad_token=0, prompt_loops=[1, 2]).train(), problem()
    torch._dynamo.reset()
    graphs, losses = [], set()

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward
    step = torch.compile(model.training_loss, fullgraph=True, backend=backend)
    for _ in range(40):
        losses.add(round(step(idx, targets)[1].item(), 9))
    assert len(graphs) == 1
    assert len(losses) > 1


def test_loops_without_a_gradient_need_an_injection():
    with pytest.raises(ValueError, match=r"grad_loops.*inject 'none'"):
        make(inject="none", grad_loops=2, num_loops=[2, 3])
    make(inject="none", grad_loops=3)


# ---- the loss

def plain_loss(model, h, targets):
    """Mean cross entropy of the readout of h where targets are not -1, with the model's smoothing if it trains."""
    logp = model.lm_head(model.transformer.ln_f(h)).log_softmax(-1)
    e = model.config.label_smoothing if model.training else 0
    terms = [-(1 - e) * logp[b, t, y] - e * logp[b, t].mean()
             for b, row in enumerate(targets.tolist()) for t, y in enumerate(row) if y >= 0]
    return sum(terms) / len(terms)


@pytest.mark.parametrize("supervise", ["last", "half", "all"])
@pytest.mark.parametrize("loops", [1, 4, 5])
def test_supervised_loops_share_the_loss(loops, supervise):
    """half is the second half, the middle loop of an odd count included; the logits are those of the last loop."""
    model, idx, targets = make(supervise=supervise, label_smoothing=0.1).train(), tokens(), tokens()
    targets[0, :3] = -1
    states = [torch.stack(x) for x in zip(*(plain_states(model, row, loops) for row in idx), strict=True)]
    each = [plain_loss(model, h, targets) for h in states]
    chosen = {"last": each[-1:], "half": each[loops // 2:], "all": each}[supervise]
    logits, loss = model(idx, targets, num_loops=loops)
    torch.testing.assert_close(loss, sum(chosen) / len(chosen))
    torch.testing.assert_close(logits, model.lm_head(model.transformer.ln_f(states[-1])))


def test_loss_per_loop():
    model, idx, targets = make(supervise="all", label_smoothing=0.1), tokens(), tokens()
    targets[1, 2:4] = -1
    states = [torch.stack(x) for x in zip(*(plain_states(model, row, 5) for row in idx), strict=True)]
    each = torch.stack([plain_loss(model, h, targets) for h in states])
    torch.testing.assert_close(model.loss_per_loop(idx, targets, 5), each.detach())
    torch.testing.assert_close(model.loss_per_loop(idx, targets), each[:3].detach())
    torch.testing.assert_close(model(idx, targets, num_loops=5)[1], each[-1])  # validation reads the last loop


@pytest.mark.parametrize("counts", [[2, 5, 3], (5,), 5])
def test_evaluation_takes_the_largest_number_of_loops(counts):
    model, idx = make(num_loops=counts), tokens()
    default, five, four = (model(idx, idx, num_loops=n)[0] for n in (None, 5, 4))
    assert torch.equal(default, five)
    assert not torch.allclose(default, four)
    assert len(list(model.states(idx))) == 5
    assert model(idx, trace=True)[2]["entropy"].shape == (2, T, 5)


def test_training_draws_dropout_afresh_in_every_loop():
    """The masks of the loops differ: with one mask for all, loop 2 after an identity loop would repeat loop 1."""
    model = make(dropout=0.5, inject="none").train()
    h = torch.randn(2, T, C).double()
    assert not torch.allclose(model.loop(h, h, 1), model.loop(h, h, 2))


# ---- positions

def read(*rows):
    """Rows of text -> ids (B,T), padded with spaces."""
    width = max(map(len, rows))
    return torch.tensor([[ID[s] for s in row.ljust(width)] for row in rows])


def plain_places(row, equals):
    """The index of each digit in its number from 1, 0 at symbols, `equals` at '='."""
    places, k = [], 0
    for token in row.tolist():
        k = k + 1 if token < 10 else 0
        places.append(equals if token == ID["="] else k)
    return places


def test_place_ids_count_from_the_least_significant_digit_of_each_number():
    idx = read("123+45=861\n", "9+99999=00001_", "=7+", "1234567890")
    places = make(**PLACE).place_index(idx)[0]
    assert places[0].tolist() == [1, 2, 3, 0, 1, 2, 13, 1, 2, 3, 0, 0, 0, 0]
    assert places.tolist() == [plain_places(row, 13) for row in idx]
    noise = torch.randint(len(ID), (50, 11))
    assert make(**PLACE).place_index(noise)[0].tolist() == [plain_places(row, 13) for row in noise]
    slots = make(**PLACE | {"number_tokens": (*range(10), ID["_"])})
    assert slots.place_index(read("12+3=___"))[0][0].tolist() == [1, 2, 0, 1, 13, 1, 2, 3]


def test_place_ids_in_training_are_a_sorted_subset_shared_by_the_numbers_of_a_row():
    """One draw a row, increasing, without repeats, out of 1..place_ids, every id at every place it can have."""
    model = make(**PLACE).train()
    idx = read("12345+123=1234\n").expand(400, -1)
    drawn = model.place_index(idx)[0]
    a, b, c = drawn[:, :5], drawn[:, 6:9], drawn[:, 10:14]
    assert torch.equal(b, a[:, :3])
    assert torch.equal(c, a[:, :4])
    assert (a.diff() > 0).all()
    assert a.min() == 1
    assert a.max() == 12
    assert drawn[:, 5].eq(0).all()
    assert drawn[:, 9].eq(13).all()
    assert drawn[:, 14].eq(0).all()
    for place in range(5):  # of 12 ids, 5 drawn: the place leaves room for those below and above it
        share = a[:, place].bincount(minlength=13)[1:] / 400
        p = torch.tensor([math.comb(i, place) * math.comb(11 - i, 4 - place) / math.comb(12, 5) for i in range(12)])
        assert ((share - p).abs() < 6 * (p * (1 - p) / 400).sqrt() + 3 / 400).all()
    assert not torch.equal(model.place_index(idx)[0], drawn)


@pytest.mark.parametrize("training", [True, False])
def test_place_ids_do_not_depend_on_later_tokens(training):
    model, idx, seed = make(**NEXT).train(training), read("98+765=368\n", "1+1=2\n", "12345+1=22345\n"), torch.seed()
    torch.manual_seed(seed)
    full = model.place_index(idx)
    for t in range(1, idx.size(1)):
        torch.manual_seed(seed)
        for seen, whole in zip(model.place_index(idx[:, :t]), full, strict=True):
            assert torch.equal(seen, whole[:, :t])


def test_place_subset_of_zero_trains_on_the_ids_of_the_test():
    model, idx = make(**PLACE | {"place_subset": 0}), read("98+765=368\n")
    assert torch.equal(model.train().place_index(idx)[0], model.eval().place_index(idx)[0])


def test_place_embedding_is_added_to_the_token():
    model, idx = make(**PLACE), read("98+765=368\n", "1+1=2\n")
    for x, row in zip(model.embed(idx), idx, strict=True):
        places = torch.tensor(plain_places(row, 13))
        torch.testing.assert_close(x, model.transformer.wte.weight[row] + model.place.weight[places])


def test_place_ids_that_run_out_are_an_error():
    """12 digits at test and 5 in training are the most; rows may be longer than that."""
    model = make(**PLACE)
    model.place_index(read("9" * 12 + "+1=1"))
    with pytest.raises(ValueError, match=r"13 digits.*place_ids is 12"):
        model.place_index(read("1+" + "9" * 13 + "=1"))
    model.train().place_index(read("99999+99999=1"))
    with pytest.raises(ValueError, match=r"6 digits.*place_subset is 5"):
        model.place_index(read("1+1=2", "999999+1="))


def next_places(row):
    """The index of the place that follows each token's own: of '=' the first of the answer, of a symbol 0 for none."""
    return [1 if token == ID["="] else k and k + 1 for token, k in zip(row.tolist(), plain_places(row, 0), strict=True)]


def test_the_next_place_follows_a_digits_own():
    idx = read("123+45=861\n", "9+99999=00001_", "=7+", "1234567890")
    following = make(**NEXT).place_index(idx)[1]
    assert following[0].tolist() == [2, 3, 4, 0, 2, 3, 1, 2, 3, 4, 0, 0, 0, 0]
    assert following.tolist() == [next_places(row) for row in idx]
    noise = torch.randint(len(ID), (50, 11))
    own, following = make(**NEXT).place_index(noise)
    assert own.tolist() == [plain_places(row, 13) for row in noise]
    assert following.tolist() == [next_places(row) for row in noise]


@pytest.mark.parametrize("runs", [0.0, 0.4, 1.0])
def test_the_next_place_comes_from_the_same_random_subset(runs):
    """The ids of the places and of those that follow agree in every row, and symbols are told of none."""
    model = make(**NEXT | {"place_runs": runs}).train()
    idx = read("12345+123=12345\n", "9+1=0\n", "54321+1=654\n", "=12345").repeat(50, 1)
    own, following = model.place_index(idx)
    for row, k, ahead in zip(idx, own.tolist(), following.tolist(), strict=True):
        ids = {}  # what the row's first, second, ... place is called
        for index, name in [*zip(plain_places(row, 0), k, strict=True), *zip(next_places(row), ahead, strict=True)]:
            assert not index or ids.setdefault(index, name) == name
        names = [ids[i] for i in sorted(ids)]
        assert names == sorted(set(names))
        assert 1 <= names[0] <= names[-1] <= 12
    symbols = (idx >= 10) & (idx != ID["="])
    assert following[symbols].eq(0).all()
    assert following[~symbols].gt(0).all()


@pytest.mark.parametrize(("runs", "ids", "subset"), [(0.25, 9, 4), (1.0, 7, 7), (1.0, 8, 1), (0.6, 30, 8)])
def test_a_share_of_the_rows_has_consecutive_ids(runs, ids, subset):
    """The first id of a run is uniform, so that it reaches both ends of the table; the other rows are random."""
    N = 6000
    model = make(**PLACE | {"place_ids": ids, "place_subset": subset, "place_runs": runs})
    drawn = model.random_places(N, "cpu").squeeze(1)
    assert drawn.shape == (N, subset)
    assert (drawn.diff() > 0).all()
    assert drawn.min() == 1
    assert drawn.max() == ids
    starts = ids - subset + 1
    consecutive = drawn[:, -1] - drawn[:, 0] == subset - 1
    p = runs + (1 - runs) * starts / math.comb(ids, subset)  # by chance a random subset is one, too
    assert abs(consecutive.double().mean() - p) <= 6 * math.sqrt(p * (1 - p) / N)
    first = drawn[consecutive, 0].bincount(minlength=starts + 1)[1:].double()
    expected = len(drawn[consecutive]) / starts
    assert ((first - expected).abs() < 6 * math.sqrt(expected) + 1).all()


def test_place_runs_of_zero_draw_as_ever():
    """The same generator gives the same subsets as before there were runs."""
    model, seed, B = make(**PLACE).train(), torch.seed(), 31
    torch.manual_seed(seed)
    drawn = model.random_places(B, "cpu")
    torch.manual_seed(seed)
    assert torch.equal(drawn[:, 0], torch.rand(B, 12).topk(5).indices.sort(1).values + 1)


@pytest.mark.parametrize("runs", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("pack", "ids", "subset"), [(2, 11, 5), (3, 12, 4), (4, 40, 4)])
def test_problems_of_a_row_have_no_place_id_in_common(pack, ids, subset, runs):
    """Each problem has ids of its own, the same ones for its numbers, ascending; any of them may have the lowest."""
    problems = ["123+45=168", "9+9=18", "123+1=124", "7+1=8"]
    model = make(**NEXT | {"place_ids": ids, "place_subset": subset, "place_runs": runs, "pack": pack}).train()
    idx = read("  ".join(problems[:pack])).expand(300, -1)
    own, following = model.place_index(idx)
    first, owner = [], torch.zeros(300, ids + 2, dtype=torch.long)  # who has an id
    at = 0
    for number, problem in enumerate(problems[:pack]):
        here = slice(at, at + len(problem))
        at += len(problem) + 2
        plain, ahead = plain_places(read(problem)[0], 0), next_places(read(problem)[0])
        table = torch.full((300, subset + 1), -1)
        for k, index in [*zip(own[:, here].T, plain, strict=True), *zip(following[:, here].T, ahead, strict=True)]:
            if index:
                assert ((table[:, index] == k) | (table[:, index] < 0)).all()
                table[:, index] = k
        known = table[:, table[0] >= 0]
        assert (known.diff() > 0).all()
        assert known.min() >= 1
        assert known.max() <= ids
        assert owner.gather(1, known).eq(0).all()
        owner.scatter_(1, known, number + 1)
        if runs == 1:
            assert (known.diff() == 1).all()
        first.append(known[:, 0])
    assert (torch.stack(first).argmin(0).bincount(minlength=pack) > 0).all()


def test_a_row_of_one_problem_is_placed_alike_whatever_pack_is_at_test():
    model, idx = make(**NEXT | {"place_ids": 12, "place_subset": 4, "pack": 3}).eval(), read("123+45=168", "9+9=18")
    for seen, plain in zip(model.place_index(idx), make(**NEXT).eval().place_index(idx), strict=True):
        assert torch.equal(seen, plain)


def test_pack_takes_no_prompts_that_stand_still():
    with pytest.raises(ValueError, match=r"several"):
        make(**PLACE | {"pack": 2, "prompt_loops": [0, 2]})


@pytest.mark.parametrize("settings", [dict(pos="rope"), dict(place_subset=0), dict(place_subset=5)])
def test_pack_needs_place_ids_for_all_problems(settings):
    with pytest.raises(ValueError, match=r"pack 3 gives each problem.*place_ids 12"):
        make(**PLACE | {"pack": 3} | settings)


def test_the_next_place_is_added_to_the_token():
    model, idx = make(**NEXT), read("98+765=368\n", "1+1=2\n")
    for x, row in zip(model.embed(idx), idx, strict=True):
        table = model.transformer.wte.weight[row] + model.place.weight[torch.tensor(plain_places(row, 13))]
        torch.testing.assert_close(x, table + model.place_next.weight[torch.tensor(next_places(row))])
    assert model.place_next.weight.shape == (13, C)


def test_without_the_next_place_a_model_is_the_one_of_before():
    """The same weights from the same seed, and no table, so that old checkpoints load."""
    seed, settings = torch.seed(), LoopConfig(**PLACE, block_size=12, n_head=NH, n_embd=C, halt_head="joint")
    torch.manual_seed(seed)
    plain = LoopGPT(settings)
    assert not any("place_next" in k for k in plain.state_dict())
    torch.manual_seed(seed)
    louder = LoopGPT(replace(settings, place_scale=0.2))
    for (k, a), b in zip(plain.state_dict().items(), louder.state_dict().values(), strict=True):
        torch.testing.assert_close(b, 10 * a if k == "place.weight" else a, rtol=1e-6, atol=0)


@pytest.mark.parametrize("scale", [0.02, 0.2])
def test_place_tables_start_as_loud_as_told(scale):
    model = LoopGPT(LoopConfig(**NEXT | {"place_ids": 300}, n_head=2, n_embd=64, block_size=12, place_scale=scale))
    for table in (model.place, model.place_next):
        n = table.weight.numel()
        assert abs(table.weight.std().item() / scale - 1) < 6 / math.sqrt(2 * n)
        assert abs(table.weight.mean().item()) < 6 * scale / math.sqrt(n)


def test_the_next_place_needs_one_id_more():
    """11 digits at test with 12 ids, 5 in training with 6."""
    model = make(**NEXT)
    model.place_index(read("9" * 11 + "+1=1"))
    with pytest.raises(ValueError, match=r"12 digits.*place_ids is 12, place_next takes one"):
        model.place_index(read("1+" + "9" * 12 + "=1"))
    model.train().place_index(read("99999+99999=1"))
    with pytest.raises(ValueError, match=r"6 digits.*place_subset is 6, place_next takes one"):
        model.place_index(read("1+1=2", "999999+1="))
    make(**NEXT | {"longest_number": 5})


def end_places(row, equals):
    """plain_places, and for a symbol right after a number, '=' apart, the index that would follow in it."""
    before, places = 0, []
    for token, k in zip(row.tolist(), plain_places(row, equals), strict=True):
        places.append(before + 1 if token >= 10 and token != ID["="] and before else k)
        before = k if token < 10 else 0
    return places


def test_the_place_below_is_told_instead():
    """Of the first place and of symbols none, from the same random subset; no id more is needed, but by place_end."""
    settings = NEXT | {"place_below": True, "number_tokens": (*range(10), ID["_"])}
    model, idx = make(**settings), read("123+45=____", "9+99999=___")
    own, below = model.place_index(idx)
    assert torch.equal(own, make(**NEXT | {"number_tokens": settings["number_tokens"]}).place_index(idx)[0])
    assert below[0].tolist() == [0, 1, 2, 0, 0, 1, 0, 0, 1, 2, 3]
    own, below = model.train().place_index(idx)
    assert torch.equal(below[0, 8:], own[0, 7:10])
    assert torch.equal(below[1, 3:7], own[1, 2:6])
    model.place_index(read("999999+1=1"))
    model.eval().place_index(read("9" * 12 + "+1=1"))
    with pytest.raises(ValueError, match=r"6 digits.*place_subset is 6"):
        make(**settings | {"place_end": True}).train().place_index(read("999999+1=1"))


def test_a_symbol_after_a_number_tells_where_it_ends():
    model = make(**NEXT | {"place_end": True})
    idx = read("123+45=861\n", "9+99999=00001_", "=7+", "+12++3=4")
    own, following = model.place_index(idx)
    assert own[0].tolist() == [1, 2, 3, 4, 1, 2, 13, 1, 2, 3, 4, 0, 0, 0]
    assert own.tolist() == [end_places(row, 13) for row in idx]
    assert following.tolist() == [next_places(row) for row in idx]
    for t in range(1, idx.size(1)):
        assert torch.equal(model.place_index(idx[:, :t])[0], own[:, :t])
    cache = SimpleNamespace(digits=0, longest=14, static=False)
    chunks = [model.place_index(x, cache)[0] for x in idx.split([3, 1, 2, 1, 7], 1)]  # as writing goes on from a cache
    assert torch.equal(torch.cat(chunks, 1), own)
    drawn, ahead = model.train().place_index(read("123+1=4\n").expand(200, -1))
    assert torch.equal(drawn[:, 3], ahead[:, 2])  # the '+' has the id that the digit before it is told of
    model.place_index(read("99999+99999=1"))  # the longest numbers that 6 ids allow
    model.eval().place_index(read("9" * 11 + "+1=1"))


@pytest.mark.parametrize("step", [1, -1])
def test_the_margin_loss_is_a_hinge_on_every_pair_of_places(step):
    """Against plain loops over heads and places, with the digits of the same draw; step: next or below."""
    model, seed = make(**NEXT | {"place_margin": 3.0, "place_below": step < 0}).train(), torch.seed()
    with torch.no_grad():
        model.place.weight.mul_(40)
        model.place_next.weight.mul_(40)
    torch.manual_seed(seed)
    loss = model.margin_loss()
    torch.manual_seed(seed)
    n, block = 11 if step > 0 else 12, model.transformer.h[0]
    tokens = model.numbers[torch.randint(len(model.numbers), (2, n))]
    ids = torch.arange(1, n + 1)
    x = model.transformer.wte(tokens) + model.place(ids) + model.place_next(ids + step)
    q, k = (y.view(2, n, NH, C // NH) for y in block.attn.c_attn(block.ln_1(x)).split(C, 2)[:2])
    expected = 0.0
    for head in range(NH):
        for ahead in (0, step):
            chances, gaps = [], []
            for i in [i for i in range(n) if 0 <= i + ahead < n]:
                scores = [(q[0, i, head] @ k[1, j, head]).item() / math.sqrt(C // NH) for j in range(n)]
                right = scores.pop(i + ahead)
                chances.append(math.exp(right) / (math.exp(right) + sum(map(math.exp, scores))))
                gaps.append(max(0.0, 3.0 - right + max(scores)))
            expected += sum(chances) / len(chances) * sum(gaps) / len(gaps)
    assert expected > 0.1
    torch.testing.assert_close(loss.item(), expected, rtol=1e-4, atol=1e-5)
    loss.backward()
    assert model.place.weight.grad[1:n + 1].abs().amax(1).min() > 0  # every id learns, whatever rows hold


@pytest.mark.parametrize("pos", POS)
def test_heads_that_share_keys_are_heads_whose_keys_are_alike(pos):
    """Also for the margin loss, which looks at the scores of loop 1."""
    settings = {"n_head": 4, "block": "modern", **(NEXT | {"place_margin": 3.0} if pos == "none" else {"pos": pos})}
    shared, idx = make(**settings, n_kv_head=2), torch.randint(V, (2, 9))
    every = make(**settings)
    state, (q, k, v) = shared.state_dict(), shared.transformer.h[0].attn.c_attn.weight.split([C, C // 2, C // 2])
    k, v = (x.view(2, 1, 4, C).expand(2, 2, 4, C).reshape(C, C) for x in (k, v))
    every.load_state_dict(state | {"transformer.h.0.attn.c_attn.weight": torch.cat((q, k, v))})
    torch.testing.assert_close(shared(idx, idx)[0], every(idx, idx)[0], rtol=1e-9, atol=1e-10)
    if pos == "none":
        losses, seed = [], torch.seed()
        for model in (shared, every):
            torch.manual_seed(seed)
            losses.append(model.train().margin_loss())
        torch.testing.assert_close(*losses, rtol=1e-9, atol=1e-10)


def test_the_margin_loss_counts_in_training_alone():
    idx = read("12+34=46\n")
    targets = idx.roll(-1, 1)
    model, seed = make(**NEXT | {"place_margin": 3.0, "place_subset": 0}).train(), torch.seed()
    torch.manual_seed(seed)
    with_it = model(idx, targets)[1]
    torch.manual_seed(seed)
    margin = model.margin_loss()
    model.config.place_margin = 0.0
    torch.testing.assert_close(with_it, model(idx, targets)[1] + 0.1 * margin)
    model.config.place_margin = 3.0
    torch.testing.assert_close(model.eval()(idx, targets)[1], model.loss(model.logits(idx), targets))


@pytest.mark.parametrize("setting", [{"place_end": True}, {"place_margin": 8.0}, {"place_below": True}])
def test_finding_the_next_place_needs_the_next_place(setting):
    with pytest.raises(ValueError, match="place_next"):
        make(**PLACE | setting)


@pytest.mark.third
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("step_encoding", STEP)
@pytest.mark.parametrize("pos", [*POS, "place"])
def test_no_token_sees_a_later_one(pos, step_encoding, training):
    settings = {"pos": pos, "step_encoding": step_encoding, "place_subset": 12, "log_scale": 3}
    model = make(**PLACE | settings).train(training)
    seed, t = torch.seed(), int(torch.randint(1, T, ()))
    idx = torch.randint(len(ID), (3, T))
    other = torch.cat((idx[:, :t], torch.randint(len(ID), (3, T - t))), 1)
    (a, _), (b, _) = (torch.manual_seed(seed) and model(x, x) for x in (idx, other))
    torch.testing.assert_close(a[:, :t], b[:, :t], rtol=1e-9, atol=1e-9)
    assert not torch.allclose(a[:, t:], b[:, t:]) or torch.equal(idx, other)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("pos", ["none", "rope"])
def test_log_scale_against_the_formula(pos, grad):
    """One loop of one block: the queries that see more than n keys are log(keys) / log(n) times as large."""
    n = int(torch.randint(2, T, ()))
    model, idx = make(pos=pos, num_loops=1, log_scale=n, backend="torch"), tokens(1)
    block, x = model.transformer.h[0], model.embed(idx)[0]
    q, k, v = block.attn.c_attn(block.ln_1(x)).split(C, 1)
    angle = torch.arange(T)[:, None] * frequencies(HS) if pos == "rope" else torch.zeros(T, HS // 2).double()
    keys = torch.arange(1.0, T + 1).double()
    heads = []
    for i in range(NH):
        q_i, k_i, v_i = (y[:, i * HS:(i + 1) * HS] for y in (q, k, v))
        score = turn(q_i, angle) @ turn(k_i, angle).T / math.sqrt(HS) * (keys.log() / math.log(n)).clamp(min=1)[:, None]
        e = score.exp().tril()
        heads.append(e / e.sum(1, keepdim=True) @ v_i)
    x = x + block.attn.c_proj(torch.cat(heads, 1))
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(model(idx, idx)[0][0], model.readout(x + block.mlp(block.ln_2(x))),
                                   rtol=1e-6, atol=1e-6)


def test_log_scale_changes_nothing_up_to_the_trained_length():
    model, idx = make(pos="none", log_scale=T), tokens()
    want = model(idx, idx)[0]
    for n, equal in ((0, True), (T - 1, False)):
        model.config.log_scale = n
        assert torch.equal(model(idx, idx)[0], want) == equal


@pytest.mark.parametrize("pos", ["none", "rope", "place"])
def test_positions_without_a_table_do_not_end(pos):
    model = make(**PLACE | {"pos": pos, "block_size": 4})
    assert "wpe" not in model.transformer
    assert model(read("98+765=368\n"))[0].isfinite().all()


def test_generate_continues_beyond_the_block_size_without_a_table():
    model = make(pos="rope", block_size=4)
    idx = tokens(2, 3)
    expected = idx
    for _ in range(5):
        expected = torch.cat((expected, model(expected, expected)[0][:, -1:].argmax(-1)), 1)
    assert torch.equal(model.generate(idx, 5, temperature=0), expected)


# ---- the halt head

def plain_head(model, h, l):
    """Probability of the halt head on one state h (C,), as a tensor."""
    first, _, second = model.halt_head
    s = model.step_encoding(l) if model.config.step_encoding != "none" else torch.zeros(C)
    if model.config.gate_encoding:
        s = torch.cat(((l * frequencies(C)).sin(), (l * frequencies(C)).cos()))
    u = first.weight @ torch.cat((h, s)) + first.bias
    return sigmoid(second.weight @ (u * 0.5 * (1 + torch.erf(u / math.sqrt(2)))) + second.bias)[0]


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("step_encoding", ["none", "learned"])
def test_halt_loss_by_brute_force(step_encoding, own):
    """The target of loop l is 1 if the arg-max of every loop from l on is that of the last."""
    model, targets = make(halt_head="joint", step_encoding=step_encoding, gate_encoding=own, num_loops=5), tokens(4)
    targets[:, :2] = -1
    states = torch.randn(5, 4, T, C).double()
    for l in (3, 2, 1, 0):  # some tokens already are where the next loop takes them, some only pass by the last state
        r = torch.rand(4, T, 1)
        states[l] = torch.where(r < 0.4, states[l + 1], torch.where(r < 0.7, states[4], states[l]))
    terms, settled = [], []
    for b in range(4):
        for t in range(2, T):
            best = [int(model.readout(states[l, b, t]).argmax()) for l in range(5)]
            for l in range(5):
                settled.append(all(best[later] == best[4] for later in range(l, 5)))
                p = plain_head(model, states[l, b, t], l + 1).item()
                terms.append(-math.log(p if settled[-1] else 1 - p))
    assert 4 * (T - 2) < sum(settled) < len(settled)  # both kinds occur, before the last loop too
    assert model.halt_loss(states, targets).item() == pytest.approx(sum(terms) / len(terms), rel=1e-4)


@pytest.mark.parametrize("fresh", [True, False])
def test_halt_head_after_trains_nothing_else(fresh):
    """The trunk runs without dropout, also in a model that nobody has called train() on, and takes no gradient."""
    model, idx, targets = make(halt_head="after", dropout=0.5, step_encoding="learned"), tokens(), tokens()
    expected = model.halt_loss(torch.stack(list(model.states(idx))), targets)
    if fresh:
        weights, model = model.state_dict(), LoopGPT(model.config).double()
        model.load_state_dict(weights)
    else:
        model.train()
    loss = model(idx, targets)[1]
    torch.testing.assert_close(loss, expected)
    loss.backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    assert trained == {name for name in model.state_dict() if name.startswith("halt_head.")}
    optimizer = model.configure_optimizers(0.1, 0.1, (0.9, 0.95), "cpu")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == trained


def test_an_encoding_of_the_gates_own_moves_no_state():
    """Its odds differ from loop to loop, beyond the trained ones too, where the state is the same."""
    model, idx = make(halt_head="joint", gate_encoding=True), tokens()
    plain = make(halt_head="joint")
    plain.load_state_dict(model.state_dict())
    assert all(map(torch.equal, model.states(idx), plain.states(idx)))
    h = torch.randn(2, T, C).double()
    odds, same = ([m.halt_logits(h, l) for l in (1, 2, 9)] for m in (model, plain))
    assert all((a - b).abs().min() > 0 for a, b in ((odds[0], odds[1]), (odds[1], odds[2])))
    assert torch.equal(same[0], same[2])


def test_halt_head_joint_trains_everything():
    """The loss is the sum of both, and the halt head's reaches the trunk."""
    model, idx, targets = make(halt_head="joint", step_encoding="sinusoid").train(), tokens(), tokens()
    loss = model(idx, targets)[1]
    states = torch.stack(list(model.states(idx)))
    halt = model.halt_loss(states, targets)
    torch.testing.assert_close(loss, plain_loss(model, states[-1], targets) + halt)
    halt.backward()
    assert model.transformer.h[0].mlp.c_fc.weight.grad.norm() > 0
    model.zero_grad()
    loss.backward()
    assert all(p.grad is not None and p.grad.norm() > 0 for p in model.parameters())


# ---- settings

@pytest.mark.parametrize(("settings", "words"), [
    *(({key: "nonsense"}, f"{key}.*nonsense") for key in
      ("pos", "inject", "keys", "step_encoding", "update", "supervise", "halt", "halt_head")),
    ({"num_loops": 0}, "num_loops"), ({"num_loops": []}, "num_loops"), ({"num_loops": [3, 0]}, "num_loops"),
    ({"alpha": "fast"}, "alpha.*fast"), ({"halt": "gate"}, "halt_head"),
    ({"prompt_loops": 2}, "prompt_loops"), ({"think_loops": 2}, "think_loops"),
    ({"pos": "place"}, "pos 'place'"), (PLACE | {"place_subset": 13}, "place_subset 13.*place_ids 12"),
    (PLACE | {"longest_number": 6}, "place_subset 5.* 6 digits"),
    (NEXT | {"longest_number": 6}, "place_subset 6.* 6 digits.* one place more"), ({"place_next": True}, "place_next"),
    (PLACE | {"place_runs": 0.5, "place_subset": 0}, "place_runs 0.5"),
    ({"n_embd": 6, "pos": "rope"}, "rope.*even"), ({"n_embd": 6, "step_encoding": "rope"}, "rope.*even"),
    ({"tie_loops": False, "num_loops": [2, 3]}, "tie_loops.*num_loops"),
    ({"tie_loops": False, "grad_loops": 2}, "tie_loops.*grad_loops"),
    ({"tie_loops": False, "anderson": 1}, "tie_loops.*anderson"),
    ({"n_embd": 15}, "n_embd 15.*n_head 2")])
def test_settings_that_cannot_work_name_the_key(settings, words):
    with pytest.raises(ValueError, match=words):
        make(**settings)


def test_an_odd_width_works_without_rope():
    model = make(n_embd=15, n_head=3, step_encoding="sinusoid", inject="concat")
    assert model(tokens())[0].isfinite().all()
