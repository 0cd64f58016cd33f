"""Trio around the core: sockets, one nursery for each client, deadlines and shutdown. No MQTT rule lives here."""
