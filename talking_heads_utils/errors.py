"""Errors a user can act on. Each message says what went wrong and what to do about it."""


class TalkingHeadsError(Exception):
    """Base of every error this package raises on purpose; the command line prints it and exits with 2."""


class LabelError(TalkingHeadsError, ValueError):
    """A head or component name that cannot be read, or that the model does not have."""


class CheckpointError(TalkingHeadsError):
    """A checkpoint that is missing, partial, damaged, or of a family that is not known."""


class DownloadError(CheckpointError):
    """A checkpoint that is not here and could not be fetched."""


class ProcessingError(TalkingHeadsError, ValueError):
    """A weight processing that the model does not allow."""


class OptionError(TalkingHeadsError, ValueError):
    """An option whose value makes no sense."""


class TaskError(TalkingHeadsError, ValueError):
    """A task, prompt or word that cannot be had as asked."""


class ResultError(TalkingHeadsError):
    """A finished result that is damaged, of another format, or of another model than the one it stands for."""


class ModelError(TalkingHeadsError):
    """A model that cannot be run here."""


class UnsupportedModelError(ModelError):
    """A model that works in a way that is not known here, so that what is computed from its weights would be wrong."""


class EditError(TalkingHeadsError, ValueError):
    """An edit of the weights that cannot be made as asked, or that was made for another model."""


class NotApplicable(TalkingHeadsError):
    """What an experiment asks does not apply to this model: the one error that is kept as a result, "not possible"."""
