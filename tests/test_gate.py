import pytest

from promptadapt_core import gate

PLAIN = [
    "a cat on a roof",
    "portrait of an old fisherman",
    "a red car and a blue bicycle parked in front of a small shop",
    "Two slices of toast with toppings on a blue plate.",
    "purple emperor",
    "oil painting of a harbour",
]
ENGINEERED = [
    "a cat on a roof, golden hour, highly detailed, sharp focus, 8k",
    "portrait of an old fisherman, oil on canvas, dramatic lighting, by rembrandt",
    "castle, concept art, trending on artstation, matte painting, cinematic lighting",
]


@pytest.mark.parametrize("plain", PLAIN)
def test_a_plain_input_is_adapted(plain):
    assert gate.decide(plain, 10, 75) == (True, "")


@pytest.mark.parametrize("engineered", ENGINEERED)
def test_an_engineered_prompt_is_left_alone_with_the_reason(engineered):
    decision = gate.decide(engineered, 25, 75)
    assert not decision.adapt
    assert decision.reason.startswith("it is engineered already (")


def test_no_room_in_the_budget():
    assert gate.has_room(10, 75).adapt
    decision = gate.decide("a cat on a roof", 74, 75)
    assert decision == (False, "it has 74 tokens already and the token budget is 75")
