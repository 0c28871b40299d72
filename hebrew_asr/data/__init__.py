"""From a manifest to packed batches: manifest, sampler, shapes, packing, loader.

Imports text, config, remote, audio and launching.
"""
