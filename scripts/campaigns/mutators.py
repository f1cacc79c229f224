"""Changes of files that know their structure: bytes, JSON, safetensors, what torch.save wrote, lines of text."""

import json
import pickletools
import random
import struct
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

Mutate = Callable[[random.Random, Path], str]
"""Changes a file in its place, and says how."""

ODD: list[Any] = [None, True, False, 0, -1, 1, 2, 3, 2**31, 2**63, -(2**63), 10**30, 0.5, 1e300, float("nan")]
ODD += ["", "F32", "BF16", "float32", "\ud800", "../../x", "/dev/zero", "ä" * 300, [], {}, [[]], [0], {"a": 1}]


def mutate_bytes(draw: random.Random, path: Path) -> str:
    content = bytearray(path.read_bytes())
    how = draw.choice(["cut", "bit", "byte", "zeros", "twice", "more", "empty", "gone", "swapped"])
    place = draw.randrange(len(content) or 1)
    length = draw.randint(1, 64)
    if how == "cut":
        del content[place:]
    elif how == "bit" and content:
        content[place] ^= 1 << draw.randrange(8)
    elif how == "byte" and content:
        content[place] = draw.randrange(256)
    elif how == "zeros":
        content[place : place + length] = bytes(len(content[place : place + length]))
    elif how == "twice":
        content[place:place] = content[place : place + length]
    elif how == "more":
        content += draw.randbytes(length)
    elif how == "gone":
        del content[place : place + length]
    elif how == "swapped":
        other = draw.randrange(len(content) or 1)
        content[place : place + 8], content[other : other + 8] = content[other : other + 8], content[place : place + 8]
    else:
        content.clear()
    path.write_bytes(content)
    return f"{path.name}: {how} at byte {place}"


def mutate_value(draw: random.Random, value: Any) -> tuple[Any, str]:
    """A JSON value with one place of it changed."""
    places: list[tuple[Any, Any]] = []

    def walk(one: Any) -> None:
        for key in one if isinstance(one, dict) else range(len(one)) if isinstance(one, list) else ():
            places.append((one, key))
            walk(one[key])

    walk(value := json.loads(json.dumps(value)))
    if not places or draw.random() < 0.03:
        found = draw.choice(ODD)
        return found, f"all of it is {str(found)[:20]!r}"
    # Not mostly of the longest list.
    parent = draw.choice(list({id(one): one for one, _ in places}.values()))
    key = draw.choice([key for one, key in places if one is parent])
    how = draw.choice(["odd", "odd", "gone", "near", "swapped", "renamed"])
    about = f"{how} at {key!r}"
    if how == "gone":
        del parent[key]
    elif how == "near" and isinstance(parent[key], int | float):
        parent[key] = draw.choice([parent[key] + 1, parent[key] - 1, -parent[key], parent[key] * 2, float(parent[key])])
    elif how == "near" and isinstance(parent[key], str):
        parent[key] = parent[key][:-1] + draw.choice(["", "x", "0"])
    elif how == "swapped":
        other = draw.choice([key for one, key in places if one is parent])
        parent[key], parent[other] = parent[other], parent[key]
    elif how == "renamed" and isinstance(parent, dict):
        parent[draw.choice([f"{key}x", ""])] = parent.pop(key)
    else:
        parent[key] = draw.choice(ODD)
        about += f" is {str(parent[key])[:20]!r}"
    return value, about


def mutate_json(draw: random.Random, path: Path) -> str:
    if draw.random() < 0.25:
        return mutate_bytes(draw, path)
    text = path.read_text()
    if draw.random() < 0.1 and text.startswith("{"):
        # The first key of an object once more, with another value.
        key = next(iter(json.loads(text)))
        path.write_text(text.rstrip().removesuffix("}") + f", {json.dumps(key)}: {json.dumps(draw.choice(ODD))}}}")
        return f"{path.name}: {key!r} twice"
    value, about = mutate_value(draw, json.loads(text))
    path.write_text(json.dumps(value))
    return f"{path.name}: {about}"


def mutate_safetensors(draw: random.Random, path: Path) -> str:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), bytearray(content[8 + length :])
    names = [name for name in header if name != "__metadata__"]
    first, second = header[draw.choice(names)], header[draw.choice(names)]
    how = draw.choice(["bytes", "header", "header", "number", "dtype", "shape", "swap", "offsets", "length", "value"])
    if how == "bytes":
        return mutate_bytes(draw, path)
    if how == "header":
        header, about = mutate_value(draw, header)
        how = f"header, {about}"
    elif how == "number":
        number = draw.choice([float("nan"), float("inf"), -float("inf"), 3e38, 1e-45])
        place = first["data_offsets"][0]
        data[place : place + 4] = struct.pack("<f", number)
        how = f"a value is {number}"
    elif how == "dtype":
        first["dtype"] = draw.choice(["I32", "F16", "BF16", "F64", "I8", "U8", "BOOL", "C64", "F8_E4M3", "f32"])
    elif how == "shape":
        first["shape"] = draw.choice([first["shape"][::-1], [1, *first["shape"]], [], [0, 2**62], [-1], [2**40, 0]])
    elif how == "swap":
        first["data_offsets"], second["data_offsets"] = second["data_offsets"], first["data_offsets"]
    elif how == "offsets":
        first["data_offsets"] = draw.choice([second["data_offsets"], [0, 2**62], [-4, 0], first["data_offsets"][::-1]])
    elif how == "value":
        place = draw.randrange(len(data))
        data[place] ^= 1 << draw.randrange(8)
    text = json.dumps(header).encode()
    size = len(text) + (draw.choice([-1, 1, 8, 2**32, 2**63]) if how == "length" else 0)
    path.write_bytes(size.to_bytes(8, "little") + text + data)
    return f"{path.name}: {how}"


def mutate_torch(draw: random.Random, path: Path) -> str:
    """Of a zip file of torch.save mostly the pickle, of an older file its bytes."""
    if draw.random() < 0.3 or not zipfile.is_zipfile(path):
        return mutate_bytes(draw, path)
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    (name,) = (name for name in entries if name.endswith("data.pkl"))
    how = draw.choice(["pickle", "pickle", "pickle", "code", "entry", "compressed"])
    method = zipfile.ZIP_STORED
    if how == "pickle":
        entries[name], about = mutate_pickle(draw, entries[name])
        how = f"pickle, {about}"
    elif how == "code":
        ends = [place for _, _, place in pickletools.genops(entries[name]) if place]
        place = draw.choice(ends)
        call = b"cos\nsystem\n(S'touch RAN'\ntR0"
        entries[name] = entries[name][:place] + call + entries[name][place:]
    elif how == "entry":
        other = draw.choice([*entries])
        entries[other] = draw.choice([b"", entries[other][:-1], entries[other] + b"\0", draw.randbytes(40)])
        how = f"entry {other}"
    else:
        method = zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(path, "w", method) as archive:
        for other, content in entries.items():
            archive.writestr(other, content)
    return f"{path.name}: {how}"


def mutate_pickle(draw: random.Random, content: bytes) -> tuple[bytes, str]:
    """A pickle with one opcode gone, twice, elsewhere, or with another argument."""
    starts = [place for _, _, place in pickletools.genops(content) if place is not None]
    codes = [content[a:b] for a, b in zip(starts, [*starts[1:], len(content)], strict=True)]
    place, other = draw.randrange(len(codes)), draw.randrange(len(codes))
    how = draw.choice(["gone", "twice", "swapped", "argument", "argument", "other"])
    if how == "gone":
        del codes[place]
    elif how == "twice":
        codes.insert(place, codes[place])
    elif how == "swapped":
        codes[place], codes[other] = codes[other], codes[place]
    elif how == "argument" and len(codes[place]) > 1:
        one = bytearray(codes[place])
        one[draw.randrange(1, len(one))] = draw.choice([0, 1, 255, draw.randrange(256)])
        codes[place] = bytes(one)
    else:
        codes[place] = codes[other]
    return b"".join(codes), f"{how} at opcode {place}"


def mutate_lines(draw: random.Random, path: Path) -> str:
    """Of YAML, tables and lines of JSON."""
    if draw.random() < 0.2:
        return mutate_bytes(draw, path)
    lines = path.read_text().splitlines()
    place, other = draw.randrange(len(lines)), draw.randrange(len(lines))
    how = draw.choice(["gone", "twice", "swapped", "indented", "scalar", "scalar", "letter", "quote", "tab"])
    line = lines[place]
    if how == "gone":
        del lines[place]
    elif how == "twice":
        lines.insert(other, line)
    elif how == "swapped":
        lines[place], lines[other] = lines[other], line
    elif how == "indented":
        lines[place] = draw.choice([f"  {line}", line.lstrip()])
    elif how == "scalar":
        odd = draw.choice(
            [
                "null",
                "~",
                "yes",
                "0o7",
                "1e-3",
                ".nan",
                "[]",
                "{}",
                "&a",
                "*a",
                "!!python/name:os.system",
                "'",
                '"',
                "|",
                "1_000",
                "0x10",
                "-1",
                "1e999",
                "${oc.env:HOME}",
                "${model}",
                "@",
                "2001-01-01",
            ]
        )
        lines[place] = f"{line.partition(':')[0]}: {odd}" if ":" in line else f"{line.partition(',')[0]},{odd}"
        how = f"{odd!r}"
    elif how == "quote":
        lines[place] = line + draw.choice(["'", '"', ",", ",x", "}", " # x"])
    elif how == "tab":
        lines[place] = "\t" + line
    elif line:
        i = draw.randrange(len(line))
        lines[place] = line[:i] + draw.choice("xé\u2028\x00\x85:,\"'") + line[i + 1 :]
    path.write_text("\n".join(lines) + "\n")
    return f"{path.name}: {how} in line {place}"


def mutate_image(draw: random.Random, path: Path) -> str:
    """In place of a PNG, another format of it too, then its bytes."""
    from PIL import Image

    form = draw.choice(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
    made = BytesIO()
    with Image.open(path) as image:
        image.convert(draw.choice(["L", "RGB"])).save(made, form)
    path.write_bytes(made.getvalue())
    return f"{form} {mutate_bytes(draw, path)}"
