import pytest
import torch

from promptadapt_core.devices import pick_device
from promptadapt_core.settings import SettingsError


def test_names():
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type in ("cpu", "cuda", "mps")


@pytest.mark.parametrize("name", ["warp9", "meta", "cuda:99", "", "cpu:x"])
def test_a_device_that_is_not_there_is_named(name):
    with pytest.raises(SettingsError, match="device: ") as caught:
        pick_device(name)
    assert "\n" not in str(caught.value)
