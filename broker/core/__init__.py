"""The broker and the client as functions from bytes and time to bytes. Pure: no clock, no socket, no Trio."""
