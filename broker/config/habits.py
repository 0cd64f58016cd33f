"""Keys of mosquitto.conf that hands write by habit, and what stands for each here: the short form of config/mosquitto-migration.md.

Where a key has the same name here it needs no line. A bridge's keys are not here: they stand in a part of their own in that file.
"""

from __future__ import annotations

from typing import Final

_TLS: Final = "in [listeners.tls]"

COUNTERPARTS: Final = {
    "autosave_interval": "path in [store]; nothing is saved by time, what has to last is on disk before it is acknowledged",
    "autosave_on_changes": "path in [store]; nothing is saved by time, what has to last is on disk before it is acknowledged",
    "bind_address": "host in [[listeners]]",
    "cafile": f"client_ca {_TLS}; only where clients show certificates",
    "capath": f"client_ca {_TLS}; only where clients show certificates",
    "certfile": f"certificate {_TLS}",
    "clientid_prefixes": 'client_ids above the first [table]; ["secure-*"]',
    "connection_messages": "connections in [log]",
    "crlfile": f"crl {_TLS}",
    "keyfile": f"key {_TLS}",
    "listener": "host, port in [[listeners]]; or unix, a path",
    "log_dest": "target in [log]",
    "log_type": "level in [log]",
    "max_connections": "connections_count_max in [[listeners]]",
    "max_inflight_bytes": "inflight_bytes_max in [limits]",
    "max_inflight_messages": "inflight_count_max in [limits]",
    "max_keepalive": "keepalive_s_max in [limits]",
    "max_packet_size": "packet_bytes_max in [limits]",
    "max_qos": "maximum_qos in [limits]; or in [listeners.limits]",
    "max_queued_bytes": "queue_bytes_max in [limits]",
    "max_queued_messages": "queue_count_max in [limits]",
    "max_topic_alias": "topic_alias_maximum in [limits]; or in [listeners.limits]",
    "memory_limit": "memory_bytes_max in [limits]",
    "message_size_limit": "packet_bytes_max in [limits]",
    "per_listener_settings": "password_file, acl_file, allow_anonymous in [[listeners]]; what stands there counts there",
    "persistence": "path in [store]; without it everything is in memory",
    "persistence_file": "path in [store]; one path, of folder and file",
    "persistence_location": "path in [store]; one path, of folder and file",
    "persistent_client_expiration": "session_expiry_s_max in [limits]; in seconds",
    "set_tcp_nodelay": "nodelay in [[listeners]]",
    "sys_interval": "sys_interval_s above the first [table]",
    "use_identity_as_username": f'identity {_TLS}; "cn" or "san"',
    "use_username_as_clientid": "username_as_client_id above the first [table]; or in [[listeners]]",
}
"""Key to "our keys where they stand; what else to know"."""

WITHOUT: Final = {
    "allow_zero_length_clientid": "who brings no Client Identifier is given one",
    "auth_plugin": "in a program open_broker takes hooks (authenticate=), and [jwt] tokens",
    "auto_id_prefix": "who brings no Client Identifier is given one",
    "ciphers_tls1": "OpenSSL chooses those of TLS 1.3",
    "dhparamfile": "OpenSSL chooses",
    "http_dir": "files are a web server's task",
    "include_dir": "a broker has one file, and variables (BROKER__LISTENERS__0__PORT) over it",
    "log_timestamp": "each line has its time, and format in [log] is text or json",
    "pid_file": "whoever starts it knows its process",
    "plugin": "in a program open_broker takes hooks (authenticate=, authorize=)",
    "psk_file": "TLS is with certificates",
    "psk_hint": "TLS is with certificates",
    "socket_domain": "host is an IPv4 or an IPv6 address",
    "user": "whoever starts the broker says as whom, as config/broker.service does",
}
"""Key to why it can be left out."""


def parts(line: str) -> tuple[list[str], str, str]:
    """(our keys, "in [table]" or "above the first [table]", what else to know)."""
    ours, _, more = line.partition("; ")
    names, between, table = ours.partition(" in ") if " in " in ours else ours.partition(" above ")
    return names.split(", "), between.lstrip() + table, more


def counterpart(key: str) -> str | None:
    """What to write instead of a key of mosquitto.conf, to be read after "unknown key; "; None: it is none."""
    if key in COUNTERPARTS:
        keys, where, more = parts(COUNTERPARTS[key])
        return f"Mosquitto's {key} is here {', '.join(keys)} {where}" + (f"; {more}" if more else "")
    if key in WITHOUT:
        return f"Mosquitto's {key} has no counterpart here: {WITHOUT[key]}"
    return None
