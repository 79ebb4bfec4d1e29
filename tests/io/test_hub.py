"""Adapters of the Hugging Face Hub: from a cache made by hand, and from a server on this machine."""

import errno
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from peft_files import pair, write_directory

from lorakit import SVDMerger, load_adapter, load_adapters, save_adapter
from lorakit.cli import main
from lorakit.exceptions import UnsupportedAdapterError
from lorakit.io.hub import HubId, hub_id

hub = pytest.importorskip("huggingface_hub.constants")
COMMIT, OLDER = "0123456789abcdef0123456789abcdef01234567", "fedcba9876543210fedcba9876543210fedcba98"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache with org/law at two commits and org/kit with an adapter in a folder; no network."""
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "cache"
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(root))
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    cached(root, "org/law", COMMIT, seed=1, refs=["main"])
    cached(root, "org/law", OLDER, seed=2, refs=["v1"])
    cached(root, "org/kit", COMMIT, seed=3, refs=["main"], folder="adapters/tiny")
    return root


def cached(root, repo, commit, *, seed, refs, folder=""):
    """Put an adapter where huggingface_hub keeps it: blobs by hash, and links to them by commit."""
    place = root / f"models--{repo.replace('/', '--')}"
    snapshot = place / "snapshots" / commit / folder
    source = write_directory(root, pair(seed=seed), folder=f"sources/{commit}{seed}")
    snapshot.mkdir(parents=True)
    (place / "blobs").mkdir(exist_ok=True)
    (place / "refs").mkdir(exist_ok=True)
    for file in source.iterdir():
        blob = place / "blobs" / f"{commit}{file.name}"
        file.rename(blob)
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    for ref in refs:
        (place / "refs" / ref).write_text(commit)


def a_of(seed):
    return pair(seed=seed)["base_model.model.enc.0.q.lora_A.weight"] * 2**0.5


@pytest.mark.parametrize(
    ("given", "seed", "name", "origin"),
    [
        ("org/law", 1, "law", f"hf://org/law@{COMMIT}"),
        ("hf://org/law", 1, "law", f"hf://org/law@{COMMIT}"),
        ("hf://org/law@v1", 2, "law", f"hf://org/law@{OLDER}"),
        (f"hf://org/law@{OLDER}", 2, "law", f"hf://org/law@{OLDER}"),
        ("hf://org/kit/adapters/tiny", 3, "tiny", f"hf://org/kit@{COMMIT}/adapters/tiny"),
        (
            "hf://org/kit@main/adapters/tiny/adapter_model.safetensors",
            3,
            "tiny",
            f"hf://org/kit@{COMMIT}/adapters/tiny/adapter_model.safetensors",
        ),
    ],
)
def test_from_the_cache(cache, tmp_path, given, seed, name, origin):
    adapter = load_adapter(given)
    torch.testing.assert_close(adapter["enc.0.q"].A, a_of(seed))
    assert adapter.name == name
    assert adapter.provenance.sources[0].hub == origin
    again = pickle.loads(pickle.dumps(adapter))  # by its path: a worker needs no network
    assert torch.equal(again["enc.0.q"].A, adapter["enc.0.q"].A)
    card = (save_adapter(adapter, tmp_path / "out") / "README.md").read_text()
    where = origin.removeprefix("hf://").replace("@", "/blob/" if origin.endswith(".safetensors") else "/tree/")
    assert f"| {name} ([{origin}](https://huggingface.co/{where})) | `" in card


def test_a_local_path_goes_first(cache, tmp_path):
    write_directory(tmp_path, pair(seed=9), folder="org/law")
    adapter = load_adapter("org/law")
    torch.testing.assert_close(adapter["enc.0.q"].A, a_of(9))
    assert adapter.provenance.sources[0].hub is None
    torch.testing.assert_close(load_adapter("hf://org/law")["enc.0.q"].A, a_of(1))
    with pytest.raises(FileNotFoundError, match="medicine: does not exist"):
        load_adapter(Path("org/medicine"))  # a Path is a path
    (tmp_path / "org" / "link").symlink_to("gone")
    with pytest.raises(FileNotFoundError, match="symbolic link to nothing"):
        load_adapter("org/link")


def test_a_cache_that_is_full_is_no_fault_of_the_network(cache, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("huggingface_hub.snapshot_download", full)
    with pytest.raises(
        OSError, match=r"org/name: cannot be kept in the cache .*No space left on device; free"
    ) as caught:
        load_adapter("hf://org/name")
    assert not isinstance(caught.value, ConnectionError)


def test_several(cache, tmp_path):
    adapters = load_adapters(["org/law", "hf://org/law@v1", str(write_directory(tmp_path, folder="mine"))])
    assert adapters.names == ("law", "law-2", "mine")
    known = SVDMerger(k=2).fit(adapters).merged_.provenance
    assert [source.hub for source in known.sources] == [f"hf://org/law@{COMMIT}", f"hf://org/law@{OLDER}", None]


def test_not_cached_and_offline(cache):
    with pytest.raises(
        FileNotFoundError, match=r"^org/medicine: is not in the cache.*hf download org/medicine.*local path"
    ):
        load_adapter("hf://org/medicine")
    with pytest.raises(FileNotFoundError, match=r"^org/law at revision 'v2': is not in the cache"):
        load_adapter("hf://org/law@v2")
    with pytest.raises(FileNotFoundError) as caught:
        load_adapter("org/lawe")
    assert re.search(r"^org/lawe: does not exist; neither does the folder org\. Nor is it on", str(caught.value))
    assert "hf download org/lawe" in str(caught.value)


def test_cached_without_weights(cache):
    for file in cache.glob(f"models--org--law/snapshots/{COMMIT}/adapter_model.*"):
        file.unlink()
    with pytest.raises(
        UnsupportedAdapterError, match=rf"^org/law: revision {COMMIT}.*expected adapter_config\.json and one of"
    ):
        load_adapter("org/law")
    with pytest.raises(UnsupportedAdapterError, match=r"holds no adapter in elsewhere.*hf://org/kit/folder"):
        load_adapter("hf://org/kit/elsewhere")


def test_a_pickle_only_with_the_flag(cache):
    snapshot = cache / f"models--org--law/snapshots/{COMMIT}"
    (snapshot / "adapter_model.safetensors").unlink()
    torch.save(pair(seed=4), snapshot / "adapter_model.bin")
    with pytest.raises(UnsupportedAdapterError, match="allow_pickle=True"):
        load_adapter("org/law")
    torch.testing.assert_close(load_adapter("org/law", allow_pickle=True)["enc.0.q"].A, a_of(4))


def test_without_huggingface_hub(cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"pip install 'lorakit\[hub\]'"):
        load_adapter("hf://org/law")
    with pytest.raises(FileNotFoundError, match=r"^org/law: does not exist.*pip install 'lorakit\[hub\]'"):
        load_adapter("org/law")


@pytest.mark.parametrize(
    "given", ["hf://law", "hf://", "hf://org/law@", "hf://org/law@a@b", "hf://org/law/../x", "hf://../law"]
)
def test_what_is_no_id(given):
    with pytest.raises(ValueError, match="expected hf://org/name"):
        hub_id(given)


@pytest.mark.parametrize(
    "given", ["law", "../law", "./org/law", "/org/law", "a/b/c", "org/x.safetensors", "org/", Path("org/law")]
)
def test_what_is_a_path(given):
    assert hub_id(given) is None


def test_ids():
    assert hub_id("org/law") == HubId("org/law")
    assert hub_id("hf://org/law@refs/") == HubId("org/law", "refs", certain=True)


class Server(BaseHTTPRequestHandler):
    """As much of the Hub's interface as a download needs."""

    files: dict[str, bytes] = {}
    asked: list[str] = []

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        path = self.path.split("?")[0]
        self.asked.append(path)
        if path.startswith("/api/models/org/private"):
            return self.reply(401, b"{}", {"X-Error-Code": "GatedRepo"}, body)
        if path.startswith("/api/models/org/broken"):
            return self.reply(500, b"{}", {}, body)
        if path.startswith("/api/models/org/law/revision/nothing"):
            return self.reply(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, body)
        if path.startswith("/api/models/org/law/tree/"):
            listed = [
                {"type": "file", "path": name, "size": len(data), "oid": f"{len(data):040}"}
                for name, data in self.files.items()
            ]
            return self.reply(200, json.dumps(listed).encode(), {}, body)
        if re.match(r"/api/models/org/law(/|$)", path):
            siblings = [{"rfilename": name} for name in self.files]
            info = {"id": "org/law", "modelId": "org/law", "sha": COMMIT, "siblings": siblings, "tags": []}
            return self.reply(200, json.dumps(info | {"private": False, "downloads": 0}).encode(), {}, body)
        found = re.fullmatch(rf"/org/law/resolve/{COMMIT}/(.+)", path)
        if found and found[1] in self.files:
            data = self.files[found[1]]
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{len(data):040}"'}
            return self.reply(200, data, headers, body)
        return self.reply(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body)

    def reply(self, code, data, headers, body):
        self.send_response(code)
        for name, value in {"Content-Length": str(len(data)), "Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path):
    source = write_directory(tmp_path, pair(seed=6), folder="served")
    Server.files = {file.name: file.read_bytes() for file in source.iterdir()}
    Server.files |= {"optimizer.pt": b"x" * 1000, "adapter_model.bin": b"y" * 1000, "README.md": b"#"}
    Server.asked = []
    running = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{running.server_address[1]}"
    running.shutdown()
    running.server_close()


# In a process of its own: huggingface_hub reads its settings when it is imported.
SCRIPT = """
import sys
from lorakit.cli import main
from lorakit import load_adapter
for given in sys.argv[1:]:
    try:
        adapter = load_adapter(given)
        print(adapter.provenance.sources[0].hub, round(adapter["enc.0.q"].A.sum().item(), 3))
    except Exception as error:
        print(type(error).__name__, error)
"""


def ask(*given, tmp_path, **env):
    settings = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1", **env}
    known = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    command = [sys.executable, "-c", SCRIPT, *given]
    done = subprocess.run(
        command, capture_output=True, text=True, env=known | settings, cwd=tmp_path, timeout=900, check=True
    )
    return done.stdout.splitlines()


REFUSED = {
    "hf://org/lawe": r"FileNotFoundError org/lawe: the Hugging Face Hub has no such repository.*check the spelling",
    "hf://org/law@nothing": r"FileNotFoundError org/law at revision 'nothing': .* has no such revision",
    "hf://org/private": r"PermissionError org/private: access must be asked for.*hf auth login",
    "hf://org/broken": r"(ConnectionError|FileNotFoundError) org/broken: .*(try again|cannot be reached)",
    "org/lawe": r"FileNotFoundError org/lawe: does not exist; .* Nor is it on the Hugging Face Hub: .*no such rep",
}


@pytest.mark.slow
def test_from_a_server_then_without_it(server, tmp_path):
    expected = f"hf://org/law@{COMMIT} {round(a_of(6).sum().item(), 3)}"
    found, *refused = ask("org/law", *REFUSED, tmp_path=tmp_path, HF_ENDPOINT=server)
    assert found == expected
    fetched = [path.rsplit("/", 1)[1] for path in Server.asked if "/resolve/" in path]
    assert set(fetched) == {"adapter_model.safetensors", "adapter_config.json"}  # nothing that was not needed
    for message, line in zip(REFUSED.values(), refused, strict=True):
        assert re.match(message, line), line
    assert ask("org/law", tmp_path=tmp_path, HF_HUB_OFFLINE="1") == [expected]


def test_recipes_and_replay_take_the_same_commit_again(cache, tmp_path, monkeypatch):
    """Also from a copy that somebody has: the record says where the source came from."""
    monkeypatch.chdir(tmp_path)

    def run(*args):
        done = CliRunner().invoke(main, [str(arg) for arg in args])
        assert done.exit_code == 0, done.output
        return done.output

    run("merge", "org/law", "hf://org/kit/adapters/tiny", "-o", "out", "-k", "2", "--save-recipe", "r.yaml")
    recipe = (tmp_path / "r.yaml").read_text()
    assert f"path: hf://org/law@{COMMIT}\n" in recipe
    assert f"path: hf://org/kit@{COMMIT}/adapters/tiny\n" in recipe
    run("merge", "--recipe", "r.yaml", "-o", "again")
    for name in ("adapter_model.safetensors", "adapter_config.json", "README.md"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert f"hf://org/law@{COMMIT}" in run("replay", "out")
    for name, folder in (
        ("law", "org--law/snapshots/" + COMMIT),
        ("tiny", f"org--kit/snapshots/{COMMIT}/adapters/tiny"),
    ):
        shutil.copytree(cache / f"models--{folder}", tmp_path / "copies" / name)
    assert "the same: all 3 files" in run("replay", "out", "--sources", "copies")
