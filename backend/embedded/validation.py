"""Is a prompt fit to run? Answers in ComfyUI's own error shapes (``execution.py``, ``validate_prompt``).

Pure but for the directory listings behind choices. Converts plain values to their declared types in place,
as ComfyUI does. One bad output does not stop the good ones: the answer names which may run.
"""

import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from backend.embedded import graph
from backend.embedded.files import Files
from backend.embedded.node import ANY, Inputs, NodeClass, Prompt, Spec, choices

Error = dict[str, Any]
LONG_LIST = 20
"""Choices beyond this many are not sent back whole."""


@dataclass
class Verdict:
    """``error`` is ``None`` when at least one output may run; ``outputs`` are those that may, in prompt order."""

    error: Error | None
    outputs: list[str] = field(default_factory=list)
    node_errors: dict[str, Any] = field(default_factory=dict)


def error(kind: str, message: str, details: str = "", **extra_info: Any) -> Error:
    """ComfyUI's shape of one error."""
    return {"type": kind, "message": message, "details": details, "extra_info": extra_info}


def validate(
    prompt: Any, registry: Mapping[str, NodeClass], files: Files, targets: Sequence[Any] | None = None
) -> Verdict:
    """Judge ``prompt``; ``targets`` limits the outputs to these node ids (``partial_execution_targets``)."""
    if not isinstance(prompt, dict):
        return Verdict(error("invalid_prompt", "The prompt must be an object of nodes.", type(prompt).__name__))
    outputs: list[str] = []
    for node_id, node in prompt.items():
        problem = _bad_node(node_id, node, registry)
        if problem is not None:
            return Verdict(problem)
        if registry[node["class_type"]].output_node and (targets is None or node_id in targets):
            outputs.append(node_id)
    if not outputs:
        return Verdict(error("prompt_no_outputs", "Prompt has no outputs"))
    return _Check(prompt, registry, files).outputs(outputs)


def _bad_node(node_id: str, node: Any, registry: Mapping[str, NodeClass]) -> Error | None:
    if not isinstance(node, dict) or "class_type" not in node:
        return error(
            "invalid_prompt",
            "Cannot execute because a node is missing the class_type property.",
            f"Node ID '#{node_id}'",
        )
    name = node["class_type"]
    if not isinstance(name, str) or name not in registry:
        return error(
            "invalid_prompt", f"Cannot execute because node {name} does not exist.", f"Node ID '#{node_id}'"
        )
    return None


class _Check:
    """One validation: each node is judged once, sources before those that use them."""

    def __init__(self, prompt: Prompt, registry: Mapping[str, NodeClass], files: Files) -> None:
        self.prompt = prompt
        self.registry = registry
        self.files = files
        self.specs: dict[str, Inputs] = {}
        self.verdicts: dict[str, tuple[bool, list[Error]]] = {}

    def outputs(self, outputs: list[str]) -> Verdict:
        good: list[str] = []
        failed: list[Error] = []
        node_errors: dict[str, Any] = {}
        for output in outputs:
            needed = self.judge(output)
            if self.verdicts[output][0]:
                good.append(output)
                continue
            failed += self.verdicts[output][1]
            for node_id in needed:
                valid, errors = self.verdicts[node_id]
                if not valid and errors:
                    entry = node_errors.setdefault(
                        node_id,
                        {
                            "errors": errors,
                            "dependent_outputs": [],
                            "class_type": self.prompt[node_id]["class_type"],
                        },
                    )
                    entry["dependent_outputs"].append(output)
        if good:
            return Verdict(None, good, node_errors)
        lines = "\n".join(f"{each['message']}: {each['details']}" for each in failed)
        problem = error("prompt_outputs_failed_validation", "Prompt outputs failed validation", lines)
        return Verdict(problem, [], node_errors)

    def judge(self, output: str) -> list[str]:
        """Judge ``output`` and all it needs; returns their ids."""
        try:
            needed = graph.order(self.prompt, [output], self.spec)
        except graph.CycleError as cycle:
            self.verdicts[cycle.node_id] = self.verdicts[output] = (False, [_exception(cycle)])
            return [output] if output == cycle.node_id else [output, cycle.node_id]
        for node_id in needed:
            if node_id not in self.verdicts:
                self.verdicts[node_id] = self.node(node_id)
        return needed

    def spec(self, node_id: str) -> Inputs:
        name = self.prompt[node_id]["class_type"]
        if name not in self.specs:
            self.specs[name] = self.registry[name].inputs(self.files)
        return self.specs[name]

    def node(self, node_id: str) -> tuple[bool, list[Error]]:
        node = self.registry[self.prompt[node_id]["class_type"]]
        inputs = self.prompt[node_id].get("inputs")
        if not isinstance(inputs, dict):
            return False, [_exception(KeyError("inputs"))]
        errors: list[Error] = []
        valid = True
        for name, spec in self.spec(node_id).items():
            if name not in inputs:
                errors.append(
                    error("required_input_missing", "Required input is missing", name, input_name=name)
                )
            elif isinstance(inputs[name], list):
                problem, source_valid = self.link(name, spec, inputs[name])
                valid = valid and source_valid
                errors += [problem] if problem else []
            else:
                problem = _value(name, spec, inputs, judged=name in node.checked)
                errors += [problem] if problem else []
        if node.check is not None and not errors:
            reason = node.check(self.files, inputs)
            if reason is not None:
                name = min(node.checked)
                errors.append(
                    error(
                        "custom_validation_failed",
                        "Custom validation failed for node",
                        f"{name} - {reason}",
                        input_name=name,
                    )
                )
        return valid and not errors, errors

    def link(self, name: str, spec: Spec, value: list[Any]) -> tuple[Error | None, bool]:
        """The link's own error if it has one, and whether what it leads to is valid."""
        if len(value) != 2:
            return error(
                "bad_linked_input",
                "Bad linked input, must be a length-2 list of [node_id, slot_index]",
                name,
                input_name=name,
                input_config=list(spec),
                received_value=value,
            ), True
        try:
            source, slot = value
            received = self.registry[self.prompt[source]["class_type"]].outputs[slot]
        except (KeyError, IndexError, TypeError) as problem:
            return _exception(problem), True
        if not _fits(received, spec[0]):
            return error(
                "return_type_mismatch",
                "Return type mismatch between linked nodes",
                f"{name}, received_type({received}) mismatch input_type({spec[0]})",
                input_name=name,
                input_config=list(spec),
                received_type=received,
                linked_node=value,
            ), True
        return None, self.verdicts.get(source, (True, []))[0]


def _fits(received: str, wanted: Any) -> bool:
    if isinstance(wanted, list):
        return received in {ANY, "COMBO"}
    if ANY in {received, wanted}:
        return True
    return bool(set(received.split(",")) & set(str(wanted).split(",")))


def _value(name: str, spec: Spec, inputs: dict[str, Any], *, judged: bool) -> Error | None:
    """Convert a plain value in place and hold it against its settings; ``judged``: the node does the latter."""
    kind, settings = spec
    value = inputs[name]
    if isinstance(value, dict) and "__value__" in value:
        value = inputs[name] = value["__value__"]  # how clients pass a list that is no link
    try:
        inputs[name] = value = _converted(kind, value)
    except (ValueError, TypeError, OverflowError) as problem:
        return error(
            "invalid_input_type",
            f"Failed to convert an input value to a {kind} value",
            f"{name}, {value}, {problem}",
            input_name=name,
            input_config=list(spec),
            received_value=value,
            exception_message=str(problem),
        )
    if judged:
        return None
    told = {"input_name": name, "input_config": list(spec), "received_value": value}
    if "min" in settings and value < settings["min"]:
        return error(
            "value_smaller_than_min", f"Value {value} smaller than min of {settings['min']}", name, **told
        )
    if "max" in settings and value > settings["max"]:
        return error("value_bigger_than_max", f"Value {value} bigger than max of {settings['max']}", name, **told)
    options = choices(spec)
    if options is not None and value not in options:
        text = str(options)
        if len(options) > LONG_LIST:
            text, told["input_config"] = f"(list of length {len(options)})", None
        return error("value_not_in_list", "Value not in list", f"{name}: '{value}' not in {text}", **told)
    return None


def _converted(kind: Any, value: Any) -> Any:
    if kind == "INT":
        return int(value)
    if kind == "FLOAT":
        number = float(value)
        if number != number:  # noqa: PLR0124 (NaN passes every comparison with min and max)
            raise ValueError("not a number")
        return number
    if kind == "STRING":
        return str(value)
    if kind == "BOOLEAN":
        return bool(value)
    return value


def _exception(problem: BaseException) -> Error:
    kind = type(problem)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return error(
        "exception_during_validation",
        "Exception when validating node",
        str(problem),
        exception_type=name,
        traceback=traceback.format_tb(problem.__traceback__),
    )
