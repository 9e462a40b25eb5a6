"""The command lines of the tools: arguments in, one call, text out.

A tool's first line is what ``python -m torchtitan_lighthouse`` says of it. ``main`` parses its
arguments before it imports anything that takes seconds, so that ``--help`` answers at once, and
leaves refusals, missing files and missing packages to ``__main__``, which ends with their message.
"""
