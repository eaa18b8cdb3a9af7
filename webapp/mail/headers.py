"""Header lines of a mail as bytes: folded (RFC 5322, 2.2.3), encoded where need be (RFC 2047), one line each."""

from __future__ import annotations

import base64

# What a line should have (RFC 5322, 2.1.1), and what an encoded one may have (RFC 2047, 2).
LINE, ENCODED_LINE = 78, 76
# A single word longer than this would not fit beside a header's name, and is encoded.
_LONG_WORD = 60
_WRAPPING = len("=?utf-8?b??=")
_PLAIN_NAME = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789 !#$%&'*+-/=?^_`{|}~")


def header(name: str, value: str) -> bytes:
    """One header.

    :raises ValueError: for a line break, which would start another header.
    """
    refuse_line_breaks(value)
    if value.isascii() and value.isprintable() and "=?" not in value:
        line = f"{name}: {value}"
        if len(line) <= LINE:
            return f"{line}\r\n".encode()
        words = value.split(" ")
        # A blank line in the middle of a header is none, and two blanks in a row would leave one.
        if all(words) and max(map(len, words)) <= _LONG_WORD:
            return f"{_folded(f'{name}:', words)}\r\n".encode()
    return f"{name}: {_encoded_words(value, len(name) + 2)}\r\n".encode()


def address_header(name: str, words: str, to: str) -> bytes:
    """One header with a name, if there is one, and an address.

    :raises ValueError: for a line break in either.
    """
    refuse_line_breaks(words + to)
    if not words:
        return f"{name}: <{to}>\r\n".encode()
    if len(words) <= 60 and words.isascii() and words.isprintable() and "=?" not in words:
        if not _PLAIN_NAME.issuperset(words):
            quoted = words.replace("\\", "\\\\").replace('"', '\\"')
            words = f'"{quoted}"'
        between = " " if len(name) + len(words) + len(to) + 5 <= LINE else "\r\n "
        return f"{name}: {words}{between}<{to}>\r\n".encode()
    return f"{name}: {_encoded_words(words, len(name) + 2)}\r\n <{to}>\r\n".encode()


def refuse_line_breaks(value: str) -> None:
    if "\r" in value or "\n" in value:
        raise ValueError("a header value must not have a line break in it")


def _folded(line: str, words: list[str]) -> str:
    lines = [line]
    for word in words:
        # The first word stays beside the header's name: some programs take an empty first line for an empty header.
        if len(lines[-1]) + 1 + len(word) > LINE and lines[-1] != line:
            lines.append("")
        lines[-1] += f" {word}"
    return "\r\n".join(lines)


def _encoded_words(value: str, taken: int) -> str:
    """Words none of which splits a character, each on a line of its own.

    :param taken: how much of the first line the header's name takes.
    """
    words, held, room = [], b"", _room(taken)
    for character in value:
        coded = character.encode()
        if len(held) + len(coded) > room:
            words.append(held)
            held, room = b"", _room(1)
        held += coded
    words.append(held)
    return "\r\n ".join(f"=?utf-8?b?{base64.b64encode(word).decode()}?=" for word in words)


def _room(taken: int) -> int:
    """How many bytes an encoded word may hold in what is left of a line; base64 writes three as four."""
    return max(4, (ENCODED_LINE - taken - _WRAPPING) // 4 * 3)
