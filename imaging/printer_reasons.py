"""Why a printer does not print, or soon will not: the terms of the standard, and what they mean.

Source: PS3.3 C.13.9.1 (Printer Status Info, Execution Status Info).
"""

import re
from collections.abc import Mapping
from types import MappingProxyType

REASONS: Mapping[str, str] = MappingProxyType(
    {
        "NORMAL": "all is well",
        "BAD RECEIVE MGZ": "films cannot be transported into the receive magazine",
        "BAD SUPPLY MGZ": "films cannot be transported out of a supply magazine",
        "CALIBRATING": "it calibrates itself and will be back by itself",
        "CALIBRATION ERR": "its calibration is wrong; films may not be optimal",
        "CHECK CHEMISTRY": "the processor's chemicals are wrong; films may not be optimal",
        "CHECK SORTER": "the film sorter has an error",
        "CHEMICALS EMPTY": "there are no processing chemicals",
        "CHEMICALS LOW": "processing chemicals are low",
        "COVER OPEN": "a cover, drawer or door is open",
        "ELEC CONFIG ERR": "it is configured wrongly for this job",
        "ELEC DOWN": "its electronics do not work",
        "ELEC SW ERROR": "its software has an error",
        "EXPOSURE FAILURE": "the exposure device failed",
        "FILM JAM": "a film or sheet is jammed",
        "FILM TRANSP ERR": "films are transported wrongly, without a jam",
        "FINISHER EMPTY": "the finisher is empty",
        "FINISHER ERROR": "the finisher has an error",
        "FINISHER LOW": "the finisher is low",
        "NO RECEIVE MGZ": "the receive magazine is missing",
        "NO RIBBON": "the ribbon cartridge is missing",
        "NO SUPPLY MGZ": "the supply magazine is missing",
        "CHECK PRINTER": "it needs somebody's attention",
        "CHECK PROC": "the processor needs somebody's attention",
        "PRINTER DOWN": "it does not work",
        "PRINTER BUSY": "it takes no more jobs now",
        "PRINT BUFF FULL": "its buffer is full",
        "PRINTER INIT": "it starts and will be there by itself",
        "PRINTER OFFLINE": "an operator has taken it off",
        "PROC DOWN": "the processor does not work",
        "PROC INIT": "the processor starts and will be there by itself",
        "PROC OVERFLOW FL": "chemicals approach the overflow mark",
        "PROC OVERFLOW HI": "chemicals have reached the overflow mark",
        "QUEUED": "the job waits in the printer's queue",
        "RECEIVER FULL": "the receive magazine or tray is full",
        "REQ MED NOT INST": "what is to be printed on is not loaded, but can be",
        "REQ MED NOT AVAI": "this printer has no such medium",
        "RIBBON ERROR": "the ribbon has an error",
        "SUPPLY EMPTY": "it is out of film or paper",
        "SUPPLY LOW": "film or paper is low",
        "INVALID PAGE DES": "the page cannot be printed as described",
        "INSUFFICIENT MEM": "it has not enough memory for the page",
        "UNKNOWN": "it says that something is wrong, not what",
    }
)

# EMPTY 14X17 BLUE and so on: the supply of one film size and medium.
_SUPPLY = re.compile(r"(EMPTY|LOW) (\d+X\d+|A4)( BLUE| CLR| PAPR| TRANS)?")
_MEDIA = {None: "", " BLUE": " blue film", " CLR": " clear film", " PAPR": " paper", " TRANS": " transparency"}


def meaning(term: str) -> str:
    """Return what a term means, the term itself where it is the printer's own."""
    if term in REASONS:
        return REASONS[term]
    supply = _SUPPLY.fullmatch(term)
    if supply is None:
        return term
    level, size, medium = supply.groups()
    return f"{size}{_MEDIA[medium]} is {'used up' if level == 'EMPTY' else 'low'}"
