"""DeepSpeed's ZeRO optimizers for bf16 weights, over flat buffers: gradients come all at once, AdamW is one kernel.

Imports launching, model and passes.
"""
