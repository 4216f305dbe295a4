"""Writing in one launch (kernels/decode.py), against the cache in torch: on the stand-in, and on a GPU."""
import copy
import itertools
from types import SimpleNamespace

import cutile_cpu
import pytest
import torch
from cutile_cpu import load_kernels
from models import RULES_OF_BLOCKS

import burst
import generate
import kernels.decode_rows
from cache import KVCache
from model_loop import LoopConfig, LoopGPT

STAND_IN = load_kernels()
WHY = kernels.backend.why_not_cutile(torch.device("cuda")) if torch.cuda.is_available() else "there is no GPU"
on_both = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[
    pytest.mark.gpu, pytest.mark.skipif(bool(WHY), reason=f"needs a GPU that cuTile runs on: {WHY}")])])
on_gpu = pytest.mark.parametrize("device", on_both.args[1][1:])
V, N = 13, 3
# How many times as large a kernel's error in the distance of two logits is as in a score. Against float32, products
# of bfloat16 erred by 0.071 at most in 1,400 such models, in a score by 0.042 (gate), 0.025 (entropy), 0.013 (others).
SCORES = dict(confidence=3, entropy=3, delta=3, kl=3, gate=1.5)


def loop_model(seed=0, C=64, heads=2, device="cpu", **settings):
    torch.manual_seed(seed)
    rule = settings.get("halt", "none")
    config = LoopConfig(**dict(dict(
        vocab_size=V, block_size=32, n_layer=1, n_head=heads, n_embd=C, num_loops=3, pos="learned",
        halt_head="joint" if rule == "gate" else "none"), **settings))
    model = LoopGPT(config)
    for p in model.parameters():  # louder than at the start of a training, so that loops matter
        if p.dim() > 1:
            torch.nn.init.normal_(p, std=0.2)
    return model.to(device).bfloat16().eval()


def by_cache(model, prompts, n, temperature, top_k, noise, end):
    """What the cache in torch writes after prompts (R,t): tokens and loops (R,n), -1 after the end, and how close the
    closest decision was: of a token to the next best and of the last of top_k to the next, in logits, and of a score to
    its threshold, times SCORES.

    The prompt is read as the kernel's was, in bfloat16, and all else in float32: in bfloat16 the largest logits are
    whole multiples of 1/32, so that two of them look as far apart as the kernel may be wrong, and are equal.
    """
    R, L, c = len(prompts), model.trained_loops, model.config
    cache = KVCache(model, R, 32)
    if prompts.size(1) > 1:
        generate.prefill(model, prompts[:, :-1], cache)
    model, cache.kv, cache.backend = copy.deepcopy(model).float(), [x.float() for x in cache.kv], "torch"
    model.config.backend = "torch"
    idx, tokens, loops, margin = prompts[:, -1:], [], [], float("inf")
    ended = torch.zeros(R, dtype=torch.bool, device=prompts.device)
    for t in range(n):
        if t == 0 and prompts.size(1) == 1:
            logits, record = generate.prefill(model, idx, cache, trace=True)
        else:
            logits, record = generate.decode_one_token(model, idx, cache, trace=True)
        plan = generate.reading_plan(model, idx)
        if plan.rule != "none":
            distance = (record["score"] - plan.threshold[..., None]).abs()[:, :, c.min_loops - 1:L - 1][~ended]
            margin = min([margin, *(SCORES[plan.rule] * distance[~distance.isnan()]).tolist()])
        pick = logits / (temperature or 1.0)
        pairs = []  # of numbers that must not change places
        if top_k:
            likeliest = pick.topk(top_k + 1).values
            pairs.append(likeliest[~ended, -2:])
            pick = pick.masked_fill(pick < likeliest[:, [-2]], -1e20)
        pick = pick + (noise[t] if temperature else 0)
        pairs.append(pick.topk(2).values[~ended])
        margin = min([margin, *(-torch.cat(pairs).diff()).flatten().tolist()])
        idx = pick.argmax(-1, keepdim=True)
        tokens.append(idx[:, 0].masked_fill(ended, -1))
        loops.append(record["loops"][:, -1].masked_fill(ended, -1))
        ended = ended | (idx[:, 0] == end)
    return torch.stack(tokens, 1), torch.stack(loops, 1), margin


def by_kernel(model, prompts, n, temperature, top_k, noise, end, many=False):
    """The same by the kernel, or by the one of many sequences; on a CPU by that of the stand-in."""
    R, t = prompts.shape
    L, c, device = model.trained_loops, model.config, prompts.device
    cache = KVCache(model, R, 32)
    if t > 1:
        generate.prefill(model, prompts[:, :-1], cache)
    at = torch.full((R,), t - 1, device=device)
    places = model.positions(torch.zeros(R, t - 1 + n, dtype=torch.long, device=device))
    places = torch.zeros(1, t - 1 + n, c.n_embd, device=device) if places is None else places
    thinks = (prompts == c.think_token).any(1, keepdim=True) if c.think_token is not None else False
    plan = generate.reading_plan(model, torch.zeros(R, n, dtype=torch.long, device=device), thinks)
    limit = torch.full((R, n), plan.limit, device=device) if plan.fixed else plan.limit
    package = kernels if prompts.is_cuda else STAND_IN
    write = package.decode_rows.decode_n_tokens_of_many if many else package.decode.decode_n_tokens
    return write(
        n, model.loop_spec(), model.transformer.wte.weight, cache.dense(L, 32), L, prompts[:, -1], at,
        places.expand(R, -1, -1)[:, t - 1:], torch.ones(R, n, device=device), plan.threshold, limit,
        noise if temperature else None, torch.arange(V, device=device) == end, temperature, top_k or 0)


@torch.no_grad()
def check(seed, R=1, t=3, temperature=0.0, top_k=None, ends=False, order="forward", tolerance=0.15,
          device="cpu", many=False, **settings):
    """Tokens and loops are the cache's, on inputs on which no decision is close; what the cache gave."""
    for attempt in itertools.count():
        assert attempt < 1000, "no inputs without a close decision"
        model = loop_model(1000 * seed + attempt, device=device, **settings)
        prompts = torch.randint(V, (R, t), device=device)
        rows = torch.arange(R, device=device)
        noise = torch.stack([generate.gumbel_noise(seed + attempt, rows, i, V) for i in range(N)])
        if model.config.think_token is not None:
            prompts[:, -1] = model.config.think_token
        right = by_cache(model, prompts, N, temperature, top_k, noise, -1)
        end = -1
        if ends:
            end = int(right[0][0, 0])  # of the first sequence at once, of others later or never
            right = by_cache(model, prompts, N, temperature, top_k, noise, end)
        if right[2] > tolerance:
            break
    with cutile_cpu.schedule(order, seed):
        tokens, loops = by_kernel(model, prompts, N, temperature, top_k, noise, end, many)
    assert tokens.tolist() == right[0].tolist()
    assert loops.tolist() == right[1].tolist()
    return right


@on_both
@pytest.mark.third
@pytest.mark.parametrize("halt", RULES_OF_BLOCKS)
@pytest.mark.parametrize("more", [dict(), dict(inject="none"), dict(inject="decay", update="euler", alpha=0.5),
                                  dict(update="euler", loop_norm=True, min_loops=2, gate_encoding=True),
                                  dict(step_encoding="learned"), dict(step_encoding="sinusoid", inject="none")],
                         ids=str)
def test_writes_what_the_cache_writes(halt, more, device, rng):
    typical = dict(confidence=0.5, entropy=1.0, delta=0.7, kl=0.2, gate=0.5, none=None)
    check(int(rng.integers(2 ** 20)), halt=halt, halt_threshold=typical[halt], t=int(rng.integers(1, 6)), device=device,
          **more)


@on_both
@pytest.mark.parametrize("sizes", [dict(C=128, heads=2), dict(C=384, heads=3)], ids=str)
def test_wider_states(sizes, device, rng):
    """More tiles of a row than one, and of different widths."""
    check(int(rng.integers(2 ** 20)), halt="confidence", halt_threshold=0.5, device=device, **sizes)


@on_both
def test_sequences_side_by_side_draw_and_end(device, rng):
    """Each has its own noise, and leaves after its own end."""
    check(int(rng.integers(2 ** 20)), R=3, temperature=1.3, top_k=5, ends=True, tolerance=0.1, halt="entropy",
          halt_threshold=1.0, order="random", device=device)


def test_waits_to_think(rng):
    """Prompt and answer take loops of their own."""
    check(int(rng.integers(2 ** 20)), think_token=3, prompt_loops=1, think_loops=2)


@pytest.mark.parametrize("start", ["zero", "learned", "random"])
def test_another_start_is_left_to_torch(start, monkeypatch):
    """why_not_decode_kernel names it; of the same model that starts at x0 it has nothing to say on that."""
    monkeypatch.setattr(kernels.decode.tile, "gpu", lambda device: SimpleNamespace(major=9, multi_processor_count=132))
    for kind in (start, "x0"):
        why = kernels.decode.why_not_decode_kernel(loop_model(start=kind).loop_spec(), 1, 32, 4)
        assert (f"start '{start}'" in why) == (kind == start)


def test_who_waits_in_vain_gives_up(monkeypatch):
    monkeypatch.setattr(STAND_IN.decode, "POLLS", 3)
    model = loop_model()
    with pytest.raises(RuntimeError, match="in vain"):
        by_kernel(model, torch.zeros(1, 1, dtype=torch.long), N, 0.0, None, None, -1)


def written(model, prompts, way, **settings):
    """Tokens and loops of all that `write` writes after prompts, and the most tokens that it wrote at once."""
    tokens, loops, longest = [[] for _ in prompts], [[] for _ in prompts], 0
    for got in generate.write(model, prompts, seed=5, way=way, **settings):
        for row, new, took in zip(got.rows, got.tokens, got.loops, strict=True):
            tokens[row] += new
            loops[row] += took
            longest = max(longest, len(new))
    return tokens, loops, longest


PLACES = dict(pos="place", place_ids=40, place_next=True, number_tokens=[0, 1, 2, 3, 4, 5, 6, 10, 11, 12],
              think_token=7, pad_token=8, log_scale=4)


@on_both
@pytest.mark.parametrize("settings", [dict(pos="learned", block_size=8), PLACES], ids=["window", "place"])
def test_writing_in_bursts(settings, device, monkeypatch, rng):
    """As token by token: where windows move, symbols stand amid digits, and sequences end."""
    if device == "cpu":
        monkeypatch.setattr(burst, "fastest_decode", lambda *args: STAND_IN.decode.decode_n_tokens)
        monkeypatch.setattr(burst, "BURST", 4)
    given = dict(max_new_tokens=[9, 3, 6], temperature=1.0, top_k=6, stop=9)
    for _ in range(8):  # some inputs have a close decision
        model = loop_model(int(rng.integers(2 ** 20)), device=device, halt="confidence", halt_threshold=0.5, **settings)
        right, ours = (written(model, [[1, 2, 7], [3, 4, 0, 7], [1, 7]], way, **given) for way in ("eager", "kernel"))
        if right[:2] == ours[:2] and ours[2] > 1:
            break
    assert right[:2] == ours[:2]
    assert ours[2] > 1


@pytest.mark.parametrize(("settings", "says"), [
    (dict(n_layer=2), "n_layer"), (dict(tie_loops=False), "of their own"), (dict(block="qk"), "block 'qk'"),
    (dict(n_kv_head=1), "share keys"), (dict(keys="x0"), "keys of x0")])
@torch.no_grad()
def test_other_models_are_left_to_torch(settings, says, rng):
    """Both kernels say why not, and who writes asks them."""
    model = loop_model(int(rng.integers(2 ** 20)), **settings)
    for why_not in (burst.why_not_decode_kernel(model.loop_spec(), 1, 32, 3),
                    burst.why_not_decode_of_many(model.loop_spec(), 32, 3), burst.KernelWriter.why_not(model, 1, 32)):
        assert says in why_not


@on_gpu
@torch.no_grad()
def test_draws_have_the_distribution_of_softmax(device, rng):
    """20,000 draws of the token after the same one, by a chi-square test."""
    R, seed = 3, int(rng.integers(2 ** 40))
    model = loop_model(int(rng.integers(2 ** 20)), device=device)
    prompts, draws = torch.zeros(R, 1, dtype=torch.long, device=device), []
    for i in range(0, 20000, R):
        noise = generate.gumbel_noise(seed, torch.arange(i, i + R, device=device), 0, V)[None]
        draws.append(by_kernel(model, prompts, 1, 1.0, None, noise, -1)[0])
    logits, _ = generate.prefill(model, prompts[:1], KVCache(model, 1, 32))
    expected = logits[0].float().softmax(-1).cpu() * len(draws) * R
    seen = torch.bincount(torch.cat(draws).flatten(), minlength=V).cpu()
    chi2 = ((seen - expected) ** 2 / expected.clamp(min=1)).sum().item()
    assert chi2 < 45  # 12 degrees of freedom: p = 1e-5
