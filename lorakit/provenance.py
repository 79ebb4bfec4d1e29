"""Where an adapter came from, what was done to it, and what its files say besides its factors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from .files.checks import FileVersion

__all__ = ["Differences", "ExtraWeights", "Made", "Provenance", "Source", "Step", "combined"]


@dataclass(frozen=True)
class Source:
    """Where an adapter came from.

    Parameters
    ----------
    name : str
        What it was called when it was read.
    path : Path or None
        The file with its weights; None for one made in memory.
    config : Path or None
        The file beside it that says how they scale, if there is one.
    hub : str or None
        ``hf://org/name@commit``, if the files were taken from the Hugging Face Hub.
    opened : pair of FileVersion or None
        Which version of the weights, and of the config, was opened; None where that is not known.
    read_with : tuple of (str, object)
        What was said of the files when they were read, such as ``("assume_alpha", 8.0)``.
    base : (str, str) or None
        The base model that was needed to read it: its name, and a hash of the names, dtypes and shapes of its tensors.
    initial : Source or None
        The adapter as it was before training, whose update was taken away.
    """

    name: str
    path: Path | None = None
    config: Path | None = None
    hub: str | None = None
    opened: tuple[FileVersion | None, ...] = field(default=(None, None), repr=False, compare=False)
    read_with: tuple[tuple[str, Any], ...] = field(default=(), repr=False)
    base: tuple[str, str] | None = field(default=None, repr=False)
    initial: Source | None = field(default=None, repr=False)


@dataclass(frozen=True, eq=False)
class Step:
    """One run of an estimator, with what is needed to run it again.

    Parameters
    ----------
    operation : str
        Its class with every parameter that bears on the result, as people read it; as in ``Provenance.operations``.
    inputs : tuple of (str, Source, Made or None)
        Name and origin of each adapter that it was given; None for one whose origin is not known.
    recipe : mapping or None
        The class and the parameters as JSON holds them, for programs; None for what no estimator did.
    conversions : tuple of tuple of mapping
        What was done to each of the adapters since it was read or made, as in :class:`Provenance`.
    """

    operation: str
    inputs: tuple[tuple[str, Source | Made | None], ...] = field(repr=False)
    recipe: Mapping[str, Any] | None = field(default=None, repr=False)
    conversions: tuple[tuple[Mapping[str, Any], ...], ...] = field(default=(), repr=False)


class Made(NamedTuple):
    """One of the adapters that a step made: the first, the second, ..."""

    step: Step
    output: int = 0


class ExtraWeights(Protocol):
    """Extra weights: whole tensors in an adapter's files besides the factors. Must pickle by path, not by content."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tensors, as PEFT stores them but without ``base_model.model.``."""
        ...

    @property
    def path(self) -> Path | None:
        """The file that holds them; None if they are in memory."""
        ...

    @property
    def settings(self) -> Mapping[str, Any]:
        """What PEFT's config says of them: ``modules_to_save``, ``trainable_token_indices``."""
        ...

    def info(self, name: str) -> tuple[torch.dtype, tuple[int, ...]]:
        """Return the dtype and shape of one tensor without reading it."""
        ...

    def read(self, name: str) -> torch.Tensor:
        """Read one tensor, as it is stored."""
        ...


class Differences(Protocol):
    """What an adapter adds to whole parameters, such as biases and norms. Must pickle by path, or as arrays."""

    @property
    def infos(self) -> Mapping[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Dtype and shape of what is added to each parameter: ``<module>.bias`` or ``<module>.weight``."""
        ...

    def read(self, name: str) -> torch.Tensor:
        """Read what is added to one parameter, in the dtype of a result or float32 or better."""
        ...


class SomeDifferences:
    """Some of other differences, under names of their own.

    Parameters
    ----------
    differences : Differences
        The others.
    old_names : mapping of str to str
        From each name to the one that it has there.
    """

    def __init__(self, differences: Differences, old_names: Mapping[str, str]) -> None:
        self.differences, self.old_names = differences, dict(old_names)
        self.infos = {new: differences.infos[old] for new, old in old_names.items()}

    def read(self, name: str) -> torch.Tensor:
        """Read what is added to one parameter."""
        return self.differences.read(self.old_names[name])


@dataclass(frozen=True)
class Provenance:
    """What an adapter's files say about it, and what was done to it since.

    Parameters
    ----------
    format : str, default='peft'
        The family of files it came from; adapters of different families name their modules differently.
    base_model : str or None
        The base model's name, as the files give it.
    task_type : str or None
        PEFT's task type.
    fan_in_fan_out : bool, default=False
        Whether the base stores its weights as (in, out), as GPT-2's Conv1D does.
    metadata : mapping of str to str
        Free text of the file's header that is kept when it is written again; of a result, what all its sources say.
    sources : tuple of Source
        The adapters it was made from.
    operations : tuple of str
        What was done to them, in order, as estimator reprs.
    made : Made or None
        The same in full: the last step, what went into it, and so on back to the sources.
    extra_weights : ExtraWeights or None
        Whole tensors that its files hold besides the factors, and that are to be written again; of a result, those of
        the first of its sources that has some. They are carried, never merged.
    differences : Differences or None
        What is added to whole parameters besides the updates of modules. Unlike extra weights, which replace those of
        the base model, they are part of the update: methods that add updates up add them up too.
    target_parameters : mapping of str to int
        What PEFT calls so: ends of the names of adapted parameters, and how many modules each was found in.
    stored_as : tuple of str, default=('LoRA',)
        The kinds of adapter that its files hold, such as 'LoHa'. All are read as factors A and B, and written as plain
        LoRA.
    source_metadata : tuple of (str, mapping of str to str)
        Of a result of several adapters: the name and the ``metadata`` of each, if some had any.
    conversions : tuple of mapping
        What was done to names and stored numbers since it was read or made, in order: ``{"to": format}``, with a
        ``component`` and a ``family`` or not, as :func:`~lorakit.convert_adapter` does; ``{"dtype": name}``;
        ``{"prefix": [old, new]}`` or ``{"names": {old: new, ...}}`` of its modules; ``{"without_padding": True}``;
        ``{"split_experts": {...}}`` and ``{"join_experts": {...}}`` with what these functions were given.
    """

    format: str = "peft"
    base_model: str | None = None
    task_type: str | None = None
    fan_in_fan_out: bool = False
    metadata: Mapping[str, str] = field(default_factory=dict)
    sources: tuple[Source, ...] = ()
    operations: tuple[str, ...] = ()
    # not compared: operations and sources say it in short
    made: Made | None = field(default=None, repr=False, compare=False)
    extra_weights: ExtraWeights | None = None
    differences: Differences | None = None
    target_parameters: Mapping[str, int] = field(default_factory=dict)
    stored_as: tuple[str, ...] = ("LoRA",)
    source_metadata: tuple[tuple[str, Mapping[str, str]], ...] = field(default=(), repr=False, compare=False)
    conversions: tuple[Mapping[str, Any], ...] = field(default=(), repr=False, compare=False)

    @property
    def origin(self) -> Source | Made | None:
        """What the adapter is: a source as it is, or one that a step made; None if that is not known."""
        if self.made is not None:
            return self.made
        return self.sources[0] if len(self.sources) == 1 and not self.operations else None


def combined(given: Sequence[Provenance], made: Made, differences: Differences | None = None) -> Provenance:
    """Return what a result made from several adapters says of itself.

    Parameters
    ----------
    given : sequence of Provenance
        Of the adapters, one or more; of one family of files.
    made : Made
        The step that made it.
    differences : Differences or None
        Those of the result.
    """
    if differences is None and any(p.differences is not None for p in given):
        raise RuntimeError(f"{made.step.operation} would lose what its adapters add to whole parameters")
    tasks = {p.task_type for p in given}
    parameters = [p.target_parameters for p in given if p.target_parameters]
    return Provenance(
        format=given[0].format,
        base_model=next((p.base_model for p in given if p.base_model), None),
        task_type=tasks.pop() if len(tasks) == 1 else None,
        fan_in_fan_out=any(p.fan_in_fan_out for p in given),
        metadata={
            key: text for key, text in given[0].metadata.items() if all(p.metadata.get(key) == text for p in given)
        },
        sources=tuple(source for p in given for source in p.sources),
        operations=(*dict.fromkeys(op for p in given for op in p.operations), made.step.operation),
        made=made,
        extra_weights=next((p.extra_weights for p in given if p.extra_weights is not None), None),
        differences=differences,
        source_metadata=_metadata_of(given, made),
        target_parameters=parameters[0] if parameters and all(p == parameters[0] for p in parameters[1:]) else {},
    )


def _metadata_of(given: Sequence[Provenance], made: Made) -> tuple[tuple[str, Mapping[str, str]], ...]:
    """Return the metadata of each source; of one adapter, what it was merged from before."""
    if len(given) == 1:
        return given[0].source_metadata
    names = [name for name, _ in made.step.inputs]
    found = [
        source for name, p in zip(names, given, strict=False) for source in (p.source_metadata or ((name, p.metadata),))
    ]
    return tuple(found) if any(metadata for _, metadata in found) else ()
