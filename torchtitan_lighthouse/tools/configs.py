"""List the shipped configs, or print one: ``torchtitan_lighthouse configs NAME > my.toml``."""

import argparse

from torchtitan_lighthouse.configs import names, summary, text


def main(args: list[str] | None = None) -> None:
    """Parse the command line, and print the list or the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", nargs="?", metavar="NAME", help="of the list [the list itself]")
    options = parser.parse_args(args)
    if options.name is not None:
        print(text(options.name), end="")
        return
    width = max(map(len, names()))
    for name in names():
        print(f"{name:{width}}  {summary(name)}")


if __name__ == "__main__":
    main()
