from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import safetensors.torch  # noqa: E402

from promptadapt_core import moving, policies, tokenizing  # noqa: E402
from promptadapt_core.manifest import read_manifest  # noqa: E402
from promptadapt_core.policy import (  # noqa: E402
    MANIFEST_NAME,
    PROMPTIST,
    Manifest,
    Policy,
    find_policies,
    load_pretrained_base,
    new_policy,
    resolve_policy,
    train_tokenizer,
)
from promptadapt_core.settings import SettingsError  # noqa: E402

TEXTS = ["a cat on a roof, highly detailed", "portrait of a cat, oil painting"] * 20


def tiny(seed: int = 0, **changes) -> Policy:
    tokenizer = train_tokenizer(TEXTS, 290)
    sizes = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "num_positions": 32, **changes}
    return new_policy(tokenizer, seed=seed, **sizes)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny().save(tmp_path_factory.mktemp("policies") / "tiny", dtype=torch.float32)


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of the tiny policy that the test may spoil."""
    return Path(shutil.copytree(saved, tmp_path / "tiny"))


def edit(path: Path, **changes) -> None:
    fields = json.loads(path.read_text(encoding="utf-8"))
    fields.update(changes)
    path.write_text(json.dumps(fields), encoding="utf-8")


def logits(policy: Policy, text: str = "a cat") -> torch.Tensor:
    with torch.no_grad():
        return policy.model(torch.tensor([policy.encode(text)])).logits


def with_vocab(policy: Policy) -> Manifest:
    """The manifest as it is saved."""
    known = tokenizing.vocab_sha256(policy.backend)
    return dataclasses.replace(policy.manifest, vocab_sha256=known)


# --- made, saved, loaded ---


def test_a_policy_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    policy = tiny()
    policy.manifest = Manifest("mine", decoding={"num_beams": 4}, description="x", licence="CC0")
    policy.save(tmp_path, dtype=torch.float32)
    loaded = Policy.load(tmp_path)
    assert loaded.manifest == with_vocab(policy)
    assert loaded.eos_id == policy.eos_id
    assert loaded.folder == tmp_path
    assert torch.equal(logits(loaded), logits(policy))
    assert not loaded.model.training


def test_weights_that_a_scanner_has_open_are_saved_a_moment_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, refusals = os.replace, iter([None] * 2)

    def refuses(source: Path, target: Path) -> None:
        for _ in refusals:
            raise PermissionError(13, "in use")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuses)
    monkeypatch.setattr(moving, "IS_WINDOWS", True)
    policy = tiny()
    assert torch.equal(logits(Policy.load(policy.save(tmp_path, torch.float32))), logits(policy))


def test_half_precision_is_stored_and_float32_served(tmp_path: Path) -> None:
    policy = tiny()
    policy.save(tmp_path)
    stored = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    assert "lm_head.weight" not in stored
    loaded = Policy.load(tmp_path)
    assert {tensor.dtype for tensor in loaded.weights.values()} == {torch.float32}
    assert torch.allclose(logits(loaded), logits(policy), atol=5e-3)


def test_transformers_reads_the_folder_by_itself(saved: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(saved).eval()
    tokenizer = AutoTokenizer.from_pretrained(saved)
    policy = Policy.load(saved)
    encoded = tokenizer("a cat", return_tensors="pt")
    assert encoded["input_ids"][0].tolist() == policy.encode("a cat")
    assert tokenizer.eos_token_id == policy.eos_id
    with torch.no_grad():
        assert torch.allclose(model.float()(**encoded).logits, logits(policy), atol=1e-5)


def test_the_head_stays_tied_and_the_mask_is_causal(saved: Path) -> None:
    model = Policy.load(saved).model
    assert model.lm_head.weight is model.transformer.wte.weight
    assert not any(buffer.is_meta for buffer in model.buffers())
    ids = torch.tensor([[5, 6, 7, 8], [5, 6, 9, 10]])
    with torch.no_grad():
        first, second = model(ids).logits
    assert torch.equal(first[:2], second[:2])
    assert not torch.allclose(first[2:], second[2:])


def test_making_and_loading_leave_the_global_generators_alone(
    saved: Path, untouched_generators
) -> None:
    with untouched_generators():
        _ = tiny(seed=5).model
        _ = Policy.load(saved).model


def test_the_seed_makes_the_weights() -> None:
    one, same, other = tiny(1).weights, tiny(1).weights, tiny(2).weights
    name = "transformer.h.0.attn.c_attn.weight"
    assert torch.equal(one[name], same[name])
    assert not torch.equal(one[name], other[name])
    large = tiny(hidden_size=64, num_layers=8).weights
    assert large["transformer.wte.weight"].std().item() == pytest.approx(0.02, rel=0.05)
    assert large["transformer.h.3.mlp.c_proj.weight"].std().item() == pytest.approx(0.005, rel=0.05)
    assert torch.equal(large["transformer.ln_f.weight"], torch.ones(64))
    assert not large["transformer.h.0.mlp.c_fc.bias"].any()


def test_training_the_model_changes_what_is_saved(tmp_path: Path) -> None:
    policy = tiny()
    with torch.no_grad():
        policy.model.transformer.ln_f.bias.fill_(3.0)
    policy.save(tmp_path)
    assert Policy.load(tmp_path).weights["transformer.ln_f.bias"].eq(3.0).all()


def test_the_same_policy_saves_the_same_bytes(tmp_path: Path) -> None:
    one, two = tiny().save(tmp_path / "1"), tiny().save(tmp_path / "2")
    for name in sorted(path.name for path in one.iterdir()):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    assert Policy.load(one).identity == Policy.load(two).identity


def test_identity_follows_the_weights(saved: Path, tmp_path: Path) -> None:
    identity = Policy.load(saved).identity
    assert len(identity) == 12
    assert int(identity, 16) >= 0
    assert Policy.load(tiny(seed=9).save(tmp_path)).identity != identity
    assert tiny().identity == "unsaved"


def test_loading_needs_no_transformers(saved: Path) -> None:
    code = (
        "import sys; from promptadapt_core.policy import Policy;"
        "p = Policy.load(sys.argv[1]); p.decode(p.encode('a cat'));"
        "sys.exit('transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, saved], check=False).returncode == 0


@pytest.mark.parametrize("heads", [3, 5])
def test_a_width_that_heads_do_not_divide_is_refused(heads: int) -> None:
    with pytest.raises(SettingsError, match="multiple of num_heads"):
        tiny(num_heads=heads)


def test_weights_too_large_for_half_precision_are_not_saved(tmp_path: Path) -> None:
    policy = tiny()
    policy.weights["transformer.ln_f.bias"].fill_(1e6)
    with pytest.raises(SettingsError, match="not finite"):
        policy.save(tmp_path)
    assert not list(tmp_path.glob("model*"))


# --- tokens ---


def test_every_text_comes_back_from_its_tokens() -> None:
    policy = tiny()
    for text in ("a cat , a cat", "  two  spaces", "猫 🐈 é", "line\nbreak", " .,;", ""):
        assert policy.decode(policy.encode(text)) == text
        assert policy.tokenizer.decode(policy.encode(text)) == text


def test_the_end_token_is_never_read_from_the_users_text() -> None:
    policy = tiny()
    text = "a <|endoftext|> cat<|endoftext|>"
    ids = policy.encode(text)
    assert policy.eos_id not in ids
    assert policy.decode([*ids, policy.eos_id]) == text


def test_merges_are_written_for_old_and_new_tokenizers(saved: Path) -> None:
    merges = json.loads((saved / "tokenizer.json").read_text(encoding="utf-8"))["model"]["merges"]
    assert merges
    assert all(isinstance(merge, str) and len(merge.split(" ")) == 2 for merge in merges)


def test_training_a_tokenizer_is_repeatable_and_keeps_to_its_size() -> None:
    one, two = (train_tokenizer(iter(TEXTS), 270) for _ in range(2))
    assert len(one) == 270
    assert one.get_vocab() == two.get_vocab()
    with pytest.raises(SettingsError, match="vocab_size"):
        train_tokenizer(TEXTS, 256)


def test_the_policy_prompt_follows_the_template() -> None:
    policy = tiny()
    policy.manifest = Manifest(template="Q: {user_input} A:")
    assert policy.policy_prompt(" a {cat} ") == "Q: a {cat} A:"
    assert Manifest().policy_prompt("a cat") == "a cat Rephrase:"


# --- GPT-2 files as others publish them ---


def publish_as_old_bin(policy: Policy, folder: Path, prefix: str = "transformer.") -> Path:
    """As transformers wrote GPT-2 in 2022: a .bin with masks and the tied head, gpt2's files."""
    folder.mkdir()
    weights = {name.replace("transformer.", prefix, 1): w for name, w in policy.weights.items()}
    for index in range(policy.config["n_layer"]):
        mask = torch.ones(1, 1, 32, 32, dtype=torch.uint8).tril()
        weights[f"{prefix}h.{index}.attn.bias"] = mask
        weights[f"{prefix}h.{index}.attn.masked_bias"] = torch.tensor(-1e4)
    weights["lm_head.weight"] = policy.weights["transformer.wte.weight"]
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(policy.config), encoding="utf-8")
    policy.backend.model.save(str(folder))  # vocab.json, merges.txt
    return folder


@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_an_old_bin_file_loads(tmp_path: Path, prefix: str) -> None:
    policy = tiny()
    loaded = Policy.load(publish_as_old_bin(policy, tmp_path / "old", prefix))
    assert torch.equal(logits(loaded), logits(policy))
    assert loaded.eos_id == policy.eos_id
    assert loaded.encode("a cat, oil <|endoftext|>") == policy.encode("a cat, oil <|endoftext|>")
    assert loaded.manifest == Manifest(name="old")


def test_a_folder_of_gpt2_small_without_manifest_is_promptist(tmp_path: Path) -> None:
    policy = tiny(hidden_size=768, num_layers=12, num_heads=12, num_positions=8)
    folder = policy.save(tmp_path)
    (folder / MANIFEST_NAME).unlink()
    loaded = Policy.load(folder)
    assert loaded.manifest == PROMPTIST
    assert loaded.policy_prompt("a cat ") == "a cat Rephrase:"
    assert loaded.manifest.start == "free"
    expected = {"num_beams": 8, "length_penalty": -1.0, "max_new_tokens": 75}
    assert expected.items() <= loaded.manifest.decoding.items()
    assert load_pretrained_base(folder).manifest == Manifest()


def test_promptist_without_tokenizer_says_what_to_fetch(tmp_path: Path) -> None:
    folder = publish_as_old_bin(tiny(), tmp_path / "old")
    (folder / "vocab.json").unlink()
    with pytest.raises(SettingsError, match=r"vocab\.json and merges\.txt of gpt2"):
        Policy.load(folder)


def test_gpt2s_own_tokenizer_files(shared: Path) -> None:
    backend = tokenizing.read_backend(shared / "data" / "gpt2_tokenizer")
    assert backend.get_vocab_size() == 50257
    assert backend.encode("Hello world").ids == [15496, 995]
    assert backend.token_to_id("<|endoftext|>") == 50256


def test_sharded_weights_load(folder: Path) -> None:
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    before = logits(Policy.load(folder))
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    index = {}
    for number, part in enumerate((names[::2], names[1::2])):
        file = f"model-{number}.safetensors"
        safetensors.torch.save_file({name: weights[name] for name in part}, folder / file)
        index.update(dict.fromkeys(part, file))
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": index}), encoding="utf-8")
    assert torch.equal(logits(Policy.load(folder)), before)
    path.write_text(json.dumps({"weight_map": {"x": "../model-0.safetensors"}}), encoding="utf-8")
    with pytest.raises(SettingsError, match="lacks the weight file"):
        Policy.load(folder)


# --- other architectures ---


def tiny_llama(folder: Path) -> torch.nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = train_tokenizer(TEXTS, 290)
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 6, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, eos_token_id=tokenizer.eos_token_id, max_position_embeddings=32,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(folder, safe_serialization=True)
    tokenizing.write_backend(tokenizer.backend_tokenizer, folder)
    return model


@pytest.mark.parametrize("as_bin", [False, True])
def test_any_causal_language_model_loads_and_saves(
    tmp_path: Path, as_bin: bool, untouched_generators
) -> None:
    model = tiny_llama(tmp_path / "llama")
    if as_bin:
        (tmp_path / "llama" / "model.safetensors").unlink()
        torch.save(model.state_dict(), tmp_path / "llama" / "pytorch_model.bin")
    with untouched_generators():
        policy = Policy.load(tmp_path / "llama")
    ids = torch.tensor([policy.encode("a cat")])
    with torch.no_grad():
        expected = model(ids).logits
    assert torch.allclose(logits(policy), expected, atol=1e-5)
    assert not policy.model.training
    policy.manifest = Manifest("mine")
    again = Policy.load(policy.save(tmp_path / "again", dtype=torch.float32))
    assert again.manifest == with_vocab(policy)
    assert torch.allclose(logits(again), expected, atol=1e-5)
    assert again.encode("a cat <|endoftext|>") == policy.encode("a cat <|endoftext|>")
    assert again.eos_id == policy.eos_id not in policy.encode("<|endoftext|>")
    other = tokenizing.train_backend([text[::-1] for text in TEXTS] * 3, 290)
    assert other.get_vocab_size() == policy.backend.get_vocab_size()
    tokenizing.write_backend(other, tmp_path / "again")
    with pytest.raises(SettingsError, match="its vocabulary is not the one that its weights"):
        Policy.load(tmp_path / "again")


@pytest.mark.parametrize("as_bin", [False, True])
def test_a_missing_weight_is_never_made_up(tmp_path: Path, as_bin: bool) -> None:
    weights = tiny_llama(tmp_path).state_dict()
    name = "model.layers.0.mlp.up_proj.weight"
    del weights[name]
    path = tmp_path / "model.safetensors"
    path.unlink()
    if as_bin:
        torch.save(weights, tmp_path / "pytorch_model.bin")
    else:
        path.write_bytes(safetensors.torch.save(weights, metadata={"format": "pt"}))
    with pytest.raises(SettingsError, match=f"lacks 1 weights, the first is {name}"):
        Policy.load(tmp_path)


def test_code_in_a_folder_is_not_run(tmp_path: Path) -> None:
    tiny_llama(tmp_path)
    edit(tmp_path / "config.json", model_type="own", auto_map={
        "AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"})  # fmt: skip
    (tmp_path / "code.py").write_text("raise SystemExit('ran')", encoding="utf-8")
    with pytest.raises(SettingsError, match="policy"):
        Policy.load(tmp_path)


# --- bad folders: one sentence each ---


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def change_weight(folder: Path, name: str, tensor: torch.Tensor | None) -> None:
    path = folder / "model.safetensors"
    weights = safetensors.torch.load(path.read_bytes())
    weights.pop(name)
    if tensor is not None:
        weights[name] = tensor
    safetensors.torch.save_file(weights, path)


NORM = "transformer.ln_f.bias"
BAD = {
    "no config": (lambda f: (f / "config.json").unlink(), "no config.json"),
    "config not JSON": (lambda f: (f / "config.json").write_text("{"), "could not be read"),
    "config a list": (lambda f: (f / "config.json").write_text("[]"), "JSON object"),
    "image model": (
        lambda f: (f / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}'),
        "not a language model .*UNet2DConditionModel",
    ),
    "unknown architecture": (lambda f: edit(f / "config.json", model_type="no-such"), "no-such"),
    "other architecture": (lambda f: edit(f / "config.json", model_type="vit"), "not a causal"),
    "negative size": (lambda f: edit(f / "config.json", n_layer=-1), "n_layer"),
    "odd size": (lambda f: edit(f / "config.json", n_head=3), "no multiple of n_head"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no weights"),
    "truncated": (truncate, "truncated or broken"),
    "empty file": (lambda f: (f / "model.safetensors").write_bytes(b""), "truncated or broken"),
    "missing weight": (lambda f: change_weight(f, NORM, None), f"lacks 1 of .*{NORM}"),
    "wrong shape": (lambda f: change_weight(f, NORM, torch.zeros(3)), r"has the shape \(3,"),
    "NaN": (lambda f: change_weight(f, NORM, torch.full((16,), torch.nan)), "not finite"),
    "infinite": (lambda f: change_weight(f, NORM, torch.full((16,), torch.inf)), "not finite"),
    "fewer layers": (lambda f: edit(f / "config.json", n_layer=1), "does not know the weight"),
    "more layers": (lambda f: edit(f / "config.json", n_layer=3), "lacks 12 of"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer"),
    "tokenizer broken": (lambda f: (f / "tokenizer.json").write_text("{}"), "is broken"),
    "too many layers": (lambda f: edit(f / "config.json", n_layer=10**12), "at most 1000"),
    "unknown activation": (
        lambda f: edit(f / "config.json", activation_function="none"),
        "not a causal language",
    ),
    "newer manifest": (lambda f: edit(f / MANIFEST_NAME, format=2), "newer than this"),
    "format text": (lambda f: edit(f / MANIFEST_NAME, format="1"), "whole number"),
    "unknown entry": (lambda f: edit(f / MANIFEST_NAME, tempalte="x"), "unknown entries.*tempalte"),
    "manifest not JSON": (lambda f: (f / MANIFEST_NAME).write_text("x"), "could not be read"),
    "manifest a list": (lambda f: (f / MANIFEST_NAME).write_text("[]"), "JSON object"),
    "manifest not text": (lambda f: (f / MANIFEST_NAME).write_bytes(b"\xff"), "could not be read"),
    "template": (lambda f: edit(f / MANIFEST_NAME, template="Rephrase:"), "user_input"),
    "start": (lambda f: edit(f / MANIFEST_NAME, start="never"), "start has to be one of"),
    "name": (lambda f: edit(f / MANIFEST_NAME, name=3), "name has to be text"),
    "decoding": (lambda f: edit(f / MANIFEST_NAME, decoding=[1]), "decoding has to be an object"),
    "decoding key": (lambda f: edit(f / MANIFEST_NAME, decoding={"beams": 3}), "beams"),
    "text with half a character": (
        lambda f: edit(f / MANIFEST_NAME, template="\ud800{user_input}"),
        "template holds a control character or half a character",
    ),
    "text with an escape": (lambda f: edit(f / MANIFEST_NAME, name="\x1b[31m"), "name holds a con"),
    "span to keep": (lambda f: edit(f / MANIFEST_NAME, decoding={"keep": ["x"]}), "decoding.keep"),
    "no words to ban": (lambda f: edit(f / MANIFEST_NAME, decoding={"ban": ["!"]}), "decoding.ban"),
    "decoding no list": (lambda f: edit(f / MANIFEST_NAME, decoding={"ban": 5}), "decoding.ban"),
    "epsilon": (lambda f: edit(f / "config.json", layer_norm_epsilon="x"), "layer_norm_epsilon"),
    "decoding value": (lambda f: edit(f / MANIFEST_NAME, decoding={"num_beams": 0}), "num_beams"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_folder_is_one_clear_sentence(folder: Path, case: str) -> None:
    spoil, message = BAD[case]
    spoil(folder)
    with pytest.raises(SettingsError, match=message) as caught:
        Policy.load(folder)
    assert caught.value.name == "policy"
    assert "\n" not in caught.value.reason


def test_a_tokenizer_of_another_size_is_refused(folder: Path) -> None:
    tokenizing.write_backend(tokenizing.train_backend(TEXTS, 270), folder)
    with pytest.raises(SettingsError, match="tokenizer has 270 tokens, the model 290"):
        Policy.load(folder)


def test_another_tokenizer_of_the_same_size_is_refused(folder: Path) -> None:
    """Its texts would be other tokens' and nothing else would tell."""
    others = ["zebra quilt xylophone"] * 9 + [text[::-1] for text in TEXTS]
    backend = tokenizing.train_backend(others, 290)
    assert backend.get_vocab_size() == 290
    tokenizing.write_backend(backend, folder)
    with pytest.raises(SettingsError, match="its vocabulary is not the one that its weights"):
        Policy.load(folder)
    manifest = json.loads((folder / "promptadapt.json").read_text(encoding="utf-8"))
    (folder / "promptadapt.json").write_text(json.dumps({**manifest, "vocab_sha256": ""}))
    assert Policy.load(folder).encode("a cat on") != tiny().encode("a cat on")


def test_the_vocabulary_is_known_whatever_was_added_later(folder: Path) -> None:
    backend = tokenizing.read_backend(folder)
    known = tokenizing.vocab_sha256(backend)
    assert known == json.loads((folder / "promptadapt.json").read_text("utf-8"))["vocab_sha256"]
    assert len(known) == 64
    backend.add_tokens(["<more>"])
    assert tokenizing.vocab_sha256(backend) == known


def test_the_ids_of_a_vocabulary_count(folder: Path) -> None:
    """In their order: the same tokens under other ids are other texts."""
    fields = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    fields["model"]["vocab"] = {token: 289 - n for token, n in fields["model"]["vocab"].items()}
    fields["added_tokens"] = []
    (folder / "tokenizer.json").write_text(json.dumps(fields), encoding="utf-8")
    with pytest.raises(SettingsError, match="its vocabulary is not the one that its weights"):
        Policy.load(folder)


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_a_folder_that_is_missing_or_empty(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SettingsError, match=name):
        Policy.load(tmp_path / name)


@pytest.mark.parametrize("device", ["no-such", "cuda:99"])
def test_a_device_that_is_not_there(saved: Path, device: str) -> None:
    with pytest.raises(SettingsError, match=device) as caught:
        Policy.load(saved, device=device)
    assert caught.value.name == "device"
    assert "\n" not in caught.value.reason


class Payload:
    """What a malicious .bin holds: unpickling it would make the file `marker`."""

    marker = ""

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.mark.parametrize("content", ["code", "cut", "text", "list"])
def test_a_bad_bin_is_refused_and_never_unpickled(tmp_path: Path, content: str) -> None:
    folder = publish_as_old_bin(tiny(), tmp_path / "old")
    path = folder / "pytorch_model.bin"
    Payload.marker = str(tmp_path / "ran")
    if content == "code":
        torch.save({"transformer.wte.weight": Payload()}, path)
    elif content == "cut":
        path.write_bytes(path.read_bytes()[:1000])
    elif content == "text":
        path.write_text("hello", encoding="utf-8")
    else:
        torch.save([torch.zeros(1)], path)
    with pytest.raises(SettingsError, match=r"pytorch_model\.bin") as caught:
        Policy.load(folder)
    assert "\n" not in caught.value.reason
    assert not (tmp_path / "ran").exists()


# --- finding ---


@pytest.fixture
def models(folder: Path) -> Path:
    """A models folder: one policy, one folder without weights, one with a bad manifest."""
    models = folder.parent / "models"
    models.mkdir()
    edit(folder / MANIFEST_NAME, name="tiny", description="for tests")
    shutil.copytree(folder, models / "mine")
    shutil.copytree(folder, models / "broken")
    (models / "broken" / MANIFEST_NAME).write_text("{", encoding="utf-8")
    (models / "empty").mkdir()
    (models / "file.txt").write_text("x", encoding="utf-8")
    return models


def test_policies_are_found(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies, "BUNDLED_FOLDER", models)
    bundled, mine = find_policies(models)
    assert bundled == mine._replace(source="bundled")
    assert mine.name == "mine"
    assert mine.description == "for tests"
    assert mine.source == "models folder"
    assert mine.size_bytes == (models / "mine" / "model.safetensors").stat().st_size
    assert json.loads(json.dumps(mine.as_json()))["folder"] == str(models / "mine")
    assert find_policies(models / "no-such") == [bundled]


def test_a_name_or_a_folder_is_resolved(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_policy("mine", models, allow_folders=False) == models / "mine"
    assert resolve_policy(str(models / "mine")) == models / "mine"
    assert resolve_policy(models / "mine") == models / "mine"
    monkeypatch.setattr(policies, "BUNDLED_FOLDER", models)
    monkeypatch.setattr(policies, "DEFAULT_POLICY", "mine")
    assert resolve_policy("", allow_folders=False) == models / "mine"


@pytest.mark.parametrize(
    "name",
    ["../tiny", "..", ".", "mine/../../tiny", "..\\tiny", "C:tiny", "/", "a\0b", "a\nb", "~"],
)
def test_a_name_never_leaves_the_models_folder(models: Path, name: str) -> None:
    with pytest.raises(SettingsError) as caught:
        resolve_policy(name, models, allow_folders=False)
    assert caught.value.name == "policy"
    assert "\n" not in caught.value.reason


def test_an_absolute_path_is_no_name(models: Path) -> None:
    with pytest.raises(SettingsError, match="expected the name"):
        resolve_policy(str(models / "mine"), models, allow_folders=False)


def test_a_link_that_leaves_the_models_folder_is_refused(models: Path, folder: Path) -> None:
    try:
        (models / "link").symlink_to(folder, target_is_directory=True)
    except OSError:
        pytest.skip("this system makes no links")
    assert [info.name for info in find_policies(models) if info.source != "bundled"] == ["mine"]
    with pytest.raises(SettingsError, match="link that leaves"):
        resolve_policy("link", models, allow_folders=False)


def test_an_unknown_name_lists_what_is_there(models: Path) -> None:
    with pytest.raises(SettingsError, match="no policy 'other'; found here: .*mine"):
        resolve_policy("other", models)


# --- the hub, by a stand-in for its client ---


def test_nothing_is_downloaded_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies, "_download", lambda *_: pytest.fail("went to the hub"))
    with pytest.raises(SettingsError, match="not on this computer; ask .* --download"):
        resolve_policy("microsoft/Promptist", tmp_path)


def fake_hub(monkeypatch: pytest.MonkeyPatch, snapshot_download) -> None:
    import types

    module = types.ModuleType("huggingface_hub")
    module.snapshot_download = snapshot_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)


def test_promptist_is_downloaded_with_gpt2s_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = publish_as_old_bin(tiny(), tmp_path / "published")
    asked = []

    def snapshot_download(repository, *, local_dir, allow_patterns, ignore_patterns):
        asked.append(repository)
        for path in published.iterdir():
            own = path.suffix == ".bin" or path.name == "config.json"
            wanted = any(path.match(pattern) for pattern in allow_patterns)
            if wanted and own == (repository == "microsoft/Promptist"):
                Path(local_dir).mkdir(exist_ok=True)
                shutil.copy(path, local_dir)

    fake_hub(monkeypatch, snapshot_download)
    models = tmp_path / "models"
    models.mkdir()
    folder = resolve_policy("microsoft/Promptist", models, download=True)
    assert asked == ["microsoft/Promptist"] * 2 + ["openai-community/gpt2"]
    assert folder.parent == models
    assert Policy.load(folder).encode("a cat") == tiny().encode("a cat")
    assert resolve_policy("microsoft/Promptist", models) == folder
    assert len(asked) == 3


def test_offline_is_one_clear_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot_download(*_, **__):
        raise OSError("no route to host\nmore")

    fake_hub(monkeypatch, snapshot_download)
    with pytest.raises(SettingsError, match="could not be downloaded: no route to host$"):
        resolve_policy("microsoft/Promptist", tmp_path, download=True)


def test_manifest_of_a_folder_without_one(tmp_path: Path) -> None:
    assert read_manifest(tmp_path) is None
    assert dataclasses.asdict(Manifest())["start"] == "user_input"


def test_a_tokenizer_files_truncation_and_padding_are_left_off(folder: Path) -> None:
    path = folder / "tokenizer.json"
    ids = Policy.load(folder).encode("a cat on a roof")
    fields = json.loads(path.read_text(encoding="utf-8"))
    fields["truncation"] = {
        "direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0,
    }  # fmt: skip
    fields["padding"] = {
        "strategy": {"Fixed": 20}, "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>",
    }  # fmt: skip
    path.write_text(json.dumps(fields), encoding="utf-8")
    assert Policy.load(folder).encode("a cat on a roof") == ids


@pytest.mark.parametrize("content", ['{"weight_map": {"a": 1}}', "[" * 100_000])
def test_a_hostile_index_of_weights_is_one_sentence(folder: Path, content: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(content, encoding="utf-8")
    with pytest.raises(SettingsError, match="is not an index of weight files"):
        Policy.load(folder)
