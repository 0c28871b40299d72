"""Runs in an environment of qwen-asr 0.0.6, not in ours: the tokens it says. FOLDER CLIPS.json OUT.json TOKENS

CLIPS.json lists WAV files; OUT.json gets the ids of prompt and answer of each, with the free and the forced prompt.
"""

import json
import sys

import soundfile
import torch
from qwen_asr import Qwen3ASRModel
from qwen_asr.inference import utils

utils.SUPPORTED_LANGUAGES.append("Hebrew")  # as the model card says


def main() -> None:
    folder, clips, out, count = sys.argv[1:5]
    torch.set_num_threads(1)
    wrapped = Qwen3ASRModel.from_pretrained(folder, dtype=torch.float32, device_map="cpu", max_new_tokens=int(count))
    with open(clips) as stream:
        files = json.load(stream)
    told = {}
    for kind, language in (("free", None), ("forced", "Hebrew")):
        told[kind] = []
        for file in files:
            samples, _ = soundfile.read(file, dtype="float32")
            prompt = wrapped._build_text_prompt(context="", force_language=language)
            inputs = wrapped.processor(text=[prompt], audio=[samples], return_tensors="pt", padding=True)
            ids = wrapped.model.generate(**inputs, max_new_tokens=int(count)).sequences[0].tolist()
            length = inputs["input_ids"].shape[1]
            told[kind].append([ids[:length], ids[length:]])
    assert isinstance(wrapped.transcribe(files[0], language="Hebrew")[0].text, str)
    with open(out, "w") as stream:
        json.dump(told, stream)


main()
