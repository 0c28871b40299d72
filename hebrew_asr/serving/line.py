"""The line in which requests wait for the model: what waits together is decoded together."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import IO

import numpy as np

from hebrew_asr.audio.decode import decode_blocks
from hebrew_asr.errors import DataError
from hebrew_asr.inference.long_form import Options, Segment, Transcript, transcribe_all
from hebrew_asr.inference.transcriber import Transcriber


class Ending(Exception):
    """The outcome of a job that the end of the server cut off."""


@dataclass(eq=False)
class Job:
    """One recording to transcribe. The two functions are called from the model's thread, or from :meth:`Line.end`, and
    ``on_done`` once."""

    sound: IO[bytes]
    """Closed by the line when the job has its outcome."""
    name: str
    language: str | None
    prompt: str
    on_segment: Callable[[Segment], None]
    on_done: Callable[[Transcript | Exception], None]
    is_canceled: threading.Event = field(default_factory=threading.Event)

    def blocks(self) -> Iterator[np.ndarray]:
        """Its sound, until nobody waits for it any more."""
        gone = DataError("the client has gone")
        if self.is_canceled.is_set():
            raise gone
        for block in decode_blocks(self.sound, name=self.name):
            if self.is_canceled.is_set():
                raise gone
            yield block


class Line:
    """A thread that owns the model."""

    def __init__(self, transcriber: Transcriber, *, most_waiting: int, batch_pieces: int):
        """``most_waiting``: jobs in line beside those that are decoded."""
        self._transcriber, self._batch_pieces = transcriber, batch_pieces
        self._waiting: queue.Queue[Job] = queue.Queue(most_waiting)
        self._open: set[Job] = set()
        self._has_ended = False
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def tokens(self, text: str) -> list[int]:
        """Ids of a text's tokens, as the model has them."""
        return self._transcriber.tokens(text)

    def add(self, job: Job) -> bool:
        """Whether there was room in the line."""
        self._open.add(job)
        if self._has_ended:
            self._finish(job, Ending())
            return True
        try:
            self._waiting.put_nowait(job)
        except queue.Full:
            self._open.discard(job)
            return False
        return True

    def end(self) -> None:
        """Tell every job that the server is ending. The thread is left in its batch: no one waits for it any more."""
        self._has_ended = True
        for job in tuple(self._open):
            self._tell(job, Ending())
            job.is_canceled.set()

    def _finish(self, job: Job, outcome: Transcript | Exception) -> None:
        job.sound.close()
        self._tell(job, outcome)

    def _tell(self, job: Job, outcome: Transcript | Exception) -> None:
        try:
            self._open.remove(job)  # at once, so that of two threads one tells
        except KeyError:
            return
        job.on_done(outcome)

    def _work(self) -> None:
        while True:
            jobs = [self._waiting.get()]
            while len(jobs) < self._batch_pieces:
                try:
                    jobs.append(self._waiting.get_nowait())
                except queue.Empty:
                    break
            for alike in dict.fromkeys((job.language, job.prompt) for job in jobs):
                self._transcribe([job for job in jobs if (job.language, job.prompt) == alike])

    def _transcribe(self, jobs: list[Job]) -> None:
        """All outcomes are told, whatever happens: the model's thread goes on."""
        language, prompt = jobs[0].language, jobs[0].prompt
        options = Options(prompt, batch_pieces=self._batch_pieces, batches_at_once=1)  # clients watch segments come
        told: set[Job] = set()
        try:
            recordings = ((job, job.blocks()) for job in jobs)
            speaking = self._transcriber.in_language(language)
            for job, outcome in transcribe_all(speaking, recordings, options, lambda job, part: job.on_segment(part)):
                told.add(job)
                self._finish(job, outcome)
        except Exception as error:  # out of memory, a full disk, a fault of ours: the request's loss, not the server's
            for job in jobs:
                if job not in told:
                    self._finish(job, error)
