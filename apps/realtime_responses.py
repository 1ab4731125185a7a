"""One reply as a client of the Realtime protocol sees it: created, its item, deltas, done."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Protocol

from apps.realtime_wire import RATE, new_id, pcm16
from audio.resample import Heard, Resampler
from lfm2_mm.types import AudioChunk, Done


class Send(Protocol):
    async def __call__(self, kind: str, **fields: Any) -> None:
        """Send the event `kind`."""


@dataclass(eq=False)
class Response:
    """Told by `send`; after its end nothing more of it is."""

    number: int
    send: Send
    id: str = field(default_factory=lambda: new_id("resp"))
    item_id: str = field(default_factory=lambda: new_id("item"))
    after: str | None = None  # the item before its own
    text: str = ""
    status: str = "in_progress"
    reason: str | None = None
    usage: dict[str, int] | None = None
    sent: int = 0  # samples at the wire's rate
    played: float = 0.0  # guessed where the client tells nothing
    flushed: bool = False  # whether it shall sound no more
    began: float = field(default_factory=time.monotonic)
    shown: bool = False  # whether its item was told
    _down: tuple[Resampler, Heard] | None = None

    async def create(self) -> None:
        await self.send("response.created", response=self.told())

    async def say(self, text: str) -> None:
        """More of the text."""
        if self.status != "in_progress":
            return
        await self._show()
        self.text += text
        await self._of("output_audio_transcript.delta", delta=text)

    async def sound(self, chunk: AudioChunk) -> None:
        """More of the sound."""
        if self.status != "in_progress":
            return
        await self._show()
        if self._down is None:
            down = Resampler(chunk.rate, RATE)
            self._down = down, down.start()
        down, state = self._down
        samples, state = down.push(chunk.samples, state)
        self._down = down, state
        self.sent += len(samples)
        if len(samples):
            await self._of("output_audio.delta", delta=pcm16(samples))

    async def finish(self, done: Done) -> None:
        """It ended by itself."""
        used = done.usage
        self.usage = {
            "total_tokens": used.prompt_tokens + used.completion_tokens,
            "input_tokens": used.prompt_tokens,
            "output_tokens": used.completion_tokens,
        }
        if done.reason == "length":
            await self.end("incomplete", "max_output_tokens")
        else:
            await self.end("completed", None)

    async def end(self, status: str, reason: str | None) -> None:
        """Once; later ends are none."""
        if self.status != "in_progress":
            return
        self.status, self.reason = status, reason
        if self.shown:
            await self._of("output_audio.done")
            await self._of("output_audio_transcript.done", transcript=self.text)
            await self._of("content_part.done", part=self._part())
            of = {"response_id": self.id, "output_index": 0}
            await self.send("response.output_item.done", **of, item=self.item())
            await self.send("conversation.item.done", previous_item_id=self.after, item=self.item())
        await self.send("response.done", response=self.told())

    def item(self) -> dict[str, Any]:
        """Its item, with its content once it ended."""
        status = {"in_progress": "in_progress", "completed": "completed"}
        return {
            "id": self.item_id,
            "object": "realtime.item",
            "type": "message",
            "status": status.get(self.status, "incomplete"),
            "role": "assistant",
            "content": [] if self.status == "in_progress" else [self._part()],
        }

    def told(self) -> dict[str, Any]:
        """The response itself."""
        done = self.status != "in_progress"
        return {
            "id": self.id,
            "object": "realtime.response",
            "status": self.status,
            "status_details": {"type": self.status, "reason": self.reason} if self.reason else None,
            "output": [self.item()] if done and self.shown else [],
            "output_modalities": ["audio"],
            "usage": self.usage,
        }

    def _part(self) -> dict[str, Any]:
        return {"type": "output_audio", "transcript": self.text}

    async def _show(self) -> None:
        """Tell the item before what is in it."""
        if self.shown:
            return
        self.shown = True
        of = {"response_id": self.id, "output_index": 0}
        await self.send("response.output_item.added", **of, item=self.item())
        await self.send("conversation.item.added", previous_item_id=self.after, item=self.item())
        await self._of("content_part.added", part=self._part())

    async def _of(self, kind: str, **fields: Any) -> None:
        await self.send(
            f"response.{kind}",
            response_id=self.id,
            item_id=self.item_id,
            output_index=0,
            content_index=0,
            **fields,
        )
