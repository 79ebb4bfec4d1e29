"""Fuzz the readers with atheris, guided by which lines of lorakit/io run. By hand, not in CI; README.rst says how."""

import json
import os
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main():
    """Run until a finding, or as libFuzzer's options say."""
    import atheris

    with atheris.instrument_imports(include=["lorakit.io"]):
        import lorakit.io  # noqa: F401
    import torch

    sys.path.insert(0, str(HERE.parent / "io"))
    from fuzzing import check, joined, samples, split

    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(1)
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as made:
        files = samples(Path(made))
        formats = sorted(files)

        def one_input(data):
            provider = atheris.FuzzedDataProvider(data)
            format = formats[provider.ConsumeIntInRange(0, len(formats) - 1)]
            name = sorted(files[format])[provider.ConsumeIntInRange(0, len(files[format]) - 1)]
            way = provider.ConsumeIntInRange(0, 4)
            raw = files[format][name]
            if name.endswith(".safetensors") and way in (0, 1, 2):
                header, body = split(raw)
                if way == 0:  # another header
                    header = provider.ConsumeBytes(provider.remaining_bytes())
                elif way == 1:  # a part of it replaced
                    at = provider.ConsumeIntInRange(0, len(header))
                    length = provider.ConsumeIntInRange(0, 64)
                    header = header[:at] + provider.ConsumeBytes(provider.remaining_bytes()) + header[at + length :]
                else:  # one name or value replaced
                    header = replaced(json.loads(header), provider)
                raw = joined(header, body)
            elif name.endswith(".json") and way == 0:
                raw = replaced(json.loads(raw), provider)
            else:
                at = provider.ConsumeIntInRange(0, len(raw))
                length = provider.ConsumeIntInRange(0, 64)
                raw = raw[:at] + provider.ConsumeBytes(provider.remaining_bytes()) + raw[at + length :]
            check({**files[format], name: raw}, Path(made) / "in")

        atheris.Setup(sys.argv, one_input)
        atheris.Fuzz()


def replaced(tree, provider):
    """Replace one value of what JSON holds by what the fuzzer gives, read as JSON if it is that."""
    from fuzzing import encoded, places  # which imports lorakit, and that is to be instrumented first

    there = places(tree)
    node, key = there[provider.ConsumeIntInRange(0, len(there) - 1)]
    rename = provider.ConsumeBool() and isinstance(node, dict)
    text = provider.ConsumeUnicode(provider.remaining_bytes())
    if rename:
        node[text] = node.pop(key)
    else:
        try:
            node[key] = json.loads(text)
        except (ValueError, RecursionError):
            node[key] = text
    return encoded(tree)


if __name__ == "__main__":
    main()
