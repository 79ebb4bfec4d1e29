"""Training metadata of a merge: what those of its sources say together, and where they differ."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

Named = Sequence[tuple[str, Mapping[str, str]]]  # each source's name and its metadata

DIFFERS = "lorakit.differs"
_WORDS = ("modelspec.trigger_phrase", "ss_trigger_words", "trigger_words", "trigger_word")
# What the sources were trained on, and at what size: one that does not say it does not contradict the others
_BASE = (
    *("ss_base_model_version", "ss_sd_model_name", "ss_sd_model_hash", "ss_new_sd_model_hash", "ss_v2"),
    *("ss_vae_name", "ss_vae_hash", "ss_new_vae_hash", "ss_clip_skip"),
    *("ss_resolution", "modelspec.resolution", "modelspec.architecture", "modelspec.prediction_type"),
)


def united(sources: Named) -> dict[str, str]:
    """Return the metadata of what was merged of several adapters.

    Tag frequencies and numbers of images are summed, and the trigger words of all are kept. Of what the sources were
    trained on, and at which resolution, what agrees is kept; what differs is listed under ``lorakit.differs``, by
    field and source. Everything else is kept if all sources say the same.

    Parameters
    ----------
    sources : sequence of (str, mapping of str to str)
        Name and metadata of each.

    Examples
    --------
    >>> one = {"ss_tag_frequency": '{"10_cat": {"cat": 3}}', "ss_resolution": "512", "modelspec.trigger_phrase": "sks"}
    >>> other = {"ss_tag_frequency": '{"10_cat": {"cat": 1, "sofa": 2}}', "ss_resolution": "768"}
    >>> for key, text in united([("one", one), ("other", other)]).items():
    ...     print(key, text)
    modelspec.trigger_phrase sks
    ss_tag_frequency {"10_cat": {"cat": 4, "sofa": 2}}
    lorakit.differs {"ss_resolution": {"one": "512", "other": "768"}}
    """
    texts = [metadata for _, metadata in sources]
    found = {key: text for key, text in texts[0].items() if all(other.get(key) == text for other in texts)}
    for key in _WORDS:
        if words := list(dict.fromkeys(metadata[key] for metadata in texts if metadata.get(key))):
            found[key] = ", ".join(words)
    for key in ("ss_tag_frequency", "ss_dataset_dirs"):
        tables = [table for metadata in texts if (table := _table(metadata.get(key))) is not None]
        if tables:
            found[key] = json.dumps(_summed(tables), ensure_ascii=False)
    differs = {}
    names = [name for name, _ in sources]
    distinct = [f"{name} ({i + 1})" if names.count(name) > 1 else name for i, name in enumerate(names)]
    for key in _BASE:
        said = {name: metadata[key] for name, metadata in zip(distinct, texts, strict=True) if metadata.get(key)}
        if len(set(said.values())) == 1:
            found[key] = next(iter(said.values()))
        elif said:
            differs[key] = said
    found.pop(DIFFERS, None)
    return found | ({DIFFERS: json.dumps(differs, ensure_ascii=False)} if differs else {})


def _table(text: str | None) -> dict[str, dict[str, Any]] | None:
    """Return a table of tables from metadata; None if there is none."""
    try:
        found = json.loads(text or "null")
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and all(isinstance(row, dict) for row in found.values()) else None


def _summed(tables: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Add up counts by folder and tag; how often a folder was repeated in training is no count."""
    total: dict[str, dict[str, Any]] = {}
    for table in tables:
        for folder, counts in table.items():
            row = total.setdefault(folder, {})
            for tag, count in counts.items():
                number = isinstance(count, int | float) and not isinstance(count, bool)
                if number and tag != "n_repeats" and isinstance(row.get(tag, 0), int | float):
                    row[tag] = row.get(tag, 0) + count
                else:
                    row.setdefault(tag, count)
    return total
