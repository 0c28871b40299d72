"""Log-mel features of packed clips on the device: speed perturbation, spectrogram and SpecAugment in one pass.

Every clip gets the features it would get alone from transformers' ``Qwen3ASRFeatureExtractor``. All sizes come from the
host in a :class:`MelPlan`, and every step is an index computation, so nothing here waits for the device.

Dimension letters: S samples of all recordings, N clips, R rows of ``HOP`` samples, C chunks, B mel bins, F frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.audio_utils import mel_filter_bank

from hebrew_asr.audio.augment import Masks, perturbed_length, speed_ratio
from hebrew_asr.audio.decode import SAMPLE_RATE_HZ
from hebrew_asr.audio.frames import CHUNK_FRAMES, HOP, MEL_BINS, MIN_SAMPLES, N_FFT, num_chunks, num_frames

# At 1.1 times the tempo what lies above 7.27 kHz would come out above 8 kHz, and folds back as tones that nobody spoke.
# These leave 69 dB less of tones of 7.3 to 7.95 kHz, and up to 6.3 kHz everything. torchaudio's defaults (a Hann window
# over 6 zero crossings, rolloff 0.99) leave 7 to 11 dB less, and take 1.4 dB at 6.25 kHz.
SINC_ZERO_CROSSINGS = 32
SINC_ROLLOFF = 0.94
SINC_KAISER_BETA = 6.5
ROWS_OF_A_PLAN = 2048
"""cuFFT plans anew for each number of rows, and waits for the default stream meanwhile, on which a step may be under
way: with a number of its own for each batch, the launch of every other kernel waited with it."""


@dataclass(frozen=True)
class ResamplePlan:
    """The clips that share one speed."""

    ratio: Fraction
    """Recorded samples to played samples, in lowest terms: 11/10 is 1.1 times the tempo."""
    first_sample_N: Tensor
    """Start of each clip in the packed recording."""
    samples_N: Tensor
    """Recorded samples of each clip."""
    first_row_N: Tensor
    """The recording is laid in rows of ``ratio.numerator`` samples, and each makes ``ratio.denominator`` of output;
    this is each clip's first, of ``reach`` rows of zeros before its own."""
    rows_N: Tensor
    """The last clip's with the zeros after it."""
    num_rows: int
    kernel_UTP: Tensor
    """Rows of taps, from ``reach`` rows before a row of output to ``reach`` after it: for each sample of the row, and
    each of the output. Carried along so that nothing is copied to the device later."""

    @property
    def reach(self) -> int:
        """Rows before and after its own that a row of output is made of."""
        return len(self.kernel_UTP) // 2


@dataclass(frozen=True)
class MelPlan:
    """Where everything lies, made on the host by :func:`plan_mel`; integer tensors and plain integers."""

    resampled: tuple[ResamplePlan, ...]
    """One entry for each speed other than 1 in the batch."""
    first_sample_N: Tensor
    """Start of each clip in the recording followed by all resampled outputs."""
    samples_N: Tensor
    """Samples of each clip after speed perturbation."""
    frames_N: Tensor
    first_row_N: Tensor
    rows_N: Tensor
    """Rows of ``HOP`` samples that a clip's analysis windows span."""
    num_rows: int
    clip_C: Tensor
    """The clip that each chunk belongs to."""
    first_frame_C: Tensor
    """First frame of each chunk, counted in its clip."""
    first_chunk_N1: Tensor
    """Start of each clip's chunks, and their total."""
    padding_chunks: int
    """Chunks of zeros wanted after the last clip's."""
    freq_masks_NM2: Tensor | None
    time_masks_NM2: Tensor | None
    """Both are None when nothing is masked."""


class MelBatch(Protocol):
    """What :class:`LogMel` reads of a batch."""

    @property
    def waveform_S(self) -> Tensor: ...
    @property
    def mel(self) -> MelPlan: ...


def plan_mel(
    samples: Sequence[int], speeds: Sequence[float], masks: Sequence[Masks] | None, padding_chunks: int = 0
) -> MelPlan:
    """Lay out the work for clips of ``samples`` recorded samples each, played at ``speeds``.

    ``masks`` holds one entry a clip, all with the same number of masks; ``padding_chunks`` are added at the end.
    """
    first, resampled = _plan_resampling(np.asarray(samples, dtype=np.int64), [speed_ratio(speed) for speed in speeds])
    played = [perturbed_length(count, speed) for count, speed in zip(samples, speeds, strict=True)]
    frames_of_clips = [num_frames(count) for count in played]
    frames = np.asarray(frames_of_clips, dtype=np.int64)
    rows = frames + 2  # the last window ends 240 samples past the last hop
    chunks = np.asarray([num_chunks(count) for count in frames_of_clips], dtype=np.int64)
    chunk_in_clip = np.arange(chunks.sum()) - np.repeat(_starts(chunks), chunks)
    return MelPlan(
        resampled=resampled,
        first_sample_N=torch.from_numpy(first),
        samples_N=torch.tensor(played),
        frames_N=torch.from_numpy(frames),
        first_row_N=torch.from_numpy(_starts(rows)),
        rows_N=torch.from_numpy(rows),
        num_rows=int(rows.sum()),
        clip_C=torch.from_numpy(np.repeat(np.arange(len(frames)), chunks)),
        first_frame_C=torch.from_numpy(chunk_in_clip * CHUNK_FRAMES),
        first_chunk_N1=torch.from_numpy(np.append(_starts(chunks), chunks.sum())),
        padding_chunks=padding_chunks,
        freq_masks_NM2=None if masks is None else torch.from_numpy(np.stack([mask.freq for mask in masks])),
        time_masks_NM2=None if masks is None else torch.from_numpy(np.stack([mask.time for mask in masks])),
    )


def _plan_resampling(recorded: np.ndarray, ratios: Sequence[Fraction]) -> tuple[np.ndarray, tuple[ResamplePlan, ...]]:
    """Where each clip's played samples begin once all outputs follow the recording, and one plan a speed."""
    first_recorded = _starts(recorded)
    first, total = first_recorded.copy(), int(recorded.sum())
    plans = []
    for ratio in sorted(set(ratios) - {Fraction(1)}):
        clips = np.flatnonzero([other == ratio for other in ratios])
        kernel = _sinc_kernel(ratio)
        reach = len(kernel) // 2
        rows = reach - -recorded[clips] // ratio.numerator  # rounded up; the zeros before a clip end the one before it
        first_row, num_rows = _starts(rows), int(rows.sum())
        rows[-1] += reach
        plans.append(
            ResamplePlan(
                ratio=ratio,
                first_sample_N=torch.from_numpy(first_recorded[clips]),
                samples_N=torch.from_numpy(recorded[clips]),
                first_row_N=torch.from_numpy(first_row),
                rows_N=torch.from_numpy(rows),
                num_rows=num_rows + reach,
                kernel_UTP=torch.from_numpy(kernel),
            )
        )
        first[clips] = total + first_row * ratio.denominator
        total += (num_rows - reach) * ratio.denominator
    return first, tuple(plans)


def _starts(lengths: np.ndarray) -> np.ndarray:
    return np.cumsum(lengths) - lengths


class LogMel(nn.Module):
    """Packed int16 waveform to chunks of log-mel features in float32; no parameters, never differentiated.

    Agrees with ``Qwen3ASRFeatureExtractor`` on each clip alone to about 1e-5: reflection at the clip's own edges, zeros
    up to half a second, last STFT frame dropped, floor 8 decades below the clip's own maximum.
    """

    def __init__(self) -> None:
        super().__init__()
        filters = mel_filter_bank(
            num_frequency_bins=1 + N_FFT // 2,
            num_mel_filters=MEL_BINS,
            min_frequency=0.0,
            max_frequency=SAMPLE_RATE_HZ / 2,
            sampling_rate=SAMPLE_RATE_HZ,
            norm="slaney",
            mel_scale="slaney",
        )
        self.register_buffer("filters", torch.from_numpy(filters).float(), persistent=False)
        self.register_buffer("window", torch.hann_window(N_FFT), persistent=False)

    @torch.no_grad()
    def forward(self, batch: MelBatch) -> Tensor:
        """Features of a packed batch.

        Args:
            batch: a ``PackedBatch`` on this module's device.

        Returns:
            mel_CBF: (chunks, 128, 100) float32; zero past the end of each clip, as in the native path for a clip alone.
        """
        plan = batch.mel
        recorded = batch.waveform_S.float() / 32768.0
        waveform = torch.cat([recorded, *(_resample(recorded, part) for part in plan.resampled)])
        log_mel_RB = self._log_mel_rows(waveform, plan)
        frame_CF = plan.first_frame_C[:, None] + torch.arange(CHUNK_FRAMES, device=waveform.device)
        valid_C1F = (frame_CF < plan.frames_N[plan.clip_C, None])[:, None]
        row_CF = (plan.first_row_N[plan.clip_C, None] + frame_CF).clamp(max=log_mel_RB.shape[0] - 1)
        loudest_CF = log_mel_RB.amax(1)[row_CF].masked_fill(~valid_C1F[:, 0], -torch.inf)
        loudest_C = _per_clip("max", loudest_CF.amax(1), plan)
        mel_CBF = log_mel_RB[row_CF].transpose(1, 2)
        mel_CBF = torch.maximum(mel_CBF, loudest_C[:, None, None] - 8.0).add_(4.0).div_(4.0)
        mel_CBF = mel_CBF.masked_fill_(~valid_C1F, 0.0)
        mel_CBF = self._mask(mel_CBF, frame_CF, valid_C1F, plan)
        return F.pad(mel_CBF, (0, 0, 0, 0, 0, plan.padding_chunks)).contiguous()

    def _mask(self, mel_CBF: Tensor, frame_CF: Tensor, valid_C1F: Tensor, plan: MelPlan) -> Tensor:
        if plan.freq_masks_NM2 is None or plan.time_masks_NM2 is None:
            return mel_CBF
        bins_B = torch.arange(MEL_BINS, device=mel_CBF.device)
        masked_CBF = _within(bins_B[None], plan.freq_masks_NM2[plan.clip_C])[:, :, None]
        masked_CBF = (masked_CBF | _within(frame_CF, plan.time_masks_NM2[plan.clip_C])[:, None]) & valid_C1F
        # The clip's mean, as in the paper, whose features have mean zero. A fixed 0 would be the loudest part of a
        # quiet recording, since these features move with the recording's level.
        mean_C = _per_clip("sum", mel_CBF.sum((1, 2)), plan) / (plan.frames_N[plan.clip_C] * MEL_BINS)
        return torch.where(masked_CBF, mean_C[:, None, None], mel_CBF)

    def _log_mel_rows(self, waveform: Tensor, plan: MelPlan) -> Tensor:
        """log10 mel power of the window at every row: (rows - 2, bins). Two rows a clip are between clips: unused."""
        ones = torch.ones_like(plan.rows_N)
        clip_R = torch.repeat_interleave(ones.cumsum(0) - 1, plan.rows_N, output_size=plan.num_rows)
        row_R = torch.arange(plan.num_rows, device=waveform.device) - plan.first_row_N[clip_R]
        first_R1, samples_R1 = (per_clip[clip_R, None].int() for per_clip in (plan.first_sample_N, plan.samples_N))
        # One element a sample: 32 bits and in place, since a CPU spends longer on these than on the transform.
        offset_RH = (row_R * HOP - N_FFT // 2)[:, None].int() + torch.arange(HOP, device=waveform.device).int()
        last_R1 = samples_R1.clamp(min=MIN_SAMPLES) - 1
        offset_RH.abs_().neg_().add_(last_R1).abs_().neg_().add_(last_R1)  # reflected at both edges
        silent_RH = offset_RH >= samples_R1
        source_RH = offset_RH.add_(first_R1).clamp_(max=waveform.shape[0] - 1)
        padded = waveform.index_select(0, source_RH.flatten()).masked_fill_(silent_RH.flatten(), 0.0)
        if padded.is_cuda:
            padded = F.pad(padded, (0, -plan.num_rows % ROWS_OF_A_PLAN * HOP))
        spectrum = torch.fft.rfft(padded.unfold(0, N_FFT, HOP) * self.window)[: plan.num_rows - 2]
        power = spectrum.real.square().addcmul_(spectrum.imag, spectrum.imag)
        return (power @ self.filters).clamp(min=1e-10).log10()


def _per_clip(reduce: str, value_C: Tensor, plan: MelPlan) -> Tensor:
    """Reduce over each clip's chunks, and give every chunk its clip's result. Sums have a fixed order."""
    per_clip = torch.segment_reduce(value_C, reduce, offsets=plan.first_chunk_N1, unsafe=True)
    return per_clip[plan.clip_C]


def _within(position_XP: Tensor, intervals_CM2: Tensor) -> Tensor:
    """Whether a position lies in one of the half-open intervals: (C, P) from (C or 1, P) and (C, M, 2)."""
    first_C1M, stop_C1M = intervals_CM2[:, None].unbind(-1)
    return ((position_XP[..., None] >= first_C1M) & (position_XP[..., None] < stop_C1M)).any(-1)


def _resample(recorded: Tensor, plan: ResamplePlan) -> Tensor:
    """Play clips faster or slower: samples from ``first_row_N`` times ``denominator`` on are each clip's."""
    ones, reach, width = torch.ones_like(plan.rows_N), plan.reach, plan.ratio.numerator
    clip_R = torch.repeat_interleave(ones.cumsum(0) - 1, plan.rows_N, output_size=plan.num_rows)
    row_R = torch.arange(plan.num_rows, device=recorded.device) - plan.first_row_N[clip_R] - reach
    # One element a sample, in 32 bits and in place, as in _log_mel_rows.
    offset_RT = (row_R * width)[:, None].int() + torch.arange(width, device=recorded.device).int()
    outside_RT = (offset_RT < 0) | (offset_RT >= plan.samples_N[clip_R, None])
    source_RT = offset_RT.add_(plan.first_sample_N[clip_R, None].int()).clamp_(0, recorded.shape[0] - 1)
    rows_RT = recorded.index_select(0, source_RT.flatten()).masked_fill_(outside_RT.flatten(), 0.0).view(-1, width)
    # Row after row of taps: all that an output reads, laid side by side, would be nine times the recording.
    played_QP = recorded.new_zeros(plan.num_rows - 2 * reach, plan.ratio.denominator)
    for first, kernel_TP in enumerate(plan.kernel_UTP):
        played_QP.addmm_(rows_RT[first : first + len(played_QP)], kernel_TP)
    return played_QP.flatten()


@lru_cache
def _sinc_kernel(ratio: Fraction) -> np.ndarray:
    """Kaiser-windowed sinc of :func:`torchaudio.functional.resample` (J. O. Smith, "Digital audio resampling").

    Returns:
        (rows of taps, numerator, denominator) float32, see ``ResamplePlan.kernel_UTP``.
    """
    recorded, played = ratio.numerator, ratio.denominator
    cutoff = min(recorded, played) * SINC_ROLLOFF
    reach = int(np.ceil(SINC_ZERO_CROSSINGS / cutoff))
    taps = np.arange(-reach * recorded, (reach + 1) * recorded)[:, None] / recorded - np.arange(played)[None] / played
    taps = np.clip(taps * cutoff, -SINC_ZERO_CROSSINGS, SINC_ZERO_CROSSINGS)
    inside = np.sqrt(1 - (taps / SINC_ZERO_CROSSINGS) ** 2)
    window = np.where(inside > 0, np.i0(SINC_KAISER_BETA * inside) / np.i0(SINC_KAISER_BETA), 0.0)
    return (np.sinc(taps) * window * cutoff / recorded).astype(np.float32).reshape(-1, recorded, played)
