"""On the path of an interpreter, this leaves it torch, numpy and what these need.

No other package can be imported: it is like that of a bare machine with a GPU, whatever is installed here.
"""

import importlib.metadata
import re
import sys

OURS = {"sfrs_ext", "benchmarks", "usercustomize", "_distutils_hack"}


def needed(names: list[str]) -> set[str]:
    """The distributions of these names and all that they require."""
    found: set[str] = set()
    while names:
        name = re.sub(r"[-_.]+", "-", names.pop()).lower()
        if name in found:
            continue
        try:
            requires = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        found.add(name)
        names += [re.match(r"[\w.-]+", text)[0] for text in requires if "extra ==" not in text]
    return found


class OnlyThese:
    """A finder that finds nothing, and says no to what is not allowed."""

    def __init__(self):
        wanted = needed(["torch", "numpy"])
        owners = importlib.metadata.packages_distributions()
        allowed = {
            module
            for module, distributions in owners.items()
            if any(re.sub(r"[-_.]+", "-", name).lower() in wanted for name in distributions)
        }
        self.allowed = (
            allowed | OURS | sys.stdlib_module_names | {"__main__", "sitecustomize", "usercustomize"}
        )
        self.allowed |= {"_distutils_hack", "distutils-precedence"}

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        top = name.split(".")[0]
        if top not in self.allowed and not top.startswith("__editable__"):
            raise ModuleNotFoundError(
                f"No module named {name!r}: only torch, numpy and what they need", name=name
            )


sys.meta_path.insert(0, OnlyThese())
