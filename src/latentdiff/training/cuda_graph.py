"""CUDA graphs: the kernels of a function as one launch. Small networks are bound by kernel-launch overhead."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from latentdiff.config import UserError

WARMUP_CALLS = 3  # before the capture: kernels are chosen and compiled, and memory is allocated, in these
ADVICE = "use train.cuda_graph=false"


class CudaGraph:
    """function(*inputs), on CUDA captured as a graph in its fourth consecutive call with the same shapes and types of
    the inputs, and from then on launched as that graph; elsewhere the function is called directly.

    Inputs and result are tensors, and lists or dicts of them; any other input must stay equal. In-place changes on the
    device are part of the graph, changes on the host are not.

    Args:
        function: what is captured. It must not read from the device.
        parameters: the parameters whose gradients the function computes; it must find no gradient in them.
        advice: if given, a function that cannot be captured is refused (UserError) with this advice, because half a
            training step would already have changed the weights; otherwise it is called directly.
        key: returns further values that must stay equal, such as the addresses of the gradients that are read.
    """

    def __init__(
        self, function: Callable, parameters: Iterable[nn.Parameter] = (), advice: str = "",
        key: Callable[[], Any] | None = None,
    ) -> None:  # fmt: skip
        self.function, self.parameters, self.advice, self.key = function, list(parameters), advice, key
        self.signature, self.calls, self.graph = None, 0, None

    def __call__(self, *inputs: Any) -> Any:
        tensors = [x for x in leaves(inputs) if isinstance(x, Tensor)]
        if any(not x.is_cuda for x in tensors) or not tensors and self.key is None:
            return self.function(*inputs)
        signature = [(x.shape, x.dtype) if isinstance(x, Tensor) else x for x in leaves(inputs)]
        signature.append(self.key() if self.key else None)
        if signature != self.signature:
            self.signature, self.calls, self.graph = signature, 0, None
        self.calls += 1
        if self.calls <= WARMUP_CALLS:  # detached: an autograd graph that is kept would interfere with the capture
            return map_tensors(self.function(*inputs), Tensor.detach)
        if self.graph is None:
            self.capture(inputs)
        if self.graph is None:
            return self.function(*inputs)
        for static, x in zip(self.static_inputs, tensors):
            static.copy_(x, non_blocking=True)
        self.graph.replay()
        for parameter, gradient in self.gradients:
            parameter.grad = gradient
        return map_tensors(self.static_output, Tensor.clone)

    def capture(self, inputs: tuple) -> None:
        inputs, graph = map_tensors(inputs, Tensor.clone), torch.cuda.CUDAGraph()
        self.static_inputs = [x for x in leaves(inputs) if isinstance(x, Tensor)]
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # data loaders run in other threads
                self.static_output = map_tensors(self.function(*inputs), Tensor.detach)
        except RuntimeError as error:
            if self.advice:
                raise UserError(f"this step cannot be captured as a CUDA graph ({error}); {self.advice}") from error
            self.calls = -math.inf
            return
        self.gradients = [(p, p.grad) for p in self.parameters if p.grad is not None]
        self.graph = graph


def leaves(node: Any) -> Iterator[Any]:
    """The values in nested lists, tuples and dicts."""
    if isinstance(node, dict | list | tuple):
        for child in node.values() if isinstance(node, dict) else node:
            yield from leaves(child)
    else:
        yield node


def map_tensors(node: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """The same nested lists, tuples and dicts with `function` applied to each tensor."""
    if isinstance(node, dict):
        return {name: map_tensors(child, function) for name, child in node.items()}
    if isinstance(node, list | tuple):
        return type(node)(map_tensors(child, function) for child in node)
    return function(node) if isinstance(node, Tensor) else node
