"""Adding an adapter's update to a torch model for a while, without PEFT and without touching its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .adapters import Adapter, ModuleInfo, ModuleKind
from .exceptions import IncompatibleAdaptersError, UnsupportedAdapterError
from .factors import LoraFactors

__all__ = ["applied"]

_Update = Callable[
    [nn.Module, Tensor, Tensor, Tensor], Tensor
]  # module, its input, A, B -> what is added to its output
_CONV = {nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d, nn.Conv3d: F.conv3d}


@contextmanager
def applied(model: nn.Module, adapter: Adapter, *, prefix: str = "") -> Iterator[nn.Module]:
    """Add an adapter's update to a model inside a ``with`` block.

    The weights are not touched: forward hooks add ``B(A(x))`` to the outputs of the adapted modules, in the dtype and
    on the device of each output. After the block the model is what it was, bit for bit, exceptions or not. Blocks may
    be nested; their updates add up. Quantized linear layers work too. Gradients reach factors that ask for them
    (``adapter[name].A.requires_grad_()``), also where the factors are cast to the dtype of the output.

    Parameters
    ----------
    model : torch.nn.Module
        The base model, or one that contains it.
    adapter : Adapter
        Its modules are read once, on entry.
    prefix : str, default=''
        Put before the adapter's module names: ``"bert."`` for an adapter of a bare encoder on a model with a head.

    Yields
    ------
    torch.nn.Module
        ``model`` itself.

    Raises
    ------
    IncompatibleAdaptersError
        If the model lacks a module of the adapter, or has it in another shape.
    UnsupportedAdapterError
        If the adapter has differences of whole parameters, or a module cannot be adapted this way: a grouped
        convolution, a projection inside ``nn.MultiheadAttention``.

    Examples
    --------
    >>> import torch
    >>> from lorakit import Adapter, LoraFactors, applied
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 2, bias=False))
    >>> adapter = Adapter({"0": LoraFactors(torch.ones(1, 3), torch.ones(2, 1))})
    >>> x = torch.ones(1, 3)
    >>> before = model(x)
    >>> with applied(model, adapter):
    ...     after = model(x)
    >>> (after - before).detach().round(decimals=3)
    tensor([[3., 3.]])
    >>> torch.equal(model(x), before)
    True
    """
    if adapter.differences is not None:
        from .differences import refuse_differences

        refuse_differences([adapter], "applied", remedy=["bake it into the base model's weights"])
    modules = dict(model.named_modules(remove_duplicate=False))
    _check_names(adapter, modules, prefix)
    targets = [(modules[prefix + name], name) for name in adapter]
    updates = [_update_of(module, adapter, name) for module, name in targets]  # checks all before any hook is set
    with ExitStack() as hooks:
        for (module, name), update in zip(targets, updates, strict=True):
            handle = module.register_forward_hook(_Hook(adapter[name], update), with_kwargs=True)
            hooks.callback(handle.remove)
        yield model


class _Hook:
    """Adds one module's update to its output."""

    def __init__(self, factors: LoraFactors, update: _Update) -> None:
        self.factors, self.update = tuple(factors), update
        self.cast = self.factors

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        x = args[0] if args else next(iter(kwargs.values()))
        # the output, not the weight, tells the compute dtype: quantized weights are integers, autocast changes it
        return output + self.update(module, x, *self._like(output))

    def _like(self, output: Tensor) -> tuple[Tensor, ...]:
        if self.cast[0].dtype == output.dtype and self.cast[0].device == output.device:
            return self.cast
        # made from the factors as they were read, so that a detour through half precision (autocast) does not round
        # them for good
        cast = tuple(x.to(output.device, output.dtype) for x in self.factors)
        if not any(x.requires_grad for x in self.factors):  # those change between calls, and belong to one graph each
            self.cast = cast
        return cast


def _linear_update(module: nn.Module, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return F.linear(F.linear(x.to(a.dtype), a), b)


def _embedding_update(module: nn.Module, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    padding: Any = module.padding_idx  # gets no gradient, as in PEFT; the values do not depend on it
    update = F.linear(F.embedding(x, a.T, padding), b)
    scale = getattr(module, "embed_scale", None)  # Gemma multiplies its embeddings inside forward
    return update if scale is None else update * torch.as_tensor(scale, dtype=update.dtype, device=update.device)


def _conv_update(module: nn.Module, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    kind = next(kind for kind in _CONV if isinstance(module, kind))
    kernel: tuple[int, ...] = module.kernel_size  # type: ignore[assignment]
    down = a.reshape(a.shape[0], -1, *kernel)
    # the module's own: stride, padding, padding mode and dilation are then its own too
    hidden = module._conv_forward(x.to(a.dtype), down, None)  # type: ignore[operator]
    return _CONV[kind](hidden, b.reshape(*b.shape, *(1 for _ in kernel)))


def _update_of(module: nn.Module, adapter: Adapter, name: str) -> _Update:
    info, kind = adapter.infos[name], type(module).__name__
    where = f"{adapter.name}: module {name!r}"
    if kind == "NonDynamicallyQuantizableLinear":
        raise UnsupportedAdapterError(
            "is part of nn.MultiheadAttention, which uses its weight without calling it, so an "
            "output hook would do nothing",
            path=where,
            expected="a module that is called",
            remedy="load the adapter with PEFT instead",
        )
    expected, update = _expected(module, where)
    if (info.d_in, info.d_out, info.kind) != (expected.d_in, expected.d_out, expected.kind):
        raise IncompatibleAdaptersError(
            f"is for {_describe(info)}, the model's {kind} is {_describe(expected)}",
            path=where,
            remedy="is this the base model that the adapter was trained on?",
        )
    return update


def _expected(module: nn.Module, where: str) -> tuple[ModuleInfo, _Update]:
    size: Any = module
    if isinstance(module, nn.Embedding):
        return ModuleInfo(0, size.num_embeddings, size.embedding_dim, ModuleKind("embedding")), _embedding_update
    if isinstance(module, tuple(_CONV)):
        if size.groups != 1:
            raise UnsupportedAdapterError(
                f"the model's convolution has {size.groups} groups",
                path=where,
                expected="1",
            )
        inputs = size.in_channels * int(torch.Size(size.kernel_size).numel())
        return ModuleInfo(0, inputs, size.out_channels, ModuleKind("conv", tuple(size.kernel_size))), _conv_update
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):  # transformers' linear layer with (in, out) weight
        return ModuleInfo(0, size.weight.shape[0], size.nf), _linear_update
    if hasattr(module, "in_features") and hasattr(module, "out_features"):
        return ModuleInfo(0, size.in_features, size.out_features), _linear_update
    raise UnsupportedAdapterError(
        f"is a {type(module).__name__} in the model",
        path=where,
        expected="a linear layer, an embedding or a convolution",
    )


def _describe(info: ModuleInfo) -> str:
    kernel = f" with kernel {info.kind.kernel}" if info.kind.kernel else ""
    return f"{info.kind.name} of d_in {info.d_in}, d_out {info.d_out}{kernel}"


def _check_names(adapter: Adapter, modules: dict[str, nn.Module], prefix: str) -> None:
    expert = next((name for name, info in adapter.infos.items() if info.kind.name == "expert"), None)
    if expert is not None:
        raise UnsupportedAdapterError(
            f"module {expert!r} is one of several experts in a parameter, no module that is called, "
            "so an output hook cannot reach it",
            adapters=[adapter.name],
            module=expert,
            remedy="put the adapter into the model with lorakit.to_peft",
        )
    missing = [name for name in adapter if prefix + name not in modules]
    if not missing:
        return
    name = prefix + missing[0]
    longer = next((key for key in modules if key.endswith(f".{missing[0]}")), None)
    shorter = next((key for key in modules if "." in key and name.endswith(f".{key}")), None)
    if prefix and missing[0] in modules:
        hint = f"it has {missing[0]!r}: pass no prefix"
    elif longer is not None:
        hint = f"it has {longer!r}: pass prefix={longer.removesuffix(missing[0])!r}"
    elif shorter is not None:
        drop = name.removesuffix(shorter)
        hint = f"it has {shorter!r}: apply it to the model that contains this one, whose names begin with {drop!r}"
    else:
        near = get_close_matches(name, modules, n=3) or [key for key in modules if key][:3]
        hint = f"it has {', '.join(map(repr, near))}; is this the base model that the adapter was trained on?"
    raise IncompatibleAdaptersError(
        f"the model lacks {len(missing)} of {len(adapter)} adapted modules, first {name!r}",
        adapters=[adapter.name],
        remedy=hint,
    )
