"""Runs in an environment of vLLM, not in ours; arguments and output are those of ``qwen_asr_tokens.py``."""

import json
import os
import sys

import soundfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
_PROMPT = (
    "<|im_start|>system\n<|im_end|>\n<|im_start|>user\n<|audio_start|><|audio_pad|><|audio_end|><|im_end|>\n"
    "<|im_start|>assistant\n"
)


def main() -> None:
    from vllm import LLM, SamplingParams

    folder, clips, out, count = sys.argv[1:5]
    model = LLM(
        folder,
        dtype="float32",
        max_model_len=700,
        enforce_eager=True,
        limit_mm_per_prompt={"audio": 1},
        max_num_seqs=4,
    )
    with open(clips) as stream:
        files = json.load(stream)
    told = {}
    for kind, tail in (("free", ""), ("forced", "language Hebrew<asr_text>")):
        sounds = [soundfile.read(clip, dtype="float32") for clip in files]
        requests = [{"prompt": _PROMPT + tail, "multi_modal_data": {"audio": [sound]}} for sound in sounds]
        answers = model.generate(requests, SamplingParams(temperature=0.0, max_tokens=int(count)), use_tqdm=False)
        told[kind] = [[list(answer.prompt_token_ids), list(answer.outputs[0].token_ids)] for answer in answers]
    with open(out, "w") as stream:
        json.dump(told, stream)


if __name__ == "__main__":
    main()
