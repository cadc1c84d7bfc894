"""Memory format and mixed precision of a network on its device."""

import torch
from torch import nn

from latentdiff.config import UserError


def to_device(module: nn.Module, device: torch.device, contiguous: bool = False) -> nn.Module:
    """Move a module to the device, in the memory format that is fastest there.

    channels_last saves 5 % of a training step on a CPU without bf16. In bf16 it halves the time of an autoencoder and
    saves up to 14 % of sampling with a U-Net, but the backward pass of GroupNorm takes ten times as long.

    Args:
        module: the module, changed in place.
        device: the target device.
        contiguous: keep the contiguous format on CPUs with bf16: for U-Nets that are trained there (up to 4 % faster).
    """
    channels_last = device.type == "cuda" or device.type == "cpu" and not (contiguous and _cpu_has_bf16())
    return module.to(device, memory_format=torch.channels_last if channels_last else torch.preserve_format)


def precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype of autocast for auto, fp32 (no autocast), bf16 or fp16; auto is bf16 where the hardware supports it."""
    if name == "auto":
        if device.type == "cuda":
            name = "bf16" if torch.cuda.is_bf16_supported() else "fp16"
        else:
            name = "bf16" if device.type == "cpu" and _cpu_has_bf16() else "fp32"
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if name not in dtypes:
        raise UserError(f"precision is {name!r}; it must be auto, {', '.join(dtypes)}")
    return dtypes[name]


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """The autocast context for a dtype; disabled for float32."""
    return torch.autocast(device.type, dtype if dtype != torch.float32 else None, enabled=dtype != torch.float32)


def _cpu_has_bf16() -> bool:
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("avx512_bf16", capabilities.get("amx_bf16", True)))
