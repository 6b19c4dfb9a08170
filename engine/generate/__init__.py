"""Automatic masks for batches of images: points, decode, filter, suppress, encode."""
