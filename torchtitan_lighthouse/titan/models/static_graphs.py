"""Keeps ``torch.compile`` from making graphs of symbolic sizes."""

import torch


def use_static_graphs() -> None:
    """Have ``torch.compile`` make a graph for each batch and length, in this process, from now on.

    Otherwise the second shape that a block meets, that of validation or of training, gets a graph
    of symbolic sizes, and which one that is depends on the job. A block meets four at most: of
    training and of validation, under Lighthouse attention and under dense SDPA.
    """
    torch._dynamo.config.automatic_dynamic_shapes = False
