"""What nano-audio can say, and what it answers to what: the language of a coffee counter.

Words are written in lower case, apart from "I" and its forms; "," and "." are words of their own.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

SLOTS = {  # the labels of Picovoice's speech-to-intent benchmark, in the order the reply takes
    "size": "small|medium|large|eight ounce|twelve ounce|sixteen ounce|twenty ounce",
    "roast": "light roast|medium roast|dark roast",
    "numberOfShots": "single shot|double shot|triple shot",
    "coffeeDrink": "americano|cappuccino|espresso|iced mocha|latte|mocha|coffee|drip coffee|"
    "house coffee|iced coffee",
}
AMOUNTS = ("", "a little bit of ", "a bit of ", "some ", "a lot of ", "lots of ")
KINDS = {
    "milkAmount": ("milk", "skim milk", "whole milk", "soy milk", "almond milk", "cream"),
    "sugarAmount": ("sugar", "brown sugar", "sweetener"),
}
VALUES: dict[str, tuple[str, ...]] = {name: tuple(v.split("|")) for name, v in SLOTS.items()}
VALUES |= {name: tuple(a + k for k in kinds for a in AMOUNTS) for name, kinds in KINDS.items()}

OPENINGS = ("brew", "can I get", "can I have", "I want", "get me", "give me", "I'd like",
            "make me", "may I have")  # fmt: skip
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SORRY = "sorry, I did not get that."

# intent -> (ways to say it, the reply)
TALK: dict[str, tuple[tuple[str, ...], str]] = {
    "hello": (
        ("hello", "hi", "hi there", "good morning", "good afternoon", "hello there"),
        "hello, what can I get you?",
    ),
    "how are you": (
        ("how are you", "how are you doing", "how is it going", "how are you today"),
        "I am fine, thank you. what can I get you?",
    ),
    "thanks": (
        ("thank you", "thanks", "thank you very much", "thanks a lot"),
        "you are welcome, have a nice day.",
    ),
    "goodbye": (("goodbye", "bye", "bye bye", "see you later"), "goodbye, see you soon."),
    "cancel": (
        ("cancel that", "cancel my order", "never mind", "forget it", "please cancel"),
        "okay, I have cancelled your order.",
    ),
    "name": (
        ("what is your name", "who are you", "what are you"),
        "my name is nano, I am a very small speech model.",
    ),
    "help": (
        ("what can you do", "how can you help me", "help", "can you help me"),
        "I take coffee orders, and I write down your table number.",
    ),
    "open": (
        ("what time do you open", "when do you open", "are you open"),
        "we open at seven in the morning.",
    ),
    "close": (
        ("what time do you close", "when do you close"),
        "we close at nine in the evening.",
    ),
    "menu": (
        ("what do you have", "what coffee do you have", "can I see the menu", "tell me the menu"),
        "we have americano, cappuccino, espresso, latte, mocha and iced coffee.",
    ),
    "repeat": (
        ("repeat that please", "say that again", "can you repeat that", "pardon"),
        "please tell me again, what would you like?",
    ),
    "name called": (
        ("alexa", "computer", "jarvis", "smart mirror", "view glass", "snowboy"),
        "yes, I am listening.",
    ),
}  # fmt: skip

LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")  # their names; "a" is the article, "A" the letter
# Common words beyond the counter's own, so that `speak` can say everyday sentences.
MORE = """
ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty thirty forty
fifty sixty seventy eighty ninety hundred thousand first second third half
monday tuesday wednesday thursday friday saturday sunday january february march april may june july
august september october november december today tomorrow yesterday morning afternoon evening night
day week month year hour minute time clock early late now then soon later always never again
I you he she it we they me him her us them my your his our their this that these those who what
where when why how which the a an and or but if because so not no yes please thank thanks sorry
hello goodbye good bad new old big small long short high low hot cold warm nice great happy sad
right left up down in out on off over under at by for from of to with without about after before
is are was were be been am do does did done has have had can could will would shall should may
might must go going went gone come coming came get got give gave take took make made see saw seen
say said tell told ask know think want need like love help work play read write speak hear listen
open close start stop wait look find found keep put run walk eat drink buy pay call turn show try
man woman child people friend mother father brother sister family house home room door window table
chair bed street city country world school office shop station car bus train water tea milk bread
food breakfast lunch dinner apple egg fish sugar salt coffee cup glass book page word letter name
number question answer story music song voice phone computer money price dollars weather rain sun
snow wind sky tree flower dog cat bird horse hand head eye ear face heart life way thing place part
all some any many much more most few little very too also only just here there every other another
same different last next best better red green blue black white yellow
"""


@dataclass(frozen=True)
class Turn:
    """One exchange: what is asked, in words; what kind it is; and what is to be answered."""

    request: str
    intent: str
    reply: str
    slots: Mapping[str, str] = field(default_factory=dict)


def order_reply(slots: Mapping[str, str]) -> str:
    """The reply to an order: every slot in the words of its label, always in the same order."""
    front = [slots[name] for name in SLOTS if name in slots]
    extras = [slots[name] for name in KINDS if name in slots]
    with_ = f" with {' and '.join(extras)}" if extras else ""
    return f"one {' '.join(front)}{with_}, coming right up."


def digits_reply(digits: str) -> str:
    """The reply to a number said digit by digit."""
    return f"number {digits}, thank you."


def draw_order(draw: random.Random) -> Turn:
    """An order as the benchmark's grammar builds them, every phrasing of it in reach."""
    slots = {"coffeeDrink": draw.choice(VALUES["coffeeDrink"])}
    front = [n for n in ("size", "roast", "numberOfShots") if draw.random() < 0.6]
    extras = [n for n in KINDS if draw.random() < 0.6]
    draw.shuffle(front)
    draw.shuffle(extras)
    slots |= {name: draw.choice(VALUES[name]) for name in (*front, *extras)}
    words = " ".join(slots[name] for name in (*front, "coffeeDrink"))
    article = "an" if words[0] in "aei" else "a"
    with_ = f" with {' and '.join(slots[name] for name in extras)}" if extras else ""
    request = f"{draw.choice(OPENINGS)} {article} {words}{with_}"
    return Turn(request, "order", order_reply(slots), slots)


def draw_digits(draw: random.Random) -> Turn:
    """A table or order number, said digit by digit."""
    digits = " ".join(draw.choice(DIGITS) for _ in range(draw.randint(1, 5)))
    lead = draw.choice(("", "", "my table is ", "my number is ", "number ", "table "))
    return Turn(lead + digits, "digits", digits_reply(digits), {"digits": digits})


def draw_talk(draw: random.Random) -> Turn:
    intent = draw.choice(tuple(TALK))
    ways, reply = TALK[intent]
    return Turn(draw.choice(ways), intent, reply)


def words_of(text: str) -> list[str]:
    """Text as tokens: words, and "," "." "?" as words of their own."""
    for mark in ",.?":
        text = text.replace(mark, f" {mark} ")
    return text.split()


def lexicon() -> list[str]:
    """Every word that can be said, once, in a fixed order; punctuation is no word."""
    return list(dict.fromkeys(_spoken()))


def _spoken() -> Iterator[str]:
    texts = [SORRY, "one with and coming right up", "number thank you", *DIGITS]
    texts += [value for values in VALUES.values() for value in values]
    for ways, reply in TALK.values():
        texts += [*ways, reply]
    texts += [*OPENINGS, *LETTERS, *MORE.split()]
    for text in texts:
        yield from (word for word in words_of(text) if word not in ",.?")


def salad(draw: random.Random, words: list[str]) -> str:
    """Words in no order at all: who can say these needs no luck."""
    said = draw.choices(words, k=draw.randint(3, 12))
    return " ".join(w + ("," if draw.random() < 0.12 else "") for w in said).rstrip(",") + "."


def draw_reply(draw: random.Random) -> str:
    """One reply of the counter: orders most often, since they have the most to say."""
    kind = draw.random()
    turn = draw_order(draw) if kind < 0.6 else draw_digits(draw) if kind < 0.8 else draw_talk(draw)
    return SORRY if kind > 0.97 else turn.reply
