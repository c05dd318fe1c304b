"""Which images a principal may register, where a contract or the scopes of a token do not let it register all.

An instance is let in where the principal could create the ImagingStudy that it makes by itself, and could have created
the study to which it would be added, as that is now. So nobody gets at a study by adding an image to it.
"""

from collections.abc import Callable

from fhir_server.projection import imaging_study_id
from fhir_server.projector import Projector
from fhir_server.store.documents import Reach
from fhir_server.store.filters import Act
from fhir_server.store.repository import Repository
from imaging.dataset import InstanceSummary
from imaging.errors import AppError, Category


class Admission:
    """Judges the instances of one transfer; each series of a patient once."""

    def __init__(
        self,
        repository: Repository,
        projector: Projector,
        subscriber: str,
        is_known: Callable[[str], bool],
        decided: Callable[[str, Reach], None],
    ) -> None:
        """Judge for a subscriber by its repository.

        is_known   says of a study whether there is an ImagingStudy
        decided    is told of a study in which images are let in, and of what decided that
        """
        self._repository = repository
        self._projector = projector
        self._subscriber = subscriber
        self._is_known = is_known
        self._decided = decided
        self._judged: dict[tuple[object, ...], bool] = {}

    def check(self, summary: InstanceSummary) -> None:
        """Return when the instance may be registered. Raises FORBIDDEN."""
        key = (summary.study_uid, summary.series_uid, summary.series.modality, summary.patient)
        if key not in self._judged:
            self._judged[key] = self._is_permitted(summary)
        if not self._judged[key]:
            # STOW-RS has room for 64 characters.
            modality = summary.series.modality[:16] or "such"
            message = f"{modality} images here are not covered by your contract or token"
            raise AppError(Category.FORBIDDEN, message, where=summary.sop_uid)

    def _is_permitted(self, summary: InstanceSummary) -> bool:
        alone = self._projector.alone(summary, self._subscriber)
        if not self._repository.permits(alone, Act.CREATE):
            return False
        owner = self._subscriber
        if self._is_known(summary.study_uid):
            known = self._repository.reach("ImagingStudy", imaging_study_id(summary.study_uid), Act.CREATE)
            if known is None:
                return False
            owner = known.owner
        modalities = frozenset({summary.series.modality})
        self._decided(summary.study_uid, Reach(owner, modalities, frozenset({alone["subject"]["reference"]})))
        return True
