"""The matrix products of a plain GPT-2, on weights packed for few rows where the CPU gains by it.

With the 8 rows of a beam search a product on weights as they lie reaches about a third of what
oneDNN reaches on weights that it has packed. Packing costs memory (the weights once more) and a
moment at the first use; the packed weights live as long as their model. On other devices, in
other precisions, and where this torch lacks oneDNN, products run on the weights as they are.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.nn import functional

Product = Callable[[torch.Tensor], torch.Tensor]  # (rows, in) -> (rows, out)

PACKED_FOR_ROWS = 16  # packed for this many rows, products of 1 to 128 rows all run well
SAMPLE_STRIDE = 251  # a prime below any width: every changed row of a weight is noticed


class BlockProducts(NamedTuple):
    """Of one block: queries, keys and values; attention's output; the two of the MLP, the first
    with its activation."""

    attention_in: Product
    attention_out: Product
    inner: Product
    outer: Product


class Products(NamedTuple):
    blocks: list[BlockProducts]
    head: Product


class _Packed(NamedTuple):
    fingerprint: torch.Tensor
    products: Products


_PACKED: weakref.WeakKeyDictionary[Any, _Packed] = weakref.WeakKeyDictionary()


def products(model: Any, packed: bool = True) -> Products:
    """The products of a plain GPT-2 with the weights that it has now.

    Without `packed` they read the weights as they lie. Packed copies are made anew when a sample of
    the weights has changed: right for a model that is used, a risk for one that is being trained.
    """
    if not packed or not _can_pack(model):
        return _made(model, _plain, _plain_gelu, functional.linear)
    fingerprint = _fingerprint(model)
    known = _PACKED.get(model)
    if known is None or not torch.equal(known.fingerprint, fingerprint):
        known = _PACKED[model] = _Packed(fingerprint, _made(model, _packed, _packed_gelu, None))
    return known.products


def _made(model: Any, plain: Callable, with_gelu: Callable, linear: Callable | None) -> Products:
    """`plain` and `with_gelu` make a product of an (in, out) weight and a bias."""
    blocks = [
        BlockProducts(
            plain(block.attn.c_attn.weight, block.attn.c_attn.bias),
            plain(block.attn.c_proj.weight, block.attn.c_proj.bias),
            with_gelu(block.mlp.c_fc.weight, block.mlp.c_fc.bias),
            plain(block.mlp.c_proj.weight, block.mlp.c_proj.bias),
        )
        for block in model.transformer.h
    ]
    weight = model.lm_head.weight
    if linear is not None:
        return Products(blocks, lambda stream: linear(stream, weight))
    return Products(blocks, plain(weight.t(), None))


def _plain(weight: torch.Tensor, bias: torch.Tensor) -> Product:
    return lambda stream: torch.addmm(bias, stream, weight)


def _plain_gelu(weight: torch.Tensor, bias: torch.Tensor) -> Product:
    return lambda stream: functional.gelu(torch.addmm(bias, stream, weight), approximate="tanh")


def _packed(
    weight: torch.Tensor, bias: torch.Tensor | None, activation: str = "none", kind: str = ""
) -> Product:
    operation = torch.ops.mkldnn._linear_pointwise.default
    with torch.inference_mode():
        lying = weight.detach().t().contiguous()
        packed = torch.ops.mkldnn._reorder_linear_weight(lying, PACKED_FOR_ROWS)
    return lambda stream: operation(stream, packed, bias, activation, [], kind)


def _packed_gelu(weight: torch.Tensor, bias: torch.Tensor) -> Product:
    return _packed(weight, bias, "gelu", "tanh")


def _can_pack(model: Any) -> bool:
    """Float32 on a CPU whose torch has oneDNN and its products on packed weights."""
    if model.device.type != "cpu" or model.dtype != torch.float32:
        return False
    return _packing_works()


_WORKS: list[bool] = []


def _packing_works() -> bool:
    """Tried once: the operations are torch's own but not of its public face."""
    if not _WORKS:
        _WORKS.append(torch.backends.mkldnn.is_available() and _try_packing())
    return _WORKS[0]


def _try_packing() -> bool:
    weight = torch.arange(6, dtype=torch.float32).view(3, 2)
    bias = torch.ones(2)
    stream = torch.tensor([[1.0, -2.0, 0.5]])
    try:
        with torch.inference_mode():
            found = _packed(weight, bias)(stream), _packed_gelu(weight, bias)(stream)
            wanted = _plain(weight, bias)(stream), _plain_gelu(weight, bias)(stream)
    except (RuntimeError, AttributeError, TypeError, NotImplementedError):
        return False
    return all(map(torch.allclose, found, wanted))


def _fingerprint(model: Any) -> torch.Tensor:
    """Some values of every packed weight and all biases' place in memory: a weight that has been
    trained, merged, loaded or moved shows."""
    parts = []
    with torch.inference_mode():
        for parameter in model.parameters():
            place = torch.tensor([parameter.data_ptr()], dtype=torch.int64).view(torch.int32)
            sample = parameter.detach().reshape(-1)[::SAMPLE_STRIDE].contiguous()
            parts += [place, sample.view(torch.int32)]
        return torch.cat(parts)
