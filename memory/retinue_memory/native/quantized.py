"""The embedder's graph as it runs fastest: its weights stay int8, and what was spelled out becomes one step again.

The file keeps each weight matrix as int8 with a scale for each column, and spells out Cast, Mul and MatMul, which onnxruntime
unfolds into float32 when it loads: four times the bytes through the cache for each sentence. It also spells out attention
and GELU in dozens of small steps. Here a product by a weight becomes MatMulIntegerToFloat, and what is multiplied is
quantised too, in the range that it is known to have: ranges taken from each call would make a text's vector depend on the
texts that it is read with (to a cosine of 0.94). A head's steps become MultiHeadAttention, an error function with its
surroundings Gelu; and an embedding is looked up before it is turned into float32, not after. A quarter of the time, and the
vectors stay within a cosine of 0.99 on average. What does not look as expected is left as it is. Only the few parts of
ONNX's format that this takes are described.
"""

from __future__ import annotations

import struct
from collections import Counter
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_FIELDS = {
    # message: {field: (number, type, repeated)}; the numbers are ONNX's (onnx.proto). Other fields pass through untouched.
    "Opset": {"domain": (1, "string", False), "version": (2, "int64", False)},
    "Tensor": {
        "dims": (1, "int64", True),
        "data_type": (2, "int32", False),
        "name": (8, "string", False),
        "raw_data": (9, "bytes", False),
    },
    "Attribute": {"name": (1, "string", False), "i": (3, "int64", False), "type": (20, "int32", False)},
    "Node": {
        "input": (1, "string", True),
        "output": (2, "string", True),
        "name": (3, "string", False),
        "op_type": (4, "string", False),
        "attribute": (5, "Attribute", True),
        "domain": (7, "string", False),
    },
    "Value": {"name": (1, "string", False)},
    "Graph": {"node": (1, "Node", True), "initializer": (5, "Tensor", True), "output": (12, "Value", True)},
    "Model": {"graph": (7, "Graph", False), "opset_import": (8, "Opset", True)},
}
_INT, _FLOAT, _UINT8, _INT32 = 2, 1, 2, 6
"""ONNX's numbers of the attribute type INT, and of the element types float, uint8 and int32."""
_RANGES = (
    # into the heads, out of the heads, into the feed-forward network, inside it
    ((-2.1, 6.3), (-4.1, 2.1), (-2.9, 28.4), (-0.2, 24.3)),
    ((-3.0, 8.1), (-2.4, 3.0), (-6.6, 30.2), (-0.2, 20.3)),
    ((-4.7, 8.0), (-2.7, 2.1), (-12.1, 27.6), (-0.2, 17.5)),
    ((-4.7, 9.7), (-1.8, 2.0), (-13.2, 28.7), (-0.2, 13.6)),
    ((-4.8, 10.5), (-2.1, 2.0), (-10.6, 21.6), (-0.2, 4.9)),
    ((-4.6, 9.8), (-2.5, 2.2), (-8.6, 12.7), (-0.2, 2.6)),
)
"""What the products of each layer are made of, in all-MiniLM-L6-v2: the lowest and the highest number that a sentence brings
about, in the middle of 300; half as much again out of the heads, which short texts need. What is beyond is cut off. Little
varies: what stands out is the same in every sentence.
"""
_OURS = "com.microsoft"
_SHAPING = frozenset({"Mul", "Reshape", "Transpose"})
"""What lies between a linear layer and the product of its heads."""


def in_int8(model: bytes, *, heads: int = 12) -> bytes:
    """The same ONNX model in fewer steps. `heads`: of its attention; its input `attention_mask` is (texts, tokens)."""
    types = _messages()
    parsed = types["Model"].FromString(model)
    rewriting = _Rewriting(types, parsed.graph)
    rewriting.keep_weights_small()
    rewriting.gather_first()
    rewriting.attend(heads)
    rewriting.join_gelu()
    nodes = rewriting.needed()
    read = {name for node in nodes for name in node.input}
    del parsed.graph.node[:]
    parsed.graph.node.extend(nodes)
    for place in reversed(range(len(parsed.graph.initializer))):
        if parsed.graph.initializer[place].name not in read:
            del parsed.graph.initializer[place]
    parsed.opset_import.add(domain=_OURS, version=1)
    rewritten: bytes = parsed.SerializeToString()
    return rewritten


class _Rewriting:
    """The nodes of a graph, each of which stays where it is, so that it still comes after what it reads."""

    def __init__(self, types: dict[str, Any], graph: Any) -> None:
        self.types = types
        self.graph = graph
        self.tensors = {tensor.name: tensor for tensor in graph.initializer}
        self.nodes: list[Any] = [types["Node"].FromString(node.SerializeToString()) for node in graph.node]
        self.outputs = {value.name for value in graph.output}
        self.makers = {output: node for node in self.nodes for output in node.output}
        self.users: dict[str, list[Any]] = {}
        for node in self.nodes:
            for name in node.input:
                self.users.setdefault(name, []).append(node)

    def maker(self, name: str, *operators: str) -> Any | None:
        node = self.makers.get(name)
        return node if node is not None and node.op_type in operators else None

    def user(self, node: Any | None, *operators: str) -> Any | None:
        """The only node that reads what `node` makes, if it is one of these."""
        users = self.users.get(node.output[0], []) if node is not None else []
        return users[0] if len(users) == 1 and users[0].op_type in operators else None

    def dequantised(self, name: str) -> tuple[str, str] | None:
        """The int8 tensor and the scale that a float one is made from."""
        scaling = self.maker(name, "Mul")
        casting = self.maker(scaling.input[0], "Cast") if scaling is not None else None
        if scaling is None or casting is None or not {casting.input[0], scaling.input[1]} <= self.tensors.keys():
            return None
        return casting.input[0], scaling.input[1]

    def keep_weights_small(self) -> None:
        """Products by a dequantised weight, with the bias that is added to them."""
        found = [(node, self.dequantised(node.input[1])) for node in self.nodes if node.op_type == "MatMul"]
        products = [(node, *small) for node, small in found if small is not None]
        ranges = [limits for layer in _RANGES for limits in layer]
        multiplied = list(dict.fromkeys(node.input[0] for node, *_ in products))
        if len(multiplied) != len(ranges):
            return
        quantised = dict(zip(multiplied, map(self.quantised, multiplied, ranges), strict=True))
        for node, weight, scale in products:
            del self.tensors[scale].dims[:-1]  # a row of one scale a column becomes a list of them
            node.op_type, node.domain = "MatMulIntegerToFloat", _OURS
            numbers, step, zero = quantised[node.input[0]]
            node.input[:] = [numbers, weight, step, scale, zero]
            adding = self.user(node, "Add")
            if adding is not None and adding.input[1] in self.tensors:
                node.input.extend(["", adding.input[1]])
                self.becomes(node, adding)

    def quantised(self, name: str, limits: tuple[float, float]) -> tuple[str, str, str]:
        """A tensor as numbers from 0 to 255 between two limits, and the tensors of what 1 is worth and of which is 0."""
        low, high = limits
        step = (high - low) / 255
        worth = self.constant(f"{name}_step", _FLOAT, struct.pack("<f", step))
        zero = self.constant(f"{name}_zero", _UINT8, struct.pack("<B", round(-low / step)))
        made = self.node("QuantizeLinear", [name, worth, zero], f"{name}_quantised")
        self.nodes.insert(self.nodes.index(self.makers[name]) + 1, made)
        return made.output[0], worth, zero

    def constant(self, name: str, kind: int, value: bytes) -> str:
        """A tensor of one number."""
        self.tensors[name] = self.graph.initializer.add(name=name, data_type=kind, raw_data=value)
        return name

    def gather_first(self) -> None:
        """Rows of a dequantised table: the few that are wanted are turned into float32, not all."""
        for node in list(self.nodes):
            small = self.dequantised(node.input[0]) if node.op_type == "Gather" else None
            if small is None:
                continue
            table, scale = small
            at, whole, rows = self.nodes.index(node), node.output[0], node.input[1]
            cast = self.types["Node"].FromString(self.makers[self.makers[node.input[0]].input[0]].SerializeToString())
            cast.input[:], cast.output[:], cast.name = [f"{whole}_q"], [f"{whole}_f"], ""
            scales = self.node("Gather", [scale, rows], f"{whole}_scale")
            product = self.node("Mul", [f"{whole}_f", f"{whole}_scale"], whole)
            node.input[0], node.output[0] = table, f"{whole}_q"
            self.nodes[at : at + 1] = [node, cast, scales, product]

    def attend(self, heads: int) -> None:
        """From the linear layers of query, key and value to the heads' joined answers."""
        mask = next((node for node in self.nodes if node.op_type == "Cast" and node.input[0] == "attention_mask"), None)
        if mask is None:
            return
        for softmax in [node for node in self.nodes if node.op_type == "Softmax"]:
            masked = self.maker(softmax.input[0], "Add")
            product = self.maker(masked.input[0], "MatMul") if masked is not None else None
            checked = next((node for node in self.users[softmax.output[0]] if node.op_type == "Where"), None)
            answer = self.user(checked, "MatMul")
            joined = self.user(self.user(answer, "Transpose"), "Reshape")
            if product is None or answer is None or joined is None:
                continue
            layers = [self.unshaped(name) for name in (*product.input[:2], answer.input[1])]
            answer.input[:] = [*layers, "", "attention_mask_int32"]
            answer.op_type, answer.domain = "MultiHeadAttention", _OURS
            answer.attribute.add(name="num_heads", i=heads, type=_INT)
            self.becomes(answer, joined)
            mask.attribute[0].i, mask.output[0] = _INT32, "attention_mask_int32"  # its bool, nothing reads any more

    def join_gelu(self) -> None:
        """x/2 times 1 + erf(x / sqrt 2)."""
        for erf in [node for node in self.nodes if node.op_type == "Erf"]:
            divided = self.maker(erf.input[0], "Div")
            product = self.user(self.user(self.user(erf, "Add"), "Mul"), "Mul")
            if divided is None or product is None or divided.input[0] not in product.input:
                continue
            product.op_type, product.domain = "Gelu", _OURS
            product.input[:] = [divided.input[0]]

    def unshaped(self, name: str) -> str:
        while (node := self.maker(name, *_SHAPING)) is not None:
            name = node.input[0]
        return name

    def becomes(self, node: Any, last: Any) -> None:
        """`node` now makes what `last` made."""
        node.output[0], last.output[0] = last.output[0], f"{last.output[0]}_unused"
        self.makers[node.output[0]] = node

    def node(self, operator: str, inputs: list[str], output: str) -> Any:
        return self.types["Node"](op_type=operator, input=inputs, output=[output])

    def needed(self) -> list[Any]:
        """The nodes without those that nothing reads any more."""
        nodes = self.nodes
        while True:
            read = Counter(name for node in nodes for name in node.input)
            kept = [node for node in nodes if any(read[name] or name in self.outputs for name in node.output)]
            if len(kept) == len(nodes):
                return kept
            nodes = kept


def _messages() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="retinue/onnx.proto", package="retinue.onnx", syntax="proto3")
    types = descriptor_pb2.FieldDescriptorProto
    for message, fields in _FIELDS.items():
        described = file.message_type.add(name=message)
        for field, (number, kind, repeated) in fields.items():
            label = types.LABEL_REPEATED if repeated else types.LABEL_OPTIONAL
            made = described.field.add(name=field, number=number, label=label)
            if kind in _FIELDS:
                made.type, made.type_name = types.TYPE_MESSAGE, f".retinue.onnx.{kind}"
            else:
                made.type = getattr(types, f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"retinue.onnx.{name}")) for name in _FIELDS
    }
