"""Files made wrong at random: from bytes, JSON values or zip entries that are right."""

import copy
import io
import json
import random
import zipfile

ODD_BYTES = (
    b"\0",
    b"\xff" * 4,
    b"\x7f\xff\xff\xff",
    b"\0" * 8,
    b"\xff\xd9",
    b"PK\1\2",
    b'"',
    b"[{",
)
ODD_VALUES = (None, True, -1, 0, 2**70, 0.5, 1e308, float("nan"), "", "a\x1b[31m\n", [], [[]], {})
ODD_VALUES += ({"a": {"b": 1}}, "x" * 3000, [1, "a", None], "model.facenet", -0.0, "\ud800")


def of_bytes(data: bytes, draw: random.Random) -> bytes:
    """One to four changes of single bytes, ranges or the length."""
    spoiled = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(spoiled) + 1)
        end = min(len(spoiled), at + draw.choice((1, 2, 8, 64, 4096)))
        kind = draw.randrange(7)
        if kind == 0 and at < len(spoiled):
            spoiled[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            spoiled[at:end] = draw.randbytes(end - at)
        elif kind == 2:
            del spoiled[at:end]
        elif kind == 3:
            spoiled[at:at] = spoiled[at:end]
        elif kind == 4:
            odd = draw.choice(ODD_BYTES)
            spoiled[at : at + len(odd)] = odd
        elif kind == 5:
            spoiled[at:at] = draw.choice(ODD_BYTES)
        elif draw.random() < 0.3:
            del spoiled[at:]
    return bytes(spoiled)


def of_json(data: bytes, draw: random.Random) -> bytes:
    """Some values replaced, removed or renamed; every fourth time the text itself is spoiled."""
    if draw.random() < 0.25:
        return of_bytes(data, draw)
    whole = [json.loads(data)]
    for _ in range(draw.randint(1, 3)):
        place, key = whole, 0
        while isinstance(place[key], (dict, list)) and place[key] and draw.random() < 0.85:
            place = place[key]
            key = draw.choice(list(place) if isinstance(place, dict) else range(len(place)))
        if draw.random() < 0.6:
            place[key] = copy.deepcopy(draw.choice(ODD_VALUES))
        elif isinstance(place, dict):
            value = place.pop(key)
            if draw.random() < 0.5:
                place[draw.choice(("", key.upper(), "new", key + "."))] = value
        else:
            place[key] = {"in": place[key]}
        if not isinstance(whole[0], (dict, list)):
            break
    return json.dumps(whole[0]).encode()


def of_zip(data: bytes, draw: random.Random) -> bytes:
    """The archive's bytes spoiled, or those of an entry under a sum that is right."""
    if draw.random() < 0.5:
        return of_bytes(data, draw)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = [(info.filename, archive.read(info)) for info in archive.infolist()]
    chosen = draw.randrange(len(entries))
    name, content = entries[chosen]
    if draw.random() < 0.2:
        name = draw.choice(("../../x", "/x", "", name * 2, name.upper(), "a\0b"))
    entries[chosen] = (name, of_bytes(content, draw))
    if draw.random() < 0.1:
        del entries[draw.randrange(len(entries))]
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in entries:
            archive.writestr(zipfile.ZipInfo(name), content)
    return file.getvalue()


def of_text(data: bytes, draw: random.Random) -> bytes:
    """Lines and cells moved, doubled and replaced; every third time bytes."""
    if draw.random() < 0.33:
        return of_bytes(data, draw)
    lines = [line.split(b",") for line in data.split(b"\n")]
    for _ in range(draw.randint(1, 4)):
        line = draw.choice(lines)
        odd = draw.choice(
            (b"", b"-1", b"9" * 30, b'"', b"\xff", "\u0663".encode(), b"../..", b"a\0")
        )
        line[draw.randrange(len(line))] = odd
        if draw.random() < 0.3:
            lines.insert(draw.randrange(len(lines)), list(line))
        elif draw.random() < 0.2 and len(lines) > 1:
            lines.remove(line)
    return b"\n".join(b",".join(line) for line in lines)
