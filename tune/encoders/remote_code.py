"""Models with Python code of their own: built so that nothing in them stays uninitialised.

transformers 5 builds a model without memory and fills in what the weights' file holds; buffers that
aren't in it (rotary frequencies, windows) are left as the memory happens to be, if the model's code
was written for transformers 4 (huggingface/transformers#45902). Here the model's class is called
as its authors meant it, and the weights are read into it.
"""

import contextlib

import torch
from accelerate import init_empty_weights
from torch import nn

from tune.encoders.base import EncoderError


def build(folder, config, weights: dict, name: str) -> tuple[nn.Module, set[str]]:
    """Build a model by its own class, with these weights, in evaluation mode.

    Parameters
    ----------
    folder : with the code that `config.auto_map` names
    weights : tensors by name; they become the model's, without a copy

    Returns
    -------
    model : torch.nn.Module
    missing : names of parameters and buffers that the weights don't hold

    Raises
    ------
    EncoderError
        When a shape differs, or a buffer is set neither by the constructor nor by the weights.
    """
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    wanted = getattr(config, "auto_map", {}).get("AutoModel")
    if wanted is None:
        raise EncoderError(f"{name}: its configuration names no AutoModel in auto_map")
    model = _construct(get_class_from_dynamic_module(wanted, str(folder)), config)
    own = dict(_tensors(model))
    dtypes = {key: value.dtype for key, value in own.items()}
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    if prefix != "." and not any(key.startswith(prefix) for key in own):
        weights = {key.removeprefix(prefix): value for key, value in weights.items()}
    try:
        missing, _ = model.load_state_dict(weights, strict=False, assign=True)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if "size mismatch" in line]
        raise EncoderError(
            f"{name}: the weights don't fit the configuration: {len(lines)} are missing or of "
            f"another shape, the first is {lines[0] if lines else error}"
        ) from error
    for key, value in _tensors(model):
        if value.is_meta:  # missing: the caller decides whether it is needed
            value = torch.zeros(value.shape, dtype=dtypes[key])
        elif key not in weights and _is_uninitialised(value):
            raise EncoderError(
                f"{name}: its code never sets the buffer {key}, so that every load would give "
                f"other numbers: it can't be used"
            )
        _set(model, key, value.to(dtypes[key]))
    return model.eval().requires_grad_(False), set(missing)


def check_same(first: nn.Module, second: nn.Module, inputs: dict, name: str) -> None:
    """Raise unless a model that was built twice is the same and gives the same numbers.

    Parameters
    ----------
    inputs : features of a short segment
    """
    other = dict(_tensors(second))
    for key, value in _tensors(first):
        if not torch.equal(value, other[key]):
            raise EncoderError(_differs(name, f"{key} differs"))
    with torch.inference_mode():
        outs = [model(**inputs, output_hidden_states=True) for model in (first, second)]
    pairs = zip(*(getattr(out, "hidden_states", None) or [out[0]] for out in outs), strict=True)
    for k, (one, two) in enumerate(pairs):
        if not torch.equal(one, two):
            off = float((one - two).abs().max())
            raise EncoderError(_differs(name, f"hidden_states[{k}] differ by {off:.1e}"))


def _differs(name: str, found: str) -> str:
    """What is said of a model that isn't the same twice."""
    return (
        f"{name} was loaded twice and gives other numbers ({found}): its code draws them at random "
        f"or leaves them unset, so that no embedding would come out twice: it can't be used"
    )


def _construct(cls, config) -> nn.Module:
    """Call a model's class; its parameters take no memory where its code allows that."""
    with _unset_memory_is_nan():
        with contextlib.suppress(Exception), init_empty_weights(include_buffers=False):
            model = cls(config)
            if not any(buffer.is_meta for buffer in model.buffers()):
                return model
        return cls(config)  # its code computes with parameters


@contextlib.contextmanager
def _unset_memory_is_nan():
    """Fill new memory with NaN (integers: the largest), so that what nothing sets is seen."""
    flags = torch.are_deterministic_algorithms_enabled()
    warn = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(flags, warn_only=warn)
        torch.utils.deterministic.fill_uninitialized_memory = fill


def _is_uninitialised(value: torch.Tensor) -> bool:
    """Say whether a tensor holds what `_unset_memory_is_nan` fills memory with."""
    if value.is_floating_point():
        return bool(value.isnan().any())
    if value.dtype == torch.bool or value.is_complex():
        return False
    return bool((value == torch.iinfo(value.dtype).max).any())


def _tensors(model: nn.Module):
    """Parameters and buffers by name, those too that aren't saved."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _set(model: nn.Module, key: str, value: torch.Tensor) -> None:
    """Put a tensor in the place of a parameter or buffer."""
    owner, _, attribute = key.rpartition(".")
    module = model.get_submodule(owner)
    if attribute in module._parameters:
        if module._parameters[attribute] is not value:
            value = nn.Parameter(value, requires_grad=False)
        module._parameters[attribute] = value
    else:
        module._buffers[attribute] = value
