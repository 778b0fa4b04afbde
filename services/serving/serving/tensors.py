"""Tensors of the Open Inference Protocol V2, and the rows and predictions that they stand for.

A tensor's values are in the JSON, nested or flat in row-major order, or follow it as bytes (the binary data extension).
https://github.com/kserve/open-inference-protocol, https://github.com/triton-inference-server/server,
docs/protocol/extension_binary_data.md.
"""

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from serving.batches import Predictions
from serving.model import Model
from serving.problems import Problem, RequestError
from serving.schema import Schema

DATATYPES = {
    "BOOL": "?",
    "INT8": "<i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "UINT8": "<u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
}
"""numpy's types by the protocol's names; BYTES, which has texts, is none of numpy's."""
DATATYPE_OF_COLUMN = {"bool": "BOOL", "int32": "INT32", "int64": "INT64", "float32": "FP32", "float64": "FP64"}
DATATYPE_OF_VALUE = {bool: "BOOL", int: "INT64", float: "FP64", str: "BYTES"}
PREDICT, PREDICT_PROBA = "predict", "predict_proba"
"""The outputs, by the names that MLServer gives them."""
LENGTH = struct.Struct("<I")


@dataclass(frozen=True)
class Tensor:
    """A named tensor."""

    name: str
    datatype: str
    shape: Sequence[int]
    values: list[Any]
    """Flat, in row-major order."""

    def as_json(self, binary: bool) -> tuple[dict[str, Any], bytes]:
        """Return it as JSON, and its values as bytes where they are to follow the JSON."""
        described: dict[str, Any] = {"name": self.name, "datatype": self.datatype, "shape": self.shape}
        if not binary:
            return described | {"data": self.values}, b""
        data = _pack(self)
        return described | {"parameters": {"binary_data_size": len(data)}}, data


def _pack(tensor: Tensor) -> bytes:
    if tensor.datatype != "BYTES":
        return np.array(tensor.values, DATATYPES[tensor.datatype]).tobytes()
    texts = [str(value).encode() for value in tensor.values]
    return b"".join(LENGTH.pack(len(text)) + text for text in texts)


@dataclass(frozen=True)
class InferRequest:
    """A request for predictions."""

    identifier: str | None
    inputs: Sequence[Tensor]
    outputs: Mapping[str, bool]
    """The wanted outputs, and whether each is to be bytes."""


def parse_request(body: bytes, json_length: int | None, classifies: bool) -> InferRequest:
    """Return the request in a body.

    Args:
        body: JSON, followed by the tensors that are bytes.
        json_length: The size of the JSON where it does not take the whole body.
        classifies: Whether the model has probabilities to ask for.

    Raises:
        RequestError: It is not as the protocol says.
    """
    length = len(body) if json_length is None else json_length
    if length > len(body):
        raise RequestError("malformed", "Inference-Header-Content-Length is larger than the body.")
    try:
        document = orjson.loads(body[:length])
    except orjson.JSONDecodeError as error:
        raise RequestError("malformed", f"The body is not JSON: {error}.") from error
    given = document.get("inputs") if isinstance(document, dict) else None
    if not isinstance(given, list) or not given:
        raise RequestError("malformed", "Send an object whose inputs are tensors.")
    inputs, at = [], length
    for number, each in enumerate(given):
        tensor, at = _parse_tensor(each, number, body, at)
        inputs.append(tensor)
    if at != len(body):
        raise RequestError("malformed", "The body is longer than its tensors.")
    identifier = document.get("id")
    return InferRequest(str(identifier) if identifier is not None else None, inputs, _outputs(document, classifies))


def _outputs(document: Mapping[str, Any], classifies: bool) -> dict[str, bool]:
    wanted = document.get("outputs") or [{"name": PREDICT}]
    binary = _parameters(document).get("binary_data_output") is True
    if not isinstance(wanted, list) or not all(isinstance(each, dict) for each in wanted):
        raise RequestError("malformed", "outputs is to be an array of objects.")
    outputs = {str(each.get("name")): _parameters(each).get("binary_data", binary) is True for each in wanted}
    known = (PREDICT, PREDICT_PROBA) if classifies else (PREDICT,)
    if unknown := outputs.keys() - {*known}:
        raise RequestError("invalid-rows", f"There is no output {min(unknown)!r}: ask for {' or '.join(known)}.")
    return outputs


def _parameters(document: Mapping[str, Any]) -> Mapping[str, Any]:
    parameters = document.get("parameters")
    return parameters if isinstance(parameters, dict) else {}


def _parse_tensor(given: Any, number: int, body: bytes, at: int) -> tuple[Tensor, int]:
    """Return a tensor, and where the bytes of the next begin."""
    if not isinstance(given, dict) or not isinstance(given.get("name"), str):
        raise RequestError("malformed", f"Input {number} has no name.")
    name, datatype, shape = given["name"], given.get("datatype"), given.get("shape")
    if datatype not in DATATYPES and datatype != "BYTES":
        raise _unfit(name, f"has the datatype {datatype!r}; known are {', '.join(DATATYPES)} and BYTES")
    if not isinstance(shape, list) or not shape or not all(type(size) is int and size >= 0 for size in shape):
        raise _unfit(name, "has no shape of integers")
    size = _parameters(given).get("binary_data_size")
    if size is None:
        values = _flatten(given.get("data"), name)
    elif type(size) is int and 0 <= size <= len(body) - at:
        values, at = _unpack(body[at : at + size], str(datatype), name), at + size
    else:
        raise _unfit(name, "has a binary_data_size that goes beyond the body")
    if len(values) != math.prod(shape):
        raise _unfit(name, f"has {len(values)} values and the shape {shape}")
    return Tensor(name, str(datatype), shape, values), at


def _flatten(data: Any, name: str) -> list[Any]:
    if not isinstance(data, list):
        raise _unfit(name, "has no array of data")
    values: list[Any] = data
    while values and isinstance(values[0], list):
        if not all(isinstance(part, list) for part in values):
            raise _unfit(name, "has data of different depths")
        values = [value for part in values for value in part]
    return values


def _unpack(data: bytes, datatype: str, name: str) -> list[Any]:
    try:
        if datatype != "BYTES":
            numbers: list[Any] = np.frombuffer(data, DATATYPES[datatype]).tolist()
            return numbers
        texts, at = [], 0
        while at < len(data):
            (size,) = LENGTH.unpack_from(data, at)
            at += LENGTH.size
            if at + size > len(data):
                raise ValueError("a text goes beyond the tensor")
            texts.append(data[at : at + size].decode())
            at += size
        return texts
    except (ValueError, struct.error) as error:
        raise _unfit(name, f"cannot be read: {error}") from error


def _unfit(name: str, problem: str) -> RequestError:
    return RequestError("invalid-rows", f"Input {name!r} {problem}.", [Problem(problem, name)])


def columns_of(tensors: Sequence[Tensor], schema: Schema) -> tuple[dict[str, list[Any]], int]:
    """Return the columns of a data frame, and its number of rows.

    A tensor is a column of its name (as MLServer's pandas codec sends frames), or the only one is a matrix, rows by
    columns in the order of the schema, where all columns are numbers. NaN is a missing value.

    Raises:
        RequestError: The tensors are neither.
    """
    first = tensors[0]
    if len(tensors) == 1 and len(first.shape) == 2 and first.name not in schema.names:
        rows, width = first.shape
        if not schema.is_numeric or first.datatype == "BYTES":
            raise _unfit(first.name, "is a matrix, and not all columns are numbers: send a tensor for each column")
        if width != len(schema.names):
            raise _unfit(first.name, f"has {width} columns; the model has {len(schema.names)}")
        columns = {name: first.values[number::width] for number, name in enumerate(schema.names)}
        integers = {column.name for column in schema.columns if column.kind.python is int}
        return {name: [_cell(v, name in integers) for v in values] for name, values in columns.items()}, rows
    sizes = {tensor.shape[0] for tensor in tensors}
    if len(sizes) > 1 or any(math.prod(tensor.shape[1:]) != 1 for tensor in tensors):
        raise RequestError("invalid-rows", "A tensor of a column has the shape [rows] or [rows, 1], the same for all.")
    if len({tensor.name for tensor in tensors}) < len(tensors):
        raise RequestError("invalid-rows", "Two tensors have the same name.")
    return {tensor.name: [_cell(v, False) for v in tensor.values] for tensor in tensors}, sizes.pop()


def _cell(value: Any, is_integer: bool) -> Any:
    if isinstance(value, float):
        if math.isnan(value):
            return None
        if is_integer and value.is_integer():  # a matrix has one type for all of its columns
            return int(value)
    return value


def output_tensors(model: Model, predictions: Predictions, names: Sequence[str]) -> list[Tensor]:
    """Return the wanted outputs."""
    rows = len(predictions.values)
    tensors = []
    for name in names:
        if name == PREDICT_PROBA:
            probabilities = predictions.probabilities or []
            width = len(model.labels or [])
            tensors.append(Tensor(name, "FP64", [rows, width], [value for row in probabilities for value in row]))
        else:
            datatype = DATATYPE_OF_VALUE[type(predictions.values[0])]
            tensors.append(Tensor(name, datatype, [rows, 1], list(predictions.values)))
    return tensors


def describe_tensors(model: Model) -> dict[str, list[dict[str, Any]]]:
    """Return the metadata of a model's inputs and outputs; -1 stands for any number of rows."""
    inputs: list[dict[str, Any]] = [
        {"name": column.name, "datatype": DATATYPE_OF_COLUMN.get(column.kind.numpy, "BYTES"), "shape": [-1]}
        for column in model.schema.columns
    ]
    value_type = DATATYPE_OF_VALUE[type(model.classes[0])] if model.classes else "FP64"
    outputs: list[dict[str, Any]] = [{"name": PREDICT, "datatype": value_type, "shape": [-1, 1]}]
    if model.has_probabilities:
        outputs.append({"name": PREDICT_PROBA, "datatype": "FP64", "shape": [-1, len(model.classes or [])]})
    return {"inputs": inputs, "outputs": outputs}
