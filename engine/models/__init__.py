"""Promptable segmentation models behind one interface.

`segmenter` is the interface, `sam` and `sam2` its two adapters, `decoder` what both decode with,
`registry` maps names to weights, `checkpoint` reads them safely and `download` fetches them.
"""
