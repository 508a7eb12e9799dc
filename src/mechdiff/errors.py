"""These are the errors that a user can put right. Each message says what was given, what was expected, and what to do."""


class MechdiffError(Exception):
    """Something outside mechdiff is not as it must be; the message says what to do about it."""


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
