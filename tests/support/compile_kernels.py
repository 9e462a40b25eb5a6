"""Compile every kernel for a GPU that need not be there: ``compile_kernels.py COMPUTE_CAPABILITY``.

A program of its own, for Triton decides once per process whether it interprets. Prints a line for
each kernel: its name, and the bytes of stack a thread takes because registers ran out.
"""

import re
import subprocess
import sys
import tempfile
from itertools import product
from types import SimpleNamespace

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from torchtitan_lighthouse import LighthouseConfig
from torchtitan_lighthouse.attention import kernels

CASES = {
    "530M at 98,304": (LighthouseConfig(topk=1536), 98_304, (8, 8), 128, torch.bfloat16),
    "530M in one tile": (
        LighthouseConfig(topk=1536, tile=1536),
        98_304,
        (8, 8),
        128,
        torch.bfloat16,
    ),
    "8B at 131,072": (LighthouseConfig(topk=2048), 131_072, (32, 8), 128, torch.bfloat16),
    "530M at 1M": (LighthouseConfig(levels=4, topk=4096), 2**20, (8, 8), 128, torch.bfloat16),
    "float32": (LighthouseConfig(levels=2, topk=256), 16_384, (8, 8), 64, torch.float32),
}


def launch_all(config, seq_len, heads, dim, dtype):
    q, k = (torch.empty(1, seq_len, h, dim, dtype=dtype).transpose(1, 2) for h in heads)
    pyramid = (config.levels, config.pooling_factor)
    slots = config.sub_sequence_length(seq_len)
    scores = kernels.norm_scores(q, k)
    nodes = kernels.select(*scores, *pyramid, config.topk, config.tile, config.pin_first)
    for rotation in (None, torch.empty(config.coarsest_window, dim // 2, 2)):
        gathered = kernels.gather(q, k, k, nodes, rotation, slots, *pyramid)
        kernels.gather_backward(*gathered, nodes, rotation, seq_len, *pyramid)
    out = kernels.scatter(gathered[0], nodes, seq_len, *pyramid, 1)
    kernels.scatter_backward(out, nodes, slots, *pyramid, 1)
    lse = torch.empty(q.shape[:-1])
    half = (q[:, :, seq_len // 2 :], lse[:, :, seq_len // 2 :])
    for earlier, later in product(((None, None), (q, lse)), ((None, None), half)):
        kernels.merge(q, lse, *earlier, *later, dtype)


def compile_instead_of_running(compute_capability: int) -> None:
    driver.set_active(
        SimpleNamespace(
            get_current_target=lambda: GPUTarget("cuda", compute_capability, 32),
            get_current_device=lambda: 0,
            get_current_stream=lambda _device: 0,
        )
    )
    run = JITFunction.run

    def compile_and_report(self, *args, **kwargs):
        compiled = run(self, *args, **{**kwargs, "warmup": True})
        with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
            cubin.write(compiled.asm["cubin"])
            cubin.flush()
            command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", cubin.name]
            usage = subprocess.check_output(command, text=True)
        print(self.fn.__name__, re.search(r"STACK:(\d+)", usage)[1])

    JITFunction.run = compile_and_report


if __name__ == "__main__":
    compile_instead_of_running(int(sys.argv[1]))
    for case in CASES.values():
        launch_all(*case)
