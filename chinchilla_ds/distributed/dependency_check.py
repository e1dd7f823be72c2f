"""Fails loudly when a dependency that we correct has changed."""


class DependencyChangedError(RuntimeError):
    """A dependency no longer has the behaviour that one of our patches corrects: the patch must be reviewed."""


def require_source(source: str, expected: str, *, what: str) -> None:
    """Check that `source`, the code of `what`, still contains `expected`.

    Args:
        source: the source text of the dependency.
        expected: the text that it must contain.
        what: the dependency's name in the message.

    Raises:
        DependencyChangedError: it does not.
    """
    if expected not in source:
        raise DependencyChangedError(
            f"{what} has changed: {expected!r} is gone, so the correction that chinchilla_ds.distributed makes "
            "must be reviewed. Install the versions in constraints.txt."
        )
