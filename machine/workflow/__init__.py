"""Chains, groups and chords: how they are built, planned and continued. Pure."""
