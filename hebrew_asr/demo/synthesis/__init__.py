"""Synthetic Hebrew speech for the demo and the tests: a small vocalized lexicon, a grammar and a formant synthesizer.

It proves that the pipeline learns text from sound and that splits do not leak. It says nothing about real Hebrew.
"""

from hebrew_asr.demo.synthesis.corpus import synthesize_corpus
from hebrew_asr.demo.synthesis.grammar import Sentence, Word, full_sentences, lexicon, phrases
from hebrew_asr.demo.synthesis.speech import Voice, recorded, speak

__all__ = [
    "Sentence",
    "Voice",
    "Word",
    "full_sentences",
    "lexicon",
    "phrases",
    "recorded",
    "speak",
    "synthesize_corpus",
]
