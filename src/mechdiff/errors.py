"""These are the errors that a user can put right. Each message says what was given, what was expected, and what to do."""

from typing import ClassVar


class MechdiffError(Exception):
    """Something outside mechdiff is not as it must be; the message says what to do about it."""

    exit_code: ClassVar[int] = 2
    """Of the command line: 1, a check did not hold; 2, what was asked for cannot be; 3, the machine cannot do it."""


class ModelError(MechdiffError):
    """A model, adapter or tokenizer is missing, unknown, broken, or does not fit its partner."""


class PromptError(MechdiffError):
    """A prompt set cannot be read, or cannot be rendered as asked."""


class StudyError(MechdiffError):
    """A study file or an option asks for something that does not exist or does not fit together."""


class RunError(MechdiffError):
    """A run folder cannot be written, read or resumed."""


class SelfCheckError(MechdiffError):
    """The engine failed its own check on this model: no number of the run would be worth anything."""

    exit_code = 1


class MachineError(ModelError, RunError):
    """This machine cannot hold the model or make the run: memory, room on disk, a device, a network or a package is missing."""

    exit_code = 3
