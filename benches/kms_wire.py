"""One HTTP/2 connection to a KMS v2 plugin, written down byte by byte.

Guarantees: the same call is the same bytes every time, so that what is counted in the server depends on the server only. The
header block is what grpc-go sends on a warm connection: every header from the dynamic table but `grpc-timeout`, which changes
with each call. Refuses to know more of HTTP/2 than a well-behaved server answers with: no padding, no flow control (windows are
opened wide at the start), no Huffman coding. SPEC: RFC 9113, RFC 7541, gRPC over HTTP/2.
"""

import socket
import struct
import time

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, END_HEADERS, ACK = 1, 4, 1
INITIAL_WINDOW_SIZE = 4
SERVICE = "/v2.KeyManagementService/"
TIMEOUT_S = 120


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def varint(number):
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes(out + bytes((number,)))


def field(number, value):
    """One length-delimited protobuf field; nothing when it is empty."""
    return bytes((number << 3 | 2,)) + varint(len(value)) + value if value else b""


def fields(message):
    """(number, value) of every field of a message that has length-delimited fields only."""
    at, found = 0, []
    while at < len(message):
        number, size, shift = message[at] >> 3, 0, 0
        while True:
            at += 1
            size |= (message[at] & 0x7F) << shift
            shift += 7
            if message[at] < 0x80:
                break
        found.append((number, message[at + 1 : at + 1 + size]))
        at += 1 + size
    return found


class Connection:
    """Calls are sent in batches; a batch is in flight as a whole and is over when its last answer is there."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(TIMEOUT_S)
        self.socket.connect(path)
        wide = struct.pack(">I", 0x7FFFFFFF - 65535)
        self.socket.sendall(
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
            + frame(SETTINGS, 0, 0, struct.pack(">HI", INITIAL_WINDOW_SIZE, 0x7FFFFFFF))
            + frame(WINDOW_UPDATE, 0, 0, wide)
        )
        self.stream, self.table, self.buffer, self.timeout = -1, [], b"", 2_999_000

    def header(self, name, value):
        """Literal with incremental indexing the first time, then one byte."""
        if (name, value) in self.table:
            return bytes((0x80 | 62 + self.table.index((name, value)),))
        self.table.insert(0, (name, value))
        return b"\x40" + bytes((len(name),)) + name.encode() + bytes((len(value),)) + value.encode()

    def request(self, rpc, message):
        self.stream += 2
        self.timeout -= 1 if self.timeout > 2_000_000 else -999_000
        block = b"\x83\x86"  # :method POST, :scheme http
        for name, value in (
            (":path", SERVICE + rpc),
            (":authority", "localhost"),
            ("content-type", "application/grpc"),
            ("user-agent", "grpc-go/1.72.2"),
            ("te", "trailers"),
        ):
            block += self.header(name, value)
        timeout = f"{self.timeout}u".encode()
        # Without indexing: one that is never the same would only push the others out of the table.
        block += b"\x00\x0cgrpc-timeout" + bytes((len(timeout),)) + timeout
        body = b"\x00" + struct.pack(">I", len(message)) + message
        return frame(HEADERS, END_HEADERS, self.stream, block) + frame(DATA, END_STREAM, self.stream, body)

    def batch(self, calls):
        """Sends these (rpc, message) with one write and returns the answers in their order."""
        first = self.stream + 2
        self.socket.sendall(b"".join(self.request(*call) for call in calls))
        answers, ended = {}, 0
        while ended < len(calls):
            kind, flags, stream, payload = self.next_frame()
            if kind == DATA:
                answers[stream] = answers.get(stream, b"") + payload
            elif kind == HEADERS and flags & END_STREAM:
                ended += 1
            elif kind in (RST_STREAM, GOAWAY):
                raise RuntimeError(f"the server ended stream {stream}: {payload!r}")
            elif kind in (SETTINGS, PING) and not flags & ACK:
                self.socket.sendall(frame(kind, ACK, 0, payload if kind == PING else b""))
        ordered = [answers.get(first + 2 * n, b"") for n in range(len(calls))]
        if not all(ordered):
            raise RuntimeError("a call was answered without a message")
        return [answer[5:] for answer in ordered]

    def next_frame(self):
        while len(self.buffer) < 9 or len(self.buffer) < 9 + int.from_bytes(self.buffer[:3], "big"):
            received = self.socket.recv(1 << 18)
            if not received:
                raise RuntimeError("the server closed the connection")
            self.buffer += received
        size = 9 + int.from_bytes(self.buffer[:3], "big")
        whole, self.buffer = self.buffer[:size], self.buffer[size:]
        return whole[3], whole[4], int.from_bytes(whole[5:9], "big"), whole[9:]


def dial(path, patience_s=60):
    """Connects once somebody listens and Status says ok."""
    end = time.monotonic() + patience_s
    while True:
        try:
            connection = Connection(path)
            if (2, b"ok") in fields(connection.batch([("Status", b"")])[0]):
                return connection
        except (FileNotFoundError, ConnectionError, RuntimeError):
            pass
        if time.monotonic() > end:
            raise TimeoutError(f"no plugin serves on {path}")
        time.sleep(0.05)


def encrypt(uid, plaintext=bytes(range(32))):
    return ("Encrypt", field(1, plaintext) + field(2, uid.encode()))


def decrypt(uid, sealed):
    """The Decrypt of an EncryptResponse."""
    found = fields(sealed)
    ciphertext, key_id = (next(value for number, value in found if number == n) for n in (1, 2))
    annotations = b"".join(field(4, value) for number, value in found if number == 3)
    return ("Decrypt", field(1, ciphertext) + field(2, uid.encode()) + field(3, key_id) + annotations)
