"""From a manifest to packed batches: manifest, keys that link its clips, sampler, shapes, packing, loader.

Imports text, config, remote, audio and launching.
"""
