"""Masks as arrays: run lengths, boxes, areas, overlap. Pure geometry, no model."""
