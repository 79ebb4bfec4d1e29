"""The lazy side of a PEFT directory: header and config when it is opened, a module's weights when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..adapters import ModuleInfo
from ..exceptions import CorruptFileError, UnsupportedAdapterError
from ..factors import LoraFactors, all_finite, promoted_dtype
from ._checks import FileStamp, require_unchanged, stamp
from ._codec import ReadOptions
from ._peft_config import PeftConfig, read_config
from ._peft_keys import Pair, Pairs, match_keys
from ._safetensors import FLOAT_DTYPES, read_header, read_tensors

_Stamps = tuple[FileStamp, FileStamp | None]  # of the weights, and of the config if there is one


class _Stored(NamedTuple):
    """Where one module lies in the file, and the factor on its update."""

    pair: Pair
    scale: float


class _FileModules:
    """Some modules of a file that was opened and checked.

    It pickles as what it knows of them: a worker that is sent one module parses neither header nor config again, and a
    file that has changed is reported when it is read, by module.
    """

    def __init__(self, weights: Path, stamps: _Stamps, stored: Mapping[str, _Stored], dtype: torch.dtype) -> None:
        self.weights = weights
        self.dtype = dtype
        self.infos: Mapping[str, ModuleInfo] = {module: pair.info for module, (pair, _) in stored.items()}
        self._stamps = stamps
        self._stored = stored

    def read(self, module: str) -> LoraFactors:
        """Read one module, its scale folded as a square root into both factors, in float32 or float64."""
        _require_unchanged(self.weights, self._stamps)
        (key_a, key_b, _), scale = self._stored[module]
        a, b = read_tensors(self.weights, (key_a, key_b), self._stamps[0])
        for key, tensor in ((key_a, a), (key_b, b)):
            self._check_finite(module, key, tensor)
        # Widened before scaling: half precision would round the product, and sqrt(s) is seldom exact in it.
        dtype = promoted_dtype((a.dtype, b.dtype, torch.float32))
        return LoraFactors(a.to(dtype).flatten(1), b.to(dtype).flatten(1)).scaled(scale)

    def only(self, modules: Sequence[str]) -> _FileModules:
        """Return a reader of these modules alone."""
        return _FileModules(self.weights, self._stamps, {m: self._stored[m] for m in modules}, self.dtype)

    def __reduce__(self) -> tuple[object, ...]:
        return _FileModules, (self.weights, self._stamps, self._stored, self.dtype)

    def _check_finite(self, module: str, key: str, tensor: Tensor) -> None:
        if not all_finite(tensor):
            bad = int((~torch.isfinite(tensor)).sum())
            raise CorruptFileError(
                f"{self.weights}: module {module!r}: {key!r} has {bad} NaN or infinite values of {tensor.numel()}; "
                "expected finite weights, training diverged or the file is damaged: use an earlier checkpoint"
            )


class PeftReader(_FileModules):
    """Reads modules of one PEFT directory; pickles as its path and the stamp of its files.

    Parameters
    ----------
    weights : Path
        The safetensors file, absolute; ``adapter_config.json`` is looked for beside it.
    options : ReadOptions
        What the user chose.

    Raises
    ------
    LorakitError
        If the files are corrupt, unsafe, or hold something that cannot be merged exactly.
    """

    def __init__(self, weights: Path, options: ReadOptions) -> None:
        config_path = _config_beside(weights)
        stamps = stamp(weights), stamp(config_path) if config_path.exists() else None
        header = read_header(weights)
        config = read_config(config_path, options.assume_alpha)
        pairs = match_keys(weights, header)
        self.options, self.config = options, config
        self.dropped = _dropped(weights, config, pairs, options)
        for module, pair in pairs.modules.items():
            _check_rank(weights, config, module, pair.info.rank)
        dtype = promoted_dtype(
            FLOAT_DTYPES[header[key].dtype] for pair in pairs.modules.values() for key in (pair.key_a, pair.key_b)
        )
        stored = {m: _Stored(pair, config.scale(m, pair.info.rank)) for m, pair in pairs.modules.items()}
        super().__init__(weights, stamps, stored, dtype)

    def __reduce__(self) -> tuple[object, ...]:
        return _reopen, (self.weights, self.options, self._stamps)


def _config_beside(weights: Path) -> Path:
    return weights.parent / "adapter_config.json"


def _require_unchanged(weights: Path, stamps: _Stamps) -> None:
    require_unchanged(weights, stamps[0])
    if stamps[1] is not None:
        require_unchanged(_config_beside(weights), stamps[1])


def _reopen(weights: Path, options: ReadOptions, stamps: _Stamps) -> PeftReader:
    _require_unchanged(weights, stamps)  # before anything is parsed: of another file the message would be puzzling
    return PeftReader(weights, options)


def _dropped(path: Path, config: PeftConfig, pairs: Pairs, options: ReadOptions) -> tuple[str, ...]:
    beside = (*config.kept_beside, *pairs.beside)
    if beside and options.modules_to_save == "refuse":
        more = f" and {len(beside) - 3} more" if len(beside) > 3 else ""
        raise UnsupportedAdapterError(
            f"{path}: was trained with weights beside the LoRA factors: {', '.join(beside[:3])}{more}; expected "
            "factors only, as whole weights cannot be merged with them (a base layer's own weights are there because "
            "PEFT saves embeddings unless save_embedding_layers=False); pass modules_to_save='drop' to leave them out"
        )
    return beside


def _check_rank(path: Path, config: PeftConfig, module: str, rank: int) -> None:
    expected = config.rank(module)
    if expected is not None and expected != rank:
        raise CorruptFileError(
            f"{path}: module {module!r} has rank {rank}, {config.path.name} says {expected} (by its r and "
            "rank_pattern); PEFT cannot load this either, so correct r or rank_pattern, or copy the matching file"
        )
