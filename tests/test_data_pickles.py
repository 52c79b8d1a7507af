"""The reader of pickles: what it reads, and that nothing else is ever run."""

import contextlib
import os
import pickle
import pickletools
import struct

import numpy as np
import pytest
import python2_pickle

from eigendamage_ext.data import files, pickles
from eigendamage_ext.data.pickles import read_pickle

RANDOM = np.random.default_rng(0)
ARRAYS = {
    "bytes": RANDOM.integers(0, 256, (5, 12), dtype=np.uint8),
    "big endian": RANDOM.integers(-9, 9, (2, 3)).astype(">i4"),
    "fortran": np.asfortranarray(RANDOM.standard_normal((3, 4))),
    "line": np.arange(300, dtype=np.int64),
}
DATA = {"batch_label": "training batch 1 of 5", "labels": [3, 1, 255, 256, 65_536, -1], "empty": [], **ARRAYS}


def read(tmp_path, content):
    path = tmp_path / "data_batch_1"
    path.write_bytes(content)
    return read_pickle("load", path)


def assert_equal(found, data, *, text):
    assert list(found) == list(data)
    for key, value in data.items():
        if isinstance(value, np.ndarray):
            assert found[key].dtype.newbyteorder("=") == value.dtype.newbyteorder("=")
            assert np.array_equal(found[key], value)
        else:
            assert found[key] == (text(value) if isinstance(value, str) else value)


def test_pickles_of_python_2(tmp_path):
    content = python2_pickle.dumps(DATA)
    loaded = pickle.loads(content, encoding="bytes")
    assert_equal({k.decode(): v for k, v in loaded.items()}, DATA, text=str.encode)
    assert_equal(read(tmp_path, content), DATA, text=str.encode)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickles_of_python_3(tmp_path, protocol):
    assert_equal(read(tmp_path, pickle.dumps(DATA, protocol)), DATA, text=str)
    as_bytes = {key.encode(): value for key, value in DATA.items()} | {b"name": b"\x00\xff" * 200}
    found = read(tmp_path, pickle.dumps(as_bytes, protocol))
    assert found.pop("name") == b"\x00\xff" * 200
    assert_equal(found, DATA, text=str)
    optimized = pickletools.optimize(pickle.dumps(DATA, protocol))
    assert_equal(read(tmp_path, optimized), DATA, text=str)


def test_arrays_of_numpy_1_and_2(tmp_path):
    content = pickle.dumps({"data": ARRAYS["bytes"]}, 2)
    other = {b"numpy._core": b"numpy.core", b"numpy.core": b"numpy._core"}
    (module,) = [name for name in other if name + b".multiarray\n" in content]
    for name in other:
        found = read(tmp_path, content.replace(module + b".multiarray\n", name + b".multiarray\n"))
        assert np.array_equal(found["data"], ARRAYS["bytes"])


class Reduced:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


class WithState:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Reduced, ("",), {"path": Reduced(self.path)}


def text(value):
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def name(module, attribute):
    return f"c{module}\n{attribute}\n".encode()


def call(function, *arguments):
    return function + b"(" + b"".join(arguments) + b"tR"


def hostile(path):
    """Programs that make a folder if Python's own machine runs them."""
    python, folder = text(f"__import__('os').mkdir({path!r})"), text(path)
    make = call(name("os", "mkdir"), folder)
    module = call(name("importlib", "import_module"), text("os"))
    programs = {
        "a function": make,
        "a function of C": call(name("posix", "mkdir"), folder),
        "a command": call(name("os", "system"), text(f"mkdir '{path}'")),
        "eval": call(name("builtins", "eval"), python),
        "exec": call(name("builtins", "exec"), python),
        "eval of Python 2": call(name("__builtin__", "eval"), python),
        "getattr": call(call(name("builtins", "getattr"), module, text("mkdir")), folder),
        "pickle": call(
            name("pickle", "loads"),
            call(name("_codecs", "encode"), text("cos\nmkdir\n(V" + path + "\ntR."), text("latin1")),
        ),
        "numpy, which runs text": call(name("numpy.testing._private.utils", "runstring"), python, b"}"),
        "STACK_GLOBAL": call(text("os") + text("mkdir") + b"\x93", folder),
        "INST": b"(" + folder + b"ios\nmkdir\n",
        "OBJ": b"(" + name("os", "mkdir") + folder + b"o",
        "in a dictionary": b"}" + text("data") + make + b"s",
        "in a list": b"](" + make + b"e",
        "as a state": b"}" + make + b"b",
        "for an element type": call(name("numpy", "dtype"), make),
        "for a buffer": call(name("numpy._core.numeric", "_frombuffer"), make),
        "thrown away": make + b"0}",
    }
    found = {key: b"\x80\x02" + program + b"." for key, program in programs.items()}
    found["protocol 0"] = f"cos\nmkdir\n(S{path!r}\ntR.".encode()
    for protocol in range(6):
        found |= {
            f"__reduce__, protocol {protocol}": pickle.dumps({"data": Reduced(path)}, protocol),
            f"a state, protocol {protocol}": pickle.dumps({"data": WithState(path)}, protocol),
            f"in an array, protocol {protocol}": pickle.dumps({"data": np.array([Reduced(path)])}, protocol),
        }
    return found


@pytest.mark.parametrize("case", hostile(""))
def test_nothing_is_run(tmp_path, case):
    made = tmp_path / "made"
    program = hostile(str(made))[case]
    with contextlib.suppress(Exception):
        pickle.loads(program)
    assert made.exists()
    made.rmdir()
    with pytest.raises(ValueError, match=r"load: .*data_batch_1 must be a pickled dictionary .*, got "):
        read(tmp_path, program)
    assert not made.exists()


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (name("os", "mkdir"), r"the name os\.mkdir"),
        (name("numpy", "memmap"), r"the name numpy\.memmap"),
        (name("numpy.core.multiarray", "fromfile"), "the name numpy.core.multiarray.fromfile"),
        (text("numpy") + text("load") + b"\x93", r"the name numpy\.load"),
        (name("x" * 60, "y" * 30), "the name x{40}.y{30} "),
        (name("x" * 200, "y"), "a name without end"),
        (b"c\xff\nmkdir\n", "can't decode"),
        (b"K\x01}b", "dict where tuple belongs"),
        (b"](K\x01tb", "a state that list cannot have"),
        (b"}(K\x01tb", "a state that dict cannot have"),
        (b"K\x01K\x02R", "int where tuple belongs"),
        (b"]K\x02\x85R", "list where Name belongs"),
        (b"Q", "the instruction b'Q'"),
        (b"P1\n", "the instruction b'P'"),
        (b"\x82\x01", r"the instruction b'\\x82'"),
        (name("numpy", "ndarray") + b")\x81", r"the instruction b'\\x81'"),
        (name("numpy", "ndarray") + b"K\x01\x85R", "a call of ndarray"),
        (
            name("numpy.core.multiarray", "_reconstruct")
            + b"("
            + name("numpy", "dtype")
            + b"K\x00\x85U\x01btR",
            "a call of",
        ),
        (
            name("numpy.core.multiarray", "_reconstruct")
            + b"("
            + name("numpy", "ndarray")
            + b"K\x07\x85U\x01btR",
            "a call",
        ),
        (call(name("numpy", "dtype"), text("O8"), b"K\x00", b"K\x01"), "a call of dtype"),
        (call(name("numpy", "dtype"), text("V4"), b"K\x00", b"K\x01"), "a call of dtype"),
        (call(name("numpy", "dtype"), text("u1,O"), b"K\x00", b"K\x01"), "a call of dtype"),
        (call(name("numpy", "dtype"), b"]", b"K\x00", b"K\x01"), "list where str belongs"),
        (call(name("_codecs", "encode"), text("a"), text("rot13")), "a call of encode"),
        (call(name("_codecs", "encode"), text("\u20ac"), text("latin1")), "codec can't encode"),
        (
            call(
                name("numpy.core.numeric", "_frombuffer"),
                b"U\x01a" + call(name("numpy", "dtype"), text("u1"), b"K\x00", b"K\x01"),
                b"K\x01\x85" + text("A"),
            ),
            "a call of _frombuffer",
        ),
        (b"}" + text("k" * 101) + b"K\x01s", "a name of more than 100 characters"),
        (b"}U\x65" + b"k" * 101 + b"K\x01s", "a name of more than 100 characters"),
        (b"]]K\x01s", "list where dict belongs"),
        (b"}K\x01a", "dict where list belongs"),
        (b"}K\x01K\x02s", "int where str belongs"),
        (b"}(K\x01u", "a key without a value"),
        (b"X\x01\x00\x00\x00\xff", "can't decode"),
        (b"e", "without its operand"),
        (b"0", "the instruction"),
        (b"a", "without its operand"),
        (b"R", "without its operand"),
        (b"h\x07", "without its operand"),
        (b"\x86", "without its operand"),
        (b"\x80\x06", "pickle protocol 6"),
        (b"]", "list where dict belongs"),
        (b"\x8e" + b"\xff" * 8, "got its end"),
        (b"\x8d" + b"\xff" * 7 + b"\x7f", "got its end"),
        (b"T\xff\xff\xff\xff", "got its end"),
        (b"\x8b\xff\xff\xff\x7f", "the instruction"),
        (b"I" + b"9" * 10_000 + b"\n", "the instruction b'I'"),
    ],
)
def test_what_it_refuses(tmp_path, program, message):
    with pytest.raises(ValueError, match=r"load: .*data_batch_1 must be .*" + message):
        read(tmp_path, b"\x80\x02" + program + b".")


def array(shape, content, kind="u1", version=b"K\x01", order=b"\x89"):
    dimensions = b"(" + b"".join(b"\x8a\x08" + struct.pack("<q", n) for n in shape) + b"t"
    return b"".join(
        [
            b"}" + text("data"),
            call(
                name("numpy.core.multiarray", "_reconstruct"),
                name("numpy", "ndarray"),
                b"K\x00\x85",
                b"U\x01b",
            ),
            b"(" + version + dimensions,
            call(name("numpy", "dtype"), text(kind), b"K\x00", b"K\x01"),
            order + content + b"tbs.",
        ]
    )


def test_arrays_are_as_large_as_their_bytes(tmp_path):
    six = b"U\x06abcdef"
    assert read(tmp_path, array([2, 3], six))["data"].tolist() == [[97, 98, 99], [100, 101, 102]]
    assert read(tmp_path, array([2, 3], six, order=b"K\x01"))["data"].tolist() == [
        [97, 99, 101],
        [98, 100, 102],
    ]
    for program, message in [
        (array([2, 4], six), r"6 bytes for an array \(2, 4\) of uint8"),
        (array([2, 3], six, kind="u2"), "6 bytes for an array"),
        (array([0], b"U\x00"), "no possible shape"),
        (array([-2, -3], six), "no possible shape"),
        (array([2**62, 2**62], six), "no possible shape"),
        (array([6, 1, 1, 1, 1], six), "no possible shape"),
        (array([6], b"](K\x01K\x02e"), "a state that Array cannot have"),
        (array([6], six, version=b"K\x02"), "a state that Array cannot have"),
        (array([6], six).replace(b"\x8a\x08" + struct.pack("<q", 6), b"]"), "no possible shape"),
        (array([6], six)[:-3].rpartition(b"(K\x01")[0] + b"s.", "an array without content"),
    ]:
        with pytest.raises(ValueError, match=message):
            read(tmp_path, program)


def test_what_is_in_it_cannot_make_it_large_or_slow(tmp_path, monkeypatch):
    doubled = b")" + b"q\x00h\x00\x86" * 100  # a pair of a pair of … the same: 2¹⁰⁰ leaves
    deep = b"]" * 300_000 + b"a" * 299_999
    itself = b"]q\x00h\x00a"
    for program, message in [
        (b"}" + text("data") + doubled + b"s", "tuple among the data"),
        (b"}" + doubled + b"K\x01s", "tuple where str belongs"),
        (b"}" + text("data") + b")" + b"\x85" * 300_000 + b"s", "tuple among the data"),
        (b"}" + text("data") + deep + b"s", "list among the data"),
        (b"}" + text("data") + itself + b"s", "list among the data"),
        (b"}q\x00" + text("data") + b"h\x00s", "dict among the data"),
        (b"}" + text("data") + b"\x88s", "bool among the data"),
        (b"}" + text("data") + name("numpy", "ndarray") + b"s", "Name among the data"),
        (b"}" + text("data") + b"r\xff\xff\xff\xff" + b"0s", "the instruction b'0'"),
    ]:
        with pytest.raises(ValueError, match=message):
            read(tmp_path, program + b".")
    monkeypatch.setattr(pickles, "MAX_INSTRUCTIONS", 1000)
    with pytest.raises(ValueError, match="more than 1000 instructions"):
        read(tmp_path, b"]" * 2000)
    monkeypatch.setattr(pickles, "MAX_BYTES", 1000)
    again = name("_codecs", "encode") + b"q\x00" + text("a" * 300) + text("latin1") + b"\x86q\x01R"
    with pytest.raises(ValueError, match="more than 1000 bytes"):
        read(tmp_path, again + b"h\x00h\x01R" * 3)
    monkeypatch.setattr(files, "MAX_BYTES", 100)
    with pytest.raises(ValueError, match=r"data_batch_1 must have at most 100 bytes, got 101"):
        read(tmp_path, b"]" * 101)


def test_every_truncated_pickle_is_refused(tmp_path):
    for content in (python2_pickle.dumps(DATA), pickle.dumps(DATA, 5)):
        for end in range(0, len(content), 7):
            with pytest.raises(ValueError, match="data_batch_1 must be"):
                read(tmp_path, content[:end])


def test_flipped_bits_are_refused_or_change_data_alone(tmp_path):
    random = np.random.default_rng(1)
    refused = []
    for content in (python2_pickle.dumps(DATA), pickle.dumps(DATA, 4)):
        for _ in range(400):
            changed = bytearray(content)
            for position in random.integers(0, min(len(content), 400), random.integers(1, 4)):
                changed[position] ^= 1 << random.integers(0, 8)
            try:
                found = read(tmp_path, bytes(changed))
            except ValueError as error:
                refused.append(str(error))
            else:
                assert {type(v) for v in found.values()} <= {str, bytes, list, int, np.ndarray}
    assert all("data_batch_1 must be" in message for message in refused)
    assert 200 < len(refused) < 790
