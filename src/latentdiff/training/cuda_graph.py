"""Many small kernels as one launch: on a GPU a small network waits for its launches, not for its arithmetic."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from latentdiff.config import UserError

USUAL = 3  # calls before the one that is recorded: what is chosen, compiled or allocated once then is


class CudaGraph:
    """function(*inputs), on CUDA recorded as a graph at its fourth call in a row with inputs of the same shapes and
    types, and from then on played back: the same kernels work on what the inputs hold.

    Inputs and the result are tensors, and lists or dicts of them; anything else in the inputs must stay equal too.
    learning: the parameters of which the function leaves gradients; it must find none in them. What it changes in place
    on the device a replay changes as well; what it changes on the host it does not. Elsewhere the function is called as
    it is. What cannot be recorded is called so too, or refused with `advice`: half a training step changes weights.
    """

    def __init__(self, function: Callable, learning: Iterable[nn.Parameter] = (), advice: str = "") -> None:
        self.function, self.learning, self.advice = function, list(learning), advice
        self.kind, self.calls, self.graph = None, 0, None

    def __call__(self, *inputs: Any) -> Any:
        given = [x for x in leaves(inputs) if isinstance(x, Tensor)]
        if not given or any(x.device.type != "cuda" for x in given):
            return self.function(*inputs)
        kind = [(x.shape, x.dtype) if isinstance(x, Tensor) else x for x in leaves(inputs)]
        if kind != self.kind:
            self.kind, self.calls, self.graph = kind, 0, None
        self.calls += 1
        if self.calls <= USUAL:  # detached: a graph of autograd that lives on would be in the way of the recording
            return rebuilt(self.function(*inputs), Tensor.detach)
        if self.graph is None:
            self.record(inputs)
        if self.graph is None:
            return self.function(*inputs)
        for mine, other in zip(self.given, given):
            mine.copy_(other, non_blocking=True)
        self.graph.replay()
        for parameter, gradient in self.gradients:
            parameter.grad = gradient
        return rebuilt(self.result, Tensor.clone)

    def record(self, inputs: tuple) -> None:
        inputs, graph = rebuilt(inputs, Tensor.clone), torch.cuda.CUDAGraph()
        self.given = [x for x in leaves(inputs) if isinstance(x, Tensor)]
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # loaders work on in other threads
                self.result = rebuilt(self.function(*inputs), Tensor.detach)
        except RuntimeError as error:
            if self.advice:
                raise UserError(f"this step cannot be recorded as a CUDA graph ({error}); {self.advice}") from error
            self.calls = -math.inf
            return
        self.gradients = [(p, p.grad) for p in self.learning if p.grad is not None]
        self.graph = graph


def leaves(node: Any) -> Iterator[Any]:
    """What lists, tuples and dicts hold."""
    if isinstance(node, dict | list | tuple):
        for part in node.values() if isinstance(node, dict) else node:
            yield from leaves(part)
    else:
        yield node


def rebuilt(node: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """The same lists, tuples and dicts, with what `function` makes of their tensors."""
    if isinstance(node, dict):
        return {name: rebuilt(part, function) for name, part in node.items()}
    if isinstance(node, list | tuple):
        return type(node)(rebuilt(part, function) for part in node)
    return function(node) if isinstance(node, Tensor) else node
