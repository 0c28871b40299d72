"""One sound in every container and encoding that people bring is heard whole; one that is cut off is named."""

from __future__ import annotations

import base64
import gzip
import io
import os
import struct
import threading
import time
import tracemalloc
import wave
import zlib
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import numpy as np
import pytest
import soxr

from hebrew_asr.audio.containers import _crc8, _flac_frame, flac_length, flac_starts
from hebrew_asr.audio.decode import SAMPLE_RATE_HZ, Sound, decode, decode_blocks, duration_s
from hebrew_asr.audio.mpeg import frames_of
from hebrew_asr.audio.readers import blocks_of
from hebrew_asr.audio.reading import Reading
from hebrew_asr.audio.source import AudioError, Opened, TooLong, TruncatedAudio, opened
from tests.support import corpora, sounds
from tests.support.sounds import CODED, EXACT, LASTS_S, by_ffmpeg, by_libsndfile, voice


def likeness(got: np.ndarray, wanted: np.ndarray) -> float:
    """Largest normalized correlation at any delay of up to 0.1 s."""
    size = len(got) + len(wanted)
    crossed = np.fft.irfft(np.fft.rfft(got, size) * np.conj(np.fft.rfft(wanted, size)), size)
    near = np.concatenate([crossed[:1600], crossed[-1600:]])
    return float(near.max() / np.sqrt(np.square(got).sum() * np.square(wanted).sum()))


@pytest.fixture(scope="module")
def reference() -> np.ndarray:
    return voice(SAMPLE_RATE_HZ)


@pytest.mark.parametrize("name", EXACT)
def test_the_same_samples_from_every_lossless_file(name, reference, tmp_path):
    content = EXACT[name]()
    got = decode(content)
    assert got.shape == reference.shape
    np.testing.assert_allclose(got, reference, atol=1.01 / 32768)
    (tmp_path / "x").write_bytes(content)
    assert np.array_equal(decode(tmp_path / "x"), got)
    assert np.array_equal(np.concatenate(list(decode_blocks(io.BytesIO(content)))), got)
    assert duration_s(tmp_path / "x") == pytest.approx(LASTS_S, abs=1e-6)


@pytest.mark.parametrize("name", CODED)
def test_much_the_same_from_every_coded_file(name, tmp_path):
    make, tolerance_s = CODED[name]
    content = make()
    sound = Sound(content)
    got = np.concatenate(list(sound))
    assert len(got) / SAMPLE_RATE_HZ == pytest.approx(LASTS_S, abs=tolerance_s + 1e-6)
    wanted = soxr.resample(voice(sound.rate_hz), sound.rate_hz, SAMPLE_RATE_HZ)
    assert likeness(got, wanted) > (0.75 if sound.rate_hz == 8_000 else 0.97)
    (tmp_path / "x").write_bytes(content)
    assert np.array_equal(decode(tmp_path / "x"), got)
    assert duration_s(tmp_path / "x") == pytest.approx(sound.lasts_s, abs=0.001)


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 22_050, 32_000, 44_100, 48_000, 96_000, 192_000])
def test_every_rate(rate_hz):
    got = decode(by_libsndfile(voice(rate_hz), rate_hz, "WAV", "FLOAT"))
    assert np.array_equal(got, soxr.resample(voice(rate_hz), rate_hz, SAMPLE_RATE_HZ))


JOINED = {
    "mp3": cache(lambda rate_hz: by_libsndfile(voice(rate_hz), rate_hz, "MP3", "MPEG_LAYER_III")),
    "ogg": cache(lambda rate_hz: by_libsndfile(voice(rate_hz), rate_hz, "OGG", "VORBIS")),
    "opus": cache(lambda rate_hz: by_libsndfile(voice(48_000), 48_000, "OGG", "OPUS")),
    "aac": cache(lambda rate_hz: by_ffmpeg(voice(rate_hz), rate_hz, "adts", "aac")),
    "m4a": cache(lambda rate_hz: by_ffmpeg(voice(rate_hz), rate_hz, "ipod", "aac")),
}


@pytest.mark.parametrize("name", JOINED)
@pytest.mark.parametrize("rates_hz", [(44_100, 44_100), (44_100, 22_050), (16_000, 48_000, 32_000)])
def test_joined_files_are_heard_to_the_end(name, rates_hz):
    content = b"".join(JOINED[name](rate_hz) for rate_hz in rates_hz)
    got = decode(content)
    assert len(got) / SAMPLE_RATE_HZ == pytest.approx(LASTS_S * len(rates_hz), abs=0.16 * len(rates_hz))
    last = got[-int(2.5 * SAMPLE_RATE_HZ) :]
    assert likeness(last, voice(SAMPLE_RATE_HZ)[-len(last) :]) > 0.9


def test_joined_mp3_with_tags_and_junk_between():
    one = JOINED["mp3"](44_100)
    tag = b"TAG" + bytes(125)
    id3 = b"ID3\x04\x00\x00\x00\x00\x0f\x76" + b"\xff\xfb" * 1019
    for between in (b"", tag, id3, tag + id3, bytes(3_000), b"RIFF junk " * 50):
        assert len(decode(id3 + one + between + one + tag)) / SAMPLE_RATE_HZ == pytest.approx(2 * LASTS_S, abs=0.1)


@pytest.mark.parametrize("name", ["WAV", "AIFF", "AU", "CAF", "W64", "RF64"])
def test_joined_files_of_plain_samples_are_heard_to_the_end(name, tmp_path):
    """With whatever stands after the sound of the first, also where they differ in rate, kind and padding."""
    one = by_libsndfile(voice(16_000), 16_000, name, "PCM_16")
    odd = by_libsndfile(voice(16_000)[:-1], 16_000, "WAV", "PCM_U8")
    content = one + odd + by_libsndfile(voice(32_000), 32_000, "WAV", "FLOAT")
    (tmp_path / "x").write_bytes(content)
    for source in (content, tmp_path / "x"):
        assert len(decode(source)) == 3 * LASTS_S * SAMPLE_RATE_HZ - 1
    assert duration_s(content) == pytest.approx(3 * LASTS_S - 1 / 16_000)
    last = soxr.resample(voice(32_000), 32_000, SAMPLE_RATE_HZ)
    assert np.array_equal(decode(content)[-len(last) :], last)
    with pytest.raises(TruncatedAudio):
        decode(content[:-100])
    note = b"LIST" + (12).to_bytes(4, "little") + b"INFOISFTRIFF" + b"id3 " + (3).to_bytes(4, "little") + b"ID3\0"
    wav = by_libsndfile(voice(16_000), 16_000, "WAV", "PCM_16")
    assert len(decode(wav + note + one)) == 2 * LASTS_S * SAMPLE_RATE_HZ
    assert len(decode(wav + note)) == LASTS_S * SAMPLE_RATE_HZ
    with pytest.raises(TooLong):
        decode(content, longest_s=1.5 * LASTS_S)
    with opened(content, name) as source:
        assert len(list(blocks_of(Reading(source, 1.5 * LASTS_S)))) < 12, "what is over the limit is counted in seconds"


def test_samples_after_what_a_wav_header_counts_are_not_passed_over():
    wav = by_libsndfile(voice(16_000), 16_000, "WAV", "PCM_16")
    start, count = wav.index(b"data") + 8, len(wav) - wav.index(b"data") - 8
    for riff in (None, 0, 0xFFFFFFFF):
        with pytest.raises(AudioError, match="the file goes on"):
            decode(sounds.with_lengths(wav, riff, count // 2))
    au = by_libsndfile(voice(16_000), 16_000, "AU", "PCM_16")
    with pytest.raises(AudioError, match="the file goes on"):
        decode(au[:8] + (count // 2).to_bytes(4, "big") + au[12:])
    chunk = b"LIST" + (2_000).to_bytes(4, "little") + b"INFOISFT" + b"\xff" * 1_992
    for after in (chunk, b"id3 " + chunk[4:], b"ID3\x04" + bytes(2_000), bytes(4_096), b"\xff" * 100):
        assert len(decode(wav + after)) == LASTS_S * SAMPLE_RATE_HZ
        odd = by_libsndfile(voice(16_000)[:-1], 16_000, "WAV", "PCM_U8")[:-1]  # some programs do not pad it
        assert len(decode(odd + after)) == len(decode(odd))
        for unknown in (0, 0xFFFFFFFF):  # libsndfile itself sees a chunk at the end, or takes it for some samples
            assert len(decode(sounds.with_lengths(wav, None, unknown) + after)) >= (len(wav) - start) // 2


def test_joined_flacs_are_heard_to_the_end():
    one = by_libsndfile(voice(16_000), 16_000, "FLAC", "PCM_16")
    other = by_ffmpeg(voice(44_100), 44_100, "flac", "flac", piped=True)
    got = decode(one + other + one)
    assert len(got) == 3 * LASTS_S * SAMPLE_RATE_HZ
    assert likeness(got[-48_000:], voice(16_000)) > 0.999


@pytest.mark.parametrize("between", [0, 5_000, 9_000, 40_000])
@pytest.mark.parametrize("frames", [60, 4_000, 48_000])
def test_a_flac_after_another_is_heard_however_short_it_is(frames, between, tmp_path):
    """libFLAC reads ahead, and has seen all of a short one when it ends."""
    long, short = (by_libsndfile(voice(16_000)[:count], 16_000, "FLAC", "PCM_16") for count in (None, frames))
    id3 = b"ID3\x04\0\0\0\0\x0f\x76" + bytes(2038)
    lasts = LASTS_S * SAMPLE_RATE_HZ
    for first, rest in ((long, short), (id3 + long, id3 + short), (id3 + short, long)):
        content = first + b"\x55" * between + rest
        (tmp_path / "x").write_bytes(content)
        for source in (content, tmp_path / "x"):
            assert len(decode(source)) == lasts + frames
            assert duration_s(source) == pytest.approx((lasts + frames) / SAMPLE_RATE_HZ)
    with pytest.raises(AudioError, match="lost sync" if frames == lasts else r"states 3.00 s, and 1\.\d\d s are heard"):
        decode(long[: len(long) // 2] + short)
    assert len(decode(id3 + short)) == frames


def lame_numbers(mp3: bytes) -> tuple[int, int, int]:
    """Where the tag of LAME stands that tells delay and padding, and both, in samples."""
    at = max(mp3.find(b"Xing"), mp3.find(b"Info")) + 8 + 4 + 4 + 100 + 4 + 21
    both = int.from_bytes(mp3[at : at + 3], "big")
    return at, both >> 12, both & 0xFFF


@pytest.mark.parametrize("rate_hz", [8_000, 44_100])
def test_a_tag_of_lame_is_believed_as_far_as_an_encoder_adds_silence(rate_hz):
    """Decoders leave out what it says, up to half a second at each end."""
    wanted = voice(rate_hz)
    mp3 = by_ffmpeg(wanted, rate_hz, "mp3", "libmp3lame")
    at, delay, padding = lame_numbers(mp3)
    assert (delay, padding > 575) == (576, True)
    lasts = len(decode(mp3))
    assert lasts == pytest.approx(LASTS_S * SAMPLE_RATE_HZ, abs=20)
    for lie in (4095, 0), (0, 4095), (4095, 4095), (1153, padding):
        lying = mp3[:at] + (lie[0] << 12 | lie[1]).to_bytes(3, "big") + mp3[at + 3 :]
        got = decode(lying)
        longer = len(got) - lasts - (delay + padding) * SAMPLE_RATE_HZ / rate_hz
        assert longer == pytest.approx(0, abs=2), "all is heard, and the silence around it"
        decoder_delay = 529  # samples, which decoders leave out where the tag is believed
        assert likeness(got[round((delay + decoder_delay) * SAMPLE_RATE_HZ / rate_hz) :], decode(mp3)) > 0.98
        assert duration_s(lying) == pytest.approx(len(got) / SAMPLE_RATE_HZ, abs=0.001)
        with pytest.raises(TruncatedAudio, match="its tag counts"):
            decode(lying[: len(lying) * 3 // 4])
    for fewer in (1, 2, 3):
        count_at = max(mp3.find(b"Xing"), mp3.find(b"Info")) + 8
        count = int.from_bytes(mp3[count_at : count_at + 4], "big") - fewer
        assert len(decode(mp3[:count_at] + count.to_bytes(4, "big") + mp3[count_at + 4 :])) >= lasts


@pytest.mark.parametrize("junk", [bytes(700), b"a line of a log\n" * 20, b"ID3\x04\0\0\0\0\x0f\x76" + bytes(5_000)])
def test_an_mp3_with_a_tag_after_junk_is_heard_and_its_cut_is_named(junk):
    mp3 = by_ffmpeg(voice(16_000), 16_000, "mp3", "libmp3lame", muxer={"id3v2_version": "0"})
    assert len(decode(junk + mp3)) == pytest.approx(LASTS_S * SAMPLE_RATE_HZ, abs=1800)
    with pytest.raises(TruncatedAudio, match="its tag counts"):
        decode(junk + mp3[: len(mp3) // 2])


@pytest.mark.parametrize("share_padded", [0.0, 0.04, 0.96, 1.0])
def test_every_frame_of_an_mp3_is_counted_though_most_are_counted_many_at_a_time(share_padded):
    """Runs of one bit rate, longer than what is counted at once and than what is read at once."""
    sizes = {0x70: 313, 0x72: 314, 0x80: 365, 0x82: 366}  # third bytes: 96 and 112 kbit/s at 44.1 kHz, 2 is padding
    rng = np.random.default_rng(5)
    runs = [(0x70, 2), (0x80, 1), (0x70, 3_700), (0x80, 364), (0x70, 500)]
    kinds = [rate | 2 * int(rng.random() < share_padded) for rate, count in runs for _ in range(count)]
    frames = [bytes((0xFF, 0xFB, kind, 0xC4)) + bytes(sizes[kind] - 4) for kind in kinds]
    counted = frames_of(as_opened(b"".join(frames)))
    assert (counted.frames, counted.uniform, counted.ends_whole) == (len(frames), True, True)
    counted = frames_of(as_opened(b"".join(frames)[:-1]))
    assert (counted.frames, counted.ends_whole) == (len(frames) - 1, False)
    stereo = frames[-1][:3] + b"\x44" + frames[-1][4:]
    counted = frames_of(as_opened(b"".join([*frames[:1000], stereo, *frames[1000:]])))
    assert (counted.frames, counted.uniform) == (len(frames) + 1, False)


def as_opened(content: bytes) -> Opened:
    return Opened(io.BytesIO(content), len(content), "clip")


def test_every_flac_is_found_wherever_it_begins():
    start = b"fLaC\x80\0\0\x22"
    for place in (8, 9, *range((1 << 18) - 9, (1 << 18) + 2), (1 << 19) + 1):
        content = start + b"fL" + bytes(place - 10) if place > 9 else start + bytes(place - 8)
        content += start + b"aC"
        assert flac_starts(as_opened(content)) == [0, place]


KNOWN_LENGTH = [name for name in {**EXACT, **CODED} if "pipe" not in name and "live" not in name]
NO_LENGTH = {"mp2", "aac", "aac in mpegts", "aac in flv", "amr", "ac3", "mp4 in fragments"}
"""These state no length: the end of a cut file cannot be told from the end of a whole one."""


@pytest.mark.parametrize("name", [name for name in KNOWN_LENGTH if name not in NO_LENGTH])
def test_what_is_cut_off_is_named(name):
    content = EXACT[name]() if name in EXACT else CODED[name][0]()
    for share in (0.9, 0.5):
        with pytest.raises(AudioError) as caught:
            decode(content[: int(share * len(content))], name="clip 7")
        assert "clip 7" in str(caught.value)


@pytest.mark.parametrize("name", ["wav 16 bit", "rf64", "w64", "aiff", "au", "caf", "mp3", "vorbis", "opus in webm"])
def test_all_sound_comes_before_the_word_that_it_is_cut_off(name):
    content = EXACT[name]() if name in EXACT else CODED[name][0]()
    heard = []
    with pytest.raises(TruncatedAudio, match="cut off"):
        heard.extend(decode_blocks(content[: len(content) * 3 // 4]))
    assert sum(map(len, heard)) / SAMPLE_RATE_HZ == pytest.approx(0.75 * LASTS_S, abs=0.25)


@pytest.mark.parametrize("name", sorted(NO_LENGTH))
def test_what_states_no_length_is_heard_as_far_as_it_goes(name):
    content = CODED[name][0]()
    try:
        got = decode(content[: len(content) // 2])
    except AudioError:
        return
    assert 0.2 * LASTS_S < len(got) / SAMPLE_RATE_HZ <= 0.6 * LASTS_S


@pytest.mark.parametrize("more", [1, 8_000, 48_000])
def test_a_flac_that_states_more_than_it_holds_is_heard_and_named(more):
    """By a lying header, or a cut between two frames. A sample more or less is no sound to speak of."""
    content = bytearray(by_libsndfile(voice(16_000), 16_000, "FLAC", "PCM_16"))
    content[18:26] = (int.from_bytes(content[18:26], "big") + more).to_bytes(8, "big")
    sound = Sound(bytes(content))
    heard = []
    if more == 1:
        heard.extend(sound)
    else:
        stated_s = LASTS_S + more / 16_000
        with pytest.raises(TruncatedAudio, match=rf"states {stated_s:.2f} s, and {LASTS_S:.2f} s are heard; .*anew"):
            heard.extend(sound)
    np.testing.assert_allclose(np.concatenate(heard), voice(16_000), atol=1.01 / 32768)
    assert duration_s(bytes(content)) == pytest.approx(LASTS_S)


@pytest.mark.parametrize("samples", [1, 15, 100, 4_095, 4_096, 4_097, 20_000])
def test_the_last_frame_of_a_flac_is_found_however_small(samples):
    """Of silence it takes as few bytes as a header may: then the file was decoded by the slower way."""
    for sound in (np.zeros(samples), voice(16_000)[:samples]):
        length = flac_length(as_opened(by_libsndfile(sound, 16_000, "FLAC", "PCM_16")))
        assert (length.rate_hz, length.stated, length.held) == (16_000, samples, samples)


def test_noise_that_looks_like_a_flac_frame_is_none():
    """Near the end of a file: headers with a right checksum whose fields are reserved or whose number is no number."""
    content = by_libsndfile(voice(16_000)[:9_000], 16_000, "FLAC", "PCM_16")
    places = [at for at in range(len(content) - 16) if content[at] == 0xFF and _flac_frame(content[at : at + 16])]
    head = bytes(content[places[1] : places[1] + 5])  # of the second frame: its number is one byte
    real = head + bytes([_crc8(head)])
    assert _flac_frame(real + bytes(10)) == (1, False, 4096)
    size, bits, number = head[2], head[3], 0x81
    for place, byte in ((2, size & 15), (2, size | 15), (3, 0xB8), (3, bits | 1), (3, (bits & 0xF1) | 6), (4, number)):
        wrong = bytearray(head)
        wrong[place] = byte
        assert _flac_frame(bytes([*wrong, _crc8(wrong)]) + bytes(10)) is None, (place, byte)
    two_bytes = head[:4] + b"\xc2\x41"
    assert _flac_frame(two_bytes + bytes([_crc8(two_bytes)]) + bytes(10)) is None


@pytest.mark.parametrize("name", ["vorbis", "opus", "flac in ogg"])
def test_a_damaged_page_in_an_ogg_is_named(name):
    """Every decoder leaves it out without a word: up to a second of sound."""
    content = bytearray(EXACT[name]() if name in EXACT else CODED[name][0]())
    assert len(decode(bytes(content))) == pytest.approx(LASTS_S * SAMPLE_RATE_HZ, abs=800)
    pages = [at for at in range(len(content) - 4) if content[at : at + 4] == b"OggS"]
    for page in (pages[len(pages) // 2], pages[-1]):
        content[page + 300] ^= 1
        with pytest.raises(TruncatedAudio, match="1 of its pages have a wrong checksum"):
            decode(bytes(content))
        content[page + 300] ^= 1
    joined = bytes(content)
    content[pages[-1] + 300] ^= 1
    with pytest.raises(TruncatedAudio, match="wrong checksum"):
        decode(bytes(content) + joined)


def ogg_checksum(page: bytes) -> int:
    """RFC 3533, 6: polynomial 0x04C11DB7, without reflection, of a page whose own field is zero."""
    crc = 0
    for byte in page:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ (0x04C11DB7 if crc & 1 << 31 else 0)) & 0xFFFFFFFF
    return crc


@pytest.mark.parametrize("name", ["vorbis", "opus"])
@pytest.mark.parametrize("position", ["of the page before", "half of that", 1, 0])
@pytest.mark.parametrize("page", [-1, -2])
def test_an_ogg_page_that_states_no_later_position_than_one_before_is_heard_or_named(name, position, page):
    content = bytearray(CODED[name][0]())
    pages = [at for at in range(len(content) - 4) if content[at : at + 4] == b"OggS"]
    start, stop = pages[page], [*pages[1:], len(content)][page]
    (before,) = struct.unpack_from("<q", content, pages[page - 1] + 6)
    stated = {"of the page before": before, "half of that": before // 2}.get(position, position)
    struct.pack_into("<q", content, start + 6, stated)
    content[start + 22 : start + 26] = bytes(4)
    struct.pack_into("<I", content, start + 22, ogg_checksum(content[start:stop]))
    if name == "opus" and page == -1:
        with pytest.raises(TruncatedAudio, match="its last page states no later end"):
            decode(bytes(content))
    else:
        assert len(decode(bytes(content))) == pytest.approx(LASTS_S * SAMPLE_RATE_HZ, abs=800)
        assert duration_s(bytes(content)) == pytest.approx(LASTS_S, abs=0.05)


def test_an_opus_file_that_ends_before_its_coder_has_begun_states_no_length():
    content = bytearray(by_ffmpeg(voice(16_000)[:4800], 16_000, "ogg", "libopus"))
    pages = [at for at in range(len(content) - 4) if content[at : at + 4] == b"OggS"]
    struct.pack_into("<q", content, pages[-1] + 6, 1)
    content[pages[-1] + 22 : pages[-1] + 26] = bytes(4)
    struct.pack_into("<I", content, pages[-1] + 22, ogg_checksum(content[pages[-1] :]))
    assert duration_s(bytes(content)) < 0.4


@pytest.mark.parametrize("name", ["vorbis", "opus", "flac in ogg"])
def test_an_ogg_page_that_is_missing_is_named(name):
    """The positions of those around it say how much sound it had."""
    content = EXACT[name]() if name in EXACT else CODED[name][0]()
    pages = [at for at in range(len(content) - 4) if content[at : at + 4] == b"OggS"]
    for page in (-2, -3):
        with pytest.raises(TruncatedAudio, match=r"it states 3\.0\d s, and holds [12]"):
            decode(content[: pages[page]] + content[pages[page + 1] :])


@pytest.mark.parametrize("name", ["vorbis", "opus", "flac in ogg"])
def test_ogg_pages_that_come_twice_or_late_are_named(name):
    content = EXACT[name]() if name in EXACT else CODED[name][0]()
    starts = [at for at in range(len(content) - 4) if content[at : at + 4] == b"OggS"]
    pages = [content[start:stop] for start, stop in zip(starts, [*starts[1:], len(content)], strict=True)]
    *first, before, last = pages
    for order in ([*first, before, before, last], [*first[:-1], before, first[-1], last]):
        with pytest.raises(AudioError, match="come twice, or not in their order"):
            decode(b"".join(order))


def test_an_opus_file_that_no_page_ends_is_heard_and_named():
    content = bytearray(CODED["opus"][0]())
    last = content.rindex(b"OggS")
    content[last + 5] &= ~4
    content[last + 22 : last + 26] = bytes(4)
    struct.pack_into("<I", content, last + 22, ogg_checksum(content[last:]))
    heard = []
    with pytest.raises(TruncatedAudio, match="its last page is missing"):
        heard.extend(decode_blocks(bytes(content)))
    assert sum(map(len, heard)) == pytest.approx(LASTS_S * SAMPLE_RATE_HZ, abs=800)


@pytest.mark.parametrize("name", ["flac from a pipe", "flac in mkv", "flac in mp4"])
def test_a_frame_of_flac_with_a_wrong_checksum_is_named(name):
    """FFmpeg hears it as noise, where it is not told to look."""
    content = bytearray(EXACT[name]() if name in EXACT else CODED[name][0]())
    assert len(decode(bytes(content))) == pytest.approx(LASTS_S * SAMPLE_RATE_HZ, abs=800)
    for place in (len(content) // 3, len(content) // 2):
        content[place] ^= 16
        with pytest.raises(AudioError, match=r"1 of its \d+ packets .*cannot be decoded|of 3\.00 s only 2\.\d+ s"):
            decode(bytes(content))
        content[place] ^= 16


def test_a_w64_may_have_chunks_after_its_sound():
    w64 = by_libsndfile(voice(16_000), 16_000, "W64", "PCM_16")
    summary = bytes.fromhex("bc945f925a52d21186dc00c04f8edb8a") + (2_024).to_bytes(8, "little") + b"\x01" * 2_000
    assert len(decode(w64 + summary)) >= LASTS_S * SAMPLE_RATE_HZ, "libsndfile hears it, as a few samples"


@pytest.mark.parametrize("share", [0.5, 0.8])
@pytest.mark.parametrize("name", ["flac from a pipe", "aac"])
def test_a_last_packet_that_is_not_whole_tells_of_a_cut(name, share):
    content = (EXACT[name] if name in EXACT else CODED[name][0])()
    with pytest.raises(TruncatedAudio, match="last packet is not whole"):
        decode(content[: int(share * len(content))])


@pytest.mark.parametrize("container", ["amr", "3gp"])
def test_pauses_that_a_telephone_sends_no_sound_for_are_heard_as_pauses(container):
    spoken = np.concatenate([voice(8_000), np.zeros(16_000, np.float32), voice(8_000)])
    content = by_ffmpeg(spoken, 8_000, container, "libopencore_amrnb", dtx="1")
    assert content != by_ffmpeg(spoken, 8_000, container, "libopencore_amrnb")
    got = decode(content)
    assert len(got) / SAMPLE_RATE_HZ == pytest.approx(2 * LASTS_S + 2, abs=0.04)
    assert likeness(got[-32_000:], soxr.resample(voice(8_000), 8_000, SAMPLE_RATE_HZ)[-32_000:]) > 0.75
    wide = b"#!AMR-WB\n" + bytes([0x7C]) * 50  # 50 frames that say that nothing is sent (3GPP TS 26.201, 4.1.1)
    assert len(decode(wide)) == SAMPLE_RATE_HZ


def test_tags_of_an_mp3_are_no_sound_and_no_cut():
    plain = CODED["mp3 vbr from a pipe"][0]()
    wanted = decode(plain)
    version_1 = b"TAG" + bytes(125)
    ape = b"APETAGEX" + struct.pack("<4I8x", 2000, 32, 0, 0x80000000)
    footed = b"\4\0\x10" + bytes((0, 0, 7, 104))
    for before, after in (
        (b"", bytes(range(256)) * 4 + ape + version_1),
        (ape + bytes(1968), b""),
        (b"", b"LYRICSBEGIN" + b"x" * 500 + b"000511LYRICS200" + version_1),
        (b"ID3" + footed + bytes(1000) + b"3DI" + footed, b""),
        (b"ID3\3\0\0" + bytes((0, 122, 18, 0)) + bytes(2_001_152), b""),
    ):
        np.testing.assert_allclose(decode(before + plain + after), wanted, atol=1e-4)


def test_mp3_of_varying_rate_in_wav_is_heard_to_the_end():
    mp3 = CODED["mp3 vbr from a pipe"][0]()
    kind = struct.pack("<HHIIHHH12x", 0x55, 1, 44_100, 8_000, 1, 0, 12)
    chunks = b"".join(name + struct.pack("<I", len(what)) + what for name, what in ((b"fmt ", kind), (b"data", mp3)))
    wav = b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks
    assert len(decode(wav)) / SAMPLE_RATE_HZ == pytest.approx(LASTS_S, abs=0.06)
    assert duration_s(wav) == pytest.approx(LASTS_S, abs=0.06)


def test_a_wav_may_count_its_header_but_not_part_its_samples():
    wav = by_libsndfile(voice(16_000), 16_000, "WAV", "PCM_16")
    counted = sounds.with_lengths(wav, len(wav), len(wav))
    assert np.array_equal(decode(counted), decode(wav))
    at = wav.index(b"data")
    first, second = wav[at + 8 : at + 20_008], wav[at + 20_008 :]
    parted = wav[:at] + b"".join(b"data" + struct.pack("<I", len(part)) + part for part in (first, second))
    with pytest.raises(AudioError, match="several stretches"):
        decode(parted)


def test_a_live_film_is_not_measured_by_its_bit_rate():
    """Its header says no length, and FFmpeg's guess leaves out the pictures, whose rate is not known."""
    out, pictures = sounds.Pipe(), np.random.default_rng(0).integers(0, 255, (30, 96, 64), np.uint8)
    with av.open(out, "w", format="matroska") as film:
        sound = film.add_stream("pcm_s16le", rate=16_000, layout="mono")
        moving = film.add_stream("mjpeg", rate=10, width=64, height=64, pix_fmt="yuvj420p")
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="yuvj420p")
            frame.pts = number
            film.mux(moving.encode(frame))
            heard = voice(16_000)[None, number * 1600 : (number + 1) * 1600] * 32_767
            part = av.AudioFrame.from_ndarray(heard.astype(np.int16), format="s16", layout="mono")
            part.rate, part.pts = 16_000, number * 1600
            film.mux(sound.encode(part))
    with av.open(io.BytesIO(out.content)) as film:
        assert film.duration > 1.2 * LASTS_S * 1e6
    np.testing.assert_allclose(decode(bytes(out.content)), voice(16_000), atol=2.01 / 32768)


@pytest.mark.parametrize(
    ("container", "codec", "delay_s"),
    [("matroska", "libopus", 1.5), ("asf", "wmav2", 1.5), ("ipod", "aac", 1.5), ("matroska", "wavpack", 0.0)],
)
def test_a_late_start_and_a_last_packet_that_states_no_length_are_no_cut(container, codec, delay_s):
    """What is cut off behind them is one all the same."""
    sound = voice(48_000)[:-10_000]
    content = by_ffmpeg(sound, 48_000, container, codec, bit_rate=96_000, delay_s=delay_s)
    assert len(decode(content)) / SAMPLE_RATE_HZ == pytest.approx(len(sound) / 48_000, abs=0.06)
    with pytest.raises(AudioError):
        decode(content[: int(0.7 * len(content))])


@pytest.mark.parametrize("blocks", [74, 75])
def test_a_padded_wav_of_a_telephone_ends_in_no_noise(blocks):
    """libsndfile hears a block of GSM in the byte after an odd number of them."""
    sound = voice(8_000)[: 320 * blocks]
    wav = by_libsndfile(sound, 8_000, "WAV", "GSM610")
    start = wav.index(b"data") + 8
    for counted in {0, blocks % 2}:  # sox counts the padding
        content = sounds.with_lengths(wav[: start + 65 * blocks] + bytes(blocks % 2), None, 65 * blocks + counted)
        assert len(decode(content)) == 2 * len(sound)
        assert duration_s(content) == len(sound) / 8_000
        assert abs(decode(content)).max() < 1.5 * abs(sound).max()
        with pytest.raises(TruncatedAudio):
            decode(content[:-100])
    w64 = by_libsndfile(sound, 8_000, "W64", "GSM610")
    at, padded = w64.index(b"data"), -(-(24 + 65 * blocks) // 8) * 8  # FFmpeg counts what fills the last eight bytes
    content = (w64[: at + 16] + padded.to_bytes(8, "little") + w64[at + 24 :]).ljust(at + padded, b"\0")
    assert len(decode(content)) == 2 * len(sound)
    assert abs(decode(content)).max() < 1.5 * abs(sound).max()


@pytest.mark.parametrize("priming", [0, 1024, 9_600, 16_000])
def test_a_coder_delay_that_itunes_counts_is_no_cut(priming):
    """FFmpeg tells a start that is later by it, and the same length: of HE-AAC that may be 0.2 s."""
    whole = by_ffmpeg(voice(16_000), 16_000, "ipod", "aac", bit_rate=96_000, muxer={"use_editlist": "0"})
    said = f" 00000000 {priming:08X} 00000000 {int(LASTS_S * 16_000):016X}".encode()
    names = _box(b"mean", bytes(4) + b"com.apple.iTunes") + _box(b"name", bytes(4) + b"iTunSMPB")
    field = _box(b"----", names + _box(b"data", b"\0\0\0\x01" + bytes(4) + said))
    handler = _box(b"hdlr", bytes(8) + b"mdirappl" + bytes(9))
    tag = _box(b"udta", _box(b"meta", bytes(4) + handler + _box(b"ilst", field)))
    moov = whole.rindex(b"moov") - 4  # the last box
    assert int.from_bytes(whole[moov : moov + 4], "big") == len(whole) - moov
    content = whole[:moov] + _box(b"moov", whole[moov + 8 :] + tag)
    with av.open(io.BytesIO(content)) as file:
        assert file.start_time == 1_000_000 * priming // 16_000
    assert len(decode(content)) >= (LASTS_S - priming / 16_000) * SAMPLE_RATE_HZ - 1


_HE_AAC = (
    "eNpjYGBQSCupLPA1cVRgAAIQnVtgYpRZnJ/LAAEcaUWpqQwMQhy5KYkljA5KDYv9/j5gBMk8YPv/kStqFMBA7P9HIltGAQzs/nBE"
    "M3N4gQqGL/NnhV549qOlR2D2w4sbnBJj+XyzS9herpI837z61eGndy0+XY69681ksqnfW8BkgVaAqAaH9C7D+UvqziW8Eb/n4Gh4"
    "N89ZlW2Cx8ngh0uMqx41B53NOaPqd4D16Ndl7Qwami0tV4JyWtOnzJn1Vbjzxc+LvP6LT/7WP5Bice3I7AcToh7vC9jzWfeZ+5Z+"
    "g/073igkpPms/lOn7Br/fI2arsHv7ZGuG6Z/DY5mi5OxnhV/my3oA6O9Q4gq/2Lhb5KeLqev1d1UaftaskZqWZto9NTmZevV3775"
    "efHs9Y/5i37MF++9cqDxaqnVnUkLlv89fywn+LGtusaddxUHflXad8zoORyYvYt/r4Efm1PXl798HJ/sZ2WoPr8AKjIEG+7/U/Qe"
    "BXCw38Bp2jAF09kZ2b5oilk4tGgo2+Rv+DY3OnVVYQ378VNR54Dg2EyGK1Nni3ZtdBfRnZ75am/4qqf66zbFdn+Of/YlzzRKvvHP"
    "nOeZt4pmXFTZvO7o9/vnfqgL39t7QkHJZWJNkYmhS3r5ppjPJ1LWPueMW+GVkhQQ4cl6/NCPNZpRfdezt966MinR5HL0mszjbr2+"
    "vj6XfNRmZef2XLi4cuXKW482sazatHHVcpEtkStXpqgVtEyO55D6Euep5wGqpCwtzP93BF0aBTDw/r/A0lEAB/esSCi9DjCKmLAo"
    "dHNUCBhwLLFhP9TxL8UqUS7sd1jvf7tJxz8wMPCMNolGm0R4mkRvWIZ0k6iCkclEt2CSRIeEIiN78PH9N6pt5+it4A1tV+wAFrVd"
    "qt6eZv6qn9muXo1x3vFDrfdpfczL3dp/pZatPyNR23p9W92L81bZDHr+ti5RR5ZcYWJJdWaY7OBkyLnPXWaam1JO8QQlVTMhgwIO"
    "lbv8V23LmgUZJtV7KnE7Vd6fUruc2ZL52Ja0SZc+fqqwZIk36DnJIs8wRymFseDO0z7N/yK3fnXmlphXedlUTC9Z77+g+01ZVc7d"
    "ukPHdl3WC4mu6jFcVPAnbOdvb8trM8uEs1+pbhXWO9Rb6zo70DTGSSFHoqqqalGq8JGDVnLCBw32OiswLatlcmBgYFTgHU2/KOn3"
    "D8twa9KT2P5/YKJR0OLUohGW+3j/xuOyhRdMQ9s6HH8/kOt0CirOidzXeH0339m5L22jU29Zb/9hqxDZ9tQvjenmlJmCMxs2ZXrP"
    "jA2acDKbm3/SpJSrOvybveLFTM9y/Njue09TNOPSik7fSUruXYtUKtY7/Z34aEWn3HJN5SsfVSPr8/WnZGRd/KmyG9wjfzDa4kZt"
    "cf8Zti1uchrpVQmtujQC+gwMzE25+fllwFSYk1uWkQJKjs/1cxxAmIFBHoglgMUmGCEACgeT78CAFzABNVwuKUrMBrJjSrLBdrIj"
    "7ISZJoFpBUn2MubnpmQmAhkKuSnY/RV6BKxQMSMlpwimqzi/NA/dFrXczLw0IEOgOBdiEBSopEDEZVKKUtOQnMRTWpSjAGW/Ki5J"
    "ygHSWcUlxSlIaqJyC0wSMbzByCAAouQhPjFLLU4pBjGYGxoaVIE0C5AWdxBlYAaydzeAMCtQhFW0I+zpATYgi5EJFG7FJSXFSCaz"
    "AfWB2DJAFyQjiYMwM5TWAcpVIfmMDSKFDYPMT85HRCWDAQMDJxAzWpemlAB9xGicm1oC8xlK0AKjoyixoCAHOWjZMnOKS4AMp5Ul"
    "+SBDrVISwZrBQZKWkp2YmKxgqGegZ6CjkJOZBBTQBYmYAEUMdRScnYIUTCyykwpA3t0DSs4gb+amJoJjMDk/Vw9kXapeZkhpXipI"
    "jUheYm4qSA4kEuwb4ARktiDbqGAABRCGBYxhbGEAlwIDZyQBChkA5l+ZAw=="
)
"""0.4 s of 440 Hz by fdkaac (-p 5 -b 8000), packed: what FFmpeg's own encoder cannot make."""


def test_a_coder_delay_that_itunes_counts_at_half_the_rate_is_left_out_whole():
    """As where an edit list says it (-G 1), which FFmpeg reads right: all packets but the two of the delay."""
    content = zlib.decompress(base64.b64decode(_HE_AAC))
    with av.open(io.BytesIO(content)) as file:
        assert file.start_time > 0
        delay, padding, samples = (int(number, 16) for number in file.metadata["iTunSMPB"].split()[1:4])
        packets = file.streams.audio[0].frames
    assert packets * 2048 == 2 * (delay + padding + samples)
    heard = decode(content)
    assert len(heard) == packets * 2048 - 2 * delay
    loud = np.flatnonzero(abs(heard) > 0.1)
    assert loud[0] < 0.07 * SAMPLE_RATE_HZ, "961 samples are the decoder's own"
    assert (loud[-1] - loud[0]) / SAMPLE_RATE_HZ == pytest.approx(0.4, abs=0.02)
    plain = content.replace(b"iTunSMPB", b"iTunSMPX")
    assert len(decode(plain)) == packets * 2048


def _box(name: bytes, content: bytes) -> bytes:
    return (8 + len(content)).to_bytes(4, "big") + name + content


def test_a_long_packet_that_cannot_be_decoded_is_not_passed_over():
    whole = by_ffmpeg(voice(16_000), 16_000, "matroska", "tta", piped=True)  # its last packet: how long, is not known
    with pytest.raises(AudioError, match="packets of sound cannot be decoded"):
        decode(whole)


def test_an_absurd_length_in_a_flac_header_sizes_nothing():
    content = bytearray(by_libsndfile(voice(16_000), 16_000, "FLAC", "PCM_16"))
    for total in (0, 1, 16_000, LASTS_S * 16_000 // 2, 2**36 - 1, 2**35, 10**9):
        field = int.from_bytes(content[18:26], "big") >> 36 << 36 | int(total)
        content[18:26] = field.to_bytes(8, "big")
        tracemalloc.start()
        try:
            assert len(decode(bytes(content))) == LASTS_S * SAMPLE_RATE_HZ
        except AudioError:
            assert total == 10**9, "more than so many bytes can hold is no length"
        assert tracemalloc.get_traced_memory()[1] < 20e6
        tracemalloc.stop()


@pytest.mark.parametrize("channels", [2, 6])
@pytest.mark.parametrize("container", ["WAV", "FLAC"])
def test_channels_that_cancel_are_not_summed(channels, container):
    mono = voice(16_000)
    planes = np.zeros((len(mono), channels), np.float32)
    planes[:, 0], planes[:, 1] = mono, -mono
    sound = Sound(by_libsndfile(planes, 16_000, container, "PCM_16"))
    got = np.concatenate(list(sound))
    assert sound.canceled and sound.channels == channels
    np.testing.assert_allclose(got, mono, atol=1.01 / 32768)


def test_channels_that_nearly_cancel_and_those_that_do_not():
    one, other = voice(16_000), corpora.voice(9, LASTS_S, 16_000)
    for left, right, cancels in ((one, -0.8 * one, True), (one, other, False), (one, 0 * one, False)):
        sound = Sound(by_libsndfile(np.stack([left, right], axis=1), 16_000, "WAV", "FLOAT"))
        got = np.concatenate(list(sound))
        assert sound.canceled is cancels
        np.testing.assert_allclose(got, left if cancels else (left + right) / 2, atol=1e-6)


@pytest.mark.parametrize(("container", "codec"), [("ipod", "aac"), ("webm", "libopus"), ("ogg", "libopus")])
@pytest.mark.parametrize("channels", [6, 8])
def test_sound_around_the_listener_is_heard(channels, container, codec):
    """PyAV itself ends the process at eight planes: a film in 7.1."""
    around = np.stack([voice(48_000)] * channels, axis=1)
    got = decode(by_ffmpeg(around, 48_000, container, codec))
    assert len(got) / SAMPLE_RATE_HZ == pytest.approx(LASTS_S, abs=0.05)
    assert likeness(got, voice(SAMPLE_RATE_HZ)) > 0.9


@pytest.mark.parametrize("scale", [127.0, 32_768.0, 2.0**23, 2.0**31])
def test_samples_in_units_of_integers_are_refused_by_name(scale):
    with pytest.raises(AudioError, match="where 1 is full scale"):
        decode(by_libsndfile(voice(16_000) * scale, 16_000, "WAV", "FLOAT"))


def with_pause(content: bytes, container: str, at_s: float, pause_s: float, *, picture: bool = False) -> bytes:
    """The same packets, of which those from a second on come later; beside a picture from zero on, if wanted."""
    out = io.BytesIO()
    with av.open(io.BytesIO(content)) as source, av.open(out, "w", format=container) as file:
        packets = [packet for packet in source.demux(source.streams.audio[0]) if packet.pts is not None]
        stream = file.add_stream_from_template(source.streams.audio[0])
        film = file.add_stream("mpeg4", rate=5) if picture else None
        if film is not None:
            film.width, film.height, film.pix_fmt = 32, 32, "yuv420p"
            for number in range(5):
                frame = av.VideoFrame(32, 32, "yuv420p")
                frame.pts, frame.time_base = number, Fraction(1, 5)
                file.mux(film.encode(frame))
            file.mux(film.encode(None))
        for packet in packets:
            later = round(pause_s / packet.time_base) if packet.pts * packet.time_base >= at_s else 0
            packet.pts, packet.dts = packet.pts + later, packet.dts + later
            packet.stream = stream
            file.mux(packet)
    return out.getvalue()


@pytest.mark.parametrize(("container", "codec"), [("matroska", "pcm_s16le"), ("mov", "alac")])
def test_a_pause_that_a_container_tells_by_its_times_is_heard(container, codec):
    """What subtitles say of the second half is said there, as in a player. A recorder that was muted leaves such."""
    content = by_ffmpeg(voice(16_000), 16_000, container, codec)
    whole, rate_hz = decode(content), SAMPLE_RATE_HZ
    for at_s, pause_s, picture in ((1.5, 2.0, False), (1.5, 2.0, True), (0.0, 1.0, True)):
        got = decode(with_pause(content, container, at_s, pause_s, picture=picture))
        assert len(got) == pytest.approx(len(whole) + pause_s * rate_hz, abs=20)
        pause = round(pause_s * rate_hz)
        quiet = np.flatnonzero(np.convolve(np.abs(got), np.ones(pause - 50), "valid") == 0)
        first = int(quiet[0])
        assert first / rate_hz == pytest.approx(at_s, abs=0.26), "packets last 64 and 256 ms"
        assert likeness(got[first + pause :], whole[first:]) > 0.99 and np.array_equal(got[:first], whole[:first])
    for at_s, pause_s, picture in ((0.0, 1.0, False), (1.5, 0.05, False)):
        assert len(decode(with_pause(content, container, at_s, pause_s, picture=picture))) == len(whole)
    with pytest.raises(AudioError, match=r"its times jump by 5,000 s after 1\.\d+ s"):
        decode(with_pause(content, container, 1.5, 5_000.0))


def test_a_pause_in_a_broadcast_is_heard_and_a_splice_is_none():
    for container in ("mpegts", "mpeg"):
        content = by_ffmpeg(voice(16_000), 16_000, container, "mp2")
        whole_s = len(decode(content)) / SAMPLE_RATE_HZ
        for at_s, pause_s, picture, heard_s in (
            *((1.5, 2.0, False, 2.0), (0.0, 1.0, True, 1.0), (0.0, 1.0, False, 0.0)),
            *((1.5, 60.0, False, 0.0), (1.5, 20_000.0, False, 0.0)),
        ):
            if picture and container == "mpeg":
                continue  # which has no such picture
            got = decode(with_pause(content, container, at_s, pause_s, picture=picture))
            assert len(got) / SAMPLE_RATE_HZ == pytest.approx(whole_s + heard_s, abs=0.05), (container, at_s, pause_s)


def test_a_pause_after_a_splice_is_heard_and_lost_packets_are_told():
    content = by_ffmpeg(voice(16_000), 16_000, "mpegts", "mp2", bit_rate=64_000)
    whole, paused = decode(content), with_pause(content, "mpegts", 1.5, 2.0)
    assert len(decode(content + paused)) == pytest.approx(2 * len(whole) + 2 * SAMPLE_RATE_HZ, abs=800)
    lost = content[: 60 * 188] + content[97 * 188 :]  # not by a multiple of 16, to which they are counted
    with pytest.raises(TruncatedAudio, match=r"packets of it are missing by their counters, of 0\.[3-9]"):
        decode(lost)


@pytest.mark.parametrize(
    ("container", "codec"),
    [("wav", "pcm_s16le"), ("aiff", "pcm_s16be"), ("ipod", "aac"), ("ogg", "libopus"), ("webm", "libopus")],
)
def test_a_tag_before_a_container_that_has_none_there_hides_no_sound(container, codec):
    content = by_ffmpeg(voice(48_000), 48_000, container, codec)
    tag = b"ID3\x03\0\0\0\0\0\x64" + bytes(100)
    assert np.array_equal(decode(tag * 2 + content), decode(content))


@pytest.mark.parametrize(
    ("container", "codec"), [("flv", "aac"), ("flv", "libmp3lame"), ("tta", "tta"), ("asf", "wmav2"), ("adts", "aac")]
)
def test_what_ffmpeg_hears_the_first_of_is_heard_whole(container, codec):
    content = by_ffmpeg(voice(44_100), 44_100, container, codec, bit_rate=None if codec == "tta" else 64_000)
    once = decode(content)
    assert len(decode(content * 3)) == pytest.approx(3 * len(once), abs=20)
    if container in ("tta", "asf"):  # which state their length
        with pytest.raises(AudioError):
            decode(content + content[: len(content) // 2])


def test_a_cut_in_a_bw64_is_told():
    """RF64 of the European Broadcasting Union, by another name."""
    samples = (voice(16_000) * 32_767).astype("<i2").tobytes()
    wav = by_libsndfile(voice(16_000), 16_000, "WAV", "PCM_16")
    sizes = struct.pack("<4sIQQQI", b"ds64", 28, len(samples) + 72, len(samples), 0, 0)
    bw64 = b"BW64\xff\xff\xff\xffWAVE" + sizes + wav[12:36] + b"data\xff\xff\xff\xff" + samples
    np.testing.assert_allclose(decode(bw64), voice(16_000), atol=2 / 32_768)
    with pytest.raises(TruncatedAudio, match="by its header sound until byte"):
        decode(bw64[: len(bw64) * 3 // 5])


@pytest.mark.parametrize(("code", "is_hebrew"), [("heb", True), ("iw", True), ("he-IL", True), ("eng", False)])
def test_the_hebrew_audio_track_is_taken(code, is_hebrew):
    content = by_ffmpeg(voice(16_000), 16_000, "matroska", "flac", tracks=2)
    out = io.BytesIO()
    with av.open(io.BytesIO(content)) as source, av.open(out, "w", format="matroska") as file:
        streams = [file.add_stream_from_template(stream) for stream in source.streams.audio]
        streams[1].metadata["language"] = code
        for packet in source.demux():
            if packet.pts is not None:
                packet.stream = streams[packet.stream.index]
                file.mux(packet)
    assert decode(out.getvalue()).any() != is_hebrew, "the second one holds silence"


def test_a_missing_page_is_named_where_streams_lie_beside_each_other():
    """As of a film, or of an ogg with a skeleton."""
    opus = by_ffmpeg(voice(16_000), 16_000, "ogg", "libopus", tracks=2)
    assert len(decode(opus)) == pytest.approx(LASTS_S * SAMPLE_RATE_HZ, abs=800)
    pages = [at for at in range(len(opus) - 4) if opus[at : at + 4] == b"OggS"]
    lost = pages[-4]
    with pytest.raises(TruncatedAudio, match="pages are missing"):
        decode(opus[:lost] + opus[pages[-3] :])


def test_the_first_audio_track_is_taken():
    stereo = by_ffmpeg(voice(16_000), 16_000, "matroska", "flac", tracks=2)
    np.testing.assert_allclose(decode(stereo), voice(16_000), atol=1.01 / 32768)


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "fifo.wav")
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "loop.wav").symlink_to("loop.wav")
    (tmp_path / "gone.wav").symlink_to("nowhere")
    for path, told in (
        (tmp_path / "fifo.wav", "a pipe"),
        (tmp_path / "folder.wav", "a folder"),
        (Path("/dev/zero"), "a device"),
        (Path("/dev/null"), "a device"),
        (tmp_path / "loop.wav", "symbolic links"),
        (tmp_path / "gone.wav", "not found"),
        (tmp_path / ("x" * 300 + ".wav"), "File name too long"),
        (tmp_path / "n\0l.wav", "no file can have this name"),
    ):
        with pytest.raises(AudioError, match=told):
            decode(path)


def test_what_is_no_sound_says_so(tmp_path):
    video = io.BytesIO()
    with av.open(video, "w", format="mp4") as file:
        stream = file.add_stream("mpeg4", rate=25, width=64, height=64, pix_fmt="yuv420p")
        frame = av.VideoFrame(64, 64, "yuv420p")
        file.mux([*stream.encode(frame), *stream.encode(None)])
    encrypted = by_ffmpeg(voice(44_100), 44_100, "ipod", "aac").replace(b"mp4a", b"drms")
    playlist = b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n/etc/passwd\n#EXT-X-ENDLIST\n"
    for content, told in (
        (b"", "empty"),
        (video.getvalue(), "no audio track"),
        (encrypted, "DRM"),
        ("שלום לכולם\n".encode() * 200, "no sound file"),
        (playlist, "no sound file"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "no sound file"),
        (np.random.default_rng(1).bytes(50_000), "clip 7"),
        (bytes(50_000), "clip 7"),
        (b"\xff" * 50_000, "clip 7"),
        (b"<html><body>404 Not Found</body></html>" * 20, "no sound file"),
        (by_libsndfile(voice(16_000)[:0], 16_000, "WAV", "PCM_16"), "no samples|no sound"),
    ):
        with pytest.raises(AudioError, match=told):
            decode(content, name="clip 7")


def test_what_a_file_is_instead_of_sound_is_told():
    """So that its owner knows what to do, and not only that there is a fault."""
    flac = by_libsndfile(voice(16_000), 16_000, "FLAC", "PCM_16")
    mp3 = by_libsndfile(voice(16_000), 16_000, "MP3", "MPEG_LAYER_III")
    mp4 = by_ffmpeg(voice(44_100), 44_100, "mp4", "aac")
    for content, told in (
        (gzip.compress(flac), "unpack it"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "git lfs pull"),
        (b'{"error": "not found"}\n', "download the file again"),
        (b'{"audio": "clips/a.flac", "text": ""}\n', "eval --data"),
        (b"\n<!DOCTYPE html>\n<title>404</title>" * 20, "download the file again"),
        (b"\x89PNG\r\n\x1a\n" + bytes(5_000), "a picture"),
        (bytes(len(flac)), "begins with zeros"),
        (base64.encodebytes(flac), "base64 -d"),
        (b"data:audio/flac;base64," + base64.b64encode(flac), "base64 -d"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + flac, r"at its byte 19: `tail -c \+20`"),
        (bytes(600) + flac, r"at its byte 600"),
        (mp4[: len(mp4) * 3 // 5], "its index .moov"),
        (mp3.decode(errors="replace").encode(), "saved as a text"),
    ):
        with pytest.raises(AudioError, match=f"no sound file that can be read: .*{told}"):
            decode(content)


def test_absurd_headers_are_refused_before_anything_is_allocated():
    wav = bytearray(by_libsndfile(voice(16_000), 16_000, "WAV", "PCM_16"))
    for offset, size, value in ((22, 2, 65_535), (22, 2, 0), (24, 4, 2**31 - 1), (24, 4, 1), (24, 4, 0)):
        changed = bytearray(wav)
        changed[offset : offset + size] = value.to_bytes(size, "little")
        with pytest.raises(AudioError):
            decode(bytes(changed))


def test_too_long_is_known_without_holding_it():
    """Eight channels at 192 kHz: a few hundred kilobytes that decode to 370 MB."""
    silence = np.zeros((192_000, 8), np.int16)
    out = io.BytesIO()
    import soundfile

    with soundfile.SoundFile(out, "w", 192_000, 8, format="FLAC", subtype="PCM_16") as file:
        for _ in range(60):
            file.write(silence)
    tracemalloc.start()
    with pytest.raises(TooLong, match="longer than 15 s") as caught:
        decode(out.getvalue(), longest_s=15.0)
    assert tracemalloc.get_traced_memory()[1] < 60e6
    tracemalloc.stop()
    assert caught.value.lasts_s == pytest.approx(60)


def test_an_hour_is_heard_in_blocks(tmp_path):
    with wave.open(str(tmp_path / "hour.wav"), "wb") as file:
        file.setparams((2, 2, 8_000, 0, "NONE", ""))
        second = (voice(8_000)[:8_000] * 32_767).astype("<i2")
        for _ in range(3_600):
            file.writeframes(np.stack([second, second], axis=1).tobytes())
    tracemalloc.start()
    seconds = sum(map(len, decode_blocks(tmp_path / "hour.wav"))) / SAMPLE_RATE_HZ
    assert tracemalloc.get_traced_memory()[1] < 40e6
    tracemalloc.stop()
    assert seconds == pytest.approx(3_600)


def test_a_stream_is_read_to_its_end():
    reading, writing = os.pipe()
    content = by_ffmpeg(voice(44_100), 44_100, "ipod", "aac")  # its index is at the end

    def feed() -> None:
        with os.fdopen(writing, "wb") as pipe:
            for start in range(0, len(content), 10_000):
                pipe.write(content[start : start + 10_000])
                time.sleep(0.001)

    writer = threading.Thread(target=feed)
    writer.start()
    with os.fdopen(reading, "rb") as pipe:
        got = decode(pipe)
    writer.join()
    assert np.array_equal(got, decode(content))


def test_a_fault_is_itself_in_another_process():
    import pickle

    for fault in (AudioError("a", "b"), TruncatedAudio("a", "b"), TooLong("a", "b", 3.0)):
        again = pickle.loads(pickle.dumps(fault))
        assert (type(again), str(again), vars(again)) == (type(fault), str(fault), vars(fault))


def test_what_is_made_covers_what_is_promised():
    assert len(sounds.EXACT) + len(sounds.CODED) >= 20
