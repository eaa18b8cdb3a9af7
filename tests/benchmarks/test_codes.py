from __future__ import annotations

from benchmarks import codes


def test_generated_codes_are_unique_and_use_the_alphabet() -> None:
    generated = codes.generate(5000)
    assert len(set(generated)) == 5000
    assert all(len(code) == codes.LENGTH and set(code) <= set(codes.ALPHABET) for code in generated)


def test_letters_are_distributed_evenly() -> None:
    letters = "".join(codes.generate(20_000))
    frequencies = [letters.count(letter) * len(codes.ALPHABET) / len(letters) for letter in codes.ALPHABET]
    assert min(frequencies) > 0.95
    assert max(frequencies) < 1.05
