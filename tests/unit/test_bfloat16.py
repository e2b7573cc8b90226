"""Products of bfloat16 on a processor that cannot multiply it: each is the float32 one, rounded."""

import logging

import pytest
import torch
from torch.nn import functional as F

import lofit_lens as ll
from lofit_lens.bfloat16 import is_slow, products_in_float32

CPU = torch.device("cpu")


@pytest.fixture
def old_processor(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")


def short(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))).bfloat16()


@pytest.mark.parametrize(
    ("product", "shapes"),
    [
        (torch.mm, [(5, 7), (7, 3)]),
        (torch.addmm, [(3,), (5, 7), (7, 3)]),
        (torch.bmm, [(2, 5, 7), (2, 7, 3)]),
        (torch.baddbmm, [(2, 5, 3), (2, 5, 7), (2, 7, 3)]),
        (F.linear, [(2, 5, 7), (3, 7), (3,)]),
        (torch.matmul, [(2, 4, 5, 7), (2, 4, 7, 3)]),
    ],
)
def test_products_and_gradients_are_those_of_float32_rounded(old_processor, product, shapes):
    given = [short(*shape).requires_grad_() for shape in shapes]
    in_full = [value.detach().float().requires_grad_() for value in given]
    with products_in_float32(torch.bfloat16, CPU):
        found = product(*given)
        found.backward(torch.ones_like(found))
    wanted = product(*in_full)
    wanted.backward(torch.ones_like(wanted))
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, wanted.bfloat16())
    for short_one, full_one in zip(given, in_full, strict=True):
        assert torch.equal(short_one.grad, full_one.grad.bfloat16())


def test_other_products_and_processors_are_left_alone(old_processor, monkeypatch):
    assert not is_slow(torch.float32, CPU)
    assert not is_slow(torch.bfloat16, torch.device("cuda"))
    a, b = short(5, 7).float(), short(7, 3).float()
    with products_in_float32(torch.bfloat16, CPU):
        assert torch.equal(a @ b, torch.mm(a, b))
        assert (a @ b).dtype == torch.float32
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    assert not is_slow(torch.bfloat16, CPU)


def test_a_model_differs_by_rounding_alone(old_processor):
    model, full = (ll.tiny_model("llama", dtype=dtype) for dtype in (torch.bfloat16, torch.float32))
    tokens = torch.arange(3, 40)[None]
    with torch.no_grad():
        plain, exact = model(tokens), full(tokens)
        with products_in_float32(torch.bfloat16, CPU):
            found = model(tokens)
    # What bfloat16 loses, three layers of it, is as much either way.
    assert (found - exact).abs().mean() < 1.5 * (plain - exact).abs().mean()
    assert not torch.equal(found, exact.bfloat16())


@pytest.mark.parametrize(("dtype", "is_said"), [(torch.bfloat16, True), (torch.float32, False)])
def test_it_is_said_when_a_model_is_loaded(old_processor, tmp_path, caplog, dtype, is_said):
    caplog.set_level(logging.WARNING, "lofit_lens")
    for part in ll.tiny.tiny_pair("llama", n_layers=1):
        part.save_pretrained(tmp_path)
    ll.load_model(tmp_path, dtype=dtype, device="cpu")
    assert ("this processor cannot multiply bfloat16" in caplog.text) == is_said
