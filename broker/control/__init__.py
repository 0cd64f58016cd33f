"""Asking a running broker, from outside of its process: docs/decisions/0048."""
