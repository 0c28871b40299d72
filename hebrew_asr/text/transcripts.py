"""Files of transcripts, ours and anybody's: text line by line; by id JSON, CSV, TSV, Kaldi's and sclite's."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path, PurePath
from typing import Any

from hebrew_asr.errors import DataError, UsageError
from hebrew_asr.files import from_json
from hebrew_asr.text.prompt import parse_target
from hebrew_asr.text.reading import read_text
from hebrew_asr.text.scoring import Transcript, first_named
from hebrew_asr.text.values import number, unquoted

HYPOTHESES = "hypotheses.jsonl"
"""Of the folder that ``hebrew-asr eval --out`` writes."""

_IDS = ("id", "clip_id", "utt_id", "file", "audio", "audio_filepath", "path", "filename")
_REFERENCES = ("reference", "ref", "transcript", "transcription", "sentence", "text")
_HEARD = ("hypothesis", "hyp", "prediction", "pred_text")
"""Names that only a hypothesis has: beside one of them, a row holds its reference too."""
_HYPOTHESES = (*_HEARD, "text", "transcript", "transcription")
_KALDI = re.compile(r"(?P<id>\S+)(?P<text>.*)")
_TRN = re.compile(r"(?P<text>.*)\((?P<id>[^()\s]+)\)\s*")
_MOST_FOLDERS = 8

Row = dict[str, Any]


def read_pairs(reference: str | Path, hypothesis: str | Path | None) -> list[Transcript]:
    """References and hypotheses, matched by id, or line by line where both files are plain text.

    Args:
        reference: a file, or a folder that ``eval --out`` wrote.
        hypothesis: likewise; None where the first file holds both.

    Raises:
        DataError: a file cannot be read or says nothing of the kind, or a clip has no hypothesis.
    """
    rows = _rows(Path(reference))
    if hypothesis is None:
        return _both(Path(reference), rows)
    others = _rows(Path(hypothesis))
    if isinstance(rows, list) and isinstance(others, list):
        if len(rows) != len(others):
            raise DataError(f"{reference} has {len(rows)} lines and {hypothesis} {len(others)}; each needs its partner")
        numbered = enumerate(zip(rows, others, strict=True), 1)
        return [Transcript(str(number), said, heard) for number, (said, heard) in numbered]
    if isinstance(rows, list) or isinstance(others, list):
        raise DataError(f"{reference} and {hypothesis}: one is by line and one by id; give two of one kind")
    return _matched(Path(reference), rows, Path(hypothesis), others)


def _both(file: Path, rows: list[str] | dict[str, Row]) -> list[Transcript]:
    if isinstance(rows, list) or not all(_holds_both(row) for row in rows.values()):
        raise DataError(f"{file} does not hold both reference and hypothesis of each clip; give a second file")
    return [
        _transcript(key, row, _text(file, key, row, _REFERENCES), _text(file, key, row, _HEARD))
        for key, row in rows.items()
    ]


def _holds_both(row: Row) -> bool:
    return bool(row.keys() & set(_HEARD) and row.keys() & set(_REFERENCES))


def _matched(file: Path, rows: dict[str, Row], other: Path, others: dict[str, Row]) -> list[Transcript]:
    partner = {key: key for key in rows if key in others} or _by_file(rows, others)
    lacking = [key for key in rows if key not in partner]
    if lacking:
        raise DataError(
            f"{other} has no hypothesis for {len(lacking)} of {len(rows)} clips of {file} ({first_named(lacking)}); an "
            f"empty one counts as deletions, but must be there"
        )
    return [
        _transcript(
            key, row, _text(file, key, row, _REFERENCES), _text(other, partner[key], others[partner[key]], _HYPOTHESES)
        )
        for key, row in rows.items()
    ]


def _by_file(rows: dict[str, Row], others: dict[str, Row]) -> dict[str, str]:
    """The key of each row's partner, where one names clips and the other their files, or files from other folders.

    Files match by as much of the ends of their paths as tells all of them apart, without their suffixes.
    """
    best: dict[str, str] = {}
    for name in _IDS:
        files = {key: str(row[name]) for key, row in rows.items() if row.get(name)}
        for depth in range(1, _MOST_FOLDERS + 1) if len(files) == len(rows) else ():
            ours = {_end(file, depth): key for key, file in files.items()}
            theirs = {_end(key, depth): key for key in others}
            if len(ours) == len(rows) and len(theirs) == len(others):
                found = {key: theirs[end] for end, key in ours.items() if end in theirs}
                best = max(best, found, key=len)
    return best


def _end(file: str, depth: int) -> str:
    path = PurePath(file)
    return "/".join([*path.parts[:-1], path.stem][-depth:])


def _transcript(key: str, row: Row, reference: str, hypothesis: str) -> Transcript:
    lasts_s = number(row.get("duration_s") or row.get("duration")) or 0.0
    seconds = lasts_s if lasts_s > 0 else None
    group, source = (str(row.get(name) or "") for name in ("group", "source"))
    return Transcript(key, reference, hypothesis, group, source, seconds, str(row.get("note") or ""))


def _text(file: Path, key: str, row: Row, names: Iterable[str]) -> str:
    for name in names:
        if name in row:
            value = row[name]
            if value is None:
                return ""
            if not isinstance(value, str):
                raise DataError(f"{file}: {name} of {key} is no text")
            return parse_target(value)[1]
    raise DataError(f"{file}: clip {key} has none of {', '.join(names)}")


def _rows(file: Path) -> list[str] | dict[str, Row]:
    if file.is_dir():
        file = _hypotheses_of(file)
    text = read_text(file, pipes=True)
    match file.suffix.lower():
        case ".jsonl" | ".json" | ".ndjson":
            found: list[str] | dict[str, Row] = _unique(file, _json_lines(file, text))
        case ".csv" | ".tsv":
            found = _unique(file, _table(file, text, "\t" if file.suffix.lower() == ".tsv" else ","))
        case ".trn":
            found = _unique(file, _lines_of(_TRN, file, text))
        case "" if file.name == "text":
            found = _unique(file, _lines_of(_KALDI, file, text))
        case ".txt" | "":
            found = text.removesuffix("\n").split("\n") if text else []
        case other:
            raise UsageError(
                f"{file}: {other} is no kind of transcripts that is read; give .txt, .jsonl, .csv, .tsv, .trn or text"
            )
    if not found:
        raise DataError(f"{file} holds no transcripts")
    return found


def _hypotheses_of(folder: Path) -> Path:
    """The file in a folder of ``eval``. Raises DataError, which names what can be scored in another folder."""
    if (file := folder / HYPOTHESES).exists():
        return file
    is_run = (folder / "metrics.jsonl").exists()
    below = [path.parent for path in sorted(folder.glob(f"*/{HYPOTHESES}"))]
    below += sorted(folder.glob("samples/step-*-eval.jsonl"))[-1:] if is_run else []
    kind, model = ("run", folder) if is_run else ("folder", "MODEL")
    give = f"give {' or '.join(map(str, below))}, or make one" if below else "make one"
    raise DataError(
        f"{folder} is a {kind} and no evaluation, which holds {HYPOTHESES}; {give}: "
        f"hebrew-asr eval --model {model} --data MANIFEST --out heard"
    )


def _lines_of(form: re.Pattern[str], file: Path, text: str) -> Iterable[tuple[str, Row]]:
    """Kaldi's ``id words`` or sclite's ``words (id)``."""
    for place, line in enumerate(text.split("\n"), 1):  # a text may hold other separators, such as U+2028
        if line.strip():
            match = form.fullmatch(line.strip())
            if match is None:
                raise DataError(f"{file}, line {place} has no id: sclite's files hold lines such as: words (id)")
            yield match["id"], {"text": match["text"].strip()}


def _json_lines(file: Path, text: str) -> Iterable[tuple[str, Row]]:
    for place, row in _json_values(file, text):
        if not isinstance(row, dict):
            raise DataError(f"{file}, line {place} holds no JSON object")
        yield _key(file, place, row), row


def _json_values(file: Path, text: str) -> Iterator[tuple[int, Any]]:
    """Those of an array, or of a line each, numbered from 1."""
    if text.lstrip().startswith("["):
        yield from enumerate(_json_of(file, 1, text), 1)
        return
    for place, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield place, _json_of(file, place, line)


def _json_of(file: Path, place: int, text: str) -> Any:
    try:
        return from_json(text)
    except ValueError as error:
        raise DataError(f"{file}, line {place} is not JSON") from error


def _table(file: Path, text: str, delimiter: str) -> Iterable[tuple[str, Row]]:
    head = text.partition("\n")[0]
    if delimiter == "," and ";" in head and "," not in head:  # a spreadsheet's, where a comma is the decimal sign
        delimiter = ";"
    is_quoted = delimiter != "\t" or head.startswith('"')  # else a quotation mark is a letter, as for prepare
    quoting = csv.QUOTE_MINIMAL if is_quoted else csv.QUOTE_NONE
    try:
        reader = csv.DictReader(io.StringIO(text), delimiter=delimiter, strict=True, quoting=quoting)
        names = list(filter(None, reader.fieldnames or ()))
        if len(names) > len(set(names)):
            raise DataError(f"{file} has two columns of one name among {', '.join(names)}")
        for row in reader:
            if None in row or None in row.values():
                raise DataError(f"{file}, line {reader.line_num} has another number of columns than the first line")
            said = row if is_quoted else {name: unquoted(value) for name, value in row.items()}
            yield _key(file, reader.line_num, said), said
    except csv.Error as error:
        raise DataError(f"{file} is no CSV with a line of names first ({error})") from error


def _key(file: Path, number: int, row: Row) -> str:
    for name in _IDS:
        if isinstance(row.get(name), str | int) and row[name] != "":
            return str(row[name])
    if _holds_both(row):
        return str(number)  # which nothing else has to match
    raise DataError(f"{file}, line {number} has no id; name it by one of {', '.join(_IDS)}")


def _unique(file: Path, rows: Iterable[tuple[str, Row]]) -> dict[str, Row]:
    found: dict[str, Row] = {}
    for key, row in rows:
        if key in found:
            raise DataError(f"{file} holds {key} twice")
        found[key] = row
    return found


def as_json_lines(transcripts: Iterable[Transcript]) -> str:
    """The form in which ``eval`` keeps what was heard; ``read_pairs`` reads it."""
    rows = ({key: value for key, value in asdict(clip).items() if value not in ("", None)} for clip in transcripts)
    needed = {"id": "", "reference": "", "hypothesis": ""}
    return "".join(json.dumps({**needed, **row}, ensure_ascii=False) + "\n" for row in rows)
