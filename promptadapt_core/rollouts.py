"""One batch of experience: completions sampled from the policy, their rewards and log-probs.

On-policy: completions are drawn from softmax(logits / temperature) of the very weights that are
updated (decoding's packed copies are off), with no nucleus, no bans and no beams; log-probs are
those of the same distribution. The adapted prompt is made of a completion by the adapter's own
rules, as at inference: what breaks them never reaches the renderer, and a completion of which
nothing is left is the user input itself.

Old log-probs come from the forward function of the update, in the micro-batches of the first
epoch: matrix products of other sizes round otherwise, and the first ratio would not be exactly 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch

from . import prompts
from .adapter import PromptAdapter, Work
from .decoding import Completion, DecodingRequest, decode
from .objectives import token_logprobs
from .settings import AdaptSettings, SettingsError

SAMPLED_TOGETHER = 256  # completions that share the policy's forward passes


class RewardBatch(Protocol):
    """rewards (B,) float32: one number per candidate before any KL. terms: name -> (B,), what it
    is made of. ok (B,) bool: False for a candidate to drop, such as one that could not be drawn."""

    rewards: torch.Tensor
    terms: Mapping[str, torch.Tensor]
    ok: torch.Tensor


class RewardFunction(Protocol):
    """What the policy learns to raise. identity: changes with anything that changes rewards.
    metrics: every key that `describe` may give, `group/name`, and its definition."""

    identity: str
    metrics: Mapping[str, str]

    def seeds_of(self, user_input: str, visit: int = 0) -> list[int]:
        """The seeds of the pictures of all candidates of a user input, the `visit`-th time that
        it is met: the same for each, so that luck of the seed is common to them."""

    def reward(
        self,
        user_inputs: Sequence[str],
        adapted_prompts: Sequence[str],
        seeds: Sequence[Sequence[int]],
        should_stop: Callable[[], bool] | None = None,
        keep_pictures: bool = False,
    ) -> RewardBatch:
        """Rewards of B candidates. seeds: of each candidate's pictures. decoding.Stopped once
        should_stop() is True. keep_pictures: the batch gets `pictures`, (num, H, W, 3) uint8 or
        None for each candidate."""

    def describe(self, batch: Any) -> Mapping[str, float]:
        """Metrics of a batch that `reward` gave, keys `group/name`: each term apart."""


class ValueFunction(Protocol):
    def __call__(self, batch: TokenBatch) -> torch.Tensor:
        """(b, T) reward units: the estimate of the return before each token of the completions."""


@dataclass(frozen=True)
class Rollout:
    """What one round of sampling gives the update: B candidates, T tokens of the longest.

    user_inputs (B), adapted_prompts (B), image_seeds (B lists). prompt_ids (B lists): what the
    policy read, the policy prompt and whatever the completion is made to begin with.
    completion_ids (B, T) int64, 0 at padding. completion_mask (B, T) bool, True on the tokens that
    the policy chose, up to and including the end token; made from lengths, never from ids.
    truncated (B,) bool: cut by the length limit, so there is no end token. left_alone (B,) bool:
    no rule let anything of the completion through, the adapted prompt is the user input.
    rewards (B,) and terms (name -> (B,)): reward units, before any KL. old_logprobs, ref_logprobs
    (B, T): nats of the chosen tokens at the sampling temperature, under the policy that sampled
    and under the reference. values (B, T): reward units. The last three are 0 at padding. All
    tensors lie on the CPU.
    """

    user_inputs: list[str]
    adapted_prompts: list[str]
    image_seeds: list[list[int]]
    prompt_ids: list[list[int]]
    completion_ids: torch.Tensor
    completion_mask: torch.Tensor
    truncated: torch.Tensor
    left_alone: torch.Tensor
    rewards: torch.Tensor
    terms: dict[str, torch.Tensor]
    old_logprobs: torch.Tensor
    ref_logprobs: torch.Tensor
    values: torch.Tensor

    def __len__(self) -> int:
        return len(self.user_inputs)

    @property
    def num_tokens(self) -> list[int]:
        """Tokens of each completion, its end token included."""
        return self.completion_mask.sum(-1).tolist()

    def rewarded(self, batch: RewardBatch) -> Rollout:
        """With these rewards, and without the candidates that are not ok or whose reward is not a
        finite number."""
        rewards = batch.rewards.float().cpu()
        kept = batch.ok.cpu() & rewards.isfinite()
        terms = {name: values.float().cpu() for name, values in batch.terms.items()}
        whole = replace(self, rewards=rewards, terms=terms)
        return whole if bool(kept.all()) else whole.kept(kept)

    def kept(self, kept: torch.Tensor) -> Rollout:
        """Without the rows where kept (B,) bool is False."""
        places = kept.nonzero().squeeze(1)
        parts: dict[str, Any] = {}
        for name, value in vars(self).items():
            if isinstance(value, torch.Tensor):
                parts[name] = value[places]
            elif isinstance(value, dict):
                parts[name] = {key: one[places] for key, one in value.items()}
            else:
                parts[name] = [value[place] for place in places.tolist()]
        return Rollout(**parts)


class TokenBatch(NamedTuple):
    """Some rows of a rollout as a model reads them, padded on the right; b rows, L tokens, T of
    the longest completion.

    ids, attention_mask (b, L) int64. before (b, T): place in ids of the token before each token of
    the completion, whose logits predict it. completion_ids (b, T), completion_mask (b, T) bool.
    """

    ids: torch.Tensor
    attention_mask: torch.Tensor
    before: torch.Tensor
    completion_ids: torch.Tensor
    completion_mask: torch.Tensor


def sample_rollout(
    adapter: PromptAdapter,
    works: Sequence[Work],
    settings: AdaptSettings,
    *,
    max_new_tokens: int,
    image_seeds: Sequence[list[int]],
    generator: torch.Generator,
    should_stop: Callable[[], bool] | None = None,
) -> Rollout:
    """settings.num_candidates completions of every work, side by side; not yet rewarded.

    works: from adapter.prepare. settings: the temperature, and the rules that the adapted prompts
    are made by. image_seeds: of each work's pictures. Draws from `generator` only.
    """
    seeds = torch.randint(2**62, (len(works),), generator=generator).tolist()
    completions = decode(
        adapter.policy.model,
        adapter.policy.reader,
        adapter.policy.eos_id,
        [
            DecodingRequest(work.prompt_ids, work.forced_ids, seed)
            for work, seed in zip(works, seeds, strict=True)
        ],
        mode="sample",
        num_candidates=settings.num_candidates,
        max_new_tokens=max_new_tokens,
        temperature=settings.temperature,
        top_p=1.0,
        should_stop=should_stop,
        batch_size=max(SAMPLED_TOGETHER // settings.num_candidates, 1),
        packed=False,
    )
    rows = [
        (work, completion, pictures)
        for work, some, pictures in zip(works, completions, image_seeds, strict=True)
        for completion in some
    ]
    found = [adapter.candidate(work, one, settings, meagre=True) for work, one, _ in rows]
    ids, mask = _padded([_chosen(one, adapter.policy.eos_id) for _, one, _ in rows])
    nothing = torch.zeros(mask.shape)
    return Rollout(
        user_inputs=[work.typed.user_input for work, _, _ in rows],
        adapted_prompts=[
            candidate.adapted_prompt if candidate else work.typed.user_input
            for (work, _, _), candidate in zip(rows, found, strict=True)
        ],
        image_seeds=[list(pictures) for _, _, pictures in rows],
        prompt_ids=[[*work.prompt_ids, *work.forced_ids] for work, _, _ in rows],
        completion_ids=ids,
        completion_mask=mask,
        truncated=torch.tensor([not one.finished for _, one, _ in rows]),
        left_alone=torch.tensor([candidate is None for candidate in found]),
        rewards=torch.zeros(len(rows)),
        terms={},
        old_logprobs=nothing,
        ref_logprobs=nothing,
        values=nothing,
    )


def readable(
    adapter: PromptAdapter, user_inputs: Sequence[str], settings: AdaptSettings
) -> tuple[list[Work], dict[str, str]]:
    """The works of user inputs in order; those that the adapter leaves alone or cannot read, and
    why."""
    works: list[Work] = []
    left_alone: dict[str, str] = {}
    for user_input in user_inputs:
        try:
            work, reason = adapter.prepare(prompts.parse(user_input, settings.keep), settings)
        except SettingsError as error:
            if error.name != "user_input":
                raise
            work, reason = None, error.reason
        if work is None:
            left_alone[user_input] = reason
        else:
            works.append(work)
    return works, left_alone


def token_batch(
    rollout: Rollout, rows: Sequence[int], device: torch.device | str = "cpu", padding_id: int = 0
) -> TokenBatch:
    """The rows as one batch. padding_id: any token; no result depends on it."""
    lengths = rollout.num_tokens
    completions = [rollout.completion_ids[row, : lengths[row]].tolist() for row in rows]
    starts = [len(rollout.prompt_ids[row]) for row in rows]
    whole = [
        rollout.prompt_ids[row] + completion
        for row, completion in zip(rows, completions, strict=True)
    ]
    ids, mask = _padded(whole, padding_id)
    completion_ids, completion_mask = _padded(completions)
    before = torch.tensor(starts)[:, None] - 1 + torch.arange(completion_ids.shape[1])
    before = before.clamp(max=ids.shape[1] - 1)
    parts = (ids, mask.long(), before, completion_ids, completion_mask)
    return TokenBatch(*(part.to(device) for part in parts))


def without_repeats(rollout: Rollout, rows: Sequence[int]) -> tuple[list[int], torch.Tensor]:
    """(those of the rows that differ, (len(rows),) int64: the place of each row among them).

    Rows that read and say the same are one to a network: a policy that has settled down says the
    same often."""
    lengths = rollout.num_tokens
    places: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}
    different, back = [], []
    for row in rows:
        said = rollout.completion_ids[row, : lengths[row]].tolist()
        key = (tuple(rollout.prompt_ids[row]), tuple(said))
        if key not in places:
            places[key] = len(different)
            different.append(row)
        back.append(places[key])
    return different, torch.tensor(back)


def hidden_before(body: Any, batch: TokenBatch) -> torch.Tensor:
    """(b, T, H): what a transformers model without its head makes of the places in batch.before."""
    hidden = body(batch.ids, attention_mask=batch.attention_mask, use_cache=False).last_hidden_state
    return hidden.gather(1, batch.before[:, :, None].expand(-1, -1, hidden.shape[-1]))


def completion_logits(model: Any, batch: TokenBatch, whole_logits: bool = False) -> torch.Tensor:
    """(b, T, V): the logits that predict each token of the completions; anything at padding.

    The head, the largest matrix of a small policy, sees only those places, unless `whole_logits`:
    for models that do more to their logits than the head alone (see needs_whole_logits).
    """
    if not whole_logits:
        return model.get_output_embeddings()(hidden_before(model.base_model, batch))
    logits = model(batch.ids, attention_mask=batch.attention_mask, use_cache=False).logits
    return logits.gather(1, batch.before[:, :, None].expand(-1, -1, logits.shape[-1]))


@torch.no_grad()
def needs_whole_logits(model: Any, batch: TokenBatch) -> bool:
    """Whether the model scales or caps what its head gives."""
    try:
        short = completion_logits(model, batch)
    except (AttributeError, TypeError, RuntimeError):
        return True
    return not torch.allclose(short, completion_logits(model, batch, True), rtol=1e-3, atol=1e-3)


@torch.no_grad()
def estimated(
    rollout: Rollout,
    micro_batches: Iterable[Sequence[int]],
    *,
    policy_model: Any,
    ref_model: Any,
    values: ValueFunction | None,
    temperature: float,
    device: torch.device | str = "cpu",
    whole_logits: bool = False,
) -> Rollout:
    """With old_logprobs, ref_logprobs and values, 0 without a value function. micro_batches: rows,
    each row in one of them."""
    made = [torch.zeros(rollout.completion_mask.shape) for _ in range(3)]
    for rows in micro_batches:
        different, back = without_repeats(rollout, rows)
        batch = token_batch(rollout, different, device)
        old, ref = (
            token_logprobs(
                completion_logits(model, batch, whole_logits), batch.completion_ids, temperature
            )
            for model in (policy_model, ref_model)
        )
        width = batch.completion_mask.shape[1]
        estimates = torch.zeros_like(old) if values is None else values(batch)
        for whole, part in zip(made, (old, ref, estimates), strict=True):
            part = part.float().masked_fill(~batch.completion_mask, 0.0)
            whole[list(rows), :width] = part.cpu()[back]
    old_logprobs, ref_logprobs, made_values = made
    return replace(
        rollout, old_logprobs=old_logprobs, ref_logprobs=ref_logprobs, values=made_values
    )


def _chosen(completion: Completion, eos_id: int) -> list[int]:
    """The tokens that the policy chose; the end token only where it chose it."""
    return [*completion.ids, eos_id] if completion.finished else completion.ids


def _padded(
    sequences: Sequence[Sequence[int]], padding_id: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, mask), both (number, longest), padded on the right."""
    longest = max(map(len, sequences))
    ids = [[*one, *[padding_id] * (longest - len(one))] for one in sequences]
    mask = [[True] * len(one) + [False] * (longest - len(one)) for one in sequences]
    return torch.tensor(ids), torch.tensor(mask)
