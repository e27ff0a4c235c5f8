"""The backends, one module each, named by its `kind`. How to add one:

Subclass `volctl.backend.Backend`; its methods and their docstrings are the contract, its module's
docstring the rules that hold for all of them. Say `kind`, take your options in `__init__`, and hand
every failure on as a `VolctlError`. A module here imports only from `volctl` (`backend`, `files`,
`command`, `udev`, `interrupt`, `model`, `errors`), never from its neighbours.

    class Tape(Backend):
        kind = "tape"

        def __init__(self, setup: Setup) -> None:
            super().__init__(setup)
            check_options(setup, ("directory", "capabilities"))
            self._directory = Directory(directory_option(setup.name, setup.options), setup.database, setup.name)

        def create(self, target: Object, size: int) -> None:
            with self._directory.opened(f"create {target.name}") as place:
                with place.fresh(target.name, Ownership()) as fd:  # begins anew; durable when it ends
                    grow(fd, size, preallocate=False)

        ...

`volctl.files` has what a backend of files needs: a guarded directory, durable files, reflinks,
copies that keep holes. The module's docstring names the options, with an example, and the host tools.

A backend outside this package registers by an entry point; nothing here changes:

    [project.entry-points."volctl.backends"]
    tape = "acme_tape:Tape"

Prove it with the conformance suite (`tests/backends/conformance.py`), one test for each sentence of
the contract, kill -9 included:

    class TestTape(Conformance):
        def backend(self, directory: Path, database: str) -> Backend:
            return Tape(Setup("tapes", {"directory": str(directory)}, database))

`tests/backends/thirdparty` is a whole package of this kind.
"""
