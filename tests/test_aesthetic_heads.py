"""Aesthetic heads: their golden numbers, and how one comes here."""

from __future__ import annotations

import hashlib
import http.server
import math
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from promptadapt_core import aesthetic_heads
from promptadapt_core.aesthetic_heads import KNOWN_HEADS, KnownHead, fetch_head, read_head
from promptadapt_core.settings import SettingsError

RATINGS = {  # of the embeddings rating0.npy to rating9.npy, as their authors published them
    "sac+logos+ava1-l14-linearMSE.pth": (
        "l14", (1.66, 2.36, 3.07, 3.67, 4.24, 4.70, 5.07, 5.37, 5.58, 5.75),
    ),
    "sa_0_4_vit_l_14_linear.pth": (
        "l14", (-2.46, -0.14, 1.90, 3.58, 5.10, 6.47, 7.79, 9.05, 10.23, 11.30),
    ),
    "sa_0_4_vit_b_32_linear.pth": (
        "b32", (-1.47, 0.27, 1.99, 3.61, 5.09, 6.39, 7.67, 8.92, 9.92, 11.01),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RATINGS)
def test_published_heads_give_their_published_scores(shared: Path, name: str) -> None:
    model, expected = RATINGS[name]
    heads = shared / "data" / "aesthetic_heads"
    rows = [np.load(heads / f"clip_{model}_ratings" / f"rating{n}.npy")[0] for n in range(10)]
    scores = read_head(heads / name)(torch.from_numpy(np.stack(rows)))
    assert scores.dtype == torch.float32
    assert scores.tolist() == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("width", [512, 768])
def test_simulacra_heads_read_vectors_of_length_root_d(shared: Path, width: int) -> None:
    kind = {512: "b_32", 768: "l_14"}[width]
    path = shared / "data/aesthetic_heads" / f"sac_public_2022_06_29_vit_{kind}_linear.pth"
    stored = torch.load(path, map_location="cpu", weights_only=True)
    unit = torch.zeros(1, width)
    unit[0, 3] = 1.0
    by_hand = float(stored["linear.weight"][0, 3]) * width**0.5 + float(stored["linear.bias"])
    assert read_head(path)(unit).tolist() == pytest.approx([by_hand], abs=1e-4)


def layers(last: int = 1) -> dict[str, torch.Tensor]:
    """A head of LAION's kind on 2 numbers, x and y: 10 * (2 * (x + 3 * y + 1) - 4) + 0.5."""
    one = torch.tensor([[1.0]])
    return {
        "layers.0.weight": torch.tensor([[1.0, 3.0]]), "layers.0.bias": torch.tensor([1.0]),
        "layers.2.weight": 2 * one, "layers.2.bias": torch.tensor([-4.0]),
        "layers.4.weight": one, "layers.4.bias": torch.tensor([0.0]),
        "layers.6.weight": 10 * one, "layers.6.bias": torch.tensor([0.0]),
        "layers.7.weight": one.repeat(last, 1), "layers.7.bias": torch.full((last,), 0.5),
    }  # fmt: skip


@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_layers_without_activations_become_one(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"head.{ending}"
    save_file(layers(), path) if ending == "safetensors" else torch.save(layers(), path)
    head = read_head(path)
    assert head.weight.tolist() == [20.0, 60.0]
    assert head.bias == pytest.approx(-19.5)
    assert head(torch.tensor([[1.0, 0.0], [0.6, -0.8]])).tolist() == pytest.approx([0.5, -55.5])


class Unwelcome:
    """What a pickle must not be able to bring in."""


BROKEN_HEADS = {
    "truncated.safetensors": lambda path: path.write_bytes(b"\x40\x00\x00\x00\x00\x00\x00\x00{"),
    "empty.pth": lambda path: path.write_bytes(b""),
    "object.pth": lambda path: torch.save({"weight": Unwelcome()}, path),
    "list.pth": lambda path: torch.save([torch.zeros(1)], path),
    "names.safetensors": lambda path: save_file({"gain": torch.zeros(1, 3)}, path),
    "activations.safetensors": lambda path: save_file(
        {name.replace("7", "9"): tensor for name, tensor in layers().items()}, path
    ),
    "two_scores.safetensors": lambda path: save_file(layers(last=2), path),
    "misfit.safetensors": lambda path: save_file(
        {**layers(), "layers.4.weight": torch.zeros(1, 5)}, path
    ),
    "nan.safetensors": lambda path: save_file(
        {"weight": torch.tensor([[math.nan]]), "bias": torch.zeros(1)}, path
    ),
    "flat.safetensors": lambda path: save_file(
        {"linear.weight": torch.zeros(3), "linear.bias": torch.zeros(1)}, path
    ),
}


@pytest.mark.parametrize("name", BROKEN_HEADS)
def test_a_broken_head_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    BROKEN_HEADS[name](path)
    with pytest.raises(SettingsError) as caught:
        read_head(path)
    assert caught.value.name == "head"
    assert str(path) in caught.value.reason


def test_a_missing_head_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="there is no file .*nowhere.pth"):
        read_head(tmp_path / "nowhere.pth")


def test_the_pinned_hashes_are_those_of_the_published_files(shared: Path) -> None:
    for name, known in KNOWN_HEADS.items():
        content = (shared / "data" / "aesthetic_heads" / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == known.sha256
        width = {"ViT-L-14-quickgelu": 768, "ViT-B-32-quickgelu": 512}[known.model]
        assert len(read_head(shared / "data" / "aesthetic_heads" / name).weight) == width


class Sending(http.server.BaseHTTPRequestHandler):
    """Answers every path with the head of the test, or with 404."""

    content = b""

    def do_GET(self) -> None:
        found = self.path == "/head.safetensors"
        self.send_response(200 if found else 404)
        self.end_headers()
        self.wfile.write(self.content if found else b"")

    def log_message(self, format: str, *parts: object) -> None:
        pass


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    path = tmp_path / "sent.safetensors"
    save_file({"weight": torch.ones(1, 3), "bias": torch.zeros(1)}, path)
    Sending.content = path.read_bytes()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Sending)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def know(monkeypatch: pytest.MonkeyPatch, url: str, content: bytes) -> None:
    known = KnownHead(url, hashlib.sha256(content).hexdigest(), "tiny-clip")
    monkeypatch.setattr(aesthetic_heads, "KNOWN_HEADS", {"head.safetensors": known})


def test_a_known_head_is_fetched_and_checked(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "new" / "head.safetensors"
    know(monkeypatch, f"{address}/head.safetensors", Sending.content)
    with pytest.raises(SettingsError, match="there is no file .*head.safetensors; it is published"):
        read_head(path)
    fetch_head(path)
    assert read_head(path).weight.tolist() == [1.0, 1.0, 1.0]
    assert [some.name for some in path.parent.iterdir()] == ["head.safetensors"]
    path.write_bytes(b"my own")
    fetch_head(path)  # what is there stays
    assert path.read_bytes() == b"my own"


def test_what_is_not_the_pinned_file_is_refused(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "head.safetensors"
    know(monkeypatch, f"{address}/head.safetensors", b"something else")
    with pytest.raises(SettingsError, match="is not the file of SHA-256"):
        fetch_head(path)
    know(monkeypatch, f"{address}/gone", Sending.content)
    with pytest.raises(SettingsError, match="cannot be fetched .*404.*; put it at .*head"):
        fetch_head(path)
    assert not path.exists()
    with pytest.raises(SettingsError, match="those known by name: head.safetensors"):
        fetch_head(tmp_path / "unknown.pth")


def test_an_answer_that_is_no_http_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a proxy, or of a port of something else."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            client, _ = server.accept()
            with client:
                client.recv(4096)
                client.sendall(b"220 a mail server\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        know(monkeypatch, f"http://127.0.0.1:{server.getsockname()[1]}/head", b"")
        with pytest.raises(SettingsError, match="head: http://.* cannot be fetched"):
            fetch_head(tmp_path / "head.safetensors")
        thread.join(20)


def test_a_place_that_cannot_be_written_is_named(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    know(monkeypatch, f"{address}/head.safetensors", Sending.content)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SettingsError, match="head: .* cannot be written"):
        fetch_head(tmp_path / "file" / "head.safetensors")
