"""The command line `lfm2-mm`: flags, exit codes, errors in one line. Verbs live in apps/verbs."""

from __future__ import annotations

import argparse
import atexit
import contextlib
import errno
import gc
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module

from apps.flags import condition, filled, names, number, origin, pair, whole, words
from apps.screen import Screen, open_screen, plain
from lfm2_mm.errors import LfmError

DONE, FAILED, INTERRUPTED = 0, 1, 130  # wrong usage is argparse's own 2
MODES = ("hybrid", "colbert", "lexical")
CODECS = ("int8", "4bit", "2bit", "float16")
PRESETS = ("reference", "fast", "balanced", "quality")
TARGETS = ("gguf", "onnx", "executorch", "openvino")
STORED = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "mxfp4")
SHAPES = ("LFM2-350M", "LFM2-700M", "LFM2-1.2B", "LFM2-2.6B", "LFM2-8B-A1B")
SPEECH_SHAPES = ("LFM2.5-Audio-1.5B", "LFM2-Audio-1.5B")
VISION_SHAPES = (
    "LFM2-VL-450M", "LFM2-VL-1.6B", "LFM2-VL-3B", "LFM2.5-VL-450M", "LFM2.5-VL-1.6B"
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    # Looking for cycles among all of torch's modules at the end takes a fifth of a search.
    atexit.register(gc.freeze)
    try:
        args = parser().parse_args(argv)
        screen = open_screen(args.json)
        return _run(args, screen)
    except SystemExit as stop:  # wrong usage, --help, or a verb refused a combination of flags
        return int(stop.code or 0)
    except KeyboardInterrupt:
        open_screen(False).say("interrupted; what was finished is kept")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader left (`| head`): nothing to tell, and nowhere to flush to at exit.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except Exception as error:  # noqa: BLE001  (told in one line; --debug shows all of it)
        trace = "".join(traceback.format_exception(error)).rstrip()
        screen.say(trace if args.debug else f"lfm2-mm {args.verb}: {told(error)}")
        return FAILED


def _run(args: argparse.Namespace, screen: Screen) -> int:
    module, function = args.run.split(":")
    # Under --json a library that prints must not spoil the document.
    quiet = contextlib.redirect_stdout(sys.stderr) if args.json else contextlib.nullcontext()
    with quiet:
        code = getattr(import_module(module), function)(args, screen)
    screen.out.flush()
    return code or DONE


def told(error: Exception) -> str:
    """An error in one line that says what to do."""
    if isinstance(error, LfmError):
        return plain(str(error))
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename is not None else ""
        advice = "; free some space and run it again" if error.errno == errno.ENOSPC else ""
        return plain(f"{error.strerror}{where}{advice}")
    if isinstance(error, MemoryError):
        return "out of memory; give less at once, or use --dtype int8"
    kind = type(error).__name__
    return plain(f"unexpected {kind}: {error}; --debug shows where, please report it")


# ---- flags ----------------------------------------------------------------------------------


def _common(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("for every verb")
    group.add_argument("--json", action="store_true", help="one JSON document on stdout")
    group.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    group.add_argument("--dtype", choices=("auto", "fp32", "bf16", "int8", "int4"), default="auto")
    group.add_argument("--offline", action="store_true", help="never ask the model hub")
    group.add_argument("--debug", action="store_true", help="show the traceback of an error")


def _generating(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how to generate (default: the checkpoint's advice)")
    group.add_argument("--max-tokens", type=whole(1, 1 << 20), metavar="N")
    group.add_argument(
        "--temperature", type=number(0, 100), metavar="T", help="0 is plain greedy: no penalty"
    )
    group.add_argument("--seed", type=whole(0), metavar="N")
    group.add_argument("--top-k", type=whole(0, 1 << 20), metavar="K", help="0 cuts nothing")
    group.add_argument("--top-p", type=number(0, 1), metavar="P", help="1 cuts nothing")
    group.add_argument("--min-p", type=number(0, 1), metavar="P")
    group.add_argument("--repetition-penalty", type=number(0.001, 100), metavar="R")
    group.add_argument("--system", type=words, metavar="TEXT", help="the system message")


def _elsewhere(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("to let another program answer, over its HTTP interface")
    group.add_argument(
        "--engine", choices=("auto", "native", "echo", "remote", "gguf"), default="auto",
        help="default: native, remote where an address is given, echo for the model `echo`, gguf "
        "(llama.cpp in this process) for a file .gguf",
    )  # fmt: skip
    group.add_argument(
        "--base-url", type=filled, metavar="URL",
        help="an OpenAI-compatible server, such as http://127.0.0.1:8080/v1; --model is a name "
        "there (default: its first)",
    )  # fmt: skip
    group.add_argument(
        "--api-key", metavar="KEY", help="of that server; default: LFM2_MM_API_KEY, if it is set"
    )


def _index_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--index", required=True, type=filled, metavar="DIR", help="the index folder"
    )


def _place_flags(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    place = parser.add_mutually_exclusive_group(required=required)
    place.add_argument("--index", type=filled, metavar="DIR", help="the index folder")
    place.add_argument(
        "--store", type=filled, metavar="STORE",
        help="or a store: lancedb:FOLDER_OR_BUCKET, qdrant:FOLDER, qdrant:http://HOST:6333",
    )  # fmt: skip


def _model_flag(parser: argparse.ArgumentParser, default: str | None, what: str) -> None:
    parser.add_argument("--model", default=default, type=filled, metavar="NAME_OR_PATH", help=what)


# ---- verbs ----------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """The whole command line; imports nothing that a verb needs."""
    top = argparse.ArgumentParser(
        prog="lfm2-mm",
        description="LFM2 at home: chat, and search your own documents by meaning.",
        epilog="`lfm2-mm VERB --help` explains one verb.",
        allow_abbrev=False,
    )
    top.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True)
    for add in (
        _about_checkpoints,
        _about_chat,
        _about_see,
        _about_speech,
        _about_index,
        _about_batches,
        _about_care,
        _about_export,
        _about_measures,
        _about_serving,
    ):
        add(lambda name, run, text: _verb(verbs, name, run, text))
    return top


class _Version(argparse.Action):
    """Looks the version up only when asked: that alone takes as long as all other imports."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import PackageNotFoundError, version

        try:
            parser.exit(message=f"{version('lfm2-mm')}\n")
        except PackageNotFoundError:
            parser.exit(message="a source tree that is not installed\n")


Add = Callable[[str, str, str], argparse.ArgumentParser]


def _verb(
    verbs: argparse._SubParsersAction, name: str, run: str, text: str
) -> argparse.ArgumentParser:
    verb: argparse.ArgumentParser = verbs.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False
    )
    _common(verb)
    verb.set_defaults(run=run, wrong_usage=verb.error)
    return verb


def _about_checkpoints(add: Add) -> None:
    add("models", "apps.verbs.checkpoints:models", "list the known checkpoints")
    add("doctor", "apps.doctor:doctor", "check this installation and say what was chosen")
    fetch = add("fetch", "apps.verbs.checkpoints:fetch", "download a checkpoint into the cache")
    fetch.add_argument("name", metavar="NAME", help="as `lfm2-mm models` lists it, or a hub id")
    fetch.add_argument("--remove", action="store_true", help="delete it from the cache instead")


def _about_chat(add: Add) -> None:
    chat = add("chat", "apps.verbs.chat:chat", "chat with a checkpoint, one prompt or a session")
    chat.add_argument(
        "prompt", nargs="*", type=words,
        help="default: stdin where piped, else an interactive session; with --engine gguf a file "
        "before it is the model",
    )  # fmt: skip
    _model_flag(chat, None, "default: a chat checkpoint that is already here; `echo` needs none")
    chat.add_argument(
        "--active-experts", type=whole(1), metavar="N", help="experts per token of a MoE"
    )
    _elsewhere(chat)
    _generating(chat)


def _about_see(add: Add) -> None:
    see = add("see", "apps.verbs.see:see", "ask about pictures, or tell what they would cost")
    see.add_argument("pictures", nargs="+", metavar="PICTURE")
    see.add_argument(
        "--prompt",
        type=words,
        metavar="TEXT",
        help="default: stdin where piped, else an interactive session",
    )
    see.add_argument(
        "--plan", action="store_true", help="only tell the crops and tokens; loads no model"
    )
    see.add_argument(
        "--image-tokens", type=whole(1), metavar="N", help="at most so many for each picture"
    )
    see.add_argument(
        "--shared", action="store_true", help="--image-tokens are for all pictures together"
    )
    see.add_argument(
        "--tiles", type=whole(1), metavar="N", help="at most so many of 512 x 512; 1 never cuts"
    )
    see.add_argument(
        "--preset", choices=PRESETS,
        help="reference: the published rule and pixels; fast: 64 tokens; balanced: 256 (default); "
        "quality: all that a picture is worth",
    )  # fmt: skip
    _model_flag(see, None, "default: a vision checkpoint that is already here, bundled or fetched")
    _elsewhere(see)
    _generating(see)


def _about_speech(add: Add) -> None:
    transcribe = add("transcribe", "apps.verbs.speech:transcribe", "write down what is said")
    transcribe.add_argument("recordings", nargs="+", metavar="FILE", help="WAV, FLAC, Ogg, MP3")
    speak = add("speak", "apps.verbs.speech:speak", "read a text aloud into a file")
    speak.add_argument(
        "text", nargs="?", type=words, help="default: stdin, where something is piped in"
    )
    speak.add_argument(
        "--voice", type=words, metavar="VOICE", help="one the checkpoint knows: 'US female'"
    )
    speak.add_argument(
        "--strict", action="store_true",
        help="refuse words that a checkpoint of few words cannot say, instead of spelling them",
    )  # fmt: skip
    talk = add("talk", "apps.verbs.speech:talk", "answer a spoken question, in speech and text")
    talk.add_argument("recordings", nargs="+", metavar="FILE", help="WAV, FLAC, Ogg, MP3")
    talk.add_argument(
        "--history",
        type=filled,
        metavar="FILE",
        help="carry the conversation in this file on, or begin it",
    )
    speak.add_argument(
        "-o",
        "--output",
        required=True,
        type=filled,
        metavar="FILE",
        help="ends in .wav, .flac, .ogg or .mp3",
    )
    talk.add_argument(
        "-o",
        "--output",
        required=True,
        type=filled,
        metavar="FILE",
        help="for several recordings, a folder",
    )
    for verb in (transcribe, speak, talk):
        _model_flag(verb, None, "default: a speech checkpoint that is already here")
        _generating(verb)


def _about_index(add: Add) -> None:
    index = add("index", "apps.verbs.collection:index", "index files and folders, or update")
    index.add_argument("paths", nargs="+", metavar="PATH")
    _place_flags(index)
    _model_flag(index, None, "encoder of a new index; default: nano-colbert")
    _keeping(index, "of a new index")
    index.add_argument(
        "--workers",
        type=whole(1, 4096),
        metavar="N",
        help="processes that encode, a thread each",
    )
    index.add_argument(
        "--ray",
        type=filled,
        metavar="ADDRESS",
        help="workers of a Ray cluster; `local` starts one here",
    )
    index.add_argument(
        "--parts",
        type=filled,
        metavar="DIR",
        help="where workers leave what they encoded until it is in",
    )
    index.add_argument("--prune", action="store_true", help="remove documents whose file is gone")
    index.add_argument(
        "--encoder-url",
        type=filled,
        metavar="URL",
        help="encode at this llama-server or vLLM (docs/deploy.md)",
    )
    index.add_argument("--encoder-key", metavar="KEY", help="the API key it asks for")
    search = add("search", "apps.verbs.collection:search", "search an index")
    search.add_argument("query", type=words)
    _place_flags(search)
    _model_flag(search, None, "default: the model the index was made with")
    search.add_argument("-k", type=whole(1), default=10, help="how many hits (default 10)")
    search.add_argument("--mode", choices=MODES, help="default hybrid; a store knows colbert only")
    search.add_argument(
        "--filter", type=condition, action="append", default=[], metavar="KEY=VALUE",
        help="source=*.pdf, type=md, 'date>=2024-05', or what `index --meta` kept; all must hold",
    )  # fmt: skip
    delete = add("delete", "apps.verbs.collection:delete", "delete documents from an index")
    _place_flags(delete)
    delete.add_argument("--source", required=True, help="a source, or a pattern such as *.pdf")
    _place_flags(add("info", "apps.verbs.collection:info", "say what an index holds"))


def _keeping(verb: argparse.ArgumentParser, what: str) -> None:
    verb.add_argument(
        "--codec", choices=CODECS, help=f"{what}: how vectors are kept; default int8, 4bit is half"
    )
    verb.add_argument(
        "--pool", type=whole(1, 16), metavar="N", help=f"{what}: so many vectors become one"
    )
    verb.add_argument(
        "--meta", type=pair, action="append", default=[], metavar="KEY=VALUE", help="keep with each"
    )


def _about_batches(add: Add) -> None:
    encode = add("encode", "apps.verbs.batches:encode", "encode files into a segment, as a job")
    encode.add_argument("paths", nargs="+", metavar="PATH")
    encode.add_argument(
        "--into", required=True, type=filled, metavar="DIR", help="the folder of segments"
    )
    _model_flag(encode, "nano-colbert", "the encoder (default nano-colbert)")
    _keeping(encode, "of the segment")
    attach = add("attach", "apps.verbs.batches:attach", "take encoded segments into an index")
    attach.add_argument(
        "segments", nargs="+", type=filled, metavar="SEGMENT", help="as `encode` told them"
    )
    _place_flags(attach)
    copy = add("copy", "apps.verbs.batches:copy", "copy an index into a store, or back")
    _index_flag(copy)
    copy.add_argument("--store", required=True, type=filled, metavar="STORE", help="as in `index`")
    copy.add_argument("--back", action="store_true", help="from the store into the index")


def _about_care(add: Add) -> None:
    check = add("check", "apps.verbs.collection:check", "verify every stored byte of an index")
    _place_flags(check)
    check.add_argument("--recall", action="store_true", help="measure searches against exact ones")
    check.add_argument("-k", type=whole(1), default=10, help="of the k best (default 10)")
    check.add_argument(
        "--queries",
        type=filled,
        metavar="FILE",
        help="one a line; default: phrases of stored passages",
    )
    check.add_argument(
        "--target", type=number(0, 1), metavar="R", help="find the effort that reaches this recall"
    )
    check.add_argument("--keep", action="store_true", help="search with that effort from now on")
    repair = add("repair", "apps.verbs.collection:repair", "keep what is whole, encode the rest")
    _index_flag(repair)
    _model_flag(repair, None, "default: the model the index was made with")
    compact = add("compact", "apps.verbs.collection:compact", "merge segments, give space back")
    _place_flags(compact)


def _about_export(add: Add) -> None:
    export = add(
        "export",
        "apps.verbs.export:export",
        "write a checkpoint for another runtime, checked there",
    )
    export.add_argument("name", metavar="NAME", help="a name, a hub id or a folder")
    export.add_argument("--to", choices=TARGETS, required=True)
    export.add_argument(
        "--type", type=str.lower, choices=STORED, help="how weights are kept; default: f16 for "
        "gguf, f32 for the others, which know no other",
    )  # fmt: skip
    export.add_argument(
        "-o",
        "--output",
        required=True,
        type=filled,
        metavar="FILE",
        help="ends in .gguf, .onnx, .pte or .xml",
    )
    export.add_argument("--force", action="store_true", help="replace FILE where it is there")
    export.add_argument(
        "--context", type=whole(64, 1 << 17), default=2048, metavar="N",
        help="executorch: positions of its caches (default 2048)",
    )  # fmt: skip


def _about_measures(add: Add) -> None:
    evaluate = add(
        "evaluate", "apps.verbs.measures:evaluate", "measure retrieval on a BEIR-style folder"
    )
    evaluate.add_argument("folder", metavar="DIR", help="corpus.jsonl, queries.jsonl, qrels.tsv")
    _model_flag(evaluate, "nano-colbert", "the encoder (default nano-colbert)")
    evaluate.add_argument("--mode", choices=MODES, help="as in `search`")
    _place_flags(evaluate, required=False)  # kept for another run
    bench = add("bench", "apps.verbs.measures:bench", "measure speed on this machine")
    kinds = ("chat", "vision", "speech", "retrieval")
    bench.add_argument("what", nargs="?", choices=kinds, help="default: all of them")
    bench.add_argument(
        "--shape", choices=SHAPES + VISION_SHAPES + SPEECH_SHAPES,
        help="random weights of this shape (default: the first for chat, vision and speech)",
    )  # fmt: skip
    _model_flag(bench, "nano-colbert", "the encoder (retrieval)")


def _about_serving(add: Add) -> None:
    serve = add("serve", "apps.verbs.serve:serve", "serve the OpenAI-compatible HTTP interface")
    demo = add("demo", "apps.verbs.serve:demo", "serve the pages and open them in the browser")
    demo.add_argument("--no-browser", action="store_true", help="only serve")
    for verb in (serve, demo):
        verb.add_argument(
            "--host",
            type=filled,
            default="127.0.0.1",
            help="default 127.0.0.1: this machine only",
        )
        verb.add_argument(
            "--port", type=whole(0, 65_535), default=7860, help="default 7860; 0 takes any free one"
        )
        verb.add_argument(
            "--api-key", metavar="KEY",
            help="who asks must give it; default: LFM2_MM_API_KEY, where it is set, else none",
        )  # fmt: skip
        verb.add_argument(
            "--cors", type=origin, action="append", default=[], metavar="ORIGIN",
            help="pages of this origin may ask too (https://example.org); default: none",
        )  # fmt: skip
        verb.add_argument(
            "--index", type=filled, metavar="DIR", help="serve this index, or the indexes in it"
        )
        verb.add_argument(
            "--models", type=names, default=[], metavar="NAME,…",
            help="names, hub ids or folders; default: of every kind one bundled or fetched",
        )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
