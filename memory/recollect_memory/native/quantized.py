"""The embedder's matrix products in int8, as its weights are stored.

The file keeps each weight matrix as int8 with a scale for each column, and spells out Cast, Mul and MatMul, which onnxruntime
unfolds into float32 when it loads: four times the bytes through the cache for each sentence. Here each of these three
becomes one DynamicQuantizeMatMul, which quantises the activations too and multiplies in int8: a third of the time, and the
vectors stay within a cosine of 0.99. Only the few parts of ONNX's format that this takes are described.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_FIELDS = {
    # message: {field: (number, type, repeated)}; the numbers are ONNX's (onnx.proto). Other fields pass through untouched.
    "Opset": {"domain": (1, "string", False), "version": (2, "int64", False)},
    "Tensor": {"dims": (1, "int64", True), "name": (8, "string", False)},
    "Node": {
        "input": (1, "string", True),
        "output": (2, "string", True),
        "name": (3, "string", False),
        "op_type": (4, "string", False),
        "attribute": (5, "bytes", True),
        "domain": (7, "string", False),
    },
    "Graph": {"node": (1, "Node", True), "initializer": (5, "Tensor", True)},
    "Model": {"graph": (7, "Graph", False), "opset_import": (8, "Opset", True)},
}


def in_int8(model: bytes) -> bytes:
    """The same ONNX model with every product by a dequantised weight made one of int8."""
    parsed = _message("Model").FromString(model)
    graph = parsed.graph
    makers = {output: node for node in graph.node for output in node.output}
    uses = Counter(name for node in graph.node for name in node.input)
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    folded: set[str] = set()
    for node in graph.node:
        scaling = makers.get(node.input[1]) if node.op_type == "MatMul" else None
        casting = makers.get(scaling.input[0]) if scaling is not None and scaling.op_type == "Mul" else None
        if scaling is None or casting is None or casting.op_type != "Cast" or casting.input[0] not in tensors:
            continue
        steps = {scaling.output[0], casting.output[0]}
        if any(uses[step] > 1 for step in steps):
            continue
        folded |= steps
        scale = tensors[scaling.input[1]]
        del scale.dims[:-1]  # a row of one scale a column becomes a list of them
        node.op_type, node.domain = "DynamicQuantizeMatMul", "com.microsoft"
        node.input[1:] = [casting.input[0], scale.name]
    for place in reversed(range(len(graph.node))):
        if graph.node[place].output[0] in folded:
            del graph.node[place]
    parsed.opset_import.add(domain="com.microsoft", version=1)
    rewritten: bytes = parsed.SerializeToString()
    return rewritten


def _message(name: str) -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="recollect/onnx.proto", package="recollect.onnx", syntax="proto3")
    types = descriptor_pb2.FieldDescriptorProto
    for message, fields in _FIELDS.items():
        described = file.message_type.add(name=message)
        for field, (number, kind, repeated) in fields.items():
            label = types.LABEL_REPEATED if repeated else types.LABEL_OPTIONAL
            made = described.field.add(name=field, number=number, label=label)
            if kind in _FIELDS:
                made.type, made.type_name = types.TYPE_MESSAGE, f".recollect.onnx.{kind}"
            else:
                made.type = getattr(types, f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"recollect.onnx.{name}"))
