"""Conversations with pictures: equal to transformers, reused, counted, stopped, bounded."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pil
from torch import Tensor

import vision
from lfm2_mm.engines.native import lay
from lfm2_mm.errors import BadInput, BadPicture, CheckpointDamaged, ContextExceeded, OverBudget
from lfm2_mm.types import Done, Image, Message, Progress, Sampling, Text, text_of
from tests import tiny, tiny_vision
from tests.conftest import SCRATCH
from tests.tiny_vision import GENERATIONS, IMAGE, Generation
from vision import Chat, TokenBudget
from vision.crops import cut, normalised

GREEDY = Sampling(temperature=0.0, max_tokens=12)
CLOSE: dict[str, float] = {"rtol": 2e-4, "atol": 2e-4}  # float32, summed in another order

# height, width: one crop, enlarged, at a border of rounding, tiles in a row, a column, a grid
SIZES = {
    "one": [(70, 90)],
    "tiny": [(1, 1)],
    "tall": [(200, 30)],
    "row": [(60, 400)],
    "column": [(410, 77)],
    "grid": [(150, 260)],
    "two": [(70, 90), (150, 260)],
    "three": [(33, 33), (400, 60), (63, 129)],
}


def pixels(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A noisy slope, so that neither blur nor a swap of sides goes unseen."""
    noise = np.random.default_rng(seed).integers(0, 90, (height, width, 3))
    slope = np.arange(height)[:, None, None] * 165 // height
    return (noise + slope).astype(np.uint8)


def pictures(sizes: Sequence[tuple[int, int]]) -> list[Image]:
    return [Image.open(pixels(*size, seed=i)) for i, size in enumerate(sizes)]


def conversation(sizes: Sequence[tuple[int, int]]) -> list[Message]:
    """Pictures before, between and after words, and in a later turn."""
    shown = pictures(sizes)
    first = Message.user("See", *(p for one in shown[:2] for p in (one, "this.")), "What is it?")
    later = [Message.assistant("A thing."), Message.user(*shown[2:], "And now?")]
    return [Message.system("Be brief."), first, *(later if shown[2:] else [])]


@cache
def made(generation: Generation) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="vl-", dir=SCRATCH))
    return tiny_vision.vl_folder(folder / generation, generation)


@cache
def opened(generation: Generation = "lfm2.5") -> Chat:
    return vision.open(made(generation), preset="reference", device="cpu", dtype="fp32")


def fresh(generation: Generation = "lfm2.5", budget: TokenBudget | int | None = None) -> Chat:
    """An engine that has seen nothing, and whose encoder remembers nothing."""
    chat = opened(generation)
    chat.pictures.encoder.cache = type(chat.pictures.encoder.cache)(1 << 28)
    return chat.at(budget or chat.budget)


def computed(chat: Chat) -> int:
    return chat.pictures.encoder.computed


def ended(events: Sequence[Any]) -> Done:
    assert isinstance(events[-1], Done)
    return events[-1]


# -- equal to transformers ----------------------------------------------------------------------


class Reference:
    """transformers' processor and model of a checkpoint."""

    def __init__(self, generation: Generation) -> None:
        from transformers import Lfm2VlForConditionalGeneration

        # The first snapshot's configuration needs its remote code; the weights are the same.
        native: Generation = "lfm2" if generation == "early" else generation
        self.processor = tiny_vision.processor(made(generation))
        self.model = Lfm2VlForConditionalGeneration.from_pretrained(
            made(native), dtype=torch.float32
        ).eval()

    def inputs(self, *conversations: Sequence[Message]) -> dict[str, Tensor]:
        """What the processor makes of conversations, the shorter ones padded to the left."""
        texts, images = [], []
        for messages in conversations:
            turns = [{"role": m.role, "content": self._content(m)} for m in messages]
            texts.append(self.processor.apply_chat_template(turns, add_generation_prompt=True))
            shown = [p for m in messages for p in m.parts if isinstance(p, Image)]
            images.append([Pil.fromarray(p.decode()) for p in shown])
        self.processor.tokenizer.padding_side = "left"
        return dict(self.processor(text=texts, images=images, return_tensors="pt", padding=True))

    def _content(self, message: Message) -> Any:
        return [
            {"type": "text", "text": p.text} if isinstance(p, Text) else {"type": "image"}
            for p in message.parts
        ]

    @torch.no_grad()
    def logits(self, inputs: dict[str, Tensor]) -> Tensor:
        return self.model(**inputs, use_cache=False).logits

    @torch.no_grad()
    def features(self, inputs: dict[str, Tensor]) -> Tensor:
        made = self.model.model.get_image_features(
            inputs["pixel_values"], inputs["spatial_shapes"], inputs["pixel_attention_mask"]
        )
        return torch.cat(list(made.pooler_output))

    def reply(self, inputs: dict[str, Tensor]) -> str:
        ids = self.model.generate(**inputs, max_new_tokens=12, do_sample=False)
        new = ids[0, inputs["input_ids"].shape[1] :]
        return self.processor.tokenizer.decode(
            new, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )


@cache
def reference(generation: Generation) -> Reference:
    return Reference(generation)


@torch.inference_mode()
def logits(chat: Chat, messages: Sequence[Message]) -> Tensor:
    """(prompt, vocabulary) of one pass over the whole prompt."""
    prompt = chat.prompt(messages)
    embeds = chat._embed(prompt.ids)
    for place in prompt.places:
        lay(torch.cat(list(chat.pictures.encode(place.part, place.slot))), place, embeds[0], 0)
    hidden, _ = chat._backbone.step(embeds)
    return chat._backbone.logits(hidden[0])


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("shown", SIZES)
def test_every_stage_equals_transformers(generation: Generation, shown: str) -> None:
    chat, reference_ = fresh(generation), reference(generation)
    messages = conversation(SIZES[shown])
    inputs = reference_.inputs(messages)
    prompt = chat.prompt(messages)
    assert list(prompt.ids) == inputs["input_ids"][0].tolist()
    crops = [
        normalised(crop, place.slot.plan.rule)
        for place in prompt.places
        for crop in cut(place.part, place.slot.plan)
    ]
    for crop, row, mask in zip(
        crops, inputs["pixel_values"], inputs["pixel_attention_mask"], strict=True
    ):
        assert torch.equal(crop, row[mask.bool()])
    features = [chat.pictures.encoder.encode(p.part, p.slot.plan) for p in prompt.places]
    torch.testing.assert_close(torch.cat(features), reference_.features(inputs), **CLOSE)
    torch.testing.assert_close(logits(chat, messages), reference_.logits(inputs)[0], **CLOSE)
    assert text_of(chat.stream(messages, GREEDY)) == reference_.reply(inputs)


def test_alone_equals_transformers_rows_of_a_batch() -> None:
    chat, reference_ = fresh(), reference("lfm2.5")
    conversations = [conversation(SIZES[name]) for name in ("tiny", "two", "grid")]
    batch = reference_.logits(reference_.inputs(*conversations))
    for row, messages in zip(batch, conversations, strict=True):
        alone = logits(chat, messages)
        torch.testing.assert_close(alone, row[-len(alone) :], **CLOSE)


def test_settings_of_the_published_checkpoints(tmp_path: Path) -> None:
    """Tiles of 256 tokens, 64 to 256 tokens a crop: the ids are the processor's."""
    folder = tiny_vision.vl_folder(tmp_path, image=tiny_vision.PUBLISHED)
    chat = vision.open(folder, preset="reference", dtype="fp32")
    messages = [Message.user(Image.open(pixels(1080, 1920)), "What?")]
    assert chat.context == 1024  # of the tiny backbone
    with pytest.raises(ContextExceeded, match="2300 of them for pictures"):
        chat.prompt(messages)
    chat.context = 4096
    processor = tiny_vision.processor(folder)
    text = processor.apply_chat_template(
        [
            {
                "role": "user",
                "content": [{"type": "image"}, {"type": "text", "text": "What?"}],
            }
        ],
        add_generation_prompt=True,
    )
    want = processor(text=[text], images=[[pixels(1080, 1920)]])["input_ids"][0]
    assert list(chat.prompt(messages).ids) == want


# -- several turns ------------------------------------------------------------------------------


@pytest.mark.parametrize("shown", ["one", "grid", "three"])
def test_a_second_turn_equals_a_fresh_run_and_computes_no_vision(shown: str) -> None:
    chat, messages = fresh(), conversation(SIZES[shown])
    answer = text_of(chat.stream(messages, GREEDY))
    before = computed(chat)
    longer = [*messages, Message.assistant(answer), Message.user("Sure?")]
    again = list(chat.stream(longer, GREEDY))
    assert computed(chat) == before
    anew = list(fresh().stream(longer, GREEDY))
    assert text_of(again) == text_of(anew)
    assert ended(again).usage.reused_tokens > ended(again).usage.image_tokens
    assert ended(anew).usage.reused_tokens == 0
    assert ended(anew).timings.vision_s > 0 == ended(again).timings.vision_s


def test_a_picture_in_a_later_turn_is_the_only_one_computed() -> None:
    chat, messages = fresh(), conversation(SIZES["one"])
    answer = text_of(chat.stream(messages, GREEDY))
    before = computed(chat)
    new = Image.open(pixels(80, 60, seed=9))
    longer = [*messages, Message.assistant(answer), Message.user("Or", new, "?")]
    again = list(chat.stream(longer, GREEDY))
    assert computed(chat) == before + 1
    assert text_of(again) == text_of(fresh().stream(longer, GREEDY))


def test_another_picture_of_the_same_size_changes_the_answer_as_a_fresh_run() -> None:
    chat = fresh()
    first, other = ([Message.user(Image.open(pixels(150, 260, seed=s)), "?")] for s in (1, 2))
    assert chat.prompt(first).ids == chat.prompt(other).ids
    list(chat.stream(first, GREEDY))
    replayed = list(chat.stream(other, GREEDY))
    assert text_of(replayed) == text_of(fresh().stream(other, GREEDY))
    assert ended(replayed).usage.reused_tokens < chat.prompt(other).places[0].end


def test_a_known_picture_in_a_new_conversation_computes_no_vision() -> None:
    chat = fresh()
    shown = Image.open(pixels(150, 260))
    list(chat.stream([Message.user(shown, "What?")], GREEDY))
    before = computed(chat)
    same = Image.open(pixels(150, 260))  # another object, equal content
    messages = [Message.system("New."), Message.user("Well:", same)]
    assert text_of(chat.stream(messages, GREEDY)) == text_of(chat.stream(messages, GREEDY))
    assert computed(chat) == before


def test_the_same_picture_twice_is_computed_once() -> None:
    chat = fresh()
    before = computed(chat)
    shown = Image.open(pixels(70, 90))
    done = ended(list(chat.stream([Message.user(shown, "and", shown, "differ?")], GREEDY)))
    assert computed(chat) == before + 1
    assert done.usage.image_tokens == 2 * chat.plans([Message.user(shown)])[0].tokens


# -- what it may cost ---------------------------------------------------------------------------


def test_budgets_share_weights_and_have_conversations_of_their_own() -> None:
    chat = fresh()
    messages = [Message.user(Image.open(pixels(150, 260)), "?")]
    small = chat.at(4)
    (plan,), (cheap,) = chat.plans(messages), small.plans(messages)
    assert cheap.tokens <= 4 < plan.tokens
    answers = [text_of(c.stream(messages, GREEDY)) for c in (chat, small, chat, small)]
    assert answers[:2] == answers[2:]
    assert small.pictures.encoder is chat.pictures.encoder
    assert ended(list(small.stream(messages, GREEDY))).usage.image_tokens == cheap.tokens


def test_a_shared_budget_holds_for_all_pictures_of_a_conversation() -> None:
    chat = fresh(budget=TokenBudget(20, shared=True))
    messages = conversation([(150, 260), (260, 150), (70, 90)])
    plans = chat.plans(messages)
    assert len(plans) == 3 and sum(plan.tokens for plan in plans) <= 20
    done = ended(list(chat.stream(messages, GREEDY)))
    assert done.usage.image_tokens == sum(plan.tokens for plan in plans)


def test_what_is_too_dear_or_too_long_is_told_before_anything_is_computed() -> None:
    chat = fresh(budget=TokenBudget(2, shared=True))
    before = computed(chat)
    with pytest.raises(OverBudget, match="the smallest for them is 9"):
        chat.stream(conversation([(150, 260)] * 3), GREEDY)
    chat = fresh()
    chat.context = 40
    with pytest.raises(ContextExceeded, match=r"tokens long, \d+ of them for pictures"):
        chat.stream(conversation(SIZES["grid"]), GREEDY)
    assert computed(chat) == before


@pytest.mark.parametrize("budget", [0, -5])
def test_budgets_below_one_are_refused(budget: int) -> None:
    with pytest.raises(BadInput, match="from 1 up"):
        opened().at(budget)


def test_presets_and_budgets_are_asked_one_at_a_time() -> None:
    with pytest.raises(BadInput, match="give one"):
        vision.open(made("lfm2"), budget=64, preset="fast")
    with pytest.raises(BadInput, match="reference, fast, balanced, quality"):
        vision.open(made("lfm2"), preset="best")
    assert vision.open(made("lfm2"), dtype="fp32").budget == vision.PRESETS["balanced"]


# -- stopping, and what is not to be trusted ----------------------------------------------------


def test_a_stop_between_crops_computes_no_further_crop() -> None:
    chat = fresh()
    messages = conversation(SIZES["three"])
    crops = sum(len(plan.crops) for plan in chat.plans(messages))
    before = computed(chat)
    stream = chat.stream(messages, GREEDY)
    assert isinstance(next(stream), Progress) and computed(chat) == before
    assert isinstance(next(stream), Progress)
    after_one = computed(chat)
    assert before < after_one < before + crops
    stream.close()  # type: ignore[attr-defined]
    assert computed(chat) == after_one
    assert text_of(chat.stream(messages, GREEDY)) == text_of(fresh().stream(messages, GREEDY))


@pytest.mark.parametrize("text", [IMAGE, "<|im_end|>", "<|image_start|>", "<|img_row_1_col_1|>"])
def test_text_that_spells_special_tokens_is_text(text: str) -> None:
    chat = fresh()
    shown = Image.open(pixels(70, 90))
    plain, spelled = (chat.prompt([Message.user(shown, said)]) for said in ("?", f"?{text}"))
    token = chat._tokenizer.id_of(text)
    assert spelled.ids.count(token) == plain.ids.count(token)
    assert len(spelled.places) == 1 and len(spelled) > len(plain) + 3


def test_a_damaged_picture_is_one_error_and_the_engine_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "cut.jpg"
    Pil.fromarray(pixels(300, 200)).save(path)
    path.write_bytes(path.read_bytes()[:-2000])
    chat = fresh()
    with pytest.raises(BadPicture, match=r"cut\.jpg"):
        list(chat.stream([Message.user(Image.open(path), "?")], GREEDY))
    messages = conversation(SIZES["one"])
    assert text_of(chat.stream(messages, GREEDY)) == text_of(fresh().stream(messages, GREEDY))


def test_it_accepts_text_and_pictures_and_text_alone() -> None:
    chat = fresh()
    assert chat.accepts == {Text, Image}
    done = ended(list(chat.stream([Message.user("hello")], GREEDY)))
    assert done.usage.image_tokens == 0


# -- opening ------------------------------------------------------------------------------------


def test_other_checkpoints_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="nano-colbert is a colbert checkpoint"):
        vision.open("nano-colbert", offline=True)
    with pytest.raises(CheckpointDamaged, match="vision"):
        vision.open(tiny.lfm2_folder(tmp_path / "text"))


def test_ids_that_do_not_agree_are_told(tmp_path: Path) -> None:
    folder = tiny_vision.vl_folder(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"image_token_id": 7}))
    with pytest.raises(CheckpointDamaged, match="image tokens are 7, the tokenizer says"):
        vision.open(folder, dtype="fp32")


def test_int8_runs_and_stays_near(tmp_path: Path) -> None:
    folder = made("lfm2.5")
    chat = vision.open(folder, preset="reference", dtype="int8")
    messages = conversation(SIZES["two"])
    exact = logits(fresh(), messages)
    off = (logits(chat, messages) - exact).norm() / exact.norm()
    assert off < 0.15  # a random network magnifies what rounding changes
    assert ended(list(chat.stream(messages, GREEDY))).usage.completion_tokens > 0
