"""Stores: what of `core.saved` outlives the process, and where."""
