"""What the samples of a run say: errors clip by clip, what was confused with what, how a sentence was learned."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import jiwer

from hebrew_asr.report.gather import RunHistory, Sample
from hebrew_asr.report.records import EvalRecord
from hebrew_asr.text.normalize import Mode, normalize
from hebrew_asr.text.prompt import parse_target
from hebrew_asr.text.scoring import known_groups, spread
from hebrew_asr.text.sets import sets_of
from hebrew_asr.text.wer import ErrorCounts, errors_by, per_clip_errors

SAME_SOUND = frozenset(map(frozenset, ("אע", "אה", "עה", "בו", "חכ", "טת", "כק", "סש")))
"""Letters that most speakers of modern Hebrew say alike, at least in some words."""
_SEED = 0
_CLIPS_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class Edit:
    """One column of an alignment; the side that has no word is ''."""

    kind: str
    """``equal``, ``substitute``, ``delete`` or ``insert``, as jiwer says."""
    reference: str
    hypothesis: str


def align(reference: str, hypothesis: str, mode: Mode) -> list[Edit]:
    """Words of both sides, normalized and set against each other as jiwer counts them."""
    aligned = jiwer.process_words([normalize(reference, mode)], [normalize(hypothesis, mode)])
    said, heard = aligned.references[0], aligned.hypotheses[0]
    edits: list[Edit] = []
    for chunk in aligned.alignments[0]:
        left = said[chunk.ref_start_idx : chunk.ref_end_idx]
        right = heard[chunk.hyp_start_idx : chunk.hyp_end_idx]
        longer = max(len(left), len(right))
        left, right = left + [""] * (longer - len(left)), right + [""] * (longer - len(right))
        edits += [Edit(chunk.type, a, b) for a, b in zip(left, right, strict=True)]
    return edits


@dataclass(frozen=True)
class ScoredClip:
    """A sample with its errors."""

    sample: Sample
    errors: ErrorCounts


@dataclass(frozen=True)
class Scored:
    """An evaluation counted again from its samples."""

    record: EvalRecord
    clips: list[ScoredClip]

    @property
    def total(self) -> ErrorCounts:
        """Counts over all clips."""
        return sum((clip.errors for clip in self.clips), ErrorCounts())

    @property
    def agrees(self) -> bool:
        """Whether the samples give the counts that the run wrote down."""
        total, record = self.total, self.record
        return (total.substitutions, total.deletions, total.insertions, total.words, total.clips) == (
            record.substitutions,
            record.deletions,
            record.insertions,
            record.words,
            record.clips,
        )


def score(run: RunHistory, evaluation: EvalRecord) -> Scored | None:
    """Count an evaluation again; None without samples."""
    samples = run.samples.get(evaluation.key)
    if not samples:
        return None
    errors = per_clip_errors([s.reference for s in samples], [s.hypothesis for s in samples], evaluation.wer_mode)
    return Scored(evaluation, [ScoredClip(*pair) for pair in zip(samples, errors, strict=True)])


def align_clip(clip: Sample, evaluation: EvalRecord) -> list[Edit]:
    """Alignment of a sample in its evaluation's own mode."""
    return align(clip.reference, clip.hypothesis, evaluation.wer_mode)


def interval(run: RunHistory, scored: Scored) -> tuple[float, float, int | None]:
    """95 % interval of the WER, as :func:`hebrew_asr.text.scoring.spread` gives it."""
    return spread([clip.errors for clip in scored.clips], [run.group_of(clip.sample) for clip in scored.clips])


def errors_by_group(run: RunHistory, scored: Scored, count: int) -> list[tuple[str, ErrorCounts]]:
    """The groups with most word errors, those first; empty where groups are not known."""
    totals = _sums(scored, known_groups([run.group_of(clip.sample) for clip in scored.clips]))
    wrong = [(group, errors) for group, errors in totals.items() if errors.word_edits]
    return sorted(wrong, key=lambda item: (-item[1].word_edits, item[0]))[:count]


def errors_by_set(scored: Scored) -> list[tuple[str, ErrorCounts]]:
    """The data sets of the clips with their errors; empty where there is but one."""
    return [*_sums(scored, sets_of([clip.sample.id for clip in scored.clips])).items()]


def _sums(scored: Scored, labels: Sequence[str] | None) -> dict[str, ErrorCounts]:
    return {} if labels is None else errors_by(labels, (clip.errors for clip in scored.clips))


def compare(first: Scored, last: Scored) -> list[ErrorCounts] | None:
    """Counts of each over the clips that both evaluations hold; None if they share none."""
    shared = {clip.sample.id for clip in first.clips} & {clip.sample.id for clip in last.clips}
    if not shared:
        return None
    held = [[clip.errors for clip in scored.clips if clip.sample.id in shared] for scored in (first, last)]
    return [sum(errors, ErrorCounts()) for errors in held]


def overlap(run: RunHistory, scored: Scored) -> tuple[int, int] | None:
    """How many of the evaluated clips training has seen; None if the manifests are not those of the run.

    Returns:
        Clips of an id that a training clip has, and clips of a sentence that one has letter for letter, or of such an
        id.
    """
    manifests = run.manifests
    if manifests is None or any(clip.sample.id not in manifests.group_of for clip in scored.clips):
        return None
    ids, texts = ({getattr(clip.sample, name) for clip in scored.clips} for name in ("id", "reference"))
    seen_ids, seen_texts = set[str](), set[str]()
    for part in manifests.train.parts(_CLIPS_AT_ONCE):
        seen_ids |= ids.intersection(part.column("id").to_pylist())
        seen_texts |= texts.intersection(parse_target(text)[1] for text in part.column("text").to_pylist())
    samples = [(clip.sample.id in seen_ids, clip.sample.reference in seen_texts) for clip in scored.clips]
    return sum(same for same, _ in samples), sum(any(sample) for sample in samples)


def worst(scored: Scored, count: int) -> list[ScoredClip]:
    """Clips with errors, by WER, then by number of errors."""
    wrong = [clip for clip in scored.clips if clip.errors.word_edits]
    return sorted(wrong, key=lambda clip: (-clip.errors.wer, -clip.errors.word_edits, clip.sample.id))[:count]


def random_clips(scored: Scored, count: int, without: Iterable[ScoredClip]) -> list[ScoredClip]:
    """Clips drawn at random, the same ones each time, beside those shown already."""
    shown = {clip.sample.id for clip in without}
    others = sorted((clip for clip in scored.clips if clip.sample.id not in shown), key=lambda clip: clip.sample.id)
    return random.Random(_SEED).sample(others, min(count, len(others)))


@dataclass(frozen=True)
class Confusions:
    """Word and letter errors of an evaluation, most frequent first."""

    substituted: list[tuple[tuple[str, str], int]]
    deleted: list[tuple[str, int]]
    inserted: list[tuple[str, int]]
    letters: list[tuple[tuple[str, str], int]]
    """Said and heard letter of words that are wrong by one letter."""
    letters_total: int
    letters_same_sound: int


def confusions(scored: Scored, count: int) -> Confusions:
    """Count what was taken for what; ``count`` entries of each kind are kept."""
    edits = [edit for clip in scored.clips for edit in align_clip(clip.sample, scored.record)]
    pairs = Counter((edit.reference, edit.hypothesis) for edit in edits if edit.kind == "substitute")
    letters: Counter[tuple[str, str]] = Counter()
    for pair, times in pairs.items():
        swaps = [(said, heard) for said, heard in zip(*pair, strict=False) if said != heard]
        if len(pair[0]) == len(pair[1]) and len(swaps) == 1:
            letters[swaps[0]] += times
    return Confusions(
        _most(pairs, count),
        _most(Counter(edit.reference for edit in edits if edit.kind == "delete"), count),
        _most(Counter(edit.hypothesis for edit in edits if edit.kind == "insert"), count),
        _most(letters, count),
        letters.total(),
        sum(times for swap, times in letters.items() if frozenset(swap) in SAME_SOUND),
    )


def _most(counter: Counter, count: int) -> list:
    """Like ``Counter.most_common``, but ties do not depend on the order of clips."""
    return sorted(counter.items(), key=lambda item: (-item[1], item[0]))[:count]


@dataclass(frozen=True)
class Story:
    """What was heard in one clip, evaluation by evaluation; those in which nothing changed are left out."""

    clip_id: str
    reference: str
    heard: list[tuple[EvalRecord, list[Edit]]]
    """The first, then each that differs from the one before."""
    evaluations: int


def stories(run: RunHistory, count: int) -> list[Story]:
    """The most telling clips: fewest errors at the end, of a length to follow, heard in most different ways."""
    held = [evaluation for evaluation in run.evaluations if run.samples.get(evaluation.key)]
    history: dict[str, list[tuple[EvalRecord, Sample]]] = {}
    for evaluation in held:
        for sample in run.samples[evaluation.key]:
            history.setdefault(sample.id, []).append((evaluation, sample))
    most = max((len(versions) for versions in history.values()), default=0)
    full = [versions for versions in history.values() if len(versions) == most and most > 1]
    return [_story(versions) for versions in sorted(full, key=_interest)[:count]]


def _interest(versions: Sequence[tuple[EvalRecord, Sample]]) -> tuple[int, bool, int, int, str]:
    evaluation, sample = versions[-1]
    errors = sum(edit.kind != "equal" for edit in align_clip(sample, evaluation))
    ways = len({normalize(sample.hypothesis, evaluation.wer_mode) for evaluation, sample in versions})
    words = len(sample.reference.split())
    return errors, not 4 <= words <= 12, -ways, -words, sample.id


def _story(versions: Sequence[tuple[EvalRecord, Sample]]) -> Story:
    heard: list[tuple[EvalRecord, list[Edit]]] = []
    for evaluation, sample in versions:
        edits = align_clip(sample, evaluation)
        if not heard or edits != heard[-1][1]:
            heard.append((evaluation, edits))
    return Story(versions[-1][1].id, versions[-1][1].reference, heard, len(versions))
