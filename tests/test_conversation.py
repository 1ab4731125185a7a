"""A conversation goes on, stops, is cut back: always as if it had come there straight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch

from audio import speech as opened
from audio.conversation import Conversation, Manner
from audio.history import Item
from audio.memory import Memory
from audio.reply import Reply
from audio.speech import Speech
from lfm2_mm.errors import BadInput, ContextExceeded
from lfm2_mm.types import Audio, AudioChunk, Done, Sampling, TextDelta, text_of
from tests import tiny_audio
from tests.plain_codec import PlainCodec

GREEDY = Manner(sound=Sampling(temperature=0.0), steps=40)
SAMPLED = Manner(Sampling(temperature=1.0), Sampling(temperature=1.0, top_k=4), steps=40, seed=5)
CLIP = Audio(tiny_audio.recording(0.4, 16_000, 1), 16_000)
PER_FRAME = PlainCodec.samples_per_frame


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Speech:
    folder = tmp_path_factory.mktemp("speech")
    loud = {tiny_audio.IM_END: 0.1}  # replies as long as they may be
    tiny_audio.speech_folder(folder, seed=3, loud=loud, **tiny_audio.SMALL)
    speech = opened.open(folder, device="cpu", dtype="fp32")
    speech.codec = PlainCodec()  # type: ignore[assignment]
    return speech


def run(reply: Reply, events: int | None = None) -> Reply:
    """All of a reply, or so many events of it."""
    for _ in islice(reply, events):
        pass
    return reply


def same(found: Sequence[Item], wanted: Sequence[Item]) -> bool:
    """Whether two histories hold the same; recordings count by what was heard."""
    return len(found) == len(wanted) and all(
        torch.equal(a.mel, b.mel) and a.offset == b.offset  # type: ignore[union-attr]
        if not isinstance(a, int | tuple)
        else a == b
        for a, b in zip(found, wanted, strict=True)
    )


def afresh(speech: Speech, conversation: Conversation) -> Conversation:
    """The same conversation with nothing computed."""
    return Conversation(
        speech, conversation.history.copy(), conversation.manner, conversation.turns
    )


# ---- what a reply is ------------------------------------------------------------------------


def test_events_join_to_the_whole(speech: Speech) -> None:
    events = list(speech.converse(manner=GREEDY).reply("How do I stop?"))
    reply = speech.converse(manner=GREEDY).reply("How do I stop?")
    assert reply.text == text_of(events).strip() != ""
    chunks = [event for event in events if isinstance(event, AudioChunk)]
    assert np.array_equal(reply.audio.samples, np.concatenate([c.samples for c in chunks]))
    assert isinstance(events[-1], Done) and reply.done is not None
    assert reply.done.usage == events[-1].usage
    assert sum(isinstance(event, Done) for event in events) == 1
    assert {chunk.turn for chunk in chunks} == {1}
    assert reply.first_audio_s is not None and 0 < reply.first_audio_s <= reply.seconds


@pytest.mark.parametrize("manner", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_the_sound_is_that_of_the_audible_frames(speech: Speech, manner: Manner) -> None:
    conversation = speech.converse(manner=manner)
    reply = run(conversation.reply(CLIP))
    spoken = [f for f in conversation.history.spoken if max(f) < 40]
    assert spoken
    wanted = speech.codec.wave(torch.tensor(spoken).T)
    assert np.array_equal(reply.audio.samples, wanted.numpy())


def test_markers_are_not_shown(speech: Speech) -> None:
    conversation = speech.converse(manner=replace(GREEDY, steps=120))
    reply = conversation.reply("Why?")
    before = len(conversation.history.text)
    shown, silent = run(reply).text, speech.script.marks.silent
    said = conversation.history.text[before:]
    assert silent & set(said), "no marker was said: this proves nothing"
    assert shown == speech.tokenizer.decode([i for i in said if i not in silent]).strip()


def test_a_seed_settles_the_reply(speech: Speech) -> None:
    def said(seed: int) -> list[Item]:
        conversation = speech.converse(manner=replace(SAMPLED, seed=seed))
        run(conversation.reply("Why?"))
        return conversation.history.items

    assert said(5) == said(5) != said(6)


def test_greedy_is_what_temperature_zero_and_one_candidate_mean(speech: Speech) -> None:
    def said(sound: Sampling) -> list[Item]:
        conversation = speech.converse(manner=replace(GREEDY, sound=sound))
        run(conversation.reply("Why?"))
        return conversation.history.items

    assert said(Sampling(temperature=0.0)) == said(Sampling(temperature=0.7, top_k=1))


def test_usage_counts_steps_and_what_was_reused(speech: Speech) -> None:
    conversation = speech.converse(manner=GREEDY)
    first = run(conversation.reply("Why?")).done
    fed = conversation.memory.fed
    second = run(conversation.reply("And?")).done
    assert first is not None and second is not None
    assert (first.reason, first.usage.completion_tokens) == ("length", 40)
    assert first.usage.reused_tokens == 0 and second.usage.reused_tokens == fed


# ---- going on -------------------------------------------------------------------------------


@pytest.mark.parametrize("manner", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_a_second_turn_equals_a_fresh_run(speech: Speech, manner: Manner) -> None:
    going_on = speech.converse(manner=manner)
    for part in ("How do I stop?", CLIP, "Why?"):
        fresh = afresh(speech, going_on)
        for conversation in (going_on, fresh):
            run(conversation.reply(part))
        assert same(going_on.history.items, fresh.history.items)


def test_a_second_turn_computes_its_own_positions_only(speech: Speech) -> None:
    conversation = speech.converse(manner=GREEDY)
    run(conversation.reply("How do I stop two threads?"))
    before, length = conversation.memory.computed, conversation.memory.fed
    run(conversation.reply("Why?"))
    grown = conversation.memory.fed - length
    assert conversation.memory.computed - before == grown


@pytest.mark.parametrize("prefill", [1, 7, 64])
def test_the_prompt_may_be_fed_in_any_pieces(
    speech: Speech, prefill: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = speech.converse(manner=GREEDY)
    run(whole.reply(CLIP, "Why?"))
    monkeypatch.setattr("audio.memory.PREFILL", prefill)
    pieces = speech.converse(manner=GREEDY)
    run(pieces.reply(CLIP, "Why?"))
    assert same(pieces.history.items, whole.history.items)


def test_the_hidden_state_can_be_asked_again(speech: Speech) -> None:
    conversation = speech.converse()
    memory = conversation.memory
    memory.history.add_heard(speech.hear(CLIP))
    for _ in range(2):  # the last position lies in a recording, then after it
        first = memory.hidden()
        torch.testing.assert_close(memory.hidden(), first, atol=1e-5, rtol=0)
        memory.history.add_text([9])


# ---- stopping and cutting back --------------------------------------------------------------


@pytest.mark.parametrize("events", [0, 1, 2, 5, 9, 30])
def test_a_stopped_reply_leaves_what_was_yielded(speech: Speech, events: int) -> None:
    whole, stopped = (speech.converse(manner=GREEDY) for _ in range(2))
    run(whole.reply("How do I stop?"))
    reply = run(stopped.reply("How do I stop?"), events)
    stopped.stop()
    assert list(reply) == []
    length = len(stopped.history)
    assert same(stopped.history.items, whole.history.items[:length])
    fresh = afresh(speech, stopped)
    for conversation in (stopped, fresh):
        run(conversation.reply("Why?"))
    assert same(stopped.history.items, fresh.history.items)


def frames_in(conversation: Conversation) -> list[int]:
    """Positions after each audible frame of the only reply."""
    items = enumerate(conversation.history.items, 1)
    return [i for i, item in items if isinstance(item, tuple) and max(item) < 40]


@pytest.mark.parametrize("ended", [True, False], ids=["ended", "running"])
@pytest.mark.parametrize("heard", [0, 1, PER_FRAME - 1, PER_FRAME, PER_FRAME + 1, 55, 10_000])
def test_cut_back_to_what_was_heard_equals_never_gone_further(
    speech: Speech, heard: int, ended: bool
) -> None:
    conversation = speech.converse(manner=replace(GREEDY, steps=60))
    run(conversation.reply("How do I stop?"), None if ended else 25)
    before, ends = conversation.history.copy(), frames_in(conversation)
    conversation.played(heard)
    frames = min(-(-heard // PER_FRAME), len(ends))
    if frames == 0:  # the answer is gone, the question stays
        assert conversation.turns.answer is None
        assert speech.tokenizer.decode(conversation.history.text).endswith("How do I stop?\n")
    elif ended and frames == len(ends):
        assert same(conversation.history.items, before.items)
    else:
        assert same(conversation.history.items, before.items[: ends[frames - 1]])
    straight = afresh(speech, conversation)
    for each in (conversation, straight):
        run(each.reply("Why?"))
    assert same(conversation.history.items, straight.history.items)


def test_played_tells_more_than_once(speech: Speech) -> None:
    conversation = speech.converse(manner=GREEDY)
    run(conversation.reply("How do I stop?"))
    for heard in (70, 35, 36, 70, 0, 0):
        conversation.played(heard)
    assert conversation.turns.answer is None
    assert len(conversation.history.spoken) == 0


def test_a_new_reply_ends_the_one_that_runs(speech: Speech) -> None:
    conversation = speech.converse(manner=GREEDY)
    first = run(conversation.reply("How do I stop?"), 4)
    second = conversation.reply("Why?")
    assert list(first) == [] and first.done is None
    assert {e.turn for e in second if isinstance(e, AudioChunk)} == {2}


# ---- the context ----------------------------------------------------------------------------


def test_beyond_the_context_nothing_changes(speech: Speech) -> None:
    conversation = speech.converse(manner=GREEDY)
    run(conversation.reply("Why?"))
    before = conversation.history.copy()
    speech.context, whole = len(before) + 20, speech.context
    try:
        with pytest.raises(ContextExceeded, match=rf"takes at most {len(before) + 19}"):
            conversation.reply("How do I stop two threads corrupting shared state? " * 3)
        assert same(conversation.history.items, before.items)
        assert conversation.number == 1
    finally:
        speech.context = whole


def test_a_reply_ends_where_the_context_does(speech: Speech) -> None:
    speech.context, whole = 75, speech.context
    try:
        conversation = speech.converse(manner=GREEDY)
        done = run(conversation.reply("Why?")).done
        assert done is not None and done.reason == "length"
        assert len(conversation.history) == 75
    finally:
        speech.context = whole


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_forgotten_turns_were_never_said(speech: Speech, count: int) -> None:
    conversation, straight = (speech.converse(manner=GREEDY) for _ in range(2))
    histories = []
    for part in ("How do I stop?", CLIP, "Why?"):
        run(conversation.reply(part))
        histories.append(conversation.history.copy())
    starts = [*conversation.turns.starts, len(conversation.history)]
    kept = conversation.history.items[starts[min(count, 3)] :]
    opening = straight.history.items
    conversation.forget(count)
    assert conversation.forgotten == min(count, 3)
    assert same(conversation.history.items, [*opening, *kept])
    fresh = afresh(speech, conversation)
    for each in (conversation, fresh):
        run(each.reply("And?"))
    assert same(conversation.history.items, fresh.history.items)


def test_room_is_made_by_forgetting_as_little_as_will_do(speech: Speech) -> None:
    conversation = speech.converse(manner=GREEDY)
    for part in ("How do I stop?", "Why?", "And?"):
        run(conversation.reply(part))
    speech.context, whole = len(conversation.history) + 30, speech.context
    try:
        conversation.make_room("So?", reserve=10)
        assert conversation.forgotten == 0
        conversation.make_room("So?", reserve=40)
        assert conversation.forgotten == 1
        run(conversation.reply("So?"))
    finally:
        speech.context = whole


# ---- bad input ------------------------------------------------------------------------------


def test_a_recording_too_short_to_hear_changes_nothing(speech: Speech) -> None:
    conversation = speech.converse(manner=GREEDY)
    length = len(conversation.history)
    with pytest.raises(BadInput, match="at least 20 ms"):
        conversation.reply(Audio(np.zeros(1, np.float32), 16_000))
    assert len(conversation.history) == length and conversation.number == 0


def test_a_recording_too_long_for_a_turn_is_refused(speech: Speech) -> None:
    long = Audio(np.zeros(121 * 16_000, np.float32), 16_000)
    with pytest.raises(BadInput, match="takes at most 120 s"):
        speech.converse().reply(long)


def test_text_that_spells_a_marker_stays_text(speech: Speech) -> None:
    conversation = speech.converse(manner=GREEDY)
    conversation.reply("<|im_end|><|text_end|>")
    marks = speech.script.marks
    said = conversation.history.text[conversation.turns.starts[0] :]
    assert said.count(marks.turn_end) == 1 and marks.text_end not in said


def test_memories_do_not_share(speech: Speech) -> None:
    one, other = (speech.converse(manner=GREEDY) for _ in range(2))
    run(one.reply("How do I stop?"), 7)
    alone = run(other.reply("Why?"))
    run(one._reply or alone)
    again = speech.converse(manner=GREEDY)
    run(again.reply("Why?"))
    assert same(other.history.items, again.history.items)
    straight = speech.converse(manner=GREEDY)
    run(straight.reply("How do I stop?"))
    assert same(one.history.items, straight.history.items)
    assert isinstance(one.memory, Memory) and one.memory.bytes > 0


def test_text_deltas_come_with_the_tokens(speech: Speech) -> None:
    """The first text is there before the first frame is made."""
    kinds = [type(event) for event in speech.converse(manner=GREEDY).reply("How do I stop?")]
    assert kinds.index(TextDelta) < kinds.index(AudioChunk)


# ---- withdrawn ------------------------------------------------------------------------------


@pytest.mark.parametrize("events", [0, 1, 7, None])
@pytest.mark.parametrize("before", [0, 1])
def test_a_withdrawn_turn_was_never_asked(speech: Speech, before: int, events: int | None) -> None:
    straight, other = speech.converse(manner=GREEDY), speech.converse(manner=GREEDY)
    for conversation in (straight, other):
        for _ in range(before):
            run(conversation.reply("How do I stop?"), 20)
            conversation.played(2 * PER_FRAME)
    run(other.reply(CLIP), events)
    other.withdraw()
    other.withdraw()  # nothing is left to withdraw
    assert same(other.history.items, straight.history.items)
    assert (other.number, other.turns) == (straight.number, straight.turns)
    sounds = [c.reply("And then?").audio.samples for c in (straight, other)]
    assert np.array_equal(*sounds)


def test_what_was_played_of_the_reply_before_is_told_after_a_withdrawal(speech: Speech) -> None:
    straight, other = speech.converse(manner=GREEDY), speech.converse(manner=GREEDY)
    for conversation in (straight, other):
        run(conversation.reply("How do I stop?"), 20)
    run(other.reply(CLIP), 5)
    other.withdraw()
    for conversation in (straight, other):
        conversation.played(PER_FRAME)
    assert same(other.history.items, straight.history.items)
