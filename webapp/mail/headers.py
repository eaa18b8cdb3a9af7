"""Header lines of a mail as bytes: folded (RFC 5322, 2.2.3), encoded where need be (RFC 2047), one line each."""

from __future__ import annotations

import base64

# What a line should have (RFC 5322, 2.1.1), and what an encoded one may have (RFC 2047, 2).
LINE_LENGTH, ENCODED_LINE_LENGTH = 78, 76
# A single word longer than this would not fit beside a header's name, and is encoded.
_WORD_MAX = 60
_ENCODED_WORD_OVERHEAD = len("=?utf-8?b??=")
_UNQUOTED_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789 !#$%&'*+-/=?^_`{|}~")


def format_header(name: str, value: str) -> bytes:
    """One header.

    :raises ValueError: for a line break, which would start another header.
    """
    reject_line_breaks(value)
    if value.isascii() and value.isprintable() and "=?" not in value:
        line = f"{name}: {value}"
        if len(line) <= LINE_LENGTH:
            return f"{line}\r\n".encode()
        words = value.split(" ")
        # A blank line in the middle of a header is none, and two blanks in a row would leave one.
        if all(words) and max(map(len, words)) <= _WORD_MAX:
            return f"{_fold_words(f'{name}:', words)}\r\n".encode()
    return f"{name}: {_encode_words(value, len(name) + 2)}\r\n".encode()


def format_address_header(name: str, words: str, to: str) -> bytes:
    """One header with a name, if there is one, and an address.

    :raises ValueError: for a line break in either.
    """
    reject_line_breaks(words + to)
    if not words:
        return f"{name}: <{to}>\r\n".encode()
    if len(words) <= 60 and words.isascii() and words.isprintable() and "=?" not in words:
        if not _UNQUOTED_CHARACTERS.issuperset(words):
            quoted = words.replace("\\", "\\\\").replace('"', '\\"')
            words = f'"{quoted}"'
        between = " " if len(name) + len(words) + len(to) + 5 <= LINE_LENGTH else "\r\n "
        return f"{name}: {words}{between}<{to}>\r\n".encode()
    return f"{name}: {_encode_words(words, len(name) + 2)}\r\n <{to}>\r\n".encode()


def reject_line_breaks(value: str) -> None:
    if "\r" in value or "\n" in value:
        raise ValueError("a header value must not have a line break in it")


def _fold_words(line: str, words: list[str]) -> str:
    lines = [line]
    for word in words:
        # The first word stays beside the header's name: some programs take an empty first line for an empty header.
        if len(lines[-1]) + 1 + len(word) > LINE_LENGTH and lines[-1] != line:
            lines.append("")
        lines[-1] += f" {word}"
    return "\r\n".join(lines)


def _encode_words(value: str, taken: int) -> str:
    """Words none of which splits a character, each on a line of its own.

    :param taken: how much of the first line the header's name takes.
    """
    words, held, room = [], b"", _encoded_word_capacity(taken)
    for character in value:
        coded = character.encode()
        if len(held) + len(coded) > room:
            words.append(held)
            held, room = b"", _encoded_word_capacity(1)
        held += coded
    words.append(held)
    return "\r\n ".join(f"=?utf-8?b?{base64.b64encode(word).decode()}?=" for word in words)


def _encoded_word_capacity(taken: int) -> int:
    """How many bytes an encoded word may hold in what is left of a line; base64 writes three as four."""
    return max(4, (ENCODED_LINE_LENGTH - taken - _ENCODED_WORD_OVERHEAD) // 4 * 3)
