"""``sfrs`` and ``python -m sfrs``."""

import sys


def main() -> None:
    try:
        from sfrs.cli import app
    except ModuleNotFoundError as error:
        sys.exit(
            f"sfrs needs {error.name}, which the operators do not: in the source folder type "
            '`pip install --no-build-isolation ".[train]"`'
        )
    app()


if __name__ == "__main__":
    main()
