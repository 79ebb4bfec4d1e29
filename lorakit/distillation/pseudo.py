"""Texts that adapters themselves give away: tokens to which their first layers respond more than those of others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils import check_random_state
from torch import Tensor, nn

from .._models import BaseModel, held
from ..adapter_set import AdapterSet
from ..adapters import Adapter
from ..exceptions import UnsupportedAdapterError
from ..linalg import frobenius_norm

_PLACES = 9  # a token is looked at in the places 1 to 8 of a text: the first is often a special token's
_CHUNK = 512  # tokens looked at together
_COMMON = 10_000  # other tokens come from the first of the vocabulary, of which most are sorted by frequency
_FLATTENING = 20  # added to their ranks, so that the very first do not make up most of a text


def pseudo_inputs(
    model: BaseModel,
    adapters: AdapterSet | Iterable[Adapter],
    n: int = 180,
    *,
    tokenizer: Any = None,
    length: tuple[int, int] = (2, 16),
    share: float = 0.6,
    n_top: int = 400,
    prefix: str = "",
    random_state: Any = 0,
) -> list[Any]:
    """Make texts out of the tokens that each adapter responds to, from its weights alone.

    The response of adapter i to token v is ``|B A e|^2 / |B A|^2``, where e is what the first adapted layer gets of
    the token, centred over the vocabulary; summed over the modules that have this input, such as query, key and value.
    What all adapters respond to is divided out, if there are several. Each token of a text is, with probability
    ``share``, one of the ``n_top`` tokens of highest response, and otherwise one that is common.

    **These tokens can name what an adapter was trained on.** Whoever has its weights and the base model can compute
    them: an adapter is as confidential as its training data.

    Parameters
    ----------
    model : torch.nn.Module or callable
        A transformer of the transformers library, encoder or decoder, or a function of no arguments that loads it. It
        is asked for ``get_input_embeddings()`` and run with ``input_ids``, as far as the first adapted layer.
    adapters : AdapterSet or list of Adapter
        The adapters.
    n : int, default=180
        Texts for each adapter. Their number counts for more than the number of epochs.
    tokenizer : transformers tokenizer, default=None
        Turns tokens into texts, and tells words from special tokens. None returns the tokens, with no special tokens
        put around them, and may draw special ones.
    length : tuple of int, default=(2, 16)
        Fewest and most tokens.
    share : float, default=0.6
        Probability of a token to which the adapter responds.
    n_top : int, default=400
        Number of tokens to which it is taken to respond.
    prefix : str, default=''
        Put before the adapters' module names, as in :func:`lorakit.applied`.
    random_state : int, RandomState or None, default=0
        Draws the tokens.

    Returns
    -------
    list of str, or list of list of int
        ``n`` for the first adapter, then ``n`` for the second, and so on.

    Raises
    ------
    UnsupportedAdapterError
        If the model has no token embeddings, or none of an adapter's modules is a linear layer that runs.

    See Also
    --------
    generic_inputs : Texts that belong to no task; a mixture of both does best.
    """
    adapters = AdapterSet(adapters)
    with held(model) as ready, torch.no_grad():
        responses = _responses(ready, adapters, prefix)  # (n_adapters, vocabulary)
    words = _words(tokenizer, responses.shape[1])
    rng = check_random_state(random_state)
    made: list[Any] = []
    for scores in _contrasted(responses[:, words]):
        top = np.argsort(-scores, kind="stable")[:n_top]
        likely = np.exp(scores[top] - scores[top[0]])
        usual = 1 / (np.arange(min(_COMMON, len(words))) + _FLATTENING)
        for _ in range(n):
            own = rng.random_sample(rng.randint(length[0], length[1] + 1)) < share
            drawn = np.where(
                own,
                words[top[rng.choice(len(top), len(own), p=likely / likely.sum())]],
                words[rng.choice(len(usual), len(own), p=usual / usual.sum())],
            )
            made.append(drawn.tolist())
    return made if tokenizer is None else [tokenizer.decode(tokens) for tokens in made]


def _contrasted(responses: NDArray[Any]) -> NDArray[Any]:
    """Logarithms of the responses, less their mean over adapters, standardised over tokens."""
    logs = np.log(np.maximum(responses, np.finfo(responses.dtype).tiny))
    if len(logs) > 1:
        logs = logs - logs.mean(axis=0)
    logs = logs - logs.mean(axis=1, keepdims=True)
    spread = logs.std(axis=1, keepdims=True)
    return logs / np.where(spread > 0, spread, 1)


def _words(tokenizer: Any, size: int) -> NDArray[np.intp]:
    """Tokens that stand for a piece of text with a letter in it; all where there is no tokenizer."""
    if tokenizer is None:
        return np.arange(size)
    special = set(tokenizer.all_special_ids)
    known = min(size, len(tokenizer))
    texts = [text.strip() for text in tokenizer.batch_decode([[token] for token in range(known)])]
    found = [token for token, text in enumerate(texts) if token not in special and _is_word(text)]
    return np.array(found)


def _is_word(text: str) -> bool:
    reserved = text[:1] in "[<" and text[-1:] in "]>"  # such as [unused7] and <extra_id_0>
    return len(text) > 1 and text.isprintable() and not reserved and any(c.isalpha() for c in text)


def _responses(model: nn.Module, adapters: AdapterSet, prefix: str) -> NDArray[Any]:
    """Response of each adapter to each token, (n_adapters, vocabulary)."""
    embedding = getattr(model, "get_input_embeddings", lambda: None)()
    if not isinstance(embedding, nn.Embedding):
        raise UnsupportedAdapterError(
            f"{type(model).__name__} has no get_input_embeddings() that returns token embeddings",
            remedy=("pseudo_inputs works for models of the transformers library. generic_inputs needs no model"),
        )
    first = [_first_modules(model, adapter, prefix) for adapter in adapters]
    hidden: dict[tuple[int, str], Tensor] = {}
    for leading in dict.fromkeys(modules[0] for modules in first):
        # all of them in one pass over the vocabulary: they get the same input
        wanted = {(i, m): adapters[i][m].A.float() for i, ms in enumerate(first) if ms[0] == leading for m in ms}
        hidden |= _hidden(model, prefix + leading, wanted, embedding.num_embeddings)
    found = []
    for i, (adapter, modules) in enumerate(zip(adapters, first, strict=True)):
        total = torch.zeros(embedding.num_embeddings)
        for module in modules:
            factors = adapter[module].to(torch.float32)
            centred = hidden[i, module] - hidden[i, module].mean(dim=0)  # (vocabulary, r)
            size = frobenius_norm(factors).square()
            total += ((centred @ (factors.B.T @ factors.B)) * centred).sum(dim=1) / (size if size > 0 else 1.0)
        found.append(total.double().numpy())
    return np.stack(found)


class _Reached(Exception):
    """What was wanted of a forward pass is there."""


def _run_until(model: nn.Module, tokens: Tensor, hooks: ExitStack) -> None:
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with hooks:
        try:
            model(input_ids=tokens.to(device))
        except _Reached:
            return


def _first_modules(model: nn.Module, adapter: Adapter, prefix: str) -> list[str]:
    """Adapted linear layers that get the same input as the first of them that runs, such as query, key and value."""
    seen: list[tuple[str, Tensor]] = []
    stack = ExitStack()
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, info in adapter.infos.items():
        if info.kind.name == "linear" and prefix + name in modules:

            def note(_: nn.Module, args: Sequence[Any], kwargs: dict[str, Any], name: str = name) -> None:
                x = args[0] if args else next(iter(kwargs.values()))
                if seen and x is not seen[0][1]:
                    raise _Reached
                seen.append((name, x))

            handle = modules[prefix + name].register_forward_pre_hook(note, with_kwargs=True)
            stack.callback(handle.remove)
    _run_until(model, torch.zeros(1, _PLACES, dtype=torch.long), stack)
    if not seen:
        raise UnsupportedAdapterError(
            f"none of its linear layers runs in {type(model).__name__}",
            adapters=[adapter.name],
            remedy=f"is prefix={prefix!r} right?",
        )
    return [name for name, _ in seen]


def _hidden(model: nn.Module, module: str, down: Mapping[Any, Tensor], size: int) -> dict[Any, Tensor]:
    """Return ``A e`` of every token for several A, each (vocabulary, r); e is a layer's mean input over a text."""
    found: dict[Any, list[Tensor]] = {key: [] for key in down}

    def keep(_: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else next(iter(kwargs.values()))  # (tokens, places, d_in)
        e = x[:, 1:].mean(dim=1).float().cpu()
        for key, a in down.items():
            found[key].append(e @ a.T)
        raise _Reached

    for start in range(0, size, _CHUNK):
        stack = ExitStack()
        handle = model.get_submodule(module).register_forward_pre_hook(keep, with_kwargs=True)
        stack.callback(handle.remove)
        tokens = torch.arange(start, min(start + _CHUNK, size)).unsqueeze(1).expand(-1, _PLACES)
        _run_until(model, tokens, stack)
    return {key: torch.cat(parts) for key, parts in found.items()}
