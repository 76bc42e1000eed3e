"""Decoding against transformers' own beam search and against slow, plain searches."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Container, Iterator

import pytest
import torch
import transformers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from promptadapt_core import forward_any, forward_gpt2, packed_weights
from promptadapt_core.decoding import Completion, DecodingRequest, Stopped, decode
from promptadapt_core.hypotheses import Hypothesis, Writer
from promptadapt_core.settings import SettingsError

EOS, VOCAB = 5, 97
PROMPTS = [[7, 8, 9], [11, 12, 13, 14, 15, 16, 17, 18, 19], [21, 22, 23, 24, 25, 26]]


class WordTokenizer:
    """Token 12 is the text " w12"."""

    def decode(self, ids: list[int], **options: bool) -> str:
        return "".join(f" w{token}" for token in ids)


class ByteTokenizer:
    """Tokens are bytes; what is no whole character is shown as U+FFFD."""

    def decode(self, ids: list[int], **options: bool) -> str:
        return bytes(ids).decode("utf-8", errors="replace")


TOKENIZER = WordTokenizer()


def gpt2(seed: int, end_bonus: float = 3.0, **config: int) -> GPT2LMHeadModel:
    """A tiny GPT-2 with peaked random distributions; the end token gets end_bonus nats more."""
    torch.manual_seed(seed)
    sizes = {"vocab_size": VOCAB, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}
    ends = {"bos_token_id": EOS, "eos_token_id": EOS}
    model = GPT2LMHeadModel(GPT2Config(initializer_range=0.5, **ends, **{**sizes, **config}))
    with torch.no_grad():
        end = model.lm_head.weight[EOS]
        model.transformer.ln_f.bias += end_bonus * end / end.square().sum()
    return model.eval()


def llama(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


def requests(prompts: list[list[int]] = PROMPTS, **options) -> list[DecodingRequest]:
    return [DecodingRequest(ids, **options) for ids in prompts]


def run(model, asked: list[DecodingRequest], **options) -> list[list[Completion]]:
    defaults = {"num_candidates": 4, "num_beams": 4, "max_new_tokens": 16}
    return decode(model, TOKENIZER, EOS, asked, **{**defaults, **options})


def same(one: list[Completion], other: list[Completion]) -> None:
    assert [c.ids for c in one] == [c.ids for c in other]
    assert [c.finished for c in one] == [c.finished for c in other]
    assert [c.logprob for c in one] == pytest.approx([c.logprob for c in other], abs=1e-3)


def generated(model, ids: list[int], **options) -> list[tuple[list[int], bool, float]]:
    """(ids, finished, score) of transformers' beams."""
    output = model.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        do_sample=False,
        eos_token_id=EOS,
        pad_token_id=EOS,
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )
    found = []
    scores = output.sequences_scores.tolist()
    for tokens, score in zip(output.sequences[:, len(ids) :].tolist(), scores, strict=True):
        end = tokens.index(EOS) if EOS in tokens else None
        found.append((tokens[:end], end is not None, score))
    return found


newest_beam_search = pytest.mark.skipif(
    not hasattr(transformers.GenerationMixin, "_get_running_beams_for_next_iteration"),
    reason="this transformers has the beam search of before 2025",
)


@newest_beam_search
@pytest.mark.parametrize("length_penalty", [1.0, -1.0, 0.0])
@pytest.mark.parametrize("make", [gpt2, llama])
@pytest.mark.parametrize("seed", range(4))
def test_beams_are_those_of_transformers(seed: int, make: Callable, length_penalty: float) -> None:
    model = make(seed)
    ours = run(model, requests(), length_penalty=length_penalty)
    for ids, found in zip(PROMPTS, ours, strict=True):
        theirs = generated(
            model, ids, num_beams=4, num_return_sequences=4, max_new_tokens=16,
            length_penalty=length_penalty,
        )  # fmt: skip
        assert [(c.ids, c.finished) for c in found] == [one[:2] for one in theirs]
        scores = [c.ranking_score(length_penalty) for c in found]
        assert scores == pytest.approx([one[2] for one in theirs], abs=1e-3)


def test_the_tiny_models_end_early_and_late() -> None:
    found = [c for seed in range(4) for some in run(gpt2(seed), requests()) for c in some]
    assert any(c.finished and c.num_tokens < 4 for c in found)
    assert any(not c.finished for c in found)


def next_logprobs(model, ids: list[int]) -> torch.Tensor:
    """(vocabulary,) after ids, by one whole forward pass."""
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)


def slow_groups(
    model,
    prompt: list[int],
    groups: int,
    width: int,
    penalty: float,
    steps: int,
    allowed: Container[int] = range(VOCAB),
) -> set[tuple[tuple[int, ...], bool]]:
    """Diverse beam search by the definition: no cache, the whole vocabulary, Python lists."""
    running = [[((), 0.0)] for _ in range(groups)]
    done: list[list[tuple[float, tuple[int, ...], bool]]] = [[] for _ in range(groups)]
    for step in range(1, steps + 1):
        taken: list[int] = []
        for group in range(groups):
            if not running[group]:
                continue
            all_ways = []
            for ids, score in running[group]:
                after = next_logprobs(model, prompt + list(ids)).tolist()
                for token, value in enumerate(after):
                    less = penalty * taken.count(token)
                    if token in allowed:
                        all_ways.append((score + value - less, ids, token))
            all_ways.sort(reverse=True)
            going, own = [], []
            for rank, (score, ids, token) in enumerate(all_ways[: 2 * width]):
                if token == EOS or step == steps:
                    if rank < width:
                        chosen = ids if token == EOS else (*ids, token)
                        own += [token] * (token != EOS)
                        done[group].append((score / step, chosen, token == EOS))
                elif len(going) < width:
                    going.append(((*ids, token), score))
                    own.append(token)
            done[group] = sorted(done[group], reverse=True)[:width]
            running[group] = going
            full = len(done[group]) == width
            if going and full and going[0][1] / step <= done[group][-1][0]:
                running[group] = []
            taken += own
    return {(ids, finished) for group in done for _, ids, finished in group}


@pytest.mark.parametrize("seed", range(4))
def test_diverse_beams_follow_the_definition(seed: int) -> None:
    model = gpt2(seed)
    ours = run(model, requests(), mode="diverse", max_new_tokens=8, diversity_penalty=1.0)
    for ids, found in zip(PROMPTS, ours, strict=True):
        wanted = slow_groups(model, ids, groups=4, width=1, penalty=1.0, steps=8)
        assert {(tuple(c.ids), c.finished) for c in found} == wanted


@pytest.mark.parametrize("seed", range(2))
def test_beams_follow_the_definition(seed: int) -> None:
    model = gpt2(seed)
    (found,) = run(model, requests(PROMPTS[:1]), max_new_tokens=8)
    wanted = slow_groups(model, PROMPTS[0], groups=1, width=4, penalty=0.0, steps=8)
    assert {(tuple(c.ids), c.finished) for c in found} == wanted


def test_groups_differ_more_with_the_penalty() -> None:
    model = gpt2(0)
    alike = run(model, requests(), mode="diverse", diversity_penalty=0.0)
    apart = run(model, requests(), mode="diverse", diversity_penalty=5.0)
    assert all(len({tuple(c.ids) for c in some}) == 1 for some in alike)
    assert all(len({tuple(c.ids) for c in some}) == 4 for some in apart)


@pytest.mark.parametrize("mode", ["beam", "diverse", "sample"])
@pytest.mark.parametrize("make", [gpt2, llama])
def test_a_request_alone_gives_what_it_gives_in_a_batch(make: Callable, mode: str) -> None:
    model = make(1)
    options = {"mode": mode, "temperature": 0.9, "top_p": 0.9}
    asked = [DecodingRequest(ids, seed=i) for i, ids in enumerate(PROMPTS * 2)]
    together = run(model, asked, **options)
    chunked = run(model, asked, batch_size=2, **options)
    for request, one, other in zip(asked, together, chunked, strict=True):
        same(one, other)
        same(one, run(model, [request], **options)[0])


@pytest.mark.parametrize("mode", ["beam", "diverse", "sample"])
def test_logprobs_are_those_of_the_policy(mode: str) -> None:
    model = gpt2(2)
    for ids, some in zip(PROMPTS, run(model, requests(), mode=mode, temperature=1.7), strict=True):
        for completion in some:
            tokens = completion.ids + [EOS] * completion.finished
            parts = [
                next_logprobs(model, ids + tokens[:i])[token].item()
                for i, token in enumerate(tokens)
            ]
            assert completion.logprob == pytest.approx(sum(parts), abs=1e-3)
            assert completion.num_tokens == len(tokens)


@pytest.mark.parametrize("mode", ["beam", "diverse", "sample"])
def test_best_come_first_and_no_more_than_asked(mode: str) -> None:
    some = run(gpt2(3), requests(PROMPTS[:1]), mode=mode, num_candidates=3)[0]
    scores = [c.ranking_score(1.0) for c in some]
    assert len(some) == 3
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("mode", ["beam", "diverse", "sample"])
def test_forced_tokens_are_read_and_not_counted(mode: str) -> None:
    model = gpt2(0)
    whole = run(model, [DecodingRequest(PROMPTS[1])], mode=mode)[0]
    split = run(model, [DecodingRequest(PROMPTS[1][:4], PROMPTS[1][4:])], mode=mode)[0]
    assert whole == split


# Constraints


@pytest.mark.parametrize("mode", ["beam", "diverse", "sample"])
@pytest.mark.parametrize("make", [gpt2, llama])
def test_what_is_not_allowed_is_never_chosen(make: Callable, mode: str) -> None:
    def allow(text: str, token_text: str) -> bool:
        return token_text == "" or int(token_text[2:]) % 7 == 3

    for completion in itertools.chain(*run(make(1), requests(allow=allow), mode=mode)):
        assert all(token % 7 == 3 for token in completion.ids)


@pytest.mark.parametrize(("groups", "width", "mode"), [(1, 4, "beam"), (4, 1, "diverse")])
def test_allowed_beams_are_the_best_allowed_ones(groups: int, width: int, mode: str) -> None:
    model = gpt2(1)
    allowed = {EOS, *range(40, 60)}

    def allow(text: str, token_text: str) -> bool:
        return not token_text or int(token_text[2:]) in allowed

    asked = requests(PROMPTS[:1], allow=allow)
    (found,) = run(model, asked, mode=mode, max_new_tokens=8, diversity_penalty=1.0)
    wanted = slow_groups(model, PROMPTS[0], groups, width, groups > 1, steps=8, allowed=allowed)
    assert {(tuple(c.ids), c.finished) for c in found} == wanted


@pytest.mark.parametrize("mode", ["beam", "diverse", "sample"])
def test_nothing_allowed_ends_the_text_as_cut_off(mode: str) -> None:
    def allow(text: str, token_text: str) -> bool:
        return token_text != "" and text.count(" ") < 2

    for completion in itertools.chain(*run(gpt2(0), requests(allow=allow), mode=mode)):
        assert len(completion.ids) == 2
        assert not completion.finished
        assert completion.num_tokens == 2


@pytest.mark.parametrize("mode", ["beam", "diverse", "sample"])
def test_allow_is_asked_with_the_text_so_far_and_seldom(mode: str) -> None:
    asked = []

    def allow(text: str, token_text: str) -> bool:
        asked.append((text, token_text))
        return True

    some = run(gpt2(0), [DecodingRequest([7], [8], allow=allow)], mode=mode)[0]
    best = some[0]
    for i, token in enumerate(best.ids):
        assert (TOKENIZER.decode(best.ids[:i]), f" w{token}") in asked
    assert len(asked) <= 16 * 2 * 4
    assert best.text == TOKENIZER.decode(best.ids)


def test_min_length_by_refusing_the_end_token() -> None:
    allow = lambda text, token_text: token_text != "" or text.count(" ") >= 6  # noqa: E731
    models = [gpt2(seed) for seed in range(4)]
    free = [c for model in models for some in run(model, requests()) for c in some]
    found = [c for model in models for some in run(model, requests(allow=allow)) for c in some]
    assert min(len(c.ids) for c in free) < 6
    assert min(len(c.ids) for c in found) == 6


def test_characters_of_several_tokens() -> None:
    seen = []

    def allow(text: str, token_text: str) -> bool:
        seen.append((text, token_text))
        return True

    request = DecodingRequest([ord("a")], allow=allow)
    writer = Writer(request, ByteTokenizer(), eos_id=0)
    hypothesis = run_through(writer, list("x\U0001f600é!".encode()))
    assert hypothesis.text == "x\U0001f600é!"
    part = "\ufffd"
    assert seen == [
        ("", "x"), ("x", part), ("x", part), ("x", part), ("x", "\U0001f600"),
        ("x\U0001f600", part), ("x\U0001f600", "é"), ("x\U0001f600é", "!"),
    ]  # fmt: skip
    cut_off = run_through(writer, list("x\U0001f600".encode())[:-1])
    assert writer.completion(cut_off).text == "x"


def run_through(writer: Writer, tokens: list[int]):
    hypothesis = Hypothesis()
    for token in tokens:
        hypothesis = writer.extended(hypothesis, token, -1.0, 0.0)
        assert hypothesis is not None
    return hypothesis


# Sampling


def test_samples_have_the_policys_distribution() -> None:
    model = gpt2(4, n_layer=1)
    temperature, top_p = 1.3, 0.8
    shares = (next_logprobs(model, PROMPTS[0]) / temperature).softmax(-1)
    order = shares.argsort(descending=True).tolist()
    before = [sum(shares[order[:i]].tolist()) for i in range(VOCAB)]
    kept = [token for token, mass in zip(order, before, strict=True) if mass < top_p]
    refused = kept[1]
    for allow, tokens in ((None, kept), (refuse(refused), [t for t in kept if t != refused])):
        draws = run(
            model, [DecodingRequest(PROMPTS[0], seed=5, allow=allow)], mode="sample",
            num_candidates=4000, max_new_tokens=1, temperature=temperature, top_p=top_p,
        )[0]  # fmt: skip
        total = sum(shares[tokens].tolist())
        counts = {token: 0 for token in tokens}
        for draw in draws:
            counts[EOS if draw.finished else draw.ids[0]] += 1
        for token in tokens:
            wanted = shares[token].item() / total
            deviation = math.sqrt(wanted * (1 - wanted) / 4000)
            assert abs(counts[token] / 4000 - wanted) < 4.5 * deviation + 1e-9


def refuse(token: int) -> Callable[[str, str], bool]:
    return lambda text, token_text: token_text != ("" if token == EOS else f" w{token}")


def test_seeds_decide(untouched_generators) -> None:
    model = gpt2(0, 0.0)
    with untouched_generators():
        one, again, other = (
            run(model, requests(seed=seed), mode="sample") for seed in (7, 7, 2**64 - 1)
        )
    assert one == again
    assert one != other


def test_the_nucleus_grows_where_all_of_it_is_refused() -> None:
    model = gpt2(4)
    best = next_logprobs(model, PROMPTS[0]).argmax().item()
    asked = [DecodingRequest(PROMPTS[0], allow=refuse(best))]
    found = run(model, asked, mode="sample", top_p=0.01, max_new_tokens=1)[0]
    second = next_logprobs(model, PROMPTS[0]).topk(2).indices[1].item()
    assert {(*c.ids, *[EOS] * c.finished) for c in found} == {(second,)}


# Limits, stopping, bad input


@pytest.mark.parametrize("mode", ["beam", "diverse", "sample"])
@pytest.mark.parametrize("make", [gpt2, llama])
def test_the_context_cuts_off(make: Callable, mode: str) -> None:
    allow = lambda text, token_text: token_text != ""  # noqa: E731
    prompts = [[9] * 60, [9] * 64, [9] * 3]
    found = run(make(0), requests(prompts, allow=allow), mode=mode)
    assert [{len(c.ids) for c in some} for some in found] == [{4}, {0}, {16}]
    assert not any(c.finished for some in found for c in some)


@pytest.mark.parametrize("prompt", [[9] * 65, []])
def test_a_prompt_that_does_not_fit_is_refused(prompt: list[int]) -> None:
    with pytest.raises(SettingsError) as caught:
        run(gpt2(0), requests([PROMPTS[0], prompt]))
    assert caught.value.name == "user_input"


@pytest.mark.parametrize(
    "bad",
    [
        {"mode": "greedy"},
        {"num_candidates": 0},
        {"num_beams": 0},
        {"max_new_tokens": 0},
        {"temperature": 0.0},
        {"top_p": 1.5},
    ],
)
def test_bad_settings_are_named(bad: dict) -> None:
    with pytest.raises(SettingsError) as caught:
        run(gpt2(0), requests(), **bad)
    assert caught.value.name == next(iter(bad))


def test_no_requests_give_nothing() -> None:
    assert run(gpt2(0), []) == []


def test_scores_that_are_no_numbers_are_refused() -> None:
    model = gpt2(0)
    with torch.no_grad():
        model.transformer.ln_f.weight[0] = math.nan
    for mode in ("beam", "sample"):
        with pytest.raises(SettingsError, match="not finite"):
            run(model, requests(), mode=mode)


@pytest.mark.parametrize("mode", ["beam", "diverse", "sample"])
def test_should_stop_is_asked_before_every_token(mode: str) -> None:
    calls: Iterator[int] = itertools.count(1)
    with pytest.raises(Stopped):
        run(gpt2(0, -20.0), requests(), mode=mode, should_stop=lambda: next(calls) == 5)
    assert next(calls) == 6
    assert run(gpt2(0), requests(), mode=mode, should_stop=lambda: False)


# The fast forward pass


@pytest.mark.parametrize("mode", ["beam", "diverse", "sample"])
@pytest.mark.parametrize("packed", [True, False])
def test_the_fast_forward_gives_what_the_models_own_gives(
    mode: str, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not packed:
        monkeypatch.setattr(packed_weights, "_WORKS", [False])
    model = gpt2(3, -20.0)
    assert forward_gpt2.is_plain_gpt2(model)
    fast = run(model, requests(), mode=mode, max_new_tokens=50)
    monkeypatch.setattr(forward_gpt2, "is_plain_gpt2", lambda model: False)
    for one, other in zip(fast, run(model, requests(), mode=mode, max_new_tokens=50), strict=True):
        same(one, other)


def test_long_texts_clear_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    model = gpt2(3, -20.0)
    wanted = run(model, requests(), max_new_tokens=50)
    monkeypatch.setattr(forward_gpt2, "STEPS_OF_ROOM", 1)
    for one, other in zip(run(model, requests(), max_new_tokens=50), wanted, strict=True):
        same(one, other)


def test_the_prompt_is_fed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama(0)
    shapes = []
    model.register_forward_pre_hook(
        lambda module, inputs, options: shapes.append(tuple(options["input_ids"].shape)),
        with_kwargs=True,
    )
    run(model, requests(), max_new_tokens=6, length_penalty=1.0)
    assert shapes[0] == (3, 9)
    assert all(columns == 1 and rows <= 12 for rows, columns in shapes[1:])


def test_changed_models_are_not_taken_for_plain_ones() -> None:
    assert not forward_gpt2.is_plain_gpt2(llama(0))
    assert not forward_gpt2.is_plain_gpt2(gpt2(0).train())
    hooked = gpt2(0)
    hooked.transformer.h[0].register_forward_hook(lambda *parts: None)
    assert not forward_gpt2.is_plain_gpt2(hooked)
    replaced = gpt2(0)
    replaced.transformer.h[1].mlp.c_fc = torch.nn.Sequential(replaced.transformer.h[1].mlp.c_fc)
    assert not forward_gpt2.is_plain_gpt2(replaced)
    patched = gpt2(0)
    patched.transformer.h[0].attn.forward = patched.transformer.h[0].attn.forward
    assert not forward_gpt2.is_plain_gpt2(patched)


@pytest.mark.parametrize("how", ["in place", "data", "load_state_dict", "replaced"])
def test_changed_weights_are_packed_anew(how: str) -> None:
    model, other = gpt2(0), gpt2(1)
    run(model, requests())
    with torch.no_grad():
        for (name, old), new in zip(
            list(model.named_parameters()), other.parameters(), strict=True
        ):
            if how == "in place":
                old.copy_(new)
            elif how == "data":
                old.data.mul_(0.0).add_(new.data)
            elif how == "replaced" and name != "transformer.wte.weight":
                owner, _, last = name.rpartition(".")
                setattr(model.get_submodule(owner), last, torch.nn.Parameter(new.clone()))
            elif how == "replaced":
                old.data = new.data.clone()
    if how == "load_state_dict":
        model.load_state_dict(other.state_dict())
    for one, two in zip(run(model, requests()), run(other, requests()), strict=True):
        same(one, two)


def test_hosts_autocast_changes_nothing() -> None:
    model = gpt2(0)
    wanted = run(model, requests())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert run(model, requests()) == wanted


def test_models_can_be_trained_after_decoding() -> None:
    for model in (gpt2(0), llama(0)):
        run(model, requests())
        loss = model(torch.tensor([PROMPTS[1]]), labels=torch.tensor([PROMPTS[1]])).loss
        loss.backward()
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_tuples_of_old_versions_are_reordered() -> None:
    layer = (torch.arange(6.0).view(3, 1, 2, 1), torch.arange(3.0).view(3, 1, 1, 1))
    ((keys, values),) = forward_any.reordered(None, (layer,), torch.tensor([2, 0, 0, 1]), 3)
    assert keys[:, 0, :, 0].tolist() == [[4.0, 5.0], [0.0, 1.0], [0.0, 1.0], [2.0, 3.0]]
    assert values.flatten().tolist() == [2.0, 0.0, 0.0, 1.0]
