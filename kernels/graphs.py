"""CUDA graphs and GPU times, for the kernels and for every script."""
import statistics

import torch


def capture(function, warm_up=None, pool=None, error_mode="global"):
    """A CUDA graph of function() on the current device: (graph, what function returned while it was captured).

    Before it, on a stream of its own, warm_up() lets libraries and compilers set themselves up; the default is
    function(), twice. pool: memory that several graphs share, since they replay one after the other. error_mode: as
    torch.cuda.graph's capture_error_mode.
    """
    stream, side, graph = torch.cuda.current_stream(), torch.cuda.Stream(), torch.cuda.CUDAGraph()
    side.wait_stream(stream)  # the inputs may still be on their way
    with torch.cuda.stream(side):
        if warm_up is None:
            function()
            function()
        else:
            warm_up()
    stream.wait_stream(side)
    try:
        with torch.cuda.graph(graph, pool=pool, capture_error_mode=error_mode):
            return graph, function()
    finally:
        torch.cuda.set_stream(stream)  # a capture that fails leaves its own behind


def gpu_milliseconds(call, times, warm_up=2):
    """Median time of call() on the GPU in ms, between events on the current stream, after some that warm up."""
    for _ in range(warm_up):
        call()
    pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(times)]
    torch.cuda.synchronize()
    for start, end in pairs:  # queued without a wait, so that the GPU is never idle between two calls
        start.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in pairs)
