"""Digits as people say them whose first language is another: English words in another's sounds.

espeak-ng's English accents are those of people who grew up with English. Here its voices of other
languages read the digits, spelled as a speaker of that language would write what he hears.
"""

from __future__ import annotations

import random

from nano_audio_language import DIGITS

# zero to nine; "|" parts ways to say one
ACCENTS = {
    "fr": "ziro ouane tou sri|tri|fri fore faïve sixe sévène éite naïne",
    "fr-be": "ziro ouane tou sri|tri fore faïfe sixe sévène éite naïne",
    "de": "siro wann|wonn tuh sri|trie fohr faif ßix ßewwen eht|äit nain",
    "nl": "ziero wan toe srie|trie foor faif sikks seven eet nain",
    "it": "ziro uan tu tri for faiv sics seven eit nain",
    "es": "síro uan tu tri for faif sics seven eit nain",
    "pt-br": "zírou uan tu tri|srí for faive sics séven êit nain",
    "ro": "ziro uan tu tri|sri for faiv six seven eit nain",
    "pl": "ziro łan tu tri|sri for fajw siks sewen ejt najn",
    "cs": "zíro uan|van tú srí|trí fór fajv siks seven ejt najn",
    "hu": "ziró van|uan tú szrí|trí fór fájv sziksz szeven ejt nájn",
    "sv": "siro vann to tri får fajv siks seven ejt najn",
    "fi": "siro van|uan tuu trii|srii foor faiv siks seven eit nain",
    "tr": "ziro van|uan tu tri|sri for fayv siks sevın eyt nayn",
    "el": "ζίρο ουάν του θρι φορ φάιβ σιξ σέβεν έιτ νάιν",
    "ru": "зиро уан|ван ту сри|три фор файв сикс сэвэн эйт найн",
    "hi": "ज़ीरो वन टू थ्री फ़ोर फ़ाइव सिक्स सेवन एट नाइन",
}


def accented(digits: str, accent: str, draw: random.Random) -> str:
    """English digits as the voices of that language are to read them."""
    ways = dict(zip(DIGITS, ACCENTS[accent].split(), strict=True))
    return " ".join(draw.choice(ways[digit].split("|")) for digit in digits.split())
