"""Hostile and damaged files: each a clear error, in little memory, and nothing of it is run."""

import contextlib
import random
import re
import resource
import sys

import pytest
import torch
from mutations import damage, damaged_bytes
from traceable_nets import traceable_net

import eigendamage_ext as ed
from eigendamage_ext import ArtifactError
from eigendamage_ext._files import read_tensors, write_tensors

FORMAT = {"format": "eigendamage-model", "version": 2}


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda file: None)
    ed.save(traceable_net("gated")[0], tmp_path / "net")
    return tmp_path / "net"


def rewritten(path, change, name="new"):
    """A file beside with another description, or other tensors, checksum included."""
    tensors, manifest = read_tensors(path, **FORMAT)
    change(manifest["network"], tensors)
    write_tensors(path.with_name(name), tensors, manifest, **FORMAT)
    return path.with_name(name)


def module(network, path):
    return next(entry for entry in network["modules"] if entry["path"] == path)


def replaced(path, **items):
    """Changes items of the module `path`."""
    return lambda network, tensors: module(network, path).update(items)


def argument(**items):
    """Changes constructor arguments of the only layer."""
    return lambda network, tensors: module(network, "layer")["arguments"].update(items)


def step(*items):
    """Puts one step more before the others of the whole network."""
    return lambda network, tensors: module(network, "")["graph"]["steps"].insert(0, [*items])


def taking(value):
    return step("function", "torch.relu", [value], {})


def deep(levels):
    return [deep(levels - 1)] if levels else 0


def entry(path, kind="Module", **items):
    """Appends a module."""
    return lambda network, tensors: network["modules"].append(
        {"path": path, "class": kind, "training": False, **items}
    )


def record(**items):
    return lambda network, tensors: network.update(items)


def tensors(**items):
    return lambda network, tensors: tensors.update({k.replace("__", "."): v for k, v in items.items()})


HOSTILE = {
    "no modules": (record(modules=[]), "the network must have modules"),
    "another key": (record(code="import os"), "the network must have modules, frozen, tied and strides"),
    "a list": (lambda n, t: n.clear(), "the network must have modules"),
    "too many modules": (record(modules=[{}] * 20_001), "at most 20,000 modules, got 20001"),
    "a module that is none": (record(modules=[7]), "a module must have a path, a class and a mode, got 7"),
    "no whole": (lambda n, t: n["modules"].pop(0), "the first module must be the whole model"),
    "class": (
        replaced("layer", **{"class": "os.system"}),
        "the class of 'layer' must be one that this version",
    ),
    "class of torch": (replaced("layer", **{"class": "RNN"}), "the class of 'layer' must be one that"),
    "class that is no layer": (
        replaced("layer", **{"class": "Sequential"}),
        "'layer' must hold nothing else",
    ),
    "title": (replaced("", title="A(object): __import__('os')"), "the class of '' must be a plain name"),
    "no graph": (replaced("", graph=None), "a graph must have inputs, steps and an output"),
    "function": (step("function", "os.system", ["ls"], {}), "the function of a step must be one that this"),
    "function of torch": (step("function", "torch.load", [], {}), "the function of a step must be one"),
    "builtin": (step("function", "builtins.eval", [], {}), "the function of a step must be one"),
    "method": (step("method", "__reduce__", [{"value": 0}], {}), "the method of a step must be one"),
    "hook": (step("method", "register_hook", [{"value": 0}], {}), "the method of a step must be one"),
    "attribute": (step("attribute", "__class__", [{"value": 0}], {}), "the attribute of a step must be one"),
    "kind": (step("exec", "torch.relu", [], {}), "a step must be one of function, method, attribute"),
    "step": (step("function"), "a step must be one of"),
    "keyword": (step("function", "torch.relu", [], {"__x": 0}), "keywords of a step must be plain names"),
    "itself": (step("module", "", [{"value": 0}], {}), "the module of a step must be one that"),
    "above": (step("module", "..gate", [{"value": 0}], {}), "the module of a step must be one that"),
    "dunder": (step("tensor", "gate.__dict__", [], {}), "the tensor of a step must be one that"),
    "no module": (
        step("module", "nowhere", [{"value": 0}], {}),
        "call modules that are there, got 'nowhere'",
    ),
    "a tensor as module": (step("module", "bare", [], {}), "call modules that are there, got 'bare'"),
    "no tensor": (step("tensor", "forward", [], {}), "use tensors that are there, got 'forward'"),
    "hidden state": (step("tensor", "_parameters", [], {}), "use tensors that are there"),
    "cycle": (taking({"value": 1}), "refer to one before it, got {'value': 1}"),
    "before all": (taking({"value": -1}), "refer to one before it, got {'value': -1}"),
    "truth": (taking({"value": True}), "refer to one before it, got {'value': True}"),
    "far": (taking({"value": 10**30}), "refer to one before it"),
    "text": (taking("__import__('os').system('ls')"), "a value must be a constant this version knows"),
    "device": (taking("cuda"), "a value must be a constant this version knows, or"),
    "large number": (taking(2**63), "a value must be a constant this version knows"),
    "dtype": (taking({"dtype": "quint8"}), "a value must be a constant this version knows"),
    "two in one": (taking({"tuple": [], "slice": []}), "a value must be a constant this version knows"),
    "slice": (taking({"slice": [1, 2]}), "parts of a value must be a list of 3"),
    "deep": (taking(deep(17)), "values must be nested at most 16 deep"),
    "steps": (
        lambda n, t: module(n, "")["graph"].update(steps=[["tensor", "bare", [], {}]] * 20_001),
        "at most 20,000 steps, got 20001",
    ),
    "in training": (
        replaced("", in_training={"inputs": [], "steps": [["module", "no", [], {}]], "output": None}),
        "call modules that are there, got 'no'",
    ),
    "no graph in training": (replaced("", in_training=None), "a graph must have inputs, steps and an output"),
    "input": (
        lambda n, t: module(n, "")["graph"].update(inputs=["x=eval('1')"]),
        "inputs of a graph must be plain names",
    ),
    "inputs": (
        lambda n, t: module(n, "")["graph"].update(inputs=["x", "x"]),
        "inputs of a graph must have different names",
    ),
    "output": (
        lambda n, t: module(n, "")["graph"].update(output={"value": 99}),
        "refer to one before it, got {'value': 99}",
    ),
    "size": (argument(in_features=10**15), "tensor 'layer.weight' must have the shape (6, 1000000000000000)"),
    "size beyond all": (argument(in_features=2**62), "Linear 'layer' must have arguments that make one"),
    "negative": (argument(out_features=-6), "Linear 'layer' must have arguments that make one"),
    "float": (argument(in_features=6.0), "Linear 'layer' must have arguments that make one"),
    "words": (argument(in_features="same"), "Linear 'layer' must have arguments that make one"),
    "argument": (argument(code=1), "Linear 'layer' must have arguments that its class has"),
    "on a device": (argument(device=None), "Linear 'layer' must have arguments that its class has"),
    "layers": (
        entry("r", "LSTM", arguments={"input_size": 1, "hidden_size": 1, "num_layers": 10**9}),
        "LSTM 'r' must have arguments that make one (num_layers must lie in 1…128, got 1000000000)",
    ),
    "encoder": (
        entry("r", "TransformerEncoder", arguments={"d_model": 1, "nhead": 1, "num_layers": [2]}),
        "TransformerEncoder 'r' must have arguments that make one (num_layers must lie in",
    ),
    "activation": (
        entry("r", "TransformerEncoderLayer", arguments={"d_model": 1, "nhead": 1, "activation": "same"}),
        "TransformerEncoderLayer 'r' must have arguments that make one",
    ),
    "another device": (taking({"device": "cuda:0"}), "a value must be a constant this version knows"),
    "weight": (
        entry("e", "Embedding", arguments={"num_embeddings": 10**9, "embedding_dim": 9, "_weight": 0}),
        "Embedding 'e' must have arguments that its class has",
    ),
    "filters": (
        entry("c", "Conv2d", arguments={"in_channels": 1, "out_channels": 1, "kernel_size": 2**40}),
        "Conv2d 'c' must have arguments that make one",
    ),
    "nowhere": (entry("a.b"), "paths of modules must be new names inside modules before them, got 'a.b'"),
    "inside a layer": (entry("layer.b"), "paths of modules must be new names inside modules before them"),
    "again": (entry("gate"), "paths of modules must be new names"),
    "upwards": (entry(".."), "paths of modules must be new names"),
    "file": (entry("/etc/passwd"), "paths of modules must be new names"),
    "private": (entry("__class__"), "paths of modules must be new names"),
    "method's name": (entry("forward"), "paths of modules must be free, got 'forward'"),
    "attribute's name": (entry("_modules"), "paths of modules must be free, got '_modules'"),
    "too deep": (
        lambda n, t: [entry(".".join("a" * i))(n, t) for i in range(1, 40)],
        "paths of modules must be new names",
    ),
    "alias": (
        lambda n, t: n["modules"].append({"path": "b", "same_as": "gate"}),
        "be the same as a layer before",
    ),
    "alias of itself": (
        lambda n, t: n["modules"].append({"path": "b", "same_as": "b"}),
        "be the same as a layer",
    ),
    "parameter": (replaced("gate", parameters=["forward"]), "the file must hold 'gate.forward'"),
    "parameter's place": (
        lambda n, t: (
            replaced("gate", parameters=["scale", "forward"])(n, t),
            tensors(gate__forward=torch.zeros(1))(n, t),
        ),
        "parameters of 'gate' must have names that are free, got 'forward'",
    ),
    "missing": (lambda n, t: t.pop("layer.bias"), "tensors in the file must hold 'layer.bias'"),
    "left over": (
        tensors(more=torch.zeros(2)),
        "tensors in the file must be those of its modules, got ['more']",
    ),
    "shape": (tensors(layer__bias=torch.zeros(7)), "tensor 'layer.bias' must have the shape (6,), got (7,)"),
    "integers": (tensors(bare=torch.zeros(6, 6, dtype=torch.long)), "parameter 'bare' must be frozen"),
    "tied to nothing": (record(tied={"bare": "elsewhere"}), "tensor 'bare' must be tied to one before it"),
    "tied to itself": (record(tied={"bare": "bare"}), "tensor 'bare' must be tied to one before it"),
    "tied to a list": (
        record(tied={"layer.weight": []}),
        "tensor 'layer.weight' must be tied to one before it",
    ),
    "tied to another": (record(tied={"layer.weight": "gate.offset"}), "must be tied to one before it"),
    "strides": (record(strides={"bare": [0, 35]}), "strides of 'bare' must order its elements without gaps"),
    "negative strides": (record(strides={"bare": [-6, 1]}), "strides of 'bare' must order its elements"),
    "far strides": (record(strides={"bare": [2**40, 1]}), "strides of 'bare' must order its elements"),
    "no strides": (record(strides={"bare": 1}), "strides of 'bare' must order its elements"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_descriptions(path, name):
    change, message = HOSTILE[name]
    with pytest.raises(ArtifactError, match="^load: .*" + re.escape(message)):
        ed.load(rewritten(path, change))


class Watch:
    """Notes what the interpreter is asked to run, import or open; an audit hook can never be removed."""

    def __init__(self):
        self.on, self.seen = False, []
        sys.addaudithook(self)

    def __call__(self, event, args):
        if self.on and event in ("exec", "compile", "import", "open", "os.system", "subprocess.Popen"):
            self.seen.append((event, args[0]))


def test_nothing_is_run_and_little_memory_taken_whatever_the_file_says(path):
    watch = Watch()
    ed.load(path)
    files = [rewritten(path, change, name) for name, (change, _) in HOSTILE.items()]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for file in [path, *files]:
        watch.on = True
        with contextlib.suppress(ArtifactError):
            ed.load(file)
        watch.on = False
    assert watch.seen == []
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def test_a_thousand_damaged_files(path):
    rng = random.Random(0)
    for trial, damaged in enumerate(damaged_bytes(rng, path.read_bytes(), 500)):
        file = path.with_name(f"bytes {trial}")
        file.write_bytes(damaged)
        with pytest.raises(ArtifactError, match=r"^load: "):
            ed.load(file)
    loaded = 0
    for trial in range(500):
        file = rewritten(path, lambda network, tensors: damage(rng, network), f"manifest {trial}")
        with contextlib.suppress(ArtifactError):
            ed.load(file)
            loaded += 1
    assert 0 < loaded < 250  # what is another network, and what is none
