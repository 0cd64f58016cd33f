"""Bytes to packets and back. Pure: no clock, no socket, no Trio."""
