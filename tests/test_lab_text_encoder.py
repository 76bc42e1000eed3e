from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from promptadapt_core.clip_tokens import ClipTokenCounter, clean_for_clip
from promptadapt_core.lab.captions import describe
from promptadapt_core.lab.scenes import sample_scene
from promptadapt_core.lab.text_encoder import (
    CHECKPOINT_PREFIX,
    END_ID,
    START_ID,
    TextFeatures,
    build_text_encoder,
    build_text_encoder_2,
    known_ids,
    state_of_clip_l,
    text_encoder_state,
    write_tokenizer,
)

transformers = pytest.importorskip("transformers")

COUNTER = ClipTokenCounter()
CAT = [-156, 231, 200, -108]  # the first numbers of the row of "cat", in 256ths
POSITION_1 = [-249, -243, 78, 196]  # of the second position, in 512ths
TEXTS = [
    "",
    "a red cat by the sea, watercolor",
    "zyxwv the quixotic",  # words of no world
    "a red cat in the snow, " * 5,  # over 24 tokens
    "a blue boat behind a tree, " * 20,  # over 75
]


@pytest.fixture(scope="module")
def features() -> TextFeatures:
    return TextFeatures(seed=3)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return transformers.CLIPTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return build_text_encoder(seed=3)


@torch.no_grad()
def test_features_are_those_of_transformers(
    features: TextFeatures, tokenizer: Any, model: torch.nn.Module
) -> None:
    context, pooled = features.embed([COUNTER.encode(text) for text in TEXTS])
    inputs = tokenizer(
        TEXTS, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    )
    output = model(inputs.input_ids, output_hidden_states=True)
    torch.testing.assert_close(context, output.hidden_states[-2], rtol=0, atol=0)
    torch.testing.assert_close(pooled, output.text_embeds, rtol=0, atol=1e-5)


def test_a_short_context_is_the_start_of_the_whole(features: TextFeatures) -> None:
    ids = [COUNTER.encode(text) for text in TEXTS]
    whole, pooled = features.embed(ids)
    start, same_pooled = features.embed(ids, length=25)
    assert torch.equal(start, whole[:, :25])
    torch.testing.assert_close(same_pooled, pooled, rtol=0, atol=1e-6)
    assert whole.shape == (5, 77, 768)
    assert pooled.shape == (5, 768)


def test_padding_after_the_known_positions_is_zero(features: TextFeatures) -> None:
    context, _ = features.embed([COUNTER.encode("a cat")])
    assert not context[0, 24:].any()
    assert context[0, :24].any(dim=1).all()


def test_only_words_of_the_world_have_rows(features: TextFeatures) -> None:
    table = features.table()
    assert table.shape == (49408, 768)
    assert table.any(dim=1).nonzero().flatten().tolist() == list(known_ids())
    assert not table[[START_ID, END_ID, *COUNTER.encode("quixotic")]].any()


def test_every_token_of_a_caption_is_known() -> None:
    generator = random.Random(5)
    known = set(known_ids())
    for _ in range(300):
        assert known.issuperset(COUNTER.encode(describe(sample_scene(generator), generator)))


def test_rows_are_normal_and_exact_in_float16(features: TextFeatures) -> None:
    rows = features.rows[:-1]
    assert torch.equal(rows.half().float(), rows)
    assert torch.equal(features.positions.half().float(), features.positions)
    assert abs(rows.mean().item()) < 0.01
    assert rows.std().item() == pytest.approx(1.0, abs=0.01)
    assert features.positions[:24].std().item() == pytest.approx(0.5, abs=0.02)
    similar = torch.corrcoef(rows) - torch.eye(len(rows))
    assert similar.abs().max() < 0.25


def test_rows_never_change() -> None:
    """The trained renderer knows the words by these numbers."""
    table = TextFeatures(seed=0)
    cat = table.rows[table.places[COUNTER.encode("cat")[0]]]
    assert (cat[:4] * 256).int().tolist() == CAT
    assert (table.positions[1, :4] * 512).int().tolist() == POSITION_1


def test_a_row_depends_on_its_token_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    every = TextFeatures(seed=2)
    ids = known_ids()
    monkeypatch.setattr("promptadapt_core.lab.text_encoder.known_ids", lambda: ids[5:9])
    few = TextFeatures(seed=2)
    assert torch.equal(few.rows[:-1], every.rows[5:9])
    assert not torch.equal(TextFeatures(seed=1).rows[:-1], few.rows[:-1])


def test_a_bag_of_words_in_the_pooled_features(features: TextFeatures) -> None:
    """Which words there are counts far more than their order."""
    texts = ["red cat beside blue dog", "blue dog beside red cat", "green fish above pink car"]
    _, pooled = features.embed([COUNTER.encode(text) for text in texts])
    near, far = (torch.cosine_similarity(pooled[0], other, dim=0) for other in pooled[1:])
    assert near > 0.8
    assert far < 0.65


@pytest.mark.parametrize("text", [*TEXTS, "It's 8K & a \u201cCAT\u201d \u00e9t\u00e9 \U0001f600!?"])
def test_token_ids_are_those_of_the_counter(tokenizer: Any, text: str) -> None:
    ids = tokenizer(clean_for_clip(text)).input_ids
    assert ids == [START_ID, *COUNTER.encode(text), END_ID]


def test_the_tokenizer_pads_and_cuts_as_clip_does(tokenizer: Any) -> None:
    assert tokenizer.model_max_length == 77
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == END_ID
    assert tokenizer.bos_token_id == START_ID
    assert len(tokenizer) == 49408
    short, long = tokenizer([TEXTS[1], TEXTS[4]], padding="max_length", truncation=True).input_ids
    assert len(short) == len(long) == 77
    assert set(short[len(COUNTER.encode(TEXTS[1])) + 1 :]) == {END_ID}
    assert long[-1] == END_ID
    assert long[1:-1] == COUNTER.encode(TEXTS[4])[:75]


@torch.no_grad()
def test_the_checkpoint_holds_twelve_layers_with_the_same_features() -> None:
    state = state_of_clip_l(seed=3)
    assert all(name.startswith(CHECKPOINT_PREFIX) for name in state)
    assert len(state) == 12 * 16 + 5
    config = transformers.CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, projection_dim=768, num_hidden_layers=12,
        num_attention_heads=12, eos_token_id=END_ID,
    )  # fmt: skip
    with torch.device("meta"):
        deep = transformers.CLIPTextModelWithProjection(config).eval()
    renamed = {k.removeprefix(CHECKPOINT_PREFIX): v.float() for k, v in state.items()}
    deep.load_state_dict(renamed, assign=True)
    deep.text_model.embeddings.position_ids = torch.arange(77)[None]
    flat = build_text_encoder(seed=3)
    ids = torch.tensor([[START_ID, *COUNTER.encode(TEXTS[1])[:8], END_ID, END_ID]])
    left, right = (one(ids, output_hidden_states=True) for one in (deep, flat))
    assert torch.equal(left.hidden_states[-2], right.hidden_states[-2])
    torch.testing.assert_close(left.text_embeds, right.text_embeds, rtol=0, atol=1e-6)


@torch.no_grad()
def test_the_second_encoder_says_nothing() -> None:
    model = build_text_encoder_2()
    output = model(torch.tensor([[START_ID, 320, END_ID]]), output_hidden_states=True)
    assert output.text_embeds.shape == (1, 1280)
    assert output.hidden_states[-2].shape == (1, 3, 8)
    assert not output.text_embeds.any()
    assert not output.hidden_states[-2].any()


def test_the_global_generator_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    build_text_encoder_2()
    text_encoder_state(seed=0, num_layers=1, inner=8)
    assert torch.equal(torch.random.get_rng_state(), before)
