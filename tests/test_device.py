"""Device and precision: what is found, and what is refused."""

import pytest
import torch

from stormfast.device import native_bfloat16, resolve_device
from stormfast.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture
def two_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.current_device", lambda: 1)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda _: "a card")


@pytest.mark.usefixtures("two_cards")
def test_with_cuda() -> None:
    devices = {name: str(resolve_device(name)) for name in ("auto", "cpu", "cuda", "cuda:0", "cuda:1")}
    assert devices == {"auto": "cuda:1", "cpu": "cpu", "cuda": "cuda:1", "cuda:0": "cuda:0", "cuda:1": "cuda:1"}
    with pytest.raises(UserError, match="cuda:2 was asked for, but there are 2 CUDA devices"):
        resolve_device("cuda:2")


def test_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert resolve_device("auto") == resolve_device("cpu") == CPU
    for name in ("cuda", "cuda:0"):
        with pytest.raises(UserError, match=f"device {name} was asked for, but torch"):
            resolve_device(name)


@pytest.mark.parametrize(
    "name", ["", "gpu", "CUDA", "cuda:", "cuda:x", "cuda:-1", "cpu:0", "cuda:0 ", "cuda:0\n", "mps"]
)
def test_bad_names(name: str) -> None:
    with pytest.raises(UserError, match="must be auto, cpu, cuda or cuda:N"):
        resolve_device(name)


@pytest.mark.parametrize(
    ("amx", "avx", "expected"),
    [(0, 0, torch.float32), (1, 0, torch.bfloat16), (0, 1, torch.bfloat16), (None, None, torch.float32)],
)
def test_precision_on_cpu(
    amx: int | None, avx: int | None, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("_is_amx_tile_supported", amx), ("_is_avx512_bf16_supported", avx)):
        if value is None:
            monkeypatch.delattr(torch.cpu, name, raising=False)
        else:
            monkeypatch.setattr(torch.cpu, name, lambda value=value: bool(value), raising=False)
    assert native_bfloat16(CPU)[0] == (expected == torch.bfloat16)


@pytest.mark.parametrize(("capability", "native"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_precision_on_cuda(capability: tuple[int, int], native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: capability)
    monkeypatch.setattr("torch.version.hip", None)
    assert native_bfloat16(torch.device("cuda", 0))[0] == native
