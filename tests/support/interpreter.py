"""Triton's interpreter, in half of the time."""

from collections.abc import Callable


def hasten_interpreter() -> None:
    """Let it change triton.language once a launch, not at every call of a function in a kernel.

    There Triton 3.9 goes through all names of the language, which it has changed already.
    """
    from triton import language
    from triton.runtime import interpreter

    change = interpreter._patch_lang

    def change_once(fn: Callable) -> interpreter._LangPatchScope:
        seen = [
            m for m in (language, language.core) if any(v is m for v in fn.__globals__.values())
        ]
        if any(language.core.is_builtin(module.arange) for module in seen):
            return change(fn)
        return interpreter._LangPatchScope()

    interpreter._patch_lang = change_once
