"""Keys of mosquitto.conf that hands write by habit, and what stands for each here: the short form of config/mosquitto-migration.md.

Where a key has the same name here it needs no line.
"""

from __future__ import annotations

from typing import Final

_TLS: Final = "in [listeners.tls]"
_BRIDGE: Final = "in [[bridges]]"
_BRIDGE_TLS: Final = "in [bridges.tls]"
_BY_ITSELF: Final = "a bridge connects by itself, and again after at most 30 s"
_KEEPS: Final = "a bridge keeps its Sessions (session_expiry_s: how long the other broker's)"
_IS_TRUSTED: Final = "a bridge is asked nothing by its own broker"
_STATE: Final = "$SYS/broker/connection/NAME/state is retained here, and notification_topic in [[bridges]] there"
_FIRST_FIRST: Final = "the first of url and fallback_urls that is there is taken, and url again as soon as it is"
_NOT_OF_BRIDGES: Final = "it is not there for bridges"

COUNTERPARTS: Final = {
    "addresses": f"url {_BRIDGE}; mqtt://host:port, further ones in fallback_urls",
    "autosave_interval": "path in [store]; nothing is saved by time, what has to last is on disk before it is acknowledged",
    "autosave_on_changes": "path in [store]; nothing is saved by time, what has to last is on disk before it is acknowledged",
    "bind_address": "host in [[listeners]]",
    "bridge_bind_address": f"local_address {_BRIDGE}",
    "bridge_cafile": f"ca {_BRIDGE_TLS}",
    "bridge_capath": f"ca {_BRIDGE_TLS}",
    "bridge_certfile": f"certificate {_BRIDGE_TLS}",
    "bridge_insecure": f"check_hostname {_BRIDGE_TLS}; false",
    "bridge_keyfile": f"key {_BRIDGE_TLS}",
    "bridge_outgoing_retain": f"outgoing_retain {_BRIDGE}",
    "bridge_protocol_version": f"version {_BRIDGE}",
    "cafile": f"client_ca {_TLS}; only where clients show certificates",
    "capath": f"client_ca {_TLS}; only where clients show certificates",
    "certfile": f"certificate {_TLS}",
    "clientid_prefixes": 'client_ids above the first [table]; ["secure-*"]',
    "connection": f"name, url {_BRIDGE}",
    "connection_messages": "connections in [log]",
    "crlfile": f"crl {_TLS}",
    "keepalive_interval": f"keepalive_s {_BRIDGE}",
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
    "remote_clientid": f"client_id {_BRIDGE}",
    "remote_password": f"password_file {_BRIDGE}; a file, whose first line it is",
    "remote_username": f"username {_BRIDGE}",
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
    **dict.fromkeys(("bridge_alpn", "bridge_psk"), _NOT_OF_BRIDGES),
    "bridge_attempt_unsubscribe": "a bridge always does so",
    "bridge_max_packet_size": "the other broker says in 5.0 what it takes, and packet_bytes_max in [limits] is what this one does",
    "bridge_tcp_keepalive": "keepalive_s in [[bridges]] finds a connection that is dead",
    "bridge_tcp_user_timeout": "answer_timeout_s in [[bridges]] is for what is not acknowledged",
    **dict.fromkeys(("cleansession", "local_cleansession"), _KEEPS),
    "ciphers_tls1": "OpenSSL chooses those of TLS 1.3",
    "dhparamfile": "OpenSSL chooses",
    "http_dir": "files are a web server's task",
    **dict.fromkeys(("idle_timeout", "restart_timeout", "start_type", "threshold"), _BY_ITSELF),
    "include_dir": "a broker has one file, and variables (BROKER__LISTENERS__0__PORT) over it",
    **dict.fromkeys(("local_clientid", "local_password", "local_username"), _IS_TRUSTED),
    "log_timestamp": "each line has its time, and format in [log] is text or json",
    **dict.fromkeys(("notifications", "notifications_local_only"), _STATE),
    "pid_file": "whoever starts it knows its process",
    "plugin": "in a program open_broker takes hooks (authenticate=, authorize=)",
    "psk_file": "TLS is with certificates",
    "psk_hint": "TLS is with certificates",
    "round_robin": _FIRST_FIRST,
    "socket_domain": "host is an IPv4 or an IPv6 address",
    "try_private": 'version = "5.0" has No Local, which keeps what was sent from coming back',
    "user": "whoever starts the broker says as whom, as config/broker.service does",
}
"""Key to why it can be left out."""


def parts(line: str) -> tuple[list[str], str, str]:
    """(our keys, "in [table]" or "above the first [table]", what else to know)."""
    ours, _, more = line.partition("; ")
    names, between, table = ours.partition(" in ") if " in " in ours else ours.partition(" above ")
    return names.split(", "), between.lstrip() + table, more


def counterpart(key: str, path: str) -> str | None:
    """What to write instead of a key of mosquitto.conf, to be read after "unknown key; "; None: it is none. path: of the table that it stands in."""
    if path.startswith("bridges") and f"bridge_{key}" in COUNTERPARTS:
        key = f"bridge_{key}"
    if key in COUNTERPARTS:
        keys, where, more = parts(COUNTERPARTS[key])
        return f"Mosquitto's {key} is here {', '.join(keys)} {where}" + (f"; {more}" if more else "")
    if key in WITHOUT:
        return f"Mosquitto's {key} has no counterpart here: {WITHOUT[key]}"
    return None
