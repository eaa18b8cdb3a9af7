"""Email headers as bytes.

They are folded (RFC 5322, 2.2.3) and, if necessary, encoded (RFC 2047).
"""

from __future__ import annotations

import base64
import unicodedata

# The recommended line length (RFC 5322, 2.1.1), and the maximum for lines with encoded words (RFC 2047, 2).
LINE_LENGTH, ENCODED_LINE_LENGTH = 78, 76
# A longer word would not fit on the line of the header's name, and is encoded.
_MAX_WORD_LENGTH = 60
_ENCODED_WORD_OVERHEAD = len("=?utf-8?b??=")
_FORBIDDEN_CATEGORIES = ("Cc", "Cs", "Co", "Zl", "Zp")
_UNQUOTED_CHARACTERS = frozenset(
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789 !#$%&'*+-/=?^_`{|}~"  # no translation
)


def format_header(name: str, value: str) -> bytes:
    """Format a header.

    :raises ValueError: for a line break, which would start another header.
    """
    reject_line_breaks(value)
    if value.isascii() and value.isprintable() and "=?" not in value:
        line = f"{name}: {value}"
        if len(line) <= LINE_LENGTH:
            return f"{line}\r\n".encode()
        words = value.split(" ")
        # Values with consecutive spaces are encoded instead: folding there would leave a line of white space only.
        if all(words) and max(map(len, words)) <= _MAX_WORD_LENGTH:
            return f"{_fold_words(f'{name}:', words)}\r\n".encode()
    return f"{name}: {_encode_words(value, len(name) + 2)}\r\n".encode()


def format_address_header(name: str, display_name: str, address: str) -> bytes:
    """Format a header with an address and, unless it is empty, a display name.

    :raises ValueError: for a line break in either.
    """
    reject_line_breaks(display_name + address)
    if not display_name:
        return f"{name}: <{address}>\r\n".encode()
    if len(display_name) <= 60 and display_name.isascii() and display_name.isprintable() and "=?" not in display_name:
        if not _UNQUOTED_CHARACTERS.issuperset(display_name):
            quoted = display_name.replace("\\", "\\\\").replace('"', '\\"')
            display_name = f'"{quoted}"'
        separator = " " if len(name) + len(display_name) + len(address) + 5 <= LINE_LENGTH else "\r\n "
        return f"{name}: {display_name}{separator}<{address}>\r\n".encode()
    return f"{name}: {_encode_words(display_name, len(name) + 2)}\r\n <{address}>\r\n".encode()


def to_single_line(value: str) -> str:
    """Put a value on one line, as headers require.

    Emoji joiners and bidi controls stay.
    """
    if not value.isprintable():
        value = "".join(
            " " if unicodedata.category(character) in _FORBIDDEN_CATEGORIES else character for character in value
        )
    return " ".join(value.split())


def reject_line_breaks(value: str) -> None:
    """Reject line breaks in a header value.

    :raises ValueError: when it has one.
    """
    if "\r" in value or "\n" in value:
        raise ValueError("a header value must not contain a line break")


def _fold_words(line: str, words: list[str]) -> str:
    lines = [line]
    for word in words:
        # The first word stays on the line of the header's name: some programs read an empty first line as no value.
        if len(lines[-1]) + 1 + len(word) > LINE_LENGTH and lines[-1] != line:
            lines.append("")
        lines[-1] += f" {word}"
    return "\r\n".join(lines)


def _encode_words(value: str, prefix_length: int) -> str:
    """Encode a value as encoded words, one per line, without splitting a character.

    :param prefix_length: the length of the header's name and separator on the first line.
    """
    words, word, capacity = [], b"", _encoded_word_capacity(prefix_length)
    for character in value:
        encoded = character.encode()
        if len(word) + len(encoded) > capacity:
            words.append(word)
            word, capacity = b"", _encoded_word_capacity(1)
        word += encoded
    words.append(word)
    return "\r\n ".join(f"=?utf-8?b?{base64.b64encode(word).decode()}?=" for word in words)


def _encoded_word_capacity(prefix_length: int) -> int:
    """Return the number of bytes that fit into an encoded word after a prefix.

    Base64 encodes three bytes as four characters.
    """
    return max(4, (ENCODED_LINE_LENGTH - prefix_length - _ENCODED_WORD_OVERHEAD) // 4 * 3)
