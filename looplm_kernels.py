"""The public face of kernels/: every kernel of LoopLM, its torch reference beside it, and the dispatch between them.

| what | where | reference |
| --- | --- | --- |
| halt_update: score every token, move the active ones, let those that pass halt | kernels/halt.py | there |
| head_halt: the readout and the halt update in one, no logits written | kernels/head.py | there |
| attention: causal, of a packed projection, with rotations | kernels/attention.py | there |
| adaptive_loop: all loops in one launch, or the fastest other way | kernels/loop.py, paths.py | LoopGPT.think |
| choose_backend, why_not_cutile: what can run here, and why not | kernels/backend.py | |

A CPU, or a GPU that cuTile does not know, runs the reference.

    python looplm_kernels.py        says what this machine can run

N tokens, C width, V vocabulary; B, T, nh, hs as in model.py.
"""
# ruff: noqa: F401 (what is imported here and not used is for others to import)
from types import SimpleNamespace

import torch

from kernels.attention import attention, attention_reference, rotate_halves, split_heads
from kernels.backend import (
    BACKENDS,
    CannotRun,
    at_least_float32,
    choose_backend,
    first_line,
    product_dtype,
    tileiras_version,
    why_not_cutile,
)
from kernels.block import INJECTS
from kernels.decode import decode_n_tokens, why_not_decode_kernel
from kernels.decode_rows import decode_n_tokens_of_many, fastest_decode, why_not_decode_of_many
from kernels.graphs import capture, gpu_milliseconds
from kernels.halt import (
    RULES,
    HaltingPlan,
    halt_score,
    halt_update,
    halt_update_reference,
    passes,
    softmax_statistics,
    state_delta,
)
from kernels.head import head_halt, head_halt_reference
from kernels.loop import LoopSpec, LoopTensors, constants, forget_weights, launch_loop, loop_sizes
from kernels.paths import CALLS_BEFORE_GRAPH, TABLE, adaptive_loop, comes_seldom, kernel_graph, loop_case, torch_graph
from kernels.tile import ERRORS, MISSING, ct, gpu, next_power_of_2


def smallest_loop(device):
    """Arguments of launch_loop: one sequence of three tokens, one loop of a block whose weights are zero."""
    if reason := why_not_cutile(device):
        raise RuntimeError(reason)
    C = 64
    config = SimpleNamespace(n_embd=C, n_head=2, vocab_size=13, step_encoding="none", inject="add", update="replace",
                             loop_norm=False)
    sizes = [int(k) for k in constants(loop_sizes(config, 3, "none", False, False, torch.bfloat16))]
    shapes = ((3 * C, C), (C, C), (4 * C, C), (C, 4 * C), (2, C), (1, C), (1, C), (13, C), (1, C), (1, C), (1, C))
    float32 = {4, 5, 9, 10}  # those of layer norms, steps and the halt head
    weights = [torch.zeros(shape, dtype=torch.float32 if i in float32 else torch.bfloat16, device=device)
               for i, shape in enumerate(shapes)]
    x0 = torch.zeros(1, 3, C, dtype=torch.bfloat16, device=device)
    one = torch.zeros(1, 3, dtype=torch.int32, device=device)
    return (x0, x0.new_empty(1, 1, 16), weights, one > 0, one.float(), one, one.clone(), sizes, (1.0, 0.0), 1, 1, 13)


def report():
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    compiler = tileiras_version()
    print(f"torch {torch.__version__}, cuda-tile {'none' if MISSING else ct.__version__}, "
          f"tileiras {'.'.join(map(str, compiler)) if compiler else 'none'}")
    if device.type == "cuda":
        print(f"{torch.cuda.get_device_name()}, compute capability {gpu(device).major}.{gpu(device).minor}, "
              f"{gpu(device).multi_processor_count} multiprocessors")
    h, one = torch.ones(2, 3, 32, device=device), torch.ones(3, device=device)
    tokens = (h[0], h[1], one > 0, one.long(), 1, one, one.long())
    calls = {"halt_update": lambda: halt_update("delta", *tokens, backend="cutile"),
             "head_halt": lambda: head_halt("entropy", *tokens, torch.ones(5, 32, device=device), h[0, 0],
                                            backend="cutile"),
             "attention": lambda: attention(torch.ones(1, 3, 96, device=device), 1, backend="cutile"),
             "loop": lambda: launch_loop(*smallest_loop(device))}
    for name, call in calls.items():
        try:
            call()
            print(f"{name}: cutile")
        except Exception as error:
            print(f"{name}: torch ({first_line(error)})")


if __name__ == "__main__":
    report()
