"""How a script refuses its arguments; of the standard library alone, since peers import it too."""


class RefusedError(SystemExit):
    """Arguments that cannot be run, found before any work: a line a complaint, exit status 2."""

    def __init__(self, *complaints: str):
        super().__init__("\n".join(complaints))
        self.code = 2
