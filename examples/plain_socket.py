"""One MQTT message, published and received with nothing but `socket` and `struct`.

    python examples/plain_socket.py [HOST [PORT]]      (127.0.0.1 1883; start a broker first: make serve)

Two connections speak MQTT 3.1.1 at QoS 0: one subscribes, the other publishes, the first prints what came. docs/sockets.md
explains every function here. Each packet that goes over a socket is shown in hex: `>` sent, `<` received.
"""

from __future__ import annotations

import socket
import struct
import sys

CONNECT, CONNACK, PUBLISH, SUBSCRIBE, SUBACK, DISCONNECT = 0x10, 0x20, 0x30, 0x82, 0x90, 0xE0
PACKET_BYTES_MAX = 65_536  # ours: a length is only what a stranger says, so there is one that we do not believe
SECONDS_MAX = 10.0  # nor do we wait for a stranger for ever


# ---- bytes: pure functions, no socket ---------------------------------------------------------------------------------


def encode_length(count: int) -> bytes:
    """Seven bits a byte, the lowest first; the top bit says that another byte follows."""
    out = bytearray()
    while True:
        count, low = divmod(count, 128)
        out.append(low | 0x80 if count else low)
        if not count:
            return bytes(out)


def encode_string(text: str) -> bytes:
    """Two bytes of length, big-endian, counting *bytes* and not characters; then UTF-8."""
    data = text.encode("utf-8")
    return struct.pack("!H", len(data)) + data


def connect_packet(client_id: str) -> bytes:
    # Protocol name, level 4 (MQTT 3.1.1), flags (a clean session), keep alive in seconds.
    return encode_string("MQTT") + struct.pack("!BBH", 4, 0x02, 60) + encode_string(client_id)


def subscribe_packet(packet_id: int, topic_filter: str) -> bytes:
    return struct.pack("!H", packet_id) + encode_string(topic_filter) + b"\x00"  # at most QoS 0


def publish_packet(topic: str, payload: bytes) -> bytes:
    return encode_string(topic) + payload  # the payload has no length of its own: it is the rest of the packet


def split_publish(body: bytes) -> tuple[str, bytes]:
    (length,) = struct.unpack_from("!H", body)
    return body[2 : 2 + length].decode("utf-8"), body[2 + length :]


# ---- the socket -------------------------------------------------------------------------------------------------------


def receive_exactly(sock: socket.socket, count: int) -> bytes:
    """`recv` gives what is there, at most `count` bytes and at least one; b"" and only b"" means that the other end has finished."""
    parts = []
    while count:
        part = sock.recv(count)  # never more than this frame still lacks: the next one is not ours to read yet
        if not part:
            raise ConnectionError(f"the broker closed the connection, {count} bytes short of a whole packet")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def receive_packet(sock: socket.socket) -> tuple[int, bytes]:
    """(first byte, what follows the length)."""
    header = receive_exactly(sock, 1)
    count = shift = 0
    while True:
        byte = receive_exactly(sock, 1)
        header += byte
        count |= (byte[0] & 0x7F) << shift
        shift += 7
        if byte[0] < 0x80:
            break
        if shift == 28:
            raise ConnectionError("not MQTT: a length of more than four bytes")
    if count > PACKET_BYTES_MAX:
        raise ConnectionError(f"a packet of {count} bytes is more than we take")
    body = receive_exactly(sock, count)
    print("<", (header + body).hex(" "))
    return header[0], body


def send_packet(sock: socket.socket, first_byte: int, body: bytes) -> None:
    packet = bytes([first_byte]) + encode_length(len(body)) + body
    print(">", packet.hex(" "))
    sock.sendall(packet)  # not `send`, which may take only a part


def expect(sock: socket.socket, first_byte: int) -> bytes:
    got, body = receive_packet(sock)
    if got != first_byte:
        raise ConnectionError(f"expected a packet that begins with {first_byte:#04x}, got {got:#04x}")
    return body


def open_connection(host: str, port: int, client_id: str) -> socket.socket:
    sock = socket.create_connection((host, port), timeout=SECONDS_MAX)  # the timeout stays, for every call below
    if sock.getsockname() == sock.getpeername():
        sock.close()
        raise ConnectionRefusedError(f"nobody listens on {host}:{port}; the system connected us to ourselves")
    send_packet(sock, CONNECT, connect_packet(client_id))
    flags_and_code = expect(sock, CONNACK)
    if flags_and_code[1] != 0:
        raise ConnectionRefusedError(f"the broker refuses the connection with code {flags_and_code[1]}")
    return sock


def say_goodbye(sock: socket.socket) -> None:
    """DISCONNECT, then "nothing more from me", then read to the end: a close with unread bytes would be a reset. The caller closes."""
    send_packet(sock, DISCONNECT, b"")
    sock.shutdown(socket.SHUT_WR)
    while sock.recv(4096):
        pass


def main() -> None:
    host = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1"
    port = int(sys.argv[2]) if len(sys.argv) > 2 else 1883

    with open_connection(host, port, "plain-subscriber") as subscriber, open_connection(host, port, "plain-publisher") as publisher:
        send_packet(subscriber, SUBSCRIBE, subscribe_packet(1, "greetings/#"))
        if expect(subscriber, SUBACK) != b"\x00\x01\x00":  # packet id 1, granted QoS 0
            raise ConnectionError("the broker refuses the subscription")

        send_packet(publisher, PUBLISH, publish_packet("greetings/world", "hello, 世界".encode()))
        topic, payload = split_publish(expect(subscriber, PUBLISH))
        print(f"received on {topic}: {payload.decode('utf-8')}")

        say_goodbye(publisher)
        say_goodbye(subscriber)


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:  # refused, reset, timed out, not found are OSError; a port that is no number is a ValueError
        sys.exit(f"plain_socket: {error}")
