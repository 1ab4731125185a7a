"""What requests hold and replies tell, as pydantic models: the OpenAPI page is made of these.

Field names are those of the APIs that clients know. An unknown field is an error, and so is a known
one that asks for what is not done here; a neutral value of it, which clients send unasked, is not.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

MOST_MESSAGES = 1_000
MOST_PARTS = 64
MOST_DOCUMENTS = 1_000
MOST_CHARACTERS = 4_000_000  # of one text
MOST_TOKENS = 1 << 20

Word = Annotated[str, Field(min_length=1, max_length=500)]
Long = Annotated[str, Field(max_length=MOST_CHARACTERS)]
Zero = Annotated[float, Field(ge=0, le=0)]
One = Annotated[float, Field(ge=1, le=1)]
Nothing = Annotated[list[Any], Field(max_length=0)]
Whole = Annotated[int, Field(ge=0, le=(1 << 63) - 1)]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Told(BaseModel):
    """A reply; clients ignore what they do not know."""


# ---- errors and lists -----------------------------------------------------------------------


class Error(Told):
    message: str
    type: str
    code: str | None
    param: str | None


class Refusal(Told):
    error: Error


class Health(Told):
    status: Literal["ok", "stopping"]


class Model(Told):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    kind: Literal["chat", "vision", "speech", "colbert"] = Field(description="what it is for")
    context: int | None = Field(None, description="tokens that prompt and reply may have together")
    sampling: dict[str, float | None] | None = Field(
        None, description="the checkpoint's advice, which holds where a request says nothing"
    )


class Models(Told):
    object: Literal["list"] = "list"
    data: list[Model]


# ---- chat -----------------------------------------------------------------------------------


class TextPart(Body):
    type: Literal["text"]
    text: Long


class ImageUrl(Body):
    url: str = Field(description="data:image/png;base64,… ; other addresses are refused")
    detail: Literal["auto", "low", "high"] | None = Field(
        None, description="image tokens: at most 64 (low), 256 (auto), or all it is worth (high)"
    )


class ImagePart(Body):
    type: Literal["image_url"]
    image_url: ImageUrl | str


class InputAudio(Body):
    data: str = Field(description="a recording as a file in base64")
    format: Literal["wav", "mp3", "flac", "ogg"]


class AudioPart(Body):
    type: Literal["input_audio"]
    input_audio: InputAudio


Part = Annotated[TextPart | ImagePart | AudioPart, Field(discriminator="type")]


class Spoken(Body):
    id: Word = Field(description="of the `audio` of an earlier reply")


class ChatMessage(Body):
    role: Literal["system", "developer", "user", "assistant"]
    content: Long | Annotated[list[Part], Field(max_length=MOST_PARTS)] | None = None
    audio: Spoken | None = None
    refusal: None = None
    name: None = None
    tool_calls: Nothing | None = None
    function_call: None = None
    annotations: Nothing | None = None


class StreamOptions(Body):
    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class Voice(Body):
    id: Word


class AudioOut(Body):
    format: Literal["wav", "mp3", "flac", "opus", "pcm16"] = Field(
        description="streams are pcm16: 24 kHz, 16 bit, mono"
    )
    voice: Word | Voice | None = Field(
        None, description="of a conversation it is the checkpoint's own; only named by others"
    )


class TextFormat(Body):
    type: Literal["text"]


class ChatBody(Body):
    """As of OpenAI's chat completions, with `top_k`, `min_p` and `repetition_penalty` beside."""

    model: Word
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MOST_MESSAGES)]
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = Field(
        None, description="0 is plain greedy; left out, the checkpoint's advice holds"
    )
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=MOST_TOKENS)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.001, le=100)] | None = None
    seed: Whole | None = None
    stop: Word | Annotated[list[Word], Field(max_length=16)] | None = None
    modalities: Annotated[list[Literal["text", "audio"]], Field(min_length=1)] | None = None
    audio: AudioOut | None = None
    # Of no consequence here
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    metadata: dict[str, str] | None = None
    parallel_tool_calls: bool | None = None
    service_tier: Literal["auto", "default"] | None = None
    # Only neutral values
    n: One | None = None
    presence_penalty: Zero | None = None
    frequency_penalty: Zero | None = None
    logprobs: Literal[False] | None = None
    top_logprobs: Zero | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    response_format: TextFormat | None = None
    tools: Nothing | None = None
    tool_choice: Literal["none", "auto"] | None = None
    functions: Nothing | None = None
    function_call: Literal["none", "auto"] | None = None
    store: Literal[False] | None = None
    reasoning_effort: Literal["none"] | None = None
    prediction: None = None
    web_search_options: None = None


class PromptDetails(Told):
    cached_tokens: int
    image_tokens: int


class TokenUsage(Told):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class AudioReply(Told):
    id: str
    data: str = Field(description="a file of the asked format in base64")
    transcript: str
    expires_at: int


class Answer(Told):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    audio: AudioReply | None = None


class Choice(Told):
    index: int
    message: Answer
    finish_reason: Literal["stop", "length"]
    logprobs: None


class Completion(Told):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: TokenUsage


# ---- speech ---------------------------------------------------------------------------------


class SpeechBody(Body):
    """As of OpenAI's audio/speech."""

    model: Word
    input: Annotated[str, Field(min_length=1, max_length=4096)]
    voice: Word | Voice | None = Field(
        None,
        description="one the checkpoint knows, such as 'US female'; OpenAI's own names, which "
        "clients must give, stand for the checkpoint's usual voice",
    )
    instructions: Word | None = Field(None, description="replaces the system message")
    response_format: Literal["mp3", "opus", "flac", "wav", "pcm"] | None = "mp3"
    stream_format: Literal["audio", "sse"] | None = "audio"
    speed: One | None = None
    seed: Whole | None = None
    strict: bool = Field(
        False,
        description="refuse words that a checkpoint of few words lacks; else they are spelled "
        "letter by letter, and the answer's header x-spelled names them, percent-encoded",
    )


class Transcript(Told):
    text: str
    duration: float | None = None
    task: str | None = None


# ---- retrieval ------------------------------------------------------------------------------


class EmbeddingsBody(Body):
    model: Word
    input: Any
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    user: str | None = None


class TextDocument(BaseModel):
    model_config = ConfigDict(extra="forbid")
    text: Long


class RerankBody(Body):
    """As of Cohere's and Jina's rerank."""

    model: Word
    query: Annotated[str, Field(min_length=1, max_length=100_000)]
    documents: Annotated[list[Long | TextDocument], Field(min_length=1, max_length=MOST_DOCUMENTS)]
    top_n: Annotated[int, Field(ge=1)] | None = None
    return_documents: bool | None = False
    # Neutral values
    max_tokens_per_doc: Annotated[int, Field(ge=1)] | None = Field(
        None, description="at least what the checkpoint reads anyway"
    )
    truncation: Literal[True] | None = None
    priority: Zero | None = None


class Ranked(Told):
    index: int
    relevance_score: float = Field(description="MaxSim divided by the query's tokens: at most 1")
    document: TextDocument | None = None


class RerankUsage(Told):
    prompt_tokens: int
    total_tokens: int


class Reranked(Told):
    id: str
    object: Literal["list"] = "list"
    model: str
    results: list[Ranked]
    usage: RerankUsage
    meta: dict[str, Any]


class SearchBody(Body):
    query: Annotated[str, Field(min_length=1, max_length=100_000)]
    k: Annotated[int, Field(ge=1, le=1000)] = 10
    mode: Literal["hybrid", "colbert", "lexical"] = "hybrid"
    filter: dict[str, str] | Annotated[list[str], Field(max_length=64)] | None = Field(
        None, description='{"source": "*.pdf"} or ["date>=2024-05", "team=sales"]; all must hold'
    )


class MatchedWord(Told):
    token: str
    word: str
    start: int
    end: int
    score: float


class FoundPassage(Told):
    rank: int
    score: float
    id: int
    document: int
    source: str
    start: int
    end: int
    text: str
    page: int | None
    heading: str
    matches: list[MatchedWord]


class Found(Told):
    query: str
    index: str
    hits: list[FoundPassage]
    seconds: float


class NewDocument(Body):
    id: Annotated[str, Field(min_length=1, max_length=1000)] = Field(
        description="its name; searches give it as `source`"
    )
    text: Long
    title: Annotated[str, Field(max_length=1000)] = ""
    meta: Annotated[dict[str, str], Field(max_length=64)] = Field(
        default={}, description="kept with it, to filter by"
    )


Batch = Annotated[list[NewDocument], Field(max_length=MOST_DOCUMENTS)]


class DocumentsBody(Body):
    """What to change; first all of `delete`, then `add`, then `upsert`."""

    add: Batch = Field(default=[], description="refused where one of these ids is there already")
    upsert: Batch = Field(default=[], description="takes the place of what has its id")
    documents: Batch = Field(default=[], description="the same as upsert")
    delete: Annotated[list[Word], Field(max_length=MOST_DOCUMENTS)] = Field(
        default=[], description="ids, or patterns such as *.pdf"
    )


class Changed(Told):
    index: str
    added: int
    updated: int
    removed: int
    unchanged: int
    documents: int
    chunks: int
    tokens: int
    bytes: int


class IndexInfo(Told):
    name: str
    documents: int
    chunks: int
    tokens: int
    bytes: int
    model: str | None
    version: int


class Indexes(Told):
    object: Literal["list"] = "list"
    data: list[IndexInfo]


class Listed(Told):
    id: str
    title: str
    chunks: int
    tokens: int
    meta: dict[str, str]


class Documents(Told):
    object: Literal["list"] = "list"
    data: list[Listed]
