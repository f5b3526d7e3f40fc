"""Takes a multipart/form-data body apart, strictly: what no browser or curl sends is refused."""

from dataclasses import dataclass
from email.message import Message

MAX_PARTS = 64


@dataclass
class Part:
    name: str
    filename: str | None
    content_type: str
    data: bytes


def parse(content_type: str, body: bytes) -> list[Part]:
    """The parts in the order they came. ValueError says what is wrong."""
    declared = Message()
    declared["content-type"] = content_type
    boundary = declared.get_param("boundary")
    if declared.get_content_type() != "multipart/form-data" or not boundary:
        raise ValueError("content-type must be multipart/form-data with a boundary")
    delimiter = b"--" + str(boundary).encode()
    pieces = (b"\r\n" + body).split(b"\r\n" + delimiter)
    if len(pieces) < 2 or pieces[-1].rstrip(b"\r\n") != b"--":
        raise ValueError("the closing boundary is missing")
    if len(pieces) - 2 > MAX_PARTS:
        raise ValueError("too many parts")
    return [_part(piece) for piece in pieces[1:-1]]


def _part(piece: bytes) -> Part:
    head, separator, data = piece.partition(b"\r\n\r\n")
    if not separator or not head.startswith(b"\r\n"):
        raise ValueError("a part without a head")
    headers = Message()
    for line in head[2:].decode("utf-8").split("\r\n"):
        name, _, value = line.partition(":")
        headers[name.strip()] = value.strip()
    name = headers.get_param("name", header="content-disposition")
    if not name:
        raise ValueError("a part without a name")
    filename = headers.get_param("filename", header="content-disposition")
    return Part(
        str(name),
        None if filename is None else str(filename),
        headers.get("content-type", "text/plain"),
        data,
    )
