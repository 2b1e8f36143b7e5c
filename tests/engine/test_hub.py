"""Models of the hub: huggingface_hub's own client against a small hub on this machine."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import struct
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest
from huggingface_hub import close_session, constants

from wiredactors.engine.blueprint import draw_directory
from wiredactors.engine.hub import cached_snapshot, draw_hub
from wiredactors.memory.errors import ModelLoadError

SHA = "1234567890abcdef1234567890abcdef12345678"

#: huggingface_hub asks for this much of each weight file.
ASKED_BYTES = 100_001

#: What a weight file has at least, so that asking for its data would be seen.
DATA_BYTES = 1 << 23


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves a folder ORGANIZATION/MODEL/FILE as the hub does, and counts the bytes of files."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def log_message(self, *arguments):
        """Nothing."""

    def answer(self, body):
        parts = self.path.partition("?")[0].strip("/").split("/")
        model = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        folder = self.server.folder / model
        if model in self.server.errors:
            status, code = self.server.errors[model]
            self.send(status, b"", {"X-Error-Code": code}, body)
        elif not folder.is_dir():
            self.send(404, b"", {"X-Error-Code": "RepoNotFound"}, body)
        elif parts[0] == "api":
            files = [{"rfilename": file.name} for file in sorted(folder.iterdir())]
            answer = {"id": model, "modelId": model, "sha": SHA, "siblings": files}
            self.send(200, json.dumps(answer).encode(), {}, body)
        else:
            assert parts[2:4] == ["resolve", SHA], self.path
            self.send_file(folder / parts[4], body)

    def send_file(self, file, body):
        size, status = file.stat().st_size, 200
        begin, end = 0, size - 1
        if "Range" in self.headers:
            status = 206
            first, last = self.headers["Range"].removeprefix("bytes=").split("-")
            begin, end = int(first), min(int(last), size - 1)
        with file.open("rb") as stream:
            stream.seek(begin)
            data = stream.read(end - begin + 1)
        self.server.served[file.name] += len(data) if body else 0
        headers = {"X-Repo-Commit": SHA, "ETag": f'"{file.name}"', "Accept-Ranges": "bytes"}
        if status == 206:
            headers["Content-Range"] = f"bytes {begin}-{end}/{size}"
        self.send(status, data, headers, body)

    def send(self, status, data, headers, body):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)


def point_at(monkeypatch, url):
    """What HF_ENDPOINT does, for a client that has been imported."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub on this machine with nothing in it, and an empty cache."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.folder = tmp_path / "hub"
    server.served = Counter()
    server.errors = {}
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    point_at(monkeypatch, server.url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    close_session()
    yield server
    close_session()
    server.shutdown()
    thread.join()
    server.server_close()


def spread(model: Path, folder: Path, files: int = 2) -> Path:
    """A copy of a tiny model whose weights lie in several files, each with a hole at its end."""
    shutil.copytree(model, folder)
    whole = folder / "model.safetensors"
    content = whole.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    tensors = json.loads(content[8 : 8 + length])
    names = sorted(set(tensors) - {"__metadata__"})
    index = {}
    for number in range(files):
        file = folder / f"model-{number + 1:05}-of-{files:05}.safetensors"
        header, at = {"__metadata__": {"format": "mlx"}}, DATA_BYTES
        for name in names[number::files]:
            begin, end = tensors[name]["data_offsets"]
            header[name] = {**tensors[name], "data_offsets": [at, at + end - begin]}
            at += end - begin
            index[name] = file.name
        text = json.dumps(header).encode()
        with file.open("wb") as stream:
            stream.write(struct.pack("<Q", len(text)) + text)
            stream.truncate(8 + len(text) + at)
    whole.unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return folder


def test_the_blueprint_is_that_of_the_directory_and_no_weight_is_fetched(hub, tiny_model):
    folder = spread(tiny_model("llama"), hub.folder / "some" / "model")
    drawn, local = draw_hub("some/model"), draw_directory(tiny_model("llama"))
    assert drawn.weight_bytes == local.weight_bytes > 100_000
    assert drawn.approximate is None
    assert drawn.config == local.config
    weights = {name: size for name, size in hub.served.items() if "safetensors" in name}
    assert weights == {file.name: ASKED_BYTES for file in folder.glob("model*.safetensors")}
    assert set(hub.served) - set(weights) == {"config.json"}


def test_a_long_header_is_asked_for_as_a_whole(hub, tiny_model):
    folder = spread(tiny_model("llama"), hub.folder / "some" / "model", files=1)
    (file,) = folder.glob("model*.safetensors")
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"]["remark"] = "long " * 40_000
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    assert draw_hub("some/model").weight_bytes == draw_directory(folder).weight_bytes
    assert hub.served[file.name] == ASKED_BYTES + len(text)


def test_headers_of_packed_weights_and_other_config_files_count(hub, tiny_model):
    folder = hub.folder / "some" / "model"
    shutil.copytree(tiny_model("experts"), folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": 7}')
    assert draw_hub("some/model").config["eos_token_id"] == 7


def test_a_model_in_the_cache_is_drawn_from_there_offline_too(hub, tiny_model, monkeypatch):
    cached = Path(constants.HF_HUB_CACHE) / "models--some--model"
    snapshot = spread(tiny_model("llama"), cached / "snapshots" / SHA)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(SHA)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert cached_snapshot("some/model") == snapshot
    assert draw_hub("some/model").weight_bytes == draw_directory(snapshot).weight_bytes
    assert not hub.served
    (snapshot / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelLoadError, match=r"not whole in the local cache, and HF_HUB_OFFLINE"):
        draw_hub("some/model")
    (snapshot / "model.safetensors.index.json").write_text("{")
    assert cached_snapshot("some/model") is None


def test_nothing_is_kept(hub, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    spread(tiny_model("llama"), hub.folder / "some" / "model")
    draw_hub("some/model")
    assert list((tmp_path / "temporary").iterdir()) == []
    assert not (tmp_path / "cache").exists()


def test_what_the_hub_does_not_have(hub):
    with pytest.raises(ModelLoadError, match=r"the hub has no model no/such, .*check the spelling"):
        draw_hub("no/such")


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (403, "GatedRepo", "some/model is gated: accept its terms"),
        (401, "RepoNotFound", "the hub has no model some/model, or it is private"),
        (500, "", "the hub refuses some/model: .*500"),
    ],
)
def test_what_the_hub_refuses(hub, status, code, message):
    hub.errors["some/model"] = (status, code)
    with pytest.raises(ModelLoadError, match=message):
        draw_hub("some/model")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["config.json", "model.Q4_0.gguf"], r"no model\*\.safetensors.*give that file"),
        (["config.json", "pytorch_model.bin"], r"no model\*\.safetensors.*mlx_lm\.convert"),
        (["model.safetensors"], "no config.json on the hub"),
    ],
)
def test_what_a_model_must_have(hub, files, message):
    folder = hub.folder / "some" / "model"
    folder.mkdir(parents=True)
    for name in files:
        (folder / name).write_text("{}")
    with pytest.raises(ModelLoadError, match=message):
        draw_hub("some/model")


def test_a_weight_file_without_a_header(hub, tiny_model):
    folder = hub.folder / "some" / "model"
    shutil.copytree(tiny_model("llama"), folder)
    (folder / "model.safetensors").write_bytes(b"\xff" * 5000)
    with pytest.raises(ModelLoadError, match="weight file without a whole header"):
        draw_hub("some/model")


def test_an_unreachable_hub_and_no_hub_id(hub, monkeypatch):
    point_at(monkeypatch, "http://127.0.0.1:9")
    with pytest.raises(
        ModelLoadError, match=r"no 'some/model' here, the hub cannot be .*local cache"
    ):
        draw_hub("some/model")
    with pytest.raises(ModelLoadError, match="is no hub id"):
        draw_hub("so me/model")


def test_in_a_process_of_its_own_with_nothing_printed(hub, tiny_model, tmp_path):
    spread(tiny_model("llama"), hub.folder / "some" / "model")
    program = (
        "from wiredactors.engine.hub import draw_hub\nprint(draw_hub('some/model').weight_bytes)\n"
    )
    home = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "NO_PROXY": "127.0.0.1"}
    screen, terminal = os.openpty()  # progress bars are shown on a terminal alone
    try:
        done = subprocess.run(
            [sys.executable, "-c", program],
            stdout=subprocess.PIPE,
            stderr=terminal,
            text=True,
            timeout=60,
            env=os.environ | home,
        )
        os.set_blocking(screen, False)
        with pytest.raises(BlockingIOError):
            print(os.read(screen, 10_000).decode())
    finally:
        os.close(screen)
        os.close(terminal)
    assert int(done.stdout) == draw_directory(tiny_model("llama")).weight_bytes
