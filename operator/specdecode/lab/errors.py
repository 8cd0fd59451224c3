"""What the lab says when it cannot do what was asked."""


class LabError(Exception):
    """The lab cannot be built, started or used; the text says what is wrong and what to do."""
