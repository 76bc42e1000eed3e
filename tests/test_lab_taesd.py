"""A stock TAESD with the lab's weights, against the lab's own autoencoder."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from promptadapt_core.lab import autoencoder, taesd  # noqa: E402
from promptadapt_core.settings import SettingsError  # noqa: E402


@pytest.fixture(scope="module")
def both_autoencoders() -> tuple[torch.nn.Module, torch.nn.Module]:
    """Ours with random weights in half precision's grid, and a stock TAESD with what `taesd` makes
    of them; double precision."""
    generator = torch.Generator().manual_seed(1)
    ours = autoencoder.build_autoencoder(1).eval()
    for tensor in ours.state_dict().values():
        fan_in = tensor[0].numel() if tensor.dim() > 1 else 100
        tensor.copy_((torch.randn(tensor.shape, generator=generator) * 1.2 * fan_in**-0.5).half())
    autoencoder.keep_centres(ours)
    stock = diffusers.AutoencoderTiny(latent_channels=16)
    stock.load_state_dict(taesd.stock_weights(ours.state_dict(), ours.config))
    for model in (ours, stock):
        model.encoder.double()
        model.decoder.double()
    return ours, stock


@torch.no_grad()
def test_taesd_decodes_our_picture_with_every_pixel_doubled(
    both_autoencoders: tuple[torch.nn.Module, torch.nn.Module],
) -> None:
    ours, stock = both_autoencoders
    generator = torch.Generator().manual_seed(2)
    latents = torch.randn(2, 16, 5, 7, generator=generator, dtype=torch.float64)
    expected = ours.decode(latents).sample
    assert expected.shape == (2, 3, 20, 28)
    assert expected.std() > 0.1
    doubled = expected.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    assert (stock.decode(latents).sample - doubled).abs().max() < 1e-12


@torch.no_grad()
def test_taesd_encodes_means_of_four_pixels_as_we_do(
    both_autoencoders: tuple[torch.nn.Module, torch.nn.Module],
) -> None:
    ours, stock = both_autoencoders
    generator = torch.Generator().manual_seed(3)
    pixels = torch.rand(2, 3, 40, 56, generator=generator, dtype=torch.float64) * 2 - 1
    means = pixels.unflatten(2, (20, 2)).unflatten(4, (28, 2)).mean(dim=(3, 5))
    expected = ours.encode(means).latents
    assert expected.shape == (2, 16, 5, 7)
    assert expected.std() > 0.1
    assert (stock.encode(pixels).latents - expected).abs().max() < 1e-12


def test_comfyui_counts_taesds_tanh_as_a_layer(
    both_autoencoders: tuple[torch.nn.Module, torch.nn.Module],
) -> None:
    ours = both_autoencoders[0]
    tensors = taesd.taesd_weights(ours.state_dict(), ours.config)
    # comfy/taesd/taesd.py: clamp, convolution, ...; the last convolution gives the three colours.
    assert tensors["taesd_decoder.1.weight"].shape == (64, 16, 3, 3)
    assert tensors["taesd_decoder.19.weight"].shape == (3, 64, 3, 3)
    assert tensors["taesd_encoder.0.weight"].shape == (64, 3, 3, 3)
    assert tensors["taesd_encoder.14.weight"].shape == (16, 64, 3, 3)
    assert tensors["vae_scale"].item() == pytest.approx(1.5305, abs=1e-6)
    assert tensors["vae_shift"].item() == pytest.approx(0.0609, abs=1e-6)


def test_an_autoencoder_that_is_no_taesd_is_refused(
    both_autoencoders: tuple[torch.nn.Module, torch.nn.Module],
) -> None:
    ours = both_autoencoders[0]
    weights, config = ours.state_dict(), dict(ours.config)
    for name, value in (
        ("num_decoder_blocks", [3, 3, 3]), ("encoder_block_out_channels", [64] * 3),
        ("scaling_factor", 0.5), ("act_fn", "gelu"),
    ):  # fmt: skip
        with pytest.raises(SettingsError, match=f"{name} is"):
            taesd.stock_weights(weights, config | {name: value})
    for name in ("decoder.layers.13.weight", "encoder.layers.0.weight"):
        wider = weights[name].clone()
        wider[1, 2, 0, 1] = 0.5
        with pytest.raises(SettingsError, match=f"{name} has more than its centre"):
            taesd.stock_weights({**weights, name: wider}, config)
    with pytest.raises(SettingsError, match=r"layers\.14"):
        taesd.stock_weights({**weights, "decoder.layers.14.bias": torch.zeros(3)}, config)
