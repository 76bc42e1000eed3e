"""A policy: a causal language model, its tokenizer and its manifest, in one folder.

A GPT-2 policy is read from its files without transformers; `model` and `tokenizer` are made when
they are first asked for, so that a fresh process pays for them only if it uses them.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from . import checkpoints, lora, tokenizing
from .manifest import MANIFEST_NAME, PROMPTIST, Manifest, read_manifest, write_manifest
from .plain_gpt2 import PlainGpt2, is_plain_config
from .policies import DEFAULT_POLICY, PolicyInfo, find_policies, resolve_policy, weight_files
from .settings import SettingsError
from .tokenizing import train_tokenizer

if TYPE_CHECKING:
    import tokenizers
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

__all__ = [
    "DEFAULT_POLICY", "MANIFEST_NAME", "PROMPTIST", "Manifest", "Policy", "PolicyInfo",
    "find_policies", "load_pretrained_base", "new_policy", "resolve_policy", "train_tokenizer",
]  # fmt: skip

# What Promptist's config says; a folder of that shape without a manifest is taken for it.
PROMPTIST_SHAPE = {"n_embd": 768, "n_layer": 12, "n_head": 12}
GPT2_DEFAULTS = {
    "vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12,
    "n_inner": None, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
    "resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1,
}  # fmt: skip


class Policy:
    """manifest: how to ask it. config: config.json as a dict. folder: where it was read from, or
    None. dtype, device: of the weights as loaded. eos_id: the token that ends a completion."""

    def __init__(
        self,
        manifest: Manifest,
        config: dict[str, Any],
        *,
        weights: dict[str, torch.Tensor] | None = None,
        backend: tokenizers.Tokenizer | None = None,
        model: PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerFast | None = None,
        folder: Path | None = None,
    ):
        """Either `weights` of a plain GPT-2 or a `model`; either a `backend` or a `tokenizer`."""
        self.manifest = manifest
        self.config = config
        self.folder = folder
        self._weights = weights
        self._plain: PlainGpt2 | None = None
        if model is not None:
            self.model = model
        if tokenizer is not None:
            self.tokenizer = tokenizer
            backend = tokenizer.backend_tokenizer
        assert backend is not None
        assert (weights is None) != (model is None)
        self.backend = backend
        self.eos_id = _end_id(config, backend, tokenizer)
        special = {tokenizing.END_TOKEN, backend.id_to_token(self.eos_id)}
        special.update(tokenizer.all_special_tokens if tokenizer is not None else [])
        longest_first = sorted(filter(None, special), key=lambda token: (-len(token), token))
        self._special = re.compile("|".join(map(re.escape, longest_first)))

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Policy:
        """Read a policy folder, or any folder with a causal language model.

        Nothing in the folder is executed or unpickled, nothing is downloaded. Raises
        SettingsError("policy", ...) for a folder that is missing, broken or foreign.
        """
        folder = Path(folder)
        _check_device(device)
        if lora.is_lora(folder):
            return _load_lora(folder, device, dtype)
        config = checkpoints.read_config(folder)
        manifest = read_manifest(folder)
        if not checkpoints.is_plain_gpt2(config):
            return _load_any(folder, config, manifest, device, dtype)
        config = {**GPT2_DEFAULTS, **config}
        weights = checkpoints.gpt2_weights(folder, config)
        backend = tokenizing.read_backend(folder)
        known, padded = manifest.vocab_sha256 if manifest else "", manifest is None
        tokenizing.check_vocabulary(folder, backend, config["vocab_size"], padded, known)
        if manifest is None:
            promptist = all(config[name] == size for name, size in PROMPTIST_SHAPE.items())
            manifest = PROMPTIST if promptist else Manifest(name=folder.name)
        # Copied: a view of the file would change, or break, with it.
        weights = {name: tensor.to(device, dtype, copy=True) for name, tensor in weights.items()}
        return cls(manifest, config, weights=weights, backend=backend, folder=folder)

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """The weights by name; a GPT-2's without making the transformers model."""
        if "model" in self.__dict__:
            return dict(self.model.state_dict())
        assert self._weights is not None
        return self._weights

    @cached_property
    def model(self) -> PreTrainedModel:
        """The transformers model in evaluation mode, made at the first use."""
        assert self._weights is not None
        model = _gpt2_model(self.config, self._weights)
        self._weights = self._plain = None
        return model

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The transformers tokenizer, made at the first use."""
        return tokenizing.wrap_backend(self.backend, self.backend.id_to_token(self.eos_id))

    @property
    def decoder(self) -> PreTrainedModel | PlainGpt2:
        """What decoding runs on: the transformers model once it was made, until then the weights
        alone, where they are those of a plain GPT-2."""
        if "model" in self.__dict__ or not is_plain_config(self.config):
            return self.model
        if self._plain is None:
            assert self._weights is not None
            self._plain = PlainGpt2(self.config, self._weights)
        return self._plain

    @cached_property
    def reader(self) -> tokenizing.TokenReader:
        """Turns token ids into text without importing transformers."""
        return tokenizing.TokenReader(self.backend)

    @cached_property
    def identity(self) -> str:
        """First 12 hex digits of the SHA-256 of the weight file; "unsaved" without one."""
        return checkpoints.file_identity(weight_files(self.folder)) if self.folder else "unsaved"

    def policy_prompt(self, user_input: str) -> str:
        """What the policy continues: the user's plain text in the manifest's template."""
        return self.manifest.policy_prompt(user_input)

    def encode(self, text: str) -> list[int]:
        """Token ids. Nothing is added, and the name of a special token is ordinary text."""
        pieces, start = [], 0
        for match in self._special.finditer(text):
            pieces.append(text[start : match.start() + 1])
            start = match.start() + 1
        pieces.append(text[start:])
        encoded = (self.backend.encode(piece, add_special_tokens=False).ids for piece in pieces)
        return [token for ids in encoded for token in ids]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens left out."""
        return self.backend.decode(list(ids), skip_special_tokens=True)

    def clone(self, model: PreTrainedModel | None = None) -> Policy:
        """A policy that shares no weights with this one; of a copy of `model` where it is given."""
        if model is None and self._weights is not None:
            weights = {name: tensor.clone() for name, tensor in self._weights.items()}
            return Policy(self.manifest, self.config, weights=weights, backend=self.backend)
        model = copy.deepcopy(self.model if model is None else model)
        return Policy(self.manifest, self.config, model=model, tokenizer=self.tokenizer)

    def save(self, folder: str | Path, dtype: torch.dtype = torch.float16) -> Path:
        """Write a folder that Policy.load reads: weights, config, tokenizer, manifest."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if checkpoints.is_plain_gpt2(self.config):
            weights = self.weights
            weights = {name: weights[name] for name in checkpoints.gpt2_shapes(self.config)}
            checkpoints.write_weights(weights, folder, dtype)
            config = {**self.config, "torch_dtype": str(dtype).removeprefix("torch.")}
            tokenizing.write_json(config, folder / "config.json")
            tokenizing.write_backend(self.backend, folder, self.backend.id_to_token(self.eos_id))
        else:
            checkpoints.write_weights(self.weights, folder, dtype)
            self.model.config.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)
        known = tokenizing.vocab_sha256(self.backend)
        write_manifest(dataclasses.replace(self.manifest, vocab_sha256=known), folder)
        return folder


def _check_device(device: str | torch.device) -> None:
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise SettingsError("device", f"{device} cannot be used: {reason}") from None


def _end_id(config: dict, backend: tokenizers.Tokenizer, tokenizer: Any) -> int:
    """The end token: GPT-2's name for it, else the tokenizer's, else the config's."""
    named = backend.token_to_id(tokenizing.END_TOKEN) if tokenizer is None else None
    candidates = [named, getattr(tokenizer, "eos_token_id", None), config.get("eos_token_id")]
    for candidate in candidates:
        if isinstance(candidate, list) and candidate:
            candidate = candidate[0]
        known = type(candidate) is int and 0 <= candidate < backend.get_vocab_size()
        if known and backend.id_to_token(candidate) is not None:
            return candidate
    raise SettingsError("policy", "the tokenizer has no end token")


def _gpt2_model(config: dict[str, Any], weights: dict[str, torch.Tensor]) -> PreTrainedModel:
    """GPT2LMHeadModel around the given tensors.

    Built on the meta device: no time for random weights, and the global generator stays untouched.
    """
    from transformers.models.gpt2.configuration_gpt2 import GPT2Config
    from transformers.models.gpt2.modeling_gpt2 import GPT2LMHeadModel

    known = {name: value for name, value in config.items() if name in GPT2_CONFIG_NAMES}
    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config(**known))
    loaded = model.load_state_dict(weights, strict=False, assign=True)
    if loaded.unexpected_keys:
        raise SettingsError("policy", f"unknown weights: {loaded.unexpected_keys[:3]}")
    model.tie_weights()
    _fill_old_buffers(model, weights["transformer.wte.weight"].device)
    meta = [name for name, tensor in model.state_dict().items() if tensor.is_meta]
    if meta:
        raise SettingsError("policy", f"weights are missing: {', '.join(meta[:3])}")
    return model.eval()


GPT2_CONFIG_NAMES = {*GPT2_DEFAULTS, "bos_token_id", "eos_token_id"}


def _fill_old_buffers(model: torch.nn.Module, device: torch.device) -> None:
    """transformers before 4.50 or so keeps the causal mask and its fill value as buffers, which
    the meta device left empty."""
    for module in model.modules():
        for name, buffer in list(module._buffers.items()):
            if buffer is None or not buffer.is_meta:
                continue
            if name == "bias":
                full = torch.ones(buffer.shape, dtype=torch.bool, device=device).tril()
                module._buffers[name] = full.to(buffer.dtype)
            elif name == "masked_bias":
                module._buffers[name] = torch.tensor(-1e4, dtype=buffer.dtype, device=device)
            else:
                raise SettingsError("policy", f"this transformers has an unknown buffer {name}")


def _load_lora(folder: Path, device: str | torch.device, dtype: torch.dtype) -> Policy:
    """The policy that the LoRA matrices in the folder belong to, with them. It is a bundled one or
    lies beside the folder. The folder's own manifest counts, where it has one."""
    base = lora.read_base(folder)
    policy = Policy.load(resolve_policy(base.name, folder.parent, allow_folders=False))
    if policy.identity != base.identity:
        raise SettingsError("policy", f"{folder} belongs to another {base.name} than is here")
    manifest = read_manifest(folder) or dataclasses.replace(policy.manifest, name=folder.name)
    tokenizing.check_known_vocabulary(folder, policy.backend, manifest.vocab_sha256)
    model = lora.merged(policy.model, folder).to(device, dtype)
    return Policy(manifest, policy.config, model=model, tokenizer=policy.tokenizer)


def _load_any(
    folder: Path,
    config: dict[str, Any],
    manifest: Manifest | None,
    device: str | torch.device,
    dtype: torch.dtype,
) -> Policy:
    """A causal language model of another architecture, through transformers."""
    from transformers import AutoTokenizer

    local = {"local_files_only": True, "trust_remote_code": False}
    try:
        model = _any_model(folder, dtype, local)
        tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True, **local)
    except SettingsError:
        raise
    except Exception as error:  # transformers raises many kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise SettingsError(
            "policy", f"{folder} is not a causal language model that transformers reads: {reason}"
        ) from None
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise SettingsError("policy", f"{folder} has no fast tokenizer (tokenizer.json)")
    tokenizer.clean_up_tokenization_spaces = False
    embeddings = model.get_input_embeddings().weight.shape[0]
    known = manifest.vocab_sha256 if manifest else ""
    tokenizing.check_vocabulary(
        folder, tokenizer.backend_tokenizer, embeddings, padded=True, known=known
    )
    checkpoints.check_finite(model.state_dict(), folder)
    return Policy(
        manifest or Manifest(name=folder.name),
        config,
        model=model.eval().to(device),
        tokenizer=tokenizer,
        folder=folder,
    )


def _any_model(folder: Path, dtype: torch.dtype, local: dict[str, bool]) -> PreTrainedModel:
    """The model of the folder. A weight that the files lack is an error, not a random number."""
    import transformers
    from transformers import AutoConfig, AutoModelForCausalLM

    files = weight_files(folder)
    if not files:
        raise SettingsError("policy", f"{folder} has no weights: expected model.safetensors")
    dtype_name = "torch_dtype" if transformers.__version__.startswith("4.") else "dtype"
    options: dict[str, Any] = {dtype_name: dtype}
    with torch.random.fork_rng(devices=[]):  # transformers draws weights before it reads them
        if files[0].suffix == ".safetensors":
            model, report = AutoModelForCausalLM.from_pretrained(
                folder, use_safetensors=True, output_loading_info=True, **options, **local
            )
            missing = sorted(report["missing_keys"])
        else:  # old transformers would unpickle the file
            config = AutoConfig.from_pretrained(folder, **local)
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False, **options)
            weights = checkpoints.read_weights(folder)
            model.load_state_dict(weights, strict=False)
            named = dict(model.named_parameters())  # a tied weight appears once
            found = {model.get_parameter(name).data_ptr() for name in weights if name in named}
            missing = [name for name, weight in named.items() if weight.data_ptr() not in found]
    if missing:
        raise SettingsError(
            "policy", f"{folder} lacks {len(missing)} weights, the first is {missing[0]}"
        )
    return model


def load_pretrained_base(
    base: str | Path,
    *,
    models_folder: str | Path | None = None,
    download: bool = False,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Policy:
    """A model to fine-tune: a folder, a policy's name or a hub name, with a manifest of its own
    only if its folder holds one."""
    folder = resolve_policy(base, models_folder, download=download)
    policy = Policy.load(folder, device=device, dtype=dtype)
    if read_manifest(folder) is None:
        policy.manifest = Manifest()
    return policy


def new_policy(
    tokenizer: PreTrainedTokenizerFast,
    hidden_size: int,
    num_layers: int,
    num_heads: int,
    num_positions: int = 256,
    dropout: float = 0.1,
    seed: int = 0,
    manifest: Manifest | None = None,
) -> Policy:
    """A GPT-2 from scratch; its float32 weights come from an own generator made of `seed`."""
    end = tokenizer.eos_token_id
    config = {
        **GPT2_DEFAULTS,
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": len(tokenizer),
        "n_positions": num_positions,
        "n_embd": hidden_size,
        "n_layer": num_layers,
        "n_head": num_heads,
        "activation_function": "gelu_pytorch_tanh",  # gelu_new by one fused kernel
        "resid_pdrop": dropout,
        "embd_pdrop": dropout,
        "attn_pdrop": dropout,
        "bos_token_id": end,
        "eos_token_id": end,
    }
    if hidden_size % num_heads:
        raise SettingsError(
            "hidden_size", f"expected a multiple of num_heads ({num_heads}), got {hidden_size}"
        )
    weights = checkpoints.new_gpt2_weights(config, seed)
    return Policy(manifest or Manifest(), config, weights=weights, tokenizer=tokenizer)
