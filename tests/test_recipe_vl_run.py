"""A run of the nano-vl recipe on a data folder made here: repeated, stopped, finished, shared."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))

from nano_vl_heldout import Item, scene_items
from nano_vl_scenes import Gallery, Scenes

from tests import vl_data
from tests.recipe_run import steps_told

pytestmark = pytest.mark.skipif(
    not vl_data.FONTS_ARE_HERE, reason="the fonts that nano-vl learns to read are not installed"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vl_data.folder(tmp_path_factory.mktemp("data"))


SMALL = [
    "--tower",
    "32",
    "--tower-layers",
    "1",
    "--hidden",
    "96",
    "--layers",
    "ca",
    "--report",
    "1",
]
SMALL += ["--warm-up", "2", "--device", "cpu", "--threads", "1"]


def trained(data: Path, out: Path, *more: str, stop_at: int | None = None) -> list[str]:
    """What the recipe prints at each step, without times. `stop_at`: interrupted there."""
    from nano_vl import parser, train

    args = parser().parse_args(["--data", str(data), "--out", str(out), *SMALL, *more])
    return [line.split(") ", 1)[1] for line in steps_told(train, args, stop_at)]


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    out = tmp_path_factory.mktemp("whole")
    return out, trained(data, out, "--steps", "5")


def test_the_same_seed_gives_the_same_losses(
    data: Path, run: tuple[Path, list[str]], tmp_path: Path
) -> None:
    again = trained(data, tmp_path, "--steps", "5")
    assert len(again) == 5 and ".token" in again[-1]
    assert again == run[1]


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(
    data: Path, run: tuple[Path, list[str]], tmp_path: Path
) -> None:
    trained(data, tmp_path, "--steps", "5", stop_at=2)
    trained(data, tmp_path, "--steps", "5")
    left, right = (load_file(f / "state.safetensors") for f in (run[0], tmp_path))
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name


def test_two_processes_take_the_step_of_both_their_pictures(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their momentum is that of one process that sees the pictures of both and halves gradients."""
    import nano_vl
    from together import Together

    both, one = tmp_path / "both", tmp_path / "one"
    trained(data, both, "--steps", "4", "--processes", "2")
    told = ["--data", str(data), "--out", str(one), *SMALL, "--steps", "4"]
    args = nano_vl.parser().parse_args(told)
    one.mkdir()
    nano_vl.prepare_tokenizer(args)
    (first, tokenizer), (second, _) = (nano_vl.prepare(args, rank) for rank in range(2))
    step = first.step
    monkeypatch.setattr(first, "step", lambda n: itertools.chain(step(n), second.step(n)))
    monkeypatch.setattr(nano_vl, "prepare", lambda *_: (first, tokenizer))

    class Halving(Together):
        def average(self, parameters: Iterable[torch.Tensor]) -> None:
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad /= 2

    nano_vl.trained(args, lambda _: None, Halving())
    left, right = (load_file(folder / "state.safetensors") for folder in (both, one))
    moved = [name for name in left if name.startswith("momentum/")]
    for name in moved:  # 4 steps, whose gradients are summed in another order, under bfloat16
        assert (left[name] - right[name]).norm() <= 0.02 * right[name].norm(), name
    assert len(moved) > 10


def test_a_finished_run_leaves_the_state_to_go_on_from(
    data: Path, run: tuple[Path, list[str]]
) -> None:
    before = (run[0] / "state.safetensors").read_bytes()
    trained(data, run[0], "--finish", "2")
    assert (run[0] / "state.safetensors").read_bytes() == before
    assert (run[0] / "checkpoint/model.safetensors").is_file()


def test_a_run_begins_with_a_finished_checkpoint(
    data: Path, run: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nano_vl
    from nano_vl_files import open_folder

    trained(data, run[0], "--finish", "2")
    monkeypatch.setattr(nano_vl, "HEADS", 2)
    begun = ("--begin", str(run[0] / "checkpoint"), "--horizon", "1", "--steps")
    trained(data, tmp_path, *begun, "3")  # where it begins: nothing is trained but heads
    vision, backbone, _ = open_folder(run[0] / "checkpoint")
    state = load_file(tmp_path / "state.safetensors")
    for part, module in (("vision", vision), ("backbone", backbone)):
        for name, tensor in module.state_dict().items():
            assert torch.equal(state[f"weight/{part}.{name}"], tensor), name
    assert len(trained(data, tmp_path, *begun, "5")) == 2


def test_a_run_refuses_the_folder_of_another(data: Path, run: tuple[Path, list[str]]) -> None:
    from lfm2_mm.errors import BadInput

    with pytest.raises(BadInput, match="other settings"):
        trained(data, run[0], "--steps", "5", "--seed", "1")


def test_transformers_answers_as_the_recipe_does(data: Path, run: tuple[Path, list[str]]) -> None:
    """Its own processor and model, on a checkpoint that the recipe wrote."""
    from nano_vl_files import open_folder
    from nano_vl_heldout import Reader

    trained(data, run[0], "--finish", "2")
    folder = run[0] / "checkpoint"
    items = scene_items(Scenes(Gallery(data)), "what", 4, seed=0)
    said = Reader(*open_folder(folder)).answers(items, length=8)
    assert said == [by_transformers(folder, item, 8) for item in items]


def by_transformers(folder: Path, item: Item, length: int) -> str:
    from transformers import AutoProcessor, Lfm2VlForConditionalGeneration

    processor = AutoProcessor.from_pretrained(folder)
    model = Lfm2VlForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    content = [{"type": "image"}, {"type": "text", "text": item.question}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    given = processor(images=Image.fromarray(item.shown.pixels), text=text, return_tensors="pt")
    out = model.generate(**given, max_new_tokens=length, do_sample=False)
    new = out[0, given.input_ids.shape[1] :]
    return str(processor.tokenizer.decode(new, skip_special_tokens=True))
