"""The choice of device, weights and threads, and the reason it gives.

Other processors and CUDA are described to it, since one machine has only its own.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from lfm2_mm import backbone, device
from lfm2_mm.device import choose
from lfm2_mm.errors import BadInput
from tests.shapes import opened, some_ids

PROCESSORS = {  # features -> what auto chooses, what the reason names
    "AMX": ({"avx512_vnni", "amx_int8", "amx_bf16", "avx512_bf16"}, "int8", "amx_int8"),
    "AVX-512 VNNI": ({"avx2", "avx512f", "avx512_vnni"}, "int8", "avx512_vnni"),
    "AVX VNNI": ({"avx2", "avx_vnni"}, "int8", "avx_vnni"),
    "Arm with dot product": ({"asimd", "asimddp"}, "int8", "asimddp"),
    "bf16 without int8": ({"avx2", "avx512f", "avx512_bf16"}, "bf16", "bf16"),
    "AVX2": ({"avx2", "fma"}, "fp32", "neither"),
    "nothing known": (set(), "fp32", "neither"),
}


@pytest.fixture
def no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


@pytest.fixture
def int8_product(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.setattr(device, "int8_works", lambda: request.param)


def described(monkeypatch: pytest.MonkeyPatch, features: set[str]) -> None:
    monkeypatch.setattr(device, "processor_features", lambda: frozenset(features))


@pytest.mark.usefixtures("no_cuda")
class TestCpu:
    @pytest.mark.parametrize("int8_product", [True], indirect=True)
    @pytest.mark.parametrize("name", PROCESSORS)
    @pytest.mark.usefixtures("int8_product")
    def test_auto(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        features, weights, why = PROCESSORS[name]
        described(monkeypatch, features)
        choice = choose()
        assert (choice.device, choice.weights) == ("cpu", weights)
        assert why in choice.reason and weights in choice.reason

    @pytest.mark.parametrize("int8_product", [False], indirect=True)
    @pytest.mark.usefixtures("int8_product")
    def test_auto_where_torch_has_no_int8_product(self, monkeypatch: pytest.MonkeyPatch) -> None:
        described(monkeypatch, {"avx512_vnni", "avx512_bf16"})
        assert choose().weights == "bf16"
        described(monkeypatch, {"avx512_vnni"})
        assert choose().weights == "fp32"
        with pytest.raises(BadInput, match="int8 was asked.*use fp32"):
            choose(dtype="int8")

    @pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8", "int4"])
    @pytest.mark.parametrize("name", ["cpu", "auto"])
    def test_what_is_asked_is_taken(self, dtype: str, name: str) -> None:
        choice = choose(name, dtype)
        assert choice.weights == dtype and "as asked" in choice.reason
        assert choice.torch_dtype == (torch.bfloat16 if dtype == "bf16" else torch.float32)

    def test_cuda_that_is_not_there(self) -> None:
        with pytest.raises(BadInput, match="torch finds none.*cpu or auto"):
            choose("cuda")

    @pytest.mark.parametrize(("name", "dtype"), [("tpu", "auto"), ("auto", "int3"), ("", "")])
    def test_what_is_unknown_is_named_beside_what_is_valid(self, name: str, dtype: str) -> None:
        with pytest.raises(BadInput, match=f"{name!r}.*{dtype!r}.*auto, cpu, cuda.*bf16, int8"):
            choose(name, dtype)

    def test_threads_are_those_of_torch_as_far_as_this_process_may_use_them(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(device, "_given", None)  # as before anything was opened
        monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
        for cores, threads in ((3, 3), (8, 4), (1, 1)):
            monkeypatch.setattr(device, "usable_cores", lambda cores=cores: cores)
            choice = choose()
            assert choice.threads == threads and f"{threads} threads" in choice.reason


@pytest.mark.usefixtures("cuda")
class TestCuda:
    @pytest.mark.parametrize("name", ["cuda", "auto"])
    @pytest.mark.parametrize(
        ("asked", "weights"), [("auto", "bf16"), ("bf16", "bf16"), ("fp32",) * 2]
    )
    def test_choice(self, name: str, asked: str, weights: str) -> None:
        choice = choose(name, asked)
        assert (choice.device, choice.weights) == ("cuda", weights)
        assert "cuda" in choice.reason

    def test_int8_is_for_processors(self) -> None:
        with pytest.raises(BadInput, match="CPU only.*bf16 or fp32"):
            choose("cuda", "int8")

    def test_cpu_can_be_asked_beside_it(self) -> None:
        assert choose("cpu", "int8").device == "cpu"

    def test_auto_device_with_int8_runs_on_the_cpu(self) -> None:
        """Nothing was said about cuda: what was asked can be had."""
        assert choose("auto", "int8").device == "cpu"


class TestThisMachine:
    def test_features_are_those_torch_sees(self) -> None:
        features = device.processor_features()
        assert features and all(isinstance(name, str) for name in features)
        assert ("avx2" in features) == torch.cpu._is_avx2_supported()
        assert ("avx512_vnni" in features) == torch.cpu._is_vnni_supported()

    def test_names_the_processor(self) -> None:
        assert device.processor_name().strip()

    def test_the_int8_product_works(self) -> None:
        assert device.int8_works()


class TestThreads:
    @pytest.fixture(autouse=True)
    def kept(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        before = torch.get_num_threads()
        monkeypatch.setattr(device, "_threads_set", None)
        yield
        torch.set_num_threads(before)

    def test_set(self) -> None:
        device.set_threads(2)
        assert torch.get_num_threads() == 2
        device.set_threads(1)
        assert torch.get_num_threads() == 1

    def test_set_once(self) -> None:
        """A number the caller sets afterwards is not overruled by the next checkpoint."""
        device.set_threads(2)
        torch.set_num_threads(1)
        device.set_threads(2)
        assert torch.get_num_threads() == 1


@pytest.mark.parametrize(
    ("features", "dtype"),
    [({"avx512_bf16"}, torch.bfloat16), ({"avx512_vnni"}, torch.float32)],
)
def test_int8_keeps_its_state_in_what_the_processor_multiplies(
    features: set[str], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = opened("dense", dtype="int8")
    described(monkeypatch, features)
    assert backbone.cache_dtype() == dtype
    hidden, state = ours.step(ours.embed(some_ids(1, 4)))
    assert hidden.dtype == torch.float32
    assert {b.dtype for b in (*state.store.keys, *state.store.inputs)} == {dtype}
