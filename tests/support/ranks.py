"""Ranks as processes of one machine."""

import multiprocessing
import os
import time
from collections.abc import Callable
from unittest import mock

import torch
from torch.multiprocessing import ProcessContext, start_processes

# Forked from a process that has imported these: every rank would take ten seconds for it.
multiprocessing.set_forkserver_preload(["torchtitan_lighthouse.train", "torch._dynamo"])


def run_ranks(function: Callable, ranks: int, *args: object, timeout: float = 300) -> None:
    """Call ``function(rank, *args)`` in each rank, on a CPU with one thread, and wait for all.

    Raises:
        ProcessRaisedException: a rank failed.
        TimeoutError: one did not end within ``timeout`` seconds.
    """
    with mock.patch.dict(os.environ, CUDA_VISIBLE_DEVICES=""):
        processes = start_processes(
            _run, (function, args), nprocs=ranks, join=False, start_method="forkserver"
        )
    _wait(processes, timeout)


def run_ranks_on_gpus(function: Callable, ranks: int, *args: object, timeout: float = 300) -> None:
    """The same on GPUs, which ranks share where there are fewer."""
    processes = start_processes(
        _run_on_gpu, (ranks, function, args), nprocs=ranks, join=False, start_method="spawn"
    )
    _wait(processes, timeout)


def _wait(processes: ProcessContext, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while not processes.join(timeout=1):
        if time.monotonic() > deadline:
            for process in processes.processes:
                process.kill()
            raise TimeoutError(
                f"a rank of {len(processes.processes)} did not end within {timeout} s"
            )


def _run(rank: int, function: Callable, args: tuple) -> None:
    torch.set_num_threads(1)
    # A rank's own workers, as in a rank of torchrun: not from a server that each rank would start.
    multiprocessing.set_start_method("fork", force=True)
    function(rank, *args)


def _run_on_gpu(rank: int, world_size: int, function: Callable, args: tuple) -> None:
    torch.cuda.set_device(rank % torch.cuda.device_count())
    if world_size > torch.cuda.device_count():
        # NCCL refuses two ranks of one host on one GPU; this makes each rank a host of its own.
        os.environ["NCCL_HOSTID"] = str(rank)
    function(rank, *args)
