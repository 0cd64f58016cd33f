"""Who a client is, and what it may do, as Mosquitto's files say it. Pure: no event loop, no sockets."""
