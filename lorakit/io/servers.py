"""Which programs can load an adapter's files as they are, and whether they then hold the same updates.

The rules are a checklist of what those programs do with a file. They were read from the programs' source; none of the
programs is run. Each format has the rules of the programs that load it, with the place where they were read. If a rule
depends on the base model, which lorakit never sees, the result has a note.
"""

from __future__ import annotations

from ..adapters import Adapter
from .formats._servers import ServerCheck, WrittenFile
from .formats.registry import codec, codecs

__all__ = ["ServerCheck", "check_servers"]


def check_servers(adapter: Adapter) -> list[ServerCheck]:
    """Check which programs can load the files that an adapter was read from.

    Parameters
    ----------
    adapter : Adapter
        From :func:`lorakit.load_adapter`.

    Returns
    -------
    list of ServerCheck
        One for each program that a format names: vLLM, SGLang, TGI, LoRAX, llama.cpp, PEFT, diffusers, MLX.

    Raises
    ------
    ValueError
        If the adapter is not one that was read from files.

    Examples
    --------
    >>> import tempfile
    >>> from lorakit import load_adapter, save_adapter
    >>> from lorakit.io.servers import check_servers
    >>> from lorakit.testing import make_adapters
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = save_adapter(make_adapters(1, ranks=20, d_in=64, d_out=64)[0], f"{folder}/a")
    ...     vllm = check_servers(load_adapter(path))[0]
    >>> vllm.loads, vllm.setting
    ('yes', '--max-lora-rank 32')
    """
    known = adapter.provenance
    if known.operations or len(known.sources) != 1 or known.sources[0].path is None:
        raise ValueError(f"{adapter.name}: was not read from files; save it, and load what was written")
    file = WrittenFile(adapter)
    own = {server.name: server for server in codec(file.format).servers}
    checks = []
    for server in {server.name: server for known in reversed(codecs()) for server in known.servers}.values():
        check = ServerCheck(server.name, server.version)
        others = sorted(set(known.stored_as) - set(own[server.name].kinds if server.name in own else ()))
        if server.name in own and others:
            check.refuse(f"does not take {' and '.join(others)}: lorakit convert writes plain LoRA")
        elif server.name in own:
            own[server.name].rules(file, check)
        else:
            wanted = " or ".join(f"--to {name}" for name in server.convert_to)
            check.refuse(f"does not read {file.format} files: lorakit convert {wanted}")
        checks.append(check)
    return checks
