from __future__ import annotations

from benchmarks import codes


def test_as_many_codes_as_asked_for_all_different_and_readable() -> None:
    made = codes.generate(5000)
    assert len(set(made)) == 5000
    assert all(len(code) == codes.LENGTH and set(code) <= set(codes.ALPHABET) for code in made)


def test_every_letter_is_as_likely_as_any_other() -> None:
    letters = "".join(codes.generate(20_000))
    share = [letters.count(letter) * len(codes.ALPHABET) / len(letters) for letter in codes.ALPHABET]
    assert min(share) > 0.95
    assert max(share) < 1.05
