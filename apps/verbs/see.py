"""The verb `see`: pictures and a question; `--plan` alone tells what they would cost."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from apps import wiring
from apps.screen import Screen, plain
from apps.verbs.chat import answer, opening, prompt_of, sampling_of, session
from lfm2_mm import checkpoint
from lfm2_mm.errors import BadInput
from lfm2_mm.types import Image, Message
from lfm2_mm.weights import read_json
from vision.rule import ImageRule, Size
from vision.settings import read_rule
from vision.tiling import PRESETS, PUBLISHED, TilePlan, TokenBudget, plan_all

LEAST = 32  # pixels: the resolution at which a picture is decoded only to see that it can be


def see(args: Namespace, screen: Screen) -> None:
    """Answer a question about pictures, or tell the plan alone."""
    if wiring.is_elsewhere(args):
        _ask_elsewhere(args, screen)
        return
    budget = budget_of(args)
    prompt = None if args.plan else prompt_of(args)
    images = open_images(args.pictures, screen)
    if args.plan:
        tell_plan(images, budget, rule_of(args), args, screen)
    else:
        _look(args, images, prompt, budget, screen)


def _look(
    args: Namespace,
    images: Sequence[Image],
    prompt: str | None,
    budget: TokenBudget,
    screen: Screen,
) -> None:
    """Answer one prompt about the pictures, or hold a session about them."""
    engine = wiring.open_see(args, budget)
    try:
        sampling = sampling_of(args, engine.advice)
        messages = [*opening(args.system), Message.user(*images, prompt or "?")]
        plans = engine.plans(messages)
        if args.image_tokens is not None:
            say_capped(plans, budget, screen)
        if prompt is None:
            spent = sum(plan.tokens for plan in plans)
            screen.say(f"{engine.name} looks at {spent} image tokens")
            session(engine, opening(args.system), sampling, screen, images)
            return
        record = answer(engine, messages, sampling, screen)
        seen = zip(args.pictures, plans, strict=True)
        record["images"] = [{"path": path, **told(plan)} for path, plan in seen]
        screen.result({"model": engine.name, **record}, [""])
    finally:
        engine.close()


def _ask_elsewhere(args: Namespace, screen: Screen) -> None:
    """Another program looks: it cuts the pictures as it does, and nobody knows their tokens."""
    dials = (args.plan, args.image_tokens, args.tiles, args.preset, args.shared)
    if any(dial not in (None, False) for dial in dials):
        args.wrong_usage(
            "the server decides what pictures cost: leave --plan, --image-tokens, --tiles, "
            "--preset and --shared out, or look here, without --base-url"
        )
    prompt, images = prompt_of(args), open_images(args.pictures, screen)
    engine = wiring.open_chat(args)
    try:
        sampling = sampling_of(args, engine.advice)
        if prompt is None:
            session(engine, opening(args.system), sampling, screen, images)
            return
        messages = [*opening(args.system), Message.user(*images, prompt)]
        record = answer(engine, messages, sampling, screen)
        seen = zip(args.pictures, images, strict=True)
        record["images"] = [{"path": p, "width": i.width, "height": i.height} for p, i in seen]
        screen.result({"model": engine.name, **record}, [""])
    finally:
        engine.close()


def budget_of(args: Namespace) -> TokenBudget:
    """The budget that --preset, --image-tokens, --tiles and --shared ask for together."""
    dials = args.image_tokens is not None
    preset = args.preset or ("quality" if args.tiles and not dials else "balanced")
    if args.shared and not dials:
        args.wrong_usage("--shared deals out the tokens of --image-tokens: give that too")
    given = replace(PRESETS[preset], tiles=args.tiles, shared=args.shared)
    return replace(given, tokens=args.image_tokens) if dials else given


def rule_of(args: Namespace) -> ImageRule:
    """The image settings of --model, which must be here already, or the published ones."""
    if args.model is None:
        return PUBLISHED
    folder = checkpoint.locate(args.model, offline=args.offline, fetch=False)
    if "vision_config" not in read_json(folder / "config.json"):
        raise BadInput(f"{args.model} does not see; pictures need a vision checkpoint")
    return read_rule(folder)


def open_images(paths: Sequence[str], screen: Screen) -> list[Image]:
    """Every picture, or the first one's BadPicture; remarks about them are said."""
    images = [Image.open(path) for path in paths]
    for image in images:
        for remark in image.remarks:
            screen.say(plain(remark))
    return images


def tell_plan(
    images: Sequence[Image],
    budget: TokenBudget,
    rule: ImageRule,
    args: Namespace,
    screen: Screen,
) -> None:
    """Show the plan of every picture and the sums; a damaged picture is an error here, too."""
    plans = plan_all([Size(image.height, image.width) for image in images], budget, rule)
    for image in images:
        image.decode(LEAST, LEAST)
    if args.image_tokens is not None:
        say_capped(plans, budget, screen)
    record = {
        "images": [
            {"path": path, **told(plan), "remarks": list(image.remarks)}
            for path, image, plan in zip(args.pictures, images, plans, strict=True)
        ],
        "total_tokens": sum(plan.tokens for plan in plans),
        "structural_tokens": sum(plan.structural_tokens for plan in plans),
    }
    screen.result(record, _lines(args.pictures, plans))


def told(plan: TilePlan) -> dict[str, Any]:
    """A plan as the JSON document shows it."""
    return {
        "width": plan.width,
        "height": plan.height,
        "rows": plan.rows,
        "cols": plan.cols,
        "tile": plan.tile,
        "thumbnail": plan.thumbnail,
        "tokens": plan.tokens,
        "structural_tokens": plan.structural_tokens,
        "worth": plan.worth,
        "crops": [{"width": crop.width, "height": crop.height} for crop in plan.crops],
    }


def say_capped(plans: Sequence[TilePlan], budget: TokenBudget, screen: Screen) -> None:
    """Say so where a budget is larger than what the pictures are worth."""
    assert budget.tokens is not None
    worths = [plan.worth for plan in plans]
    if budget.shared and budget.tokens > sum(worths):
        what = "this picture is" if len(plans) == 1 else f"these {len(plans)} pictures are"
        screen.say(f"of {budget.tokens} image tokens {sum(worths)} are spent: all {what} worth")
    elif not budget.shared:
        for plan in plans:
            if budget.tokens > plan.worth:
                screen.say(
                    f"of {budget.tokens} image tokens {plan.worth} are spent: all that a picture "
                    f"of {plan.width} x {plan.height} pixels is worth"
                )


def _lines(paths: Sequence[str], plans: Sequence[TilePlan]) -> Iterator[str]:
    for path, plan in zip(paths, plans, strict=True):
        yield (
            f"{plain(path)}: {plan.width} x {plan.height} pixels as {_shown(plan)}: "
            f"{plan.tokens} image tokens, {plan.structural_tokens} structural"
        )
    if len(plans) > 1:
        tokens = sum(plan.tokens for plan in plans)
        marks = sum(plan.structural_tokens for plan in plans)
        yield f"together: {tokens} image tokens, {marks} structural"


def _shown(plan: TilePlan) -> str:
    whole = "" if plan.whole is None else f"{plan.whole.width} x {plan.whole.height}"
    if not plan.tiled:
        return f"one crop of {whole}"
    rows = f"{plan.rows} row{'s' if plan.rows > 1 else ''}"
    tiles = f"{rows} of {plan.cols} tiles of {plan.tile} x {plan.tile}"
    return f"{tiles} and a thumbnail of {whole}" if plan.thumbnail else tiles
