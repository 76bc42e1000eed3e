"""What hosts hold: a user input in, candidates out.

from promptadapt_core.adapter import PromptAdapter
adapter = PromptAdapter.load()
for candidate in adapter.adapt("a cat on a roof", num_candidates=3):
    print(candidate.adapted_prompt)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from . import asking, decoding, gate, modifiers, prompts
from .additions import AdditionRules, banned_pattern, trim_to_budget
from .clip_tokens import count_clip_tokens
from .devices import pick_device
from .hypotheses import length_normalised
from .policies import resolve_policy
from .policy import Policy
from .settings import MAX_SEED, AdaptSettings, SettingsError
from .syntax import plain_text

MAX_ATTEMPTS = 4  # decoding rounds until there are enough distinct candidates
LONG_INPUT_WORDS = 25  # beyond it a user input may gain fewer than `min_modifiers`


@dataclass(frozen=True)
class Candidate:
    """One adapted prompt.

    `added` is what the policy added; `logprob` the sum over the tokens it chose, in nats;
    `num_tokens` their number; `num_clip_tokens` what the image model's text encoder counts,
    without its start and end tokens.
    """

    adapted_prompt: str
    added: str
    logprob: float
    num_tokens: int
    num_clip_tokens: int


@dataclass(frozen=True)
class Adaptation:
    """What became of one user input. `gate` says "adapted", or "left alone" and why; a prompt
    left alone has itself as its only candidate."""

    user_input: str
    policy: str
    gate: str
    candidates: list[Candidate]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Work:
    """One user input on its way through the policy: `typed` as the person wrote it, `parsed`
    what the person asked for."""

    typed: prompts.ParsedInput
    parsed: prompts.ParsedInput
    prompt_ids: list[int]
    forced_ids: list[int]
    rules: AdditionRules

    @property
    def num_fed(self) -> int:
        """Tokens that the policy reads before it writes."""
        return len(self.prompt_ids) + len(self.forced_ids)


class PromptAdapter:
    """A policy ready to adapt. Thread-safe as long as its model is not moved meanwhile."""

    def __init__(self, policy: Policy, count_tokens: Callable[[str], int] = count_clip_tokens):
        self.policy = policy
        self._count_tokens = count_tokens

    @classmethod
    def load(
        cls,
        policy: str | Path = "",
        *,
        models_folder: str | Path | None = None,
        device: str = "cpu",
        download: bool = False,
    ) -> PromptAdapter:
        """Load a bundled policy by name, one of `models_folder` by name, or any folder.

        The empty name is the bundled default. Nothing is fetched unless `download` is set.
        Raises SettingsError("policy", ...) for a policy that is missing, broken or foreign.
        """
        folder = resolve_policy(policy, models_folder=models_folder, download=download)
        return cls(Policy.load(folder, device=pick_device(device)))

    def settings(self, **given: Any) -> AdaptSettings:
        """The settings that apply: what was given, else the policy's own, else the table's."""
        names = {field.name for field in fields(AdaptSettings)}
        for name in given:
            if name not in names:
                raise SettingsError(name, f"no such setting; there are {', '.join(sorted(names))}")
        return AdaptSettings(**{**self.policy.manifest.decoding, **given})

    def adapt(
        self,
        user_input: str,
        *,
        should_stop: Callable[[], bool] | None = None,
        **given: Any,
    ) -> list[Candidate]:
        """The candidates for one user input, best first. Settings as in AdaptSettings.

        Raises SettingsError for bad input and decoding.Stopped once `should_stop()` is true.
        """
        return self.adapt_all([user_input], should_stop=should_stop, **given)[0].candidates

    def adapt_all(
        self,
        user_inputs: Sequence[str],
        *,
        should_stop: Callable[[], bool] | None = None,
        **given: Any,
    ) -> list[Adaptation]:
        """Adapt many user inputs in batches; each comes out as it would alone."""
        settings = self.settings(**given)
        adaptations: list[Adaptation | None] = []
        works: list[tuple[int, Work]] = []
        for user_input in user_inputs:
            parsed = prompts.parse(user_input, settings.keep)
            work, reason = self.prepare(parsed, settings)
            if work is not None:
                works.append((len(adaptations), work))
                adaptations.append(None)
            else:
                adaptations.append(self._left_alone(parsed, reason))
        found = self._candidates([work for _, work in works], settings, should_stop)
        for (place, work), candidates in zip(works, found, strict=True):
            adaptations[place] = self._adaptation(work.typed, candidates)
        return [adaptation for adaptation in adaptations if adaptation is not None]

    def prepare(
        self, parsed: prompts.ParsedInput, settings: AdaptSettings
    ) -> tuple[Work | None, str]:
        """What the policy reads of one user input; None, and why, where it is left alone."""
        decision = self._gate(parsed, settings)
        if decision.adapt:
            work = self._work(parsed, settings)
            decision = self._fits(work)
        return (work, "") if decision.adapt else (None, decision.reason)

    def _gate(self, parsed: prompts.ParsedInput, settings: AdaptSettings) -> gate.GateDecision:
        if not modifiers.clean(parsed.plain):
            return gate.GateDecision(False, "there are no words in it to go by")
        num_clip_tokens = self._count_tokens(parsed.plain)
        if not settings.gate:
            return gate.has_room(num_clip_tokens, settings.token_budget)
        return gate.decide(parsed.plain, num_clip_tokens, settings.token_budget)

    def _fits(self, work: Work) -> gate.GateDecision:
        """Whether the policy can read it all and has room to write."""
        context = decoding.context_length(self.policy.decoder)
        if context is not None and work.num_fed + gate.ROOM_TOKENS > context:
            reason = (
                f"it is too long for the policy, which would read {work.num_fed} tokens and "
                f"write within {context}"
            )
            return gate.GateDecision(False, reason)
        return gate.GateDecision(True, "")

    def _work(self, typed: prompts.ParsedInput, settings: AdaptSettings) -> Work:
        parsed = _asked(typed, settings.keep) if self._continues else typed
        policy_text = modifiers.clean(parsed.plain)
        short = len(policy_text.split()) <= LONG_INPUT_WORDS
        rules = AdditionRules(
            parsed.plain,
            ban=settings.ban,
            artists=settings.artists,
            min_modifiers=settings.min_modifiers if short else 0,
            backtracks=settings.mode != "sample",
        )
        policy = self.policy
        prompt_ids = policy.encode(policy.policy_prompt(policy_text))
        forced_ids = policy.encode(f" {policy_text},") if self._continues else []
        return Work(typed, parsed, prompt_ids, forced_ids, rules)

    def _candidates(
        self,
        works: list[Work],
        settings: AdaptSettings,
        should_stop: Callable[[], bool] | None,
    ) -> list[list[Candidate]]:
        """Distinct candidates of every work, best first; sampling fills up what beams lack."""
        found: list[list[Candidate]] = [[] for _ in works]
        for attempt in range(MAX_ATTEMPTS):
            short = [i for i, some in enumerate(found) if len(some) < settings.num_candidates]
            if not short:
                break
            turn = settings if attempt == 0 else _sampling_turn(settings, attempt)
            completions = self._decode([works[i] for i in short], turn, should_stop)
            for i, some in zip(short, completions, strict=True):
                last = attempt == MAX_ATTEMPTS - 1
                found[i] = self._merged(found[i], works[i], some, settings, meagre=last)
        for some in found:  # what was filled up is ranked with what was there
            some.sort(key=lambda one: -_ranking_score(one, settings.length_penalty))
        return found

    def _decode(
        self,
        works: list[Work],
        settings: AdaptSettings,
        should_stop: Callable[[], bool] | None,
    ) -> list[list[decoding.Completion]]:
        wanted = settings.num_candidates
        if settings.mode != "sample":  # further beams make up for those that break a rule
            wanted = max(wanted, settings.num_beams)
        return decoding.decode(
            self.policy.decoder,
            self.policy.reader,
            self.policy.eos_id,
            [self._request(work, settings) for work in works],
            mode=settings.mode,
            num_candidates=wanted,
            num_beams=max(settings.num_beams, settings.num_candidates),
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
            diversity_penalty=settings.diversity_penalty,
            length_penalty=settings.length_penalty,
            should_stop=should_stop,
        )

    def _request(self, work: Work, settings: AdaptSettings) -> decoding.DecodingRequest:
        return decoding.DecodingRequest(
            prompt_ids=work.prompt_ids,
            forced_ids=work.forced_ids,
            seed=settings.seed,
            allow=work.rules.may_follow if self._continues else None,
        )

    def _merged(
        self,
        known: list[Candidate],
        work: Work,
        completions: list[decoding.Completion],
        settings: AdaptSettings,
        meagre: bool,
    ) -> list[Candidate]:
        """`known` and what is new among the completions, at most `num_candidates`. Candidates
        with too few additions count only where `meagre` ones may and there is no other."""
        seen = {modifiers.normal(candidate.adapted_prompt) for candidate in known}
        merged = list(known)
        for completion in completions:
            candidate = self.candidate(work, completion, settings, meagre and not merged)
            if candidate and modifiers.normal(candidate.adapted_prompt) not in seen:
                seen.add(modifiers.normal(candidate.adapted_prompt))
                merged.append(candidate)
        return merged[: settings.num_candidates]

    def candidate(
        self,
        work: Work,
        completion: decoding.Completion,
        settings: AdaptSettings,
        meagre: bool,
    ) -> Candidate | None:
        """The candidate of one completion, or None where it breaks a promise. meagre: it may add
        fewer modifiers than are wanted."""
        if self._continues:
            built = self._continued(work, completion, settings, meagre)
        else:
            built = self._rewritten(work, completion, settings)
        if built is None or work.parsed.lost_spans(built[0]):
            return None
        adapted_prompt, added, num_clip_tokens = built
        return Candidate(
            adapted_prompt, added, completion.logprob, completion.num_tokens, num_clip_tokens
        )

    def _continued(
        self,
        work: Work,
        completion: decoding.Completion,
        settings: AdaptSettings,
        meagre: bool,
    ) -> tuple[str, str, int] | None:
        """(adapted prompt, added, CLIP tokens): the user's own text and what passes the rules."""
        parts = modifiers.split_modifiers(completion.text)
        if not completion.finished:
            parts = parts[:-1]  # cut off midway
        accepted = work.rules.accepted(parts)
        if not meagre and not work.rules.enough(accepted):
            return None
        additions, adapted_prompt, num_clip_tokens = trim_to_budget(
            accepted,
            lambda left: self._counted(work.parsed.append(", ".join(left))),
            settings.token_budget,
        )
        return (adapted_prompt, ", ".join(additions), num_clip_tokens) if additions else None

    def _rewritten(
        self, work: Work, completion: decoding.Completion, settings: AdaptSettings
    ) -> tuple[str, str, int] | None:
        """The same for a policy that writes the whole prompt: what was protected is put back."""
        rewrite = completion.text.strip(" ,")
        while rewrite:
            restored = work.parsed.restore(rewrite)
            if restored is None:
                return None
            adapted_prompt, num_clip_tokens = self._counted(restored)
            if num_clip_tokens <= settings.token_budget:
                added = _added(work.parsed.plain, rewrite)
                banned = banned_pattern(settings.ban)
                if not added or decoding.UNFINISHED_CHARACTER in added:
                    return None
                if banned and (banned.search(added) or banned.search(modifiers.clean(added))):
                    return None
                return adapted_prompt, added, num_clip_tokens
            rewrite = rewrite.rpartition(",")[0].rstrip(" ,")
        return None

    def _counted(self, adapted_prompt: str) -> tuple[str, int]:
        return adapted_prompt, self._count_tokens(plain_text(adapted_prompt))

    def _adaptation(self, parsed: prompts.ParsedInput, candidates: list[Candidate]) -> Adaptation:
        if not candidates:
            return self._left_alone(parsed, "the policy found nothing to add that fits the rules")
        return Adaptation(parsed.user_input, self.policy.manifest.name, "adapted", candidates)

    def _left_alone(self, parsed: prompts.ParsedInput, reason: str) -> Adaptation:
        num_clip_tokens = self._count_tokens(parsed.plain)
        itself = Candidate(parsed.user_input, "", 0.0, 0, num_clip_tokens)
        name = self.policy.manifest.name
        return Adaptation(parsed.user_input, name, f"left alone: {reason}", [itself])

    @property
    def _continues(self) -> bool:
        """Whether completions are forced to begin with the user's own text."""
        return self.policy.manifest.start == "user_input"


def _asked(typed: prompts.ParsedInput, keep: Sequence[str]) -> prompts.ParsedInput:
    """What a request asks for; `typed` itself where taking the asking off would cost a span."""
    asked = asking.without_asking(typed.user_input)
    try:
        parsed = prompts.parse(asked, keep)
    except SettingsError:
        return typed
    kept = typed.lost_spans(asked) == [] and modifiers.clean(parsed.plain)
    return parsed if kept else typed


def _ranking_score(candidate: Candidate, length_penalty: float) -> float:
    return length_normalised(candidate.logprob, candidate.num_tokens, length_penalty)


def _sampling_turn(settings: AdaptSettings, attempt: int) -> AdaptSettings:
    """The settings of a further attempt: another seed, so that other text is drawn."""
    return replace(settings, mode="sample", seed=(settings.seed + attempt) % (MAX_SEED + 1))


def _added(plain: str, rewrite: str) -> str:
    """What a whole rewrite says beyond the user's own text."""
    if rewrite.casefold().startswith(plain.casefold()):
        return rewrite[len(plain) :].strip(" ,.")
    said = {modifiers.normal(part) for part in modifiers.split_modifiers(plain)}
    parts = modifiers.split_modifiers(rewrite)
    return ", ".join(part for part in parts if modifiers.normal(part) not in said)
