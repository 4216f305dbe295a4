"""Writing 16 sequences side by side (kernels/decode_rows.py), against the cache in torch and the kernel for one."""
import cutile_cpu
import pytest
import torch
from models import RULES_OF_BLOCKS
from test_decode import STAND_IN, N, V, by_cache, by_kernel, check, loop_model, on_both, on_gpu

import generate
import kernels.decode_rows
from cache import KVCache


@on_both
@pytest.mark.third
@pytest.mark.parametrize("halt", RULES_OF_BLOCKS)
@pytest.mark.parametrize("more", [dict(), dict(inject="none"), dict(inject="decay", update="euler", alpha=0.5),
                                  dict(update="euler", loop_norm=True, min_loops=2)], ids=str)
def test_writes_what_the_cache_writes(halt, more, device, rng):
    typical = dict(confidence=0.5, entropy=1.0, delta=0.7, kl=0.2, gate=0.5, none=None)
    check(int(rng.integers(2 ** 20)), halt=halt, halt_threshold=typical[halt], t=int(rng.integers(1, 6)), device=device,
          R=int(rng.integers(1, 3)), many=True, **more)


@on_both
@pytest.mark.parametrize("sizes", [dict(C=128, heads=4), dict(C=384, heads=3)], ids=str)
def test_wider_states(sizes, device, rng):
    """One sequence a PAST block and several; more tiles of a row than one, and of different widths."""
    check(int(rng.integers(2 ** 20)), halt="confidence", halt_threshold=0.5, device=device, many=True, **sizes)


@on_both
@torch.no_grad()
def test_all_rows_draw_and_end(device, rng):
    """17 sequences take two launches; each has its own noise, halts for itself, and leaves after its own end. They are
    those of the kernel that takes each by itself: its sums are the same."""
    R, loops = 17, []
    while not {1, 2} <= {*loops}:  # of some models all tokens take two
        seed = int(rng.integers(2 ** 20))
        model = loop_model(seed, device=device, num_loops=2, halt="entropy", halt_threshold=1.5)
        prompts = torch.randint(V, (R, 3), device=device)
        noise = torch.stack([generate.gumbel_noise(seed, torch.arange(R, device=device), i, V) for i in range(N)])
        loops = by_cache(model, prompts, N, 1.3, 5, noise, 0)[1].flatten().tolist()
    right = [torch.cat(x) for x in zip(*(  # as many at once as multiprocessors allow
        by_kernel(model, prompts[i:i + 6], N, 1.3, 5, noise[:, i:i + 6], 0) for i in range(0, R, 6)), strict=True)]
    with cutile_cpu.schedule("reverse"):
        tokens, loops = by_kernel(model, prompts, N, 1.3, 5, noise, 0, many=True)
    assert tokens.tolist() == right[0].tolist()
    assert loops.tolist() == right[1].tolist()


@pytest.mark.parametrize("order", ["reverse", "random"])
def test_in_any_order(order, rng):
    check(int(rng.integers(2 ** 20)), R=2, top_k=5, temperature=1.0, order=order, tolerance=0.1, halt="confidence",
          halt_threshold=0.5, many=True)


def test_waits_to_think(rng):
    """Prompt and answer take loops of their own."""
    check(int(rng.integers(2 ** 20)), R=2, think_token=3, prompt_loops=1, think_loops=2, many=True)


def test_who_waits_in_vain_gives_up(monkeypatch):
    monkeypatch.setattr(STAND_IN.decode_rows, "POLLS", 3)
    model = loop_model()
    with pytest.raises(RuntimeError, match="in vain"):
        by_kernel(model, torch.zeros(1, 1, dtype=torch.long), N, 0.0, None, None, -1, many=True)


def write(model, kv, token, first, n, device, noise=None):
    """n tokens of each sequence by the kernel, none of which ends it, from the tokens `token` (R,) at `first` (R,)."""
    R, c, package = len(token), model.config, STAND_IN if device == "cpu" else kernels
    plan = generate.reading_plan(model, torch.zeros(R, n, dtype=torch.long, device=device), False)
    at = first[:, None] + torch.arange(n, device=device)
    places = model.positions(torch.zeros(1, c.block_size, dtype=torch.long, device=device)).view(-1, c.n_embd)[at]
    return package.decode_rows.decode_n_tokens_of_many(
        n, model.loop_spec(), model.transformer.wte.weight, kv, c.num_loops, token, first, places,
        torch.ones(R, n, device=device), plan.threshold, plan.limit, noise,
        torch.zeros(c.vocab_size, dtype=bool, device=device), temperature=float(noise is not None))


def alone(model, prompt):
    """What the cache in torch writes after a prompt (1,t), the cache before it, and how close a decision was."""
    cache = KVCache(model, 1, 32)
    if prompt.size(1) > 1:
        generate.prefill(model, prompt[:, :-1], cache)
    return *by_cache(model, prompt, 4, 0.0, None, None, -1), cache.dense(model.config.num_loops, 32)


@on_both
@torch.no_grad()
def test_from_positions_of_their_own_in_two_launches(device, rng):
    """Prompts of different lengths; the second launch reads what tokens of the first owe to loops they did not take."""
    seed, lengths = int(rng.integers(2 ** 20)), (1, 3, 6)
    for attempt in range(1000):
        model = loop_model(1000 * seed + attempt, device=device, halt="confidence", halt_threshold=0.5)
        prompts = [torch.randint(V, (1, t), device=device) for t in lengths]
        tokens, loops, margins, kv = zip(*(alone(model, prompt) for prompt in prompts), strict=True)
        if min(margins) > 0.1 and min(x[:, :2].min() for x in loops) < model.config.num_loops:
            break
    else:
        pytest.fail("no inputs without a close decision")
    kv, first = torch.cat(kv, 2), torch.tensor(lengths, device=device) - 1
    a = write(model, kv, torch.cat([prompt[0, -1:] for prompt in prompts]), first, 2, device)
    b = write(model, kv, a[0][:, -1], first + 2, 2, device)
    assert torch.cat((a[0], b[0]), 1).tolist() == torch.cat(tokens).tolist()
    assert torch.cat((a[1], b[1]), 1).tolist() == torch.cat(loops).tolist()


def test_a_launch_for_no_token_ends(monkeypatch):
    """By which a kernel is compiled ahead."""
    write = STAND_IN.decode_rows.decode_n_tokens_of_many
    monkeypatch.setattr(STAND_IN.decode_rows, "decode_n_tokens_of_many", lambda n, *args: write(0, *args))
    prompts = torch.zeros(2, 1, dtype=torch.long)
    assert (by_kernel(loop_model(), prompts, N, 0.0, None, None, -1, many=True)[0] == -1).all()


@on_gpu
@pytest.mark.parametrize(("C", "heads"), [(128, 2), (384, 6)])
@torch.no_grad()
def test_many_rounds(C, heads, device, rng):
    """Blocks that run for thousands of rounds tell each other all, each time: 40 sequences of 120 tokens, in launches
    side by side, are the same whenever they are written. And every token is the best one, up to bfloat16, by the model
    in float32 that reads what stands before it."""
    R, n = 40, 120
    model = loop_model(int(rng.integers(2 ** 20)), C=C, heads=heads, device=device, block_size=128, num_loops=6,
                       halt="confidence", halt_threshold=0.7, vocab_size=65)
    first = torch.randint(65, (R,), device=device)
    noise = generate.gumbel_noise(int(rng.integers(2 ** 40)), torch.arange(R, device=device),
                                  torch.arange(n, device=device)[:, None], 65)

    def written():
        kv = first.new_zeros(6, 2, R, heads, 256, C // heads, dtype=torch.bfloat16)
        return write(model, kv, first, torch.zeros_like(first), n, device, noise)
    tokens, loops = written()
    for _ in range(10):
        again = written()
        assert again[0].tolist() == tokens.tolist()
        assert again[1].tolist() == loops.tolist()
    exact = model.float()
    exact.config.backend = "torch"
    read = torch.cat((first[:, None], tokens[:, :-1]), 1)
    logits = exact.readout(exact.think(read, exact_loops=loops)[0])
    score = logits + noise.transpose(0, 1)
    below = score.amax(-1) - score.gather(-1, tokens[..., None])[..., 0]
    assert (below == 0).float().mean() > 0.9
    assert below.mean() < 0.05
    assert 1 < loops.float().mean() < 6
