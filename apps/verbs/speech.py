"""The verbs `transcribe`, `speak` and `talk`."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import replace
from os.path import realpath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps import wiring
from apps.screen import Screen, piped, plain
from audio.conversation import CONVERSING, SPEAKING, TRANSCRIBING, Conversation, Manner
from audio.lexicon import named
from audio.reply import Reply
from lfm2_mm.errors import BadInput, LfmError
from lfm2_mm.sounds import SUFFIXES
from lfm2_mm.types import Audio, TextDelta

if TYPE_CHECKING:
    from audio.speech import Speech


def transcribe(args: Namespace, screen: Screen) -> int:
    """Write down what is said in recordings."""
    speech = wiring.open_speech(args)
    manner = manner_of(args, TRANSCRIBING, text=True)
    several = len(args.recordings) > 1
    records = []
    for path in args.recordings:
        try:
            records.append(_transcript(speech, path, manner, args, screen, shown=not several))
        except LfmError as error:
            if not several:
                raise
            records.append({"path": path, "error": str(error)})
    lines = (f"{plain(r['path'])}: {r.get('text', r.get('error'))}" for r in records)
    screen.result(records if several else records[0], lines if several else [""])
    return int(all("error" in record for record in records))


def _transcript(
    speech: Speech, path: str, manner: Manner, args: Namespace, screen: Screen, *, shown: bool
) -> dict[str, Any]:
    with speech.transcribe(path, system=args.system, manner=manner) as reply:
        _show(reply, screen if shown else None)
        return {
            "path": path,
            "text": reply.text,
            "duration_s": reply.heard_s,
            "real_time_factor": reply.seconds / reply.heard_s,
            "finish_reason": reply.done.reason if reply.done else None,
        }


def speak(args: Namespace, screen: Screen) -> None:
    """Read a text aloud into a file."""
    text: str = (piped() if args.text is None else args.text) or ""
    if not text.strip():
        args.wrong_usage("there is nothing to speak: give a text, or pipe one in")
    check_output(args.output, args)
    speech = wiring.open_speech(args)
    speech.prepare()
    manner = manner_of(args, SPEAKING)
    given = {"voice": args.voice, "system": args.system, "strict": args.strict}
    with speech.speak(text, **given, manner=manner) as reply:
        if reply.spelled:
            screen.say(f"spelled, for want of these words: {plain(named(reply.spelled))}")
        record = {**_sound_record(reply, Path(args.output)), "spelled": list(reply.spelled)}
    _say_if_cut(reply, screen)
    screen.result(record, [_sound_line(record)])


def talk(args: Namespace, screen: Screen) -> int:
    """Answer spoken questions, each file a conversation of its own or the next turn of one."""
    several = len(args.recordings) > 1
    if several and args.history:
        args.wrong_usage("--history carries one conversation on: give one recording at a time")
    if args.history and not Path(args.history).absolute().parent.is_dir():
        raise BadInput(f"the folder of --history {args.history} does not exist; make it first")
    targets = _targets(args, several)
    speech = wiring.open_speech(args)
    speech.prepare()
    manner = manner_of(args, CONVERSING)
    records = []
    for path, target in zip(args.recordings, targets, strict=True):
        try:
            records.append(_turn(speech, path, target, manner, args, screen, several=several))
        except LfmError as error:
            if not several:
                raise
            records.append({"recording": path, "error": str(error)})
    screen.result(records if several else records[0], _talk_lines(records, several))
    return int(all("error" in record for record in records))


def _turn(
    speech: Speech,
    path: str,
    target: Path,
    manner: Manner,
    args: Namespace,
    screen: Screen,
    *,
    several: bool,
) -> dict[str, Any]:
    question = Audio.open(path)
    conversation = _conversation(speech, manner, args)
    conversation.make_room(speech.hear(question))
    if conversation.forgotten:
        screen.say(f"oldest turns forgotten, to make room: {conversation.forgotten}")
    with conversation.reply(question) as reply:
        _show(reply, None if several else screen)
        record = {"recording": path, "text": reply.text, **_sound_record(reply, target)}
    _say_if_cut(reply, screen)
    if args.history:
        conversation.save(args.history)
    return {**record, "turn": conversation.number}


def _conversation(speech: Speech, manner: Manner, args: Namespace) -> Conversation:
    """A new one, or the one in --history."""
    if not args.history or not Path(args.history).exists():
        return speech.converse(args.system, manner=manner)
    if args.system:
        args.wrong_usage("--system is for a new conversation; the one in --history has its own")
    return speech.resume(args.history, manner=manner)


def manner_of(args: Namespace, advice: Manner, *, text: bool = False) -> Manner:
    """The published manner with the given flags in place. `--temperature`, `--top-k` and `--min-p`
    are those of the sound, or of the text where none is made."""
    given = {
        name: getattr(args, name)
        for name in ("temperature", "top_k", "top_p", "min_p")
        if getattr(args, name) is not None
    }
    kind = "text" if text else "sound"
    sampling = replace(getattr(advice, kind), **given)
    manner = replace(advice, **{kind: sampling}, seed=args.seed)
    if args.repetition_penalty is not None:
        penalised = replace(manner.text, repetition_penalty=args.repetition_penalty)
        manner = replace(manner, text=penalised)
    return manner if args.max_tokens is None else replace(manner, steps=args.max_tokens)


def check_output(name: str, args: Namespace) -> None:
    """Refuse a file that could not be written, before any work is done."""
    path = Path(name)
    if path.suffix.lower() not in SUFFIXES:
        args.wrong_usage(f"-o {name}: the name must end in {', '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise BadInput(f"the folder of {name} does not exist; make it first, or name another")
    if path.is_dir():
        raise BadInput(f"{name} is a folder; name a file in it")
    require_writable(path.parent)


def require_writable(folder: Path) -> None:
    """Raise BadInput for a folder that takes no new file."""
    if not os.access(folder, os.W_OK | os.X_OK):
        raise BadInput(f"no file can be written into {folder}: name another folder")


def _targets(args: Namespace, several: bool) -> list[Path]:
    """Where each answer goes: the file -o, or a file for each recording in the folder -o."""
    folder = Path(args.output)
    if not several and not folder.is_dir():
        check_output(args.output, args)
        if folder.exists() and realpath(args.recordings[0]) == realpath(folder):
            raise BadInput(f"{args.output} is the recording itself; give the answer another name")
        return [folder]
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"{args.output} is a file; several answers need a folder")
    folder.mkdir(parents=True, exist_ok=True)
    require_writable(folder)
    return list(_names(folder, args.recordings))


def _names(folder: Path, recordings: Sequence[str]) -> Iterator[Path]:
    """stem.wav, stem-2.wav, … where recordings are called alike, or are there themselves."""
    taken = {realpath(recording) for recording in recordings}
    for recording in recordings:
        stem, number = Path(recording).stem, 1
        path = folder / f"{stem}.wav"
        while realpath(path) in taken:
            number += 1
            path = folder / f"{stem}-{number}.wav"
        taken.add(realpath(path))
        yield path


def _show(reply: Reply, screen: Screen | None) -> None:
    """Run a reply; its text appears as it comes, unless one document is wanted."""
    for event in reply:
        if screen and not screen.as_json and isinstance(event, TextDelta):
            screen.write(event.text)


def _sound_record(reply: Reply, target: Path) -> dict[str, Any]:
    sound = reply.audio
    seconds = sound.seconds
    return {
        "path": str(sound.save(target)) if seconds else None,
        "duration_s": seconds,
        "first_audio_s": reply.first_audio_s,
        "real_time_factor": reply.seconds / seconds if seconds else None,
    }


def _say_if_cut(reply: Reply, screen: Screen) -> None:
    if reply.done and reply.done.reason == "length":
        screen.say("the answer was cut off at its longest: --max-tokens allows more")


def _sound_line(record: dict[str, Any]) -> str:
    if record["path"] is None:
        return "no sound was made"
    speed = f"{record['real_time_factor']:.2f} of real time"
    return f"{plain(record['path'])}: {record['duration_s']:.1f} s of sound in {speed}"


def _talk_lines(records: Sequence[dict[str, Any]], several: bool) -> Iterator[str]:
    if not several:
        yield ""  # ends the line of the text
        yield _sound_line(records[0])
        return
    for record in records:
        name = plain(record["recording"])
        if "error" in record:
            yield f"{name}: {plain(record['error'])}"
        else:
            yield f"{name}: {record['text']}"
            yield f"  {_sound_line(record)}"
