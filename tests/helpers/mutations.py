"""Seeded mutations of files, as a hostile or broken writer would leave them."""

from __future__ import annotations

import random

VALUES = (
    *("null", "~", "''", "[]", "{}", "-1", "0", "1e308", "1e-400", ".nan", ".inf", "0x7fffffff"),
    *("99999999999999999999", "true", "yes", "2020-01-01", "<<", "*a", "&a x", "!!python/name:os"),
    *("{choice: []}", "{choice: [1]}", "{int: [1, 1000000000]}", "{uniform: [0, 0]}"),
    *("{loguniform: [0, 1]}", "{pairing: {}}", "{choice: [{choice: [{choice: [1]}]}]}"),
    *("'os:system'", "'../../../etc/passwd'", "/dev/zero", "'models:/x@y'", "'s3://nowhere/x'"),
    *("!!python/object/apply:os.system ['touch canary']", "'${HOME}'", "\\ud800", '"\\x00"'),
    *("[[[[[[[[[[x]]]]]]]]]]", "{a: {b: {c: {d: e}}}}", "'" + "x" * 5000 + "'"),
)
"""Values that take the place of others in a study."""


def mutate_study(text: str, generator: random.Random) -> bytes:
    """Return a study file with one to four mutations of its lines, values or bytes."""
    lines = text.splitlines()
    for _ in range(generator.randint(1, 4)):
        at = generator.randrange(len(lines))
        line = lines[at]
        match generator.randrange(9):
            case 0:
                del lines[at]
            case 1:
                lines.insert(at, line)
            case 2:
                other = generator.randrange(len(lines))
                lines[at], lines[other] = lines[other], line
            case 3:
                lines[at] = " " * generator.randint(1, 3) + line
            case 4 | 5 | 6:
                key, colon, _ = line.partition(":")
                lines[at] = f"{key}{colon} {generator.choice(VALUES)}"
            case 7:
                words = line.split(" ")
                words[generator.randrange(len(words))] = generator.choice(VALUES)
                lines[at] = " ".join(words)
            case 8:
                lines = lines[:at]
        lines = lines or ["x"]
    content = "\n".join(lines).encode("utf-8", "replace")
    return mutate_bytes(content, generator) if generator.random() < 0.2 else content


def mutate_bytes(content: bytes, generator: random.Random) -> bytes:
    """Return a file that was damaged: flipped, cut, overwritten, doubled or moved bytes."""
    at, other = sorted(generator.randrange(len(content) + 1) for _ in range(2))
    match generator.randrange(7):
        case 0:
            damaged = bytearray(content or b"x")
            for _ in range(generator.randint(1, 8)):
                damaged[generator.randrange(len(damaged))] ^= 1 << generator.randrange(8)
            return bytes(damaged)
        case 1:
            return content[:at]
        case 2:
            return content[:at] + content[other:]
        case 3:
            return content[:other] + content[at:]
        case 4:
            return content[:at] + generator.randbytes(other - at) + content[other:]
        case 5:
            return content[:at] + b"\0" * (other - at) + content[other:]
        case _:
            return content[:at] + generator.randbytes(generator.randint(1, 200)) + content[at:]


def mutate_lines(content: bytes, generator: random.Random) -> bytes:
    """Return a file of JSON lines that was damaged in one line, in its order or in its bytes."""
    lines = content.splitlines(keepends=True)
    at = generator.randrange(len(lines))
    match generator.randrange(5):
        case 0:
            del lines[at]
        case 1:
            lines.insert(generator.randrange(len(lines)), lines[at])
        case 2:
            generator.shuffle(lines)
        case 3:
            lines[at] = mutate_bytes(lines[at].rstrip(b"\n"), generator) + b"\n"
        case _:
            return mutate_bytes(content, generator)
    return b"".join(lines)
