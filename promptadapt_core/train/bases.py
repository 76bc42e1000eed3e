"""What is trained: a policy from scratch, a pretrained one, or LoRA matrices on one."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from ..policy import Manifest, Policy, load_pretrained_base, new_policy, train_tokenizer
from ..settings import SettingsError
from .sft_settings import SftSettings

SCRATCH = "scratch"
MIN_POSITIONS = 256  # room at inference for more than the longest training pair


@dataclasses.dataclass
class Trainee:
    """policy: tokenizer, manifest and config. model: what is run and has the gradients, a
    transformers causal LM. lora: peft's wrapper around `model`, or None."""

    policy: Policy
    model: Any
    lora: Any = None

    def trained(self) -> dict[str, torch.nn.Parameter]:
        """The parameters that learn, by name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def load_trained(self, tensors: dict[str, torch.Tensor]) -> None:
        """Put saved values into the parameters that learn."""
        trained = self.trained()
        if set(trained) != set(tensors):
            raise SettingsError("resume", "the saved state is of another model")
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(tensors[name])

    def merged(self) -> Any:
        """The model; where there are LoRA matrices, a copy into which they are merged."""
        return self.model if self.lora is None else copy.deepcopy(self.lora).merge_and_unload()

    def export(self, folder: Path, dtype: torch.dtype) -> None:
        """Write a folder that Policy.load reads; LoRA matrices are merged."""
        policy, model = self.policy, self.merged()
        Policy(policy.manifest, policy.config, model=model, tokenizer=policy.tokenizer).save(
            folder, dtype=dtype
        )

    def export_lora(self, folder: Path) -> None:
        """Write the LoRA matrices alone, as peft reads them."""
        self.lora.save_pretrained(str(folder), safe_serialization=True)


def make_trainee(
    settings: SftSettings, texts: Iterable[str], device: torch.device, begun: Path | None
) -> Trainee:
    """The model in training mode on the device, float32.

    texts: of the training pairs, for a tokenizer from scratch. begun: a checkpoint of the run that
    goes on, from which a policy from scratch takes its tokenizer and shape; None in a new run.
    Seeds torch's global generator, which dropout and the LoRA matrices draw from.
    """
    torch.manual_seed(settings.seed % 2**63)
    name = Path(settings.out).name
    if settings.base == SCRATCH and begun is None:
        policy = new_policy(
            train_tokenizer(texts, settings.vocab_size),
            hidden_size=settings.hidden_size,
            num_layers=settings.num_layers,
            num_heads=settings.num_heads,
            num_positions=max(settings.max_length, MIN_POSITIONS),
            dropout=settings.dropout,
            seed=settings.seed % 2**63,
        )
        policy.config["attn_pdrop"] = 0.0  # costs a tenth of the time on a CPU
    elif settings.base == SCRATCH:
        policy = Policy.load(begun)
    else:
        policy = load_base(settings)
    policy.manifest = dataclasses.replace(Manifest(), name=name)
    _check_length(settings, policy.config)
    model = policy.model
    # Weights may be a view of the file, which Windows could not replace while it is in use.
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    model.tie_weights()
    lora = with_lora(model, settings.lora_rank) if settings.lora_rank else None
    if lora is None:
        model.requires_grad_(True)
    model.to(device).train()
    if device.type == "cpu" and hasattr(model, "set_attn_implementation"):
        # On short sequences a third faster than the CPU's fused attention, in bf16.
        model.set_attn_implementation("eager")
    return Trainee(policy, model, lora)


def load_base(settings: SftSettings) -> Policy:
    """The pretrained policy that settings.base names; SettingsError("base", ...) without it.

    A hub name is asked for plainly, so it is downloaded when it is not here.
    """
    try:
        return load_pretrained_base(settings.base, download=True)
    except SettingsError as error:
        raise SettingsError("base", error.reason) from None


def _check_length(settings: SftSettings, config: dict[str, Any]) -> None:
    for name in ("n_positions", "max_position_embeddings"):
        longest = config.get(name)
        if type(longest) is int and settings.max_length > longest:
            raise SettingsError(
                "max_length", f"the base reads at most {longest} tokens, got {settings.max_length}"
            )


def with_lora(model: Any, rank: int) -> Any:
    """Put LoRA matrices (Hu et al. 2021) into every linear layer of the model but its head. Draws
    from torch's global generator, which the caller seeds."""
    try:
        import peft
    except ImportError:
        raise SettingsError("lora_rank", "LoRA needs peft: pip install peft") from None
    convolutions = any(type(module).__name__ == "Conv1D" for module in model.modules())
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=2 * rank,
        lora_dropout=0.0,
        target_modules="all-linear",
        fan_in_fan_out=convolutions,  # GPT-2 stores its matrices transposed
    )
    return peft.get_peft_model(model, config)


def with_seeded_lora(model: Any, rank: int, seed: int) -> Any:
    """The same, with matrices of `seed` and the global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % 2**63)
        return with_lora(model, rank)
