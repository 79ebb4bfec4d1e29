"""What tests of records share: three adapters on disk, the record of a file, and the hash that it should name."""

import hashlib

from lorakit import save_adapter
from lorakit.files.safetensors import read_header
from lorakit.io.formats.record import read_record
from lorakit.testing import make_adapters

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def record_at(path):
    return read_record(read_header(path / WEIGHTS if path.is_dir() else path).metadata)


def saved(folder):
    return [save_adapter(adapter, folder / adapter.name) for adapter in make_adapters(random_state=0)]
