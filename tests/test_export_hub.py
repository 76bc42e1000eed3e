"""Sending to a hub that stands on this machine: only on request, and only with a token."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

huggingface_hub = pytest.importorskip("huggingface_hub")

from huggingface_hub import constants  # noqa: E402

from promptadapt_core.export import exporting, hub  # noqa: E402
from promptadapt_core.export.settings import ExportSettings  # noqa: E402
from promptadapt_core.settings import SettingsError  # noqa: E402

TOKEN = "hf_token_of_the_test"


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's API as a push of small files needs. Keeps what it was asked."""

    protocol_version = "HTTP/1.1"
    requests: list[tuple[str, str]]
    repositories: dict[str, bool]  # name -> private
    files: dict[str, bytes]
    tokens: set[str | None]  # of what was asked of repositories

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else self._chunks()
        self._answer("POST", body)

    def do_GET(self) -> None:
        self._answer("GET", b"")

    def do_HEAD(self) -> None:
        self._answer("HEAD", b"")

    def _chunks(self) -> bytes:
        body = b""
        while self.headers.get("Transfer-Encoding") == "chunked":
            size = int(self.rfile.readline(), 16)
            body += self.rfile.read(size)
            self.rfile.readline()
            if not size:
                break
        return body

    def _answer(self, verb: str, body: bytes) -> None:
        path = self.path.split("?")[0]
        type(self).requests.append((verb, path))
        if path == "/api/agent-harnesses":  # huggingface_hub asks it of itself, once a day
            return self._send(404, {"error": "there is none"})
        type(self).tokens.add(self.headers.get("Authorization"))
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(filter(None, [asked.get("organization"), asked["name"]]))
            if name in self.repositories:
                return self._send(409, {"url": f"{self.base}/{name}", "error": "exists"})
            told = asked.get("visibility", "private" if asked.get("private") else "public")
            self.repositories[name] = told == "private"
            return self._send(200, {"url": f"{self.base}/{name}", "name": name})
        if path == "/api/validate-yaml":
            return self._send(200, {"errors": [], "warnings": []})
        name = "/".join(path.split("/")[3:5])
        if path.startswith("/api/models/") and name not in self.repositories:
            return self._send(404, {"error": "there is none"})
        if path.endswith("/preupload/main"):
            asked = json.loads(body)["files"]
            modes = [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                     for one in asked]  # fmt: skip
            return self._send(200, {"files": modes})
        if path.endswith("/commit/main"):
            for line in body.decode().splitlines():
                part = json.loads(line)
                if part["key"] == "file":
                    content = base64.b64decode(part["value"]["content"])
                    self.files[f"{name}/{part['value']['path']}"] = content
            commit = {"commitUrl": f"{self.base}/{name}/commit/1", "commitOid": "1" * 40,
                      "success": True, "hookOutput": ""}  # fmt: skip
            return self._send(200, commit)
        about = {"id": name, "private": self.repositories.get(name, True), "siblings": [],
                 "tags": [], "sha": "1" * 40}  # fmt: skip
        return self._send(200, about)

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def _send(self, code: int, found: Any) -> None:
        content = json.dumps(found).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    kind = type("OneHub", (Hub,), {"requests": [], "repositories": {}, "files": {},
                                   "tokens": set()})  # fmt: skip
    running = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    running.daemon_threads = True
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{running.server_address[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(huggingface_hub.hf_api.constants, "ENDPOINT", address)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield kind
    running.shutdown()
    running.server_close()
    thread.join()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An export, as far as sending cares."""
    made = tmp_path / "my-policy"
    made.mkdir()
    (made / "config.json").write_text('{"model_type": "gpt2"}', encoding="utf-8")
    (made / "model.safetensors").write_bytes(b"weights")
    (made / "README.md").write_text("---\nlicense: mit\n---\n# mine\n", encoding="utf-8")
    return made


def test_every_file_arrives_in_a_private_repository(server: type[Hub], folder: Path) -> None:
    done = exporting.export(folder, ExportSettings(push="me/mine"))
    assert server.repositories == {"me/mine": True}
    assert server.files == {f"me/mine/{p.name}": p.read_bytes() for p in folder.iterdir()}
    assert server.tokens == {f"Bearer {TOKEN}"}
    assert done.address.endswith("/me/mine")


def test_public_has_to_be_said(server: type[Hub], folder: Path) -> None:
    hub.push(folder, "me/open", public=True)
    assert server.repositories == {"me/open": False}
    server.files.clear()
    with pytest.raises(SettingsError, match="push: me/open is there already and public: --public"):
        hub.push(folder, "me/open", public=False)
    assert server.files == {}
    assert hub.push(folder, "me/open", public=True).endswith("me/open")
    assert len(server.files) == 3
    server.files.clear()
    hub.push(folder, "me/closed", public=False)
    server.files.clear()
    with pytest.raises(SettingsError, match="push: me/closed is there already and private"):
        hub.push(folder, "me/closed", public=True)
    assert server.files == {}


def test_nothing_is_sent_without_being_asked(server: type[Hub], folder: Path) -> None:
    with pytest.raises(SettingsError, match="out: expected the folder to write"):
        exporting.export(folder, ExportSettings())
    with pytest.raises(SettingsError, match="public: is about --push"):
        ExportSettings(public=True)
    assert server.requests == []


def test_without_a_token_nothing_is_sent(
    server: type[Hub], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(SettingsError, match="push: there is no token of yours here: run `hf auth"):
        exporting.export(folder, ExportSettings(push="me/mine"))
    assert server.requests == []


@pytest.mark.parametrize("name", ["../mine", "a/b/c", "me/ mine", "-x"])
def test_a_name_that_can_be_no_repository_is_refused(
    server: type[Hub], folder: Path, name: str
) -> None:
    with pytest.raises(SettingsError, match="push: expected OWNER/NAME"):
        exporting.export(folder, ExportSettings(push=name))
    assert server.requests == []


def test_without_a_network_it_is_one_sentence(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any, **options: Any) -> Any:
        raise OSError("Network is unreachable\nand a long page of details")

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    with pytest.raises(SettingsError) as told:
        hub.push(folder, "me/mine", public=False)
    assert told.value.reason == (
        f"me/mine could not be sent (Network is unreachable); {folder} is whole"
    )
