"""Matrix products for CPUs: oneDNN's instead of the BLAS that PyTorch calls.

PyTorch gives float32 matrix products to MKL, which runs at less than half of an AMD processor's
rate; oneDNN, which PyTorch brings along for its convolutions, reaches it, and is level with MKL on
Intel's. PyTorch offers it for linear layers under the name that its compiler uses. On other devices
and in other precisions these modules are ordinary ones.
"""

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Multiply (..., K) by weights (N, K) and add a bias (N,): (..., N)."""
    usual = torch.compiler.is_compiling()  # the compiler chooses for itself
    if ONEDNN and not usual and x.device.type == "cpu" and x.dtype == torch.float32:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


class Linear(nn.Linear):
    """nn.Linear through `linear`; for inference."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., K) to (..., N)."""
        return linear(x, self.weight, self.bias)


def use_fast_linear(module: nn.Module) -> None:
    """Let every nn.Linear below a module compute through `linear`; its weights stay."""
    for child in module.modules():
        if type(child) is nn.Linear:
            child.__class__ = Linear


class ConformerConvolution(nn.Module):
    """transformers' Wav2Vec2Conformer convolution module, for inference.

    Its 1x1 convolutions become linear layers (the same numbers, faster), and batch normalisation
    is folded into the depthwise convolution.

    Parameters
    ----------
    module : Wav2Vec2ConformerConvolutionModule in evaluation mode
    """

    def __init__(self, module: nn.Module):
        super().__init__()
        self.layer_norm, self.activation = module.layer_norm, module.activation
        self.expand = _as_linear(module.pointwise_conv1)
        self.depthwise = fuse_conv_bn_eval(module.depthwise_conv, module.batch_norm)
        self.project = _as_linear(module.pointwise_conv2)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(B, T, D) to (B, T, D)."""
        x = F.glu(self.expand(self.layer_norm(hidden_states)), -1)
        x = depthwise(x, self.depthwise)
        return self.project(self.activation(x))


def depthwise(x: torch.Tensor, conv: nn.Conv1d) -> torch.Tensor:
    """A depthwise convolution over time, (B, T, D) to (B, T, D).

    On a CPU as a two-dimensional one of height 1, whose channels lie side by side in memory as they
    do in `x`: oneDNN then runs a vectorised kernel, up to a hundred times faster than the one it
    has for three dimensions, which multiplies matrices channel by channel. The products are added
    up in the same order, so the numbers are the same to the last bit.
    """
    if not ONEDNN or x.device.type != "cpu" or x.dtype != torch.float32:
        return conv(x.transpose(1, 2)).transpose(1, 2)
    padding, weight = (0, *conv.padding), conv.weight[:, :, None]  # (D, 1, 1, K)
    y = x.transpose(1, 2)[:, :, None].contiguous(memory_format=torch.channels_last)  # (B, D, 1, T)
    y = F.conv2d(y, weight, conv.bias, 1, padding, groups=conv.groups)
    return y[:, :, 0].transpose(1, 2)


def _as_linear(conv: nn.Conv1d) -> Linear:
    """A 1x1 convolution as a linear layer."""
    out = Linear(conv.in_channels, conv.out_channels, bias=conv.bias is not None)
    out.weight = nn.Parameter(conv.weight.squeeze(-1), requires_grad=False)
    if conv.bias is not None:
        out.bias = conv.bias
    return out
