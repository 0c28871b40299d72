"""A small lexicon of Hebrew words and the sentences that can be built of them.

Present tense, subject first: ``הילדה אוכלת תפוח גדול בגן``. Verbs and adjectives agree with their noun in gender and
number.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources

from pydantic import TypeAdapter


@dataclass(frozen=True, slots=True)
class Word:
    """One inflected form."""

    part: str
    """``subject``, ``verb``, ``object``, ``adjective`` or ``adverb``."""
    plain: str
    """Usual spelling without vowel points: what transcripts hold."""
    pointed: str
    """The same word with vowel points."""
    phonemes: str
    """Pronunciation in eSpeak NG's mnemonics: ``X`` is /χ/, ``R`` /ʁ/, ``S`` /ʃ/, ``?`` /ʔ/, ``'`` stress."""
    agreement: str = ""
    """``m`` and ``f`` singular, ``p`` masculine plural; empty for adverbs."""
    takes: tuple[str, ...] = ()
    """Kinds of object that a verb accepts."""
    kind: str = ""
    """Kind of an object: ``food``, ``drink``, ``text`` or ``thing``."""
    fits: tuple[str, ...] = ()
    """Kinds of object that an adjective describes."""
    opens: bool = False
    """An adverb that may also open a sentence."""


@dataclass(frozen=True, slots=True)
class Sentence:
    """Words in spoken order."""

    words: tuple[Word, ...]

    @property
    def text(self) -> str:
        """Plain spelling, one space between words."""
        return " ".join(word.plain for word in self.words)

    @property
    def phonemes(self) -> str:
        """eSpeak NG mnemonics, one space between words."""
        return " ".join(word.phonemes for word in self.words)


@cache
def lexicon() -> tuple[Word, ...]:
    """Every word form, in the order of ``lexicon.json``."""
    text = resources.files("hebrew_asr.demo.synthesis").joinpath("lexicon.json").read_text(encoding="utf-8")
    return TypeAdapter(tuple[Word, ...]).validate_json(text)


def full_sentences() -> list[Sentence]:
    """Every subject-verb-object sentence, with and without an adjective and an adverb, in a fixed order."""
    sentences = []
    for subject, verb in _pairs("subject", "verb"):
        for noun_phrase in _noun_phrases():
            if noun_phrase[0].kind not in verb.takes:
                continue
            core = (subject, verb, *noun_phrase)
            sentences.append(Sentence(core))
            for adverb in _words("adverb"):
                sentences.append(Sentence((*core, adverb)))
                if adverb.opens:
                    sentences.append(Sentence((adverb, *core)))
    return sentences


def phrases() -> list[Sentence]:
    """Single words, nouns with an adjective, and subject-verb pairs, in a fixed order.

    Short clips pin each word to its sound before sentences ask for an order.
    """
    found = [(word,) for word in lexicon()]
    found += [phrase for phrase in _noun_phrases() if len(phrase) > 1]
    found += _pairs("subject", "verb")
    return [Sentence(words) for words in found]


def _words(part: str) -> list[Word]:
    return [word for word in lexicon() if word.part == part]


def _pairs(first: str, second: str) -> list[tuple[Word, Word]]:
    return [(a, b) for a in _words(first) for b in _words(second) if a.agreement == b.agreement]


def _noun_phrases() -> list[tuple[Word, ...]]:
    phrases_found: list[tuple[Word, ...]] = [(noun,) for noun in _words("object")]
    phrases_found += [pair for pair in _pairs("object", "adjective") if pair[0].kind in pair[1].fits]
    return phrases_found
