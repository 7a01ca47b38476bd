"""Writes aws_arguments.json: what arguments and attributes Terraform's AWS provider knows, of the types in infra/aws.

`terraform validate` needs the provider, which is not at hand where tests run. The types of the package
cdktf-cdktf-provider-aws, unpacked and only read, say the same about one version of it.

    pip download --no-deps cdktf-cdktf-provider-aws==21.22.1 && unzip -d unpacked cdktf_cdktf_provider_aws-*.whl
    python tests/infra/aws_arguments.py unpacked/cdktf_cdktf_provider_aws
"""

from __future__ import annotations

import argparse
import ast
import json
import re
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
FILES = HERE.parents[1] / "infra" / "aws"
META = frozenset({"connection", "count", "depends_on", "for_each", "id", "lifecycle", "provider", "provisioners"})
"""Arguments of every resource in the types, which are Terraform's and not the provider's. (`id` is no argument.)"""


def members(path: Path) -> dict[str, ast.ClassDef]:
    """The classes of a module, by name."""
    return {
        node.name: node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef)
    }


def arguments(classes: dict[str, ast.ClassDef], name: str, left_out: frozenset[str]) -> dict[str, Any]:
    """The arguments of a class: `true` for a required one, `false` for another, an object for a block."""
    functions = [node for node in classes[name].body if isinstance(node, ast.FunctionDef)]
    constructor = next(node for node in functions if node.name == "__init__")
    found: dict[str, Any] = {}
    for argument, default in zip(constructor.args.kwonlyargs, constructor.args.kw_defaults, strict=True):
        if argument.arg not in left_out:
            own = re.findall(r"Union\[['\"](\w+)['\"]", ast.unparse(argument.annotation or argument))
            block = bool(own) and own[0] in classes
            found[argument.arg] = arguments(classes, own[0], frozenset()) if block else default is None
    return found


def attributes(node: ast.ClassDef) -> list[str]:
    """The names that a reference to a resource may be followed by."""
    functions = [item for item in node.body if isinstance(item, ast.FunctionDef)]
    names = [item.name for item in functions if "builtins.property" in map(ast.unparse, item.decorator_list)]
    return sorted(name for name in names if not name.endswith("_input"))


def main() -> None:
    """Read the package, write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path)
    package = parser.parse_args().package
    text = "".join(path.read_text(encoding="utf-8") for path in sorted(FILES.glob("*.tf")))
    wanted = sorted(set(re.findall(r'^(resource|data) "(aws_\w+)"', text, re.MULTILINE)))
    known: dict[str, Any] = {"resource": {}, "data": {}}
    for kind, name in wanted:
        folder = ("data_" if kind == "data" else "") + (name if kind == "data" else name.removeprefix("aws_"))
        source = package / folder / "__init__.py"
        classes = members(source)
        main_class = next(iter(classes))
        known["version"] = re.findall(r"hashicorp/aws/([0-9.]+)/docs", source.read_text(encoding="utf-8"))[0]
        known[kind][name] = {
            "arguments": arguments(classes, main_class, META),
            "attributes": attributes(classes[main_class]),
        }
    rows = [
        f'  "{kind}.{name}": {json.dumps(known[kind][name], sort_keys=True)}'
        for kind in ("data", "resource")
        for name in known[kind]
    ]
    text = "{\n" + ",\n".join([f'  "version": "{known["version"]}"', *rows]) + "\n}\n"
    (HERE / "aws_arguments.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
