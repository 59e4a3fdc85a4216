#!/usr/bin/env python3
"""Compares longshore's pickle parser with CPython's, value by value, without executing anything.

    cargo build --release -p longshore-ckpt --example pickle_json
    python3 interop/pickle_differential.py --example target/release/examples/pickle_json [--count N] [--seed S]

CPython's unpickler runs with a `find_class` that returns inert stubs, so a call or an instance is only recorded, as
longshore does. Compared are random values at protocols 0 to 5 (by the C and the Python pickler), those pickles with
bytes changed where both parsers accept them, and every `.metadata` and `common.pt` of the shared goldens, if present.
Standard library only.
"""

import argparse
import array
import collections
import copyreg
import dataclasses
import datetime
import decimal
import enum
import fractions
import io
import json
import os
import pathlib
import pickle
import random
import struct
import subprocess
import sys
import tempfile
import types
import uuid
import zipfile

sys.setrecursionlimit(4000)

# --- CPython's side -------------------------------------------------------------------------------------------------


class Inert(type):
    """The class of stub classes, one for each global."""

    known = {}

    def __call__(cls, *args, **named):
        return cls.__new__(cls, *args, **named)


def stub(module, name):
    key = (module, name)
    if key not in Inert.known:
        Inert.known[key] = Inert("Stub", (Stub,), {"parts": key})
    return Inert.known[key]


class Stub(metaclass=Inert):
    """What would have been an object: its class, the arguments it was made with, and what was done to it."""

    parts = None

    def __new__(cls, *args, **named):
        self = object.__new__(cls)
        self.args = (args, named) if named else args
        self.state = self.items = self.entries = None
        return self

    def __call__(self, *args):
        return stub(None, None)(*args)

    def __setstate__(self, state):
        if self.state is not None:
            raise ValueError("state is given twice")
        self.state = (state,)

    def append(self, item):
        self.extend([item])

    def extend(self, items):
        self.items = (self.items or []) + list(items)

    def add(self, item):
        self.extend([item])

    def __setitem__(self, key, value):
        self.entries = (self.entries or []) + [(key, value)]


class Persistent:
    def __init__(self, value):
        self.value = value


class Inertly:
    def find_class(self, module, name):
        return stub(module, name)

    def persistent_load(self, value):
        return Persistent(value)


class ReaderC(Inertly, pickle.Unpickler):
    pass


class ReaderPython(Inertly, pickle._Unpickler):
    """For damaged input: the one in C allocates whatever a memo index asks for."""


RECONSTRUCT = {(m, n) for m in ("copyreg", "copy_reg") for n in ("_reconstructor", "__newobj__", "__newobj_ex__")}


class Printer:
    """The same JSON as `crates/longshore-ckpt/examples/pickle_json.rs`."""

    def __init__(self):
        self.met = {}
        self.alive = []

    def value(self, v):
        if v is None:
            return ["none"]
        if isinstance(v, bool):
            return ["bool", v]
        if isinstance(v, int):
            size = v.bit_length() // 8 + 1
            # Longer ones are kept, but not shown.
            return ["int", str(v) if size <= 16 else f"<integer of {size} bytes>"]
        if isinstance(v, float):
            return ["float", "nan" if v != v else struct.pack(">d", v).hex()]
        if isinstance(v, str):
            try:
                v.encode()
                return ["str", v]
            except UnicodeEncodeError:
                return ["bytes", v.encode(errors="surrogatepass").hex()]
        if isinstance(v, (bytes, bytearray)):
            return ["bytes", bytes(v).hex()]
        if isinstance(v, Inert):
            return ["global", ".".join(v.parts)]
        if isinstance(v, Persistent):
            return ["persistent", self.value(v.value)]
        if isinstance(v, tuple):
            return ["tuple", [self.value(i) for i in v]]
        if isinstance(v, (set, frozenset)):
            items = [self.value(i) for i in v]
            return ["set", sorted(items, key=text)]
        return self.numbered(v)

    def numbered(self, v):
        if id(v) in self.met:
            return ["ref", self.met[id(v)]]
        number = self.met[id(v)] = len(self.met)
        self.alive.append(v)
        if isinstance(v, list):
            return ["list", number, [self.value(i) for i in v]]
        if isinstance(v, dict):
            return ["dict", number, self.entries(v.items())]
        parts = type(v).parts
        if parts in RECONSTRUCT:
            parts = v.args[0].parts if v.args and isinstance(v.args[0], Inert) else None
        name = None if parts in (None, (None, None)) else ".".join(parts)
        args = self.value(v.args)
        state = None if v.state is None else self.value(v.state[0])
        items = None if v.items is None else [self.value(i) for i in v.items]
        entries = None if v.entries is None else self.entries(v.entries)
        return ["object", number, name, args, state, items, entries]

    def entries(self, entries):
        return [[self.value(k), self.value(v)] for k, v in entries]


def text(value):
    """As serde_json writes it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def by_cpython(reader, data):
    file = io.BytesIO(data)
    try:
        value = reader(file).load()
        return Printer().value(value) if not file.read(1) else ["error", "bytes follow"]
    except Exception as error:  # any: the input may be damaged
        return ["error", f"{type(error).__name__}: {error}"]


# --- random values --------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Point:
    x: object
    y: object


class Slots:
    __slots__ = ("a", "b")


class Names(list):
    pass


class Table(dict):
    pass


class Named:
    """Rebuilt with keyword arguments: `NEWOBJ_EX` where the protocol has it."""

    def __new__(cls, *args, **named):
        self = object.__new__(cls)
        self.given = (args, named)
        return self

    def __getnewargs_ex__(self):
        # A copy, as Python passes one: which dict it is cannot be compared.
        return self.given[0], dict(self.given[1])


class Colour(enum.Enum):
    RED = 1


class Kept:
    """Pickled by a persistent id."""

    def __init__(self, id):
        self.id = id


class Maker:
    def __init__(self, seed, protocol):
        self.random = random.Random(seed)
        self.protocol = protocol
        self.shared = []

    def string(self):
        alphabet = "ab\\'\"\n\r\t\0\x1aé€\u202e😀 .weight"
        chars = [self.random.choice(alphabet) for _ in range(self.random.choice([0, 1, 3, 20, 300]))]
        # Protocol 0 writes them as escapes that longshore refuses.
        if self.protocol > 0 and self.random.random() < 0.03:
            chars.append("\ud800")
        return "".join(chars)

    def integer(self):
        bits = self.random.choice([0, 1, 7, 8, 15, 16, 31, 32, 62, 63, 64, 100, 126, 2000, 3000])
        # In text, longshore reads numbers of up to 128 bits.
        bits = min(bits, 126) if self.protocol < 2 else bits
        value = self.random.getrandbits(bits) if bits else 0
        return self.random.choice([value, -value, (1 << bits) - 1, -(1 << bits), 1 << bits])

    def real(self):
        kinds = [0.0, -0.0, 1.5, 1e308, 5e-324, float("inf"), float("-inf"), float("nan"), 0.1, 1e16, 123456789.125]
        return self.random.choice(kinds + [struct.unpack(">d", self.random.randbytes(8))[0]])

    def scalar(self):
        make = [lambda: None, lambda: True, lambda: False, self.integer, self.integer, self.real, self.string, self.string,
                lambda: self.random.randbytes(self.random.choice([0, 1, 5, 300])), lambda: collections.OrderedDict,
                lambda: argparse.Namespace, lambda: Colour.RED]
        return self.random.choice(make)()

    def hashable(self):
        if self.random.random() < 0.2:
            return tuple(self.scalar() for _ in range(self.random.randrange(4)))
        return self.scalar()

    def value(self, depth=0):
        if self.shared and self.random.random() < 0.15:
            return self.random.choice(self.shared)
        if depth > 4 or self.random.random() < 0.3:
            return self.scalar()
        made = self.random.choice(self.compound())(depth + 1)
        self.shared.append(made)
        return made

    def values(self, depth):
        return [self.value(depth) for _ in range(self.random.choice([0, 1, 2, 3, 5]))]

    def pairs(self, depth):
        return [(self.hashable(), v) for v in self.values(depth)]

    def compound(self):
        return [
            self.values,
            self.values,
            lambda d: tuple(self.values(d)),
            lambda d: dict(self.pairs(d)),
            lambda d: dict(self.pairs(d)),
            lambda d: {self.hashable() for _ in range(3)},
            lambda d: frozenset(self.hashable() for _ in range(3)),
            lambda d: bytearray(self.random.randbytes(4)),
            lambda d: collections.OrderedDict(self.pairs(d)),
            lambda d: collections.defaultdict(list, self.pairs(d)),
            lambda d: collections.deque(self.values(d), maxlen=self.random.choice([None, 9])),
            lambda d: argparse.Namespace(**{f"a{i}": v for i, v in enumerate(self.values(d))}),
            lambda d: types.SimpleNamespace(a=self.value(d)),
            lambda d: Point(self.value(d), self.value(d)),
            self.slots,
            lambda d: self.filled(Names(self.values(d)), d),
            lambda d: self.filled(Table(self.pairs(d)), d),
            lambda d: Named(self.value(d), key=self.value(d)),
            lambda d: Kept(self.string() if self.protocol == 0 else self.value(d)),
            lambda d: fractions.Fraction(self.random.randrange(99), 7),
            lambda d: decimal.Decimal("1.25"),
            lambda d: datetime.datetime(2026, 1, 2, 3, 4, 5, self.random.randrange(9)),
            lambda d: complex(self.real(), 1.0),
            lambda d: range(self.random.randrange(9)),
            lambda d: uuid.UUID(int=self.random.getrandbits(128) >> 8),
            lambda d: pathlib.PurePosixPath("a/b"),
            lambda d: array.array("i", [1, 2, 3]),
            self.cycle,
        ]

    def slots(self, depth):
        made = Slots()
        made.a = self.value(depth)
        if self.random.random() < 0.5:
            made.b = self.value(depth)
        return made

    def filled(self, made, depth):
        if self.random.random() < 0.5:
            made.extra = self.value(depth)
        return made

    def cycle(self, depth):
        made = self.random.choice([[], {}, Point(0, 0)])
        if isinstance(made, list):
            made += [made, (made,), self.value(depth)]
        elif isinstance(made, dict):
            made["self"] = made
        else:
            made.x = made
        return made


class WriterC(pickle.Pickler):
    def persistent_id(self, value):
        return value.id if isinstance(value, Kept) else None


class WriterPython(pickle._Pickler):
    def persistent_id(self, value):
        return value.id if isinstance(value, Kept) else None


def write(writer, value, protocol):
    file = io.BytesIO()
    writer(file, protocol).dump(value)
    return file.getvalue()


def random_pickles(count, seed):
    """Yields a name and the bytes."""
    for i in range(count):
        protocol = i % 6
        value = Maker(f"{seed}/{i}", protocol).value()
        writer = WriterPython if i % 12 >= 6 else WriterC
        try:
            yield f"random {i} (protocol {protocol})", write(writer, value, protocol)
        except (pickle.PicklingError, TypeError):
            # Slots below protocol 2, a persistent id that protocol 0 cannot write: no pickle, nothing to compare.
            continue


def damaged(pickles, seed):
    """The same with a byte changed, doubled or left out."""
    rng = random.Random(seed)
    for name, data in pickles:
        if b"\x92" in data:
            # `NEWOBJ_EX`: Python passes a copy of the keyword arguments, so a reference to them cannot be compared.
            continue
        data = bytearray(data)
        at = rng.randrange(len(data))
        kind = rng.randrange(3)
        if kind == 0:
            data[at] = rng.randrange(256)
        elif kind == 1:
            data.insert(at, data[at])
        else:
            del data[at]
        yield f"damaged {name}", bytes(data)


# --- files ----------------------------------------------------------------------------------------------------------


def shared_data():
    root = pathlib.Path(__file__).resolve().parent.parent
    return pathlib.Path(os.environ.get("LONGSHORE_DATA", root.parent / "shared"))


def golden_pickles():
    """Every pickle of the golden checkpoints, raw or in a zip archive."""
    for path in sorted((shared_data() / "golden").rglob("*")):
        name = str(path.relative_to(shared_data()))
        if path.name == ".metadata":
            yield name, path.read_bytes()
        elif path.suffix == ".pt":
            with zipfile.ZipFile(path) as archive:
                for record in archive.namelist():
                    if record.endswith("/data.pkl"):
                        yield f"{name}/{record}", archive.read(record)


# --- comparison -----------------------------------------------------------------------------------------------------


def by_longshore(example, pickles):
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for i, (_, data) in enumerate(pickles):
            paths.append(os.path.join(folder, str(i)))
            pathlib.Path(paths[-1]).write_bytes(data)
        run = subprocess.run([example], input="\n".join(paths), capture_output=True, text=True, check=True)
    lines = run.stdout.split("\n")[:-1]
    assert len(lines) == len(pickles), (len(lines), len(pickles), run.stderr)
    return [json.loads(line) for line in lines]


def difference(ours, theirs, path=""):
    """The first place where two values differ."""
    if type(ours) is not type(theirs) or not isinstance(ours, list) or len(ours) != len(theirs):
        return f"at {path or '/'}: longshore {text(ours)[:300]}, CPython {text(theirs)[:300]}"
    for i, (a, b) in enumerate(zip(ours, theirs)):
        if a != b:
            return difference(a, b, f"{path}/{i}")


def compare(what, example, pickles, both_must_accept):
    pickles = list(pickles)
    passed, skipped, failed = 0, 0, []
    for (name, data), ours in zip(pickles, by_longshore(example, pickles)):
        theirs = by_cpython(ReaderC if both_must_accept else ReaderPython, data)
        if not both_must_accept and "error" in (ours[0], theirs[0]):
            skipped += 1
        elif ours == theirs and ours[0] != "error":
            passed += 1
        else:
            failed.append(f"{name}\n  {difference(ours, theirs)}\n  {data[:300]!r}")
    for line in failed[:10]:
        print(line)
    one_refuses = f", {skipped} that at least one refuses" if skipped else ""
    print(f"{what}: {passed} passed, {len(failed)} failed{one_refuses}")
    return len(failed)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--example", required=True, help="the built example pickle_json")
    parser.add_argument("--count", type=int, default=3000, help="random values")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    values = list(random_pickles(options.count, options.seed))
    failed = compare("random values", options.example, values, True)
    failed += compare("damaged pickles", options.example, damaged(values, options.seed), False)
    golden = list(golden_pickles())
    if golden:
        failed += compare("golden files", options.example, golden, True)
    else:
        print(f"golden files: skipped, there are none at {shared_data()}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
