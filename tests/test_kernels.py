"""The compiled loops against plain numpy, over awkward sizes and both widths of register."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from lfm2_mm.compiled import register_width
from retrieval import kernel_ir, kernels
from retrieval.kernel_ir import LANES, Shape

COUNTS = [[1], [0], [3, 1, 7], [0, 5, 0, 2], [4, 8, 12], [512, 1, 180], []]
WIDTHS = [True, False]


def rows_of(rng: np.random.Generator, tokens: int, shape: Shape) -> np.ndarray:
    """Any codes, and scales that a row may have."""
    rows = rng.integers(0, 256, (tokens, shape.row), dtype=np.uint8)
    rows[:, shape.codes :] = rng.uniform(0, 2, (tokens, 1)).astype("<f4").view(np.uint8)
    return rows


def decoded(rows: np.ndarray, shape: Shape, offset: float) -> np.ndarray:
    parts = range(0, 8, shape.bits)
    codes = np.concatenate(
        [(rows[:, : shape.codes] >> s) & ((1 << shape.bits) - 1) for s in parts], axis=1
    )
    scale = np.ascontiguousarray(rows[:, shape.codes :]).view("<f4")
    return (codes - np.float64(offset)) * scale


def lanes_of(panels: kernels.Panels) -> np.ndarray:
    """The vectors as the loops see them."""
    codes = panels.codes.transpose(0, 2, 1, 3).reshape(panels.codes.shape[0] * LANES, -1)
    return codes * panels.weights.reshape(-1, 1).astype(np.float64)


@pytest.fixture(autouse=True)
def _processor() -> None:
    if register_width() != 64:
        pytest.skip("this processor lacks the instruction; numpy does the work instead")


@pytest.mark.parametrize("wide", WIDTHS)
@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("codes", [4, 20, 64])
def test_maxsim_is_that_of_the_rounded_vectors(codes: int, bits: int, wide: bool) -> None:
    shape = Shape(codes, bits, wide)
    loops = kernels.Kernels(shape)
    rng = np.random.default_rng(codes + bits)
    for counts in COUNTS:
        for asked in (1, 31, 32, 33, 70):
            bounds = np.cumsum([0, *counts])
            rows = rows_of(rng, bounds[-1], shape)
            offset = (1 << bits) / 2 - 0.5
            query = loops.panels(rng.standard_normal((asked, shape.dims)), offset)
            found = loops.maxsim(query, rows, bounds[:-1], bounds[1:])
            products = decoded(rows, shape, offset) @ lanes_of(query).T
            exact = [
                products[a:b].max(axis=0, initial=-np.inf).sum() if b > a else -np.inf
                for a, b in itertools.pairwise(bounds)
            ]
            # Sums of integers are exact below 2**24; what is left is the adding up of floats.
            np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-3 * shape.dims)


@pytest.mark.parametrize("wide", WIDTHS)
def test_passages_are_read_in_any_order_and_again(wide: bool) -> None:
    shape = Shape(16, 8, wide)
    loops = kernels.Kernels(shape)
    rng = np.random.default_rng(0)
    rows = rows_of(rng, 100, shape)
    starts, ends = np.array([90, 0, 40, 40]), np.array([100, 7, 41, 41])
    query = loops.panels(rng.standard_normal((5, 16)), 128)
    found = loops.maxsim(query, rows, starts, ends)
    alone = [loops.maxsim(query, rows[a:b], np.array([0]), np.array([b - a]))[0]
             for a, b in zip(starts, ends, strict=True)]  # fmt: skip
    assert found.tolist() == alone


@pytest.mark.parametrize("wide", WIDTHS)
@pytest.mark.parametrize("centroids", [1, 32, 33, 200])
@pytest.mark.parametrize("tokens", [0, 1, 5, 1000])
def test_nearest_is_the_first_of_the_best(centroids: int, tokens: int, wide: bool) -> None:
    shape = Shape(16, 8, wide)
    loops = kernels.Kernels(shape)
    rng = np.random.default_rng(centroids)
    rows = rows_of(rng, tokens, shape)
    panels = loops.panels(rng.standard_normal((centroids, 16)), 128)
    found = loops.nearest(panels, rows)
    products = decoded(rows, shape, 128) @ lanes_of(panels).T
    chosen = np.take_along_axis(products, found[:, None].astype(int), axis=1)[:, 0]
    np.testing.assert_allclose(chosen, products.max(axis=1, initial=-np.inf), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("wide", WIDTHS)
@pytest.mark.parametrize("tokens", [0, 1, 5, 300])
def test_the_table_holds_products_from_0_to_1_in_255ths(tokens: int, wide: bool) -> None:
    shape = Shape(16, 8, wide)
    loops = kernels.Kernels(shape)
    rng = np.random.default_rng(tokens)
    rows = rows_of(rng, tokens, shape)
    query = loops.panels(0.002 * rng.standard_normal((40, 16)), 128)
    products = decoded(rows, shape, 128) @ lanes_of(query).T
    exact = np.clip(255 * products, 0, 255)
    found = np.concatenate(list(loops.table(query, rows)), axis=1)
    assert np.abs(found - exact).max(initial=0) <= 0.51  # rounded to the nearest
    assert tokens < 5 or {0, 255} <= set(found.ravel().tolist())  # both ends were met


@pytest.mark.parametrize("wide", WIDTHS)
@pytest.mark.parametrize("tokens", [0, 1, 5, 300])
def test_products_are_those_with_the_first_lane(tokens: int, wide: bool) -> None:
    shape = Shape(16, 8, wide)
    loops = kernels.Kernels(shape)
    rng = np.random.default_rng(tokens)
    rows, one = rows_of(rng, tokens, shape), loops.panels(rng.standard_normal((1, 16)), 128)
    exact = decoded(rows, shape, 128) @ lanes_of(one)[0]
    np.testing.assert_allclose(loops.products(one, rows), exact, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("loop", ["maxsim", "nearest", "products_alone", "table"])
def test_the_narrow_loops_suit_a_processor_with_avx_vnni_alone(loop: str) -> None:
    """Not run here, but compiled for one: byte products in registers of 32 bytes, no wider ones."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_triple("x86_64-unknown-linux-gnu")
    machine = target.create_target_machine(cpu="alderlake", opt=3)
    module = llvm.parse_assembly(getattr(kernel_ir, loop)(Shape(128, 8, wide=False)))
    module.verify()
    assembly = machine.emit_assembly(module)
    assert "{vex}\tvpdpbusd\t%ymm" in assembly
    assert "zmm" not in assembly


def test_a_document_is_as_good_as_its_best_entry_in_each_lane() -> None:
    rng = np.random.default_rng(0)
    table = rng.integers(0, 256, (300, LANES), dtype=np.uint8)
    codes = rng.integers(0, 300, 5000).astype(np.uint16)
    starts = rng.integers(0, 4000, 50)
    ends = starts + rng.integers(1, 900, 50)
    found = kernels.interaction(table, codes, starts, ends)
    exact = kernels._interaction_in_numpy(table, codes, starts, ends)
    assert found.tolist() == exact.tolist()


def test_work_is_shared_without_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many threads there are, and wherever the work lies."""
    shape = Shape(16, 8)
    loops = kernels.Kernels(shape)
    rng = np.random.default_rng(0)
    counts = np.concatenate([np.zeros(30, int), [60_000], np.zeros(5, int), rng.integers(0, 9, 40)])
    bounds = np.cumsum([0, *counts])
    rows = rows_of(rng, bounds[-1], shape)
    query = loops.panels(rng.standard_normal((3, 16)), 128)
    once = loops.maxsim(query, rows, bounds[:-1], bounds[1:])
    for threads in (1, 2, 3, 64):
        monkeypatch.setattr(kernels, "usable_cores", lambda threads=threads: threads)
        assert loops.maxsim(query, rows, bounds[:-1], bounds[1:]).tolist() == once.tolist()


def test_rows_that_are_not_there_are_not_read() -> None:
    loops = kernels.Kernels(Shape(16, 8))
    query = loops.panels(np.ones((1, 16)), 128)
    with pytest.raises(ValueError):
        loops.maxsim(query, np.zeros((3, 20), np.uint8), np.array([0]), np.array([4]))
    with pytest.raises(ValueError):
        loops.maxsim(query, np.zeros((3, 19), np.uint8), np.array([0]), np.array([3]))
